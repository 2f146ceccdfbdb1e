"""One step down the ladder: whether a model still is the one that it was made from, on the same held-out rows.

Perplexity is judged by its interval over rows. Divergence and agreement are judged as they stand: they are means over
positions at which both models read the same tokens, so there is no noise in them but rounding.
"""

from dataclasses import dataclass

from checks.intervals import Asked, shown_ratios
from loragate.ladder import Hop
from loragate.verdicts import Finding, at_least, at_most


@dataclass(frozen=True, slots=True)
class HopLimits:
    """What one step may cost.

    Attributes:
        max_perplexity_ratio: Perplexity / that of the rung before.
        max_kl: Mean KL(rung before || this one) in nats.
        min_top1_agreement: Share of positions where both have the same likeliest token.
        alpha: Probability with which the bound of the ratio's interval may be wrong.
    """

    max_perplexity_ratio: float
    max_kl: float
    min_top1_agreement: float
    alpha: float


def judge_hop(hop: Hop, limits: HopLimits) -> list[Finding]:
    """Judge perplexity, divergence and agreement of a rung and the one that it was made from."""
    far, limit = hop.divergence, limits.max_perplexity_ratio
    where = f"over {far.positions:,} positions"
    kl = f"mean KL({hop.above} || {hop.name}) {where}, in nats,"
    agreement = f"share of likeliest tokens in which {hop.above} and {hop.name} agree {where}"
    return [
        at_least("positions_compared", far.positions, 1, "number of positions compared"),
        at_most("kl", far.kl, limits.max_kl, kl),
        at_least("top1_agreement", far.top1_agreement, limits.min_top1_agreement, agreement),
        *shown_ratios([Asked("perplexity_ratio", hop.compared, limit, limits.alpha, "previous")]).values(),
    ]
