"""Counting what a training will take: on the meta device, where tensors have sizes and no contents.

The adapter is put on an empty model of the base's shape, so the count of its parameters is exact. What stands beside it
in memory is estimated for the kind of device that training would run on, whatever this one is.
"""

import importlib.util
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from pyarrow import compute, parquet
from transformers import AutoModelForCausalLM

from loragate.child import Progress, Report
from loragate.config import Train
from loragate.engines.activations import kept, way_of
from loragate.engines.adapters import ADAPTER, lora_modules, put_adapter
from loragate.engines.heads import LOGITS
from loragate.engines.language_model import choose_dtype, device, inner_model, quantization_of
from loragate.engines.packing import can_pack, most_of_a_pass
from loragate.plan import DeviceFacts, Memory, ModelFacts, RowFacts
from loragate.work import Base, Counted, Model, PlanTraining

RUNTIME = 1_000_000_000
"""Memory beside the tensors: the libraries and what the C library keeps of freed memory (own measurement, 0.9 to 1.5 GB
with a model of 135M); on a GPU the driver's context (0.55), workspaces and what graphs leave unused."""
TRAINABLE_BYTES = 16
"""A trainable parameter in float32: itself, its gradient and the two moments of AdamW. Fused adapters have a copy
beside it in the format that training is in."""
UNEVEN = 1.5
"""The largest step has about 1 + UNEVEN / rows a step times the mean's tokens, as rows are dealt to packed steps (own
measurement: 1.45 for 4 rows, 1.16 for 8, 1.09 for 16, 1.02 for 64)."""
WIDE = 4
"""Tensors as wide as the widest of a layer that its backward pass makes: of a gated layer the gradients of gate, of
what is gated and of their product, and the product again (own measurement on an H100: without it the estimate was 0.77
to 1.01 of what was taken)."""
CAREFUL = 0.85
"""Share of the room that a larger forward pass may fill: of what was taken, as little as this share was estimated."""
LOGIT_BYTES = 12
"""A logit on a CPU, in float32: itself, its probability and its gradient. On a GPU there is the logit alone, in the
format that training is in; its gradient takes its place."""


def describe_device(_: None, __: Report) -> DeviceFacts:
    """Name what a training would run on, and its memory."""
    fast = str(choose_dtype("auto")).removeprefix("torch.")
    if device().type == "cuda":
        found = torch.cuda.get_device_properties(0)
        return DeviceFacts(found.name, found.total_memory, fast)
    return DeviceFacts(f"CPU, {os.cpu_count()} cores", _main_memory(), fast)


def _main_memory() -> int:
    """Memory that this process may take: the machine's, or less where its control group says so."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = Path("/sys/fs/cgroup") / name
        if path.exists() and (limit := path.read_text(encoding="ascii").strip()).isdigit():
            return min(machine, int(limit))
    return machine


def count(request: PlanTraining, report: Report) -> Counted:
    """Count rows, tokens, parameters and bytes.

    Raises:
        ConfigError: A target module is not in the model, or a pattern fits none that is adapted.
    """
    rows = _count_rows(Path(request.rows), request.max_tokens)
    report(Progress(1, 2, "plan"))
    model = count_model(request.base, request.settings, rows, device().type, request.room)
    report(Progress(2, 2, "plan"))
    return Counted(rows, model)


def _count_rows(folder: Path, max_tokens: int) -> RowFacts:
    """Count an epoch's rows by the facts about them; those that could not be rendered have no tokens."""
    facts = parquet.read_table(folder / "facts.parquet", columns=["side", "copies", "tokens", "supervised"])
    train = facts.filter(compute.and_(compute.equal(facts["side"], "train"), compute.greater(facts["tokens"], 0)))
    copies = train["copies"]
    return RowFacts(
        rows=_sum(copies),
        tokens=_sum(compute.multiply(copies, train["tokens"])),
        supervised=_sum(compute.multiply(copies, train["supervised"])),
        longest=compute.max(train["tokens"]).as_py() or 0,
        max_tokens=max_tokens,
    )


def _sum(values: Any) -> int:
    return int(compute.sum(values).as_py() or 0)


def count_model(base: Base, settings: Train, rows: RowFacts, kind: str, room: float) -> ModelFacts:
    """Count parameters, and bytes on a kind of device, `cpu` or `cuda`, that has room for so many.

    Raises:
        ConfigError: A target module is not in the model, or a pattern fits none that is adapted.
    """
    dtype = choose_dtype(settings.dtype)
    model = _empty_model(base, settings, dtype)
    modules = [(name, module) for name, module in lora_modules(model) if module.r[ADAPTER]]
    ranks = {name: module.r[ADAPTER] for name, module in modules}
    rank = max(ranks.values())
    sides = [min(m.in_features, m.out_features) for name, m in modules if ranks[name] == rank]
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    most_tokens, memory = _planned(model, settings, rows, kind, room)
    return ModelFacts(
        parameters=base.parameters,
        trainable=trainable,
        modules=len(modules),
        kinds=tuple(sorted({name.rpartition(".")[2] for name, _ in modules})),
        rank=rank,
        narrowest=min(sides),
        positions=int(getattr(inner_model(model).config, "max_position_embeddings", 0) or 0),
        dtype=str(dtype).removeprefix("torch."),
        compute_dtype=_compute_dtype(base, settings, dtype),
        memory=memory,
        forward_tokens=most_tokens,
    )


