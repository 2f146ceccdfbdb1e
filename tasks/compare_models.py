"""Compare a model with another one, row by row."""

import json

from prefect import task

from loragate.attempt import Attempt, Measurement, recipe
from loragate.comparison import ComparePaired, Comparison
from loragate.ladder import NOT_COMPARED, Hop
from loragate.perplexity import Nll
from loragate.record import as_plain
from loragate.refs import digest_text
from tasks.policies import STEP


@task(name="compare models", task_run_name="compare {name} with {before.name}", **STEP)
def compare_models(
    attempt: Attempt, name: str, before: Measurement, after: Measurement, *, limit: float | None = None
) -> Comparison:
    """Return the ratio of perplexities on the held-out rows, and how sure it is.

    Args:
        limit: What the ratio is judged by; None: the quality gate's limit.
    """
    limits, seed = attempt.config.gates.quality, attempt.config.train.seed
    allowed = limits.max_perplexity_ratio if limit is None else limit
    request = ComparePaired(before.rows, after.rows, allowed, limits.alpha, limits.draws, seed)
    steps = recipe(
        "paired",
        {"before": _digest(before.rows), "after": _digest(after.rows)},
        code=("loragate.comparison", "loragate.engines.paired", "loragate.perplexity"),
        libraries=("numpy",),
        settings={"limit": request.limit, "alpha": request.alpha, "draws": request.draws, "seed": request.seed},
    )
    _, compared = attempt.build(steps, Comparison, lambda _: attempt.call("loragate.engines.paired:compare", request))
    attempt.note("comparison", name, compared)
    return compared


def descend(attempt: Attempt, above: Measurement, below: Measurement, limit: float) -> Hop:
    """Hold a rung of the ladder against the one that it was made from."""
    compared = compare_models(attempt, below.name, above, below, limit=limit)
    return Hop(above.name, below.name, compared, below.divergences.get(above.name, NOT_COMPARED))


def _digest(rows: tuple[Nll, ...]) -> str:
    """Digest sums that may hold NaN, which canonical JSON has no form for."""
    return digest_text(json.dumps(as_plain(rows)))
