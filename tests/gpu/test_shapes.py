"""On a CUDA device, at the sizes of published models: a training takes about the memory that its plan said.

The table of tokens a second and memory is printed at the end; nothing is judged by time.
"""

import gc
import os
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.shapes import save

from loragate.child import Progress
from loragate.config import Train
from loragate.engines import planning, training
from loragate.plan import GIGABYTE, RowFacts
from loragate.rendering import Example, rendered_line
from loragate.rows import Conversation
from loragate.work import Base, TrainAdapter

pytestmark = pytest.mark.gpu

LONGEST, MEDIAN, SPREAD = 729, 141, 0.72
"""Lengths of rows in tokens: log-normal, as those of instruction data sets are."""
WARM, STEPS = 3, 10
MOST_APART = 0.2
ROOM = 75e9
KEYS: dict[str, Any] = {"target_modules": "all", "epochs": 1, "checkpoint_steps": 1000, "dtype": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Job:
    """A training: the shape of its base, rows a step, and more keys of a run file."""

    shape: str
    batch_size: int
    keys: dict[str, Any]
    checkpointing: bool = False

    @property
    def name(self) -> str:
        more = "checkpointing" if self.checkpointing else ""
        return f"{self.shape} {self.keys.get('method', 'lora')} {self.batch_size} rows {more}".strip()


JOBS = [
    Job("qwen2.5-0.5b", 16, {}),
    Job("qwen2.5-0.5b", 90, {"forward_tokens": 4_096}),
    Job("qwen2.5-0.5b", 90, {}),
    Job("qwen2.5-0.5b", 90, {}, checkpointing=True),
    Job("qwen2.5-7b", 16, {}),
    Job("qwen2.5-7b", 16, {"method": "qlora"}),
]


@pytest.fixture(scope="module")
def shapes(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where models of the shapes are, made as they are asked for; kept where $SHAPES names a folder."""
    kept = os.environ.get("SHAPES")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("shapes")
    unwanted = shutil.ignore_patterns("*.safetensors", "config.json")
    shutil.copytree(base.path, folder / "tokenizer", ignore=unwanted, dirs_exist_ok=True)
    yield folder
    if not kept:
        shutil.rmtree(folder)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_memory_is_what_the_plan_said(job: Job, shapes: Path, tmp_path: Path, table: list[str]) -> None:
    folder = shapes / job.shape
    base = Base(str(folder), "", False, (1,), 1, False, "", 0, save(job.shape, folder, shapes / "tokenizer"))
    settings = Train.model_validate(KEYS | {"batch_size": job.batch_size} | job.keys)
    rows = rows_of(job.batch_size * (WARM + STEPS), tmp_path)
    lengths = [len(row.ids) for row in rows]
    facts = RowFacts(len(rows), sum(lengths), sum(length - 1 for length in lengths), max(lengths), 1024)
    plan = planning.count_model(base, settings, facts, "cuda", ROOM)
    memory, settings = plan.memory, settings.model_copy(update={"forward_tokens": plan.forward_tokens})
    expected = (memory.recomputing if job.checkpointing else memory).total
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    beside = taken() - torch.cuda.memory_reserved()
    ends: list[float] = []
    paths = (tmp_path / "train.jsonl", tmp_path / "heldout.jsonl", tmp_path / "adapter", tmp_path / "scratch")

    def report(_: Progress) -> None:
        ends.append(time.perf_counter())

    trained = training.train(TrainAdapter(base, settings, *map(str, paths), job.checkpointing), report)
    measured = torch.cuda.max_memory_reserved() + max(beside, taken() - torch.cuda.memory_reserved())
    tokens = sum(lengths) / len(trained.curve)
    rate = tokens * (len(ends) - 1 - WARM) / (ends[-2] - ends[WARM - 1])
    cells = (f"{tokens:.0f}", f"{rate:.0f}", *(f"{one / GIGABYTE:.2f}" for one in (expected, measured)))
    table.append(f"| {job.name} | {' | '.join(cells)} | {expected / measured:.2f} |")
    assert any(way.startswith("CUDA graphs of") for way in trained.ways), trained.ways
    assert abs(expected / measured - 1) <= MOST_APART


def taken() -> int:
    """Bytes of the device that are not free; nothing else runs on it."""
    free, whole = torch.cuda.mem_get_info()
    return whole - free


def rows_of(count: int, folder: Path) -> list[Example]:
    """Write rows without a common beginning, everything but their first token supervised, and hold one out."""
    numbers = random.Random(0)
    rows = []
    for _ in range(count):
        length = max(20, min(LONGEST, int(MEDIAN * numbers.lognormvariate(0, SPREAD))))
        ids = tuple(numbers.randrange(2, 500) for _ in range(length))
        rows.append(Example(ids, ((0, length),), turns=1, stopped_turns=1, rendered_tokens=length))
    lines = [rendered_line(row, Conversation(()), f"rows:{number}") for number, row in enumerate(rows)]
    (folder / "train.jsonl").write_bytes(b"".join(lines))
    (folder / "heldout.jsonl").write_bytes(lines[0])
    return rows
