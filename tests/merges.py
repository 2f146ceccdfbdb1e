"""A merge judged as the road judges it: both models measured on the same rows, and the tensors compared."""

from dataclasses import replace
from pathlib import Path

from checks import merge
from loragate.artifact_work import CompareMerged
from loragate.child import ignore
from loragate.comparison import ComparePaired
from loragate.engines import merging, paired, scoring
from loragate.ladder import Divergence, Hop
from loragate.limits import MergeLimits
from loragate.perplexity import Nll
from loragate.record import Merge
from loragate.verdicts import Verdict
from loragate.work import MeasureModel, Model


def judge_merge(model: Model, merged: Path, heldout: Path, folder: Path, limits: MergeLimits) -> Verdict:
    """Measure base, base + adapter and merged weights as the road does, and have the merge gate judge the last step."""
    plain = replace(model, adapter=None, quantized=False)
    models = {
        "baseline": plain,
        "tuned": model,
        "merged": replace(plain, base=replace(model.base, path=str(merged))),
    }
    rows: dict[str, tuple[Nll, ...]] = {}
    far: dict[str, Divergence] = {}
    for name, each in models.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        against = {above: str(folder / above) for above in rows}
        found = scoring.measure(MeasureModel(each, str(heldout), (), 1, 1000, str(folder / name), against), ignore)
        rows[name], far = found.rows, found.divergences
    asked = ComparePaired(rows["tuned"], rows["merged"], limits.max_perplexity_ratio, 0.05, 1000, 0)
    hop = Hop("tuned", "merged", paired.compare(asked, ignore), far["tuned"])
    evidence = merging.compare(CompareMerged(model, str(merged)), ignore)
    how = Merge("original", evidence.dtype, "streamed")
    return merge.judge(evidence, hop, far["baseline"], limits, alpha=0.05, merged=how)
