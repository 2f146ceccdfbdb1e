"""Every gate by its grounds: which limits of the run file its check holds them against.

A release and a replay of it both judge here, so that no limit can be another in one of them.
"""

from checks import card, data, gguf_file, merge, plan, preflight, quality, training
from loragate.config import Config
from loragate.grounds import (
    CardGrounds,
    DataGrounds,
    GgufGrounds,
    Grounds,
    MergeGrounds,
    PlanGrounds,
    PreflightGrounds,
    QualityGrounds,
    TrainingGrounds,
)
from loragate.verdicts import Verdict


def judge(grounds: Grounds, config: Config) -> Verdict:
    """Judge a gate by its grounds and the run file's limits."""
    limits, alpha = config.gates, config.gates.quality.alpha
    match grounds:
        case CardGrounds(stated):
            verdict = card.judge(config.card.required, stated)
        case DataGrounds(checked):
            verdict = data.judge(checked, limits.data)
        case PlanGrounds(planned):
            verdict = plan.judge(config.train, planned, limits.plan)
        case PreflightGrounds(evidence):
            verdict = preflight.judge(evidence, limits.preflight)
        case TrainingGrounds(trained, adapter):
            verdict = training.judge(trained, adapter, config.train, limits.training)
        case QualityGrounds(compared, general, answered, trained, challenge):
            verdict = quality.judge(compared, general, answered, trained, limits.quality, challenge)
        case MergeGrounds(merge_evidence, hop, from_base, merged):
            verdict = merge.judge(merge_evidence, hop, from_base, limits.merge, alpha=alpha, merged=merged)
        case GgufGrounds(name, file_evidence, hop, base):
            verdict = gguf_file.judge(name, file_evidence, hop, base, limits.gguf, alpha=alpha)
    return verdict
