"""Compare two models on the same held-out rows, row by row."""

import json
from collections.abc import Mapping

from prefect import task

from loragate.attempt import Attempt, Measurement, recipe
from loragate.comparison import CompareEach, ComparePaired, Comparison
from loragate.ladder import NOT_COMPARED, Hop
from loragate.perplexity import Nll
from loragate.record import as_plain
from loragate.refs import digest_text
from tasks.policies import STEP


@task(name="compare models", task_run_name="compare {name}", **STEP)
def compare_models(
    attempt: Attempt,
    name: str,
    before: Measurement,
    after: Measurement,
    *,
    limit: float | None = None,
    alpha: float | None = None,
) -> Comparison:
    """Return the ratio of perplexities on the held-out rows, after / before, and how sure it is.

    Args:
        limit: Ratio that the p-value is about; None: what is allowed against the base.
        alpha: Probability with which each bound may be wrong; None: that of the gate.
    """
    limits = attempt.config.gates.quality
    about = limits.max_perplexity_ratio if limit is None else limit, limits.alpha if alpha is None else alpha
    step = "paired" if name == "tuned" else f"paired_{name}"
    return compare_each(attempt, step, {name: ask(attempt, before.rows, after.rows, about)})[name]


def ask(attempt: Attempt, before: tuple[Nll, ...], after: tuple[Nll, ...], about: tuple[float, float]) -> ComparePaired:
    """Ask for a comparison about a limit, with an alpha."""
    return ComparePaired(before, after, *about, attempt.config.gates.quality.draws, attempt.config.train.seed)


def compare_each(attempt: Attempt, step: str, asked: Mapping[str, ComparePaired]) -> dict[str, Comparison]:
    """Make comparisons by their names, in one step, and put them on record."""
    request = CompareEach(tuple(asked.values()))
    steps = recipe(
        step,
        {"asked": digest_text(json.dumps(as_plain(request.requests)))},  # sums may be NaN: no canonical JSON
        code=("loragate.comparison", "loragate.engines.paired", "loragate.perplexity"),
        libraries=("numpy",),
    )
    target = "loragate.engines.paired:compare_each"
    _, found = attempt.build(steps, tuple[Comparison, ...], lambda _: attempt.call(target, request))
    compared = dict(zip(asked, found, strict=True))
    for name, each in compared.items():
        attempt.note("comparison", name, each)
    return compared


def descend(attempt: Attempt, above: Measurement, below: Measurement, limit: float) -> Hop:
    """Hold a rung of the ladder against the one that it was made from."""
    compared = compare_models(attempt, below.name, above, below, limit=limit)
    return Hop(above.name, below.name, compared, below.divergences.get(above.name, NOT_COMPARED))
