"""The bare fast tokenizer, which the data gate is measured against; `check.py` runs this as processes of their own.

    .venv/bin/python tests/bench/encode.py render rows.jsonl rendered/      # once: chat template, text by text
    .venv/bin/python tests/bench/encode.py encode rendered/                 # one line of JSON: rows, tokens, seconds

`encode` counts the time of `Tokenizer.encode_batch(…, add_special_tokens=False)` alone, on 10,000 rendered rows at a
time, with as many threads as RAYON_NUM_THREADS says (else one a core).
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from setting import model_file
from tokenizers import Tokenizer

CHUNK_ROWS = 10_000
TEXTS, TOKENIZER = "texts.jsonl", "tokenizer.json"


def main() -> None:
    """Do the one step that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    steps = parser.add_subparsers(dest="step", required=True)
    step = steps.add_parser("render", help="render rows into a folder, with the tokenizer beside them")
    step.add_argument("rows", type=Path)
    step.add_argument("folder", type=Path)
    steps.add_parser("encode", help="time the tokenizer on a folder").add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.step == "render":
        render(options.rows, options.folder)
    else:
        sys.stdout.write(json.dumps(encode(options.folder)) + "\n")


def render(rows: Path, folder: Path) -> None:
    """Write each row's conversation as the chat template renders it, and the base model's fast tokenizer."""
    from transformers import AutoTokenizer

    source = model_file()
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))
    with (folder / TEXTS).open("w", encoding="utf-8", buffering=1 << 20) as out:
        for lines in _chunks(rows):
            conversations = [json.loads(line)["messages"] for line in lines]
            texts = tokenizer.apply_chat_template(conversations, tokenize=False)
            out.writelines(json.dumps(text) + "\n" for text in texts)


def encode(folder: Path) -> dict[str, float]:
    """Tokenise the rendered rows; only `encode_batch` is timed."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    rows = tokens = 0
    seconds = processor = 0.0
    for lines in _chunks(folder / TEXTS):
        texts = [json.loads(line) for line in lines]
        start, taken = time.perf_counter(), time.process_time()
        encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
        seconds += time.perf_counter() - start
        processor += time.process_time() - taken
        rows += len(texts)
        tokens += sum(len(each) for each in encoded)
    return {"rows": rows, "tokens": tokens, "seconds": seconds, "processor": processor}


def _chunks(path: Path) -> Iterator[list[str]]:
    """Yield the lines of a file, many at a time."""
    with path.open(encoding="utf-8", buffering=1 << 20) as file:
        while lines := list(islice(file, CHUNK_ROWS)):
            yield lines


if __name__ == "__main__":
    main()
