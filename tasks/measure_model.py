"""Measure a model on the held-out rows: perplexity sums per row, and greedy answers."""

from prefect import task

from loragate.attempt import Attempt, FetchedBase, Measurement, Rows, recipe
from loragate.record import Rung
from loragate.refs import Ref
from loragate.work import Measured, MeasureModel
from tasks.models import adapted, first_questions, merged_model
from tasks.policies import STEP

PASSES = tuple(
    f"loragate.engines.{name}"
    for name in ("attention", "cuda_kernels", "fused", "heads", "language_model", "noise", "packing")
)
"""Modules that decide how rows go through a model."""


@task(name="measure model", task_run_name="measure {name}", **STEP)
def measure_model(
    attempt: Attempt, name: str, base: FetchedBase, rows: Rows, *, weights: Ref | None = None
) -> Measurement:
    """Measure the base (`baseline`), base + adapter (`tuned`) or merged weights (`merged`, `champion`)."""
    is_merged = name in ("merged", "champion")
    path = weights.path if weights else None
    model = merged_model(attempt, base, path) if is_merged and path else adapted(attempt, base, path)
    limits = attempt.config.gates.quality
    questions = () if is_merged else first_questions(rows, limits.num_samples)
    request = MeasureModel(
        model,
        rows.file("heldout.jsonl"),
        questions,
        limits.sample_tokens,
        attempt.config.train.most_tokens,
    )
    steps = recipe(
        name,
        {"base": base.digest, "rows": rows.digest, "weights": weights.digest if weights else ""},
        code=(*PASSES, "loragate.engines.scoring"),
        libraries=("torch", "transformers", "peft"),
        settings={
            "quantized": [model.quantization, model.double_quantization] if model.quantized else False,
            "dtype": model.dtype,
            "samples": len(questions),
            "answer_tokens": limits.sample_tokens,
            "forward_tokens": attempt.config.train.most_tokens,
        },
    )
    _, measured = attempt.build(steps, Measured, lambda _: attempt.call("loragate.engines.scoring:measure", request))
    measurement = Measurement(measured.rows, measured.answers)
    attempt.note("rung", name, Rung(name, measurement.total))
    return measurement
