"""The GGUF gate: whether the exported file, in the runtime that serves it, is the model that was merged."""

import math
from dataclasses import replace

from checks.answers import loop_share, stop_share
from checks.quality import perplexity_ratio
from loragate.limits import GgufLimits
from loragate.perplexity import Nll, ratio, total
from loragate.verdicts import Finding, Verdict, at_least, at_most, conclude, exactly, none_of
from loragate.work import Base, GgufEvidence


def judge(name: str, evidence: GgufEvidence, merged: Nll, base: Base, limits: GgufLimits) -> Verdict:
    """Judge one file, named by its quantisation, against the merged model's sums over the same tokens."""
    scored = total(evidence.rows)
    limit = getattr(limits, f"max_perplexity_ratio_{name}")
    return conclude(
        f"gguf_{name}",
        [
            _same_template(evidence, base),
            exactly(
                "prompts_equal",
                evidence.unequal_prompts,
                0,
                "number of questions that the file renders differently",
            ),
            exactly("same_vocabulary", evidence.vocabulary, base.vocabulary, "number of tokens in the vocabulary"),
            _row_texts(evidence),
            _probes(evidence, limits),
            Finding(
                "stop_token_known",
                evidence.stop_id in base.stop_ids,
                f"the file's end token is {evidence.stop_id}",
            ),
            _taught_stops(evidence),
            exactly("same_tokens", scored.tokens, merged.tokens, "number of tokens scored by llama.cpp"),
            perplexity_ratio("perplexity_ratio", merged, scored, limit),
            _not_better(merged, scored, limits),
            stop_share(evidence.answers, limits.min_stop_share),
            loop_share(evidence.answers, limits.max_loop_share),
        ],
    )


def _same_template(evidence: GgufEvidence, base: Base) -> Finding:
    same = evidence.template == base.template
    detail = (
        "the file's chat template equals the training one" if same else "the file has another chat template, or none"
    )
    return Finding("template_equal", same, detail)


def _taught_stops(evidence: GgufEvidence) -> Finding:
    """The runtime must end an answer where training taught the model to end it."""
    rule = "taught_stops_end_answers"
    if not evidence.taught_stops:
        return Finding(rule, False, "no answer of the held-out rows is taught to end")
    names = tuple(f"token {stop}" for stop in evidence.unknown_stops)
    return none_of(rule, names, f"of {len(evidence.taught_stops)} taught stop tokens do not end answers in llama.cpp")


def _row_texts(evidence: GgufEvidence) -> Finding:
    what = f"of {evidence.row_texts} texts of held-out rows get other token ids than in training"
    finding = none_of("token_ids_equal", tuple(repr(text[:40]) for text in evidence.unequal_row_texts), what)
    return finding if evidence.row_texts else Finding("token_ids_equal", False, "no text was tokenised")


def _probes(evidence: GgufEvidence, limits: GgufLimits) -> Finding:
    share = len(evidence.unequal_probes) / evidence.probes if evidence.probes else math.nan
    named = "".join(f"; differs: {text[:40]!r}" for text in evidence.unequal_probes)
    what = f"share of {evidence.probes} odd texts that get other token ids than in training"
    finding = at_most("probe_ids_equal", share, limits.max_unequal_probe_share, what)
    return replace(finding, detail=finding.detail + named)


def _not_better(merged: Nll, scored: Nll, limits: GgufLimits) -> Finding:
    """Quantising loses; a file far better than the merged model is another model."""
    return at_least(
        "not_another_model",
        ratio(merged, scored),
        limits.min_perplexity_ratio,
        "perplexity ratio to the merged model",
    )
