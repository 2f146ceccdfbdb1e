"""A replay of a sealed release: it holds as it is, and whatever is altered in a bundle sealed anew is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import loragate
from judged_home import ROWS, alter, make_judged_home, seal_anew
from sealed_home import SealedHome

from loragate.claims import Claim, difference, first_broken
from loragate.errors import VerificationError
from loragate.refs import digest_json
from loragate.release_commands import verified
from loragate.sealed_evidence import read_evidence
from tasks.judge_again import judge_again


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> SealedHome:
    return make_judged_home(tmp_path_factory.mktemp("judged"))


@pytest.fixture
def bundle(sealed: SealedHome, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sealed.bundle(), tmp_path / "bundle"))


def replayed(folder: Path) -> list[Claim]:
    """What a replay says of a bundle that verifies."""
    verified(str(folder), (), str(folder.parent / "nowhere"))
    return judge_again(read_evidence(folder))


def named(folder: Path) -> str:
    """The first claim that does not hold, or what cannot be read; empty where all hold."""
    try:
        broken = first_broken(replayed(folder))
    except VerificationError as error:
        return str(error)
    return f"{broken.claim}: {broken.how}" if broken else ""


def test_every_claim_of_a_release_holds_and_says_how_strongly(bundle: Path) -> None:
    claims = {each.claim: each for each in replayed(bundle)}
    assert {each.holds for each in claims.values()} == {"yes"}
    assert f"recomputed from {ROWS} rows" in claims["perplexity tuned"].how
    quality = claims["quality gate: intervals follow from rows"].how
    assert quality == f"recomputed from {3 * ROWS + 2 * ROWS} rows with the same draws, to the last digit"
    assert "waivers by their signatures" in claims["preflight gate: waived, 8 findings"].how
    assert "all 7 gates judged, none refuses" in claims


def finding(gates: Any, gate: str, rule: str) -> Any:
    (found,) = (each for entry in gates if entry["gate"] == gate for each in entry["findings"] if each["rule"] == rule)
    return found


def gate(gates: Any, name: str) -> Any:
    return next(each for each in gates if each["gate"] == name)


def put(where: Any, name: Any, value: object) -> None:
    where[name] = value


def swap(rows: Any) -> None:
    """Give two rows of as many tokens each other's nats: no sum tells."""
    rows[0]["nats"], rows[7]["nats"] = rows[7]["nats"], rows[0]["nats"]


