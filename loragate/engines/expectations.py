"""The data gate's rules as Great Expectations over the facts table.

Great Expectations passes an empty suite, an empty table and a column of nulls; each of these is a rule of its own here.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import great_expectations as gx
import great_expectations.expectations as _gxe
import pandas as pd
from great_expectations.expectations.row_conditions import Column

from loragate.child import Progress, Report
from loragate.limits import DataLimits
from loragate.work import CheckFacts, RuleResult

gxe: Any = _gxe  # its names are there, but not exported as a type checker understands it
MAX_EXAMPLES = 5
REJECTS = "rejects.jsonl"
FLAGS = frozenset({"truncated", "duplicate", "conflict", "leaked"})
"""Columns that say yes or no; other columns say what was found."""

KNOWN = (
    "place",
    "problem",
    "roles_problem",
    "question",
    "digest",
    "answer_chars",
    "tokens",
    "supervised",
    "lost_stops",
    "truncated",
    "echoed",
    "placeholder",
    "control",
    "secret",
    "contact",
)
"""Columns that must be known for every row; one that the table lacks is known for none. (Great Expectations itself
passes over a null.)"""


@dataclass(frozen=True, slots=True)
class Rule:
    """One expectation under its machine name, and the column that says what is wrong with a row."""

    name: str
    side: str
    expectation: Any
    reason: str = ""
    limit: str = ""
    severity: Literal["refuse", "warn"] = "refuse"


@dataclass(frozen=True, slots=True)
class Reject:
    """One rule that one row breaks, and why."""

    side: str
    place: str
    rule: str
    severity: str
    reason: str


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What the rules of one side found: results in the rules' order, and each broken rule of each row."""

    results: tuple[RuleResult, ...]
    rejects: tuple[Reject, ...]


def check_facts(request: CheckFacts, report: Report) -> tuple[RuleResult, ...]:
    """Run every rule; write Great Expectations' results and data docs, and `rejects.jsonl`, into the folder."""
    facts = pd.read_json(request.facts, lines=True, dtype=False)
    facts = _derived(facts.reindex(columns=["side", *KNOWN]), _near(request.near))
    context = gx.get_context(mode="file", project_root_dir=request.folder)
    source = context.data_sources.add_pandas("facts")
    results: list[RuleResult] = []
    rejects: list[Reject] = []
    sides = ("train", "heldout")
    for done, side in enumerate(sides, start=1):
        rules = list(rules_for(side, request.limits))
        outcomes = _validate(context, source, facts[facts["side"] == side], rules, Path(request.folder))
        results += outcomes.results
        rejects += outcomes.rejects
        report(Progress(done, len(sides), "suites"))
    context.build_data_docs()
    lines = (json.dumps(asdict(reject)) + "\n" for reject in rejects)
    (Path(request.folder) / REJECTS).write_text("".join(lines), encoding="utf-8")
    return tuple(results)


def _near(path: str) -> pd.DataFrame:
    """Near duplicates by side and place."""
    columns = ["side", "place", "near", "jaccard"]
    with Path(path).open(encoding="utf-8") as file:
        found = pd.DataFrame([json.loads(line) for line in file], columns=columns, dtype=object)
    near = "near " + found["near"].astype(str) + ", Jaccard " + found["jaccard"].astype(str)
    return found.assign(near=near)[["side", "place", "near"]]


def _derived(facts: pd.DataFrame, near: pd.DataFrame) -> pd.DataFrame:
    """Add the columns that compare rows with each other."""
    missing = facts[list(KNOWN)].isna()
    facts["unknown"] = missing.idxmax(axis=1).where(missing.any(axis=1), "")
    keys = {"side": object, "place": object}
    facts = facts.astype(keys).merge(near, how="left", on=["side", "place"]).fillna({"near": ""})
    train = facts["side"] == "train"
    facts["duplicate"] = facts[train].duplicated("digest").reindex(facts.index, fill_value=False)
    facts["leaked"] = ~train & facts["question"].isin(facts.loc[train, "question"])
    answers = facts[train].groupby("question")["digest"].transform("nunique").reindex(facts.index, fill_value=1)
    facts["conflict"] = answers > 1
    return facts


