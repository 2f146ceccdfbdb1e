"""Compare a model with the baseline, row by row."""

import json

from prefect import task

from loragate.attempt import Attempt, Measurement, recipe
from loragate.comparison import ComparePaired, Comparison
from loragate.perplexity import Nll
from loragate.record import as_plain
from loragate.refs import digest_text
from tasks.policies import STEP


@task(name="compare models", task_run_name="compare {name} with baseline", **STEP)
def compare_models(attempt: Attempt, name: str, baseline: Measurement, other: Measurement) -> Comparison:
    """Return the ratio of perplexities on the held-out rows, and how sure it is."""
    return compare_rows(attempt, name, baseline, other, attempt.config.gates.quality.max_perplexity_ratio)


def compare_rows(attempt: Attempt, name: str, baseline: Measurement, other: Measurement, limit: float) -> Comparison:
    """Compare two models on the same rows, about a ratio of perplexities that is allowed; put it on record."""
    limits, seed = attempt.config.gates.quality, attempt.config.train.seed
    request = ComparePaired(baseline.rows, other.rows, limit, limits.alpha, limits.draws, seed)
    steps = recipe(
        f"paired_{name}",
        {"before": _digest(baseline.rows), "after": _digest(other.rows)},
        code=("loragate.comparison", "loragate.engines.paired", "loragate.perplexity"),
        libraries=("numpy",),
        settings={"limit": request.limit, "alpha": request.alpha, "draws": request.draws, "seed": request.seed},
    )
    _, compared = attempt.build(steps, Comparison, lambda _: attempt.call("loragate.engines.paired:compare", request))
    attempt.note("comparison", name, compared)
    return compared


def _digest(rows: tuple[Nll, ...]) -> str:
    """Digest sums that may hold NaN, which canonical JSON has no form for."""
    return digest_text(json.dumps(as_plain(rows)))
