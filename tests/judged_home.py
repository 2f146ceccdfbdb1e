"""A home with one sealed release whose every gate has really judged, made in a second from stand-ins for the evidence.

One rule of the preflight gate is broken and waived; there are two slices, a task and a comparison that rests on rows.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from commands import write_run
from sealed_home import SealedHome, safetensors
from signers import new_key

from checks import data, gates
from loragate.answered import Answered
from loragate.artifact_work import GgufEvidence, MergeEvidence
from loragate.attempt import Attempt
from loragate.benchmark import Sat, Score, compared
from loragate.bundle import KEY, MANIFEST, SIGNATURE
from loragate.candidate import candidate_digest
from loragate.challenge import Against, Challenge, Sliced
from loragate.child import ignore
from loragate.comparison import ComparePaired, Comparison
from loragate.config import load
from loragate.engines import seals, signing
from loragate.engines.paired import compare
from loragate.engines.sealing import seal
from loragate.grounds import (
    DataGrounds,
    Grounds,
    MergeGrounds,
    PlanGrounds,
    PreflightGrounds,
    QualityGrounds,
    TrainingGrounds,
    measured_steps,
    of_file,
)
from loragate.home import find_home
from loragate.ladder import Divergence, Hop, Rung
from loragate.perplexity import Nll, total
from loragate.plan import DeviceFacts, Memory, ModelFacts, Plan, RowFacts
from loragate.record import Closed, CurvePoint, Merge, Opened, now
from loragate.refs import canonical, digest_file, digest_text, reference
from loragate.row_work import CheckedFacts, RuleResult
from loragate.store import Recipe
from loragate.waivers import NAMESPACE, Waiver
from loragate.wear import Look, Wear, spent
from loragate.work import AdapterEvidence, Answer, Base, PreflightEvidence, Trained
from tasks.release_keys import open_chain
from tasks.seal_release import seal_release
from tasks.waivers import with_waivers

ROWS = 24
NEAR, FAR = Divergence(1e-6, 1.0, 200), Divergence(0.5, 0.6, 200)
SLICES = {"early": tuple(range(12)), "late": tuple(range(12, ROWS))}
FACTS = ("place", "tokens", "supervised")


def scores() -> dict[str, tuple[Nll, ...]]:
    """Sums per row of every rung; the later ones are hardly worse than those that they are made from."""
    base = tuple(Nll(3.0 * (5 + n % 7) + 0.1 * n, 5 + n % 7) for n in range(ROWS))
    tuned = tuple(Nll(row.nats * (0.6 + 0.01 * (n % 5)), row.tokens) for n, row in enumerate(base))
    quantised = tuple(Nll(row.nats * (1 + 1e-4 * (n % 3)), row.tokens) for n, row in enumerate(tuned))
    rungs = {"baseline": base, "tuned": tuned, "champion": base, "merged": tuned, "gguf_q8_0": quantised}
    return rungs | {"general_baseline": base, "general_tuned": tuple(replace(r, nats=r.nats * 0.99) for r in base)}


def paired(attempt: Attempt, before: tuple[Nll, ...], after: tuple[Nll, ...], limit: float, alpha: float) -> Comparison:
    draws = attempt.config.gates.quality.draws
    return compare(ComparePaired(before, after, limit, alpha, draws, attempt.config.train.seed), ignore)


def early_grounds(attempt: Attempt) -> list[Grounds]:
    names = (*data.RULES, *(f"{side}.{fact}_known" for side in ("train", "heldout") for fact in FACTS))
    results = tuple(RuleResult(name, True, ROWS, 0, (), "") for name in names)
    memory = Memory(500_000_000, 100_000_000, 500_000_000, 100_000_000, 200_000_000)
    model = ModelFacts(10**8, 512, 4, ("q_proj",), 16, 192, 2048, "float32", "", memory, 1024)
    rows = RowFacts(rows=ROWS, tokens=6612, supervised=2404, longest=90, max_tokens=96)
    plan = Plan(rows, model, DeviceFacts("CPU, 2 cores", 25_300_000_000, "float32"), steps=12, epochs=2)
    tried = PreflightEvidence(4, True, 0.0, False, 1.0, 1e-6, 0, "", 8, (), 100, 100, "float32")  # 1.0 is waived
    last = total(scores()["tuned"]).mean
    curve = (CurvePoint(1, 2.0, 2e-4, 1.0), CurvePoint(2, 1.5, 1e-4, 0.8, heldout_loss=last))
    trained = Trained(curve, 2, 512, 512, 4, (), "float32", 0)
    settings = {"r": 16, "lora_alpha": 32, "use_rslora": False, "use_dora": False}
    adapter = AdapterEvidence(512, (), (), settings | {"rank_pattern": {}, "alpha_pattern": {}})
    checked = CheckedFacts(results, {"train": ROWS, "heldout": ROWS}, {})
    return [DataGrounds(checked), PlanGrounds(plan), PreflightGrounds(tried), TrainingGrounds(trained, adapter)]


def sat() -> Sat:
    documents = tuple(float(n % 2) for n in range(400))
    score = Score("acc,none", 0.5, 0.025, 400, True, "asked", documents)
    return Sat(score, replace(score, value=0.5025, scores=(1.0, *documents[1:])))


def late_grounds(attempt: Attempt, trained: Trained, gguf: Path) -> list[Grounds]:
    limits, rungs = attempt.config.gates, scores()
    quality, alpha = limits.quality, spent(limits.quality.alpha, 1.0)
    base, tuned = rungs["baseline"], rungs["tuned"]
    answers = (Answer("It is Ann.", True),) * 2
    asked = Answered(answers, ("It is Ann.",) * 2, ("", ""), (), {"begins": compared(sat().base, sat().tuned)})

    def sliced(name: str, side: Any) -> Sliced:
        before, after = (tuple(rows[n] for n in SLICES[name]) for rows in (rungs[side], tuned))
        return Sliced(name, side, paired(attempt, before, after, quality.max_slice_ratio, quality.alpha))

    champion = paired(attempt, rungs["champion"], tuned, quality.max_champion_ratio, alpha)
    challenge = Challenge(
        Against("tiny@0", compared=champion),
        len(SLICES),
        tuple(sliced(name, side) for name in SLICES for side in ("baseline", "champion")),
        Wear(1.0, 0, "", alpha),
    )
    general = rungs["general_baseline"], rungs["general_tuned"]
    judged = QualityGrounds(
        paired(attempt, base, tuned, quality.max_perplexity_ratio, alpha),
        paired(attempt, *general, quality.max_general_ratio, quality.alpha),
        asked,
        measured_steps(trained),
        challenge,
    )
    merged = paired(attempt, tuned, rungs["merged"], limits.merge.max_perplexity_ratio, quality.alpha)
    quantised = paired(
        attempt, rungs["merged"], rungs["gguf_q8_0"], limits.gguf.max_perplexity_ratio_q8_0, quality.alpha
    )
    same = MergeEvidence((), (), (), True, (), "float32")
    model = Base("/home/somebody/model", "", False, (2,), 2, False, "template", 128, 10**8)
    evidence = GgufEvidence(
        *(rungs["gguf_q8_0"], 12, (), 4, (), "template", 0, 128, 2, (2,), (), False, 0, "q8_0", answers, {}),
        *(gguf.stat().st_size, 0.1, 50.0),
    )
    return [
        judged,
        MergeGrounds(same, Hop("tuned", "merged", merged, NEAR), FAR, Merge("original", "float32", "streamed")),
        of_file("q8_0", evidence, Hop("merged", "gguf_q8_0", quantised, NEAR), model),
    ]


def judge(attempt: Attempt, grounds: Grounds) -> None:
    """What the gates' tasks do, but for Prefect's table."""
    attempt.note("grounds", grounds.gate, grounds)
    attempt.settle(with_waivers(attempt, gates.judge(grounds, attempt.config)))


def waive(attempt: Attempt, grounds: Grounds, key: signing.PrivateKey) -> None:
    """Sign a waiver of what a gate is going to find, and judge."""
    (finding,) = (each for each in gates.judge(grounds, attempt.config).findings if each.refuses)
    candidate = candidate_digest(attempt.journal.read(), attempt.config)
    until = (datetime.now(UTC).date() + timedelta(days=30)).isoformat()
    rule = f"{grounds.gate}/{finding.rule}"
    waiver = Waiver("tiny", rule, candidate, finding.detail, "Ada", "a pilot", until)
    place = attempt.run.path.parent / "waivers"
    place.mkdir()
    (place / "one.json").write_text(waiver.text, encoding="utf-8")
    (place / "one.json.sig").write_text(signing.sign(key, waiver.text.encode(), NAMESPACE), encoding="ascii")
    judge(attempt, grounds)


def make_judged_home(folder: Path) -> SealedHome:
    """Judge and seal a release in a home of its own."""
    key = new_key()
    quality = {"draws": 1000, "num_samples": 2, "sample_tokens": 8, "tasks": [{"file": "begins.yaml"}]}
    limits = {"quality": quality, "waivers": {"signers": {"Ada": f"{key.public} ada@laptop"}}}
    run = load(write_run(folder, Path("model"), gates=limits))
    attempt = Attempt(run, find_home(None, run))
    attempt.chain = open_chain(run, attempt.home)
    settings = json.loads(run.config.model_dump_json())
    attempt.note("opened", "", Opened(attempt.id, "tiny", now(), settings, {"processor": "one"}, str(run.path)))
    attempt.note("input", "base_model", digest_text("base"))
    attempt.note("input", "data", digest_text("data"))
    for grounds in early_grounds(attempt):
        waive(attempt, grounds, key) if grounds.gate == "preflight" else judge(attempt, grounds)
    assert isinstance(grounds, TrainingGrounds)
    files = {
        "adapter/adapter_model.safetensors": safetensors(b"adapter"),
        "merged/model.safetensors": safetensors(b"weights"),
        "merged/config.json": b'{"model_type": "tiny"}',
        "gguf/model-q8_0.gguf": b"GGUF and more",
    }
    for name, content in files.items():
        (folder / "made" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "made" / name).write_bytes(content)
    attempt.note("artifact", "adapter", reference(folder / "made" / "adapter"))
    attempt.note("look", "heldout", Look(digest_text("weights"), ROWS, ("0",)))
    attempt.note("slices", "", SLICES)
    attempt.note("sat", "begins", sat())
    for name, rows in scores().items():
        value = {"rows": [asdict(row) for row in rows]}
        kept = attempt.home.store.build(Recipe("score", {"rung": name}), lambda _, value=value: value)
        attempt.note("rung", name, Rung(name, total(rows)))
        attempt.note("scores", name, kept.ref)
    gguf = folder / "made" / "gguf" / "model-q8_0.gguf"
    quality_, merge_, gguf_ = late_grounds(attempt, grounds.trained, gguf)
    judge(attempt, quality_)
    attempt.note("artifact", "merged", reference(folder / "made" / "merged"))
    judge(attempt, merge_)
    attempt.note("artifact", "gguf_q8_0", reference(gguf))
    judge(attempt, gguf_)
    digest = digest_text("release")
    seal_release(attempt, digest)
    attempt.note("closed", "", Closed("released", "Released.", now(), "1", digest))
    return SealedHome(attempt.home.root, (digest,))


def alter(folder: Path, name: str, change: Callable[[Any], object]) -> None:
    """Alter the JSON, or the lines of JSON, in a file of a bundle, and name its new digest in the manifest."""
    path, lines = folder / name, name.endswith(".jsonl")
    text = path.read_text(encoding="utf-8")
    value = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    change(value)
    content = b"".join(canonical(line) + b"\n" for line in value) if lines else canonical(value)
    path.unlink()  # it may be a link
    path.write_bytes(content)
    said = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    said["files"][name] = digest_file(path)
    (folder / MANIFEST).write_bytes(canonical(said))


def seal_anew(folder: Path) -> None:
    """Sign an altered bundle with a key that nobody knows, so that its signature is good."""
    thief = seals.new_key()
    (folder / KEY).write_text(thief.public, encoding="ascii")
    said: Mapping[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    said["files"][KEY] = digest_file(folder / KEY)
    (folder / MANIFEST).write_bytes(canonical(said))
    (folder / SIGNATURE).unlink()
    seal(folder, thief)
