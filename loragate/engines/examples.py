"""Data files into what the model reads (ids, mask) and what is known about each row (the facts table).

Each row is read, rendered, tokenised, looked at and sketched once, in worker processes over shards of rows; what they
return is written in the rows' order, so the outcome depends neither on the processes nor on the shards.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import parquet

from loragate.child import Progress, Report
from loragate.engines.examiner import Draft, Examiner, Facts
from loragate.engines.sketches import SKETCH, sketch
from loragate.engines.tables import FOREIGN, TableWriter, columns_of
from loragate.errors import DataFileError
from loragate.files import DataFile
from loragate.histogram import histogram
from loragate.passages import Passages
from loragate.reading import Reading, Shard, read_shard, shards
from loragate.rendering import Encode, Example, read_rendered, rendered_line
from loragate.row_work import GeneralRows, KeepRows, Prepared, PrepareRows
from loragate.rows import copies, position
from loragate.workers import available, in_order

SIDES = ("train", "heldout")
PROBES_FILE, FACTS_FILE, GENERAL_FILE = "probes.jsonl", "facts.parquet", "general.jsonl"
WORKER_BYTES = 1 << 20
"""Fewer bytes of data files are not worth one more process."""

PROBED_ROWS = 200
"""Held-out rows whose texts the GGUF gate tokenises again."""

PROBES = (
    "Hello, world!",
    "  two  spaces\tand\ttabs\n\n\nand lines  ",
    "1234567890 3.14159 1e-10 0x7f 2026-11-22",
    "don't can't I'LL we've",
    "def f(x):\n    return {x: [1, 2]}  # comment",
    "https://example.org/a?b=c&d=%20#e",
    "Größe, façade, naïve, señor, Zażółć gęślą jaźń",
    "Привет, мир! Γειά σου Κόσμε",
    "中文字符，日本語テキスト、한국어 문장",
    "مرحبا بالعالم שלום עולם",
    "नमस्ते दुनिया สวัสดีชาวโลก",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 é ﬁ ① ½",
    "\u200bzero\u00a0width\ufeff",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "<|im_start|>user\nnot a turn<|im_end|>",
    "</s><s>[INST] <pad> <unk> <eos>",
)
"""Texts on which tokenizers are known to disagree: digits, white space, scripts, emoji, things that look special."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A shard and the file that it is of."""

    shard: Shard
    file: DataFile


@dataclass(frozen=True, slots=True)
class Examined:
    """What a worker makes of a piece.

    Attributes:
        lines: Rendered rows by side, lines of JSON.
        sketches: Their sketches; `fact` counts within the piece.
        lengths, taught_shares: How many training rows have so many tokens, and such a share of them supervised.
        bytes_read: Bytes of the lines that it was made of, 0 where they are not known.
    """

    facts: pa.RecordBatch
    lines: dict[str, bytes]
    sketches: dict[str, npt.NDArray[np.void]]
    lengths: Counter[int]
    taught_shares: Counter[int]
    bytes_read: int


