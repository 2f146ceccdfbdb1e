"""Commands about what is on record: they start no flow and read no weights."""

import functools
from pathlib import Path

import click

from loragate.options import common
from loragate.terminal import answered, passphrase, put, put_json


@click.command("list")
@click.argument("model", required=False)
@common
def list_releases(model: str | None, home: str | None, as_json: bool, quiet: bool, verbose: bool) -> None:  # noqa: ARG001
    """List attempts: release, verdict, aliases, when, digest. MODEL narrows it to one model."""
    with answered(verbose):
        from loragate.home import find_home
        from loragate.listing import as_rows, as_table

        place = find_home(home)
        rows = as_rows(place.records(), model)
        if as_json:
            put_json({"releases": rows})
        else:
            put(as_table(rows) if rows else f"nothing{f' of {model}' if model else ''} on record in {place.root}")


@click.command()
@click.argument("name", metavar="RELEASE")
@click.option("--html", is_flag=True, help="Print the path of the HTML report and nothing else.")
@common
def show(name: str, html: bool, home: str | None, as_json: bool, quiet: bool, verbose: bool) -> None:  # noqa: ARG001
    """Show one release: gates, ladder, artifacts.

    RELEASE is model@version, model@champion, an attempt's id, or a model's name for its newest attempt, refused or not.
    """
    with answered(verbose):
        from loragate.home import find_home
        from loragate.listing import describe, pick
        from loragate.record import summary

        place = find_home(home)
        record = pick(place.records(), name, str(place.root))
        report = str(place.report(record.opened.attempt))
        if html:
            put(report)
        elif as_json:
            put_json(summary(record, report=report))
        else:
            put(describe(record, report))


@click.command()
@click.argument("attempt", metavar="ATTEMPT")
@click.option("--rule", required=True, metavar="GATE/RULE", help="The rule that refused, as the refusal names it.")
@click.option("--by", required=True, metavar="NAME", help="Who answers for it: one of gates.waivers.signers.")
@click.option("--reason", required=True, metavar="TEXT", help="Why the finding is taken as it is.")
@click.option("--until", required=True, metavar="YYYY-MM-DD", help="Last day (UTC) on which the waiver counts.")
@click.option(
    "--key",
    required=True,
    type=click.Path(path_type=Path),
    help="Private key of that person (ssh-keygen -t ed25519). Its passphrase, where it has one, is taken from "
    "LORAGATE_KEY_PASSPHRASE or asked for.",
)
@click.option("--config", type=click.Path(path_type=Path), help="The run file, where it has moved since the attempt.")
@common
def waive(  # noqa: PLR0913 - one parameter an option
    attempt: str,
    rule: str,
    by: str,
    reason: str,
    until: str,
    key: Path,
    config: Path | None,
    home: str | None,
    as_json: bool,
    quiet: bool,  # noqa: ARG001
    verbose: bool,
) -> None:
    """Waive one rule that refused ATTEMPT, for that candidate and until a date, by a signed file.

    Writes the waiver and its signature where the run file looks for them (gates.waivers.files). Release again: the
    finding stays on record with its value and limit, is shown as WAIVED, and no longer refuses. Any change of data,
    settings or artifacts makes another candidate, which the waiver is not for.
    """
    with answered(verbose):
        from datetime import UTC, datetime

        from loragate import waivers, waiving
        from loragate.config import load
        from loragate.engines import signing
        from loragate.home import find_home

        record = waiving.find_attempt(find_home(home), attempt)
        run = load(waiving.run_file(record, config))
        waiver = waiving.draft(record, waiving.Wish(rule, by, reason, until), run, datetime.now(UTC).date())
        private = signing.load_private_key(key, passphrase)
        waiving.require_own_key(run, by, private.public)
        sign = functools.partial(signing.sign, private, namespace=waivers.NAMESPACE)
        written = [str(path) for path in waiving.write(run, waiver, sign)]
        if as_json:
            put_json({"written": written, "candidate": waiver.candidate, "rule": rule, "until": waiver.until})
        else:
            put("\n".join(f"wrote {path}" for path in written))
            put(f"It counts until {waiver.until} for candidate {waiver.candidate}: loragate release {run.path}")
