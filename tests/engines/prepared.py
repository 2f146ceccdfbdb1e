"""What the engine tests stand on: rows rendered for a model, and adapters trained on them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyarrow import parquet

from checks import training as training_gate
from loragate.child import ignore
from loragate.config import Train
from loragate.engines import adapters, examples, language_model, training
from loragate.files import DataFile
from loragate.limits import TrainingLimits
from loragate.row_work import PrepareRows
from loragate.verdicts import Verdict
from loragate.work import Base, FetchBase, TrainAdapter, Trained

Raw = dict[str, Any]


def pairs(count: int, start: int = 0) -> list[Raw]:
    """Distinct question and answer pairs, by number; their lengths differ."""
    numbers = range(start, start + count)
    return [
        {"prompt": f"What is thing {n}{' of the many' * (n % 4)}?", "completion": f"It is thing {n}, and that is all."}
        for n in numbers
    ]


def write(path: Path, rows: Sequence[Raw]) -> Path:
    """Write rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[Raw]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def describe(folder: Path) -> Base:
    """Describe a model folder as the road does."""
    return language_model.fetch(FetchBase(str(folder), True, None, False, ""), ignore)


def asked(base: Base, folder: Path, *files: DataFile, **more: Any) -> PrepareRows:
    """Ask for rows to be prepared in a folder, in this process."""
    settings: dict[str, Any] = {"heldout_share": 0.0, "max_tokens": 96, "language": "", "passage_words": 13}
    return PrepareRows(base, files, folder=str(folder), **(settings | {"workers": 1} | more))


def render_files(base: Base, folder: Path, train: Path, heldout: Path, max_tokens: int = 96) -> Path:
    """Read and render data files of any kind; return the folder of rendered rows."""
    rendered = folder / "rendered"
    rendered.mkdir(parents=True)
    files = DataFile(str(train), train.name, "train"), DataFile(str(heldout), heldout.name, "heldout")
    examples.prepare(asked(base, rendered, *files, max_tokens=max_tokens), ignore)
    return rendered


def render(base: Base, folder: Path, train: Sequence[Raw], heldout: Sequence[Raw], max_tokens: int = 96) -> Path:
    """Write rows to train.jsonl and heldout.jsonl, render them, and return the folder of rendered rows."""
    files = write(folder / "train.jsonl", train), write(folder / "heldout.jsonl", heldout)
    return render_files(base, folder, *files, max_tokens)


def facts_of(rows: Path) -> list[Raw]:
    """The facts table in a folder of rendered rows, each with its place."""
    facts: list[Raw] = parquet.read_table(rows / "facts.parquet").to_pylist()
    return [fact | {"place": f"{fact['file']}:{fact['row']}"} for fact in facts]


@dataclass(frozen=True, slots=True)
class Adapter:
    """A trained adapter, the evidence about it, what it was trained with and where its checkpoints are."""

    trained: Trained
    folder: Path
    scratch: Path
    settings: Train

    @property
    def weights(self) -> bytes:
        """Its bytes on disk: the weights and the settings they need."""
        files = (self.folder / "adapter_model.safetensors", self.folder / "adapter_config.json")
        return b"".join(file.read_bytes() for file in files)


def judged(adapter: Adapter) -> Verdict:
    """What the training gate says of an adapter as it lies on disk."""
    evidence = adapters.inspect_adapter(str(adapter.folder), ignore)
    return training_gate.judge(adapter.trained, evidence, adapter.settings, TrainingLimits())


def request(base: Base, rows: Path, folder: Path, settings: Train) -> TrainAdapter:
    """Ask for an adapter in a folder of its own."""
    paths = (rows / "train.jsonl", rows / "heldout.jsonl", folder / "adapter", folder / "scratch")
    return TrainAdapter(base, settings, *map(str, paths))


def train(base: Base, rows: Path, folder: Path, settings: Train) -> Adapter:
    """Train an adapter in this process."""
    trained = training.train(request(base, rows, folder, settings), ignore)
    return Adapter(trained, folder / "adapter", folder / "scratch", settings)
