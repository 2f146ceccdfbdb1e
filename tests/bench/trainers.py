"""One trainer on the prepared rows, step by step: `train.py` runs this as a process of its own for every peer.

Every peer has the same rows and supervised tokens, adapter (r 16, alpha 32, no dropout, the same layers), AdamW at a
constant 2e-4, clipping at 1, rows a step, seed and number format, and no gradient checkpointing. A step's loss is the
mean over its supervised tokens. What is timed begins when the warm-up steps have ended (clock.py).
"""

import argparse
import importlib
import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clock import Clock, write_outcome
from docstrings import HELDOUT, TRAIN, read, read_base

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loragate.child import Progress
    from loragate.config import Train
    from loragate.rendering import Example

Row = dict[str, list[int]]
LEARNING_RATE, RANK, ALPHA = 2e-4, 16, 32
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
TARGETS = {"attention": ATTENTION, "all": (*ATTENTION, "gate_proj", "up_proj", "down_proj")}
QLORA, EAGER = "qlora", "ours-eager"
IGNORED, NEVER, AHEAD = -100, 1_000_000, 2


@dataclass(frozen=True, slots=True)
class Job:
    """What one process is to do.

    Attributes:
        peer: One of `PEERS`.
        steps: Optimizer steps, with those of the warm-up and those that are profiled; 0 for one pass over the rows.
        warmup: First steps that are not timed.
        profiled: Last steps, which are not timed either but watched by the profiler.
        batch: Rows of an optimizer step.
        micro: Rows of a forward pass, where the peer takes a number of rows.
        width: Longest row, what the tutorial pads to and what TRL and Unsloth pack to.
        forward: Most tokens of a forward pass of ours; 0 for its default.
        method: lora, or qlora: on a base in 4 bits (nf4, scales quantised too).
        targets: One of `TARGETS`.
        out: File that the outcome goes to.
    """

    peer: str
    folder: str
    steps: int
    warmup: int
    profiled: int
    batch: int
    micro: int
    width: int
    forward: int
    dtype: str
    method: str
    targets: str
    seed: int
    out: str


class EnoughError(Exception):
    """As many steps as wanted have been taken."""