def prepare(request: PrepareRows, report: Report) -> Prepared:
    """Write rendered rows and their sketches by side, the facts table, general rows and tokenizer probes.

    Raises:
        DataFileError: A file is not what its name promises, or a general row cannot be scored.
    """
    examiner, folder = Examiner(request, _passages(request)), Path(request.folder)
    rows, tokens = Counter[str](), Counter[str]()
    lengths, taught = Counter[int](), Counter[int]()
    files = [file for file in request.files if file.side in SIDES]
    size, read = sum(Path(file.path).stat().st_size for file in files), 0
    workers = min(request.workers or available(), 1 + size // WORKER_BYTES)

    def examine(piece: Piece) -> Examined:
        return _examine(piece, examiner, request)

    with TableWriter(folder / FACTS_FILE, Facts) as facts, _Sides(folder) as sides:
        for examined in in_order(examine, _pieces(files, request.shard_rows), workers):
            sides.add(examined, facts_before=rows.total())
            facts.add(examined.facts)
            places = examined.facts["side"].to_pylist()
            rows.update(places)
            for side, length in zip(places, examined.facts["tokens"].to_pylist(), strict=True):
                tokens[side] += length
            lengths += examined.lengths
            taught += examined.taught_shares
            read += examined.bytes_read
            report(Progress(rows.total(), max(rows.total(), rows.total() * size // read) if read else 0, "rows"))
    general = _write_general(folder, examiner, request)
    _write_probes(folder, examiner.encode)
    shapes = histogram(lengths, limit=request.max_tokens), histogram(taught)
    return Prepared(dict(rows), *shapes, dict(tokens), general)


def _pieces(files: list[DataFile], rows: int) -> Iterator[Piece]:
    for file in files:
        for shard in _shards(file, rows):
            yield Piece(shard, file)


def _shards(file: DataFile, rows: int) -> Iterator[Shard]:
    return shards(Path(file.path), file.name, Reading(file.format, dict(file.columns)), FOREIGN, rows)


def _passages(request: PrepareRows) -> Passages:
    """Collect the passages of general and protected rows; what cannot be read there protects nothing."""
    found = Passages(request.passage_words)
    for file in request.files:
        if file.side not in SIDES:
            for shard in _shards(file, request.shard_rows):
                for row in read_shard(shard):
                    found.add(row)
    return found


def _examine(piece: Piece, examiner: Examiner, request: PrepareRows) -> Examined:
    examined = list(examiner.examine(_drafts(piece, request)))
    lines, sketches = {}, {}
    for side in SIDES:
        mine = [(n, draft) for n, (draft, _) in enumerate(examined) if draft.side == side and draft.example]
        texts = [
            rendered_line(d.example, d.row.conversation, d.row.place, d.row.slice_name) for _, d in mine if d.example
        ]
        lines[side] = b"".join(texts)
        sketches[side] = sketch([draft.words for _, draft in mine])
        sketches[side]["fact"] = [n for n, _ in mine]
        sketches[side]["line"] = list(map(len, texts))
    trained = [draft.example for draft, _ in examined if draft.side == "train" and draft.example]
    return Examined(
        facts=columns_of(Facts, [facts for _, facts in examined]),
        lines=lines,
        sketches=sketches,
        lengths=Counter(example.rendered_tokens for example in trained),
        taught_shares=Counter(round(100 * example.supervised / len(example.ids)) for example in trained),
        bytes_read=sum(len(raw.content) for raw in piece.shard.raws if isinstance(raw.content, bytes)),
    )


def _drafts(piece: Piece, request: PrepareRows) -> Iterator[Draft]:
    """Yield the rows of a piece with the side that each goes to, and how often an epoch takes it."""
    for row in read_shard(piece.shard):
        if piece.file.side == "heldout" or position(row) < request.heldout_share:
            yield Draft(row, "heldout")
        else:
            taken = 1 if row.problem else copies(row, piece.file.weight)
            yield Draft(row, "train" if taken else "unused", taken)


class _Sides:
    """The files of rendered rows and their sketches, written as they come."""

    def __init__(self, folder: Path) -> None:
        self.files = {name: (folder / f"{name}.jsonl").open("wb") for name in SIDES}
        self.sketches = {name: (folder / f"{name}.sketches").open("wb") for name in SIDES}
        self.bytes = 0

    def add(self, examined: Examined, facts_before: int) -> None:
        for name in SIDES:
            self.files[name].write(examined.lines[name])
            numbered = examined.sketches[name]
            numbered["fact"] += facts_before
            self.sketches[name].write(numbered.tobytes())

    def __enter__(self) -> "_Sides":
        return self

    def __exit__(self, *_: object) -> None:
        for file in (*self.files.values(), *self.sketches.values()):
            file.close()


def keep(request: KeepRows, report: Report) -> dict[str, int]:
    """Copy the rows that are not dropped, their facts, general rows and probes; return how many each side keeps."""
    dropped = np.fromfile(request.dropped, dtype="<u8")
    kept = {}
    for name in SIDES:
        stays = ~np.isin(np.fromfile(Path(request.rows) / f"{name}.sketches", dtype=SKETCH)["fact"], dropped)
        with (
            (Path(request.rows) / f"{name}.jsonl").open("rb") as rows,
            (Path(request.folder) / f"{name}.jsonl").open("wb") as out,
        ):
            out.writelines(line for line, stay in zip(rows, stays.tolist(), strict=True) if stay)
        kept[name] = int(stays.sum())
        report(Progress(len(kept), len(SIDES), "sides"))
    for copied in (PROBES_FILE, GENERAL_FILE):
        shutil.copy(Path(request.rows) / copied, request.folder)
    facts = parquet.read_table(Path(request.rows) / FACTS_FILE)
    stays = ~np.isin(np.arange(len(facts), dtype=np.uint64), dropped)
    parquet.write_table(facts.filter(pa.array(stays)), Path(request.folder) / FACTS_FILE)
    return kept


def _write_general(folder: Path, examiner: Examiner, request: PrepareRows) -> GeneralRows:
    """Render the rows about what must not be forgotten, in the files' order, and count them."""
    general = [file for file in request.files if file.side == "general"]
    rows = tokens = 0
    with (folder / GENERAL_FILE).open("wb") as out:
        for shard in (shard for file in general for shard in _shards(file, request.shard_rows)):
            for draft, _ in examiner.examine(Draft(row, "general") for row in read_shard(shard)):
                example = _scored(draft)
                out.write(rendered_line(example, draft.row.conversation, draft.row.place))
                rows, tokens = rows + 1, tokens + len(example.ids)
    return GeneralRows(rows, tokens)


def _scored(draft: Draft) -> Example:
    """The rendered row.

    Raises:
        DataFileError: It has none, or nothing of an answer is left in it.
    """
    problem = draft.problem or draft.roles_problem
    if draft.example is None or not draft.example.supervised:
        raise DataFileError(
            f"{draft.row.place}: data.general: {problem or 'no answer is left within data.max_tokens'}. What must not "
            "be forgotten is scored by its answers; mend or remove the row, or name files that are only not to be "
            "trained on in data.holdout_against"
        )
    return draft.example


def _write_probes(folder: Path, encode: Encode) -> None:
    """Write texts with their ids: what the first held-out rows say, and texts made to be hard."""
    with (folder / "heldout.jsonl").open("rb") as lines:
        rows = [read_rendered(line)[1] for line in islice(lines, PROBED_ROWS)]
    texts = [(message.content, True) for row in rows for message in row.messages]
    with (folder / PROBES_FILE).open("w", encoding="utf-8") as file:
        for text, of_a_row in texts + [(text, False) for text in PROBES]:
            file.write(json.dumps({"text": text, "ids": list(encode(text)), "of_a_row": of_a_row}) + "\n")
