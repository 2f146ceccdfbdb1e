"""The gates of the ladder's lower steps as truth tables: merging, conversion, quantisation."""

import math
from dataclasses import replace
from typing import Any

import pytest

from checks import gguf_file, merge
from loragate.artifact_work import GgufEvidence, MergeEvidence
from loragate.comparison import Comparison
from loragate.ladder import NOT_COMPARED, Divergence, Hop
from loragate.limits import GgufLimits, MergeLimits
from loragate.perplexity import Nll
from loragate.record import Merge, MergeCandidate
from loragate.verdicts import Verdict
from loragate.work import Answer, Base

NAN, INF = math.nan, math.inf
STOPPED, RUNNING_ON = Answer("Ann.", stopped=True), Answer("Ann. Ann. Ann.", stopped=False)


def refusing(verdict: Verdict) -> set[str]:
    """The rules that refuse; the status must say the same."""
    rules = {finding.rule for finding in verdict.findings if not finding.passed}
    assert verdict.refuses == bool(rules)
    assert all(finding.detail for finding in verdict.findings)
    return rules


LOOPING = Answer("and so on " * 9, stopped=True)
FOUR_ANSWERS = (STOPPED, STOPPED, STOPPED, RUNNING_ON)


GOOD_MERGE = MergeEvidence(unchanged=(), altered=(), missing=(), same_ties=True, other_tokenizer=(), dtype="float32")
NEAR = Divergence(kl=1e-6, top1_agreement=1.0, positions=200)
FAR = Divergence(kl=0.5, top1_agreement=0.6, positions=200)
BEFORE = Nll(20.0, 10)


def step(ratio: float = 1.0, divergence: Divergence = NEAR, before: Nll = BEFORE, tokens: int = 10) -> Hop:
    """A step whose ratio of perplexities is known for certain."""
    after = Nll(before.nats + tokens * math.log(ratio), tokens)
    known = math.isfinite(ratio) and ratio > 0 and math.isfinite(before.perplexity)
    low = value = high = ratio if known else NAN
    p_value = 1e-4 if known else NAN
    compared = Comparison(2, before, after, value, low, high, 0.0, 1.01, 0.05, 10_000, p_value, 1.0)
    return Hop("before", "after", compared, divergence)


def merge_judged(
    changes: dict[str, Any] | None = None, hop: Hop | None = None, base: Divergence = FAR, merged: Merge | None = None
) -> Verdict:
    evidence = replace(GOOD_MERGE, **(changes or {}))
    how = merged or Merge("original", "float32", "streamed")
    return merge.judge(evidence, hop or step(), base, MergeLimits(), alpha=0.05, merged=how)


@pytest.mark.parametrize(
    ("changes", "rules"),
    [
        ({}, set()),
        ({"unchanged": ("q_proj",)}, {"adapted_weights_changed"}),
        ({"altered": ("embed",)}, {"other_weights_kept"}),
        ({"missing": ("lm_head",)}, {"same_tensors"}),
        ({"same_ties": False}, {"same_ties"}),
        ({"other_tokenizer": ("chat template",)}, {"same_tokenizer"}),
    ],
)
def test_merge_gate_refuses_tensors(changes: dict[str, Any], rules: set[str]) -> None:
    assert refusing(merge_judged(changes)) == rules


@pytest.mark.parametrize(
    ("divergence", "dtype", "rules"),
    [
        ({"kl": 1e-5}, "float32", set()),
        ({"kl": 1.1e-5}, "float32", {"kl"}),
        ({"kl": 1.1e-5}, "bfloat16", set()),
        ({"kl": 5.1e-3}, "bfloat16", {"kl"}),
        ({"kl": NAN}, "float32", {"kl"}),
        ({"kl": INF}, "float32", {"kl"}),
        ({"top1_agreement": 0.979}, "float32", {"top1_agreement"}),
        ({"top1_agreement": 0.96}, "bfloat16", set()),
        ({"top1_agreement": 0.94}, "bfloat16", {"top1_agreement"}),
        ({"positions": 0}, "float32", {"positions_compared"}),
        (
            {"positions": 0, "kl": NAN, "top1_agreement": NAN},
            "float32",
            {"positions_compared", "kl", "top1_agreement"},
        ),
    ],
)
def test_merge_gate_refuses_a_step_that_moves_predictions(
    divergence: dict[str, Any], dtype: str, rules: set[str]
) -> None:
    assert refusing(merge_judged({"dtype": dtype}, step(divergence=replace(NEAR, **divergence)))) == rules


