"""What tasks ask of the engines that look at rows, and what those answer; see `loragate.work`."""

from dataclasses import dataclass, field
from typing import Literal

from loragate.files import DataFile
from loragate.histogram import Histogram
from loragate.limits import DataLimits
from loragate.work import Base


@dataclass(frozen=True, slots=True)
class FetchDataSet:
    """Bring a data set of a hub to this machine, as a folder that the library datasets saves.

    Attributes:
        source: Hub id, or a local folder that the library loads.
        subset: Configuration of the data set, empty for its only one.
        split: The one split to take, empty for all.
        revision: Branch, tag or commit, empty for the newest.
    """

    source: str
    subset: str
    split: str
    revision: str
    folder: str


@dataclass(frozen=True, slots=True)
class PrepareRows:
    """Read data files, render their rows into token ids, and state the facts about each.

    Attributes:
        heldout_share: Share of the training rows to hold out.
        language: ISO 639-1 code of the language that answers must be in, empty for any.
        passage_words: Length in words of the passages that training rows must not share with protected ones.
        workers: Processes to work in; 0 for as many as there are processors. The outcome does not depend on it,
        shard_rows: nor on how many rows a process is given at once.
    """

    base: Base
    files: tuple[DataFile, ...]
    heldout_share: float
    max_tokens: int
    language: str
    passage_words: int
    folder: str
    workers: int = 0
    shard_rows: int = 500


@dataclass(frozen=True, slots=True)
class GeneralRows:
    """How many rows about what must not be forgotten there are, and the sum of their lengths."""

    rows: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was read.

    Attributes:
        rows: Training and held-out rows; `unused` are those that a weight below 1 leaves out.
        lengths, taught_shares: As in the record of an attempt.
        tokens: Sum of the rows' lengths after truncation, of each side in `rows`.
    """

    rows: dict[str, int]
    lengths: Histogram | None
    taught_shares: Histogram | None
    tokens: dict[str, int] = field(default_factory=dict)
    general: GeneralRows = GeneralRows()


@dataclass(frozen=True, slots=True)
class KeepRows:
    """Copy prepared rows without those that the data gate has dropped.

    Attributes:
        rows: Folder of prepared rows.
        dropped: File with the numbers of the facts of dropped rows.
    """

    rows: str
    dropped: str
    folder: str


@dataclass(frozen=True, slots=True)
class FixRows:
    """Write a cleaned copy of data files: trimmed, without copies and without rows that a rule refuses.

    Attributes:
        rejects: File of the data gate's rejects.
    """

    files: tuple[DataFile, ...]
    rejects: str
    folder: str


@dataclass(frozen=True, slots=True)
class FindNear:
    """Find rows that say almost what an earlier training row says.

    Attributes:
        rows: Folder of prepared rows.
        jaccard: Similarity from which on two rows are near.
    """

    rows: str
    jaccard: float
    folder: str


@dataclass(frozen=True, slots=True)
class CheckFacts:
    """Judge a facts table with Great Expectations.

    Attributes:
        facts: File of the facts table.
        near: File of near duplicates.
    """

    facts: str
    near: str
    limits: DataLimits
    folder: str


@dataclass(frozen=True, slots=True)
class RuleResult:
    """One expectation's outcome.

    Attributes:
        rule: Machine name.
        success: What Great Expectations says.
        evaluated: How many values it looked at; zero proves nothing.
        unexpected: How many of them broke the rule.
        examples: The first few as `file:row: what is wrong`.
        error: Why the expectation could not be evaluated, empty where it could.
        bound: Share of rows that may break the rule, or for the number of rows the fewest; 0 where none may.
        severity: What breaking the rule means for the release.
    """

    rule: str
    success: bool
    evaluated: int
    unexpected: int
    examples: tuple[str, ...]
    error: str
    bound: float = 0.0
    severity: Literal["refuse", "warn"] = "refuse"


@dataclass(frozen=True, slots=True)
class CheckedFacts:
    """What the data gate judges.

    Attributes:
        results: Outcome of every rule, on the rows that are left where some were dropped.
        rows: Rows by side before any was dropped.
        dropped: Rows dropped by side.
    """

    results: tuple[RuleResult, ...]
    rows: dict[str, int]
    dropped: dict[str, int]
