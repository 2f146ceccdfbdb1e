"""Writing a waiver: what `loragate waive` refuses, and the two files that it leaves."""

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from loragate.config import RunFile
from loragate.errors import ConfigError
from loragate.home import Home
from loragate.listing import pick
from loragate.record import AttemptRecord
from loragate.refs import digest_text
from loragate.store import write_atomically
from loragate.verdicts import Finding
from loragate.waivers import SIGNATURE, Waiver, rule_name, why_not_until, why_not_waivable


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person asks for; `rule` is written gate/rule."""

    rule: str
    by: str
    reason: str
    until: str


def find_attempt(home: Home, name: str) -> AttemptRecord:
    """Find a refused attempt, or a check, by its id; a model's name means its newest attempt."""
    check = home.journal(name, "checks")
    return check.read() if check.path.is_file() else pick(home, name)


def run_file(record: AttemptRecord, given: Path | None) -> Path:
    """The run file that an attempt was started with, unless another is given.

    Raises:
        ConfigError: It is no longer there.
    """
    path = given or Path(record.opened.run_file)
    if not path.is_file():
        raise ConfigError(f"{path}: the attempt's run file is not there; name it with --config")
    return path


def draft(record: AttemptRecord, wish: Wish, run: RunFile, today: date) -> Waiver:
    """Make the waiver that is wished for.

    Raises:
        ConfigError: It would not count: the attempt was not refused by that rule, the rule cannot be waived, the
            person is not among the signers, the reason is empty, or the last day is past or too far ahead.
    """
    finding, candidate = _refusing(record, wish.rule)
    settings, where = run.config.gates.waivers, f"loragate waive {record.opened.attempt}"
    if why := why_not_waivable(finding):
        raise ConfigError(f"{where}: --rule {wish.rule} cannot be waived: {why}")
    if wish.by not in settings.signers:
        known = ", ".join(settings.signers) or "nobody"
        raise ConfigError(f'{where}: --by "{wish.by}": {run.path}: gates.waivers.signers names {known}; add the name')
    if not wish.reason.strip():
        raise ConfigError(f"{where}: --reason is empty; say why the finding is taken as it is")
    if why := why_not_until(wish.until, today, settings.max_days):
        raise ConfigError(f"{where}: --until does not do: {why}")
    until = date.fromisoformat(wish.until).isoformat()
    return Waiver(record.opened.model, wish.rule, candidate, finding.detail, wish.by, wish.reason.strip(), until)


def require_own_key(run: RunFile, by: str, public: str) -> None:
    """Refuse a key that is not the one the run file has for a person.

    Raises:
        ConfigError: It is another; a waiver signed with it would not count.
    """
    if run.config.gates.waivers.signers[by].split()[:2] != public.split()[:2]:
        raise ConfigError(f"--key holds {public}, which is not the key that {run.path} has for {by}; give that one")


def write(run: RunFile, waiver: Waiver, sign: Callable[[bytes], str]) -> tuple[Path, Path]:
    """Write a waiver where the run file looks for it, and its signature beside it; the signature comes first."""
    path = _place(run, waiver)
    signed = path.with_name(path.name + SIGNATURE)
    try:
        write_atomically(signed, sign(waiver.text.encode("utf-8")))
        write_atomically(path, waiver.text)
    except OSError as error:
        raise ConfigError(f"{path.parent}: cannot be written to: {error.strerror}") from None
    return path, signed


def _refusing(record: AttemptRecord, rule: str) -> tuple[Finding, str]:
    """The finding that a rule's name means, and the digest of the candidate that it is about."""
    refusing = {
        rule_name(verdict.gate, finding): (finding, record.waivers[verdict.gate].candidate)
        for verdict in record.verdicts
        for finding in verdict.findings
        if finding.refuses and verdict.gate in record.waivers
    }
    if record.outcome != "refused" or rule not in refusing:
        by = f"it was refused by {', '.join(refusing)}" if refusing else f"its end is: {record.outcome}"
        raise ConfigError(f"attempt {record.opened.attempt} was not refused by {rule}: {by}; --rule takes gate/rule")
    return refusing[rule]


def _place(run: RunFile, waiver: Waiver) -> Path:
    gate_rule = waiver.rule.replace("/", "-")
    name = f"{waiver.model}-{gate_rule}-{waiver.candidate[:12]}-{digest_text(waiver.text)[:8]}.json"
    for pattern in run.config.gates.waivers.files:
        path = run.resolve(pattern)
        if not any(mark in str(path.parent) for mark in "*?[") and fnmatch.fnmatch(name, path.name):
            return path.parent / name
    patterns = ", ".join(run.config.gates.waivers.files)
    raise ConfigError(
        f"{run.path}: gates.waivers.files: {patterns} names no folder for {name}; add one as waivers/*.json"
    )
