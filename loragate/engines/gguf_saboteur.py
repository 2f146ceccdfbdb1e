"""Defects in a GGUF file, planted into a copy of its own bytes."""

import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from loragate.child import Report
from loragate.engines.llama import QUANTIZATIONS, quantise
from loragate.errors import NotApplicableError
from loragate.work import PlantDefect

SAME_LENGTH = 5
"""Tokens of this many bytes change places: what they are made of stays, only their numbers move."""
WORDS = (("assistant", "responder"), ("user", "guru"), ("system", "cystem"))
"""Words of a chat template and others of the same length."""
SCALED = 8
KEPT = 0.7
"""Share of a truncated file that is left."""
BLOCKS = {
    gguf.GGMLQuantizationType.Q8_0: (34, slice(0, 2)),
    gguf.GGMLQuantizationType.Q4_K: (144, slice(0, 4)),
    gguf.GGMLQuantizationType.Q6_K: (210, slice(208, 210)),
}
"""Bytes of a block of a quantised tensor, and where in it the 16-bit scales of the block stand."""


def plant(request: PlantDefect, _: Report) -> None:
    """Plant one defect into a file.

    Raises:
        NotApplicableError: The file has not what the defect needs.
    """
    path = _chosen(Path(request.folder), request.file)
    _own(path)
    PLANTS[request.name](path, random.Random(request.seed))


def _chosen(folder: Path, quantization: str) -> Path:
    """The file of a quantisation, or the one that is judged first: f16 where there is one."""
    paths = [path for path in folder.glob("*.gguf") if path.stem.endswith(quantization)]
    return min(paths, key=lambda path: (not path.stem.endswith("f16"), path.name))


def _own(path: Path) -> None:
    """Give a linked file bytes of its own."""
    copy = path.with_suffix(".own")
    shutil.copyfile(path, copy)
    copy.replace(path)


def _field(path: Path, key: str) -> tuple[Any, Any]:
    reader = gguf.GGUFReader(path, "r+")
    field = reader.fields.get(key)
    if field is None:
        raise NotApplicableError(f"the file has no {key}")
    return reader, field


def _other_tokens(path: Path, _: random.Random) -> None:
    reader, field = _field(path, "tokenizer.ggml.tokens")
    parts = [field.parts[at] for at in field.data if len(field.parts[at]) == SAME_LENGTH]
    texts = [bytes(part) for part in parts]
    for part, text in zip(parts, [*texts[1:], *texts[:1]], strict=True):
        part[:] = np.frombuffer(text, dtype=part.dtype)
    reader.data.flush()


def _other_template(path: Path, _: random.Random) -> None:
    reader, field = _field(path, "tokenizer.chat_template")
    part = field.parts[field.data[0]]
    text = bytes(part)
    word = next(((old, new) for old, new in WORDS if old.encode() in text), None)
    if word is None:
        raise NotApplicableError("the chat template names no role")
    part[:] = np.frombuffer(text.replace(word[0].encode(), word[1].encode()), dtype=part.dtype)
    reader.data.flush()


def _flip_start(path: Path, _: random.Random) -> None:
    reader, field = _field(path, "tokenizer.ggml.add_bos_token")
    part = field.parts[field.data[0]]
    part[0] = not part[0]
    reader.data.flush()


def _truncate(path: Path, _: random.Random) -> None:
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * KEPT))


def _requantise(path: Path, _: random.Random) -> None:
    made = path.with_suffix(".other")
    quantise(path, made, QUANTIZATIONS["q8_0" if "q4_k" in path.stem else "q4_k_m"], again=True)
    made.replace(path)


def _scale_tensor(path: Path, chosen: random.Random) -> None:
    reader = gguf.GGUFReader(path, "r+")
    named = [tensor for tensor in reader.tensors if tensor.name.endswith(("attn_v.weight", "ffn_down.weight"))]
    scalable = [tensor for tensor in named if _scales(tensor) is not None]
    if not scalable:
        raise NotApplicableError("no matrix of the file is in a number format that can be scaled here")
    numbers = _scales(chosen.choice(scalable))
    numbers[...] = numbers * SCALED
    reader.data.flush()


def _scales(tensor: Any) -> Any:
    """The 16- or 32-bit numbers that all of a tensor is a multiple of; None for other formats."""
    if tensor.data.dtype in (np.float16, np.float32):
        return tensor.data
    if tensor.tensor_type not in BLOCKS:
        return None
    size, where = BLOCKS[tensor.tensor_type]
    return tensor.data.reshape(-1, size)[:, where].view(np.float16)


PLANTS: Mapping[str, Callable[[Path, random.Random], None]] = {
    "other-tokenizer": _other_tokens,
    "wrong-template": _other_template,
    "add-bos-flipped": _flip_start,
    "truncated": _truncate,
    "other-quantisation": _requantise,
    "tensor-scaled": _scale_tensor,
}
