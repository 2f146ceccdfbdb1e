"""Docstring pairs rendered for the base model: what training and scoring are measured on.

`train.py` and `score.py` run this as a process of its own:

    .venv/bin/python tests/bench/docstrings.py FOLDER --train 200 --heldout 1

The pairs and their order are the demo's. FOLDER then holds the rendered rows, the base model (de-quantised from its
GGUF file, or where a model folder lies), and what the machine can do.
"""

import argparse
import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setting import child, model_file, progress

if TYPE_CHECKING:
    from loragate.rendering import Example
    from loragate.work import Base

TRAIN, HELDOUT, GROUND = "train.jsonl", "heldout.jsonl", "ground.json"


@dataclass(frozen=True, slots=True)
class Ground:
    """What all peers of one run stand on.

    Attributes:
        base: Fields of loragate's description of the base model.
        rows, tokens, supervised: How many the training side has; supervised are those that are predicted.
        dtype: Number format asked for, `auto` resolved.
        device: Name of the accelerator, `cpu` without.
    """

    base: dict[str, Any]
    rows: int
    tokens: int
    supervised: int
    dtype: str
    device: str

    @property
    def accelerated(self) -> bool:
        """Whether there is an accelerator."""
        return self.device != "cpu"


def main() -> None:
    """Fetch the base, write and render the pairs, look at the machine."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, required=True)
    parser.add_argument("--heldout", type=int, required=True)
    parser.add_argument("--max-tokens", type=int, required=True)
    parser.add_argument("--model", default=str(model_file()))
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    written = write_pairs(options.folder, {TRAIN: options.train, HELDOUT: options.heldout})
    from loragate.child import ignore
    from loragate.engines.language_model import fetch
    from loragate.work import FetchBase

    base = fetch(FetchBase(options.model, True, None, False, str(options.folder / "base")), ignore)
    render(base, options.folder, written, options.max_tokens)
    ground = look(base, read(options.folder / TRAIN), options.dtype)
    (options.folder / GROUND).write_text(json.dumps(dataclasses.asdict(ground)), encoding="utf-8")


def write_pairs(folder: Path, counts: Mapping[str, int]) -> dict[str, Path]:
    """Write so many pairs for each file of rendered rows, as far as there are any, before heavy libraries are loaded.

    Those replace functions of the standard library, docstrings and all.
    """
    from deployments.demo_data import docstring_pairs, write

    pairs = sorted(set(docstring_pairs()))
    random.Random(0).shuffle(pairs)
    written: dict[str, Path] = {}
    done = 0
    for name, count in counts.items():
        path = folder / f"pairs-{name}"
        write(path, pairs[done : done + count])
        done += count
        written |= {name: path} if count else {}
    return written


def render(base: "Base", folder: Path, written: Mapping[str, Path], max_tokens: int) -> None:
    """Render the pairs as the road does."""
    from loragate.child import ignore
    from loragate.engines.examples import prepare
    from loragate.files import DataFile
    from loragate.row_work import PrepareRows

    sides: dict[str, Any] = {TRAIN: "train", HELDOUT: "heldout"}
    files = tuple(DataFile(str(path), name, sides[name]) for name, path in written.items())
    settings: dict[str, Any] = {"heldout_share": 0.0, "language": "", "passage_words": 13, "workers": 1}
    prepare(PrepareRows(base, files, max_tokens=max_tokens, folder=str(folder), **settings), ignore)


def look(base: "Base", examples: "Sequence[Example]", dtype: str) -> Ground:
    """Say what there is to work on and to work with."""
    import torch

    from loragate.engines.language_model import choose_dtype

    return Ground(
        base=dataclasses.asdict(base),
        rows=len(examples),
        tokens=sum(len(example.ids) for example in examples),
        supervised=sum(len(example.predicted) for example in examples),
        dtype=str(choose_dtype(dtype)).removeprefix("torch."),
        device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    )


def read(path: Path) -> "list[Example]":
    """Read rendered rows."""
    from loragate.engines.language_model import read_examples

    return read_examples(str(path))


def read_base(folder: Path) -> "Base":
    """Read the description of the base model back."""
    from loragate.work import Base

    fields = read_ground(folder).base
    return Base(**fields | {"stop_ids": tuple(fields["stop_ids"])})


def read_ground(folder: Path) -> Ground:
    """Read what `main` has written last."""
    return Ground(**json.loads((folder / GROUND).read_text(encoding="utf-8")))


def prepared(folder: Path, env: Mapping[str, str], **options: object) -> Ground:
    """Do all of this in a child process; return what there is to stand on."""
    progress("preparing the base model and the rows")
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    child([__file__, str(folder), *words], env, folder / "docstrings.log")
    return read_ground(folder)


if __name__ == "__main__":
    main()
