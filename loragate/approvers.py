"""The file of approvers that a run file names: who may approve a release, with which key, until when."""

import json
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from loragate.approvals import Approver, Policy, bare
from loragate.config import RunFile
from loragate.errors import ConfigError
from loragate.faults import explain
from loragate.limits import PUBLIC_KEY, Section


class Entry(Section):
    """One approver as the file has them."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    """Of the person, as it is told wherever the approval is."""
    key: Annotated[str, Field(pattern=f"^{PUBLIC_KEY}$")]
    """Public key: the line that `ssh-keygen -t ed25519` writes into the .pub file."""
    until: str | None = None
    """Last day (UTC) on which the key counts, as YYYY-MM-DD; null: no end."""
    seals: tuple[Annotated[str, Field(pattern="^[0-9a-f]{64}$")], ...] = ()
    """Names of sealing keys that the person holds: SHA-256 of the .pub file, which `loragate verify --json` prints."""


ENTRIES = TypeAdapter(tuple[Entry, ...])


def read_policy(run: RunFile) -> Policy | None:
    """Read the approvers that a run file asks for; None where it asks for none.

    Raises:
        ConfigError: The file is missing or wrong, names a key twice, or has fewer keys than approvals are needed.
    """
    record = run.config.record
    if not record.approvals or record.approvers is None:
        return None
    approvers = read_approvers(run.resolve(record.approvers), f"{run.path}: record.approvers: {record.approvers}")
    if record.approvals > len(approvers):
        raise ConfigError(
            f"{run.path}: record.approvals is {record.approvals}, but {record.approvers} has only {len(approvers)} "
            "keys; add approvers, or ask for fewer approvals"
        )
    return Policy(record.approvals, approvers)


def read_approvers(path: Path, where: str) -> tuple[Approver, ...]:
    """Read a file of approvers; `where` begins every message.

    Raises:
        ConfigError: It is missing, is no list of approvers, or names a person or a key twice.
    """
    entries = _entries(path, where)
    if faults := list(_faults(entries)):
        raise ConfigError("\n".join(f"{where}: {fault}" for fault in faults))
    return tuple(Approver(each.name, bare(each.key), each.until or "", each.seals) for each in entries)


def _entries(path: Path, where: str) -> tuple[Entry, ...]:
    try:
        tree = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        content = json.dumps(tree, default=str)
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error.strerror} (looked for {path})") from None
    except MarkedYAMLError as error:
        at = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{where}{at}: not YAML: {error.problem}") from None
    except (YAMLError, UnicodeDecodeError, TypeError, ValueError):
        raise ConfigError(f"{where}: not YAML or JSON in UTF-8") from None
    if not isinstance(tree, list):
        raise ConfigError(f"{where}: wanted a list of approvers, each with name and key")
    try:
        return ENTRIES.validate_json(content)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}: {fault}" for fault in explain(error, _keys))) from None


def _keys(_: Sequence[int | str]) -> list[str]:
    return list(Entry.model_fields)


def _faults(entries: Sequence[Entry]) -> Iterator[str]:
    names: set[str] = set()
    owners: dict[str, str] = {}
    for each in entries:
        if not each.name.isprintable() or each.name != each.name.strip():
            yield f"{each.name!r} is not a name"
        if each.name in names:
            yield f"{each.name} is named twice; one entry a person"
        names.add(each.name)
        if bare(each.key) in owners:
            yield f"{owners[bare(each.key)]} and {each.name} have the same key, which is one approver and not two"
        owners.setdefault(bare(each.key), each.name)
        try:
            date.fromisoformat(each.until or "2000-01-01")
        except ValueError:
            yield f"{each.name}: until: found {each.until!r}, wanted a date as YYYY-MM-DD"
