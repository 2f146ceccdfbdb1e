"""Merging without loading: the base's tensors are read, changed and written one at a time, file by file.

    merged = W + s B A       s = alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732)
    merged = m (W + s B A) / |W + s B A|, row by row, for DoRA (arXiv 2402.09353)

W is what training saw: the base's weight in the number format of training, for QLoRA quantised and de-quantised
again. The sum is computed in float32 and rounded once. Promises: memory holds a few of the largest tensors and never
the model; the files, their names and their tensors are the base's; every matrix of the adapter is merged or nothing
is; what is not a finite number refuses. Where tensors of the base are not the model's, one to one, or the adapter is
not made of plain products, the plan names that as its obstacle, and the whole model has to be loaded.

Shapes in names: O outputs, I inputs, R rank.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt, Params4bit
from peft.utils.other import get_pattern_key
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AutoHfQuantizer

from loragate.child import Progress, Report
from loragate.engines.language_model import choose_dtype, device, quantization_of
from loragate.engines.weight_files import (
    CODES,
    Planned,
    Stored,
    WeightFile,
    as_bytes,
    planned,
    stored_tensors,
    tensors_in,
    write_index,
)
from loragate.errors import StepError
from loragate.work import Model

BLOCK_NUMBERS = 1 << 22
"""Numbers of a matrix that are merged at a time; 16 MB in float32."""
PREFIX = "base_model.model."
WHOLE = "whole weights"
"""What an adapter has for a module that it replaces."""
PARTS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "lora_magnitude_vector.weight")
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Initialisations of peft that leave the base as it is; the others change it when the adapter is loaded."""
PECULIAR = (
    *("lora_bias", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config"),
    *("fan_in_fan_out", "layer_replication", "target_parameters", "trainable_token_indices", "modules_to_save"),
    *("monteclora_config", "velora_config", "megatron_config"),
)
"""Settings of peft under which merging is more, or something else, than adding a product."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What an adapter does to one matrix: its parts in the adapter's file, and the scale of their product."""

    a_RI: Stored
    b_OR: Stored
    magnitude_O: Stored | None
    scale: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is decided before a byte is written.

    Attributes:
        base: Folder of the base.
        stored: The base's tensors.
        written: The same tensors as they are going to be written.
        deltas: What is added to which tensor.
        quantised: Parameters without data that say how a tensor is quantised.
        dtype: Number format of the merged model.
        obstacle: Why the merge cannot be streamed; empty where it can.
    """

    base: Path
    stored: Mapping[str, Stored]
    written: Mapping[str, Planned]
    deltas: Mapping[str, Delta]
    quantised: Mapping[str, Any]
    dtype: torch.dtype
    obstacle: str


def plan_merge(model: Model) -> Plan:
    """Find for every matrix of the adapter the tensor that it changes.

    Raises:
        StepError: The adapter has a matrix for a module that the model does not have or that no merge can change alone,
            or its shapes are not those of its settings or of the base.
    """
    assert model.adapter is not None
    adapter, base = Path(model.adapter), Path(model.base.path)
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    parts = _parts(tensors_in(adapter / "adapter_model.safetensors"))
    skeleton = _skeleton(model)
    _check_modules(parts, skeleton)
    layers = {f"{name}.weight": layer for name, layer in skeleton.named_modules() if is_quantised(layer)}
    stored = stored_tensors(base)
    shapes = {name: tuple(weight.shape) for name, weight in skeleton.named_parameters(remove_duplicate=False)}
    changed = {name: shapes.get(name, ()) for name in sorted({*layers, *(f"{name}.weight" for name in parts)})}
    obstacle = _peculiarity(settings, parts) or _mismatch(skeleton, layers, changed, stored)
    deltas = {} if obstacle else {f"{name}.weight": _delta(name, parts[name], settings) for name in parts}
    for name, delta in deltas.items():
        _check_shapes(name, delta, stored[name].shape)
    dtype = choose_dtype(model.dtype)
    kept = tuple(skeleton._keep_in_fp32_modules_strict or ())  # noqa: SLF001 - the loader's own list has no public name
    written = {name: _as_written(name, tensor, dtype, kept) for name, tensor in stored.items()}
    quantised = {name: layer.weight for name, layer in layers.items()}
    return Plan(base, stored, written, deltas, quantised, dtype, obstacle)


def write_merged(plan: Plan, folder: Path, report: Report) -> None:
    """Write the merged weights into files of the same names as the base's.

    Raises:
        StepError: A merged tensor has a NaN or an infinity.
    """
    assert not plan.obstacle
    files: dict[str, dict[str, Planned]] = {}
    for name, tensor in plan.stored.items():
        files.setdefault(tensor.path.name, {})[name] = plan.written[name]
    for done, (name, tensors) in enumerate(sorted(files.items()), start=1):
        file = WeightFile(folder / name, tensors)
        file.write(piece for tensor in file.names for piece in _pieces(plan, tensor))
        report(Progress(done, len(files), "files"))
    write_index(plan.base, folder, sum(tensor.size for tensor in plan.written.values()))


def _pieces(plan: Plan, name: str) -> Iterator[bytes | memoryview]:
    """Yield the bytes of one merged tensor."""
    stored, written = plan.stored[name], plan.written[name]
    if name in plan.deltas or name in plan.quantised:
        yield as_bytes(_merged(plan, name).to(CODES[written.code]))
    elif stored.code == written.code:
        yield from stored.pieces()
    else:
        yield as_bytes(stored.read().to(CODES[written.code]))


def _merged(plan: Plan, name: str) -> torch.Tensor:
    """W + s B A, or W alone where only the base was quantised."""
    weight_OI = plan.stored[name].read().to(plan.dtype)
    if name in plan.quantised:
        weight_OI = dequantised(weight_OI, plan.quantised[name]).to(plan.dtype)
    if name in plan.deltas:
        _add(weight_OI, plan.deltas[name])
    if not bool(weight_OI.isfinite().all()):
        raise StepError(f"{name}: the merged tensor has a NaN or an infinity; the adapter or the base is broken")
    return weight_OI


def dequantised(weight_OI: torch.Tensor, layout: Any) -> torch.Tensor:
    """Quantise a weight as the loader does and take it back: what the quantised layer computes with."""
    parameter_OI: Any = Params4bit(
        weight_OI.to(device()),
        blocksize=layout.blocksize,
        compress_statistics=layout.compress_statistics,
        quant_type=layout.quant_type,
        quant_storage=layout.quant_storage,
    )
    packed = parameter_OI.to(device())  # where it is quantised
    restored_OI: torch.Tensor = dequantize_4bit(packed.data, packed.quant_state)
    return restored_OI.cpu()


def _add(weight_OI: torch.Tensor, delta: Delta) -> None:
    """Merge in place, some rows at a time: summed in float32, rounded once."""
    a_RI, b_OR = delta.a_RI.read().float(), delta.b_OR.read().float()
    magnitude_O = delta.magnitude_O.read().float().reshape(-1) if delta.magnitude_O else None
    step = max(1, BLOCK_NUMBERS // weight_OI.shape[1])
    for start in range(0, weight_OI.shape[0], step):
        rows = slice(start, start + step)
        sum_OI = (b_OR[rows] @ a_RI).mul_(delta.scale).add_(weight_OI[rows])
        if magnitude_O is not None:
            sum_OI *= (magnitude_O[rows] / torch.linalg.norm(sum_OI, dim=1))[:, None]
        weight_OI[rows] = sum_OI


def _parts(tensors: Mapping[str, Stored]) -> dict[str, dict[str, Stored]]:
    """The adapter's tensors by module, and by their names within it."""
    parts: dict[str, dict[str, Stored]] = {}
    for key, tensor in tensors.items():
        module, found, part = key.removeprefix(PREFIX).partition(".lora_")
        if found:
            parts.setdefault(module, {})[f"lora_{part}"] = tensor
        else:
            parts.setdefault(module.rpartition(".")[0], {})[WHOLE] = tensor
    if not parts:
        raise StepError("the adapter's file holds no tensor, so there is nothing to merge")
    return parts


def _skeleton(model: Model) -> Any:
    """The model as training loads it, without its weights."""
    dtype, trusted = choose_dtype(model.dtype), model.base.trust_remote_code
    config = AutoConfig.from_pretrained(model.base.path, trust_remote_code=trusted)
    with torch.device("meta"):
        skeleton: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trusted)
    if model.quantized:
        quantizer = AutoHfQuantizer.from_config(quantization_of(model, dtype), pre_quantized=False)
        quantizer.preprocess_model(model=skeleton, dtype=dtype, device_map={"": device()})
    return skeleton


