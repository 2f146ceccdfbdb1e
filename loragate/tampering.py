"""Altering a copy of a sealed home in one place, as somebody with access to its files could, or a disk.

Each alteration returns what verification must name. The copy shares its bytes with the original: a file is never
written to in place, but put there anew.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from loragate.approvals import read_file
from loragate.bundle import MANIFEST, SIGNATURE
from loragate.chain import CHAIN, START, Link
from loragate.errors import NotApplicableError
from loragate.home import Home
from loragate.refs import canonical, digest_bytes, digest_file
from loragate.store import copy_linked, write_atomically

GATES = "gates.json"
LOOSENED, LOWERED = 10, 0.5
CODE = "modeling.py"
LATER = "2999-01-01T00:00:00+00:00"
LEAST_EVENTS = 4
"""Events of a chain that can lose one in the middle, or have two swapped."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of a home with two releases of a model, the newer of which is altered.

    Attributes:
        older, newer: Digests of the releases.
        attempt: The one that made the newer.
        before: The chain's folder as it was before the newer release.
        chance: Decides which of several things is altered.
    """

    home: Home
    model: str
    older: str
    newer: str
    attempt: str
    before: Path
    chance: Random

    @property
    def bundle(self) -> Path:
        """Of the newer release."""
        return self.home.releases / self.model / self.newer

    @property
    def older_bundle(self) -> Path:
        """Of the older release."""
        return self.home.releases / self.model / self.older

    @property
    def chain(self) -> Path:
        """The file of the chain."""
        return self.home.chain / CHAIN


Alter = Callable[[Copy], str]


def flip_bit(copy: Copy) -> str:
    """Flip a bit of the adapter's largest file."""
    path = weights(copy.bundle)
    content = bytearray(path.read_bytes())
    content[copy.chance.randrange(len(content))] ^= 1 << copy.chance.randrange(8)
    write_atomically(path, bytes(content))
    return path.relative_to(copy.bundle).as_posix()


def weights(bundle: Path) -> Path:
    """Find the adapter's largest file."""
    files = sorted(path for path in (bundle / "adapter").rglob("*") if path.is_file())
    return max(files, key=lambda path: path.stat().st_size)


