"""Weights on disk, tensor by tensor: where each lies in the safetensors files of a model folder, and writing new ones.

Nothing is mapped and nothing is kept, so memory holds the tensor at hand and no file. A written file has the bytes that
safetensors' own `save_file` writes of the same tensors.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
COPIED_BYTES = 1 << 24
"""How much of a tensor that stays as it is is copied at a time."""

CODES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Number formats by their names in the files; tensors of others can be copied but not read."""
NAMES = {dtype: name for name, dtype in CODES.items()}


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a file: its number format as the file names it, and its bytes from `start` up to `stop`."""

    path: Path
    code: str
    shape: tuple[int, ...]
    start: int
    stop: int

    def read(self) -> torch.Tensor:
        """The tensor, in memory of its own."""
        data = bytearray(self.stop - self.start)
        with self.path.open("rb") as file:
            file.seek(self.start)
            file.readinto(data)
        dtype = CODES[self.code]
        return (torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)).reshape(self.shape)

    def pieces(self) -> Iterator[bytes]:
        """Yield the tensor's bytes, a piece at a time."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            for at in range(self.start, self.stop, COPIED_BYTES):
                yield file.read(min(COPIED_BYTES, self.stop - at))


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Find every tensor of a model folder as its loader does: by the index, else in the one file; none without both."""
    index = folder / INDEX
    if index.exists():
        placed: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {name: tensors_in(folder / name) for name in sorted(set(placed.values()))}
        return {name: files[file][name] for name, file in placed.items()}
    return tensors_in(folder / SINGLE) if (folder / SINGLE).exists() else {}


def tensors_in(path: Path) -> dict[str, Stored]:
    """Find every tensor of one file by its header: a length of 8 bytes, then JSON, then the bytes it points into."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: Stored(path, entry["dtype"], tuple(entry["shape"]), *(8 + length + at for at in entry["data_offsets"]))
        for name, entry in header.items()
    }


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor to be written: its number format as files name it, its shape and its size in bytes."""

    code: str
    shape: tuple[int, ...]
    size: int

    @property
    def item_size(self) -> int:
        """Bytes of one number; 0 for a tensor without any."""
        return self.size // max(1, math.prod(self.shape))


def planned(stored: Stored, dtype: torch.dtype | None = None) -> Planned:
    """The tensor as it is stored, or in another number format."""
    if dtype is None:
        return Planned(stored.code, stored.shape, stored.stop - stored.start)
    return Planned(NAMES[dtype], stored.shape, math.prod(stored.shape) * dtype.itemsize)


class WeightFile:
    """A safetensors file that is written one tensor after another, in the order of `names`."""

    def __init__(self, path: Path, tensors: Mapping[str, Planned]) -> None:
        """Plan the file: tensors of large numbers first, for alignment, then by name, as safetensors has them."""
        self.names = sorted(tensors, key=lambda name: (-tensors[name].item_size, name))
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name in self.names:
            planned = tensors[name]
            header[name] = {
                "dtype": planned.code,
                "shape": planned.shape,
                "data_offsets": (at, at + planned.size),
            }
            at += planned.size
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self.path, self._head, self._size = path, len(text).to_bytes(8, "little") + text, at

    def write(self, pieces: Iterator[bytes | memoryview]) -> None:
        """Write the bytes of all tensors."""
        with self.path.open("wb") as file:
            file.write(self._head)
            for piece in pieces:
                file.write(piece)
            written = file.tell() - len(self._head)
        assert written == self._size, f"{self.path}: {written} bytes of tensors written, {self._size} planned"


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """A tensor's bytes, not copied."""
    flat = tensor.contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")


def write_index(base: Path, folder: Path, total_size: int) -> None:
    """Write the index of a folder whose tensors lie in files of the same names as the base's, if that has an index."""
    if (base / INDEX).exists():
        index = json.loads((base / INDEX).read_text(encoding="utf-8"))
        index["metadata"] = {**index.get("metadata", {}), "total_size": total_size}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
