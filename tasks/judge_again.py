"""Judge a sealed release again: every gate by what its bundle holds, every interval from sums per row.

It starts no orchestrator and loads no model. What is derived from rows must be what the gate was given, to the last
digit where processor and numpy are those of the release; elsewhere numbers of a comparison may differ by `ROUNDING`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import date, timedelta

from checks import gates, waivers
from loragate.benchmark import Sat, compared
from loragate.candidate import digest_of
from loragate.challenge import CHAMPION
from loragate.claims import Claim, claimed, difference
from loragate.comparison import ComparePaired, Comparison
from loragate.environment import describe
from loragate.errors import VerificationError
from loragate.evidence import SCORES
from loragate.grounds import GgufGrounds, Grounds, MergeGrounds, QualityGrounds, TrainingGrounds, measured_steps
from loragate.ladder import ADAPTER, F16, gguf_file, made_from
from loragate.perplexity import Nll, total
from loragate.record import EXPECTATIONS
from loragate.refs import digest_json, digest_manifest
from loragate.sealed_evidence import SealedEvidence, SealedGate
from loragate.verdicts import Verdict
from loragate.wear import spent
from tasks.waivers import signed

ROUNDING = 1e-9
"""Share by which numbers of a comparison may differ where another processor or numpy adds in another order: sums of
10,000 doubles are good to about 1e-12 (Higham 2002, section 4.2), and bounds are exponentials of their quotients."""
FIRST = ("passed", "value", "limit", "low", "high")
"""Of a finding that is another now, what is told first."""
RECORDED = "judged again from recorded values"


def judge_again(sealed: SealedEvidence) -> list[Claim]:
    """Hold everything that a verified bundle says of its gates against what follows from its own values."""
    found = [_settings(sealed), *_sums(sealed)]
    for gate in sealed.gates:
        derived = _derived(sealed, sealed.grounds[gate.gate])
        if derived is not None:
            found.append(derived)
        found.append(_gate(sealed, gate))
    return [*found, _shipped(sealed), _road(sealed)]


def _settings(sealed: SealedEvidence) -> Claim:
    """The limits are those that the manifest names, and those that each gate says it had."""
    digests = sealed.said("digests")
    wrong = difference(digests["settings"], digest_json(sealed.settings), "digest of config.json")
    limits = sealed.settings.get("gates")
    assert isinstance(limits, dict)
    for gate in sealed.gates:
        section = limits.get(gate.gate.partition("_")[0], {})
        wrong = wrong or difference(gate.limits, section, f"{gate.gate} gate: limits (recorded, and in config.json)")
    return claimed("settings and limits", wrong, "config.json has the manifest's digest and each gate's limits")


def _shipped(sealed: SealedEvidence) -> Claim:
    """What each gate had before it is what ships."""
    known, files = {**sealed.said("inputs"), **sealed.said("artifacts")}, sealed.said("files")
    wrong = ""
    for gate in sealed.gates:
        expected = {name: known.get(name, files.get(f"{name}.jsonl")) for name in gate.inputs}
        wrong = wrong or difference(dict(gate.inputs), expected, f"{gate.gate} gate: inputs")
    adapter = {name.partition("/")[2]: digest for name, digest in files.items() if name.startswith("adapter/")}
    if "adapter" in known:
        wrong = wrong or difference(known["adapter"], digest_manifest(adapter), "digest of adapter/")
    for name, digest in known.items():
        if name.startswith("gguf_"):
            file = f"gguf/{gguf_file(name.removeprefix('gguf_'))}"
            wrong = wrong or difference(digest, files.get(file), f"digest of {file}")
    return claimed("the gates judged what ships", wrong, "recomputed from the digests of the files in the bundle")


def _sums(sealed: SealedEvidence) -> Iterator[Claim]:
    """Every rung is the sum of its rows."""
    for name in dict.fromkeys((*sealed.rungs, *sealed.scores)):
        rung, rows = sealed.rungs.get(name), sealed.scores.get(name)
        if rung is None or rows is None:
            wrong = f"{SCORES}/{name}.jsonl and the rung {name} in record.json: one of the two is missing"
            yield Claim(f"perplexity {name}", "no", wrong)
            continue
        wrong = difference(asdict(rung.nll), asdict(total(rows)), f"{SCORES}/{name}.jsonl: sum")
        yield claimed(f"perplexity {name}", wrong, f"{rung.nll.perplexity:.4g}, recomputed from {len(rows):,} rows")


def _gate(sealed: SealedEvidence, gate: SealedGate) -> Claim:
    """The verdict and every finding are what the gate's check makes of what it was given."""
    verdict = gates.judge(sealed.grounds[gate.gate], sealed.config)
    claim = f"{gate.gate} gate: {gate.status}, {len(gate.findings)} findings"
    by_rows = isinstance(sealed.grounds[gate.gate], QualityGrounds | MergeGrounds | GgufGrounds)
    how = "judged again, intervals from rows, the rest from recorded values" if by_rows else RECORDED
    if gate.waivers:
        verdict = _waived(sealed, gate, verdict)
        how = f"{how}; waivers by their signatures and this candidate's digest"
    return claimed(claim, _unlike(gate, verdict), how)


