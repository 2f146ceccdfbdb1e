"""Where a reader meets an interval: the terminal, the JSON and the report say the same numbers."""

import json
import math
from dataclasses import replace

from loragate.comparison import Comparison
from loragate.engines.report import render_report
from loragate.ladder import Rung
from loragate.listing import describe
from loragate.perplexity import Nll
from loragate.record import AttemptRecord, Closed, Opened
from loragate.summary import summary
from loragate.verdicts import Finding, conclude
from loragate.wear import Look

COMPARED = Comparison(
    rows=20,
    before=Nll(100.0, 40),
    after=Nll(95.0, 40),
    ratio=0.8825,
    low=0.7512,
    high=1.0621,
    standard_error=0.1,
    limit=1.0,
    alpha=0.05,
    draws=10_000,
    p_value=0.12,
    shown_ratio=0.7625,
)
UNDECIDED = Finding(
    "perplexity_ratio", False, "20 rows are too few", value=0.8825, limit=1, low=0.7512, high=1.0621, evidence="little"
)
RECORD = AttemptRecord(
    Opened("attempt-1", "helper", "2026-11-22T05:58:01+00:00", {}, {}),
    Closed("refused", "too few rows", "2026-11-22T06:07:16+00:00"),
    verdicts=(conclude("quality", [UNDECIDED]),),
    ladder=(Rung("baseline", COMPARED.before), Rung("tuned", COMPARED.after)),
    comparisons={"tuned": COMPARED},
)
LOST = replace(COMPARED, ratio=math.nan, low=math.nan, high=math.nan, problem="no row was scored")


def test_terminal_shows_the_interval_and_what_the_rows_are_able_to_show() -> None:
    lines = describe(RECORD, "").splitlines()
    assert "quality gate       INCONCLUSIVE  (1 rules)" in lines
    assert "tuned / baseline: x0.751 to x1.062 with 90 % confidence (20 rows)" in lines
    assert "  with 80 % power, as many rows show a true ratio of x0.762 to be at most x1" in lines


def test_terminal_and_report_tell_no_power_of_too_few_rows() -> None:
    few = replace(RECORD, comparisons={"tuned": replace(COMPARED, shown_ratio=math.nan)})
    assert "  so few rows do not tell how large a ratio they are able to show" in describe(few, "").splitlines()
    assert "So few rows do not tell how large a ratio they are able to show." in render_report(few)
    assert "NaN" not in render_report(few)


def test_champion_slices_and_look_are_told_and_a_slice_s_name_is_data() -> None:
    name = "a\x1b[2J<b>"
    compared = {"champion": COMPARED, f"slice/{name}": COMPARED, f"champion/slice/{name}": COMPARED}
    record = replace(RECORD, comparisons=compared, look=Look("w", 20, (), 2.5, 0.0057), champion="helper@3")
    shown = describe(record, "")
    assert "tuned / champion: x0.751 to x1.062 with 90 % confidence (20 rows)" in shown
    assert "tuned / baseline on the slice a\N{REPLACEMENT CHARACTER}[2J<b>: x0.751" in shown
    assert "champion: helper@3" in shown
    assert "look number 2.5 at the held-out rows, with alpha 0.0057" in shown
    html = render_report(record)
    assert "tuned ÷ champion on the slice a[U+001B][2J&lt;b&gt;, row by row" in html
    assert "Look number 2.5 at these held-out rows, with alpha 0.0057, champion: helper@3." in html
    said = summary(record, report="")
    assert (said["champion"], said["look"]) == (
        "helper@3",
        {"weights": "w", "rows": 20, "number": 2.5, "alpha": 0.0057},
    )


def test_json_has_the_comparison_and_the_finding_s_bounds() -> None:
    said = json.loads(json.dumps(summary(RECORD, report="")))
    assert said["comparisons"]["tuned"]["high"] == 1.0621
    (gate,) = said["gates"]
    (found,) = gate["findings"]
    assert (gate["status"], found["low"], found["high"], found["evidence"]) == (
        "inconclusive",
        0.7512,
        1.0621,
        "little",
    )


def test_report_shows_the_interval_beside_the_value_and_calls_it_inconclusive() -> None:
    html = render_report(RECORD)
    assert '0.8825<small class="interval">0.7512 to 1.062</small>' in html
    assert '<span class="badge inconclusive">' in html
    assert '<span class="badge fail">' not in html
    assert "tuned ÷ baseline, row by row: ×0.882, with 90 % confidence ×0.751 to ×1.062, from 20 rows" in html


def test_a_comparison_without_numbers_says_why() -> None:
    lost = replace(RECORD, comparisons={"tuned": LOST})
    assert "tuned ÷ baseline, row by row: no row was scored." in render_report(lost)
    assert "tuned / baseline" not in describe(lost, "")


def test_a_record_without_comparison_shows_none() -> None:
    bare = replace(RECORD, comparisons={}, verdicts=())
    assert "row by row" not in render_report(bare)
    assert "tuned / baseline" not in describe(bare, "")
