"""What the backward pass needs of a forward pass, read off the tensors that are saved, on the meta device.

A model on the meta device runs its own code on tensors that have sizes and no contents, so what it saves is counted and
not guessed. Where training computes in other ways than the model's own code (fused adapters, kernels), stand-ins take
their place that save what those save; each stand-in is one function below. The count at two lengths is a straight line
between and beyond them: attention keeps no T x T matrix in any kernel that is used.

With gradient checkpointing there remain each layer's input and, while a layer is computed again, all that it saves.

Shapes in names: B rows, T positions, H query heads, G key heads, D width of a head; I inputs, R rank of an adapter.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from transformers import AttentionInterface

from loragate.config import Train
from loragate.engines.adapters import ADAPTER, lora_modules
from loragate.engines.attention import HALF, repeated
from loragate.engines.language_model import inner_model

LENGTHS = (128, 256)
"""Lengths in tokens at which saved tensors are counted."""
COUNTED = "loragate_counted"
GATED = ("gate_proj", "up_proj", "down_proj", "act_fn")
"""What a gated layer (SwiGLU) consists of: down(act(gate(x)) * up(x))."""
OUTSIDE = -1
"""In place of a layer's number: embeddings, rotations, the last norm."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a training computes, as far as it decides what is kept.

    Attributes:
        adapters: Adapted layers are one function each: they keep x in its own format, once, and A x.
        grouped: Attention takes keys and values as they are; else they are repeated for every query head, and kept so.
        kernels: A norm keeps its input and a float32 a row; a gated layer keeps its gate and what is gated.
    """

    adapters: bool
    grouped: bool
    kernels: bool


def way_of(settings: Train, kind: str, dtype: torch.dtype, *, liger: bool) -> Way:
    """How a training would compute on a kind of device: `cpu` or `cuda`.

    Args:
        liger: Whether the package of kernels for norms and gated layers is there.
    """
    plain = not settings.dropout and not settings.dora
    whole = settings.method == "lora" or settings.quantization != "int8"
    half = kind == "cuda" and dtype in HALF
    return Way(adapters=plain and whole, grouped=half, kernels=kind == "cuda" and liger)


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes that the backward pass needs of one forward pass, at some length.

    Attributes:
        whole: Of all layers at once.
        checkpointed: With gradient checkpointing; None where the model's layers are not found.
    """

    whole: int
    checkpointed: int | None


@dataclass(frozen=True, slots=True)
class Growth:
    """What is kept at both of `LENGTHS`, and along the line through them at any other."""

    short: Kept
    long: Kept

    def at(self, tokens: int) -> Kept:
        """What a forward pass over so many tokens keeps."""
        whole = _along(self.short.whole, self.long.whole, tokens)
        if self.short.checkpointed is None or self.long.checkpointed is None:
            return Kept(whole, None)
        return Kept(whole, _along(self.short.checkpointed, self.long.checkpointed, tokens))


def kept(model: Any, way: Way) -> Growth | None:
    """Count what a forward pass keeps; None where it cannot be counted without contents.

    The model is on the meta device and is of no other use afterwards.
    """
    inner = inner_model(model)
    _stand_in(model, way)
    try:
        inner.set_attn_implementation(COUNTED)
        return Growth(*(_kept_at(inner, length) for length in LENGTHS))
    except (RuntimeError, NotImplementedError, ValueError):  # what depends on contents, as the choice of an expert does
        return None


def _along(short: int, long: int, tokens: int) -> int:
    slope = (long - short) / (LENGTHS[1] - LENGTHS[0])
    return int(short + slope * (tokens - LENGTHS[0]))


@dataclass(slots=True)
class _Ledger:
    """Storages that are kept, by address.

    Attributes:
        never: Those of the weights, which are there anyway.
        saved: Those that each layer saves.
        given: Those that each layer is given.
        layer: The layer that is computing.
    """

    never: set[int]
    saved: dict[int, dict[int, torch.UntypedStorage]] = field(default_factory=dict)
    given: dict[int, torch.UntypedStorage] = field(default_factory=dict)
    layer: int = OUTSIDE

    def save(self, tensor: torch.Tensor) -> torch.Tensor:
        self._note(tensor, self.saved.setdefault(self.layer, {}))
        return tensor

    def enter(self, number: int) -> Callable[..., None]:
        def hook(_: Any, args: Any, more: Any) -> None:
            for tensor in _tensors((args, more)):
                self._note(tensor, self.given)
            self.layer = number

        return hook

    def leave(self, *_: Any) -> None:
        self.layer = OUTSIDE

    def _note(self, tensor: torch.Tensor, into: dict[int, torch.UntypedStorage]) -> None:
        storage = tensor.untyped_storage()
        address = storage._cdata  # noqa: SLF001 - a storage has no public name
        if address not in self.never:
            into[address] = storage

    @property
    def whole(self) -> int:
        merged = {address: storage for saved in self.saved.values() for address, storage in saved.items()}
        return _bytes(merged.values())

    @property
    def checkpointed(self) -> int:
        stays = self.given | self.saved.get(OUTSIDE, {})
        own = (
            _bytes(storage for address, storage in saved.items() if address not in stays)
            for number, saved in self.saved.items()
            if number != OUTSIDE
        )
        return _bytes(stays.values()) + max(own, default=0)


