"""What a training costs: every step as it ends, memory, and how long some further steps keep the accelerator busy.

An accelerator is busy while at least one kernel or copy runs on it. What the host takes to start them is not in it, so
real tokens over busy time is the rate of a host that costs nothing.
"""

import dataclasses
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from setting import busy, installed, peak_rss

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "trl", "liger-kernel", "unsloth", "flash-attn")
NANO = 1e-9


@dataclass(frozen=True, slots=True)
class Step:
    """An optimizer step that has ended.

    Attributes:
        ended: Seconds since the process began to prepare the training.
        tokens: Tokens of its rows, padding not counted, beginnings that rows share counted in each.
        slots: Positions that were computed, padding among them; 0 where nobody outside knows.
        loss: Mean over its supervised tokens, in nats.
    """

    ended: float
    tokens: int
    slots: int
    loss: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """A peer's training.

    Attributes:
        profiled: How many of the last steps were watched by the profiler, and are not timed.
        processor: Processor seconds of this process over the timed steps.
        others: How many cores other programs kept busy meanwhile.
        rss: The most that the process had resident, from its start to its end, in bytes.
        cuda: The most that its tensors took on the accelerator since the training began, in bytes; 0 without one.
        reserved: The most that was set aside for them there, pools of captured graphs among it.
        busy: Seconds that the profiled steps kept the accelerator busy; 0 where none was seen.
        kernels: Kernels and copies that they ran on it.
        versions: Version of each package that it may have used.
    """

    steps: tuple[Step, ...]
    warmup: int
    profiled: int
    processor: float
    others: float
    rss: int
    cuda: int
    reserved: int
    busy: float
    kernels: int
    versions: dict[str, str]

    @property
    def timed(self) -> tuple[Step, ...]:
        """The steps after the warm-up and before the profiled ones."""
        return self.steps[self.warmup : len(self.steps) - self.profiled]

    @property
    def tokens(self) -> int:
        """Real tokens of the timed steps."""
        return sum(step.tokens for step in self.timed)

    @property
    def seconds(self) -> float:
        """Seconds that the timed steps took."""
        return self.timed[-1].ended - self.steps[self.warmup - 1].ended

    @property
    def rate(self) -> float:
        """Real tokens a second."""
        return self.tokens / self.seconds

    @property
    def middle(self) -> float:
        """Real tokens a second, median over the timed steps."""
        before = self.steps[self.warmup - 1 : len(self.steps) - self.profiled - 1]
        return median(b.tokens / (b.ended - a.ended) for a, b in zip(before, self.timed, strict=True))

    @property
    def free(self) -> float:
        """Real tokens a second if the host cost nothing; 0 where it was not seen."""
        watched = self.steps[len(self.steps) - self.profiled :]
        return sum(step.tokens for step in watched) / self.busy if self.busy else 0.0


@dataclass(slots=True)
class Clock:
    """Notes each step as it ends; watches the last `profiled` ones of `steps`, where it is told how many there are.

    It waits for the accelerator where what is timed begins and ends, not in between: a host that runs ahead may.
    """

    warmup: int
    steps: int = 0
    profiled: int = 0
    start: float = field(default_factory=time.perf_counter)
    ended: list[tuple[Step, Sequence[Any]]] = field(default_factory=list)
    since: tuple[float, float, float] = (0.0, 0.0, 0.0)
    spent: tuple[float, float] | None = None
    profiler: Any = None
    seen: tuple[float, int] = (0.0, 0)

    def started(self) -> None:
        """Training begins: what memory loading took is forgotten."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.init()
            torch.cuda.reset_peak_memory_stats()

    def tick(self, tokens: int, slots: int, losses: Sequence[Any]) -> None:
        """Note a step that has ended just now; the sum of what it came to is only read in the end."""
        number = len(self.ended) + 1
        last_timed = self.steps - self.profiled
        if not self.steps or number in {1, self.warmup, last_timed, self.steps}:
            _wait()
        self.ended.append((Step(time.perf_counter() - self.start, tokens, slots, 0.0), losses))
        if number == self.warmup:
            self.since = time.perf_counter(), time.process_time(), busy()
        if self.profiled and number == last_timed:
            self.spent = self._spent()
            self._watch()
        if self.profiler and number == self.steps:
            self.profiler.stop()
            self.seen = _busy(self.profiler)

    def outcome(self) -> Outcome:
        """What the steps have taken, asked for right after the last one."""
        import torch

        own, others = self.spent or self._spent()
        cuda = torch.cuda.is_available()
        peaks = (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()) if cuda else (0, 0)
        profiled = self.profiled if self.profiler else 0
        steps = tuple(dataclasses.replace(step, loss=sum(map(float, losses))) for step, losses in self.ended)
        return Outcome(steps, self.warmup, profiled, own, others, peak_rss(), *peaks, *self.seen, installed(PACKAGES))

    def _spent(self) -> tuple[float, float]:
        """Processor seconds of this process since the warm-up, and cores that others kept busy meanwhile."""
        wall, processor, all_busy = self.since
        own = time.process_time() - processor
        return own, max(0.0, (busy() - all_busy - own) / (time.perf_counter() - wall))

    def _watch(self) -> None:
        import torch

        self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        self.profiler.start()


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _busy(profiler: Any) -> tuple[float, int]:
    """Seconds that the accelerator was busy, and how many kernels and copies it ran."""
    import torch

    device = torch.autograd.DeviceType.CUDA
    events = profiler.profiler.kineto_results.events()
    ran = [e for e in events if e.device_type() == device and e.duration_ns() > 0 and not e.is_user_annotation()]
    return union((e.start_ns(), e.start_ns() + e.duration_ns()) for e in ran) * NANO, len(ran)


def union(intervals: Iterable[tuple[int, int]]) -> int:
    """Length of what intervals cover together: where two overlap, it counts once."""
    covered, until = 0, 0
    for start, end in sorted(intervals):
        covered += max(0, end - max(start, until))
        until = max(until, end)
    return covered


def read_outcome(path: Path) -> Outcome:
    """Read back what `write_outcome` has written."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    return Outcome(**fields | {"steps": tuple(Step(**step) for step in fields["steps"])})


def write_outcome(outcome: Outcome, path: Path) -> None:
    """Write an outcome for another process."""
    path.write_text(json.dumps(dataclasses.asdict(outcome)), encoding="utf-8")
