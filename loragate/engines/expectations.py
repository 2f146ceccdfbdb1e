"""The data gate's rules as Great Expectations over the facts table.

Great Expectations passes an empty suite, an empty table and a column of nulls; each of these is a rule of its own here.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import great_expectations as gx
import great_expectations.expectations as _gxe
import pandas as pd
from great_expectations.expectations.row_conditions import Column

from loragate.child import Progress, Report
from loragate.config import DataLimits
from loragate.work import CheckFacts, RuleResult

gxe: Any = _gxe  # its names are there, but not exported as a type checker understands it
MAX_EXAMPLES = 5
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
)
"""Columns that must be known for every row; one that the table lacks is known for none."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One expectation under its machine name, and the column that says what is wrong with a row."""

    name: str
    side: str
    expectation: Any
    reason: str = ""
    limit: str = ""


def check_facts(request: CheckFacts, report: Report) -> tuple[RuleResult, ...]:
    """Run every rule and write Great Expectations' results and data docs into the folder."""
    facts = _derived(pd.read_json(request.facts, lines=True).reindex(columns=["side", *KNOWN]))
    context = gx.get_context(mode="file", project_root_dir=request.folder)
    source = context.data_sources.add_pandas("facts")
    results: list[RuleResult] = []
    sides = ("train", "heldout")
    for done, side in enumerate(sides, start=1):
        rules = list(rules_for(side, request.limits))
        results += _validate(context, source, facts[facts["side"] == side], rules, side, Path(request.folder))
        report(Progress(done, len(sides), "suites"))
    context.build_data_docs()
    return tuple(results)


def _derived(facts: pd.DataFrame) -> pd.DataFrame:
    """Add the columns that compare rows with each other."""
    train = facts["side"] == "train"
    facts["duplicate"] = facts[train].duplicated("digest").reindex(facts.index, fill_value=False)
    facts["leaked"] = ~train & facts["question"].isin(facts.loc[train, "question"])
    return facts


def rules_for(side: str, limits: DataLimits) -> Iterator[Rule]:
    """Yield the rules of one side (train or heldout)."""
    fewest = limits.min_train_rows if side == "train" else limits.min_heldout_rows
    yield Rule("rows", side, gxe.ExpectTableRowCountToBeBetween(min_value=fewest), limit=f"at least {fewest}")
    for column in KNOWN:
        yield Rule(f"{column}_known", side, gxe.ExpectColumnValuesToNotBeNull(column=column))
    yield Rule("format", side, gxe.ExpectColumnValuesToBeInSet(column="problem", value_set=[""]), "problem")
    yield Rule("roles", side, gxe.ExpectColumnValuesToBeInSet(column="roles_problem", value_set=[""]), "roles_problem")
    yield Rule("answer_not_empty", side, _at_least("answer_chars", limits.min_answer_chars))
    yield Rule("answer_supervised", side, _at_least("supervised", 1))
    yield Rule("stop_token_supervised", side, gxe.ExpectColumnValuesToBeBetween(column="lost_stops", max_value=0))
    yield _mostly_false("not_truncated", side, "truncated", limits.max_truncated_share)
    if side == "train":
        yield _mostly_false("no_duplicates", side, "duplicate", limits.max_duplicate_share)
    else:
        yield _mostly_false("not_in_training_rows", side, "leaked", limits.max_leaked_share)


def _at_least(column: str, fewest: int) -> Any:
    """Expect a number of every row that could be rendered; what is wrong with the others has a rule of its own."""
    rendered = (Column("problem") == "") & (Column("roles_problem") == "")
    return gxe.ExpectColumnValuesToBeBetween(column=column, min_value=fewest, row_condition=rendered)


def _mostly_false(name: str, side: str, column: str, max_share: float) -> Rule:
    expectation = gxe.ExpectColumnValuesToBeInSet(column=column, value_set=[False], mostly=1 - max_share)
    return Rule(name, side, expectation, limit=f"at most {max_share:.3g} of all allowed")


def _validate(
    context: Any, source: Any, facts: pd.DataFrame, rules: Sequence[Rule], side: str, folder: Path
) -> Iterator[RuleResult]:
    batch = source.add_dataframe_asset(side).add_batch_definition_whole_dataframe(side)
    suite = context.suites.add(gx.ExpectationSuite(name=side, expectations=[rule.expectation for rule in rules]))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=side, data=batch, suite=suite))
    result_format = {"result_format": "COMPLETE", "unexpected_index_column_names": ["place"]}
    outcome = definition.run(batch_parameters={"dataframe": facts}, result_format=result_format)
    (folder / f"results_{side}.json").write_text(json.dumps(outcome.to_json_dict(), indent=1), encoding="utf-8")
    by_place = facts.set_index("place")
    found = {_identity(result.expectation_config.to_json_dict()): result for result in outcome.results}
    for rule in rules:
        yield _result(rule, found[_identity(rule.expectation.configuration.to_json_dict())], by_place)


def _identity(configuration: dict[str, Any]) -> str:
    """Tell expectations apart: results come back in an order of their own."""
    kwargs = {name: value for name, value in configuration["kwargs"].items() if name != "batch_id"}
    return json.dumps([configuration["type"], kwargs], sort_keys=True)


def _result(rule: Rule, outcome: Any, by_place: pd.DataFrame) -> RuleResult:
    raised = outcome.exception_info or {}
    raised = raised if "raised_exception" in raised else next(iter(raised.values()), {})
    result = outcome.result
    evaluated = result.get("element_count", result.get("observed_value", 0)) or 0
    places = [entry["place"] for entry in (result.get("unexpected_index_list") or [])[:MAX_EXAMPLES]]
    return RuleResult(
        rule=f"{rule.side}.{rule.name}",
        success=bool(outcome.success),
        evaluated=int(evaluated),
        unexpected=int(result.get("unexpected_count", 0) or 0),
        examples=tuple(_example(place, rule, by_place) for place in places),
        error=str(raised.get("exception_message", "")) if raised.get("raised_exception") else "",
        limit=rule.limit,
    )


def _example(place: str, rule: Rule, by_place: pd.DataFrame) -> str:
    if not rule.reason:
        return place
    reasons = by_place[rule.reason].loc[[place]]
    return f"{place}: {reasons.iloc[0]}"
