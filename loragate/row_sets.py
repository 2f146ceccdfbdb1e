"""Which rows an attempt read on which side, of which files: what MLflow shows as the run's data sets."""

from collections.abc import Mapping
from dataclasses import dataclass

from loragate.files import DataFiles, Side
from loragate.refs import digest_json

CONTEXTS: Mapping[Side, str] = {
    "train": "training",
    "heldout": "evaluation",
    "general": "evaluation",
    "protected": "protected",
}
"""What each side is used for, in MLflow's words; it has none for rows that training rows must not repeat."""


@dataclass(frozen=True, slots=True)
class RowSet:
    """The rows of one side.

    Attributes:
        files: SHA-256 of each file that they are of, by its name.
        heldout_share: Share of the training files' rows that is held out; 0 where held-out rows have their own files.
        rows: How many were read, those that the data gate leaves out among them; 0 where nobody counts them.
        tokens: Sum of their lengths after truncation; 0 likewise.
    """

    side: Side
    files: dict[str, str]
    heldout_share: float
    rows: int
    tokens: int

    @property
    def context(self) -> str:
        """What it is used for."""
        return CONTEXTS[self.side]

    @property
    def digest(self) -> str:
        """Digest of all of this: the same files, split and cut in the same way."""
        named = {"side": self.side, "files": self.files, "heldout_share": self.heldout_share}
        return digest_json(named | {"rows": self.rows, "tokens": self.tokens})


def row_sets(
    files: DataFiles, digests: Mapping[str, str], rows: Mapping[str, int], tokens: Mapping[str, int]
) -> tuple[RowSet, ...]:
    """Make the sets of a run from its files and what was counted on each side; sides without files have none."""
    share = files.heldout_share
    of: dict[Side, dict[str, str]] = {
        side: {file.name: digests[file.name] for file in files.of(side)} for side in CONTEXTS
    }
    if share:
        of["heldout"] = of["train"]
    return tuple(
        RowSet(side, found, share if side in ("train", "heldout") else 0.0, rows.get(side, 0), tokens.get(side, 0))
        for side, found in of.items()
        if found
    )
