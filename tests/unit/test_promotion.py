"""Promotions as values: what comes next after each line, who is champion, and who may become it."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from pydantic import JsonValue

from loragate.lines import append_line, whole_lines
from loragate.promotion import (
    Happened,
    Intent,
    Kind,
    Line,
    Promotion,
    begun,
    grown,
    lineage,
    promotions,
    standing,
    unfinished,
    why_lost,
)
from loragate.promotion_log import PromotionLog
from loragate.record import AttemptRecord, Closed, Opened, Tracked
from loragate.standings import Standings

ROAD: tuple[tuple[Happened, JsonValue], ...] = (
    ("uploaded", "run"),
    ("registered", "7"),
    ("nominated", "7"),
    ("flipped", "6"),
    ("sealed", {"outcome": "champion", "reason": ""}),
)


def intent(kind: Kind = "release", *, expected: str = "", version: str = "", **more: object) -> Intent:
    made = Intent("id", kind, "tiny", "attempt", "d" * 64, "", "champion", expected, {"adapter/a": "0" * 64})
    return replace(made, version=version, **more)  # type: ignore[arg-type]


def line(happened: Happened, value: JsonValue, id_: str = "id") -> Line:
    return Line("2026-11-26T00:00:00+00:00", id_, happened, value)


def flips(*moves: tuple[Kind, str, str]) -> list[Line]:
    """A log of promotions that each made a version champion in another one's place."""
    lines = []
    for number, (kind, version, expected) in enumerate(moves):
        one = replace(intent(kind, expected=expected, version=version), id=str(number), attempt=f"attempt-{version}")
        lines += [line("prepared", asdict(one), one.id), line("flipped", expected, one.id)]
    return lines


def test_a_release_takes_every_step_in_order_and_none_twice() -> None:
    promotion, steps = begun(intent()), []
    for happened, value in ROAD:
        steps.append(promotion.step)
        promotion = grown(promotion, happened, value)
    assert steps == ["upload", "register", "nominate", "flip", "seal"]
    assert (promotion.step, promotion.outcome, promotion.name) == ("none", "champion", "tiny@7")


def test_a_release_that_stops_at_candidate_is_never_flipped() -> None:
    promotion = begun(intent(goal="candidate"))
    for happened, value in ROAD[:3]:
        promotion = grown(promotion, happened, value)
    assert (promotion.step, promotion.reached) == ("seal", "candidate")


@pytest.mark.parametrize("kind", ["promotion", "rollback"])
def test_a_registered_version_is_only_flipped(kind: Kind) -> None:
    promotion = begun(intent(kind, version="7"))
    assert promotion.step == "flip"
    assert grown(promotion, "flipped", "6").step == "seal"
    lost = grown(promotion, "lost", "another one")
    assert (lost.step, lost.reached) == ("seal", "lost")


