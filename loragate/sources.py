"""The run file's sections about where the base model and the rows come from."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from loragate.limits import Section

Column = Literal[
    "messages",
    "conversations",
    "instruction",
    "input",
    "output",
    "prompt",
    "completion",
    "question",
    "answer",
    "system",
    "history",
    "tools",
    "text",
    "slice",
]


Format = Literal[
    "auto", "messages", "sharegpt", "conversations", "alpaca", "prompt_completion", "question_answer", "text"
]


class BaseModelSource(Section):
    """The model that is fine-tuned."""

    source: Annotated[str, Field(min_length=1)]
    """Hub id (org/name), local folder, or a .gguf file; paths are relative to this file."""
    revision: str | None = None
    """Hub branch, tag or commit (hub ids only); null takes the newest once and then stays with that."""
    trust_remote_code: bool = False
    """Whether the model repository's own Python code may run. Leave it off unless you have read that code."""


class DataSource(Section):
    """One entry of data.train that has more to say than a name."""

    source: Annotated[str, Field(min_length=1)]
    """File, glob, folder, or hub id (org/name) of a data set."""
    weight: Annotated[float, Field(gt=0, le=100)] = 1.0
    """How often an epoch takes each row: 0.25 every fourth row, 2 every row twice. Held-out rows are not weighted."""
    format: Format | None = None
    """Row format of these files; null: data.format."""
    columns: Mapping[Column, Annotated[str, Field(min_length=1)]] | None = None
    """Names of these files' columns; null: data.columns."""
    subset: str | None = None
    """Configuration of the data set (hub ids only)."""
    split: str | None = None
    """The one split to take (hub ids only); null: train, with validation or test held out where heldout is not set."""
    revision: str | None = None
    """Branch, tag or commit (hub ids only); null takes the newest once and then stays with that."""


def _kind(entry: object) -> str:
    return "source" if isinstance(entry, (Mapping, DataSource)) else "name"


Entry = Annotated[
    Annotated[str, Field(min_length=1), Tag("name")] | Annotated[DataSource, Tag("source")], Discriminator(_kind)
]


def _listed(value: object) -> object:
    """One text as a list of one."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


Patterns = Annotated[
    tuple[str, ...],
    BeforeValidator(_listed, json_schema_input_type=str | list[str]),
]


class Data(Section):
    """The rows to learn from and the rows that are held out to judge by."""

    train: Annotated[tuple[Entry, ...], Field(min_length=1)]
    """Files, globs or folders: .json .jsonl .csv .tsv (also .gz, .zst) .parquet .arrow, relative to this file; or hub
    ids (org/name) of data sets. An entry {source: ..., weight: 0.5} mixes by weight; it also takes format, columns,
    subset, split and revision."""
    heldout: Annotated[float, Field(gt=0, lt=1)] | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Share of rows held out by the hash of their question (stable across retrains), or files of their own; null: the
    split valid, validation or test of a folder or data set, else a share of 0.1."""
    general: Patterns = ()
    """Files of rows about what must not be forgotten: base and tuned model are held against each other on them
    (gates.quality.max_general_ratio), and no training row may hold a passage of theirs. Where none are named, what the
    base says to 40 everyday questions takes their place."""
    holdout_against: Patterns = ()
    """Files of rows that no training row may hold a passage of: your benchmarks and test sets."""
    format: Format = "auto"
    """Row format; auto looks at the keys of each file's first row."""
    columns: Mapping[Column, Annotated[str, Field(min_length=1)]] = {}
    """Names of your columns by the names that formats know, e.g. {prompt: title, completion: body}.
    The key slice, or the column named here for it, names the part of the rows that a row belongs to; the quality gate
    judges the held-out rows of each slice on their own."""
    language: Annotated[str, Field(pattern="^[a-z]{2,3}$")] | None = None
    """Language that answers must be in, as ISO 639-1 code, e.g. en; null: any."""
    max_tokens: Annotated[int, Field(ge=8)] = 512
    """Longest training row in tokens; what is longer is cut at the end, and the data gate says what that loses."""