def _empty_model(base: Base, settings: Train, dtype: torch.dtype) -> Any:
    """The adapted base without contents, in training mode."""
    config = transformers.AutoConfig.from_pretrained(base.path, trust_remote_code=base.trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=base.trust_remote_code, attn_implementation="sdpa"
        )
        return put_adapter(model, settings).train()


def _compute_dtype(base: Base, settings: Train, dtype: torch.dtype) -> str:
    if settings.method != "qlora" or settings.quantization == "int8":
        return ""
    found = quantization_of(Model(base, quantization=settings.quantization), dtype).bnb_4bit_compute_dtype
    return str(found).removeprefix("torch.")


def _planned(model: Any, settings: Train, rows: RowFacts, kind: str, room: float) -> tuple[int, Memory]:
    """Choose the most tokens of a forward pass, where the run file does not, and estimate the memory of the largest."""
    packed = can_pack(model, rows.longest)
    mean = rows.tokens / max(1, rows.rows) * (1 + UNEVEN / settings.batch_size)
    row = min(rows.longest, mean) if packed else rows.longest
    step = int(max(rows.longest, settings.batch_size * row))
    at = _memory(model, settings, rows, kind)
    most = most_of_a_pass(settings.most_tokens, rows.longest, kind, packed=packed)
    if kind == "cuda" and settings.forward_tokens is None:
        parts = 1
        while (part := math.ceil(step / parts)) > most and not at(part).fits(room, CAREFUL):
            parts += 1
        most = max(most, part)
    return most, at(min(most, step))


def _memory(model: Any, settings: Train, rows: RowFacts, kind: str) -> Callable[[int], Memory]:
    """The memory that training takes with so many tokens in a forward pass; the model is of no use afterwards."""
    inner = inner_model(model)
    size, trainable = inner.dtype.itemsize, sum(p.numel() for p in model.parameters() if p.requires_grad)
    widest = max(max(layer.in_features, layer.out_features) for layer in _linear_layers(inner))
    weights = _weight_bytes(model, settings)
    way = way_of(settings, kind, inner.dtype, liger=importlib.util.find_spec("liger_kernel") is not None)
    copied = size if way.adapters and inner.dtype != torch.float32 else 0
    growth = kept(model, way)

    def at(tokens: int) -> Memory:
        activations = growth.at(tokens) if growth else None
        return Memory(
            weights=weights,
            adapter=trainable * (TRAINABLE_BYTES + copied),
            activations=activations.whole if activations else None,
            logits=_logit_bytes(inner, tokens * rows.supervised / rows.tokens if rows.tokens else 0.0, kind),
            runtime=RUNTIME,
            checkpointed=activations.checkpointed if activations else None,
            backward=WIDE * tokens * widest * size,
        )

    return at


def _linear_layers(inner: Any) -> list[torch.nn.Linear]:
    """All of a model's but its output head."""
    head = inner.get_output_embeddings()
    return [module for module in inner.modules() if isinstance(module, torch.nn.Linear) and module is not head]


def _logit_bytes(inner: Any, supervised: float, kind: str) -> int:
    """Bytes of the logits held at once, and of the supervised positions' hidden states and their gradient."""
    embeddings, size = inner.get_input_embeddings(), inner.dtype.itemsize
    logits = min(supervised * embeddings.num_embeddings, LOGITS[kind]) * (size if kind == "cuda" else LOGIT_BYTES)
    return int(logits + supervised * embeddings.embedding_dim * size * 2)


def _weight_bytes(model: Any, settings: Train) -> int:
    """Bytes of the base's weights, each stored once, and of the largest matrix de-quantised."""
    inner = inner_model(model)
    linear = {id(layer.weight) for layer in _linear_layers(inner)}
    frozen = [p for p in inner.parameters() if not p.requires_grad]
    if settings.method == "lora":
        return sum(p.numel() * p.element_size() for p in frozen)
    quantised = [p for p in frozen if id(p) in linear]
    whole = sum(p.numel() * p.element_size() for p in frozen if id(p) not in linear)
    largest = max((p.numel() * p.element_size() for p in quantised), default=0)
    return whole + largest + int(sum(p.numel() for p in quantised) * bytes_a_weight(settings))


def bytes_a_weight(settings: Train) -> float:
    """Bytes of a quantised weight with its share of the scales.

    4-bit: half a byte, and a scale for each 64 weights: in float32, or (double) in a byte with a float32 for each 256
    of them (Dettmers et al. 2023, arXiv 2305.14314, section 3). 8-bit: a byte; its scale a row is next to nothing.
    """
    if settings.quantization == "int8":
        return 1.0
    return 0.5 + (1 + 4 / 256 if settings.double_quantization else 4) / 64
