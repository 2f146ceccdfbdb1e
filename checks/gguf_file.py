"""The GGUF gate: whether the exported file, in the runtime that serves it, is the model that was merged."""

import math
from collections.abc import Callable
from dataclasses import replace

from checks.answers import loop_share, stop_share
from checks.ladder import HopLimits, judge_hop
from loragate.artifact_work import GgufEvidence
from loragate.ladder import ADAPTER, F16, Hop
from loragate.limits import GgufLimits
from loragate.plan import GIGABYTE
from loragate.verdicts import Finding, Verdict, at_least, at_most, conclude, exactly, none_of
from loragate.work import Base


def judge(name: str, evidence: GgufEvidence, hop: Hop, base: Base, limits: GgufLimits, *, alpha: float) -> Verdict:
    """Judge one file, named by its quantisation or `adapter` (on top of its base), and the step to it from its source.

    Args:
        alpha: Probability with which the bound of the perplexity's interval may be wrong.
    """
    before, after = hop.compared.before.tokens, hop.compared.after.tokens
    step = HopLimits(
        getattr(limits, f"max_perplexity_ratio_{name}"),
        getattr(limits, f"max_kl_{name}"),
        getattr(limits, f"min_top1_agreement_{name}"),
        alpha,
    )
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
            _same_start(evidence, base),
            exactly(
                "beginnings_equal",
                evidence.unequal_begins,
                0,
                "number of questions that llama.cpp begins with another token than training",
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
            _as_named(name, evidence),
            exactly("same_tokens", after, before, "number of tokens scored by llama.cpp"),
            *judge_hop(hop, step),
            _not_better(hop, limits),
            stop_share(evidence.answers, limits.min_stop_share),
            loop_share(evidence.answers, limits.max_loop_share),
            *_cost(evidence, limits),
        ],
    )


def _same_template(evidence: GgufEvidence, base: Base) -> Finding:
    same = evidence.template == base.template
    detail = (
        "the file's chat template equals the training one" if same else "the file has another chat template, or none"
    )
    return Finding("template_equal", same, detail)


def _same_start(evidence: GgufEvidence, base: Base) -> Finding:
    """A file that begins texts otherwise than the tokenizer doubles the token of a beginning, or leaves it out."""
    does = "begins plain text with a token of its own" if evidence.adds_start else "begins plain text as it is"
    same = evidence.adds_start == base.adds_start
    return Finding("start_as_tokenizer", same, f"the file {does}, {'as' if same else 'unlike'} the training tokenizer")


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


def _as_named(name: str, evidence: GgufEvidence) -> Finding:
    """The file must be in the number format that it is released as; an adapter meets its base in f16."""
    own = evidence.quantization or "of no format that is exported here"
    wanted = F16 if name == ADAPTER else name
    return Finding("quantization_as_named", evidence.quantization == wanted, f"the file says it is {own}")


def _not_better(hop: Hop, limits: GgufLimits) -> Finding:
    """Quantising loses; a file far better than what it was made from is another model."""
    what = f"perplexity ratio to {hop.above}"
    return at_least("not_another_model", hop.compared.ratio, limits.min_perplexity_ratio, what)


def _cost(evidence: GgufEvidence, limits: GgufLimits) -> list[Finding]:
    """Size and speed: always on record, judged where the run file sets a limit, since they depend on the machine."""
    size, load, speed = evidence.size_bytes / GIGABYTE, evidence.load_seconds, evidence.tokens_per_second
    return [
        _limited(at_most, "size", size, limits.max_gigabytes, "size in gigabytes"),
        _limited(at_most, "load_time", load, limits.max_load_seconds, "load time in seconds"),
        _limited(at_least, "speed", speed, limits.min_tokens_per_second, "tokens per second of greedy answers"),
    ]


def _limited(
    judged: Callable[[str, float, float, str], Finding], rule: str, value: float, limit: float | None, what: str
) -> Finding:
    """Judge a number where there is a limit; say it where there is none."""
    if limit is None:
        return Finding(rule, True, f"{what} is {value:.4g}, not limited", value=value)
    return judged(rule, value, limit, what)
