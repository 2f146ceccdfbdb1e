"""Write Ollama's Modelfiles for the exported GGUF files."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from loragate.artifact_work import DescribeChat
from loragate.attempt import Attempt, FetchedBase, Rows, recipe
from loragate.modelfile import Asked, modelfile, modelfile_name
from loragate.rendering import common_system
from loragate.store import write_atomically

CODE = (
    "loragate.engines.chat_template",
    "loragate.engines.language_model",
    "loragate.modelfile",
    "loragate.rendering",
    "loragate.turns",
)


def write_modelfiles(attempt: Attempt, base: FetchedBase, rows: Rows, files: Sequence[str]) -> None:
    """Write one for each file, by what the base's chat template makes of conversations; they go on record."""
    inputs, settings = {"base": base.digest, "rows": rows.digest}, {"files": list(files)}
    steps = recipe("modelfiles", inputs, code=CODE, libraries=("transformers",), settings=settings)

    def make(folder: Path) -> object:
        asked = attempt.call("loragate.engines.chat_template:describe", DescribeChat(base.base))
        assert isinstance(asked, Asked)
        with Path(rows.file("train.jsonl")).open("rb") as lines:
            asked = replace(asked, system=common_system(lines))
        for file in files:
            write_atomically(folder / modelfile_name(file), modelfile(file, asked))
        return [modelfile_name(file) for file in files]

    stored, _ = attempt.build(steps, list[str], make)
    attempt.note("artifact", "modelfiles", stored.ref)
