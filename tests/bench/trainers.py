"""One trainer on the prepared rows, step by step: `train.py` runs this as a process of its own for every peer.

Every peer has the same rows and supervised tokens, adapter (r 16, alpha 32 on q, k, v and o, no dropout), AdamW at a
constant 2e-4, clipping at 1, rows a step, seed and number format, and no gradient checkpointing. A step's loss is the
mean over its supervised tokens. What is timed begins when the warm-up steps have ended.
"""

import argparse
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docstrings import HELDOUT, TRAIN, read, read_base
from setting import busy, peak_rss

if TYPE_CHECKING:
    from loragate.child import Progress
    from loragate.config import Train

Row = dict[str, list[int]]
LEARNING_RATE, RANK, ALPHA, TARGETS = 2e-4, 16, 32, ("q_proj", "k_proj", "v_proj", "o_proj")
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "trl", "liger-kernel", "flash-attn")
IGNORED, NEVER = -100, 1_000_000


@dataclass(frozen=True, slots=True)
class Job:
    """What one process is to do.

    Attributes:
        peer: One of `PEERS`.
        steps: Optimizer steps; 0 for one pass over the rows.
        warmup: First steps that are not timed.
        batch: Rows of an optimizer step.
        micro: Rows of a forward pass, where the peer takes a number of rows.
        width: Longest row, what the tutorial pads to and what TRL packs to.
        out: File that the outcome goes to.
    """

    peer: str
    folder: str
    steps: int
    warmup: int
    batch: int
    micro: int
    width: int
    dtype: str
    seed: int
    out: str


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
        processor: Processor seconds of this process over the timed steps.
        others: How many cores other programs kept busy meanwhile.
        rss: The most that the process had resident, from its start to its end, in bytes.
        cuda: The most that its tensors took on the accelerator, in bytes; 0 without one.
        versions: Version of each package that it may have used.
    """

    steps: tuple[Step, ...]
    warmup: int
    processor: float
    others: float
    rss: int
    cuda: int
    versions: dict[str, str]

    @property
    def timed(self) -> tuple[Step, ...]:
        """The steps after the warm-up."""
        return self.steps[self.warmup :]

    @property
    def tokens(self) -> int:
        """Real tokens of the timed steps."""
        return sum(step.tokens for step in self.timed)

    @property
    def seconds(self) -> float:
        """Seconds that the timed steps took."""
        return self.steps[-1].ended - self.steps[self.warmup - 1].ended

    @property
    def rate(self) -> float:
        """Real tokens a second."""
        return self.tokens / self.seconds


@dataclass(slots=True)
class Clock:
    """Notes each step as it ends."""

    warmup: int
    start: float = field(default_factory=time.perf_counter)
    steps: list[Step] = field(default_factory=list)
    since: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def tick(self, tokens: int, slots: int, loss: float) -> None:
        """Note a step that has ended just now."""
        self.steps.append(Step(time.perf_counter() - self.start, tokens, slots, loss))
        if len(self.steps) == self.warmup:
            self.since = time.perf_counter(), time.process_time(), busy()

    def outcome(self, peak_cuda: int) -> Outcome:
        """What the steps have taken, asked for right after the last one."""
        wall, processor, all_busy = self.since
        own = time.process_time() - processor
        others = max(0.0, (busy() - all_busy - own) / (time.perf_counter() - wall))
        return Outcome(tuple(self.steps), self.warmup, own, others, peak_rss(), peak_cuda, _versions())


class EnoughError(Exception):
    """As many steps as wanted have been taken."""


def main() -> None:
    """Do the job that is given as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("job")
    job = Job(**json.loads(parser.parse_args().job))
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads())
    clock = Clock(job.warmup)
    PEERS[job.peer](job, clock)
    outcome = clock.outcome(torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)
    Path(job.out).write_text(json.dumps(dataclasses.asdict(outcome)), encoding="utf-8")


