"""A check as a person meets it: every rule in the terminal, a report of its own, and nothing said about training."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from checks import data
from flows import check
from loragate.cli import newest, put_outcome
from loragate.engines.report import render_report
from loragate.errors import GateRefusedError
from loragate.histogram import histogram
from loragate.home import Home
from loragate.limits import DataLimits
from loragate.listing import WIDTH, describe, describe_check
from loragate.plan import DeviceFacts, Memory, ModelFacts, Plan, RowFacts
from loragate.record import AttemptRecord, Closed, Opened
from loragate.refs import Ref
from loragate.row_work import CheckedFacts, RuleResult
from loragate.verdicts import Finding, Verdict, at_most, conclude
from tasks.attempts import rehearsed

RUN = "model: helper\nbase_model: {source: org/base}\ndata: {train: [rows.jsonl]}\n"
OPENED = Opened("check-1", "helper", "2026-11-22T06:00:00+00:00", {"model": "helper"}, {})
FACTS = Ref("/home/runs/facts-1", "f" * 64)
GOOD = {
    name: RuleResult(name, success=True, evaluated=1200, unexpected=0, examples=(), error="")
    for name in (*data.RULES, "train.place_known")
}
HELD = conclude("data", [Finding("train.format", True, "training rows: fine", value=0)])
BROKEN = conclude("data", [Finding("train.format", False, "training rows: broken", value=1)])

ODD = conclude(
    "plan",
    [
        Finding("memory", True, "it fits"),
        Finding("epochs", False, "number of epochs is 6, at most 5 allowed", severity="warn"),
    ],
)
PLAN = Plan(
    rows=RowFacts(rows=100, tokens=6612, supervised=2404, longest=210, max_tokens=256),
    model=ModelFacts(
        parameters=134_515_008,
        trainable=1_843_200,
        modules=120,
        kinds=("k_proj", "o_proj", "q_proj", "v_proj"),
        rank=16,
        narrowest=192,
        positions=2048,
        dtype="float32",
        compute_dtype="",
        memory=Memory(500_000_000, 100_000_000, 500_000_000, 100_000_000, 200_000_000),
        forward_tokens=1024,
    ),
    device=DeviceFacts("CPU, 2 cores", 25_300_000_000, "float32"),
    steps=39,
    epochs=3,
)


def checked(verdict: Verdict) -> AttemptRecord:
    closed = Closed("refused" if verdict.refuses else "passed", verdict.sentence, "2026-11-22T06:01:00+00:00")
    shapes = {"lengths": histogram({7: 2, 12: 1}), "taught_shares": histogram({50: 3})}
    return AttemptRecord(OPENED, closed, verdicts=(verdict,), artifacts={"great_expectations": FACTS}, **shapes)


def table(**changes: dict[str, Any]) -> list[str]:
    """The lines that a check prints, some of its rules' results changed; `__` stands for a dot."""
    changed = {name.replace("__", "."): change for name, change in changes.items()}
    results = tuple(replace(result, **changed.get(name, {})) for name, result in GOOD.items())
    verdict = data.judge(CheckedFacts(results, rows={}, dropped={}), DataLimits())
    return describe_check(checked(verdict), "report.html").splitlines()


def line(lines: list[str], rule: str) -> list[str]:
    """The cells of one rule, its limit as one cell."""
    (found,) = (text for text in lines if text.startswith(f"  {rule} "))
    return found.split(maxsplit=4)


def below(lines: list[str], rule: str) -> list[str]:
    """What is told below one rule, without its indentation."""
    start = next(number for number, text in enumerate(lines) if text.startswith(f"  {rule} ")) + 1
    end = next(number for number in range(start, len(lines)) if not lines[number].startswith("      "))
    return [text.strip() for text in lines[start:end]]


def test_every_rule_has_one_line_with_both_sides_beside_each_other() -> None:
    lines = table()
    rules = dict.fromkeys(name.partition(".")[2] for name in data.RULES)
    assert [line(lines, rule)[1] for rule in rules] == ["ok"] * len(rules)
    assert line(lines, "format") == ["format", "ok", "0", "0"]
    assert line(lines, "no_duplicates") == ["no_duplicates", "ok", "0", "-"]
    assert line(lines, "not_in_training_rows") == ["not_in_training_rows", "ok", "-", "0"]
    assert line(lines, "facts_complete") == ["facts_complete", "ok", "-", "-"]


def test_rule_that_does_not_hold_has_its_examples_below_and_the_rest_counted() -> None:
    broken = {"success": False, "unexpected": 1107, "examples": ("rows.jsonl:3: no prompt; no answer", "a b.csv:9")}
    lines = table(train__format=broken, heldout__format={"success": False, "unexpected": 1, "examples": ("h.jsonl:2",)})
    assert line(lines, "format") == ["format", "FAIL", "1,107", "1"]
    assert below(lines, "format") == [
        "training rows: every row must be readable in its format: broken by 1,107 of 1,200",
        "rows.jsonl:3: no prompt; no answer",
        "a b.csv:9",
        "and 1,105 more",
        "held-out rows: every row must be readable in its format: broken by 1 of 1,200",
        "h.jsonl:2",
    ]


