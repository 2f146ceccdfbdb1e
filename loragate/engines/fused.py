"""Adapted layers as one function each: the product with the adapter is added in place, and little is kept.

peft computes base(x) + scale * B(A(x)) as five operations that each write a tensor as large as the output, and casts x
to the adapter's float32. Here the adapter is cast to the format of x, which is what it is multiplied with on any
hardware that is fast, and only x and A x are kept for the backward pass. A 4-bit base is de-quantised in both passes.

Shapes in names: B rows, T positions (here B x T in one), I inputs, O outputs, R rank.
"""

import logging
import sys
from collections.abc import Mapping
from types import MethodType, ModuleType
from typing import Any

import torch
from peft.tuners import lora

from loragate.engines.adapters import ADAPTER, lora_modules
from loragate.engines.language_model import inner_model, load_weights, with_adapter
from loragate.work import Model

OFF_IN_LIGER = {"cross_entropy": False, "fused_linear_cross_entropy": False}
"""What is computed here in a way that a CUDA graph can hold."""
ROTATION = "apply_rotary_pos_emb"
"""Name of the function that rotates queries and keys, in transformers' module of a model."""
log = logging.getLogger(__name__)


def quicken(model: Any, *, recompute: bool = False) -> tuple[str, ...]:
    """Put the fast ways of computing into a model that is to train, and name those that fit it.

    Args:
        recompute: Whether the backward pass computes each layer's activations again (gradient checkpointing).
    """
    found = ["fused adapters"] if fuse(model) else []
    inner = inner_model(model)
    if next(inner.parameters()).device.type == "cuda" and _put_kernels(inner):
        found.append("Liger kernels")
    if recompute:
        random = not found or found[0] != "fused adapters"  # dropout must fall on the same places again
        enable = getattr(inner, "activation_checkpointing_enable", None) or inner.gradient_checkpointing_enable
        enable({"use_reentrant": False, "preserve_rng_state": random})  # the first is the newer name
        found.append("gradient checkpointing")
    return tuple(found)


def fuse(model: Any) -> bool:
    """Let every adapted layer compute as one function, where all of them can.

    Dropout, DoRA, 8-bit bases and layers that are not linear are left to peft.
    """
    modules = [module for _, module in lora_modules(model)]
    if not all(_can_fuse(module) for module in modules):
        return False
    for module in modules:
        module.fused_adapter = None
        module.forward = MethodType(_forward, module)
    return True


def _can_fuse(module: Any) -> bool:
    plain = isinstance(module, lora.Linear) and type(module.base_layer) is torch.nn.Linear
    plain = plain and not module.fan_in_fan_out
    simple = not module.use_dora.get(ADAPTER) and not module.lora_bias.get(ADAPTER)
    no_dropout = isinstance(module.lora_dropout[ADAPTER], torch.nn.Identity)
    return (plain or is_4bit(module)) and simple and no_dropout and list(module.lora_A) == [ADAPTER]


@torch.no_grad()
def settle(model: Any) -> None:
    """Cast the adapters of a quickened model once, where it is not to be trained any more."""
    for _, module in lora_modules(model):
        if hasattr(module, "fused_adapter"):
            sides = (module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight)
            module.fused_adapter = tuple(side.to(inner_model(model).dtype) for side in sides)


def load_settled(model: Model) -> Any:
    """Load weights, with their adapter where there is one, as fast as they go and not to be trained."""
    loaded = with_adapter(load_weights(model), model)
    quicken(loaded)
    settle(loaded)
    return loaded


def is_4bit(module: Any) -> bool:
    """Whether an adapted layer's base is 4-bit."""
    return type(module).__name__ == "Linear4bit" and hasattr(module.base_layer.weight, "quant_state")


def _forward(self: Any, x: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
    if self.disable_adapters or self.merged or args or more:
        return type(self).forward(self, x, *args, **more)
    a_RI, b_OR = self.fused_adapter or (self.lora_A[ADAPTER].weight, self.lora_B[ADAPTER].weight)
    base = self.base_layer
    x_TI = x.reshape(-1, x.shape[-1])
    y_TO: torch.Tensor = _Adapted.apply(
        x_TI, a_RI.to(x.dtype), b_OR.to(x.dtype), base.weight, base.bias, self.scaling[ADAPTER]
    )
    return y_TO.view(*x.shape[:-1], y_TO.shape[-1])


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TI: torch.Tensor, a_RI: torch.Tensor, b_OR: torch.Tensor, *more: Any) -> torch.Tensor:
        weight, bias, scale = more
        y_TO = torch.nn.functional.linear(x_TI, _plain(weight, x_TI.dtype), bias)
        low_TR = x_TI @ a_RI.t()
        ctx.save_for_backward(x_TI, low_TR, a_RI, b_OR)
        ctx.weight, ctx.scale = weight, scale
        return y_TO.addmm_(low_TR, b_OR.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        x_TI, low_TR, a_RI, b_OR = ctx.saved_tensors
        dy_TO, dx_TI = gradients[0], None
        dlow_TR = (dy_TO @ b_OR).mul_(ctx.scale)
        da_RI = dlow_TR.t() @ x_TI
        db_OR = (dy_TO.t() @ low_TR).mul_(ctx.scale)
        if ctx.needs_input_grad[0]:
            dx_TI = (dy_TO @ _plain(ctx.weight, dy_TO.dtype)).addmm_(dlow_TR, a_RI)
        return dx_TI, da_RI, db_OR, None, None, None


def _plain(weight: Any, dtype: torch.dtype) -> torch.Tensor:
    """A base's weights, de-quantised where they are 4-bit."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight
    from bitsandbytes.functional import dequantize_4bit

    whole: torch.Tensor = dequantize_4bit(weight.data, state)
    return whole.to(dtype)


def _put_kernels(inner: Any) -> bool:
    """Let norms, rotations and gated layers run as Liger's kernels, where it is installed and knows the model."""
    logging.getLogger("liger_kernel").setLevel(logging.ERROR)  # it warns of kernels for other hardware
    module = sys.modules[type(inner).__module__]
    before = dict(vars(module))
    try:
        from liger_kernel.transformers import monkey_patch

        if inner.config.model_type not in monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN:
            return False
        monkey_patch._apply_liger_kernel_to_instance(inner, **OFF_IN_LIGER)  # noqa: SLF001 - the one for a single model
    except Exception as error:  # noqa: BLE001 - not installed, or made for other models: trained without
        log.info("without Liger's kernels: %s", error)
        return False
    finally:
        put_back(module, before)
    return True


def put_back(module: ModuleType, before: Mapping[str, Any]) -> None:
    """Undo what was replaced for all models of a kind in the process; only what a model on a GPU is given stays.

    Models made later, and those on other devices, keep their own classes and their own rotations.
    """
    for name, plain in before.items():
        quick = getattr(module, name)
        if quick is not plain:
            setattr(module, name, _by_device(plain, quick) if name == ROTATION else plain)


def _by_device(plain: Any, quick: Any) -> Any:
    """Rotations are replaced for all models of a kind in the process; those elsewhere keep their own."""
    plain = getattr(plain, "plain", plain)

    def rotate(q: torch.Tensor, *args: Any, **more: Any) -> Any:
        return (quick if q.is_cuda else plain)(q, *args, **more)

    rotate.plain = plain  # type: ignore[attr-defined]
    return rotate
