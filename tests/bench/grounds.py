"""Rows prepared once and taken to machines that have neither the base model's file nor the libraries to read it.

    .venv/bin/python tests/bench/grounds.py prepare FOLDER --rows 1165
    .venv/bin/python tests/bench/grounds.py take FOLDER --ground FROM --shape qwen2.5-0.5b --rows 200 --max-tokens 512

A prepared folder holds rendered docstring pairs (docstrings.py) as ids without their text, and the tokenizer. What is
taken from it is what `docstrings.py` leaves: as many rows as asked for, over again where there are fewer, and a base
model: random weights of a published shape (shapes.py), or a model of this machine.

`--cut` takes rows of other lengths from the same ids, one after the other: docstring pairs are short, and all begin
alike, which loragate computes once. Lengths are log-normal, as those of instruction data are: of 999 rows of
LLaMA-Factory's alpaca_en_demo in the same tokenizer the median was 141, the 90 % quantile 388, the longest 729.
"""

import argparse
import dataclasses
import itertools
import json
import random
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from docstrings import GROUND, HELDOUT, TRAIN, Ground, look, prepared, read, read_base, read_ground, render, write_pairs
from setting import child, model_file, progress
from shapes import SHAPES, save

if TYPE_CHECKING:
    from loragate.rendering import Example
    from loragate.work import Base

TOKENIZER, LONGEST = "tokenizer", 2048
MEDIAN, SPREAD, FEWEST, MOST = 141, 0.79, 8, 729
"""Lengths of cut rows: median, deviation of the logarithm, least and most tokens."""


def main() -> None:
    """Prepare a folder, or take rows and a base from one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    preparing, taking = verbs.add_parser("prepare"), verbs.add_parser("take")
    for verb in (preparing, taking):
        verb.add_argument("folder", type=Path)
        verb.add_argument("--rows", type=int, required=True)
        verb.add_argument("--model", default="")
    taking.add_argument("--ground", type=Path, required=True)
    taking.add_argument("--shape", choices=[*SHAPES, ""], default="")
    taking.add_argument("--weights", type=Path, required=True)
    taking.add_argument("--max-tokens", type=int, required=True)
    taking.add_argument("--supervise", choices=["answers", "all"], default="answers")
    taking.add_argument("--cut", type=int, default=0)
    taking.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    if options.verb == "prepare":
        prepare(options.folder, options.rows, options.model)
    else:
        take(options)


def prepare(folder: Path, rows: int, model: str) -> None:
    """Render docstring pairs into a folder and put the tokenizer beside them."""
    scratch = folder / "scratch"
    scratch.mkdir(parents=True)
    written = write_pairs(scratch, {TRAIN: rows})
    from transformers import AutoTokenizer

    from loragate.child import ignore
    from loragate.engines.language_model import fetch
    from loragate.work import FetchBase

    base = fetch(FetchBase(model or str(model_file()), True, None, False, str(scratch / "base")), ignore)
    render(base, scratch, written, LONGEST)
    examples = read(scratch / TRAIN)
    write_rows(folder / TRAIN, examples)
    AutoTokenizer.from_pretrained(base.path).save_pretrained(folder / TOKENIZER)
    shutil.rmtree(scratch)
    _write_ground(folder, look(dataclasses.replace(base, path=""), examples, "auto"))


def take(options: argparse.Namespace) -> None:
    """Take rows and a base model from a prepared folder."""
    rows = examples_of(read(options.ground / TRAIN), options)
    taken, folder = list(itertools.islice(rows, options.rows + 1)), options.folder
    write_rows(folder / HELDOUT, taken[:1])
    write_rows(folder / TRAIN, taken[1:])
    _write_ground(folder, look(_base(options), taken[1:], options.dtype))


def examples_of(examples: "list[Example]", options: argparse.Namespace) -> "Iterator[Example]":
    """Yield rows without end, no longer and supervised where asked for."""
    stream = cut(examples) if options.cut else itertools.cycle(examples)
    for example in stream:
        kept = tuple((start, min(end, options.max_tokens)) for start, end in example.spans)
        ids = example.ids[: options.max_tokens]
        spans = ((0, len(ids)),) if options.supervise == "all" else tuple(s for s in kept if s[0] < s[1])
        if spans:
            yield dataclasses.replace(example, ids=ids, spans=spans, rendered_tokens=len(ids))


def cut(examples: "list[Example]") -> "Iterator[Example]":
    """Yield rows of log-normal lengths, cut one after the other from the prepared ones."""
    lengths = random.Random(0)
    tokens = itertools.cycle([pair for row in examples for pair in zip(row.ids, row.mask, strict=True)])
    while True:
        wanted = round(lengths.lognormvariate(0.0, SPREAD) * MEDIAN)
        pairs = list(itertools.islice(tokens, min(MOST, max(FEWEST, wanted))))
        runs = [(at, taught) for at, (_, taught) in enumerate(pairs)]
        grouped = (list(run) for taught, run in itertools.groupby(runs, key=lambda pair: pair[1]) if taught)
        spans = tuple((run[0][0], run[-1][0] + 1) for run in grouped)
        ids = tuple(token for token, _ in pairs)
        yield dataclasses.replace(examples[0], ids=ids, spans=spans, rendered_tokens=len(ids))


def write_rows(path: Path, examples: "Iterable[Example]") -> None:
    """Write rows as the road does, without their text."""
    from loragate.rendering import rendered_line
    from loragate.rows import Conversation

    path.write_bytes(b"".join(rendered_line(example, Conversation((), ""), "") for example in examples))


def _base(options: argparse.Namespace) -> "Base":
    from loragate.child import ignore
    from loragate.engines.language_model import fetch
    from loragate.work import FetchBase

    if not options.shape:
        return fetch(FetchBase(options.model or str(model_file()), True, None, False, str(options.weights)), ignore)
    parameters = save(options.shape, options.weights, options.ground / TOKENIZER)
    sizes = {"vocabulary": SHAPES[options.shape].vocabulary, "parameters": parameters}
    return dataclasses.replace(read_base(options.ground), path=str(options.weights), **sizes)


def _write_ground(folder: Path, ground: Ground) -> None:
    (folder / GROUND).write_text(json.dumps(dataclasses.asdict(ground)), encoding="utf-8")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what peers stand on, and how long they may take."""
    parser.add_argument("--model", default="", help="GGUF file or folder of the base model (default: the demo's)")
    parser.add_argument("--shape", choices=SHAPES, default="", help="instead of --model: random weights of that shape")
    parser.add_argument("--weights", type=Path, help="folder of the shape's weights, made unless there; it is kept")
    parser.add_argument("--ground", type=Path, help="rows and tokenizer from a folder that train.py --prepare has left")
    parser.add_argument("--cut", action="store_true", help="rows of instruction data's lengths (see grounds.py)")
    parser.add_argument("--supervise", choices=["answers", "all"], default="answers", help="tokens that count")
    parser.add_argument("--limit", type=float, help="seconds that a peer may take (default: as long as it takes)")