def _edit(path: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(path.read_bytes())
    change(value)
    write_atomically(path, canonical(value))


def edit_metric(copy: Copy) -> str:
    """Lower the perplexity of the last rung."""
    _edit(copy.bundle / "record.json", lambda record: _lower(record["ladder"][-1]["nll"]))
    return "record.json"


def _lower(nll: dict[str, float]) -> None:
    nll["nats"] *= LOWERED


def edit_verdict(copy: Copy) -> str:
    """Let a gate have passed that has not, or the reverse."""

    def change(gates: Sequence[dict[str, object]]) -> None:
        gate = next((each for each in gates if each["status"] != "pass"), copy.chance.choice(gates))
        gate["status"] = "fail" if gate["status"] == "pass" else "pass"

    _edit(copy.bundle / GATES, change)
    return GATES


def edit_finding(copy: Copy) -> str:
    """Halve a value that a gate has judged."""

    def change(gates: Sequence[Mapping[str, Any]]) -> None:
        findings = [finding for gate in gates for finding in gate["findings"] if _is_number(finding["value"])]
        _choose(copy, findings, "no gate judged a number that is not zero")["value"] *= LOWERED

    _edit(copy.bundle / GATES, change)
    return GATES


def loosen_limit(copy: Copy) -> str:
    """Raise a limit that a gate has judged by."""

    def change(gates: Sequence[Mapping[str, Any]]) -> None:
        named = [(gate["limits"], name) for gate in gates for name in sorted(gate["limits"]) if name.startswith("max_")]
        highest = [(limits, name) for limits, name in named if _is_number(limits[name])]
        limits, name = _choose(copy, highest, "no gate has an upper limit")
        limits[name] *= LOOSENED

    _edit(copy.bundle / GATES, change)
    return GATES


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value != 0


def _choose(copy: Copy, found: Sequence[Any], lacking: str) -> Any:
    if not found:
        raise NotApplicableError(f"the release has nothing to alter: {lacking}")
    return copy.chance.choice(found)


def edit_row(copy: Copy) -> str:
    """Halve the tuned model's nats of a held-out row."""
    path = copy.bundle / "scores" / "tuned.jsonl"
    rows = [json.loads(line) for line in path.read_bytes().splitlines()] if path.is_file() else []
    _lower(_choose(copy, [row for row in rows if _is_number(row["nats"])], "no score of a row"))
    write_atomically(path, b"".join(canonical(row) + b"\n" for row in rows))
    return "scores/tuned.jsonl"


def recompute_manifest(copy: Copy) -> str:
    """Loosen a limit and say so in the manifest."""
    list_again(copy.bundle, loosen_limit(copy))
    return MANIFEST


def list_again(bundle: Path, name: str) -> None:
    """Have the manifest say the digest that a file has now."""
    digest = digest_file(bundle / name)
    _edit(bundle / MANIFEST, lambda manifest: manifest["files"].update({name: digest}))


def swap_adapter(copy: Copy) -> str:
    """Put the weights of the older release into the newer one."""
    path, older = weights(copy.bundle), weights(copy.older_bundle)
    write_atomically(path, older.read_bytes())
    return path.relative_to(copy.bundle).as_posix()


def swap_bundle(copy: Copy) -> str:
    """Put the older bundle in the place of the newer."""
    shutil.rmtree(copy.bundle)
    copy_linked(str(copy.older_bundle), copy.bundle)
    return MANIFEST


def delete_signature(copy: Copy) -> str:
    """Take the signature out."""
    (copy.bundle / SIGNATURE).unlink()
    return SIGNATURE


def add_code(copy: Copy) -> str:
    """Put a Python file beside the weights."""
    write_atomically(copy.bundle / "model" / CODE, "import os\n")
    return f"model/{CODE}"


def edit_event(copy: Copy) -> str:
    """Have the chain say another verdict of the newer attempt."""
    write_links(copy, other_verdict(copy, read_links(copy)))
    return CHAIN


def read_links(copy: Copy) -> list[Link]:
    """Read the chain as it lies there, without verifying it."""
    return [Link(**json.loads(line)) for line in copy.chain.read_bytes().splitlines()]


def write_links(copy: Copy, links: Sequence[Link]) -> None:
    """Put these events in the place of the chain, as they are; its head stays."""
    write_atomically(copy.chain, b"".join(link.line for link in links))


def other_verdict(copy: Copy, links: Sequence[Link]) -> list[Link]:
    """Say another verdict in one event of the newer attempt."""
    mine = [at for at, link in enumerate(links) if link.event == "verdict" and link.fields["attempt"] == copy.attempt]
    at = _choose(copy, mine, "the chain has no verdict of the attempt")
    status = "fail" if links[at].fields["status"] == "pass" else "pass"
    return [*links[:at], replace(links[at], fields={**links[at].fields, "status": status}), *links[at + 1 :]]


def link_anew(links: Sequence[Link]) -> tuple[list[Link], dict[str, object]]:
    """Number and link events anew; return them with the head that belongs to them."""
    found: list[Link] = []
    previous, size = START, 0
    for number, link in enumerate(links, 1):
        found.append(replace(link, number=number, previous=previous))
        previous, size = digest_bytes(found[-1].line), size + len(found[-1].line)
    return found, {"hash": previous, "length": len(found), "size": size}


def _chain_of(change: Callable[[list[Link], int], list[Link]]) -> Alter:
    """An alteration of the chain somewhere in its middle."""

    def alter_chain(copy: Copy) -> str:
        links = read_links(copy)
        inner = range(1, len(links) - 2) if len(links) >= LEAST_EVENTS else ()
        write_links(copy, change(links, _choose(copy, inner, "the chain has too few events")))
        return CHAIN

    return alter_chain


def put_older_chain(copy: Copy) -> str:
    """Put the chain back that was there before the newer release, with its head."""
    shutil.rmtree(copy.home.chain)
    copy_linked(str(copy.before), copy.home.chain)
    return CHAIN


def delete_chain(copy: Copy) -> str:
    """Take the chain and its head away."""
    shutil.rmtree(copy.home.chain)
    return CHAIN


def edit_journal(copy: Copy) -> str:
    """Lower a perplexity in the journal of the newer attempt, after its end."""
    path = copy.home.journal(copy.attempt).path
    entries = [json.loads(line) for line in path.read_bytes().splitlines()]
    _lower(_choose(copy, [each for each in entries if each["event"] == "rung"], "no perplexity")["value"]["nll"])
    write_atomically(path, "".join(f"{json.dumps(entry)}\n" for entry in entries))
    return path.name


def forget_promotion(copy: Copy) -> str:
    """Take the last promotion out of the log."""
    path, lines = _log(copy)
    last = lines[-1]["id"]
    write_atomically(path, "".join(f"{json.dumps(line)}\n" for line in lines if line["id"] != last))
    return path.name


def _log(copy: Copy) -> tuple[Path, list[dict[str, Any]]]:
    path = copy.home.promotions(copy.model).path
    return path, [json.loads(line) for line in path.read_bytes().splitlines()]


def invent_promotion(copy: Copy) -> str:
    """Add to the log that the older release was promoted again."""
    path, lines = _log(copy)
    first = next(line for line in lines if line["happened"] == "prepared")
    version = next(line for line in lines if line["happened"] == "registered")["value"]
    intent = {**first["value"], "id": "f" * 16, "kind": "promotion", "version": version}
    told = {"prepared": intent, "flipped": version, "sealed": {"outcome": "champion", "reason": ""}}
    lines += [{"at": lines[-1]["at"], "id": intent["id"], "happened": name, "value": v} for name, v in told.items()]
    write_atomically(path, "".join(f"{json.dumps(line)}\n" for line in lines))
    return CHAIN


def delete_approval(copy: Copy) -> str:
    """Take the approval of the newer release away."""
    path = _approval(copy)
    path.unlink()
    return f"approvals/{copy.model}"


def prolong_approval(copy: Copy) -> str:
    """Have the approval of the newer release end later."""
    path = _approval(copy)
    approval, signature = read_file(path.read_text(encoding="utf-8"))
    value = {"approval": {**asdict(approval), "expires": LATER}, "signature": signature}
    write_atomically(path, canonical(value))
    return f"approvals/{copy.model}"


def _approval(copy: Copy) -> Path:
    (path,) = (copy.home.approvals / copy.model / copy.newer).glob("*.json")
    return path


ALTERATIONS: Mapping[str, Alter] = {
    "bit-flipped": flip_bit,
    "metric-edited": edit_metric,
    "verdict-edited": edit_verdict,
    "finding-edited": edit_finding,
    "limit-loosened": loosen_limit,
    "row-score-edited": edit_row,
    "manifest-recomputed": recompute_manifest,
    "adapter-swapped": swap_adapter,
    "bundle-swapped": swap_bundle,
    "signature-deleted": delete_signature,
    "code-added": add_code,
    "event-edited": edit_event,
    "event-dropped": _chain_of(lambda links, at: [*links[:at], *links[at + 1 :]]),
    "events-swapped": _chain_of(lambda links, at: [*links[:at], links[at + 1], links[at], *links[at + 2 :]]),
    "chain-cut-short": _chain_of(lambda links, _: links[:-1]),
    "older-chain": put_older_chain,
    "chain-deleted": delete_chain,
    "journal-edited": edit_journal,
    "champion-edited": forget_promotion,
    "champion-invented": invent_promotion,
    "approval-deleted": delete_approval,
    "approval-prolonged": prolong_approval,
}