def test_warning_is_told_from_a_refusal_and_shows_its_limit() -> None:
    found = {"success": False, "unexpected": 20, "examples": ("r.jsonl:8: a@b.org",), "severity": "warn"}
    lines = table(train__no_contacts=found | {"bound": 0.01})
    assert lines[0] == "PASSED  helper"
    assert line(lines, "no_contacts") == ["no_contacts", "WARN", "20", "0", "at most 12"]
    assert below(lines, "no_contacts")[-2:] == ["r.jsonl:8: a@b.org", "and 19 more"]


def test_rows_within_a_limit_are_counted_beside_it_and_not_listed() -> None:
    lines = table(train__no_duplicates={"unexpected": 3, "examples": ("r.jsonl:8",), "bound": 0.05})
    assert line(lines, "no_duplicates") == ["no_duplicates", "ok", "3", "-", "at most 60"]
    assert below(lines, "no_duplicates") == []


def test_row_counts_and_their_limits_are_shown_for_both_sides() -> None:
    rows = {"heldout__rows": {"evaluated": 1, "success": False, "bound": 2}}
    lines = table(train__rows={"bound": 9}, **rows)
    assert " ".join(" ".join(line(lines, "rows")).split()) == "rows FAIL 1,200 1 at least 9 / at least 2"
    assert below(lines, "rows") == ["held-out rows: 1 rows, at least 2 required"]


@pytest.mark.parametrize("change", [{"evaluated": 0}, {"error": "no column, at most 3"}])
def test_rule_that_could_not_be_judged_counts_no_rows_and_says_why(change: dict[str, Any]) -> None:
    lines = table(train__roles=change)
    assert line(lines, "roles") == ["roles", "FAIL", "-", "0"]
    assert len(below(lines, "roles")) == 1


def test_share_is_shown_beside_the_number_it_was_held_against() -> None:
    shares = [at_most("train.dropped", 0.0625, 0.05, "share"), at_most("heldout.dropped", math.nan, 0.05, "share")]
    lines = describe_check(checked(conclude("data", shares)), "").splitlines()
    assert line(lines, "dropped") == ["dropped", "FAIL", "0.0625", "nan", "at most 0.05"]
    assert below(lines, "dropped") == [finding.detail for finding in shares]


def test_columns_are_aligned_and_nothing_but_paths_is_wider_than_a_terminal() -> None:
    example = f"rows.jsonl:1: {'a long reason ' * 20}"
    lines = table(train__roles={"success": False, "unexpected": 1, "examples": (example,)})
    header, format_line = (next(text for text in lines if text.startswith(f"  {name} ")) for name in ("rule", "format"))
    assert header.index("held-out") + len("held-out") == len(format_line)
    assert max(map(len, lines)) <= WIDTH
    assert "".join(example.split()) in "".join("".join(lines).split())


def test_text_of_a_row_cannot_steer_the_terminal() -> None:
    hostile = "rows.jsonl:1: \x1b[2Jgone\r\nFAIL\x85x\u202e"
    lines = table(train__roles={"success": False, "unexpected": 1, "examples": (hostile,)})
    assert below(lines, "roles")[1] == "rows.jsonl:1: \N{REPLACEMENT CHARACTER}[2Jgone FAIL x\N{REPLACEMENT CHARACTER}"


def test_places_to_look_further_follow_the_table() -> None:
    places = [text.split(maxsplit=2) for text in table()[-4:]]
    assert places[0] == ["data", "docs", "/home/runs/facts-1/gx/uncommitted/data_docs/local_site/index.html"]
    assert places[1] == ["rejected", "rows", "/home/runs/facts-1/rejects.jsonl"]
    assert (places[2][:2], places[3]) == (["check", "check-1,"], ["report", "report.html"])


def test_release_keeps_the_short_form() -> None:
    assert "\ndata gate          pass  (1 rules)\n" in describe(checked(HELD), "report.html")


@pytest.mark.parametrize(("verdict", "word"), [(HELD, "PASSED"), (BROKEN, "REFUSED")])
def test_report_of_a_check_says_that_it_trained_nothing_and_has_no_empty_sections(verdict: Verdict, word: str) -> None:
    html = render_report(checked(verdict), "checks")
    assert f"</span> {word}</h1>" in html
    assert "loragate check report</title>" in html
    assert "A check trains nothing" in html
    told = ("No training step", "No perplexity", "No sample", "nothing was released", "this attempt", "Gates further")
    assert [text for text in told if text in html] == []
    assert [name for name in ("training", "perplexity", "samples") if f'"{name}"' in html or f"#{name}" in html] == []
    assert [name for name in ("gates", "lengths", "time") if f'<section id="{name}"' not in html] == []


