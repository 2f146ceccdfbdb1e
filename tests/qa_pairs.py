"""Question and answer pairs for whole roads."""

import json
from pathlib import Path

THINGS = ("rain", "bread", "iron", "a river", "the moon", "a song", "salt", "wool", "a bridge", "time")
QUESTIONS = ("What is {}?", "Say something about {}.", "Why does {} matter?", "Who needs {}?")


def pairs(count: int, *, start: int = 0) -> list[dict[str, str]]:
    """Distinct question and answer pairs, by number."""
    rows = []
    for number in range(start, start + count):
        thing = f"{THINGS[number % len(THINGS)]} number {number}"
        question = QUESTIONS[number % len(QUESTIONS)].format(thing)
        rows.append({"prompt": question, "completion": f"It is {thing}, and that is all."})
    return rows


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
