"""Models of a published shape with random weights: what a step costs does not depend on what the weights are.

Weights are bfloat16, normal with deviation 0.02 (norms one, biases zero), from one seed, in files of some 4 GB. They
are drawn on the accelerator where there is one, which is faster; the same kind of device draws the same weights.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

DEVIATION, SEED, FILE_BYTES, BYTES = 0.02, 0, 4_000_000_000, 2
INDEX, CONFIG, MARK = "model.safetensors.index.json", "config.json", "shape.txt"


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a Qwen2 model.

    Attributes:
        tied: Whether the output head is the embedding.
    """

    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    tied: bool

    @property
    def products(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of a layer's matrices."""
        keys = self.hidden // self.heads * self.key_heads
        attention = [(self.hidden, self.hidden), (keys, self.hidden), (keys, self.hidden), (self.hidden, self.hidden)]
        return [*attention, (self.inner, self.hidden), (self.inner, self.hidden), (self.hidden, self.inner)]


SHAPES = {
    "tiny": Shape(256, 512, 2, 4, 2, 49_152, tied=True),
    "qwen2.5-0.5b": Shape(896, 4864, 24, 14, 2, 151_936, tied=True),
    "qwen2.5-7b": Shape(3584, 18_944, 28, 28, 4, 152_064, tied=False),
}
"""The published sizes (config.json of Qwen2.5-0.5B and of Qwen2.5-7B), and one for trying things out."""


def save(name: str, folder: Path, tokenizer: Path) -> int:
    """Save a shape with random weights and a tokenizer, unless the folder has it; return how many parameters it has.

    The tokenizer may be any whose ids the vocabulary holds.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = configuration(SHAPES[name], AutoTokenizer.from_pretrained(tokenizer))
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    mark = folder / MARK
    if not (mark.exists() and mark.read_text(encoding="utf-8") == name):
        folder.mkdir(parents=True, exist_ok=True)
        for path in tokenizer.iterdir():
            shutil.copy(path, folder)
        _save_weights(dict(model.named_parameters()), folder)
        config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        mark.write_text(name, encoding="utf-8")
    return sum(p.numel() for p in model.parameters())


def configuration(shape: Shape, tokenizer: Any) -> Any:
    """The shape as transformers' configuration."""
    from transformers import Qwen2Config

    return Qwen2Config(
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=32_768,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        use_sliding_window=False,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="bfloat16",
        architectures=["Qwen2ForCausalLM"],
    )


def _save_weights(parameters: "dict[str, torch.Tensor]", folder: Path) -> None:
    """Draw and save the weights, one file after the other, and say which is where."""
    import torch
    from safetensors.torch import save_file

    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    random = torch.Generator(where).manual_seed(SEED)
    places: dict[str, str] = {}
    for number, names in enumerate(_files(parameters), start=1):
        file = f"model-{number:05d}.safetensors"
        tensors = {name: _drawn(name, parameters[name].shape, random).cpu() for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    size = BYTES * sum(p.numel() for p in parameters.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


def _files(parameters: "dict[str, torch.Tensor]") -> Iterator[list[str]]:
    """Cut the names into files."""
    names: list[str] = []
    size = 0
    for name, parameter in parameters.items():
        if names and size + BYTES * parameter.numel() > FILE_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += BYTES * parameter.numel()
    yield names


def _drawn(name: str, size: "torch.Size", random: "torch.Generator") -> "torch.Tensor":
    import torch

    if name.endswith("norm.weight"):
        return torch.ones(size, dtype=torch.bfloat16)
    if name.endswith("bias"):
        return torch.zeros(size, dtype=torch.bfloat16)
    weights = torch.empty(size, dtype=torch.bfloat16, device=random.device)
    return weights.normal_(0.0, DEVIATION, generator=random)
