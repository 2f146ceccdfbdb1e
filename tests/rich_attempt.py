"""A release with everything in it that MLflow's pages show: data sets, a curve, a ladder with intervals, gates."""

from pathlib import Path

from promotable import Promotable, promoted
from sealed_home import fill

from loragate.attempt import Attempt
from loragate.comparison import Comparison
from loragate.config import load
from loragate.ladder import Divergence, Rung
from loragate.perplexity import Nll
from loragate.promotion import Promotion
from loragate.record import CurvePoint
from loragate.refs import digest_text
from loragate.row_sets import RowSet
from loragate.verdicts import at_most, conclude
from tasks.attempts import opened
from tasks.release_keys import open_chain

ROWS = 100
NATS = {"baseline": 398.9, "tuned": 293.5, "merged": 293.5, "gguf_q8_0": 293.8}
ABOVE = {"tuned": "baseline", "merged": "tuned", "gguf_q8_0": "merged"}


def compared(name: str) -> Comparison:
    """A rung held against the one above it."""
    before, after = Nll(NATS[ABOVE[name]], ROWS), Nll(NATS[name], ROWS)
    ratio = after.perplexity / before.perplexity
    return Comparison(ROWS, before, after, ratio, ratio * 0.9, ratio * 1.1, 0.05, 1.0, 0.05, 10_000, 0.001, 0.8)


def rich(place: Promotable, number: int, judged_against: str = "") -> Attempt:
    """Put an attempt on record that passed every gate and has all that a road finds out."""
    run = load(place.folder / "run.yaml", [f"train.seed={number}"])
    attempt = Attempt(run, place.home)
    attempt.chain = open_chain(run, place.home)
    opened(attempt)
    for file in ("train", "heldout"):
        attempt.note("input", f"data/{file}.jsonl", digest_text(file))
    attempt.note("row_set", "train", RowSet("train", {"train.jsonl": digest_text("train")}, 0.0, 24, 950))
    attempt.note("row_set", "heldout", RowSet("heldout", {"heldout.jsonl": digest_text("heldout")}, 0.0, ROWS, 4321))
    attempt.note("curve", "", tuple(CurvePoint(step, 4 / step, 1e-4, 0.5, 4.2 / step) for step in range(1, 13)))
    attempt.note("rung", "baseline", Rung("baseline", Nll(NATS["baseline"], ROWS)))
    fill(attempt, place.folder / "made" / str(number), number)
    for name, above in ABOVE.items():
        far = {above: Divergence(0.01, 0.9, ROWS)}
        attempt.note("rung", name, Rung(name, Nll(NATS[name], ROWS), above, far))
        attempt.note("comparison", name, compared(name))
    attempt.note("verdict", "quality", conclude("quality", [at_most("perplexity_ratio", 0.348, 1.0, "ratio")]))
    attempt.note("seconds", "train", 12.5)
    attempt.note("incumbent", "", judged_against)
    return attempt


def released(place: Promotable, number: int, judged_against: str = "") -> Promotion:
    """Release such an attempt."""
    return promoted(rich(place, number, judged_against))


def run_folder(place: Promotable, run_id: str) -> Path:
    """Where the embedded store keeps a run's files."""
    return place.home.artifacts / "tiny" / run_id / "artifacts"
