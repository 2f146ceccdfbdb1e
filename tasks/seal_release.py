"""Seal a release: put what ships and the evidence for it into one signed folder, and the release into the chain."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import loragate
from loragate import bundle
from loragate.attempt import Attempt
from loragate.chain import Head
from loragate.environment import program_digest
from loragate.errors import VerificationError
from loragate.evidence import Origins, by_name, evidence, judged, manifest, provenance
from loragate.grounds import grounds_files
from loragate.narration import tell
from loragate.perplexity import Nll
from loragate.record import AttemptRecord, Closed, now, read_as
from loragate.refs import Ref, canonical, digest_file, digest_manifest
from loragate.refs import manifest as files_below
from loragate.store import MARKER, copy_file_linked, write_atomically
from loragate.verification import CHAIN_TAG, MANIFEST_TAG, SIGNATURE_TAG, head_tag
from tasks.attempts import passed
from tasks.release_documents import release_documents
from tasks.release_keys import sealing_key

TEMPLATE = "chat_template.jinja"
WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin")
"""Endings of merged weights: they follow from base and adapter, and only their digest goes along."""
FOLDERS = {"adapter": "adapter", "modelfiles": "gguf"}
"""Where in a bundle the folders of artifacts go; GGUF files are artifacts of their own."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed release.

    Attributes:
        folder: Its bundle.
        files: SHA-256 of each file of it, by name.
        head: Where the chain ended once the release was in it.
    """

    folder: Path
    files: Mapping[str, str]
    head: Head


def seal_release(attempt: Attempt, digest: str) -> Sealed:
    """Write the bundle, or find that an earlier attempt wrote it; see that the chain has it.

    The folder gets its name last: one that has its name is whole.

    Raises:
        VerificationError: A bundle is there and no longer as it was sealed, or an artifact changed since it was judged.
    """
    from loragate.engines import seals

    folder = attempt.home.releases / attempt.config.model / digest
    if not folder.is_dir():
        _write(attempt, digest, folder)
    try:
        checked = bundle.check(folder, seals.unseal)
    except VerificationError as error:
        raise VerificationError(f"{folder}: {error}; move the folder away and release again") from None
    fields = {
        "model": attempt.config.model,
        "release": digest,
        "manifest": checked.digests[bundle.MANIFEST],
        "signature": checked.digests[bundle.SIGNATURE],
    }
    assert attempt.chain is not None
    if not attempt.chain.has("release", fields):
        attempt.chain.append("release", fields)
    tell(f"{'sealed':>12}  {folder}")
    return Sealed(folder, checked.digests, attempt.chain.head())


def seal_tags(sealed: Sealed) -> dict[str, str]:
    """Tags of the MLflow version: what the chain and the bundle must be, told outside of the home."""
    head = sealed.head
    return {
        MANIFEST_TAG: sealed.files[bundle.MANIFEST],
        SIGNATURE_TAG: sealed.files[bundle.SIGNATURE],
        CHAIN_TAG: head_tag(head),
    }


def _write(attempt: Attempt, digest: str, folder: Path) -> None:
    from loragate.engines import sealing, seals

    root = attempt.home.releases / ".unfinished" / attempt.config.model  # ours alone: we hold the model's lock
    shutil.rmtree(root, ignore_errors=True)
    building = root / digest
    building.mkdir(parents=True)
    key, record = sealing_key(attempt.run, attempt.home), attempt.journal.read()
    left_out = _link_artifacts(building, record)
    shipped = files_below(building)
    _require_judged(record, shipped)
    scores = {name: _rows(attempt, ref) for name, ref in record.scores.items()}
    statement = canonical(provenance(record, attempt.config, _shipping(shipped), now()))
    texts = evidence(record, attempt.config, judged(attempt.journal.events()), scores)
    texts |= grounds_files(attempt.journal.events())
    texts |= release_documents(attempt, record, digest, _shipping(shipped))
    texts |= {
        bundle.KEY: key.public.encode(),
        "provenance.intoto.jsonl": seals.sign(key, statement, seals.STATEMENT).encode() + b"\n",
        "report.html": _report(record, digest),
    }
    for name, content in texts.items():
        write_atomically(building / name, content)
    files = shipped | {name: digest_file(building / name) for name in texts}
    assert attempt.chain is not None
    facts = manifest(
        record,
        attempt.config,
        release=digest,
        origins=_origins(shipped, left_out),
        head=attempt.chain.head(),
        files=dict(sorted(files.items())),
    )
    write_atomically(building / bundle.MANIFEST, canonical(facts))
    bundle.list_files(building)
    sealing.seal(building, key)
    folder.parent.mkdir(parents=True, exist_ok=True)
    building.rename(folder)
    shutil.rmtree(root)


def _link_artifacts(building: Path, record: AttemptRecord) -> dict[str, str]:
    """Link what ships, and what lies beside the merged weights; return what of that no bundle may hold."""
    left_out: dict[str, str] = {}
    for name, ref in record.artifacts.items():
        source = Path(ref.path)
        if name.startswith("gguf_"):
            _link(source, building / "gguf" / source.name)
        elif name in FOLDERS:
            for each in files_below(source, without=frozenset({MARKER})):
                _link(source / each, building / FOLDERS[name] / each)
        elif name == "merged":
            beside = sorted(path for path in source.iterdir() if path.is_file() and not path.name.endswith(WEIGHTS))
            for path in (path for path in beside if path.name != MARKER):
                if bundle.why_not_named(path.name) or bundle.why_not_content(path.name, path):
                    left_out[path.name] = digest_file(path)
                else:
                    _link(path, building / "model" / path.name)
    return left_out


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    copy_file_linked(str(source.resolve()), str(target))


def _require_judged(record: AttemptRecord, shipped: Mapping[str, str]) -> None:
    """Refuse to seal other bytes than the gates have judged."""
    for name, ref in record.artifacts.items():
        if name.startswith("gguf_"):
            found = shipped.get(f"gguf/{Path(ref.path).name}")
        elif name in FOLDERS:
            below = {each.partition("/")[2]: d for each, d in shipped.items() if each.startswith(f"{FOLDERS[name]}/")}
            found = digest_manifest({each: d for each, d in below.items() if not each.endswith(".gguf")})
        else:
            continue
        if found != ref.digest:
            raise VerificationError(f"{ref.path}: altered since the gates judged it; release again")


def _shipping(shipped: Mapping[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in shipped.items() if not name.startswith("model/")}


def _rows(attempt: Attempt, ref: Ref) -> Sequence[Nll]:
    value = attempt.home.store.value(ref)
    assert isinstance(value, dict)
    return read_as(tuple[Nll, ...], value["rows"])


def _report(record: AttemptRecord, digest: str) -> bytes:
    """The report as it stands before MLflow has given the release its version."""
    from loragate.engines import report

    closed = Closed("released", passed(record), now(), None, digest)
    return report.render_report(replace(by_name(record), closed=closed)).encode("utf-8")


def _origins(shipped: Mapping[str, str], left_out: Mapping[str, str]) -> Origins:
    beside = {name.partition("/")[2]: digest for name, digest in shipped.items() if name.startswith("model/")}
    own = {name: digest for name, digest in beside.items() if name not in ("config.json", "generation_config.json")}
    root = Path(loragate.__file__).parent.parent
    lock = root / "requirements.lock"
    return Origins(
        template=beside.get(TEMPLATE, beside.get("tokenizer_config.json", "")),
        tokenizer=digest_manifest(own),
        model_config=beside.get("config.json", ""),
        code=program_digest(),
        lock=digest_file(lock) if lock.is_file() else None,
        left_out=left_out,
    )
