"""The command `loragate`: a front door that imports nothing heavy until it is needed."""

import contextlib
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from loragate import __version__
from loragate.approval_commands import approvals, approve
from loragate.defects import CATALOGUE, GATES
from loragate.errors import BlockedError, GateRefusedError, VerificationError
from loragate.export_commands import export, push
from loragate.options import common, config_argument, overrides_option
from loragate.promotion_commands import promote, reconcile, rollback
from loragate.release_commands import list_releases, show, verify, waive
from loragate.replay_commands import replay
from loragate.terminal import answered, put, put_json

if TYPE_CHECKING:
    from loragate.home import Home, Kind
    from loragate.record import AttemptRecord


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="loragate")
def main() -> None:
    """Fine-tune a language model with LoRA or QLoRA and release it only through gates.

    \b
    A first run:
      loragate init            write a commented run file
      loragate check run.yaml  judge the data; trains nothing
      loragate release run.yaml
      loragate verify MODEL@1  check the sealed release; nothing of it can be altered unseen

    \b
    Exit codes: 0 done, 2 bad configuration or usage, 3 refused by a gate, 4 verification failed,
    5 blocked (another release of the model is running, another one became champion, approvals are missing, MLflow does
    not answer), 1 anything unexpected.
    """


@main.command()
@click.argument("folder", metavar="[DIR]", type=click.Path(path_type=Path, file_okay=False), default=Path())
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else.")
@click.option(
    "--key",
    is_flag=True,
    help="Write a key pair to seal releases with (signing.key, readable by you alone, and signing.pub) and nothing "
    "else; name it by record.signing_key or LORAGATE_SIGNING_KEY. Nothing is overwritten.",
)
def init(folder: Path, as_json: bool, key: bool) -> None:
    """Write a commented run file and its JSON schema, or with --key a key pair, into DIR (default: here)."""
    with answered(verbose=False):
        from loragate.starter import write_starter

        if key:
            from loragate.engines import seals

            pair = [str(path) for path in seals.write_pair(seals.new_key(), folder, "signing")]
            put_json({"written": pair}) if as_json else put("\n".join(f"wrote {path}" for path in pair))
            return
        written = write_starter(folder)
        if as_json:
            put_json({"written": [str(path) for path in written]})
        else:
            put("\n".join(f"wrote {path}" for path in written))
            put(f"Fill in model, base_model and data, then: loragate check {written[0]}")


