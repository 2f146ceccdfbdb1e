"""Near duplicates against comparing every pair: nothing is reported that is not so, and next to nothing is missed."""

import json
import random
from pathlib import Path

import pytest

from loragate.child import ignore
from loragate.engines.near_duplicates import _shingled, find_near
from loragate.work import FindNear

WORDS = [f"w{n}" for n in range(3000)]


def line(place: str, words: list[str]) -> bytes:
    middle = len(words) // 2
    turns = [("user", " ".join(words[:middle])), ("assistant", " ".join(words[middle:]))]
    messages = [{"role": role, "content": content, "extras": "", "taught": True} for role, content in turns]
    return json.dumps({"place": place, "messages": messages, "tools": ""}).encode() + b"\n"


def varied(words: list[str], chance: random.Random, changes: int) -> list[str]:
    found = list(words)
    for _ in range(changes):
        found[chance.randrange(len(found))] = chance.choice(WORDS)
    return found


def near(folder: Path, train: list[bytes], heldout: list[bytes], jaccard: float = 0.8) -> dict[str, tuple[str, float]]:
    (folder / "train.jsonl").write_bytes(b"".join(train))
    (folder / "heldout.jsonl").write_bytes(b"".join(heldout))
    counts = find_near(FindNear(str(folder), jaccard, str(folder)), ignore)
    found = [json.loads(text) for text in (folder / "near.jsonl").read_text(encoding="utf-8").splitlines()]
    assert counts == {side: sum(entry["side"] == side for entry in found) for side in ("train", "heldout")}
    return {entry["place"]: (entry["near"], entry["jaccard"]) for entry in found}


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1])
def test_near_rows_planted_at_a_rate_are_found_and_no_other(tmp_path: Path, share: float) -> None:
    chance = random.Random(0)
    rows = [[chance.choice(WORDS) for _ in range(chance.randint(20, 120))] for _ in range(2000)]
    copies = [varied(chance.choice(rows), chance, chance.randint(0, 3)) for _ in range(int(len(rows) * share))]
    lines = [line(f"r:{n}", row) for n, row in enumerate([*rows, *copies])]
    shingles = dict(map(_shingled, lines))
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
    found = near(tmp_path, [line("t:1", row)], [line("h:1", row), line("h:2", row[:10]), line("h:3", row)])
    assert found == {"h:1": ("t:1", 1.0), "h:3": ("t:1", 1.0)}


def test_rows_of_two_words_and_empty_rows_are_no_crash(tmp_path: Path) -> None:
    rows = [["a", "b"], [], ["b", "a"], ["a", "b"]]
    found = near(tmp_path, [line(f"t:{n}", row) for n, row in enumerate(rows, start=1)], [])
    assert found["t:4"] == ("t:1", 1.0)
    assert "t:3" not in found


def test_a_lower_similarity_finds_more(tmp_path: Path) -> None:
    row = [f"x{n}" for n in range(40)]
    other = [*row[:34], *"abcdef"]
    assert near(tmp_path, [line("t:1", row), line("t:2", other)], []) == {}
    assert near(tmp_path, [line("t:1", row), line("t:2", other)], [], 0.7).keys() == {"t:2"}