def rules_for(side: str, limits: DataLimits) -> Iterator[Rule]:
    """Yield the rules of one side (train or heldout)."""
    fewest = limits.min_train_rows if side == "train" else limits.min_heldout_rows
    yield Rule("rows", side, gxe.ExpectTableRowCountToBeBetween(min_value=fewest), limit=f"at least {fewest}")
    yield Rule("facts_known", side, gxe.ExpectColumnValuesToBeInSet(column="unknown", value_set=[""]), "unknown")
    yield Rule("format", side, gxe.ExpectColumnValuesToBeInSet(column="problem", value_set=[""]), "problem")
    yield Rule("roles", side, gxe.ExpectColumnValuesToBeInSet(column="roles_problem", value_set=[""]), "roles_problem")
    yield Rule("answer_not_empty", side, _at_least("answer_chars", limits.min_answer_chars))
    yield Rule("answer_supervised", side, _at_least("supervised", 1))
    yield Rule("stop_token_supervised", side, gxe.ExpectColumnValuesToBeBetween(column="lost_stops", max_value=0))
    yield _mostly("not_truncated", side, "truncated", limits.max_truncated_share)
    yield _mostly("answer_not_question", side, "echoed", limits.max_echoed_share)
    yield _mostly("no_control_characters", side, "control", limits.max_control_share)
    yield _mostly("no_secrets", side, "secret", limits.max_secret_share)
    yield _warning(_mostly("no_placeholders", side, "placeholder", limits.max_placeholder_share))
    yield _warning(_mostly("no_contacts", side, "contact", limits.max_contact_share))
    if side == "train":
        yield _mostly("no_duplicates", side, "duplicate", limits.max_duplicate_share)
        yield _warning(_mostly("no_near_duplicates", side, "near", limits.max_near_duplicate_share))
        yield _warning(_mostly("one_answer_per_question", side, "conflict", limits.max_conflict_share))
    else:
        yield _mostly("not_in_training_rows", side, "leaked", limits.max_leaked_share)
        yield _mostly("not_near_training_rows", side, "near", limits.max_near_leaked_share)


def _at_least(column: str, fewest: int) -> Any:
    """Expect a number of every row that could be rendered; what is wrong with the others has a rule of its own."""
    rendered = (Column("problem") == "") & (Column("roles_problem") == "")
    return gxe.ExpectColumnValuesToBeBetween(column=column, min_value=fewest, row_condition=rendered)


def _mostly(name: str, side: str, column: str, max_share: float) -> Rule:
    """Expect a column to be false or empty in most rows; a column of texts says what was found."""
    fine, reason = ([False], "") if column in FLAGS else ([""], column)
    expectation = gxe.ExpectColumnValuesToBeInSet(column=column, value_set=fine, mostly=1 - max_share)
    return Rule(name, side, expectation, reason, limit=f"at most {max_share:.3g} of all allowed")


def _warning(rule: Rule) -> Rule:
    rule.expectation.severity = "warning"
    return replace(rule, severity="warn")


def _validate(context: Any, source: Any, facts: pd.DataFrame, rules: Sequence[Rule], folder: Path) -> Outcomes:
    side = rules[0].side
    batch = source.add_dataframe_asset(side).add_batch_definition_whole_dataframe(side)
    suite = context.suites.add(gx.ExpectationSuite(name=side, expectations=[rule.expectation for rule in rules]))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=side, data=batch, suite=suite))
    result_format = {"result_format": "COMPLETE", "unexpected_index_column_names": ["place"]}
    outcome = definition.run(batch_parameters={"dataframe": facts}, result_format=result_format)
    (folder / f"results_{side}.json").write_text(json.dumps(outcome.to_json_dict(), indent=1), encoding="utf-8")
    by_place = facts.set_index("place")
    by_identity = {_identity(result.expectation_config.to_json_dict()): result for result in outcome.results}
    found = [(rule, by_identity[_identity(rule.expectation.configuration.to_json_dict())]) for rule in rules]
    rejects = [reject for rule, result in found for reject in _rejects(rule, result, by_place)]
    return Outcomes(tuple(_result(rule, result, by_place) for rule, result in found), tuple(rejects))


def _identity(configuration: dict[str, Any]) -> str:
    """Tell expectations apart: results come back in an order of their own."""
    kwargs = {name: value for name, value in configuration["kwargs"].items() if name != "batch_id"}
    return json.dumps([configuration["type"], kwargs], sort_keys=True)


def _result(rule: Rule, outcome: Any, by_place: pd.DataFrame) -> RuleResult:
    raised = outcome.exception_info or {}
    raised = raised if "raised_exception" in raised else next(iter(raised.values()), {})
    result = outcome.result
    evaluated = result.get("element_count", result.get("observed_value", 0)) or 0
    examples = [f"{place}: {reason}" if reason else place for place, reason in _places(rule, outcome, by_place)]
    return RuleResult(
        rule=f"{rule.side}.{rule.name}",
        success=bool(outcome.success),
        evaluated=int(evaluated),
        unexpected=int(result.get("unexpected_count", 0) or 0),
        examples=tuple(examples[:MAX_EXAMPLES]),
        error=str(raised.get("exception_message", "")) if raised.get("raised_exception") else "",
        limit=rule.limit,
        severity=rule.severity,
    )


def _places(rule: Rule, outcome: Any, by_place: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield the place of each row that breaks a rule, and why where the facts say more than the rule."""
    for entry in outcome.result.get("unexpected_index_list") or []:
        place = entry["place"]
        yield place, str(by_place[rule.reason].loc[[place]].iloc[0]) if rule.reason else ""


def _rejects(rule: Rule, outcome: Any, by_place: pd.DataFrame) -> Iterator[Reject]:
    for place, reason in _places(rule, outcome, by_place):
        yield Reject(rule.side, place, rule.name, rule.severity, reason)
