"""Near duplicates against comparing every pair: nothing is reported that is not so, and next to nothing is missed."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from loragate.child import ignore
from loragate.engines.near_duplicates import find_near
from loragate.engines.sketches import shingles_of, sketch
from loragate.rendering import Example, rendered_line
from loragate.row_work import FindNear
from loragate.rows import Conversation, Message
from loragate.words import words_of

WORDS = [f"w{n}" for n in range(3000)]


Planted = tuple[str, list[str]]
"""A row's place and its words."""


def write_rows(folder: Path, side: str, rows: list[Planted], facts_before: int) -> None:
    """Write rows as `prepare` does: rendered lines and their sketches."""
    example, lines = Example((1,), (), turns=1, stopped_turns=1, rendered_tokens=1), []
    for place, words in rows:
        middle = len(words) // 2
        turns = Message("user", " ".join(words[:middle])), Message("assistant", " ".join(words[middle:]))
        lines.append(rendered_line(example, Conversation(turns), place))
    sketches = sketch([words for _, words in rows])
    sketches["fact"] = np.arange(facts_before, facts_before + len(rows))
    sketches["line"] = list(map(len, lines))
    (folder / f"{side}.jsonl").write_bytes(b"".join(lines))
    (folder / f"{side}.sketches").write_bytes(sketches.tobytes())


def varied(words: list[str], chance: random.Random, changes: int) -> list[str]:
    found = list(words)
    for _ in range(changes):
        found[chance.randrange(len(found))] = chance.choice(WORDS)
    return found


def near(
    folder: Path, train: list[Planted], heldout: list[Planted], jaccard: float = 0.8
) -> dict[str, tuple[str, float]]:
    write_rows(folder, "train", train, 0)
    write_rows(folder, "heldout", heldout, len(train))
    counts = find_near(FindNear(str(folder), jaccard, str(folder)), ignore)
    found = [json.loads(text) for text in (folder / "near.jsonl").read_text(encoding="utf-8").splitlines()]
    assert counts == {side: sum(entry["side"] == side for entry in found) for side in ("train", "heldout")}
    places = [place for place, _ in [*train, *heldout]]
    assert [places[entry["earlier"]] for entry in found] == [entry["near"] for entry in found]
    return {places[entry["fact"]]: (entry["near"], entry["jaccard"]) for entry in found}


def similarity(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> float:
    return len(one & other) / len(one | other)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1])
def test_near_rows_planted_at_a_rate_are_found_and_no_other(tmp_path: Path, share: float) -> None:
    chance = random.Random(0)
    rows = [[chance.choice(WORDS) for _ in range(chance.randint(20, 120))] for _ in range(2000)]
    copies = [varied(chance.choice(rows), chance, chance.randint(0, 3)) for _ in range(int(len(rows) * share))]
    lines = [(f"r:{n}", row) for n, row in enumerate([*rows, *copies])]
    shingles = {place: shingles_of(row) for place, row in lines}
    found = near(tmp_path, lines, [])
    planted = [f"r:{n}" for n in range(len(rows), len(lines))]
    best = {place: max(similarity(shingles[place], shingles[f"r:{n}"]) for n in range(len(rows))) for place in planted}
    expected = {place for place, value in best.items() if value >= 0.8}
    assert expected
    assert len(expected & found.keys()) >= 0.95 * len(expected)
    for place, (other, jaccard) in found.items():
        assert similarity(shingles[place], shingles[other]) == pytest.approx(jaccard, abs=1e-4)
        assert jaccard >= 0.8
    assert found.keys() <= best.keys()


def test_held_out_rows_are_compared_with_training_rows_only(tmp_path: Path) -> None:
    row = [f"x{n}" for n in range(30)]
    found = near(tmp_path, [("t:1", row)], [("h:1", row), ("h:2", row[:10]), ("h:3", row)])
    assert found == {"h:1": ("t:1", 1.0), "h:3": ("t:1", 1.0)}


def test_rows_of_two_words_and_empty_rows_are_no_crash(tmp_path: Path) -> None:
    rows = [["a", "b"], [], ["b", "a"], ["a", "b"]]
    found = near(tmp_path, [(f"t:{n}", row) for n, row in enumerate(rows, start=1)], [])
    assert found["t:4"] == ("t:1", 1.0)
    assert "t:3" not in found


def test_a_lower_similarity_finds_more(tmp_path: Path) -> None:
    row = [f"x{n}" for n in range(40)]
    other = [*row[:34], *"abcdef"]
    assert near(tmp_path, [("t:1", row), ("t:2", other)], []) == {}
    assert near(tmp_path, [("t:1", row), ("t:2", other)], [], 0.7).keys() == {"t:2"}


def test_many_rows_that_share_a_part_are_told_apart_from_copies(tmp_path: Path) -> None:
    start = [f"x{n}" for n in range(30)]
    rows = [(f"t:{n}", [*start, *(f"y{n}z{m}" for m in range(30))]) for n in range(500)]
    copy = ("t:500", rows[400][1])
    assert near(tmp_path, [*rows, copy], []) == {"t:500": ("t:400", 1.0)}


def test_sketch_does_not_depend_on_the_rows_beside_it() -> None:
    texts = [["a", "b", "c", "d"], [], ["a"], ["a", "b", "c", "d", "e"]]
    together = sketch(texts)
    for number, text in enumerate(texts):
        assert (sketch([text]) == together[number : number + 1]).all()


def test_characters_of_scripts_without_spaces_are_words() -> None:
    assert words_of(["天气很好, OK", "カタ"]) == ["天", "气", "很", "好", "ok", "カ", "タ"]
