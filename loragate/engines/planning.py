"""Counting what a training will take: on the meta device, where tensors have sizes and no contents.

The adapter is put on an empty model of the base's shape, so the count of its parameters is exact. What the backward
pass needs is read off the tensors that a forward pass saves, at two lengths, and is a straight line between and beyond
them: attention keeps no T x T matrix in any kernel that is used.

Shapes in names: B rows, H heads, T positions, D width of a head.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from pyarrow import compute, parquet
from transformers import AttentionInterface, AutoModelForCausalLM

from loragate.child import Progress, Report
from loragate.config import Train
from loragate.engines.adapters import lora_modules, put_adapter
from loragate.engines.language_model import choose_dtype, device, inner_model, quantization_of
from loragate.engines.packing import LOGITS, passes_for
from loragate.plan import DeviceFacts, Memory, ModelFacts, RowFacts
from loragate.rendering import Example
from loragate.work import Base, Counted, Model, PlanTraining

LENGTHS = (128, 256)
"""Lengths in tokens at which saved tensors are counted."""
RUNTIME = {"cpu": 1_000_000_000, "cuda": 600_000_000}
"""Memory beside the tensors: the libraries and what the C library keeps of freed memory (own measurement, 0.9 to 1.5 GB
with a model of 135M); on a GPU the driver's context."""
TRAINABLE_BYTES = 16
"""A trainable parameter in float32: itself, its gradient and the two moments of AdamW."""
LOGIT_BYTES = 12
"""A logit in float32, its probability and its gradient."""
COUNTED = "loragate_counted"


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
    model = _count_model(request.base, request.settings, rows)
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


def _count_model(base: Base, settings: Train, rows: RowFacts) -> ModelFacts:
    dtype = choose_dtype(settings.dtype)
    model = _empty_model(base, settings, dtype)
    modules = [(name, module) for name, module in lora_modules(model) if module.r["default"]]
    ranks = {name: module.r["default"] for name, module in modules}
    rank = max(ranks.values())
    sides = [min(m.in_features, m.out_features) for name, m in modules if ranks[name] == rank]
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
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
        memory=_memory(model, settings, rows, trainable),
    )


def _empty_model(base: Base, settings: Train, dtype: torch.dtype) -> Any:
    """The adapted base without contents, in training mode; its attention keeps what fused kernels keep."""
    config = transformers.AutoConfig.from_pretrained(base.path, trust_remote_code=base.trust_remote_code)
    AttentionInterface.register(COUNTED, _attention)
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


def _memory(model: Any, settings: Train, rows: RowFacts, trainable: int) -> Memory:
    longest = Example(tuple(range(rows.longest)), (), turns=0, stopped_turns=0, rendered_tokens=rows.longest)
    slots = passes_for(model, (longest,), settings.forward_tokens).most_tokens
    slots = min(slots, settings.batch_size * rows.longest)
    vocabulary = inner_model(model).get_input_embeddings().num_embeddings
    per_epoch = rows.supervised / rows.tokens if rows.tokens else 0
    return Memory(
        weights=_weight_bytes(model, settings),
        adapter=trainable * TRAINABLE_BYTES,
        activations=_saved_bytes(model, slots),
        logits=int(min(slots * per_epoch * vocabulary, LOGITS)) * LOGIT_BYTES,
        runtime=RUNTIME[device().type],
    )


def _weight_bytes(model: Any, settings: Train) -> int:
    """Bytes of the base's weights, each stored once, and of the largest matrix de-quantised."""
    inner = inner_model(model)
    linear: Mapping[int, torch.Tensor] = {
        id(module.weight): module.weight
        for module in inner.modules()
        if isinstance(module, torch.nn.Linear) and module is not inner.get_output_embeddings()
    }
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


def _saved_bytes(model: Any, tokens: int) -> int | None:
    """Bytes that the backward pass needs of one forward pass over so many tokens, None where they cannot be counted."""
    inner = inner_model(model)
    try:
        inner.set_attn_implementation(COUNTED)
        short, long = (_saved_at(inner, length) for length in LENGTHS)
    except (RuntimeError, NotImplementedError, ValueError):  # what depends on contents, as the choice of an expert does
        return None
    slope = (long - short) / (LENGTHS[1] - LENGTHS[0])
    return int(short + slope * (tokens - LENGTHS[0]))


def _saved_at(inner: Any, length: int) -> int:
    weights = {p.untyped_storage()._cdata for p in inner.parameters()}  # noqa: SLF001 - a storage has no public name
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:  # noqa: SLF001
            saved[storage._cdata] = storage  # noqa: SLF001
        return tensor

    ids_BT = torch.zeros(1, length, dtype=torch.long, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        inner.base_model(input_ids=ids_BT, position_ids=ids_BT, use_cache=False)
    return sum(storage.nbytes() for storage in saved.values())


class _Kept(torch.autograd.Function):
    """Attention that computes nothing and keeps what a fused kernel keeps."""

    @staticmethod
    def forward(ctx: Any, q_BHTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor) -> torch.Tensor:
        out_BTHD = q_BHTD.new_empty(*q_BHTD.shape[:-1], v_BHTD.shape[-1]).transpose(1, 2).contiguous()
        ctx.save_for_backward(q_BHTD, k_BHTD, v_BHTD, out_BTHD, q_BHTD.new_empty(q_BHTD.shape[:-1]).float())
        return out_BTHD

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> None:
        raise NotImplementedError


def _attention(
    _: Any, q_BHTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, *__: Any, **___: Any
) -> tuple[torch.Tensor, None]:
    groups = q_BHTD.shape[1] // k_BHTD.shape[1]
    repeated = (one.repeat_interleave(groups, dim=1) if groups > 1 else one for one in (k_BHTD, v_BHTD))
    return _Kept.apply(q_BHTD, *repeated), None