@main.command()
@config_argument
@overrides_option
@click.option(
    "--fix",
    metavar="OUT",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write a cleaned copy of the data files, as JSON lines, into the new folder OUT: trimmed, without exact "
    "copies and without rows that a rule refuses. The check itself still judges the files as they are.",
)
@common
def check(  # noqa: PLR0913 - one parameter an option
    config: Path,
    overrides: tuple[str, ...],
    fix: Path | None,
    home: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Check a run file, and judge its data and its training plan.

    Tells every rule with the rows that break it and what the training will take (steps, memory, and whether it
    recomputes activations to fit), and leaves a report, Great Expectations' data docs and rejects.jsonl with each
    rejected row and the reason. Trains nothing and adds nothing to the releases. The base model is prepared on the way,
    which takes a while the first time; a later release finds it done.
    """
    with answered(verbose):
        place = prepare(config, overrides, home, quiet, verbose)
        from loragate.orchestrator import prefect_server

        before = attempts(place, "checks")
        with prefect_server(place) as ready:
            from flows.check import check_data

            ready()
            with contextlib.suppress(GateRefusedError):
                check_data(str(config), str(place.root), list(overrides), str(fix.absolute()) if fix else None)
        outcome = newest(place, before, "checks")
        put_outcome(place, outcome, "checks", as_json)
        if outcome["verdict"] == "refused":
            sys.exit(GateRefusedError.exit_code)


@main.command()
@config_argument
@overrides_option
@common
def release(
    config: Path, overrides: tuple[str, ...], home: str | None, as_json: bool, quiet: bool, verbose: bool
) -> None:
    """Walk the whole road: check, measure, train, judge, merge, convert, register.

    Run again after an interruption, it goes on where it was; run again unchanged, it finds the release it made. A
    release becomes champion if the champion is still the one that it was judged against (record.promote: candidate
    stops before that); else, and where MLflow does not answer, it is on record and the exit code is 5.
    """
    with answered(verbose):
        place = prepare(config, overrides, home, quiet, verbose)
        from loragate.orchestrator import prefect_server

        before = attempts(place, "record")
        with prefect_server(place) as ready:
            from flows.release import release_model

            ready()
            outcome: Mapping[str, object]
            code = 0
            try:
                outcome = release_model(str(config), str(place.root), list(overrides))
            except (GateRefusedError, BlockedError) as error:
                outcome, code = newest(place, before, "record"), error.exit_code
        put_outcome(place, outcome, "record", as_json)
        if code:
            sys.exit(code)


@main.command()
@click.argument("config", metavar="CONFIG", required=False, type=click.Path(path_type=Path))
@overrides_option
@click.option("--only", multiple=True, metavar="DEFECT", help="Plant this defect alone; repeatable. See --catalogue.")
@click.option(
    "--gate",
    "gates",
    multiple=True,
    type=click.Choice(GATES),
    help="Plant only what this gate should catch (record: `loragate verify`); repeatable, adds to --only.",
)
@click.option(
    "--without",
    multiple=True,
    type=click.Choice(GATES),
    help="Have this gate judge and not refuse: shows what the others catch in its place; repeatable.",
)
@click.option(
    "--catalogue",
    is_flag=True,
    help="List the defects and the gate that should catch each; plant none, and take no CONFIG.",
)
@common
def sabotage(  # noqa: PLR0913 - one parameter an option
    config: Path | None,
    overrides: tuple[str, ...],
    only: tuple[str, ...],
    gates: tuple[str, ...],
    without: tuple[str, ...],
    catalogue: bool,
    home: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Test the gates: plant known defects into copies of a run, one at a time, and tell which gate catches each.

    The run is released first, or found released; what it made is reused, and a defect trains anew only where it has
    to. Then the release is sealed again in a home of its own, and its record is altered in one place at a time: verify
    has to name it. Nothing that a defect made is kept or registered. Exits with 4 where a defect was not caught by the
    gate that should catch it.
    """
    with answered(verbose):
        from loragate.listing import catalogue_table, sabotage_table
        from loragate.orchestrator import prefect_server

        wanted = [*only, *(each.name for each in CATALOGUE if each.gate in gates)]
        if catalogue:
            listed = [each for each in CATALOGUE if not wanted or each.name in wanted]
            put_json({"defects": [asdict(each) for each in listed]}) if as_json else put(catalogue_table(listed))
            return
        if config is None:
            raise click.UsageError("Missing argument 'CONFIG'.", click.get_current_context())
        place = prepare(config, overrides, home, quiet, verbose)
        with prefect_server(place) as ready:
            from flows.sabotage import sabotage as sabotage_run

            ready()
            outcome = sabotage_run(str(config), str(place.root), list(overrides), wanted, list(without))
        if as_json:
            put_json(outcome)
        else:
            put(sabotage_table(outcome))
        if outcome["score"] != 1:
            sys.exit(VerificationError.exit_code)


@main.command()
@click.argument("configs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--cron", default="0 3 * * 1", show_default=True, help="When to release, as a cron expression.")
@click.option("--timezone", default="UTC", show_default=True, help="Time zone of the cron expression.")
@common
def serve(  # noqa: PLR0913 - one parameter an option
    configs: tuple[Path, ...],
    cron: str,
    timezone: str,
    home: str | None,
    as_json: bool,  # noqa: ARG001 - a service prints no result
    quiet: bool,
    verbose: bool,
) -> None:
    """Run releases of CONFIG… on a schedule, on this machine, until Ctrl-C.

    A refused release shows as a failed flow run with the verdict as its message; an unchanged one trains nothing.
    """
    with answered(verbose):
        for config in configs:
            place = prepare(config, (), home, quiet, verbose)
        from flows.schedule import check_schedule, serve_releases
        from loragate.orchestrator import prefect_server

        check_schedule(cron, timezone)
        with prefect_server(place, serves_schedules=True) as ready:
            tell_where(ready())
            serve_releases([str(config.resolve()) for config in configs], str(place.root), cron, timezone)


def prepare(config: Path, overrides: tuple[str, ...], home: str | None, quiet: bool, verbose: bool) -> "Home":
    """Refuse a wrong run file at once, and set up the environment for what follows."""
    from loragate import narration
    from loragate.approvers import read_policy
    from loragate.config import find_base, load
    from loragate.files import data_files
    from loragate.home import find_home
    from loragate.orchestrator import prepare_environment

    narration.quiet = quiet
    run = load(config, overrides)
    find_base(run)
    data_files(run)
    read_policy(run)
    place = find_home(home, run)
    prepare_environment(place, verbose=verbose)
    return place


def attempts(place: "Home", kind: "Kind") -> set[str]:
    """Ids of the attempts, or checks, on record."""
    return {path.name for path in (place.root / kind).glob("*")}


def newest(place: "Home", before: set[str], kind: "Kind") -> Mapping[str, object]:
    """The outcome of the one attempt that was not there before."""
    from loragate.summary import summary

    (attempt,) = attempts(place, kind) - before
    return summary(place.journal(attempt, kind).read(), report=str(place.report(attempt, kind)))


def put_outcome(place: "Home", outcome: Mapping[str, object], kind: "Kind", as_json: bool) -> None:
    """Put the verdict, the gates, the ladder and where to look further; of a check every rule of the data gate."""
    if as_json:
        put_json(outcome)
        return
    from loragate.listing import describe, describe_check

    attempt = str(outcome["attempt"])
    record = place.told(attempt) if kind == "record" else place.journal(attempt, kind).read()
    report = str(place.report(record.opened.attempt, kind))
    if kind == "checks":
        put(describe_check(record, report))
    else:
        put(describe(record, report))
        put(where_to_look(place, record))


def where_to_look(place: "Home", record: "AttemptRecord") -> str:
    """The commands that open the two user interfaces on what just happened."""
    folder = Path(sys.executable).parent
    uri = record.tracked.uri if record.tracked else place.tracking_uri
    return (
        f"\nMLflow:   {folder}/mlflow ui --backend-store-uri {uri}\n"
        f"Prefect:  PREFECT_HOME={place.prefect} {folder}/prefect server start"
    )


def tell_where(address: str) -> None:
    """Say where the schedules can be watched."""
    from loragate.narration import tell

    tell(f"serving; watch it at {address.removesuffix('/api')} ; Ctrl-C ends it")


COMMANDS = (
    *(list_releases, show, waive, verify, export, push),
    *(replay, approve, approvals, promote, rollback, reconcile),
)
for command in COMMANDS:
    main.add_command(command)


if __name__ == "__main__":
    main()
