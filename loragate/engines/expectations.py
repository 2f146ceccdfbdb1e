"""The data gate's rules as Great Expectations over the facts table.

Great Expectations passes an empty suite, an empty table and a column of nulls; each of these is a rule of its own here.
Which rows break a rule is read off the facts by the rule's own condition, so that a million of them need no list in
memory; where that count is not what Great Expectations counted, the rule could not be evaluated.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import great_expectations as gx
import great_expectations.expectations as _gxe
import numpy as np
import pandas as pd
from great_expectations.expectations.row_conditions import Column

from loragate.child import Progress, Report
from loragate.limits import DataLimits
from loragate.row_work import CheckedFacts, CheckFacts, RuleResult

gxe: Any = _gxe  # its names are there, but not exported as a type checker understands it
MAX_EXAMPLES = 5
REJECTS, DROPPED = "rejects.jsonl", "dropped.u8"
SIDES = ("train", "heldout")
CANNED_QUESTIONS = 3
"""Questions that one answer is given to before it counts as canned: two happens by chance."""
FLAGS = frozenset({"truncated", "doubled_bos", "duplicate", "conflict", "canned", "leaked"})
"""Columns that say yes or no; other columns say what was found."""

KNOWN = (
    "file",
    "row",
    "problem",
    "roles_problem",
    "question",
    "digest",
    "answer",
    "answer_chars",
    "longest_answer",
    "tokens",
    "supervised",
    "lost_stops",
    "truncated",
    "doubled_bos",
    "echoed",
    "placeholder",
    "control",
    "secret",
    "contact",
    "special",
    "language",
    "passage",
)
"""Columns that must be known for every row; one that the table lacks is known for none. (Great Expectations itself
passes over a null.)"""


@dataclass(frozen=True, slots=True)
class Rule:
    """One expectation under its machine name, the rows that break it, and the column that says what is wrong."""

    name: str
    side: str
    expectation: Any
    broken: Callable[[pd.DataFrame], "pd.Series[bool]"]
    reason: str = ""
    bound: float = 0.0
    severity: Literal["refuse", "warn"] = "refuse"


def check_facts(request: CheckFacts, report: Report) -> CheckedFacts:
    """Run every rule; write Great Expectations' results and data docs, and `rejects.jsonl`, into the folder.

    Where rows are to be dropped, those that break a refusing rule are, and the rules are run again on what is left.
    """
    folder = Path(request.folder)
    facts = read_facts(Path(request.facts), Path(request.near))
    context = gx.get_context(mode="file", project_root_dir=folder)
    with (folder / REJECTS).open("w", encoding="utf-8") as rejects:
        judged = _Pass(context, folder, request.limits, rejects)
        results, dropped = judged.run(facts, "", report)
        if request.limits.on_reject == "drop" and dropped.any():
            rest = read_facts(Path(request.facts), Path(request.near), without=facts.index[dropped])
            results, _ = replace(judged, rejects=None).run(rest, "_rest", report)
        else:
            dropped[:] = False
    context.build_data_docs()
    facts.index[dropped].to_numpy(np.uint64).tofile(folder / DROPPED)
    counts = {side: int((dropped & (facts["side"] == side)).sum()) for side in SIDES}
    return CheckedFacts(results, {side: int((facts["side"] == side).sum()) for side in SIDES}, counts)


def read_facts(path: Path, near: Path, without: "pd.Index[int] | None" = None) -> pd.DataFrame:
    """Read the facts, leave out some of them, and add the columns that compare rows with each other."""
    facts = pd.read_parquet(path)
    facts = facts.reindex(columns=["side", *KNOWN])
    facts["near"] = _near(near, without)
    facts["near"] = facts["near"].fillna("")
    if without is not None:
        facts = facts.drop(index=without)
    facts["unknown"] = _unknown(facts)
    train = facts["side"] == "train"
    facts["duplicate"] = facts.loc[train, "digest"].duplicated().reindex(facts.index, fill_value=False)
    facts["leaked"] = ~train & facts["question"].isin(facts.loc[train, "question"])
    different = facts.loc[train, ["question", "digest"]].drop_duplicates()
    several = different.loc[different["question"].duplicated(), "question"]
    facts["conflict"] = train & facts["question"].isin(several)
    facts["canned"] = train & facts["answer"].isin(_canned(facts[train]))
    return facts


def _canned(train: pd.DataFrame) -> "pd.Index[int]":
    """Answers that are given to several questions."""
    pairs = train.loc[train["answer"] != 0, ["question", "answer"]].drop_duplicates()
    counts = pairs["answer"].value_counts()
    return counts.index[counts >= CANNED_QUESTIONS]


def _near(path: Path, without: "pd.Index[int] | None") -> "pd.Series[str]":
    """Near duplicates by the number of their facts; what is near to a row that is left out is not near to it."""
    with path.open(encoding="utf-8") as file:
        found = [json.loads(line) for line in file]
    gone = frozenset() if without is None else frozenset(without)
    texts = {
        entry["fact"]: f"near {entry['near']}, Jaccard {entry['jaccard']}"
        for entry in found
        if entry["earlier"] not in gone
    }
    return pd.Series(texts, dtype="str")


def _unknown(facts: pd.DataFrame) -> "pd.Series[str]":
    """The first column that is not known, for each row; empty where all are."""
    unknown = pd.Series("", index=facts.index, dtype="str")
    for name in reversed(KNOWN):
        missing = facts[name].isna()
        if missing.any():
            unknown[missing] = name
    return unknown


def rules_for(side: str, limits: DataLimits) -> Iterator[Rule]:
    """Yield the rules of one side (train or heldout)."""
    fewest = limits.min_train_rows if side == "train" else limits.min_heldout_rows
    rows = gxe.ExpectTableRowCountToBeBetween(min_value=fewest)
    yield Rule("rows", side, rows, lambda facts: facts["side"] != side, bound=fewest)
    yield _mostly("facts_known", side, "unknown", 0.0)
    yield _mostly("format", side, "problem", 0.0)
    yield _mostly("roles", side, "roles_problem", 0.0)
    yield _between("answer_not_empty", side, "answer_chars", least=limits.min_answer_chars)
    yield _between("answer_length", side, "longest_answer", most=limits.max_answer_chars)
    yield _between("answer_supervised", side, "supervised", least=1)
    yield _between("stop_token_supervised", side, "lost_stops", most=0)
    yield _mostly("not_truncated", side, "truncated", limits.max_truncated_share)
    yield _mostly("bos_once", side, "doubled_bos", 0.0)
    yield _mostly("no_special_tokens", side, "special", limits.max_special_share)
    yield _mostly("answer_not_question", side, "echoed", limits.max_echoed_share)
    yield _mostly("no_control_characters", side, "control", limits.max_control_share)
    yield _mostly("no_secrets", side, "secret", limits.max_secret_share)
    yield _mostly("language", side, "language", limits.max_foreign_share)
    yield _warning(_mostly("no_placeholders", side, "placeholder", limits.max_placeholder_share))
    yield _warning(_mostly("no_contacts", side, "contact", limits.max_contact_share))
    if side == "train":
        yield _mostly("no_duplicates", side, "duplicate", limits.max_duplicate_share)
        yield _warning(_mostly("no_near_duplicates", side, "near", limits.max_near_duplicate_share))
        yield _warning(_mostly("one_answer_per_question", side, "conflict", limits.max_conflict_share))
        yield _mostly("no_canned_answers", side, "canned", limits.max_canned_share)
        yield _mostly("not_in_protected", side, "passage", limits.max_passage_share)
    else:
        yield _mostly("not_in_training_rows", side, "leaked", limits.max_leaked_share)
        yield _mostly("not_near_training_rows", side, "near", limits.max_near_leaked_share)


def _between(name: str, side: str, column: str, least: int | None = None, most: int | None = None) -> Rule:
    """Expect a number of every row that could be rendered; what is wrong with the others has a rule of its own."""
    rendered = (Column("problem") == "") & (Column("roles_problem") == "")
    expectation = gxe.ExpectColumnValuesToBeBetween(
        column=column, min_value=least, max_value=most, row_condition=rendered
    )

    def broken(facts: pd.DataFrame) -> "pd.Series[bool]":
        values = facts[column]
        outside = values < least if least is not None else values > most
        return (facts["problem"] == "") & (facts["roles_problem"] == "") & outside

    return Rule(name, side, expectation, broken)


def _mostly(name: str, side: str, column: str, max_share: float) -> Rule:
    """Expect a column to be false or empty in most rows; a column of texts says what was found."""
    fine, reason = ([False], "") if column in FLAGS else ([""], column)
    expectation = gxe.ExpectColumnValuesToBeInSet(column=column, value_set=fine, mostly=1 - max_share)

    def broken(facts: pd.DataFrame) -> "pd.Series[bool]":
        return facts[column].notna() & ~facts[column].isin(fine)

    return Rule(name, side, expectation, broken, reason, max_share)


def _warning(rule: Rule) -> Rule:
    rule.expectation.severity = "warning"
    return replace(rule, severity="warn")


@dataclass(frozen=True, slots=True)
class _Pass:
    """One run of all rules.

    Attributes:
        rejects: Where the rows that break a rule are listed; None for nowhere.
    """

    context: Any
    folder: Path
    limits: DataLimits
    rejects: Any

    def run(self, facts: pd.DataFrame, mark: str, report: Report) -> tuple[tuple[RuleResult, ...], "pd.Series[bool]"]:
        """Run the rules on both sides; return their results, and which rows a rule that refuses rejects."""
        source = self.context.data_sources.add_pandas(f"facts{mark}")
        rejected = pd.Series(data=False, index=facts.index)
        results: list[RuleResult] = []
        for done, side in enumerate(SIDES, start=1):
            part = facts[facts["side"] == side]
            for rule, outcome in self._validate(source, part, side, mark):
                broken = part[rule.broken(part)]
                results.append(_result(rule, outcome, broken))
                self._list(rule, broken)
                if rule.severity == "refuse" and not outcome.success:
                    rejected[broken.index] = True
            report(Progress(done, len(SIDES), "suites"))
        return tuple(results), rejected

    def _validate(self, source: Any, facts: pd.DataFrame, side: str, mark: str) -> list[tuple[Rule, Any]]:
        """Have Great Expectations evaluate the rules of one side; results come in the rules' order."""
        rules, name = list(rules_for(side, self.limits)), f"{side}{mark}"
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe(name)
        suite = gx.ExpectationSuite(name=name, expectations=[rule.expectation for rule in rules])
        definition = gx.ValidationDefinition(name=name, data=batch, suite=self.context.suites.add(suite))
        definition = self.context.validation_definitions.add(definition)
        form = {
            "result_format": "SUMMARY",
            "partial_unexpected_count": MAX_EXAMPLES,
            "unexpected_index_column_names": ["file", "row"],
        }
        outcome = definition.run(batch_parameters={"dataframe": facts}, result_format=form)
        text = json.dumps(outcome.to_json_dict(), indent=1)
        (self.folder / f"results_{name}.json").write_text(text, encoding="utf-8")
        found = {_identity(result.expectation_config.to_json_dict()): result for result in outcome.results}
        return [(rule, found[_identity(rule.expectation.configuration.to_json_dict())]) for rule in rules]

    def _list(self, rule: Rule, broken: pd.DataFrame) -> None:
        """List the rows that break a rule, with the machine's reason."""
        if self.rejects is not None:
            for place, reason in _places(rule, broken):
                entry = {"side": rule.side, "place": place, "rule": rule.name}
                entry |= {"severity": rule.severity, "reason": reason}
                self.rejects.write(json.dumps(entry) + "\n")


