"""A home with sealed releases, made in a second: the road's last step on small stand-ins for what the others make."""

import json
from dataclasses import dataclass
from pathlib import Path

from commands import write_run

from loragate.attempt import Attempt
from loragate.config import load
from loragate.home import find_home
from loragate.ladder import Rung
from loragate.perplexity import Nll
from loragate.record import Closed, now
from loragate.refs import digest_text, reference
from loragate.store import Recipe
from loragate.verdicts import Finding, conclude
from loragate.waivers import Review, WaiverFile
from tasks.attempts import opened
from tasks.release_keys import open_chain
from tasks.seal_release import seal_release

ROWS = (Nll(3.5, 2), Nll(0.1, 1))
HEADER = json.dumps({"__metadata__": {"format": "pt"}}).encode()


@dataclass(frozen=True, slots=True)
class SealedHome:
    """A home and the digests of its releases, of versions 1, 2 and so on."""

    root: Path
    digests: tuple[str, ...]

    def bundle(self, version: int = 1) -> Path:
        """The folder of a release."""
        return self.root / "releases" / "tiny" / self.digests[version - 1]

    @property
    def chain(self) -> Path:
        """The file of the chain."""
        return self.root / "chain" / "chain.jsonl"


def safetensors(content: bytes) -> bytes:
    """A file that begins as safetensors does."""
    return len(HEADER).to_bytes(8, "little") + HEADER + content


def make_home(
    folder: Path, releases: int = 1, honoured: tuple[WaiverFile, ...] = (), **sections: dict[str, object]
) -> SealedHome:
    """Release some times into a home of its own; the plan gate honours waivers, sections replace keys of the run."""
    run = load(write_run(folder, Path("model"), **sections))
    home = find_home(None, run)
    digests = []
    for number in range(1, releases + 1):
        attempt = Attempt(run, home)
        attempt.chain = open_chain(run, home)
        opened(attempt)
        if honoured:
            attempt.note("waivers", "plan", Review("c" * 64, honoured))
        fill(attempt, folder / f"made{number}", number)
        digests.append(digest_text(f"release {number}"))
        seal_release(attempt, digests[-1])
        attempt.note("closed", "", Closed("released", "Released.", now(), str(number), digests[-1]))
    return SealedHome(home.root, tuple(digests))


def fill(attempt: Attempt, folder: Path, number: int) -> None:
    """Put on record, and on disk, what a road would."""
    files = {
        "adapter/adapter_model.safetensors": safetensors(bytes([number]) * 8),
        "adapter/adapter_config.json": b'{"r": 16}',
        "merged/model.safetensors": safetensors(b"weights"),
        "merged/config.json": b'{"model_type": "tiny"}',
        "merged/tokenizer.json": b'{"version": "1.0"}',
        "merged/chat_template.jinja": b"{{ messages }}",
        "merged/modeling_tiny.py": b"import os",
        "gguf/model-q8_0.gguf": b"GGUF" + bytes([number]) * 8,
        "modelfiles/Modelfile-q8_0.txt": b"FROM ./model-q8_0.gguf\n",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    attempt.settle(conclude("plan", [Finding("steps", True, "6 steps", value=6)]))
    for name in ("adapter", "merged", "modelfiles"):
        attempt.note("artifact", name, reference(folder / name))
    attempt.note("artifact", "gguf_q8_0", reference(folder / "gguf" / "model-q8_0.gguf"))
    attempt.note("input", "base_model", digest_text("base"))
    attempt.note("input", "data", digest_text("data"))
    rows = [{"nats": row.nats, "tokens": row.tokens} for row in ROWS]
    value = {"rows": rows, "answers": [], "divergences": {}}
    scored = attempt.home.store.build(Recipe("tuned", {"number": str(number)}), lambda _: value)
    attempt.note("rung", "tuned", Rung("tuned", Nll(3.6, 3)))
    attempt.note("scores", "tuned", scored.ref)
    attempt.settle(conclude("data", [Finding("rows", True, "24 rows", value=float("inf"))]))


def seal_again(run_file: str, attempt: str) -> None:
    """Seal what another process has put on record."""
    run = load(Path(run_file))
    again = Attempt(run, find_home(None, run))
    again.id, again.journal = attempt, again.home.journal(attempt)
    again.chain = open_chain(run, again.home)
    seal_release(again, "d" * 64)
