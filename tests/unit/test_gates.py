"""The gates as truth tables: each row is one change of good evidence and the rules that refuse it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from checks import data, gguf_file, merge, preflight, training
from loragate.limits import DataLimits, GgufLimits, MergeLimits, PreflightLimits, TrainingLimits
from loragate.perplexity import Nll
from loragate.record import CurvePoint, Merge, MergeCandidate
from loragate.row_work import CheckedFacts, RuleResult
from loragate.verdicts import Verdict
from loragate.work import (
    AdapterEvidence,
    Answer,
    Base,
    GgufEvidence,
    MergeEvidence,
    PreflightEvidence,
    Trained,
)

NAN, INF = math.nan, math.inf
STOPPED, RUNNING_ON = Answer("Ann.", stopped=True), Answer("Ann. Ann. Ann.", stopped=False)


def refusing(verdict: Verdict) -> set[str]:
    """The rules that refuse; the status must say the same."""
    rules = {finding.rule for finding in verdict.findings if not finding.passed}
    assert verdict.refuses == bool(rules)
    assert all(finding.detail for finding in verdict.findings)
    return rules


FACTS = ("place", "problem", "roles_problem", "question", "digest", "answer_chars", "tokens", "supervised")
GOOD_RESULTS = {
    name: RuleResult(name, success=True, evaluated=10, unexpected=0, examples=(), error="")
    for name in (*data.RULES, *(f"{side}.{fact}_known" for side in ("train", "heldout") for fact in FACTS))
}


DROP = DataLimits(on_reject="drop", max_dropped_share=0.1)


def judged(results: Sequence[RuleResult], dropped: int = 0, limits: DataLimits | None = None) -> Verdict:
    rows = {"train": 100, "heldout": 10}
    return data.judge(CheckedFacts(tuple(results), rows, {"train": dropped, "heldout": 0}), limits or DataLimits())


@pytest.mark.parametrize(("dropped", "rules"), [(0, set()), (10, set()), (11, {"train.dropped"})])
def test_data_gate_holds_what_was_dropped_against_its_ceiling(dropped: int, rules: set[str]) -> None:
    assert refusing(judged([*GOOD_RESULTS.values()], dropped, DROP)) == rules


def test_data_gate_refuses_a_side_of_no_rows_whatever_may_be_dropped() -> None:
    empty = CheckedFacts(tuple(GOOD_RESULTS.values()), {"train": 0, "heldout": 10}, {})
    assert refusing(data.judge(empty, DROP)) == {"train.dropped"}


@pytest.mark.parametrize(
    ("changes", "rules"),
    [
        ({}, set()),
        *(({name: {"success": False, "unexpected": 1}}, {name}) for name in data.RULES),
        *(({name: {"evaluated": 0}}, {name}) for name in data.RULES),
        *(({name: {"error": "no such column"}}, {name}) for name in data.RULES),
        ({"train.place_known": {"success": False}}, {"facts_complete"}),
        ({"heldout.supervised_known": {"evaluated": 0}}, {"facts_complete"}),
        ({"train.tokens_known": {"error": "no such column"}}, {"facts_complete"}),
        ({"train.no_duplicates": {"unexpected": 1}}, set()),
        (
            {"train.format": {"success": False}, "heldout.roles": {"evaluated": 0}},
            {"train.format", "heldout.roles"},
        ),
    ],
)
def test_data_gate_refuses(changes: dict[str, dict[str, Any]], rules: set[str]) -> None:
    results = [replace(result, **changes.get(name, {})) for name, result in GOOD_RESULTS.items()]
    assert refusing(judged(results)) == rules


@pytest.mark.parametrize("name", data.RULES)
def test_data_gate_refuses_where_a_rule_was_not_judged(name: str) -> None:
    results = [result for result in GOOD_RESULTS.values() if result.rule != name]
    assert refusing(judged(results)) == {name}


def test_data_gate_refuses_where_nobody_asked_whether_facts_are_known() -> None:
    results = [result for result in GOOD_RESULTS.values() if not result.rule.endswith("_known")]
    assert refusing(judged(results)) == {"facts_complete"}


def test_data_gate_without_results_is_an_error() -> None:
    assert judged([]).status == "error"


def test_data_gate_names_the_rows_and_counts_the_rest() -> None:
    broken = RuleResult("train.format", False, 1000, 7, ("rows.jsonl:3: no prompt", "rows.jsonl:9: no prompt"), "")
    (reason,) = judged([*(GOOD_RESULTS | {"train.format": broken}).values()]).reasons
    assert reason == (
        "train.format: training rows: every row must be readable in its format: broken by 7 of 1,000: "
        "rows.jsonl:3: no prompt; rows.jsonl:9: no prompt; and 5 more"
    )


CURVE = (CurvePoint(1, 2.0, 2e-4, 1.0), CurvePoint(2, 1.5, 1e-4, 0.8, heldout_loss=1.75))
GOOD_TRAINED = Trained(
    curve=CURVE,
    best_step=2,
    trainable=512,
    predicted_trainable=512,
    modules=4,
    modules_without_gradient=(),
    dtype="float32",
    resumed_from=0,
)
GOOD_ADAPTER = AdapterEvidence(parameters=512, zero_modules=(), not_finite=())


@pytest.mark.parametrize(
    ("trained", "adapter", "rules"),
    [
        ({}, {}, set()),
        ({"resumed_from": 1}, {}, set()),
        ({"curve": ()}, {}, {"loss_finite", "heldout_loss_finite", "gradient_growth"}),
        ({"curve": (CURVE[0], replace(CURVE[1], grad_norm=1000.0))}, {}, set()),
        ({"curve": (CURVE[0], replace(CURVE[1], grad_norm=1001.0))}, {}, {"gradient_growth"}),
        ({"curve": (replace(CURVE[0], grad_norm=0.0), CURVE[1])}, {}, {"gradient_growth"}),
        ({"curve": (replace(CURVE[0], grad_norm=INF), CURVE[1])}, {}, {"loss_finite"}),
        ({"curve": CURVE[:1]}, {}, {"heldout_loss_finite"}),
        ({"curve": (replace(CURVE[0], loss=NAN), CURVE[1])}, {}, {"loss_finite"}),
        ({"curve": (replace(CURVE[0], loss=INF), CURVE[1])}, {}, {"loss_finite"}),
        ({"curve": (replace(CURVE[0], grad_norm=NAN), CURVE[1])}, {}, {"loss_finite"}),
        ({"curve": (CURVE[0], replace(CURVE[1], heldout_loss=NAN))}, {}, {"heldout_loss_finite"}),
        ({"curve": (CURVE[0], replace(CURVE[1], heldout_loss=INF))}, {}, {"heldout_loss_finite"}),
        ({"curve": (*CURVE, replace(CURVE[1], step=3, heldout_loss=NAN))}, {}, set()),
        ({"best_step": 0}, {}, {"heldout_loss_finite"}),
        ({"modules": 0}, {}, {"modules_adapted"}),
        ({"modules_without_gradient": ("q_proj",)}, {}, {"gradient_reached"}),
        ({"predicted_trainable": 513}, {}, {"trainable_count"}),
        ({"trainable": 513}, {}, {"trainable_count", "released_count"}),
        ({}, {"parameters": 511}, {"released_count"}),
        ({}, {"zero_modules": ("q_proj",)}, {"lora_b_not_zero"}),
        ({}, {"not_finite": ("q_proj",)}, {"weights_finite"}),
        (
            {"modules": 0, "trainable": 0, "predicted_trainable": 0},
            {"parameters": 0},
            {"modules_adapted"},
        ),
    ],
)
def test_training_gate_refuses(trained: dict[str, Any], adapter: dict[str, Any], rules: set[str]) -> None:
    found = training.judge(replace(GOOD_TRAINED, **trained), replace(GOOD_ADAPTER, **adapter), TrainingLimits())
    assert refusing(found) == rules


FOUR_ANSWERS = (STOPPED, STOPPED, STOPPED, RUNNING_ON)
LOOPING = Answer("and so on " * 9, stopped=True)


GOOD_MERGE = MergeEvidence(
    kl_adapter=1e-6,
    kl_base=0.5,
    top1_agreement=1.0,
    positions=200,
    unchanged=(),
    altered=(),
    missing=(),
    same_ties=True,
    dtype="float32",
)


@pytest.mark.parametrize(
    ("changes", "rules"),
    [
        ({}, set()),
        ({"kl_adapter": 1e-5, "kl_base": 1e-4}, set()),
        ({"kl_adapter": 1.1e-5}, {"merged_is_adapter"}),
        ({"kl_adapter": 1.1e-5, "dtype": "bfloat16"}, set()),
        ({"kl_adapter": 5.1e-3, "dtype": "bfloat16"}, {"merged_is_adapter"}),
        ({"kl_adapter": NAN}, {"merged_is_adapter"}),
        ({"kl_adapter": INF}, {"merged_is_adapter"}),
        ({"kl_base": 0.9e-4}, {"merged_is_not_base"}),
        ({"kl_base": NAN}, {"merged_is_not_base"}),
        ({"kl_base": INF}, {"merged_is_not_base"}),
        ({"positions": 0}, {"positions_compared"}),
        (
            {"positions": 0, "kl_adapter": NAN, "kl_base": NAN},
            {"positions_compared", "merged_is_adapter", "merged_is_not_base"},
        ),
        ({"unchanged": ("q_proj",)}, {"adapted_weights_changed"}),
        ({"altered": ("embed",)}, {"other_weights_kept"}),
        ({"missing": ("lm_head",)}, {"same_tensors"}),
        ({"same_ties": False}, {"same_ties"}),
    ],
)
def test_merge_gate_refuses(changes: dict[str, Any], rules: set[str]) -> None:
    assert refusing(merge.judge(replace(GOOD_MERGE, **changes), MergeLimits())) == rules


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
        verdict = merge.judge(GOOD_MERGE, MergeLimits(), Merge(kept, "float32", "streamed", candidates))
        assert refusing(verdict) == (set() if kept == name else {"best_candidate"})


@pytest.mark.parametrize(("kl", "perplexity"), [(NAN, 10.0), (INF, 10.0), (1e-6, INF), (1e-6, NAN)])
def test_merge_gate_refuses_candidates_without_numbers(kl: float, perplexity: float) -> None:
    merged = Merge("original", "float32", "streamed", (candidate("original", kl, perplexity),))
    assert refusing(merge.judge(GOOD_MERGE, MergeLimits(), merged)) == {"best_candidate"}


def test_merge_gate_of_a_single_merge_has_no_choice_to_judge() -> None:
    plain = merge.judge(GOOD_MERGE, MergeLimits())
    assert merge.judge(GOOD_MERGE, MergeLimits(), Merge("original", "float32", "streamed")) == plain


BASE = Base(
    path="base",
    commit="",
    trust_remote_code=False,
    stop_ids=(2, 7),
    end_id=2,
    template="{{ m }}",
    parameters=9,
    vocabulary=100,
)
MERGED = Nll(20.0, 10)
GOOD_PREFLIGHT = PreflightEvidence(
    rows=4,
    packed=True,
    start_difference=0.0,
    dora=False,
    row_difference=1e-6,
    gradient_difference=1e-6,
    modules=8,
    modules_without_gradient=(),
    trainable=100,
    predicted_trainable=100,
    dtype="float32",
)


@pytest.mark.parametrize(
    ("changes", "rules"),
    [
        ({}, set()),
        ({"rows": 0}, {"rows_tried"}),
        ({"packed": False}, set()),
        ({"start_difference": 1e-30}, {"starts_as_base"}),
        ({"start_difference": 0.05, "dora": True}, set()),
        ({"start_difference": NAN}, {"starts_as_base"}),
        ({"row_difference": 2e-4}, {"row_losses_equal"}),
        ({"row_difference": 2e-4, "dtype": "bfloat16"}, set()),
        ({"row_difference": 0.06, "dtype": "bfloat16"}, {"row_losses_equal"}),
        ({"row_difference": INF}, {"row_losses_equal"}),
        ({"gradient_difference": 2e-3}, {"gradient_does_not_depend_on_batching"}),
        ({"gradient_difference": 0.3, "dtype": "bfloat16"}, {"gradient_does_not_depend_on_batching"}),
        ({"gradient_difference": NAN}, {"gradient_does_not_depend_on_batching"}),
        ({"modules_without_gradient": ("q_proj",)}, {"gradient_reaches"}),
        ({"trainable": 99}, {"trainable_count"}),
        ({"modules": 0}, {"modules_adapted"}),
    ],
)
def test_preflight_gate_refuses(changes: dict[str, Any], rules: set[str]) -> None:
    assert refusing(preflight.judge(replace(GOOD_PREFLIGHT, **changes), PreflightLimits())) == rules


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
    answers=FOUR_ANSWERS,
)


def scored(ratio: float) -> tuple[Nll, ...]:
    """Sums whose perplexity is this many times the merged model's."""
    return (Nll(20.0 + 10 * math.log(ratio), 10),)