def _bytes(storages: Iterable[torch.UntypedStorage]) -> int:
    return sum(storage.nbytes() for storage in storages)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _kept_at(inner: Any, length: int) -> Kept:
    ledger = _Ledger({p.untyped_storage()._cdata for p in inner.parameters()})  # noqa: SLF001
    layers = _layers(inner)
    hooks = [
        hook
        for number, layer in enumerate(layers)
        for hook in (
            layer.register_forward_pre_hook(ledger.enter(number), with_kwargs=True),
            layer.register_forward_hook(ledger.leave),
        )
    ]
    ids_BT = torch.zeros(1, length, dtype=torch.long, device="meta")
    try:
        with torch.autograd.graph.saved_tensors_hooks(ledger.save, lambda tensor: tensor):
            inner.base_model(input_ids=ids_BT, position_ids=ids_BT, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return Kept(ledger.whole, ledger.checkpointed if layers else None)


def _layers(inner: Any) -> list[Any]:
    """The layers that are computed again one by one, in their order; none where they are not found."""
    number = getattr(inner.config.get_text_config(), "num_hidden_layers", 0)
    lists = (module for module in inner.modules() if isinstance(module, torch.nn.ModuleList))
    return next((list(found) for found in lists if len(found) == number), [])


def _stand_in(model: Any, way: Way) -> None:
    """Put the stand-ins into a model."""
    AttentionInterface.register(COUNTED, _grouped if way.grouped else _repeated)
    if way.adapters:
        for _, module in lora_modules(model):
            module.forward = MethodType(_adapted, module)
    if way.kernels:
        for module in inner_model(model).modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = MethodType(_normed, module)
            elif all(hasattr(module, name) for name in GATED):
                module.forward = MethodType(_gated, module)


class _Saves(torch.autograd.Function):
    """An operation that computes nothing and keeps some tensors: (kept, what is returned, inputs)."""

    @staticmethod
    def forward(ctx: Any, kept: tuple[torch.Tensor, ...], out: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*kept)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> None:
        raise NotImplementedError


def _adapted(self: Any, x_BTI: torch.Tensor) -> torch.Tensor:
    """What a fused adapter keeps: its input and A x, in the input's format."""
    low_BTR = x_BTI.new_empty(*x_BTI.shape[:-1], self.r[ADAPTER])
    out = x_BTI.new_empty(*x_BTI.shape[:-1], self.out_features)
    return _Saves.apply((x_BTI, low_BTR), out, x_BTI, self.lora_A[ADAPTER].weight)


def _normed(self: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG001 - stands for a method
    """What a norm's kernel keeps: its input, and one float32 a row."""
    return _Saves.apply((x, x.new_empty(x.shape[:-1], dtype=torch.float32)), torch.empty_like(x), x)


def _gated(self: Any, x: torch.Tensor) -> torch.Tensor:
    """What a gated layer's kernel keeps: the gate before its activation, and what is gated."""
    gate, up = self.gate_proj(x), self.up_proj(x)
    out: torch.Tensor = self.down_proj(_Saves.apply((gate, up), torch.empty_like(gate), gate, up))
    return out


def _grouped(
    _: Any, q_BHTD: torch.Tensor, k_BGTD: torch.Tensor, v_BGTD: torch.Tensor, *__: Any, **___: Any
) -> tuple[torch.Tensor, None]:
    """What fused attention keeps: queries, keys, values, its output and one float32 a head and position."""
    out_BTHD = q_BHTD.new_empty(*q_BHTD.shape[:-1], v_BGTD.shape[-1]).transpose(1, 2).contiguous()
    norms_BHT = q_BHTD.new_empty(q_BHTD.shape[:-1], dtype=torch.float32)
    return _Saves.apply((q_BHTD, k_BGTD, v_BGTD, out_BTHD, norms_BHT), out_BTHD, q_BHTD, k_BGTD, v_BGTD), None


def _repeated(
    module: Any, q_BHTD: torch.Tensor, k_BGTD: torch.Tensor, v_BGTD: torch.Tensor, *_: Any, **__: Any
) -> tuple[torch.Tensor, None]:
    """The same with keys and values repeated for every query head."""
    return _grouped(module, q_BHTD, repeated(k_BGTD, q_BHTD), repeated(v_BGTD, q_BHTD))
