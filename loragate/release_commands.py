"""Commands about what is on record: they start no flow and read no weights."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import click

from loragate.errors import ConfigError
from loragate.options import common, private_key_option
from loragate.terminal import answered, passphrase, put, put_json

if TYPE_CHECKING:
    from loragate.verification import Verified


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
        from loragate.summary import summary

        place = find_home(home)
        record = pick(place, name)
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
@private_key_option("that person")
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


@click.command()
@click.argument("name", metavar="RELEASE|DIR")
@click.option(
    "--key",
    "keys",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Public key (PEM) that the signature must be by; repeatable. Without it a key of the home counts, and for DIR "
    "the bundle's own.",
)
@click.option(
    "--mlflow",
    "also_mlflow",
    is_flag=True,
    help="Also hold MLflow against it: every file of the version, read back, its tags, and the model's aliases.",
)
@common
def verify(  # noqa: PLR0913 - one parameter an option
    name: str,
    keys: tuple[Path, ...],
    also_mlflow: bool,
    home: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Verify a release of this home, or a bundle in the folder DIR, offline.

    Checks every file against the signature and the manifest; of a release of this home also the chain of events, line
    by line, the attempt's journal and the log of promotions. A version downloaded from MLflow is a bundle, too. Names
    the first thing that is wrong and exits with 4. Tells what the signature proves: that depends on where the key is
    known from.
    """
    with answered(verbose):
        found = verified(name, keys, home)
        if also_mlflow:
            _verify_in_mlflow(found, name, home, quiet, verbose)
        if as_json:
            put_json(found.told | ({"mlflow": True} if also_mlflow else {}))
        else:
            chain = f", and the chain of {len(found.chain):,} events has it" if found.chain else ""
            put(f"VERIFIED  {found.release}  {found.digest}")
            put(f"manifest  {found.told['manifest']}")
            put(f"{found.files:,} files in {found.folder} are as they were sealed{chain}")
            if also_mlflow:
                put("MLflow has the same files, the tags that belong to them, and the aliases of the promotion log")
            put(f"signed with {found.checked.key[:12]}, {found.told['proves']}")


def _verify_in_mlflow(found: "Verified", name: str, home: str | None, quiet: bool, verbose: bool) -> None:
    """Hold what MLflow has of a release against it."""
    if found.chain is None:
        raise ConfigError(f"{name}: a folder; --mlflow takes a release of a home, because that knows where MLflow is")
    from flows.promotion import verify_registered
    from loragate.listing import pick
    from loragate.promotion_commands import prepare

    place = prepare(home, quiet, verbose)
    verify_registered(place, pick(place, name), found)


def verified(name: str, keys: tuple[Path, ...], home: str | None) -> "Verified":
    """Verify a folder, or else a release of the home, with the keys that are given or the home's."""
    from loragate.chain import HEAD
    from loragate.engines import seals
    from loragate.places import KEYS, home_root
    from loragate.verification import verify_bundle, verify_release

    given = bool(keys)
    known = seals.key_files(keys) if given else seals.read_keys(home_root(home) / KEYS)
    if Path(name).is_dir():
        unseal = functools.partial(seals.unseal, publics=known) if given else seals.unseal
        return verify_bundle(Path(name), unseal, known, given)
    if "/" in name:
        raise ConfigError(f"{name}: there is no such folder; name a bundle's, or a release of the home as MODEL@N")
    from loragate.home import find_home
    from loragate.listing import pick

    place = find_home(home)
    return verify_release(place, pick(place, name), *seals.readers(place.chain / HEAD, known), given)
