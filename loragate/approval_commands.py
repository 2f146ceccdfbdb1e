"""Commands about who has approved a release; they train nothing and start no orchestrator."""

from pathlib import Path

import click

from loragate.options import common, private_key_option
from loragate.terminal import answered, passphrase, put, put_json

moved_option = click.option(
    "--config", type=click.Path(path_type=Path), help="The run file, where it has moved since the release."
)


@click.command()
@click.argument("name", metavar="RELEASE")
@private_key_option("an approver")
@click.option("--reject", is_flag=True, help="Reject instead: blocks RELEASE, however many approve it.")
@click.option("--reason", default="", metavar="TEXT", help="Why, in a sentence; it is signed along.")
@click.option(
    "--expires",
    default="",
    metavar="DATE|DAYS",
    help="Last day (YYYY-MM-DD, UTC) or number of days (30d) that it counts; default: 30d, and for a rejection no end.",
)
@moved_option
@common
def approve(  # noqa: PLR0913 - one parameter an option
    name: str,
    key: Path,
    reject: bool,
    reason: str,
    expires: str,
    config: Path | None,
    home: str | None,
    as_json: bool,
    quiet: bool,  # noqa: ARG001
    verbose: bool,
) -> None:
    """Sign an approval of exactly RELEASE, or with --reject a rejection, after verifying it.

    What is signed: the digests of the release, of its gate report and of its manifest, the decision, and until when.
    Signed again with the same key, the later decision counts. Exits with 4 where the release is not as it was sealed,
    with 5 where the key may not approve it; nothing is written then.
    """
    with answered(verbose):
        from flows.decisions import Wish, decide, question
        from loragate.engines import signing
        from loragate.home import find_home
        from loragate.listing import pick

        place = find_home(home)
        asked = question(place, pick(place, name), config)
        if not as_json:
            put("\n".join([f"you {'reject' if reject else 'approve'}:", *asked.lines]))
        signed = decide(place, asked, Wish(reject, reason, expires), signing.load_private_key(key, passphrase))
        said, standing = signed.approval, signed.standing
        if as_json:
            told = {"release": asked.name, "decision": said.decision, "digest": said.release, "expires": said.expires}
            put_json({"written": str(signed.file), **told, "standing": standing.told})
        else:
            until = f"until {said.expires}" if said.expires else "until it is withdrawn by approving it"
            put(f"wrote {signed.file}: {said.decision} {until}")
            put(standing.why_blocked(asked.name) or f"{asked.name} has the approvals that it needs")


@click.command()
@click.argument("name", metavar="RELEASE")
@moved_option
@common
def approvals(
    name: str,
    config: Path | None,
    home: str | None,
    as_json: bool,
    quiet: bool,  # noqa: ARG001
    verbose: bool,
) -> None:
    """Show who has approved RELEASE, who can still, and which approvals do not count and why.

    The release is verified first. Exits with 0 whether it may be promoted or not; --json says it as `granted`.
    """
    with answered(verbose):
        from flows.decisions import question
        from loragate.home import find_home
        from loragate.listing import pick

        place = find_home(home)
        asked = question(place, pick(place, name), config)
        standing = asked.standing
        if as_json:
            put_json({"release": asked.name, "digest": asked.case.release, **standing.told})
            return
        state = "APPROVED" if standing.granted else "BLOCKED"
        put(f"{state}  {asked.name}  {len(standing.counted)} of {standing.needed} approvals")
        lines = [
            *(f"approved   {each.name} until {each.expires}  {each.reason}".rstrip() for each in standing.counted),
            *(f"rejected   {each.name}  {each.reason}".rstrip() for each in standing.rejected),
            *(f"not        {each.who}: {each.file}: {each.why} ({each.kind})" for each in standing.refused),
            *(f"waits for  {each}" for each in standing.waiting),
            *(f"note       {each}" for each in standing.notes),
        ]
        put("\n".join(lines))