JUDGED = "judged/{}.json"
CASES: dict[str, tuple[str, Callable[[Any], object], str]] = {
    "a row's score": (
        "scores/tuned.jsonl",
        lambda v: put(v[3], "nats", v[3]["nats"] + 1e-9),
        "scores/tuned.jsonl: sum.nats: recorded",
    ),
    "scores of two rows change places": (
        "scores/tuned.jsonl",
        swap,
        "quality gate: comparison tuned/baseline.low: recorded 0.",
    ),
    "a row is left out": ("scores/baseline.jsonl", lambda v: v.pop(), "scores/baseline.jsonl: sum.nats"),
    "rows out of order": ("scores/merged.jsonl", lambda v: v.reverse(), "scores/merged.jsonl:1: is of row 24"),
    "a row of a GGUF file": (
        "scores/gguf_q8_0.jsonl",
        lambda v: put(v[0], "tokens", 6),
        "scores/gguf_q8_0.jsonl: sum.tokens",
    ),
    "a row of the general ones": (
        "scores/general_tuned.jsonl",
        lambda v: put(v[0], "nats", 1.0),
        "general_tuned.jsonl: sum.nats",
    ),
    "a finding's value": (
        "gates.json",
        lambda v: put(finding(v, "quality", "perplexity_ratio"), "value", 0.5),
        "quality/perplexity_ratio: value: recorded 0.5, found 0.",
    ),
    "a finding's limit": (
        "gates.json",
        lambda v: put(finding(v, "merge", "kl"), "limit", 1),
        "merge/kl: limit: recorded 1, found",
    ),
    "an interval's bound": (
        "gates.json",
        lambda v: put(finding(v, "quality", "champion_ratio"), "high", 0.1),
        "quality/champion_ratio: high: recorded 0.1, found",
    ),
    "a sentence": (
        "gates.json",
        lambda v: put(finding(v, "plan", "epochs"), "detail", "fine"),
        'plan/epochs: detail: recorded "fine"',
    ),
    "a finding is left out": ("gates.json", lambda v: gate(v, "data")["findings"].pop(), "data/"),
    "a verdict": (
        "gates.json",
        lambda v: put(gate(v, "training"), "status", "warn"),
        'training: status: recorded "warn", found "pass"',
    ),
    "a gate is left out": ("gates.json", lambda v: v.pop(), "gguf_q8_0: the gate has not judged"),
    "what a gate had before it": (
        "gates.json",
        lambda v: put(gate(v, "merge")["inputs"], "adapter", "0" * 64),
        "merge gate: inputs.adapter: recorded",
    ),
    "limits as the gate had them": (
        "gates.json",
        lambda v: put(gate(v, "gguf_q8_0")["limits"], "max_kl_q8_0", 9),
        "gguf_q8_0 gate: limits (recorded, and in config.json).max_kl_q8_0",
    ),
    "limits in the settings": (
        "config.json",
        lambda v: put(v["gates"]["merge"], "max_perplexity_ratio", 2.0),
        "digest of config.json",
    ),
    "a failure that passes": (
        JUDGED.format("training"),
        lambda v: put(v["adapter"], "not_finite", ["lora_A"]),
        "training/weights_finite: passed: recorded true, found false",
    ),
    "a comparison": (
        JUDGED.format("quality"),
        lambda v: put(v["compared"], "p_value", 0.04),
        "quality gate: comparison tuned/baseline.p_value: recorded 0.04, found",
    ),
    "the champion": (
        JUDGED.format("quality"),
        lambda v: put(v["challenge"]["against"], "compared", None),
        "quality gate: slices judged: recorded",
    ),
    "the look's alpha": (
        JUDGED.format("quality"),
        lambda v: put(v["challenge"]["wear"], "alpha", 0.05),
        "heldout_wear: alpha: recorded 0.05",
    ),
    "a slice's rows": (
        JUDGED.format("slices"),
        lambda v: put(v, "early", [*range(11)]),
        "quality gate: comparison slice/early.rows: recorded 12, found 11",
    ),
    "a task's document": (
        "scores/tasks.jsonl",
        lambda v: put(v[1], "tuned", 0.0),
        "quality gate: tasks.begins.drop_error",
    ),
    "a task's value": (
        JUDGED.format("tasks"),
        lambda v: put(v["begins"]["base"], "value", 0.25),
        "quality gate: tasks.begins.base: recorded 0.5, found 0.25",
    ),
    "an answer": (
        JUDGED.format("quality"),
        lambda v: put(v["answered"]["answers"][0], "stopped", False),
        "quality/stop_share: passed: recorded",
    ),
    "a divergence": (
        JUDGED.format("gguf_q8_0"),
        lambda v: put(v["hop"]["divergence"], "kl", 1e-9),
        "gguf_q8_0/kl: value: recorded 1e-06, found 1e-09",
    ),
    "a file's size": (
        JUDGED.format("gguf_q8_0"),
        lambda v: put(v["evidence"], "size_bytes", 1),
        "size in bytes: recorded 1, found 13",
    ),
    "a waiver's text": (
        "gates.json",
        lambda v: put(w := gate(v, "preflight")["waivers"][0], "text", w["text"].replace("a pilot", "a joke")),
        "preflight/row_losses_equal: waived: recorded",
    ),
    "a waiver is left out": (
        "gates.json",
        lambda v: put(gate(v, "preflight"), "waivers", []),
        "preflight/row_losses_equal: waived",
    ),
    "no such grounds": (JUDGED.format("plan"), lambda v: v.clear(), "judged/plan.json: not what such a gate judges by"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_altered_and_sealed_anew_is_named_with_both_values(bundle: Path, case: str) -> None:
    name, change, said = CASES[case]
    alter(bundle, name, change)
    seal_anew(bundle)
    assert said in named(bundle)


def test_limits_that_are_loosened_everywhere_make_other_findings(bundle: Path) -> None:
    alter(bundle, "config.json", lambda v: put(v["gates"]["merge"], "max_perplexity_ratio", 2.0))
    alter(bundle, "gates.json", lambda v: put(gate(v, "merge")["limits"], "max_perplexity_ratio", 2.0))
    settings = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
    said = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    said["digests"]["settings"] = digest_json(settings)
    (bundle / "manifest.json").write_bytes(json.dumps(said).encode())
    alter(bundle, "environment.json", dict)  # spells the manifest as it must be
    seal_anew(bundle)
    # the waiver is for the candidate with the limits as they were; a release without one is told by its intervals
    assert named(bundle).startswith("preflight gate: waived, 8 findings: preflight/row_losses_equal: waived")
    broken = [each.how for each in replayed(bundle) if each.holds == "no"]
    assert any("merge gate: comparison merged/tuned.limit: recorded 1.01, found 2" in how for how in broken)
    assert any("merge/perplexity_ratio: " in how for how in broken)


def test_a_release_without_what_its_gates_judged_by_is_not_taken_for_good(bundle: Path) -> None:
    (bundle / "judged/plan.json").unlink()
    with pytest.raises(VerificationError, match=r"judged/plan\.json: missing; releases sealed before replay"):
        read_evidence(bundle)


def test_the_command_tells_a_table_and_exits_with_4(sealed: SealedHome, bundle: Path, tmp_path: Path) -> None:
    done = loragate("replay", "tiny@1", "--home", str(sealed.root), cwd=tmp_path)
    assert done.code == 0, done.said
    assert done.stdout.startswith("REPLAYED  tiny@1  ")
    assert "not shown  as recorded; --rebuild makes them anew" in done.stdout
    alter(bundle, "gates.json", lambda v: put(finding(v, "quality", "perplexity_ratio"), "value", 0.5))
    seal_anew(bundle)
    done = loragate("replay", str(bundle), "--json", cwd=tmp_path)
    assert (done.code, done.json["holds"]) == (4, False)
    assert "quality/perplexity_ratio: value: recorded 0.5, found 0." in done.json["first"]["how"]
    assert "quality/perplexity_ratio: value: recorded 0.5" in done.stderr
    done = loragate("replay", str(bundle), "--score", "--set", "train.seed=1", cwd=tmp_path)
    assert done.code == 4, done.said  # what does not hold is not computed again


def test_a_difference_names_the_place_and_both_values() -> None:
    assert difference({"a": [1, {"b": 2.0}]}, {"a": [1, {"b": 2}]}) == ""
    assert difference({"a": [1, {"b": float("nan")}]}, {"a": [1, {"b": float("nan")}]}) == ""
    assert difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == "a[2].b: recorded 2, found 3"
    assert difference({"a": 1}, {"a": 1, "b": 2}) == "b: recorded null, found 2"
