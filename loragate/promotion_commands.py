"""Commands that move a model's aliases; they train nothing and start no orchestrator."""

import sys
from typing import TYPE_CHECKING

import click

from loragate.errors import BlockedError, VerificationError
from loragate.options import common
from loragate.terminal import answered, put, put_json

if TYPE_CHECKING:
    from loragate.home import Home
    from loragate.promotion import Promotion

expect_option = click.option(
    "--expect",
    metavar="VERSION",
    help="The champion that you mean to replace (MODEL@N, N or none), whatever the log says: also one that somebody "
    "put there outside of loragate.",
)


@click.command()
@click.argument("name", metavar="RELEASE")
@expect_option
@common
def promote(name: str, expect: str | None, home: str | None, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Make RELEASE champion, after reading its files back from MLflow.

    Only if the champion is still the one that RELEASE was judged against; else nothing is moved and the exit code is 5.
    RELEASE is what `loragate show` takes: model@version, model@candidate, an attempt's id. Exits with 4 where a file in
    MLflow is not the one that the gates judged.
    """
    with answered(verbose):
        from flows.promotion import promote as promote_release
        from loragate.listing import pick

        place = prepare(home, quiet, verbose)
        record = pick(place, name)
        put_done(promote_release(place, record, expect), as_json)


@click.command()
@click.argument("model", metavar="MODEL")
@expect_option
@common
def rollback(model: str, expect: str | None, home: str | None, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Make the champion before today's champion again, after reading its files back from MLflow.

    A second rollback goes one further back. What was rolled back stays on record; `loragate promote` brings it back.
    """
    with answered(verbose):
        from flows.promotion import rollback as roll_back

        put_done(roll_back(prepare(home, quiet, verbose), model, expect), as_json)


@click.command()
@click.argument("model", metavar="[MODEL]", required=False)
@click.option(
    "--check", "looks", is_flag=True, help="Only look: what is half done, moved or in danger. Changes nothing."
)
@common
def reconcile(model: str | None, looks: bool, home: str | None, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Finish or undo what a crash, or an MLflow that did not answer, left half done; MODEL narrows it to one model.

    Then names aliases that were moved outside of loragate, and champions that MLflow has lost or that `mlflow gc` would
    take the files of: run it with --check before that. Exits with 4 where something is lost or in danger, with 5 where
    something is still open or was moved.
    """
    with answered(verbose):
        from flows.promotion import reconcile as finish

        place = prepare(home, quiet, verbose)
        found = finish(place, model, looks=looks)
        if as_json:
            put_json({"found": [{"model": each.model, "state": each.state, "text": each.text} for each in found]})
        else:
            put("\n".join(f"{each.state:<9} {each.text}" for each in found) or "nothing to do: all is as the log says")
        states = {each.state for each in found}
        if "danger" in states:
            sys.exit(VerificationError.exit_code)
        if states & {"open", "moved"}:
            sys.exit(BlockedError.exit_code)


def prepare(given: str | None, quiet: bool, verbose: bool) -> "Home":
    """Set up the environment, and find the home."""
    from loragate import narration
    from loragate.home import find_home
    from loragate.orchestrator import prepare_environment

    narration.quiet = quiet
    place = find_home(given)
    prepare_environment(place, verbose=verbose)
    return place


def put_done(promotion: "Promotion", as_json: bool) -> None:
    """Put what has become champion, and in whose place."""
    intent = promotion.intent
    if as_json:
        told = {"release": promotion.name, "model": intent.model, "version": promotion.version, "digest": intent.digest}
        put_json({**told, "event": intent.kind, "replaced": intent.expected or None})
    else:
        before = f"{intent.model}@{intent.expected}" if intent.expected else "none"
        put(f"{promotion.name} is champion; before: {before}")
