"""Write Ollama's Modelfiles for the exported GGUF files."""

from collections.abc import Sequence
from pathlib import Path

from loragate.artifact_work import DescribeChat
from loragate.attempt import Attempt, FetchedBase, recipe
from loragate.modelfile import Asked, modelfile, modelfile_name
from loragate.store import write_atomically

CODE = ("loragate.engines.chat_template", "loragate.engines.language_model", "loragate.modelfile", "loragate.turns")


def write_modelfiles(attempt: Attempt, base: FetchedBase, files: Sequence[str]) -> None:
    """Write one for each file, by what the base's chat template makes of conversations; they go on record."""
    settings = {"files": list(files)}
    steps = recipe("modelfiles", {"base": base.digest}, code=CODE, libraries=("transformers",), settings=settings)

    def make(folder: Path) -> object:
        asked = attempt.call("loragate.engines.chat_template:describe", DescribeChat(base.base))
        assert isinstance(asked, Asked)
        for file in files:
            write_atomically(folder / modelfile_name(file), modelfile(file, asked))
        return [modelfile_name(file) for file in files]

    stored, _ = attempt.build(steps, list[str], make)
    attempt.note("artifact", "modelfiles", stored.ref)