def test_headlines_of_a_check_are_about_its_rules_and_rows() -> None:
    verdict = conclude("data", [*HELD.findings, Finding("train.no_contacts", False, "some", severity="warn")])
    html = render_report(checked(verdict), "checks")
    wanted = ("<dd>1 of 2 <small>0 refuse, 1 warn<", "<dd>3 <small>26 tokens<", "<dd>50% <small>of a row&#39;s tokens")
    assert [text for text in wanted if text not in html] == []
    assert "none judged" in render_report(AttemptRecord(OPENED, None), "checks")


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN, encoding="utf-8")
    return path


def rehearse(run_file: Path, home: Home, verdict: Verdict) -> None:
    with rehearsed(str(run_file), str(home.root), None) as attempt:
        attempt.settle(verdict)
        if verdict.refuses:
            raise GateRefusedError(verdict.sentence)


@pytest.mark.parametrize(("verdict", "outcome"), [(HELD, "passed"), (BROKEN, "refused")])
def test_check_ends_with_a_report_beside_its_journal_and_without_mlflow(
    run_file: Path, capsys: pytest.CaptureFixture[str], verdict: Verdict, outcome: str
) -> None:
    home = Home(run_file.parent / "home")
    if verdict.refuses:
        with pytest.raises(GateRefusedError, match=r"train\.format"):
            rehearse(run_file, home, verdict)
    else:
        rehearse(run_file, home, verdict)
    found = newest(home, set(), "checks")
    report = home.root / "checks" / str(found["attempt"]) / "report.html"
    assert report.read_text(encoding="utf-8") == render_report(
        home.journal(str(found["attempt"]), "checks").read(), "checks"
    )
    assert sorted(path.name for path in home.root.rglob("*") if path.is_file()) == ["journal.jsonl", "report.html"]
    assert found["verdict"] == outcome
    capsys.readouterr()
    put_outcome(home, found, "checks", as_json=True)
    assert json.loads(capsys.readouterr().out)["artifacts"]["report"] == str(report)
    put_outcome(home, found, "checks", as_json=False)
    assert capsys.readouterr().out.endswith(f"\nreport         {report}\n")


def test_check_flow_hands_out_its_report(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in ("fetch_base", "card_gate", "prepare_rows"):
        monkeypatch.setattr(check, step, lambda *_: None)
    monkeypatch.setattr(check, "plan_training", lambda attempt, *_: attempt.note("plan", "", PLAN))
    monkeypatch.setattr(check, "data_gate", lambda attempt, _: attempt.settle(HELD))
    monkeypatch.setattr(check, "plan_gate", lambda attempt, _: attempt.settle(ODD))
    found: Any = check.check_data.fn(str(run_file), str(run_file.parent / "home"))
    assert Path(found["artifacts"]["report"]).is_relative_to(run_file.parent / "home" / "checks")
    assert Path(found["artifacts"]["report"]).is_file()
    assert [gate["gate"] for gate in found["gates"]] == ["data", "plan"]
    assert found["plan"] == {
        "trainable_parameters": 1_843_200,
        "parameters": 134_515_008,
        "adapted_modules": 120,
        "forward_tokens": 1024,
        "optimizer_steps": 39,
        "rows": 100,
        "tokens_per_epoch": 6612,
        "supervised_tokens_per_epoch": 2404,
        "gradient_checkpointing": False,
        "memory_gb": 1.4,
        "device": "CPU, 2 cores",
        "device_memory_gb": 25.3,
    }


def test_plan_is_told_in_whole_numbers_below_its_gate() -> None:
    lines = describe_check(replace(checked(HELD), verdicts=(HELD, ODD), plan=PLAN), "report.html").splitlines()
    start = lines.index("plan gate  WARN  (2 rules)")
    assert lines[start + 1 : start + 12] == [
        "    warning: epochs: number of epochs is 6, at most 5 allowed",
        "",
        "the plan",
        "  trainable parameters   1,843,200 (1.370% of 134,515,008), in 120 modules",
        "  optimizer steps        39 in 3 epochs of 100 rows",
        "  forward passes         of up to 1,024 tokens; a step has about 509",
        "  tokens an epoch        6,612, of which 2,404 taught",
        "  estimated memory       1.40 GB of 25.30 GB, CPU, 2 cores, float32",
        "  gradient checkpointing off",
        "",
        "data docs      /home/runs/facts-1/gx/uncommitted/data_docs/local_site/index.html",
    ]
    timed = describe_check(replace(checked(HELD), plan=replace(PLAN, seconds=90.0)), "report.html")
    assert "\n  estimated time         1.5 minutes\n" in timed
    model = replace(PLAN.model, memory=replace(PLAN.model.memory, checkpointed=100_000_000))
    small = replace(PLAN, model=model, checkpointing=True)
    told = describe_check(replace(checked(HELD), plan=small), "report.html")
    assert "\n  estimated memory       1.00 GB of 25.30 GB, CPU, 2 cores, float32\n" in told
    assert "\n  gradient checkpointing on; without it 1.40 GB\n" in told