def settle_model(options: argparse.Namespace) -> None:
    """Name the demo's model where none is named but one is needed."""
    if not options.model and not (options.ground and options.shape):
        options.model = str(model_file())


def grounded(folder: Path, env: Mapping[str, str], options: argparse.Namespace, heldout: int) -> Ground:
    """Rows and base as the options say; docstring pairs on the base as they are where those say nothing."""
    more = {"max_tokens": options.width, "model": options.model, "dtype": options.dtype}
    if not (options.ground or options.shape or options.cut or options.supervise == "all"):
        return prepared(folder, env, train=options.rows, heldout=heldout, **more)
    source = options.ground.resolve() if options.ground else folder / "prepared"
    if not options.ground:
        prepared_ground(source, env, rows=options.rows, model=options.model)
    weights = options.weights.resolve() if options.weights else folder / "base"
    more |= {"ground": source, "shape": options.shape, "weights": weights, "cut": int(options.cut)}
    return taken(folder, env, rows=options.rows, supervise=options.supervise, **more)


def taken(folder: Path, env: Mapping[str, str], **options: object) -> Ground:
    """Take rows and a base in a child process; return what there is to stand on."""
    progress("taking the rows and the base model")
    _run("take", folder, env, options)
    return read_ground(folder)


def prepared_ground(folder: Path, env: Mapping[str, str], **options: object) -> None:
    """Prepare a folder in a child process."""
    progress(f"preparing rows in {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    _run("prepare", folder, env, options)
    (folder / "prepare.log").unlink()


def _run(verb: str, folder: Path, env: Mapping[str, str], options: Mapping[str, object]) -> None:
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    child([__file__, verb, str(folder), *words], env, folder / f"{verb}.log")


if __name__ == "__main__":
    main()
