"""Find the held-out rows that fared worst in training, and say where they stand and what they ask."""

from pathlib import Path

from loragate.attempt import Measurement, Rows
from loragate.rendering import read_rendered
from loragate.worst_rows import WorstRow, beginning, worst


def worst_rows(baseline: Measurement, tuned: Measurement, rows: Rows) -> tuple[WorstRow, ...]:
    """Return them, the worst first; nothing where the two measurements are not of the same rows."""
    if len(baseline.rows) != len(tuned.rows):
        return ()
    chosen = worst(baseline.rows, tuned.rows)
    with Path(rows.file("heldout.jsonl")).open("rb") as file:
        lines = {number: line for number, line in enumerate(file) if number in chosen}
    found = []
    for number in chosen:
        _, conversation, place = read_rendered(lines[number])
        asked = beginning(conversation.question.messages[-1].said)
        found.append(WorstRow(place, asked, baseline.rows[number], tuned.rows[number]))
    return tuple(found)
