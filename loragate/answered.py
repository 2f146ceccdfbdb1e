"""What a tuned model said when it was asked, and what that is judged by."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from loragate.benchmark import Benchmarked
from loragate.work import Answer


@dataclass(frozen=True, slots=True)
class Answered:
    """Greedy answers of the tuned model.

    Attributes:
        answers: To the first held-out questions.
        references: The held-out rows' own answers to the same questions.
        verbatim: For each answer the passage that it shares with a training answer and with nothing that it was
            given; empty where there is none.
        canaries: Answers to the prompts of gates.quality.canaries, in their order.
        benchmarks: Base and tuned model on each of gates.quality.tasks, by name, in their order.
    """

    answers: tuple[Answer, ...]
    references: tuple[str, ...]
    verbatim: tuple[str, ...]
    canaries: tuple[Answer, ...] = ()
    benchmarks: Mapping[str, Benchmarked] = field(default_factory=dict)