def test_a_log_cut_at_any_line_says_what_comes_next() -> None:
    lines = [line("prepared", asdict(intent())), *(line(*each) for each in ROAD)]
    steps = [promotions(lines[:n])[0].step for n in range(1, len(lines) + 1)]
    assert steps == ["upload", "register", "nominate", "flip", "seal", "none"]
    assert [len(unfinished(lines[:n])) for n in range(len(lines) + 1)] == [0, 1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize(
    ("moves", "wanted"),
    [
        ([], ()),
        ([("release", "1", "")], ("1",)),
        ([("release", "1", ""), ("release", "2", "1"), ("promotion", "3", "2")], ("1", "2", "3")),
        ([("release", "1", ""), ("release", "2", "1"), ("rollback", "1", "2")], ("1",)),
        ([("release", "1", ""), ("release", "2", "1"), ("rollback", "1", "2"), ("release", "3", "1")], ("1", "3")),
        ([("release", "1", ""), ("release", "1", "1")], ("1",)),
        ([("release", "6", "5")], ("5", "6")),
    ],
    ids=["none", "first", "three", "rolled back", "after a rollback", "again", "another home's"],
)
def test_champion_is_the_end_of_the_lineage(moves: list[tuple[Kind, str, str]], wanted: tuple[str, ...]) -> None:
    assert lineage(flips(*moves), "") == wanted
    assert standing(flips(*moves), "").get("champion", "") == (wanted[-1] if wanted else "")
    assert lineage(flips(*moves), "http://elsewhere") == ()


def test_two_rollbacks_never_return_to_what_was_rolled_back() -> None:
    moves: list[tuple[Kind, str, str]] = [("release", "1", ""), ("release", "2", "1"), ("release", "3", "2")]
    moves += [("rollback", "2", "3"), ("rollback", "1", "2")]
    assert lineage(flips(*moves), "") == ("1",)


@pytest.mark.parametrize(
    ("expected", "named", "found", "champions", "says"),
    [
        ("6", False, "6", ("6",), ""),
        ("", False, "", (), ""),
        ("6", False, "7", ("6",), ""),
        ("", False, "5", (), ""),
        ("6", False, "8", ("6", "8"), "tiny@8 is champion now; release its run file again"),
        ("", False, "8", ("8",), "was judged against none, but tiny@8 is champion now"),
        ("6", False, "9", ("6",), "moved outside of loragate: MLflow has tiny@9, the log tiny@6"),
        ("6", False, "", ("6",), "moved outside of loragate: MLflow has none, the log tiny@6"),
        ("6", False, "6", ("6", "8"), "moved outside of loragate: MLflow has tiny@6, the log tiny@8"),
        ("9", True, "9", ("6",), ""),
        ("", True, "", ("6",), ""),
        ("6", True, "9", ("6",), "tiny@9 is champion now, not 6"),
    ],
    ids=[
        "still the one",
        "first of all",
        "flipped already",
        "no log yet",
        "another release won",
        "another one was first",
        "moved by hand",
        "taken away",
        "put back by hand",
        "named and there",
        "named none",
        "named and gone",
    ],
)
def test_compare(expected: str, named: bool, found: str, champions: tuple[str, ...], says: str) -> None:
    promotion = Promotion(intent(expected=expected, named=named), version="7")
    why = why_lost(promotion, found, champions)
    assert says in why
    assert bool(why) == bool(says)


def test_a_line_that_a_kill_cut_short_is_none_and_the_next_takes_its_place(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log.jsonl"
    append_line(path, "first")
    with path.open("ab") as file:
        file.write(b"x" * 200_000)
    assert whole_lines(path) == (b"first",)
    append_line(path, "second")
    assert path.read_bytes() == b"first\nsecond\n"
    path.write_bytes(b"cut")
    append_line(path, "first")
    assert path.read_bytes() == b"first\n"


def test_a_log_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    log = PromotionLog(tmp_path / "tiny")
    assert log.lines() == ()
    promotion = log.prepare(intent(expected="6", tags={"a": "b"}))
    for happened, value in ROAD:
        promotion = log.note(promotion, happened, value)
    assert promotions(log.lines()) == (promotion,)


def released(version: str | None, *aliases: str) -> AttemptRecord:
    opened = Opened(f"attempt-{version}", "tiny", "2026-11-26T00:00:00+00:00", {}, {})
    return AttemptRecord(opened, Closed("released", "", "", version, "d", aliases), Tracked("run", "sqlite:///here"))


def test_releases_from_before_there_was_a_log_lead_to_the_champion() -> None:
    old = (released("1", "candidate", "champion"), released("2", "candidate", "champion"))
    before = Standings(old, (), "sqlite:///here")
    assert before.lineage("") == ("1", "2")
    assert [record.release for record in before.champions("")] == ["tiny@2", "tiny@1"]
    after = Standings((*old, released("3")), tuple(flips(("release", "3", "2"))), "sqlite:///here")
    assert [record.release for record in after.champions("")] == ["tiny@3", "tiny@2", "tiny@1"]
    assert {r.release: r.closed.aliases for r in after.told if r.closed}["tiny@3"] == ("champion",)
    assert "champion" not in {r.release: r.closed.aliases for r in after.told if r.closed}["tiny@2"]


def test_version_that_came_after_the_journal_s_end_is_told_from_the_log() -> None:
    late = replace(released(None), opened=replace(released(None).opened, attempt="attempt-1"))
    standings = Standings((late,), tuple(flips(("release", "1", ""))), "sqlite:///here")
    (told,) = standings.told
    assert (told.release, told.closed and told.closed.aliases) == ("tiny@1", ("champion",))
