"""Measure what was forgotten: base and tuned model on the rows of data.general, or on what the base itself says."""

from pathlib import Path

from prefect import task

from loragate.attempt import Attempt, FetchedBase, Measurement, Rows, recipe
from loragate.comparison import Comparison
from loragate.general_questions import QUESTIONS
from loragate.record import GENERAL
from loragate.refs import Ref, digest_file
from loragate.work import DrawAnswers, MeasureModel, Model
from tasks.compare_models import compare_models
from tasks.measure_model import score
from tasks.models import LIBRARIES, PASSES, adapted
from tasks.policies import STEP

ANSWER_TOKENS = 32
"""Longest drawn answer: most of what a training changes in general answers shows within it (own choice)."""


@task(name="measure general", **STEP)
def measure_general(attempt: Attempt, base: FetchedBase, rows: Rows, adapter: Ref) -> Comparison:
    """Hold base + adapter against the base on general rows, row by row."""
    general = _general_rows(attempt, base, rows)
    before = _measured(attempt, "baseline", adapted(attempt, base, None), general, {"base": base.digest})
    weights = {"base": base.digest, "weights": adapter.digest}
    after = _measured(attempt, "tuned", adapted(attempt, base, adapter.path), general, weights)
    return compare_models(attempt, "general", before, after, limit=attempt.config.gates.quality.max_general_ratio)


def _general_rows(attempt: Attempt, base: FetchedBase, rows: Rows) -> Ref:
    """The file of rendered rows; drawn from the base where data.general is empty."""
    if attempt.config.data.general:
        path = Path(rows.file("general.jsonl"))
        return Ref(str(path), digest_file(path))
    model, seed = adapted(attempt, base, None), attempt.config.train.seed
    steps = recipe(
        "general",
        {"base": base.digest},
        code=(*PASSES, "loragate.engines.general"),
        libraries=LIBRARIES,
        settings={"questions": QUESTIONS, "answer_tokens": ANSWER_TOKENS, "seed": seed, "dtype": model.dtype},
    )

    def make(folder: Path) -> object:
        request = DrawAnswers(model, QUESTIONS, ANSWER_TOKENS, seed, str(folder))
        return attempt.call("loragate.engines.general:draw", request)

    stored, _ = attempt.build(steps, int, make)
    return Ref(stored.file("general.jsonl"), stored.ref.digest)


def _measured(attempt: Attempt, name: str, model: Model, general: Ref, inputs: dict[str, str]) -> Measurement:
    request = MeasureModel(model, general.path, (), 1, attempt.config.train.most_tokens, keeps=False)
    measurement = score(attempt, f"{GENERAL}{name}", request, {"general": general.digest, **inputs})
    attempt.note_rung(measurement)
    return measurement