def _unlike(gate: SealedGate, verdict: Verdict) -> str:
    """Say which finding is not the recorded one first, with both values; empty where none is."""
    recorded = {str(finding["rule"]): finding for finding in gate.findings}
    found = {finding.rule: asdict(finding) for finding in verdict.findings}
    for rule in dict.fromkeys((*recorded, *found)):
        old, new = recorded.get(rule, {}), found.get(rule, {})
        names = dict.fromkeys((*FIRST, *old, *new))
        if wrong := difference({name: old.get(name) for name in names}, {name: new.get(name) for name in names}):
            return f"{gate.gate}/{rule}: {wrong}"
    if len(gate.findings) != len(verdict.findings):
        return f"{gate.gate}: recorded {len(gate.findings)} findings, found {len(verdict.findings)}"
    return difference(gate.status, verdict.status, f"{gate.gate}: status")


def _waived(sealed: SealedEvidence, gate: SealedGate, verdict: Verdict) -> Verdict:
    """The verdict with the waivers that count: signed by a signer of the run file, for exactly this candidate.

    When the gate judged is not on record; a day is taken, from the attempt's first on, on which all of them count, if
    there is one.
    """
    settings = sealed.config.gates.waivers
    had = gate.inputs.items()
    digests = {name: digest for name, digest in had if name != EXPECTATIONS and not name.startswith(f"{SCORES}/")}
    candidate = digest_of(digests, sealed.config)
    ends = [date.fromisoformat(file.waiver.until) for file in gate.waivers if file.waiver is not None]
    started = date.fromisoformat(str(sealed.manifest["started"])[:10])
    today = max(started, *(end - timedelta(days=settings.max_days) for end in ends))
    case = waivers.Case(sealed.config.model, candidate, today, settings.max_days, tuple(settings.signers))
    files = [signed(file, settings.signers) for file in gate.waivers]
    return waivers.judge(verdict, files, case)[0]


def _road(sealed: SealedEvidence) -> Claim:
    """Every gate of the run file has judged, and none refuses."""
    wanted = ["card"] if sealed.config.card.required else []
    wanted += ["data", "plan", "preflight", "training", "quality", "merge"]
    files = (*sealed.config.export.gguf, *([ADAPTER] if sealed.config.export.gguf_adapter else []))
    wanted += [f"gguf_{name}" for name in files]
    statuses = {gate.gate: gate.status for gate in sealed.gates}
    wrong = next((f"{gate}: the gate has not judged" for gate in wanted if gate not in statuses), "")
    if not wrong and (refused := [gate for gate, status in statuses.items() if Verdict(gate, status, ()).refuses]):  # type: ignore[arg-type]
        wrong = f"{refused[0]}: recorded as {statuses[refused[0]]}, which refuses a release"
    return claimed(f"all {len(wanted)} gates judged, none refuses", wrong, "read off gates.json and config.json")


def _derived(sealed: SealedEvidence, given: Grounds) -> Claim | None:
    """What a gate was given follows from sums per row; None for gates that none of it does."""
    rows = 0
    if isinstance(given, QualityGrounds):
        asked, wrong = list(_quality(sealed, given)), _beside(sealed, given)
    elif isinstance(given, MergeGrounds | GgufGrounds):
        asked, wrong = [_hop(sealed, given)], _size(sealed, given) if isinstance(given, GgufGrounds) else ""
    else:
        return None
    exact = True
    for what, recorded, request in asked:
        rows += len(request.after)
        found, same = _compared(sealed, recorded, request)
        exact = exact and same
        wrong = wrong or difference(asdict(recorded), asdict(found), f"{what}")
    wrong = f"{given.gate} gate: {wrong}" if wrong else ""
    digits = "to the last digit" if exact else f"within a share of {ROUNDING}, since processor or numpy are others"
    how = f"recomputed from {rows:,} rows with the same draws, {digits}"
    return claimed(f"{given.gate} gate: intervals follow from rows", wrong, how)


Asked = tuple[str, Comparison, ComparePaired]


def _quality(sealed: SealedEvidence, given: QualityGrounds) -> Iterator[Asked]:
    limits, challenge = sealed.config.gates.quality, given.challenge
    alpha = challenge.wear.alpha if challenge.wear else limits.alpha
    tuned = _rows(sealed, "tuned")
    yield (
        "comparison tuned/baseline",
        given.compared,
        _ask(sealed, _rows(sealed, "baseline"), tuned, (limits.max_perplexity_ratio, alpha)),
    )
    general = _rows(sealed, "general_baseline"), _rows(sealed, "general_tuned")
    yield "comparison on general rows", given.general, _ask(sealed, *general, (limits.max_general_ratio, limits.alpha))
    if challenge.against.compared is not None:
        about = limits.max_champion_ratio, alpha
        yield (
            "comparison tuned/champion",
            challenge.against.compared,
            _ask(sealed, _rows(sealed, CHAMPION), tuned, about),
        )
    about = limits.max_slice_ratio, limits.alpha
    for each in challenge.sliced:
        numbers = sealed.slices.get(each.name, ())
        sides = _rows(sealed, each.against), tuned
        before, after = (tuple(side[n] for n in numbers if n < len(side)) for side in sides)
        yield f"comparison {each.rule}", each.compared, _ask(sealed, before, after, about)


