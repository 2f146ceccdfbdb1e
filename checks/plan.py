"""The plan gate: whether a training can work as the run file describes it, before anything is loaded."""

from loragate.config import Train
from loragate.limits import PlanLimits
from loragate.lint import lint
from loragate.plan import Plan
from loragate.verdicts import Verdict, conclude


def judge(settings: Train, plan: Plan, limits: PlanLimits) -> Verdict:
    """Judge the settings of a training by its plan."""
    return conclude("plan", lint(settings, plan, limits))
