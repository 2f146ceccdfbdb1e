"""Have a model sit the tasks of gates.quality.tasks, and hold base and tuned model against each other."""

from collections.abc import Mapping

from loragate.attempt import Attempt, Measurement, recipe
from loragate.benchmark import Benchmarked, Sat, Score, compared
from loragate.task_files import SitTasks, task_files
from loragate.work import Model
from tasks.models import LIBRARIES, PASSES, weight_format


def sit_tasks(attempt: Attempt, name: str, model: Model, inputs: Mapping[str, str]) -> dict[str, Score]:
    """Return the model's score of each task by the task's name; the model is loaded once for all of them."""
    asked = task_files(attempt.run)
    if not asked:
        return {}
    draws, seed = attempt.config.gates.quality.draws, attempt.config.train.seed
    steps = recipe(
        f"tasks_{name}",
        {key: inputs[key] for key in ("base", "weights")} | {f"task {each.name}": each.digest for each in asked},
        code=(*PASSES, "loragate.benchmark", "loragate.engines.benchmarks", "loragate.task_files"),
        libraries=(*LIBRARIES, "lm-eval", "datasets"),
        settings={
            **weight_format(model),
            "draws": draws,
            "seed": seed,
        },
    )
    request = SitTasks(model, asked, draws, seed)
    target = "loragate.engines.benchmarks:sit"
    _, scores = attempt.build(steps, tuple[Score, ...], lambda _: attempt.call(target, request))
    return {each.name: score for each, score in zip(asked, scores, strict=True)}


def compare_tasks(attempt: Attempt, baseline: Measurement, tuned: Measurement) -> dict[str, Benchmarked]:
    """Hold the tuned model's scores against the base's and put that on record, task by task."""
    found = {name: compared(score, tuned.scores[name]) for name, score in baseline.scores.items()}
    for name, each in found.items():
        attempt.note("benchmark", name, each)
        attempt.note("sat", name, Sat(baseline.scores[name], tuned.scores[name]))
    return found
