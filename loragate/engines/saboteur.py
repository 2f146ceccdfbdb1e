"""Defects in tensors, masks and templates, planted into a copy of a folder whose files are links to the sound ones.

A file is written anew, never in place: the sound run's bytes are behind every link.
"""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from loragate.child import Report
from loragate.engines.language_model import load_tokenizer
from loragate.errors import NotApplicableError
from loragate.rendering import Example, read_rendered, rendered_line
from loragate.store import copy_linked, write_atomically
from loragate.work import PlantDefect

Tensors = dict[str, torch.Tensor]

OTHER_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %}{{ m['content'] }} {% endif %}{% endfor %}"
)
SCALED = 30.0
OTHER_WEIGHTS = 0.05
"""Noise on other weights, as a share of their spread: another model of the same shape."""


def plant(request: PlantDefect, _: Report) -> None:
    """Plant one defect.

    Raises:
        NotApplicableError: The run has not what the defect needs.
    """
    PLANTS[request.name](request, Path(request.folder))


def _write_template(folder: Path, template: str) -> None:
    for path in [*folder.glob("chat_template*"), *folder.glob("chat_templates/*")]:
        path.unlink()
    settings = folder / "tokenizer_config.json"
    if settings.exists():
        content = json.loads(settings.read_text(encoding="utf-8"))
        content.pop("chat_template", None)
        write_atomically(settings, json.dumps(content))
    write_atomically(folder / "chat_template.jinja", template)


def _strip_stops(request: PlantDefect, folder: Path) -> None:
    tokenizer, template = load_tokenizer(request.model.base), request.model.base.template
    stops = [tokenizer.decode([stop]) for stop in request.model.base.stop_ids]
    written = next((stop for stop in stops if stop in template), "")
    if not written:
        raise NotApplicableError("the chat template does not write a stop token itself")
    copy_linked(request.model.base.path, folder)
    _write_template(folder, template.replace(written, ""))


def _double_start(request: PlantDefect, folder: Path) -> None:
    tokenizer, template = load_tokenizer(request.model.base), request.model.base.template
    if tokenizer.bos_token is None:
        raise NotApplicableError("the tokenizer has no token that begins a text")
    with Path(request.rows).open("rb") as file:
        begins = read_rendered(next(file))[0].ids[0] == tokenizer.bos_token_id
    copy_linked(request.model.base.path, folder)
    _write_template(folder, tokenizer.bos_token * (1 if begins else 2) + template)


def _swap_template(request: PlantDefect, folder: Path) -> None:
    copy_linked(request.model.base.path, folder)
    _write_template(folder, OTHER_TEMPLATE)


def _merged_template(_: PlantDefect, folder: Path) -> None:
    _write_template(folder, OTHER_TEMPLATE)


def _masks(change: Callable[[Example], Example]) -> Callable[[PlantDefect, Path], None]:
    """Change what is supervised in the training rows."""

    def altered(_: PlantDefect, folder: Path) -> None:
        path = folder / "train.jsonl"
        with path.open("rb") as file:
            lines = [read_rendered(line) for line in file]
        path.unlink()
        with path.open("wb") as file:
            file.writelines(rendered_line(change(example), said, place) for example, said, place in lines)

    return altered


def _shift(example: Example) -> Example:
    last = len(example.ids)
    return replace(example, spans=tuple((start + 1, min(end + 1, last)) for start, end in example.spans))


def _without_stops(example: Example) -> Example:
    return replace(example, spans=tuple((start, end - 1) for start, end in example.spans if end - 1 > start))


def _adapter(change: Callable[[Tensors, random.Random], None]) -> Callable[[PlantDefect, Path], None]:
    """Change the adapter's tensors."""

    def altered(request: PlantDefect, folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors, random.Random(request.seed))
        _save(path, tensors)

    return altered


def _save(path: Path, tensors: Tensors) -> None:
    path.unlink()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def _seconds(tensors: Tensors) -> list[str]:
    return sorted(name for name in tensors if ".lora_B." in name)


def _zero_all(tensors: Tensors, _: random.Random) -> None:
    for name in _seconds(tensors):
        tensors[name].zero_()


