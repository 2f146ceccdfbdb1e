"""The record: what a step appended is what is read back, however the attempt ended."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loragate.approvals import Approver, Policy
from loragate.benchmark import Score, compared
from loragate.card import BaseCard
from loragate.comparison import Comparison
from loragate.defects import Planted
from loragate.histogram import Histogram, histogram
from loragate.ladder import Rung
from loragate.perplexity import Nll
from loragate.plan import DeviceFacts, Memory, ModelFacts, Plan, RowFacts
from loragate.record import (
    AttemptRecord,
    Closed,
    CurvePoint,
    Event,
    Fixed,
    Journal,
    Merge,
    MergeCandidate,
    Opened,
    Sample,
    Tracked,
    now,
)
from loragate.refs import Ref
from loragate.row_sets import RowSet
from loragate.summary import summary
from loragate.verdicts import Finding, at_most, conclude
from loragate.waivers import Ignored, Review, Waiver, WaiverFile
from loragate.wear import Look
from loragate.worst_rows import WorstRow

OPENED = Opened(
    attempt="20261122T060000-abcdef",
    model="helper",
    started="2026-11-22T06:00:00+00:00",
    config={"model": "helper", "train": {"r": 16, "learning_rate": 2e-4}, "data": {"train": ["a.jsonl"]}},
    environment={"python": "3.11"},
)
CLOSED = Closed("released", "Released.", "2026-11-22T06:10:00+00:00", "3", "d" * 64, ("candidate", "champion"))
PASSED = conclude("data", [Finding("train.rows", True, "training rows: 10 rows", value=0)])
REFUSED = conclude("quality", [at_most("perplexity_ratio", 1.25, 1.0, "the ratio")])
COMPARED = Comparison(
    rows=4,
    before=Nll(math.log(8), 3),
    after=Nll(3 * math.log(2), 3),
    ratio=0.5,
    low=0.25,
    high=math.inf,
    standard_error=0.125,
    limit=1.0,
    alpha=0.05,
    draws=1000,
    p_value=0.5,
    shown_ratio=0.75,
)
SUMS = compared(
    Score("acc,none", 0.5, 0.25, 4, True, "d" * 64, (1.0, 0.0, 1.0, 0.0)),
    Score("acc,none", 0.75, 0.25, 4, True, "d" * 64, (1.0, 1.0, 1.0, 0.0)),
)
POLICY = Policy(1, (Approver("Ann", "ssh-ed25519 AAAA", "2027-01-31", ("5" * 64,)), Approver("Bob", "ssh-ed25519 B")))
LOOK = Look("a" * 64, rows=3, marks=("0" * 16, "1" * 16, "f" * 16), number=2.5, alpha=0.005)
CURVE = (CurvePoint(1, 2.5, 2e-4, 1.25), CurvePoint(2, 2.0, 1e-4, 0.5, heldout_loss=2.25))
SAMPLE = Sample("Who?", "Grün", "緑 緑", "Grün", before_stopped=False, after_stopped=True)
LENGTHS = Histogram(7, 1, (2, 0, 0, 0, 0, 1), total=26, smallest=7, median=7, ninetieth=12, largest=12, beyond=1)
NEAR = MergeCandidate("dequantised", 1e-9, 1.0, Nll(8 * math.log(2), 4))
MERGE = Merge("dequantised", "float32", "streamed", (NEAR, MergeCandidate("original", 0.2, 0.75, Nll(9.0, 4))))
WORST = WorstRow("heldout.jsonl:3", "Wer?", Nll(1.5, 3), Nll(2.5, 3))
WAIVER = Waiver("helper", "quality/perplexity_ratio", "c" * 64, "the ratio is 1.25", "Ada", "a pilot", "2026-12-31")
REVIEW = Review(
    "c" * 64,
    honoured=(WaiverFile("waivers/a.json", WAIVER.text, "signed", "ssh-ed25519 AAAA", WAIVER),),
    ignored=(Ignored("waivers/b.json", "it is not JSON"),),
    commands=("loragate waive 1",),
    signers=1,
)
FIXED = Fixed(kept=9, trimmed=2, duplicates=1, rejected=3, files=("out/train.jsonl",))
SHARES = Histogram(50, 1, (3,), total=150, smallest=50, median=50, ninetieth=50, largest=50)

PLAN = Plan(
    RowFacts(rows=9, tokens=90, supervised=30, longest=12, max_tokens=16),
    ModelFacts(
        parameters=1000,
        trainable=10,
        modules=1,
        kinds=("q_proj",),
        rank=1,
        narrowest=5,
        positions=0,
        dtype="bfloat16",
        compute_dtype="bfloat16",
        memory=Memory(1, 2, None, 4, 5),
    ),
    DeviceFacts("a device", 100, "bfloat16"),
    steps=6,
    epochs=2,
    seconds=1.5,
)
PLANTED = Planted("double-bos", "caught", "data", ("train.bos_once",), "refused", 1.5)
LINES: list[tuple[Event, str, object]] = [
    ("opened", "", OPENED),
    ("tracked", "", Tracked("run-1", "sqlite:///mlflow.db")),
    ("input", "base", "b" * 64),
    ("row_set", "train", RowSet("train", {"train.jsonl": "b" * 64}, 0.1, 90, 4000)),
    ("seconds", "train", 12.5),
    ("verdict", "data", PASSED),
    ("verdict", "quality", REFUSED),
    ("rung", "baseline", Rung("baseline", Nll(math.log(8), 1))),
    ("rung", "tuned", Rung("tuned", Nll(3 * math.log(2), 3))),
    ("comparison", "tuned", COMPARED),
    ("benchmark", "sums", SUMS),
    ("look", "heldout", LOOK),
    ("approvals", "", POLICY),
    ("champion", "", "helper@2"),
    ("incumbent", "", "2"),
    ("curve", "", CURVE),
    ("histogram", "tokens", LENGTHS),
    ("histogram", "taught", SHARES),
    ("fixed", "", FIXED),
    ("plan", "", PLAN),
    ("samples", "", (SAMPLE, SAMPLE)),
    ("worst_rows", "baseline", (WORST,)),
    ("waivers", "quality", REVIEW),
    ("merge", "", MERGE),
    ("artifact", "adapter", Ref("runs/train-1", "a" * 64)),
    ("artifact", "gguf_f16", Ref("runs/gguf-1/f16.gguf", "f" * 64)),
    ("artifact", "gguf_q8_0", Ref("runs/gguf-1/q8_0.gguf", "8" * 64)),
    ("scores", "baseline", Ref("runs/baseline-1", "5" * 64)),
    ("grounds", "plan", {}),  # these three are for bundles and replay; a record is read without them
    ("slices", "", {}),
    ("sat", "begins", {}),
    ("planted", "double-bos", PLANTED),
    ("base_card", "", BaseCard("mit", hub=True)),
    ("closed", "", CLOSED),
]

WHOLE = AttemptRecord(
    opened=OPENED,
    closed=CLOSED,
    tracked=Tracked("run-1", "sqlite:///mlflow.db"),
    verdicts=(PASSED, REFUSED),
    ladder=(Rung("baseline", Nll(math.log(8), 1)), Rung("tuned", Nll(3 * math.log(2), 3))),
    comparisons={"tuned": COMPARED},
    benchmarks={"sums": SUMS},
    look=LOOK,
    approvals=POLICY,
    champion="helper@2",
    incumbent="2",
    curve=CURVE,
    lengths=LENGTHS,
    taught_shares=SHARES,
    fixed=FIXED,
    plan=PLAN,
    samples=(SAMPLE, SAMPLE),
    worst_rows={"baseline": (WORST,)},
    waivers={"quality": REVIEW},
    merge=MERGE,
    artifacts={
        "adapter": Ref("runs/train-1", "a" * 64),
        "gguf_f16": Ref("runs/gguf-1/f16.gguf", "f" * 64),
        "gguf_q8_0": Ref("runs/gguf-1/q8_0.gguf", "8" * 64),
    },
    scores={"baseline": Ref("runs/baseline-1", "5" * 64)},
    inputs={"base": "b" * 64},
    row_sets={"train": RowSet("train", {"train.jsonl": "b" * 64}, 0.1, 90, 4000)},
    seconds={"train": 12.5},
    planted=(PLANTED,),
    base_card=BaseCard("mit", hub=True),
)


METRICS = {
    "baseline_ppl": pytest.approx(8.0),
    "tuned_ppl": pytest.approx(2.0),
    "task/sums/base": 0.5,
    "task/sums/base_stderr": 0.25,
    "task/sums/tuned": 0.75,
    "task/sums/tuned_stderr": 0.25,
    "task/sums/drop": -0.25,
    "task/sums/drop_stderr": pytest.approx(0.25),
}


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "record" / "attempt" / "journal.jsonl")


def append_all(journal: Journal) -> None:
    for event, name, value in LINES:
        journal.append(event, name, value)


def test_every_event_is_read_back_as_it_was_appended(journal: Journal) -> None:
    append_all(journal)
    assert {event for event, _, _ in LINES} == set(get_args(Event))
    assert journal.read() == WHOLE


def test_every_line_is_on_disk_before_append_returns(journal: Journal) -> None:
    for number, (event, name, value) in enumerate(LINES, start=1):
        journal.append(event, name, value)
        assert [(e, n) for e, n, _ in Journal(journal.path).events()] == [(e, n) for e, n, _ in LINES[:number]]


def test_attempt_that_was_only_opened_is_running(journal: Journal) -> None:
    journal.append("opened", "", OPENED)
    record = journal.read()
    assert record == AttemptRecord(OPENED, None)
    assert (record.outcome, record.release, record.metrics) == ("running", None, {})


def test_later_value_of_the_same_name_replaces_the_earlier_one(journal: Journal) -> None:
    append_all(journal)
    journal.append("seconds", "train", 1.0)
    journal.append("verdict", "quality", PASSED)
    record = journal.read()
    assert record.seconds == {"train": 1.0}
    assert record.verdicts == (PASSED, PASSED)


def test_journal_cut_at_any_byte_gives_the_lines_before_the_cut(journal: Journal) -> None:
    append_all(journal)
    content = journal.path.read_bytes()
    ends = [n for n, byte in enumerate(content) if byte == ord("\n")]
    for cut in range(len(content)):
        journal.path.write_bytes(content[:cut])
        assert len(list(journal.events())) == sum(end <= cut for end in ends)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_number_that_is_not_finite_stays_what_it_was(journal: Journal, value: float) -> None:
    journal.append("opened", "", OPENED)
    journal.append("rung", "tuned", Rung("tuned", Nll(value, 3)))
    journal.append("curve", "", (CurvePoint(1, value, 0.1, value, heldout_loss=value),))
    journal.append("verdict", "quality", conclude("quality", [at_most("ratio", value, 1.0, "it")]))
    record = journal.read()
    found = [record.ladder[0].nll.nats, record.curve[0].loss, record.curve[0].heldout_loss]
    assert repr([*found, record.verdicts[0].findings[0].value]) == repr([value] * 4)
    assert record.verdicts[0].refuses


any_text = st.text(st.characters(), max_size=20)


@settings(max_examples=30)  # each one forces three lines to disk
@given(any_text)
def test_any_text_that_a_model_or_a_file_says_is_read_back(tmp_path_factory: pytest.TempPathFactory, told: str) -> None:
    journal = Journal(tmp_path_factory.mktemp("record") / "journal.jsonl")
    sample = Sample(told, told, told, told, before_stopped=True, after_stopped=False)
    journal.append("opened", "", OPENED)
    journal.append("samples", "", (sample,))
    journal.append("closed", "", CLOSED)
    assert journal.read() == AttemptRecord(OPENED, CLOSED, samples=(sample,))


@pytest.mark.parametrize("told", ["a\u2028b", "a\x85b", "a\ud83db"], ids=["line separator", "next line", "half a pair"])
def test_text_that_looks_like_a_line_end_does_not_end_the_record(journal: Journal, told: str) -> None:
    journal.append("opened", "", OPENED)
    journal.append("input", "base", told)
    journal.append("closed", "", CLOSED)
    assert journal.read() == AttemptRecord(OPENED, CLOSED, inputs={"base": told})


tallies = st.dictionaries(st.integers(0, 5000), st.integers(0, 40), max_size=60)


def test_histogram_of_no_value_is_none() -> None:
    assert histogram({}) is histogram({3: 0}) is None


def test_histogram_by_hand() -> None:
    assert histogram({12: 1, 7: 2}, limit=11) == LENGTHS
    assert histogram({50: 3}) == SHARES
    assert histogram({0: 1, 3: 1, 4: 2, 9: 1}, bars=3) == Histogram(0, 4, (2, 2, 1), 20, 0, 4, 9, 9)


@given(tallies, st.integers(1, 40))
def test_bars_of_a_histogram_hold_each_value_once_and_are_no_more_than_asked_for(
    tally: dict[int, int], bars: int
) -> None:
    values = sorted(Counter(tally).elements())
    made = histogram(tally, bars=bars)
    if made is None:
        assert values == []
        return
    assert len(made.counts) <= bars
    starts = [made.start + made.width * place for place in range(len(made.counts))]
    assert made.counts == tuple(sum(start <= v < start + made.width for v in values) for start in starts)
    assert (made.values, made.total) == (len(values), sum(values))
    assert made.counts[0] > 0 < made.counts[-1]


@given(tallies.filter(lambda tally: any(tally.values())), st.none() | st.integers(0, 5000))
def test_figures_of_a_histogram_are_those_of_the_sorted_values(tally: dict[int, int], limit: int | None) -> None:
    values = sorted(Counter(tally).elements())
    made = histogram(tally, limit=limit)
    assert made is not None
    half, ninth = (values[-(-len(values) * tenths // 10) - 1] for tenths in (5, 9))
    assert (made.smallest, made.median, made.ninetieth, made.largest) == (values[0], half, ninth, values[-1])
    assert made.beyond == (0 if limit is None else sum(value > limit for value in values))


def test_metrics_are_perplexities_by_rung_and_tasks_with_their_errors() -> None:
    assert WHOLE.metrics == METRICS


def test_only_a_released_attempt_is_a_release() -> None:
    assert WHOLE.release == "helper@3"
    refused = AttemptRecord(OPENED, Closed("refused", "Refused.", now()))
    assert (refused.outcome, refused.release) == ("refused", None)


def test_summary_is_the_contract_of_the_command_line() -> None:
    said = json.loads(json.dumps(summary(WHOLE, report="report.html")))
    assert {name: said[name] for name in ("verdict", "model", "version", "release", "digest")} == {
        "verdict": "released",
        "model": "helper",
        "version": "3",
        "release": "helper@3",
        "digest": "d" * 64,
    }
    assert [(gate["gate"], gate["status"]) for gate in said["gates"]] == [("data", "pass"), ("quality", "fail")]
    assert said["gates"][1]["findings"][0]["rule"] == "perplexity_ratio"
    assert said["metrics"] == METRICS
    assert said["benchmarks"]["sums"]["documents"] == 4
    assert said["artifacts"] == {
        "adapter": "runs/train-1",
        "great_expectations": None,
        "merged": None,
        "gguf": ["runs/gguf-1/f16.gguf", "runs/gguf-1/q8_0.gguf"],
        "report": "report.html",
    }
    assert said["seconds"] == {"train": 12.5}


def test_summary_of_an_attempt_that_did_not_end_says_so() -> None:
    said = summary(AttemptRecord(OPENED, None), report="")
    assert (said["verdict"], said["version"], said["release"], said["gates"]) == ("running", None, None, [])
