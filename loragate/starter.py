"""The run file to start from: every key of the configuration with its meaning, its default and its choices.

Both files are made from the configuration's own tree, so they cannot say anything that `config.load` does not.
"""

import contextlib
import json
import re
import textwrap
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from loragate.config import Config, plain, section_of
from loragate.errors import ConfigError
from loragate.store import write_atomically

RUN_FILE = "run.yaml"
SCHEMA_FILE = "run.schema.json"
COLUMNS = 100

EXAMPLE = {
    "model": "my-model",
    "base_model": {"source": "Qwen/Qwen2.5-0.5B-Instruct"},
    "data": {"train": ["data/*.jsonl"]},
}
"""Values of the required keys; every other key keeps its default."""

HEADER = f"""\
# yaml-language-server: $schema={SCHEMA_FILE}
#
# A loragate run file: every key with its meaning and its default. Set model, base_model.source and
# data.train; the other keys may be left as they are or removed.
#
#   loragate check {RUN_FILE}      check this file and the rows; train nothing
#   loragate release {RUN_FILE}    train, judge, merge, export and register, or be refused by a gate
"""

NOT_PLAIN = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})


def write_starter(folder: Path) -> tuple[Path, ...]:
    """Write a commented run file and the JSON schema that editors check it by; return their paths.

    Raises:
        ConfigError: One of them is there already, or the folder cannot be written to; nothing is left behind.
    """
    texts = {folder / SCHEMA_FILE: schema_text(), folder / RUN_FILE: run_file_text()}
    there = sorted(str(path) for path in texts if path.exists() or path.is_symlink())
    if there:
        raise ConfigError(f"{' and '.join(there)} already there; nothing was written, choose another folder")
    try:
        for path, text in texts.items():
            write_atomically(path, text)
    except OSError as error:
        with contextlib.suppress(OSError):
            (folder / SCHEMA_FILE).unlink()
        raise ConfigError(f"{folder}: cannot be written to: {error.strerror}; nothing was written") from None
    return folder / RUN_FILE, folder / SCHEMA_FILE


def schema_text() -> str:
    """The configuration's JSON schema."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def run_file_text() -> str:
    """The run file: the example's values, the defaults of everything else."""
    config = Config.model_validate_json(json.dumps(EXAMPLE))
    return "\n".join([HEADER, *_lines(config, depth=0)]).rstrip() + "\n"


def _lines(section: BaseModel, depth: int) -> Iterator[str]:
    """Yield a section's lines; top-level keys and inner sections stand apart by a blank line."""
    kind, values = type(section), plain(section)
    for position, (name, field) in enumerate(kind.model_fields.items()):
        inner = section_of(kind, name) is not None
        if position and (inner or not depth):
            yield ""
        yield from _comment(field, depth)
        if inner:
            yield f"{_indent(depth)}{name}:"
            yield from _lines(getattr(section, name), depth + 1)
        else:
            yield f"{_indent(depth)}{name}: {_scalar(values[name])}"


def _comment(field: FieldInfo, depth: int) -> list[str]:
    choices = _choices(field.annotation)
    told = f"{field.description} Choices: {', '.join(choices)}." if choices else str(field.description)
    start = f"{_indent(depth)}# "
    return textwrap.wrap(
        told,
        COLUMNS,
        initial_indent=start,
        subsequent_indent=start,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _choices(annotation: object) -> tuple[str, ...]:
    """Return what a field, or each item of a list, can be chosen from; empty where anything of its type goes."""
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return tuple(map(str, inner))
    return _choices(inner[0]) if typing.get_origin(annotation) is tuple else ()


def _indent(depth: int) -> str:
    return "  " * depth


def _scalar(value: object) -> str:
    """Write a value as YAML on one line; words stand without quotes."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_scalar, value))}]"
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w./*-]*", value) and value.lower() not in NOT_PLAIN:
        return value
    return json.dumps(value)
