"""Data files of every kind into canonical rows: the same rows out of every container, and none lost on the way."""

import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import ipc

from loragate.engines import tables
from loragate.errors import DataFileError
from loragate.reading import Reading, read_shard, shards
from loragate.rows import Row

Raw = dict[str, Any]
QUESTION, ANSWER = 'What, "is"\nit?', "Grün – 緑\u2028ok"

FORMATS: dict[str, Raw] = {
    "alpaca": {"instruction": QUESTION, "input": "", "output": ANSWER},
    "prompt_completion": {"prompt": QUESTION, "completion": ANSWER},
    "question_answer": {"question": QUESTION, "answer": ANSWER},
    "messages": {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]},
    "conversations": {
        "conversations": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
    },
    "sharegpt": {"conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]},
}


def as_jsonl(rows: Sequence[Raw]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_json(rows: Sequence[Raw]) -> bytes:
    return json.dumps(rows, ensure_ascii=False, indent=1).encode()


def as_separated(delimiter: str) -> Callable[[Sequence[Raw]], bytes]:
    def write(rows: Sequence[Raw]) -> bytes:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
        return text.getvalue().encode()

    return write


def as_parquet(rows: Sequence[Raw]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink)
    return sink.getvalue()


def as_arrow(rows: Sequence[Raw]) -> bytes:
    """What the library datasets saves: a stream of record batches."""
    sink, table = io.BytesIO(), pa.Table.from_pylist(list(rows))
    with ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue()


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


TEXTS: dict[str, Callable[[Sequence[Raw]], bytes]] = {
    "json": as_json,
    "jsonl": as_jsonl,
    "csv": as_separated(","),
    "tsv": as_separated("\t"),
}
CONTAINERS: dict[str, Callable[[Sequence[Raw]], bytes]] = {
    **TEXTS,
    **{f"{name}.gz": lambda rows, write=write: gzip.compress(write(rows)) for name, write in TEXTS.items()},
    **{f"{name}.zst": lambda rows, write=write: zstd(write(rows)) for name, write in TEXTS.items()},
    "parquet": as_parquet,
    "arrow": as_arrow,
}


def read(folder: Path, name: str, content: bytes, form: str = "auto") -> list[Row]:
    """Read one file as the road does: a shard at a time."""
    (folder / name).write_bytes(content)
    parts = shards(folder / name, name, Reading(form), tables.FOREIGN, 2)
    return [row for part in parts for row in read_shard(part)]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("told", [True, False])
def test_every_format_in_every_container_is_the_same_canonical_rows(
    tmp_path: Path, form: str, container: str, told: bool
) -> None:
    rows = read(tmp_path, f"rows.{container}", CONTAINERS[container]([FORMATS[form]] * 3), form if told else "auto")
    assert [row.problem for row in rows] == [None] * 3
    assert [[(m.role, m.content) for m in row.messages] for row in rows] == [
        [("user", QUESTION), ("assistant", ANSWER)]
    ] * 3
    assert {row.digest for row in rows} == {read(tmp_path, "one.jsonl", as_jsonl([FORMATS["alpaca"]]))[0].digest}


@pytest.mark.parametrize("container", CONTAINERS)
def test_plain_text_in_every_container_is_the_same_text(tmp_path: Path, container: str) -> None:
    rows = read(tmp_path, f"rows.{container}", CONTAINERS[container]([{"text": f"{QUESTION} {ANSWER}"}] * 3))
    assert [row.conversation.text for row in rows] == [f"{QUESTION} {ANSWER}"] * 3


def test_a_folder_saved_by_datasets_means_its_splits(tmp_path: Path) -> None:
    import datasets

    from loragate.config import Config, RunFile
    from loragate.files import data_files

    sides = {
        name: datasets.Dataset.from_list([FORMATS["messages"]] * size) for name, size in (("train", 5), ("test", 2))
    }
    datasets.DatasetDict(sides).save_to_disk(tmp_path / "saved")
    tree = {"model": "m", "base_model": {"source": "org/base"}, "data": {"train": ["saved"]}}
    found = data_files(RunFile(tmp_path / "run.yaml", Config.model_validate_json(json.dumps(tree))))
    for side, size in (("train", 5), ("heldout", 2)):
        (file,) = (file for file in found.files if file.side == side)
        parts = shards(Path(file.path), file.name, Reading(), tables.FOREIGN, 100)
        assert [len(part.raws) for part in parts] == [size]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.parquet", b"PAR1" + bytes(40)),
        ("rows.arrow", b"ARROW1" + bytes(40)),
        ("rows.jsonl.zst", b"\x28\xb5\x2f\xfd" + bytes(40)),
        ("rows.jsonl.zst", zstd(as_jsonl([FORMATS["alpaca"]] * 99))[:-9]),
    ],
)
def test_a_file_that_no_library_can_read_is_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    with pytest.raises(DataFileError, match=name):
        read(tmp_path, name, content)


MUTATIONS = 10_000


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Do some damage: bytes overwritten, cut out, doubled, put in, or the end lost."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(found) + 1)
        end = min(len(found), start + chance.randint(0, 12))
        kind = chance.randrange(5)
        if kind == 0:
            found[start:end] = chance.randbytes(end - start)
        elif kind == 1:
            del found[start:end]
        elif kind == 2:
            found[start:start] = found[start:end]
        elif kind == 3:
            found[start:start] = chance.choice([b'"', b"\\", b"{", b"[", b"]", b"\n", b",", b"\x00", b"null", b"\xff"])
        else:
            del found[start + len(found) // 2 :]
    return bytes(found)


def expected_rows(name: str, content: bytes) -> int | None:
    """Rows that a file holds, by another way of reading it; None where only its own library can say."""
    if name.endswith(".jsonl"):
        return sum(bool(line.decode().strip()) for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"))
    if name.endswith(".json"):
        return len(json.loads(content.decode("utf-8-sig")))
    return None


@pytest.mark.parametrize("container", [*TEXTS, "jsonl.gz", "parquet", "arrow"])
def test_damaged_files_are_refused_in_a_sentence_or_read_without_losing_a_row(tmp_path: Path, container: str) -> None:
    chance = random.Random(container)
    sources = [CONTAINERS[container]([raw] * 4) for raw in FORMATS.values()]
    refused, accepted, read_rows = 0, 0, 0
    for _ in range(MUTATIONS // 7):
        content = mutated(chance.choice(sources), chance)
        try:
            rows = read(tmp_path, f"rows.{container}", content)
        except DataFileError as error:
            refused += str(error).startswith(str(tmp_path / f"rows.{container}"))
            continue
        accepted += 1
        assert all(bool(row.problem) != bool(row.messages) for row in rows)
        expected = expected_rows(f"rows.{container}", content)
        assert len(rows) == (len(rows) if expected is None else expected)
        read_rows += len(rows)
    assert refused + accepted == MUTATIONS // 7
    assert refused > 100
    assert read_rows > 100 or container in {"jsonl.gz", "parquet"}