@pytest.mark.parametrize(
    ("changes", "rules"),
    [
        ({}, set()),
        ({"rows": scored(1.009)}, set()),
        ({"rows": scored(1.011)}, {"perplexity_ratio"}),
        ({"rows": scored(0.91)}, set()),
        ({"rows": scored(0.89)}, {"not_another_model"}),
        ({"rows": (Nll(NAN, 10),)}, {"perplexity_ratio", "not_another_model"}),
        ({"rows": (Nll(INF, 10),)}, {"perplexity_ratio", "not_another_model"}),
        ({"rows": ()}, {"same_tokens", "perplexity_ratio", "not_another_model"}),
        ({"rows": (Nll(12.0, 6),)}, {"same_tokens"}),
        ({"row_texts": 0}, {"token_ids_equal"}),
        ({"unequal_row_texts": ("grün",)}, {"token_ids_equal"}),
        ({"probes": 0}, {"probe_ids_equal"}),
        ({"unequal_probes": ("grün",)}, set()),
        ({"unequal_probes": ("grün", "½")}, {"probe_ids_equal"}),
        ({"vocabulary": 99}, {"same_vocabulary"}),
        ({"template": ""}, {"template_equal"}),
        ({"template": BASE.template + " "}, {"template_equal"}),
        ({"unequal_prompts": 1}, {"prompts_equal"}),
        ({"stop_id": 3}, {"stop_token_known"}),
        ({"taught_stops": ()}, {"taught_stops_end_answers"}),
        ({"taught_stops": (7, 9), "unknown_stops": (9,)}, {"taught_stops_end_answers"}),
        ({"answers": ()}, {"stop_share", "loop_share"}),
        ({"answers": (LOOPING,) * 2 + FOUR_ANSWERS}, {"loop_share"}),
        ({"answers": FOUR_ANSWERS[1:]}, {"stop_share"}),
    ],
)
def test_gguf_gate_refuses(changes: dict[str, Any], rules: set[str]) -> None:
    evidence = replace(GOOD_GGUF, **changes)
    assert refusing(gguf_file.judge("f16", evidence, MERGED, BASE, GgufLimits())) == rules


@pytest.mark.parametrize("bad", [Nll(NAN, 10), Nll(INF, 10), Nll(-INF, 10), Nll(8000.0, 10)])
def test_gguf_gate_refuses_a_merged_model_without_a_perplexity(bad: Nll) -> None:
    verdict = gguf_file.judge("f16", GOOD_GGUF, bad, BASE, GgufLimits())
    assert refusing(verdict) == {"perplexity_ratio", "not_another_model"}


@pytest.mark.parametrize(
    ("name", "allowed", "refused"), [("f16", 1.009, 1.011), ("q8_0", 1.019, 1.021), ("q4_k_m", 1.149, 1.151)]
)
def test_gguf_gate_has_a_limit_for_each_quantisation(name: str, allowed: float, refused: float) -> None:
    for ratio, rules in ((allowed, set()), (refused, {"perplexity_ratio"})):
        verdict = gguf_file.judge(name, replace(GOOD_GGUF, rows=scored(ratio)), MERGED, BASE, GgufLimits())
        assert verdict.gate == f"gguf_{name}"
        assert refusing(verdict) == rules