def _identity(configuration: dict[str, Any]) -> str:
    """Tell expectations apart: results come back in an order of their own."""
    kwargs = {name: value for name, value in configuration["kwargs"].items() if name != "batch_id"}
    return json.dumps([configuration["type"], kwargs], sort_keys=True)


def _result(rule: Rule, outcome: Any, broken: pd.DataFrame) -> RuleResult:
    result = outcome.result
    evaluated = int(result.get("element_count", result.get("observed_value", 0)) or 0)
    unexpected = int(result.get("unexpected_count", 0) or 0)
    error = _raised(outcome)
    if not error and unexpected != len(broken):
        error = f"Great Expectations counts {unexpected} rows that break the rule, the facts say {len(broken)}"
    examples = [f"{place}: {reason}" if reason else place for place, reason in _places(rule, broken[:MAX_EXAMPLES])]
    return RuleResult(
        rule=f"{rule.side}.{rule.name}",
        success=bool(outcome.success),
        evaluated=evaluated,
        unexpected=unexpected,
        examples=tuple(examples),
        error=error,
        bound=rule.bound,
        severity=rule.severity,
    )


def _raised(outcome: Any) -> str:
    """Why an expectation could not be evaluated, empty where it could."""
    raised = outcome.exception_info or {}
    raised = raised if "raised_exception" in raised else next(iter(raised.values()), {})
    return str(raised.get("exception_message", "")) if raised.get("raised_exception") else ""


def _places(rule: Rule, broken: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield the place of each row that breaks a rule, and why where the facts say more than the rule."""
    reasons = broken[rule.reason].astype(str) if rule.reason else [""] * len(broken)
    for file, row, reason in zip(broken["file"], broken["row"], reasons, strict=True):
        yield f"{file}:{row}", reason
