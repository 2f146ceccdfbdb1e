"""Champion, slices and wear in the quality gate: which release is the champion, and a truth table of what follows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_quality import FOUR_ANSWERS, GENERAL, GOOD, TRAINED, answered, between

from checks import quality
from loragate.challenge import Against, Challenge, Side, Sliced, champions, comparison_name, looks, models_of
from loragate.comparison import Comparison
from loragate.limits import QualityLimits
from loragate.record import AttemptRecord, Closed, Opened, Outcome
from loragate.refs import Ref
from loragate.store import MARKER, Recipe, Store
from loragate.verdicts import Verdict
from loragate.wear import Wear, look_at

FRESH = Wear(number=1, looks=0, since="", alpha=0.025)
LIMITS = QualityLimits()
CLOSE = replace(GOOD, ratio=1.0, low=0.99, high=1.01, limit=1.02, alpha=0.025)
SLICED = replace(GOOD, ratio=1.0, low=0.97, high=1.03, limit=1.05)


def against(**changes: Any) -> Against:
    return Against("helper@3", compared=replace(CLOSE, **changes))


def sliced(name: str = "code", side: Side = "baseline", **changes: Any) -> Sliced:
    return Sliced(name, side, replace(SLICED, **changes))


def judged(challenge: Challenge, **changes: Any) -> Verdict:
    base: Comparison = replace(GOOD, **{"alpha": 0.025} | changes)
    return quality.judge(base, GENERAL, answered(FOUR_ANSWERS), TRAINED, LIMITS, challenge)


@pytest.mark.parametrize(
    ("challenge", "status", "rules"),
    [
        (Challenge(wear=FRESH), "pass", set()),
        (Challenge(against(), wear=FRESH), "pass", set()),
        (Challenge(against(**between(1.0, 1.01, 1.03)), wear=FRESH), "inconclusive", {"champion_ratio"}),
        (Challenge(against(**between(1.03, 1.04, 1.05), p_value=1.0), wear=FRESH), "fail", {"champion_ratio"}),
        (Challenge(against(alpha=0.05), wear=FRESH), "error", {"champion_ratio"}),
        (Challenge(against(limit=1.0), wear=FRESH), "error", {"champion_ratio"}),
        (Challenge(Against("helper@3", problem="its weights are gone"), wear=FRESH), "error", {"champion_ratio"}),
        (Challenge(Against("helper@3"), wear=FRESH), "error", {"champion_ratio"}),
        (Challenge(Against(own="helper@3"), wear=FRESH), "pass", set()),
        (Challenge(slices=1, sliced=(sliced(),), wear=FRESH), "pass", set()),
        (Challenge(slices=1, sliced=(sliced(**between(1.0, 1.03, 1.2)),), wear=FRESH), "warn", {"slice/code"}),
        (Challenge(slices=1, sliced=(sliced(**between(1.06, 1.1, 1.2)),), wear=FRESH), "fail", {"slice/code"}),
        (Challenge(slices=1, sliced=(sliced(**between(1.06, 1.1, 1.2), rows=19),), wear=FRESH), "warn", {"slice/code"}),
        (Challenge(slices=1, sliced=(sliced(p_value=float("nan")),), wear=FRESH), "error", {"slice/code"}),
        (Challenge(slices=51, wear=FRESH), "error", {"slices"}),
        (
            Challenge(wear=replace(FRESH, number=20, looks=19, since="2026-11-01T00:00:00", alpha=0.00012)),
            "error",
            None,
        ),
    ],
)
def test_gate_judges_champion_slices_and_wear(challenge: Challenge, status: str, rules: set[str] | None) -> None:
    verdict = judged(challenge)
    assert verdict.status == status
    if rules is not None:
        assert {finding.rule for finding in verdict.findings if not finding.passed} == rules


def test_worn_rows_say_how_many_looks_and_what_to_do() -> None:
    worn = Wear(number=18, looks=17, since="2026-11-01T00:00:00+00:00", alpha=0.05 / (18 * 19))
    found = judged(Challenge(wear=worn), alpha=worn.alpha, least_alpha=1.6e-4).findings[1]
    assert (found.rule, found.status) == ("heldout_wear", "error")
    for part in ("look number 18", "17 earlier looks", "since 2026-11-01", "0.00032", "new files under data.heldout"):
        assert part in found.detail
    assert judged(Challenge(wear=worn), alpha=worn.alpha, least_alpha=0.7e-4).findings[1].passed


def test_holm_asks_more_of_the_draws_where_a_champion_is_judged_too() -> None:
    worn = Wear(number=18, looks=17, since="2026-11-01", alpha=0.05 / (18 * 19))
    challenge = Challenge(against(alpha=worn.alpha, least_alpha=0.7e-4), wear=worn)
    assert not judged(challenge, alpha=worn.alpha, least_alpha=0.7e-4).findings[1].passed


def test_base_and_champion_share_the_look_s_alpha() -> None:
    challenge = Challenge(against(p_value=0.02), wear=FRESH)
    assert judged(challenge, p_value=0.001).status == "pass"
    assert judged(challenge, p_value=0.02).status == "inconclusive"
    detail = judged(challenge, p_value=0.02).findings[2].detail
    assert "but not together with the gate's other rules (Holm's correction)" in detail


def test_slices_take_nothing_from_the_rules_about_all_rows() -> None:
    undecided = tuple(sliced(str(n), **between(0.9, 1.0, 1.2), p_value=0.3) for n in range(20))
    assert judged(Challenge(slices=20, sliced=undecided, wear=FRESH), p_value=0.02).status == "warn"


def test_worn_rows_do_not_blind_the_slices() -> None:
    """A slice's interval has the gate's whole alpha however often its rows were looked at."""
    worn = replace(FRESH, number=5, looks=4, since="2026-11-01", alpha=0.05 / 30)
    worse = sliced(**between(1.06, 1.1, 1.2), alpha=0.05)
    assert judged(Challenge(slices=1, sliced=(worse,), wear=worn), alpha=worn.alpha).status == "fail"


def test_first_champion_is_said_to_be_missing_and_a_retrain_of_it_to_be_its_own() -> None:
    def said(one: Against) -> str:
        return next(f.detail for f in judged(Challenge(one, wear=FRESH)).findings if f.rule == "champion_ratio")

    assert said(Against()) == "no release of this model is champion yet: nothing to compare with"
    assert said(Against(own="helper@3")).startswith(
        "these weights are those of helper@3; no other release was champion"
    )
    assert said(against()).startswith("champion helper@3 -> tuned: perplexity")


@pytest.mark.parametrize("name", ["code", "champion", "champion/slice/x", "/", "slice/a", "ünï <b>", "a\nb"])
def test_no_two_comparisons_have_one_name_whatever_a_slice_is_called(name: str) -> None:
    names = {comparison_name(name, "baseline"), comparison_name(name, "champion"), "tuned", "champion"}
    assert len(names) == 4
    assert models_of(comparison_name(name, "baseline")) == f"tuned / baseline on the slice {name}"
    assert models_of(comparison_name(name, "champion")) == f"tuned / champion on the slice {name}"


def attempt(number: int, outcome: Outcome, *aliases: str, model: str = "helper") -> AttemptRecord:
    version = str(number) if outcome == "released" else None
    opened = Opened(f"attempt-{number}", model, f"2026-11-{number:02d}T00:00:00+00:00", {}, {})
    return AttemptRecord(opened, Closed(outcome, "", "", version, aliases=aliases), look=look_at(f"w{number}", ["0"]))


def test_champion_is_the_newest_release_of_the_model_with_the_alias() -> None:
    both = ("candidate", "champion")
    records = [
        attempt(1, "released", *both),
        attempt(2, "released", *both),
        attempt(3, "released", "candidate"),
        attempt(4, "refused"),
        attempt(5, "released", *both, model="other"),
        AttemptRecord(Opened("attempt-6", "helper", "2026-11-06", {}, {}), None),
    ]
    assert [record.release for record in champions(records, "helper")] == ["helper@2", "helper@1"]
    assert champions(records, "third") == []
    assert [look.weights for _, look in looks(records, "helper")] == ["w1", "w2", "w3", "w4"]


def test_run_store_holds_weights_only_while_their_bytes_are_those_on_record(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")

    def make(folder: Path) -> object:
        (folder / "model.safetensors").write_bytes(b"weights")
        return None

    ref = store.build(Recipe("merge", {}), make).ref
    assert store.holds(ref) == ref
    moved = Store((tmp_path / "runs").rename(tmp_path / "moved"))
    held = moved.holds(ref)
    assert held is not None
    assert (Path(held.path).parent, held.digest) == (tmp_path / "moved", ref.digest)
    (Path(held.path) / "model.safetensors").write_bytes(b"other")
    assert moved.holds(ref) is None
    (Path(held.path) / MARKER).unlink()
    assert moved.holds(Ref("nowhere", ref.digest)) is None