@pytest.mark.parametrize(
    ("ratio", "rules"), [(1.009, set()), (1.011, {"perplexity_ratio"}), (NAN, {"perplexity_ratio"})]
)
def test_merge_gate_refuses_a_step_that_costs_perplexity(ratio: float, rules: set[str]) -> None:
    assert refusing(merge_judged(hop=step(ratio))) == rules


@pytest.mark.parametrize(
    ("kl", "rules"), [(1e-4, set()), (0.9e-4, {"merged_is_not_base"}), (NAN, {"merged_is_not_base"})]
)
def test_merge_gate_refuses_the_base_itself(kl: float, rules: set[str]) -> None:
    assert refusing(merge_judged(base=replace(FAR, kl=kl))) == rules


def candidate(name: str, kl: float, perplexity: float) -> MergeCandidate:
    return MergeCandidate(name, kl, 1.0, Nll(10 * math.log(perplexity), 10))


CHOICES: list[tuple[tuple[float, float], tuple[float, float], str]] = [
    ((1e-9, 10.0), (0.2, 11.0), "dequantised"),
    ((1e-9, 10.0), (0.2, 5.0), "dequantised"),  # a better model, but not the one that was trained
    ((2e-6, 10.0), (1e-6, 10.0), "original"),
    ((1e-6, 10.0), (2e-6, 9.95), "dequantised"),
    ((1e-6, 10.0), (2e-6, 9.8), "original"),
    ((1e-6, 10.0), (2e-5, 9.8), "dequantised"),
    ((0.3, 10.0), (0.2, 20.0), "original"),  # both too far: the gate refuses either
    ((NAN, 10.0), (1e-6, 10.0), "original"),
    ((1e-6, 10.0), (NAN, 9.0), "dequantised"),
]


@pytest.mark.parametrize(("dequantised", "original", "name"), CHOICES)
def test_merge_gate_lets_only_the_best_candidate_pass(
    dequantised: tuple[float, float], original: tuple[float, float], name: str
) -> None:
    candidates = (candidate("dequantised", *dequantised), candidate("original", *original))
    assert merge.choose(candidates, "float32", MergeLimits()).name == name
    for kept in ("dequantised", "original"):
        verdict = merge_judged(merged=Merge(kept, "float32", "streamed", candidates))
        assert refusing(verdict) == (set() if kept == name else {"best_candidate"})


@pytest.mark.parametrize(("kl", "perplexity"), [(NAN, 10.0), (INF, 10.0), (1e-6, INF), (1e-6, NAN)])
def test_merge_gate_refuses_candidates_without_numbers(kl: float, perplexity: float) -> None:
    merged = Merge("original", "float32", "streamed", (candidate("original", kl, perplexity),))
    assert refusing(merge_judged(merged=merged)) == {"best_candidate"}


def test_merge_gate_of_a_single_merge_has_no_choice_to_judge() -> None:
    assert "best_candidate" not in {finding.rule for finding in merge_judged().findings}


BASE = Base(
    path="base",
    commit="",
    trust_remote_code=False,
    stop_ids=(2, 7),
    end_id=2,
    adds_start=False,
    template="{{ m }}",
    parameters=9,
    vocabulary=100,
)
GOOD_GGUF = GgufEvidence(
    rows=(Nll(12.0, 6), Nll(8.0, 4)),
    row_texts=20,
    unequal_row_texts=(),
    probes=10,
    unequal_probes=(),
    template=BASE.template,
    unequal_prompts=0,
    vocabulary=100,
    stop_id=7,
    taught_stops=(7,),
    unknown_stops=(),
    adds_start=False,
    unequal_begins=0,
    quantization="f16",
    answers=FOUR_ANSWERS,
    divergences={},
    size_bytes=2_000_000_000,
    load_seconds=1.5,
    tokens_per_second=40.0,
)


def gguf_judged(hop: Hop | None = None, limits: GgufLimits | None = None, name: str = "f16", **changes: Any) -> Verdict:
    evidence = replace(GOOD_GGUF, **({"quantization": name} | changes))
    return gguf_file.judge(name, evidence, hop or step(), BASE, limits or GgufLimits(), alpha=0.05)