def read_outcome(path: Path) -> Outcome:
    """Read back what `main` has written."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    return Outcome(**fields | {"steps": tuple(Step(**step) for step in fields["steps"])})


def ours(job: Job, clock: Clock) -> None:
    """Train with loragate's engine, each step timed by its reports; a held-out row's loss is in the time."""
    from loragate.engines.training import train
    from loragate.work import TrainAdapter

    folder, place, examples = Path(job.folder), Path(job.out).with_suffix(""), read(Path(job.folder) / TRAIN)
    batches = our_batches(job)
    paths = (folder / TRAIN, folder / HELDOUT, place / "adapter", place / "scratch")

    def report(progress: "Progress") -> None:
        if progress.unit != "steps":
            return
        clock.tick(sum(len(examples[i].ids) for i in batches[progress.done - 1]), 0, progress.numbers["loss"])
        if progress.done == len(batches):
            raise EnoughError

    with suppress(EnoughError):
        train(TrainAdapter(read_base(folder), our_settings(job), *map(str, paths)), report)


def our_settings(job: Job) -> "Train":
    """The settings of a run file that say what all peers do."""
    from loragate.config import Train

    passes = math.ceil(job.steps / math.ceil(len(read(Path(job.folder) / TRAIN)) / job.batch)) or 1
    given: dict[str, Any] = {"schedule": "constant", "warmup_share": 0.0, "checkpoint_steps": NEVER, "dtype": job.dtype}
    given |= {"r": RANK, "alpha": ALPHA, "dropout": 0.0, "target_modules": TARGETS, "learning_rate": LEARNING_RATE}
    return Train(**given, epochs=passes, batch_size=job.batch, seed=job.seed)


def our_batches(job: Job) -> list[list[int]]:
    """The rows of each of our steps."""
    from loragate.engines.training import plan

    batches = list(plan(read(Path(job.folder) / TRAIN), our_settings(job)))
    return batches[: job.steps] if job.steps else batches


def tutorial(job: Job, clock: Clock) -> None:
    """Train as the tutorials do: transformers' Trainer, every row padded to the full width.

    Repaired where they would not run or not learn the same: the labels are those of all peers.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, default_data_collator, set_seed

    set_seed(job.seed)
    base = read_base(Path(job.folder))
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=getattr(torch, job.dtype))
    adapted: Any = get_peft_model(model, LoraConfig(**adapter()))
    adapted.print_trainable_parameters()
    rows = [padded_row(row, base.end_id, job.width) for row in labelled(job)]
    settings = TrainingArguments(**arguments(job, job.micro, job.batch // job.micro))
    trainer: Any = Trainer(adapted, settings, train_dataset=rows, data_collator=default_data_collator)
    run(trainer, clock)


def padded_row(row: Row, pad: int, width: int) -> Row:
    """Pad a row to the width; what is padded is not attended to and not supervised."""
    more = width - len(row["input_ids"])
    mask = [1] * len(row["input_ids"]) + [0] * more
    return {
        "input_ids": row["input_ids"] + [pad] * more,
        "attention_mask": mask,
        "labels": row["labels"] + [IGNORED] * more,
    }


def trl_plain(job: Job, clock: Clock) -> None:
    """TRL's trainer: rows in random order, each forward pass padded to its longest row."""
    trl(job, clock, labelled(job), (job.micro, job.batch // job.micro))


def trl_grouped(job: Job, clock: Clock) -> None:
    """TRL's trainer, rows of like length together."""
    trl(job, clock, labelled(job), (job.micro, job.batch // job.micro), train_sampling_strategy="group_by_length")


def trl_packed(job: Job, clock: Clock) -> None:
    """TRL's trainer, rows in packs, as many packs a step as hold about the rows of the others' steps."""
    trl(job, clock, labelled(job), (1, packs(job)), packing=True)


def trl_fa2_liger(job: Job, clock: Clock) -> None:
    """The same with FlashAttention 2 and Liger's kernels, all packs of a step at once."""
    more = {"packing": True, "use_liger_kernel": True}
    trl(job, clock, labelled(job), (packs(job), 1), attention="flash_attention_2", **more)


def trl_equal(job: Job, clock: Clock) -> None:
    """TRL's trainer on our rows in our order, a step's rows at once."""
    rows = labelled(job)
    ordered = [rows[i] for batch in our_batches(job) for i in batch]
    trl(job, clock, ordered, (job.batch, 1), train_sampling_strategy="sequential")


def packs(job: Job) -> int:
    """How many packs hold about as many tokens as a step of the others."""
    rows = read(Path(job.folder) / TRAIN)
    return max(1, round(job.batch * sum(len(row.ids) for row in rows) / len(rows) / job.width))


def trl(
    job: Job, clock: Clock, rows: list[Row], sizes: tuple[int, int], attention: str = "sdpa", **more: object
) -> None:
    """Train with TRL's SFTTrainer: rows (or packs) a forward pass, forward passes a step, and its own settings."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer

    library: Any = import_module("trl")  # it is not in loragate's environment, and has no types
    base = read_base(Path(job.folder))
    loaded = {"model_init_kwargs": {"dtype": job.dtype, "attn_implementation": attention}}
    settings = library.SFTConfig(**arguments(job, *sizes), max_length=job.width, **loaded, **more)
    trainer = library.SFTTrainer(
        base.path,
        settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(base.path),
        peft_config=LoraConfig(**adapter()),
    )
    run(trainer, clock)


def labelled(job: Job) -> list[Row]:
    """The training rows as ids and labels."""
    return [
        {
            "input_ids": list(row.ids),
            "labels": [token if taught else IGNORED for token, taught in zip(row.ids, row.mask, strict=True)],
        }
        for row in read(Path(job.folder) / TRAIN)
    ]


def adapter() -> dict[str, Any]:
    """Settings of the adapter for peft."""
    return {"task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0, "target_modules": [*TARGETS]}


def arguments(job: Job, micro: int, passes: int) -> dict[str, Any]:
    """Settings of transformers' Trainer that say what all peers do."""
    import torch

    quiet = {"logging_strategy": "no", "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    course = {"learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant", "max_grad_norm": 1.0, "seed": job.seed}
    length = {"max_steps": job.steps} if job.steps else {"num_train_epochs": 1}
    size = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": passes}
    machine = {
        "bf16": job.dtype == "bfloat16",
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,
    }
    return {"output_dir": str(Path(job.out).with_suffix("")), **quiet, **course, **length, **size, **machine}


def run(trainer: Any, clock: Clock) -> None:
    """Run a transformers Trainer and note its steps from outside: every forward pass counted, every step timed."""
    from transformers import TrainerCallback

    counts: list[tuple[int, int, Any]] = []
    step = trainer.training_step

    def training_step(model: Any, inputs: Any, *others: Any) -> Any:
        slots, mask = inputs["input_ids"].numel(), inputs.get("attention_mask")
        loss = step(model, inputs, *others)
        counts.append((slots if mask is None else int(mask.sum()), slots, loss))
        return loss

    class AtStepEnd(TrainerCallback):
        """Notes each optimizer step."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            loss = sum(float(loss) for _, _, loss in counts)  # waits for the accelerator
            clock.tick(sum(tokens for tokens, _, _ in counts), sum(slots for _, slots, _ in counts), loss)
            counts.clear()

    trainer.training_step = training_step
    trainer.add_callback(AtStepEnd())
    trainer.train()


def _versions() -> dict[str, str]:
    """Versions of the packages that are there."""
    found = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


PEERS: dict[str, Callable[[Job, Clock], None]] = {
    "tutorial": tutorial,
    "trl-plain": trl_plain,
    "trl-grouped": trl_grouped,
    "trl-packed": trl_packed,
    "trl-fa2-liger": trl_fa2_liger,
    "trl-equal": trl_equal,
    "ours": ours,
}


if __name__ == "__main__":
    main()