def _beside(sealed: SealedEvidence, given: QualityGrounds) -> str:
    """Hold what stands beside the comparisons against what it follows from: wear, slices, tasks, the curve."""
    limits, challenge = sealed.config.gates.quality, given.challenge
    training = sealed.grounds.get("training")
    wrong = ""
    if challenge.wear is not None:
        wrong = difference(challenge.wear.alpha, spent(limits.alpha, challenge.wear.number), "heldout_wear: alpha")
    wrong = wrong or difference(challenge.slices, len(sealed.slices), "number of slices")
    if challenge.slices <= limits.max_slices:
        sides = ["baseline", *([CHAMPION] if challenge.against.compared is not None else [])]
        expected = [[name, side] for name in sealed.slices for side in sides]
        judged = [[each.name, each.against] for each in challenge.sliced]
        wrong = wrong or difference(judged, expected, "slices judged")
    if isinstance(training, TrainingGrounds):
        own = measured_steps(training.trained)
        wrong = wrong or difference(asdict(given.trained), asdict(own), "what training measured")
    tasks = {name: asdict(compared(each.base, each.tuned)) for name, each in sealed.sat.items()}
    recorded = {name: asdict(each) for name, each in given.answered.benchmarks.items()}
    wrong = wrong or difference(recorded, tasks, "tasks") or _means(sealed.sat)
    return wrong or difference(len(limits.tasks), len(tasks), "number of tasks (asked for, and scored)")


def _means(sat: Mapping[str, Sat]) -> str:
    """Values of tasks that are means are those of their documents' scores."""
    for name, each in sat.items():
        for side, score in (("base", each.base), ("tuned", each.tuned)):
            mean = math.fsum(score.scores) / len(score.scores) if score.scores else score.value
            if not math.isclose(mean, score.value, rel_tol=ROUNDING, abs_tol=ROUNDING) and not math.isnan(score.value):
                return difference(score.value, mean, f"task/{name}: value of the {side} model")
    return ""


def _hop(sealed: SealedEvidence, given: MergeGrounds | GgufGrounds) -> Asked:
    """The step down the ladder that a gate judges."""
    limits = sealed.config.gates
    if isinstance(given, MergeGrounds):
        above, below, limit = "tuned", "merged", limits.merge.max_perplexity_ratio
    else:
        source = made_from(given.name, sealed.config.export.gguf)
        above = f"gguf_{F16}" if source == F16 else source
        below, limit = given.gate, getattr(limits.gguf, f"max_perplexity_ratio_{given.name}")
    pair = _rows(sealed, above), _rows(sealed, below)
    return f"comparison {below}/{above}", given.hop.compared, _ask(sealed, *pair, (limit, limits.quality.alpha))


def _size(sealed: SealedEvidence, given: GgufGrounds) -> str:
    file = sealed.folder / "gguf" / gguf_file(given.name)
    return difference(given.evidence.size_bytes, file.stat().st_size if file.is_file() else None, "size in bytes")


def _rows(sealed: SealedEvidence, name: str) -> tuple[Nll, ...]:
    if name not in sealed.scores:
        raise VerificationError(f"{SCORES}/{name}.jsonl: missing; a gate has judged by it")
    return sealed.scores[name]


def _ask(
    sealed: SealedEvidence, before: Sequence[Nll], after: Sequence[Nll], about: tuple[float, float]
) -> ComparePaired:
    draws, seed = sealed.config.gates.quality.draws, sealed.config.train.seed
    return ComparePaired(tuple(before), tuple(after), *about, draws, seed)


def _compared(sealed: SealedEvidence, recorded: Comparison, request: ComparePaired) -> tuple[Comparison, bool]:
    """Compare anew; where rounding may differ, return the recorded numbers if the new ones are as good as they."""
    from loragate.child import ignore
    from loragate.engines.paired import compare

    found = compare(request, ignore)
    if not difference(asdict(recorded), asdict(found)) or _as_then(sealed.environment):
        return found, True
    pairs = zip(asdict(recorded).items(), asdict(found).values(), strict=True)
    near = all(
        math.isclose(one, other, rel_tol=ROUNDING) if isinstance(one, float) and math.isfinite(one) else one == other
        for (_, one), other in pairs
    )
    return (recorded if near else found), not near


def _as_then(then: Mapping[str, str]) -> bool:
    """Whether sums are rounded here as they were there."""
    now = describe()
    return all(then.get(name) == now.get(name) for name in ("processor", "package/numpy"))