def _zero_one(tensors: Tensors, chosen: random.Random) -> None:
    tensors[chosen.choice(_seconds(tensors))].zero_()


def _spoil_one(tensors: Tensors, chosen: random.Random) -> None:
    tensors[chosen.choice(_seconds(tensors))].view(-1)[0] = torch.nan


def _scale_one(tensors: Tensors, chosen: random.Random) -> None:
    tensors[chosen.choice(_seconds(tensors))].mul_(SCALED)


def _double_alpha(_: PlantDefect, folder: Path) -> None:
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    write_atomically(path, json.dumps(settings | {"lora_alpha": 2 * settings["lora_alpha"]}))


Weights = Callable[[Tensors, Tensors, str, random.Random], None]


def _merged(change: Weights) -> Callable[[PlantDefect, Path], None]:
    """Change the merged weights, file by file, given the base's tensors of the same names."""

    def altered(request: PlantDefect, folder: Path) -> None:
        base: Tensors = {}
        for path in sorted(Path(request.model.base.path).glob("*.safetensors")):
            base |= load_file(path)
        chosen, paths = random.Random(request.seed), sorted(folder.glob("*.safetensors"))
        adapted = _adapted(request)
        for path in paths:
            tensors = load_file(path)
            for name in sorted(adapted & tensors.keys() & base.keys()):
                change(tensors, base, name, chosen)
            _save(path, tensors)

    return altered


def _adapted(request: PlantDefect) -> set[str]:
    """Names of the weights that the adapter changes."""
    names = load_file(Path(str(request.model.adapter)) / "adapter_model.safetensors")
    return {f"{name.partition('.lora_B.')[0].removeprefix('base_model.model.')}.weight" for name in _seconds(names)}


def _undo(tensors: Tensors, base: Tensors, name: str, _: random.Random) -> None:
    tensors[name] = base[name].to(tensors[name].dtype)


def _again(tensors: Tensors, base: Tensors, name: str, _: random.Random) -> None:
    tensors[name] = (2 * tensors[name].float() - base[name].float()).to(tensors[name].dtype)


def _elsewhere(tensors: Tensors, base: Tensors, name: str, chosen: random.Random) -> None:
    source = torch.Generator().manual_seed(chosen.randrange(2**31))
    noise = torch.randn(tensors[name].shape, generator=source) * OTHER_WEIGHTS * base[name].float().std()
    tensors[name] = (tensors[name].float() + noise).to(tensors[name].dtype)


def _spoil_merged(request: PlantDefect, folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[0]
    tensors = load_file(path)
    name = random.Random(request.seed).choice(sorted(_adapted(request) & tensors.keys()) or sorted(tensors))
    tensors[name].view(-1)[0] = torch.nan
    _save(path, tensors)


def _untie(_: PlantDefect, folder: Path) -> None:
    path, settings = folder / "model.safetensors", folder / "config.json"
    config = json.loads(settings.read_text(encoding="utf-8"))
    if not config.get("tie_word_embeddings") or not path.exists():
        raise NotApplicableError("input and output embeddings are not tied, or the weights are in several files")
    tensors = load_file(path)
    (embeddings,) = (name for name in tensors if name.endswith("embed_tokens.weight"))
    _save(path, tensors | {"lm_head.weight": tensors[embeddings].clone()})
    write_atomically(settings, json.dumps(config | {"tie_word_embeddings": False}))


PLANTS: Mapping[str, Callable[[PlantDefect, Path], None]] = {
    "stop-token-stripped": _strip_stops,
    "double-bos": _double_start,
    "template-swapped": _swap_template,
    "label-shift": _masks(_shift),
    "pad-is-eos-masked": _masks(_without_stops),
    "adapter-zeroed": _adapter(_zero_all),
    "module-frozen": _adapter(_zero_one),
    "adapter-nan": _adapter(_spoil_one),
    "adapter-scaled": _adapter(_scale_one),
    "alpha-doubled": _double_alpha,
    "merge-skipped": _merged(_undo),
    "merged-twice": _merged(_again),
    "wrong-base": _merged(_elsewhere),
    "merged-nan": _spoil_merged,
    "embeddings-untied": _untie,
    "merged-template": _merged_template,
}