@pytest.mark.parametrize(
    ("changes", "rules"),
    [
        ({}, set()),
        ({"row_texts": 0}, {"token_ids_equal"}),
        ({"unequal_row_texts": ("grün",)}, {"token_ids_equal"}),
        ({"probes": 0}, {"probe_ids_equal"}),
        ({"unequal_probes": ("grün",)}, set()),
        ({"unequal_probes": ("grün", "½")}, {"probe_ids_equal"}),
        ({"vocabulary": 99}, {"same_vocabulary"}),
        ({"template": ""}, {"template_equal"}),
        ({"template": BASE.template + " "}, {"template_equal"}),
        ({"unequal_prompts": 1}, {"prompts_equal"}),
        ({"unequal_begins": 1}, {"beginnings_equal"}),
        ({"adds_start": True}, {"start_as_tokenizer"}),
        ({"quantization": "q8_0"}, {"quantization_as_named"}),
        ({"quantization": ""}, {"quantization_as_named"}),
        ({"stop_id": 3}, {"stop_token_known"}),
        ({"taught_stops": ()}, {"taught_stops_end_answers"}),
        ({"taught_stops": (7, 9), "unknown_stops": (9,)}, {"taught_stops_end_answers"}),
        ({"answers": ()}, {"stop_share", "loop_share"}),
        ({"answers": (LOOPING,) * 2 + FOUR_ANSWERS}, {"loop_share"}),
        ({"answers": FOUR_ANSWERS[1:]}, {"stop_share"}),
        ({"tokens_per_second": NAN, "load_seconds": 1e9, "size_bytes": 10**15}, set()),
    ],
)
def test_gguf_gate_refuses(changes: dict[str, Any], rules: set[str]) -> None:
    assert refusing(gguf_judged(**changes)) == rules


@pytest.mark.parametrize(
    ("hop", "rules"),
    [
        (step(1.009), set()),
        (step(1.011), {"perplexity_ratio"}),
        (step(0.91), set()),
        (step(0.89), {"not_another_model"}),
        (step(NAN), {"perplexity_ratio", "not_another_model"}),
        (step(tokens=9), {"same_tokens"}),
        (step(divergence=FAR), {"kl", "top1_agreement"}),
        (step(divergence=NOT_COMPARED), {"kl", "top1_agreement", "positions_compared"}),
        *((step(before=bad), {"perplexity_ratio", "not_another_model"}) for bad in (Nll(NAN, 10), Nll(INF, 10))),
    ],
)
def test_gguf_gate_refuses_a_step(hop: Hop, rules: set[str]) -> None:
    assert refusing(gguf_judged(hop)) == rules


@pytest.mark.parametrize(
    ("limits", "rules"),
    [
        ({"max_gigabytes": 2.0, "max_load_seconds": 1.5, "min_tokens_per_second": 40.0}, set()),
        ({"max_gigabytes": 1.9}, {"size"}),
        ({"max_load_seconds": 1.4}, {"load_time"}),
        ({"min_tokens_per_second": 41.0}, {"speed"}),
    ],
)
def test_gguf_gate_limits_size_and_speed_where_the_run_file_does(limits: dict[str, float], rules: set[str]) -> None:
    assert refusing(gguf_judged(limits=GgufLimits(**limits))) == rules
    unmeasured = gguf_judged(limits=GgufLimits(**limits), tokens_per_second=NAN, load_seconds=NAN)
    assert ("speed" in refusing(unmeasured)) == ("min_tokens_per_second" in limits)


@pytest.mark.parametrize(
    ("name", "allowed", "refused"), [("f16", 1.009, 1.011), ("q8_0", 1.019, 1.021), ("q4_k_m", 1.149, 1.151)]
)
def test_gguf_gate_has_a_limit_for_each_quantisation(name: str, allowed: float, refused: float) -> None:
    limit = getattr(GgufLimits(), f"max_perplexity_ratio_{name}")
    for ratio, rules in ((allowed, set()), (refused, {"perplexity_ratio"})):
        hop = step(ratio)
        verdict = gguf_judged(replace(hop, compared=replace(hop.compared, limit=limit)), name=name)
        assert verdict.gate == f"gguf_{name}"
        assert refusing(verdict) == rules
