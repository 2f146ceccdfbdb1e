"""Find out which rows break which rule, leave out what is to be dropped, and mend what can be mended safely."""

from dataclasses import dataclass
from pathlib import Path

from prefect import task

from loragate.attempt import Attempt, Rows, recipe
from loragate.config import plain
from loragate.narration import tell
from loragate.record import EXPECTATIONS, Fixed, as_plain, read_as
from loragate.refs import Ref
from loragate.row_work import CheckedFacts, CheckFacts, FindNear, FixRows, KeepRows
from tasks.policies import STEP
from tasks.prepare_rows import find_files


@dataclass(frozen=True, slots=True)
class DataEvidence:
    """What the rules found, and the folder with the rejected rows and Great Expectations' own results."""

    checked: CheckedFacts
    ref: Ref


def check_rows(attempt: Attempt, rows: Rows) -> DataEvidence:
    """Have Great Expectations evaluate every rule of the data gate."""
    limits = attempt.config.gates.data
    near = _near(attempt, rows)
    steps = recipe(
        "facts",
        {"rows": rows.digest, "near": near.digest},
        code=("loragate.engines.expectations",),
        libraries=("great_expectations", "pandas"),
        settings=plain(limits),
    )

    def make(folder: Path) -> object:
        request = CheckFacts(rows.file("facts.parquet"), f"{near.path}/near.jsonl", limits, str(folder))
        return attempt.call("loragate.engines.expectations:check_facts", request)

    stored, checked = attempt.build(steps, CheckedFacts, make)
    attempt.note("artifact", EXPECTATIONS, stored.ref)
    return DataEvidence(checked, stored.ref)


def _near(attempt: Attempt, rows: Rows) -> Ref:
    jaccard = attempt.config.gates.data.near_jaccard
    code = (
        *("loragate.engines.near_duplicates", "loragate.engines.sketches"),
        *("loragate.rendering", "loragate.texts", "loragate.words"),
    )
    steps = recipe("near", {"rows": rows.digest}, code=code, settings={"jaccard": jaccard})
    target = "loragate.engines.near_duplicates:find_near"
    stored, _ = attempt.build(
        steps, dict[str, int], lambda folder: attempt.call(target, FindNear(rows.folder, jaccard, str(folder)))
    )
    return stored.ref


def keep_rows(attempt: Attempt, rows: Rows, evidence: DataEvidence) -> Rows:
    """The rows that are left; the same where none is dropped."""
    if not any(evidence.checked.dropped.values()):
        return rows
    dropped = f"{evidence.ref.path}/dropped.u8"
    inputs = {"rows": rows.digest, "checked": evidence.ref.digest}
    steps = recipe("kept", inputs, code=("loragate.engines.examples",))
    target = "loragate.engines.examples:keep"
    stored, _ = attempt.build(
        steps, dict[str, int], lambda folder: attempt.call(target, KeepRows(rows.folder, dropped, str(folder)))
    )
    return Rows(stored.ref.path, stored.ref.digest)


@task(name="fix rows", **STEP)
def fix_rows(attempt: Attempt, rows: Rows, folder: str) -> None:
    """Write a cleaned copy of the data files into a new folder, and say what it differs in."""
    rejects = f"{check_rows(attempt, rows).ref.path}/rejects.jsonl"
    request = FixRows(find_files(attempt).files, rejects, folder)
    fixed = read_as(Fixed, as_plain(attempt.call("loragate.engines.cleaning:fix", request)))
    attempt.note("fixed", "", fixed)
    tell(
        f"{'fixed':>12}  {fixed.kept:,} rows kept, {fixed.trimmed:,} of them trimmed; left out: {fixed.duplicates:,} "
        f"exact copies, {fixed.rejected:,} that a rule refuses"
    )
    for file in fixed.files:
        tell(f"{'':>12}  wrote {file}")