def is_quantised(layer: Any) -> bool:
    """Whether a layer computes with a quantised weight."""
    return isinstance(layer, Linear4bit | Linear8bitLt)


def _check_modules(parts: Mapping[str, object], skeleton: Any) -> None:
    """Refuse an adapter for another model, or for a weight that two modules share."""
    known = {name for name, _ in skeleton.named_modules()}
    strange = sorted(name for name in parts if name not in known)
    if strange:
        raise StepError(
            f"{len(strange)} of {len(parts)} modules of the adapter fit no tensor of the base, the first is "
            f"{strange[0]}; the adapter was made for another model"
        )
    ties = getattr(skeleton, "all_tied_weights_keys", {})
    shared = sorted(name for name in parts if f"{name}.weight" in {*ties.keys(), *ties.values()})
    if shared:
        raise StepError(
            f"the adapter changes {shared[0]}, whose weight the model shares between input and output embeddings: "
            "merged, it would change both; leave it out of train.target_modules"
        )


def _peculiarity(settings: Mapping[str, Any], parts: Mapping[str, Mapping[str, Stored]]) -> str:
    """What the adapter has besides products of two matrices; empty where nothing."""
    peculiar = [name for name in PECULIAR if settings.get(name)]
    if settings.get("init_lora_weights", True) not in PLAIN_STARTS:
        peculiar.append("init_lora_weights")
    if peculiar:
        return f"the adapter's {peculiar[0]} is {settings[peculiar[0]]}"
    others = sorted({part for module in parts.values() for part in module} - set(PARTS))
    return f"the adapter holds more than products of matrices: {others[0]}" if others else ""


