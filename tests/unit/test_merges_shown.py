"""What is shown of the merges on record: each with its numbers and which was kept, in a terminal and on the page."""

from dataclasses import replace

from loragate.engines.report import render_report
from loragate.listing import describe
from loragate.perplexity import Nll
from loragate.record import AttemptRecord, Merge, MergeCandidate, Opened
from loragate.summary import summary

NEAR = MergeCandidate("dequantised", 2e-9, 1.0, Nll(0.0, 7))
FAR = MergeCandidate("original", 0.25, 0.5, Nll(7.0, 7))
BARE = AttemptRecord(Opened("attempt-1", "helper", "2026-11-22T05:58:01+00:00", {}, {}), None)
ONE = replace(BARE, merge=Merge("original", "float32", "streamed"))
TWO = replace(BARE, merge=Merge("dequantised", "float32", "streamed", (NEAR, FAR)))


def test_a_terminal_shows_every_merge_that_was_scored_and_which_was_kept() -> None:
    lines = describe(TWO, "").splitlines()
    at = lines.index("merges of the adapter, held against what was trained; kept: dequantised")
    assert lines[at + 1 : at + 3] == [
        "  dequantised           1.000   KL 2e-09   top-1 agreement 1.0000",
        "  original              2.718   KL 0.25   top-1 agreement 0.5000",
    ]


def test_the_page_shows_them_too() -> None:
    page = render_report(TWO)
    assert "dequantised (kept)</th>" in page
    for value in ("2e-09", "0.25", "0.5", "2.718"):
        assert f">{value}</td>" in page


def test_the_summary_has_their_numbers() -> None:
    assert summary(TWO, report="")["merge"] == {
        "chosen": "dequantised",
        "dtype": "float32",
        "way": "streamed",
        "candidates": (
            {"name": "dequantised", "kl": 2e-9, "top1_agreement": 1.0, "nll": {"nats": 0.0, "tokens": 7}},
            {"name": "original", "kl": 0.25, "top1_agreement": 0.5, "nll": {"nats": 7.0, "tokens": 7}},
        ),
    }


def test_a_single_merge_has_no_table() -> None:
    assert "merges" not in describe(ONE, "")
    assert "<h3>Merges</h3>" not in render_report(ONE)
    assert "merge" not in summary(ONE, report="")
