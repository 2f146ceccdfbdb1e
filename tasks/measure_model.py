"""Measure a model on the held-out rows, perplexity sums per row and greedy answers, and on the run file's tasks."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from prefect import task

from loragate.attempt import Attempt, FetchedBase, Measurement, Rows, recipe
from loragate.challenge import CHAMPION
from loragate.record import as_plain
from loragate.refs import Ref, digest_text
from loragate.work import Measured, MeasureModel
from tasks.models import LIBRARIES, PASSES, adapted, first_questions, merged_model, weight_format
from tasks.policies import STEP
from tasks.sit_tasks import sit_tasks


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
    is_merged = name in ("merged", CHAMPION)
    path = weights.path if weights else None
    model = merged_model(attempt, base, path) if is_merged and path else adapted(attempt, base, path)
    limits, train = attempt.config.gates.quality, attempt.config.train
    questions = () if is_merged else first_questions(rows, limits.num_samples)
    request = MeasureModel(
        model,
        rows.file("heldout.jsonl"),
        questions,
        limits.sample_tokens,
        train.most_tokens,
        against={other.name: other.folder for other in against},
        keeps=name != CHAMPION,
    )
    inputs = {"base": base.digest, "rows": rows.digest, "weights": weights.digest if weights else ""}
    inputs |= {f"against {other.name}": other.digest for other in against}
    measurement = score(attempt, name, request, inputs)
    if not is_merged:  # before anything is trained, a task that cannot be sat ends the attempt
        measurement = replace(measurement, scores=sit_tasks(attempt, name, model, inputs))
    attempt.note_rung(measurement, against[-1] if against else None)
    return measurement


def score(attempt: Attempt, step: str, request: MeasureModel, inputs: Mapping[str, str]) -> Measurement:
    """Have a model scored and asked; the step's folder is the request's."""
    model = request.model
    steps = recipe(
        step,
        inputs,
        code=(*PASSES, "loragate.engines.predictions", "loragate.engines.scoring", "loragate.ladder"),
        libraries=LIBRARIES,
        settings={
            **weight_format(model),
            "questions": digest_text(json.dumps(as_plain(request.questions))),
            "answer_tokens": request.answer_tokens,
            "forward_tokens": request.forward_tokens,
        },
    )

    def make(folder: Path) -> object:
        return attempt.call("loragate.engines.scoring:measure", replace(request, folder=str(folder)))

    stored, measured = attempt.build(steps, Measured, make)
    ref = stored.ref
    return Measurement(step, measured.rows, measured.answers, ref.path, ref.digest, measured.divergences)
