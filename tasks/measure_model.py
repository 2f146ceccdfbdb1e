"""Measure a model on the held-out rows: perplexity sums per row, and greedy answers."""

from collections.abc import Sequence
from pathlib import Path

from prefect import task

from loragate.attempt import Attempt, FetchedBase, Measurement, Rows, recipe
from loragate.refs import Ref
from loragate.work import Measured, MeasureModel
from tasks.models import adapted, first_questions, merged_model
from tasks.policies import STEP

PASSES = tuple(
    f"loragate.engines.{name}"
    for name in ("attention", "cuda_kernels", "fused", "heads", "language_model", "noise", "packing")
)
"""Modules that decide how rows go through a model."""
SCORING = ("loragate.engines.predictions", "loragate.engines.scoring", "loragate.ladder")
"""Modules that decide what is measured of it."""


@task(name="measure model", task_run_name="measure {name}", **STEP)
def measure_model(
    attempt: Attempt,
    name: str,
    base: FetchedBase,
    rows: Rows,
    *,
    weights: Ref | None = None,
    against: Sequence[Measurement] = (),
) -> Measurement:
    """Measure the base (`baseline`), base + adapter (`tuned`) or merged weights (`merged`, `champion`).

    Its predictions are held against those of other models, of which the last is the one that it was made from.
    """
    is_merged = name in ("merged", "champion")
    path = weights.path if weights else None
    model = merged_model(attempt, base, path) if is_merged and path else adapted(attempt, base, path)
    limits = attempt.config.gates.quality
    questions = () if is_merged else first_questions(rows, limits.num_samples)
    steps = recipe(
        name,
        {"base": base.digest, "rows": rows.digest, "weights": weights.digest if weights else ""}
        | {f"against {other.name}": other.digest for other in against},
        code=(*PASSES, *SCORING),
        libraries=("torch", "transformers", "peft"),
        settings={
            "quantized": [model.quantization, model.double_quantization] if model.quantized else False,
            "dtype": model.dtype,
            "samples": len(questions),
            "answer_tokens": limits.sample_tokens,
            "forward_tokens": attempt.config.train.most_tokens,
        },
    )

    def make(folder: Path) -> object:
        request = MeasureModel(
            model,
            rows.file("heldout.jsonl"),
            questions,
            limits.sample_tokens,
            attempt.config.train.most_tokens,
            str(folder),
            {other.name: other.folder for other in against},
        )
        return attempt.call("loragate.engines.scoring:measure", request)

    stored, measured = attempt.build(steps, Measured, make)
    ref = stored.ref
    measurement = Measurement(name, measured.rows, measured.answers, ref.path, ref.digest, measured.divergences)
    attempt.note("rung", name, measurement.rung(against[-1] if against else None))
    return measurement
