"""Gather what the tuned model's answers are judged by: references, what they repeat, canaries, scores of tasks."""

import json
import os

from prefect import task

from loragate.answered import Answered
from loragate.attempt import Attempt, FetchedBase, Measurement, Rows, recipe
from loragate.record import Sample
from loragate.refs import Ref, digest_text
from loragate.rows import Conversation, Message
from loragate.work import Answer, FindVerbatim, MeasureModel
from tasks.measure_model import score
from tasks.models import adapted, first_questions, first_references
from tasks.policies import STEP
from tasks.sit_tasks import compare_tasks
from tasks.worst_rows import worst_rows


@task(name="examine answers", **STEP)
def examine_answers(
    attempt: Attempt, base: FetchedBase, rows: Rows, adapter: Ref, baseline: Measurement, tuned: Measurement
) -> Answered:
    """Return the tuned model's answers beside what they are judged by; put samples and the worst rows on record."""
    number = len(tuned.answers)
    asked, references = first_questions(rows, number), first_references(rows, number)
    attempt.note("samples", "", _samples(asked, references, baseline.answers, tuned.answers))
    attempt.note("worst_rows", baseline.name, worst_rows(baseline, tuned, rows))
    verbatim = _verbatim(attempt, rows, asked, references, tuned.answers)
    benchmarks = compare_tasks(attempt, baseline, tuned)
    return Answered(tuned.answers, references, verbatim, _canaries(attempt, base, adapter), benchmarks)


def _samples(
    asked: tuple[Conversation, ...], references: tuple[str, ...], before: tuple[Answer, ...], after: tuple[Answer, ...]
) -> tuple[Sample, ...]:
    return tuple(
        Sample(question.messages[-1].said, reference, old.text, new.text, old.stopped, new.stopped)
        for question, reference, old, new in zip(asked, references, before, after, strict=True)
    )


def _verbatim(
    attempt: Attempt,
    rows: Rows,
    asked: tuple[Conversation, ...],
    references: tuple[str, ...],
    answers: tuple[Answer, ...],
) -> tuple[str, ...]:
    """For each answer the passage that it repeats from a training answer and was not given; empty where none."""
    words = attempt.config.gates.quality.verbatim_words
    given = tuple(
        (*(message.content for message in question.messages), reference)
        for question, reference in zip(asked, references, strict=True)
    )
    texts = tuple(answer.text for answer in answers)
    request = FindVerbatim(rows.file("train.jsonl"), texts, given, words)
    steps = recipe(
        "verbatim",
        {"rows": rows.digest, "answers": digest_text(json.dumps(texts))},
        code=("loragate.engines.verbatim", "loragate.rendering", "loragate.rows", "loragate.words"),
        settings={"words": words},
    )
    target = "loragate.engines.verbatim:find_verbatim"
    _, found = attempt.build(steps, tuple[str, ...], lambda _: attempt.call(target, request))
    return found


def _canaries(attempt: Attempt, base: FetchedBase, adapter: Ref) -> tuple[Answer, ...]:
    """What the tuned model says to the prompts of the canaries, greedily."""
    limits = attempt.config.gates.quality
    if not limits.canaries:
        return ()
    model, tokens = adapted(attempt, base, adapter.path), attempt.config.train.most_tokens
    prompts = tuple(canary.prompt for canary in limits.canaries)
    questions = tuple(Conversation((Message("user", prompt),)) for prompt in prompts)
    request = MeasureModel(model, os.devnull, questions, limits.sample_tokens, tokens, keeps=False)
    return score(attempt, "canaries", request, {"base": base.digest, "weights": adapter.digest}).answers
