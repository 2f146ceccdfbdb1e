"""A refusal names its rows: which fared worst, which break the data's rules, which answers did not stop."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loragate.attempt import Measurement, Rows
from loragate.listing import describe
from loragate.perplexity import Nll
from loragate.record import AttemptRecord, Closed, Opened, Sample
from loragate.refusal import Row, causes
from loragate.rendering import Example, rendered_line
from loragate.rows import Conversation, Message
from loragate.verdicts import Finding, Verdict, conclude
from loragate.waivers import Ignored, Review
from loragate.worst_rows import MOST, WorstRow, beginning, worst
from tasks.worst_rows import worst_rows

OPENED = Opened("attempt-1", "helper", "2026-11-22T06:00:00+00:00", {}, {})
REFUSED = Closed("refused", "refused", "2026-11-22T06:10:00+00:00")
RATIO = Finding("perplexity_ratio", False, "the ratio is 1.25", value=1.25, limit=1.0, low=1.1, high=1.4)
STOPS = Finding("stop_share", False, "share is 0.5, at least 0.75 required", value=0.5, limit=0.75)
WORST = (WorstRow("heldout.jsonl:7", "What is rain?", Nll(1.5, 3), Nll(2.25, 3)),)
SAMPLES = tuple(
    Sample(f"Why\n{number}?", "So.", "x", "y", before_stopped=True, after_stopped=number != 1) for number in range(3)
)


def refused(*verdicts: Verdict, **more: object) -> AttemptRecord:
    return AttemptRecord(OPENED, REFUSED, verdicts=verdicts, **more)  # type: ignore[arg-type]


def nlls(values: list[float]) -> list[Nll]:
    return [Nll(value, 2) for value in values]


@pytest.mark.parametrize(
    ("before", "after", "order"),
    [
        ([1, 1, 1], [2, 4, 3], (1, 2, 0)),
        ([1, 1, 1], [0.5, 0.9, 0.1], (1, 0, 2)),
        ([1, 1], [2, 2], (0, 1)),
        ([1, 1, 1], [9, math.nan, 2], (1, 0, 2)),
        ([], [], ()),
    ],
)
def test_rows_stand_by_their_change_for_the_worse(
    before: list[float], after: list[float], order: tuple[int, ...]
) -> None:
    assert worst(nlls(before), nlls(after)) == order


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), max_size=30))
def test_no_row_left_out_fared_worse_than_one_that_is_named(pairs: list[tuple[float, float]]) -> None:
    named = worst(nlls([a for a, _ in pairs]), nlls([b for _, b in pairs]))
    changes = [b - a for a, b in pairs]
    assert len(set(named)) == len(named) == min(MOST, len(pairs))
    least = min((changes[number] for number in named), default=0.0)
    assert all(changes[number] <= least for number in range(len(pairs)) if number not in named)


def measured(*rows: Nll) -> Measurement:
    return Measurement("tuned", rows, (), "", "", {})


def test_worst_rows_are_read_by_place_and_question_from_the_rendered_rows(tmp_path: Path) -> None:
    example = Example((1, 2), ((1, 2),), 1, 1, 2)
    with (tmp_path / "heldout.jsonl").open("wb") as file:
        for number in range(3):
            turns = (Message("user", f"What  is\n{number}? " + "really " * 40), Message("assistant", "It is."))
            file.write(rendered_line(example, Conversation(turns), f"held.csv:{number + 2}"))
    rows = Rows(str(tmp_path), "digest")
    before, after = (measured(*nlls(values)) for values in ([1, 1, 1], [1, 3, 2]))
    found = worst_rows(before, after, rows)
    assert [row.place for row in found] == ["held.csv:3", "held.csv:4", "held.csv:2"]
    assert found[0].question.startswith("What is 1? really")
    assert found[0].question.endswith(" …")
    assert (found[0].before, found[0].after) == (Nll(1, 2), Nll(3, 2))
    assert worst_rows(before, measured(), rows) == ()


def test_beginning_is_one_line() -> None:
    assert (beginning(" a\n b "), beginning(" \n"), beginning("")) == ("a b", "", "")
    assert len(beginning("word " * 400)) <= 90


def test_each_rule_that_refuses_is_a_cause_with_the_rows_behind_it() -> None:
    record = refused(conclude("quality", [RATIO, STOPS]), samples=SAMPLES, worst_rows={"baseline": WORST})
    ratio, stops = causes(record)
    assert ratio.rows == (Row("heldout.jsonl:7", "What is rain?", 1.5, 2.25),)
    assert (stops.finding, stops.rows) == (STOPS, (Row("", "Why 1?"),))


def test_rows_of_the_data_gate_are_places_with_what_is_wrong_and_the_rest_is_counted() -> None:
    examples = ("a.jsonl:3", "a.jsonl:4: asks what bench.jsonl:1 asks: yes")
    finding = Finding("train.not_in_protected", False, "9 of 20", value=9, limit=0, examples=examples)
    (cause,) = causes(refused(conclude("data", [finding])))
    assert cause.rows == (Row("a.jsonl:3", ""), Row("a.jsonl:4", "asks what bench.jsonl:1 asks: yes"))
    assert cause.more == 7


def test_what_passed_or_only_warns_is_no_cause_and_waived_ones_come_last() -> None:
    waived = Finding("a", False, "waived", waived="by Ada")
    mild = Finding("b", False, "mild", severity="warn")
    record = refused(conclude("data", [waived, mild]), conclude("quality", [RATIO, Finding("c", True, "fine")]))
    assert [cause.finding for cause in causes(record)] == [RATIO, waived]


def test_show_tells_interval_rows_candidate_and_ignored_waivers_of_a_refusal() -> None:
    review = Review("c" * 64, ignored=(Ignored("waivers/a.json", "it ended"),), commands=("loragate waive x",))
    record = refused(conclude("quality", [RATIO]), worst_rows={"baseline": WORST}, waivers={"quality": review})
    lines = describe(record, "").splitlines()
    start = lines.index("    perplexity_ratio: the ratio is 1.25")
    assert lines[start + 1 : start + 4] == [
        "        value 1.25, interval 1.1 to 1.4, limit 1",
        "        held-out rows that fared worst, in nats:",
        "          heldout.jsonl:7  1.50 -> 2.25  What is rain?",
    ]
    told = [f"candidate {'c' * 64}", "waivers/a.json does not count: it ended", "to waive: loragate waive x"]
    assert lines[start + 5 : start + 8] == told
