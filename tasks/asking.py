"""What a person who is asked to approve a release is shown, and what is looked at when the asking ends."""

from pathlib import Path

from loragate.approvals import approve_command
from loragate.home import find_home
from loragate.listing import pick
from tasks.approvals import Asked, question, require_approved


def look_up(release: str, home: str | None, config: str | None = None) -> Asked:
    """Verify a release that is to be approved; raises as `question` does."""
    place = find_home(home)
    return question(place, pick(place, release), Path(config) if config else None)


def shown(asked: Asked) -> str:
    """What is to be approved, and how, as Markdown."""
    facts = "\n".join(asked.lines)
    command = approve_command(asked.name)
    return (
        f"**{asked.name} waits for {asked.standing.needed} signed approvals.** Read its report, then sign:\n\n"
        f"```\n{command}\n{command} --reject --reason WHY\n```\n\n```\n{facts}\n```\n\n"
        f"{asked.standing.why_blocked(asked.name)}\n\n"
        "What is typed here is no approval, whatever it is: it only ends the waiting. Only signed files count."
    )


def require_granted(asked: Asked, home: str | None, config: str | None = None) -> dict[str, object]:
    """Look at the signed approvals alone; return what counts, or raise as `require_approved` does."""
    place = find_home(home)
    record = pick(place, asked.name)
    standing = require_approved(place, record, asked.case.release, Path(config) if config else None)
    told = standing.told if standing else {"granted": True}
    return {"release": asked.name, "digest": asked.case.release, **told}
