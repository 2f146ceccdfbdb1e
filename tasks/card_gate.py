"""See that the release's card will say what it must, before anything is trained."""

from pathlib import Path

from prefect import task

from loragate.attempt import Attempt, FetchedBase
from loragate.card import BaseCard, stated
from loragate.grounds import CardGrounds
from tasks.gates import settle
from tasks.policies import STEP


@task(name="card gate", **STEP)
def card_gate(attempt: Attempt, base: FetchedBase) -> FetchedBase:
    """Put on record what the base says about itself, refuse where a required item is empty; return the base."""
    from loragate.engines import hub_card

    config = attempt.config
    found = BaseCard(hub_card.licence(Path(base.base.path) / "README.md"), hub=bool(base.base.commit))
    attempt.note("base_card", "", found)
    if config.card.required:
        known = stated(config.card, found, config.base_model.source, config.data.language)
        settle(attempt, CardGrounds(known))
    return base