def _mismatch(
    skeleton: Any, layers: Mapping[str, Any], changed: Mapping[str, tuple[int, ...]], stored: Mapping[str, Stored]
) -> str:
    """How the base's files differ from the model's weights where they would be changed; empty where they do not."""
    if hasattr(skeleton.config, "quantization_config"):
        return "the base's files hold quantised weights"
    if any(isinstance(layer, Linear8bitLt) for layer in layers.values()):
        return "the base is quantised to 8 bits"
    if any(issubclass(layer.source_cls, Conv1D) for layer in layers.values()):
        return "the base's files hold its linear layers transposed"
    unlike = [name for name, shape in changed.items() if name not in stored or stored[name].shape != shape]
    return f"{unlike[0]} is no tensor of the base's files, or has another shape there" if unlike else ""


def _delta(module: str, parts: Mapping[str, Stored], settings: Mapping[str, Any]) -> Delta:
    """Pair a module's matrices and scale their product by the rank and alpha that peft gives it."""
    if not {"lora_A.weight", "lora_B.weight"} <= parts.keys():
        raise StepError(f"{module}: the adapter has only one of the two matrices whose product it adds")
    magnitude = parts.get("lora_magnitude_vector", parts.get("lora_magnitude_vector.weight"))
    if bool(settings.get("use_dora")) != (magnitude is not None):
        raise StepError(f"{module}: use_dora is {settings.get('use_dora')}, but the magnitudes say otherwise")
    rank = _setting("r", "rank_pattern", module, settings)
    alpha = _setting("lora_alpha", "alpha_pattern", module, settings)
    if parts["lora_A.weight"].shape[0] != rank:
        found = parts["lora_A.weight"].shape[0]
        raise StepError(f"{module}: the adapter's matrices are of rank {found}, its settings say {rank}")
    scale = alpha / math.sqrt(rank) if settings.get("use_rslora") else alpha / rank
    return Delta(parts["lora_A.weight"], parts["lora_B.weight"], magnitude, scale)


def _setting(name: str, pattern: str, module: str, settings: Mapping[str, Any]) -> int:
    """A setting of one module: what the first pattern that matches its name says, else what holds for all."""
    patterns: dict[str, int] = settings.get(pattern) or {}
    value: int = patterns.get(get_pattern_key(list(patterns), module), settings[name])
    return value


def _check_shapes(name: str, delta: Delta, shape: tuple[int, ...]) -> None:
    product = (delta.b_OR.shape[0], delta.a_RI.shape[-1])
    if product != shape or delta.b_OR.shape[1] != delta.a_RI.shape[0]:
        raise StepError(f"{name}: the adapter's product has the shape {product}, the base's tensor {shape}")


def _as_written(name: str, stored: Stored, dtype: torch.dtype, kept: tuple[str, ...]) -> Planned:
    """Numbers with a fraction get the merged model's format, or float32 where the loader insists on that."""
    if stored.code not in {"F64", "F32", "F16", "BF16"}:
        return planned(stored)
    return planned(stored, torch.float32 if any(part in name for part in kept) else dtype)