def main() -> None:
    """Do the job that is given as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("job")
    job = Job(**json.loads(parser.parse_args().job))
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads())
    if job.peer in ("ours", EAGER):
        importlib.import_module("loragate.engines.language_model")  # sets up the allocator before its first use
    clock = Clock(job.warmup, job.steps, job.profiled)
    PEERS[job.peer](job, clock)
    write_outcome(clock.outcome(), Path(job.out))


def ours(job: Job, clock: Clock) -> None:
    """Train with loragate's engine, each step timed by its reports; ours-eager: without captured graphs.

    A held-out row's loss after each pass is in the time, and loading the model is in the memory.
    """
    from loragate.engines.training import train
    from loragate.work import TrainAdapter

    folder, place, examples = Path(job.folder), Path(job.out).with_suffix(""), read(Path(job.folder) / TRAIN)
    batches = our_batches(job)
    rows, made = (str(folder / TRAIN), str(folder / HELDOUT)), (str(place / "adapter"), str(place / "scratch"))

    def report(progress: "Progress") -> None:
        if progress.unit != "steps":
            return
        clock.tick(sum(len(examples[i].ids) for i in batches[progress.done - 1]), 0, [progress.numbers["loss"]])
        if progress.done == len(batches):
            raise EnoughError

    clock.started()
    with suppress(EnoughError):
        train(TrainAdapter(read_base(folder), planned_settings(job, examples), *rows, *made), report)


def planned_settings(job: Job, examples: "Sequence[Example]") -> "Train":
    """Our settings with the forward pass that the memory plan chooses for these rows, where none is asked for."""
    from loragate.engines.language_model import device
    from loragate.engines.planning import count_model, describe_device
    from loragate.plan import RowFacts

    tokens, taught = (sum(sizes) for sizes in zip(*((len(e.ids), len(e.predicted)) for e in examples), strict=True))
    facts = RowFacts(len(examples), tokens, taught, max(len(e.ids) for e in examples), job.width)
    room, settings = describe_device(None, lambda _: None).memory, our_settings(job)
    found = count_model(read_base(Path(job.folder)), settings, facts, device().type, room)
    return settings.model_copy(update={"forward_tokens": found.forward_tokens})


def our_settings(job: Job) -> "Train":
    """The settings of a run file that say what all peers do; steps enough that some are under way after the last."""
    from loragate.config import Train

    an_epoch = math.ceil(len(read(Path(job.folder) / TRAIN)) / job.batch)
    passes = math.ceil((job.steps and job.steps + AHEAD) / an_epoch) or 1
    given: dict[str, Any] = {"schedule": "constant", "warmup_share": 0.0, "checkpoint_steps": NEVER, "dtype": job.dtype}
    given |= {"r": RANK, "alpha": ALPHA, "dropout": 0.0, "learning_rate": LEARNING_RATE, "method": job.method}
    given |= {"target_modules": TARGETS[job.targets], "cuda_graph": job.peer != EAGER}
    given |= {"forward_tokens": job.forward} if job.forward else {}
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
    more = {"quantization_config": quantised(job), "device_map": {"": 0}} if job.method == QLORA else {}
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=getattr(torch, job.dtype), **more)
    adapted: Any = get_peft_model(model, LoraConfig(**adapter(job)))
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
        peft_config=LoraConfig(**adapter(job)),
        quantization_config=quantised(job) if job.method == QLORA else None,
    )
    run(trainer, clock)


def unsloth(job: Job, clock: Clock) -> None:
    """Unsloth: its own model and kernels around TRL's trainer, rows in packs, all packs of a step at once."""
    os.environ |= {"UNSLOTH_COMPILE_LOCATION": str(Path(job.out).with_suffix("")), "UNSLOTH_DISABLE_STATISTICS": "1"}
    library: Any = import_module("unsloth")  # first of all, as it asks for: it changes the others as they are loaded
    import torch
    from datasets import Dataset

    kernels: Any = import_module("unsloth.models._utils")
    if not kernels.HAS_FLASH_ATTENTION:
        raise SystemExit("Unsloth has found no flash-attn: without it, it is several times slower and no fair peer")
    trainers: Any = import_module("trl")
    fast, base = library.FastLanguageModel, read_base(Path(job.folder))
    loading = {"max_seq_length": job.width, "dtype": getattr(torch, job.dtype), "load_in_4bit": job.method == QLORA}
    loading |= {"use_gradient_checkpointing": False}
    model, tokenizer = fast.from_pretrained(base.path, **loading)
    sizes = {name: value for name, value in adapter(job).items() if name != "task_type"}
    quick = {"bias": "none", "use_gradient_checkpointing": False, "random_state": job.seed}
    packing = {"max_length": job.width, "packing": True, "completion_only_loss": True}
    trainer = trainers.SFTTrainer(
        model=fast.get_peft_model(model, **sizes, **quick),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([masked_row(row) for row in labelled(job)]),
        args=trainers.SFTConfig(**arguments(job, packs(job), 1), **packing),
    )
    packs_rows = getattr(trainer.data_collator, "_unsloth_packing_wrapped", False)
    if not (packs_rows and type(trainer).__name__.startswith("Unsloth")):
        raise SystemExit("Unsloth does not train with its own trainer, or not on packs without padding: no fair peer")
    run(trainer, clock)


def masked_row(row: Row) -> Row:
    """A row with its supervised tokens as Unsloth takes them: given labels, it would pad packs and mix their rows."""
    return {"input_ids": row["input_ids"], "completion_mask": [int(label != IGNORED) for label in row["labels"]]}


def labelled(job: Job) -> list[Row]:
    """The training rows as ids and labels."""
    return [
        {
            "input_ids": list(row.ids),
            "labels": [token if taught else IGNORED for token, taught in zip(row.ids, row.mask, strict=True)],
        }
        for row in read(Path(job.folder) / TRAIN)
    ]


def adapter(job: Job) -> dict[str, Any]:
    """Settings of the adapter for peft."""
    sizes = {"r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0}
    return {"task_type": "CAUSAL_LM", **sizes, "target_modules": [*TARGETS[job.targets]]}


def quantised(job: Job) -> Any:
    """How bitsandbytes holds the base for qlora."""
    import torch
    from transformers import BitsAndBytesConfig

    how = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    config: Any = BitsAndBytesConfig  # it has no types
    return config(load_in_4bit=True, bnb_4bit_compute_dtype=getattr(torch, job.dtype), **how)


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
            tokens, slots = sum(tokens for tokens, _, _ in counts), sum(slots for _, slots, _ in counts)
            clock.tick(tokens, slots, [loss for _, _, loss in counts])
            counts.clear()

    trainer.training_step = training_step
    trainer.add_callback(AtStepEnd())
    clock.started()
    trainer.train()


PEERS: dict[str, Callable[[Job, Clock], None]] = {
    "tutorial": tutorial,
    "trl-plain": trl_plain,
    "trl-grouped": trl_grouped,
    "trl-packed": trl_packed,
    "trl-fa2-liger": trl_fa2_liger,
    "trl-equal": trl_equal,
    "unsloth": unsloth,
    EAGER: ours,
    "ours": ours,
}


if __name__ == "__main__":
    main()
