"""Whatever is altered in a sealed release's record is found and named, and trying it touches nobody's own home."""

import shutil
from pathlib import Path

import pytest
from promotable import Promotable, promotable

from loragate.attempt import Attempt
from loragate.config import load
from loragate.defects import CATALOGUE, RECORD, Defect, Planted
from loragate.errors import VerificationError
from loragate.mutants import MUTANTS
from loragate.refs import manifest
from tasks.attempts import opened
from tasks.tamper_record import tamper_record

# MLflow 3.17 asks SQLAlchemy 2.1 for a loading strategy that is on its way out; ours is only the question.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning")

ALL = [defect for defect in CATALOGUE if defect.gate == RECORD]


@pytest.fixture
def released(tmp_path: Path, new_store: Path, monkeypatch: pytest.MonkeyPatch) -> Promotable:
    """A home with a champion; from then on the user's own keys and server are such that using them fails."""
    place = promotable(tmp_path / "place", new_store)
    place.released(1)
    monkeypatch.setenv("LORAGATE_SIGNING_KEY", str(tmp_path / "no-key"))
    monkeypatch.setenv("LORAGATE_KEY_PASSPHRASE", "of another key")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    return place


def tampered(place: Promotable, mutants: list[Defect], *without: str) -> tuple[Planted, ...]:
    """What became of some mutants."""
    attempt = Attempt(load(place.folder / "run.yaml"), place.home, "sabotage")
    opened(attempt)
    (record,) = place.home.records()
    tamper_record(attempt, record.opened.attempt, mutants, without)
    assert [path.name for path in attempt.journal.path.parent.iterdir()] == ["journal.jsonl"]
    return attempt.journal.read().planted


def test_every_mutant_is_named_and_only_by_verification_and_the_home_stays_as_it_was(released: Promotable) -> None:
    before = manifest(released.folder)
    found = tampered(released, ALL)
    assert [(each.defect, each.status, each.gate) for each in found] == [(m.name, "caught", RECORD) for m in MUTANTS]
    assert all(each.rules and each.rules[0] in each.said for each in found)
    blind = tampered(released, ALL, RECORD)
    assert {(each.status, each.gate) for each in blind} == {("survived", "")}
    after = {name: digest for name, digest in manifest(released.folder).items() if "/sabotage/" not in name}
    assert after == before


def test_a_release_whose_files_are_not_those_that_were_judged_is_no_measure(released: Promotable) -> None:
    adapter = released.folder / "made" / "1" / "adapter"
    kept = shutil.copytree(adapter, released.folder / "kept")
    shutil.rmtree(adapter)
    (found,) = tampered(released, ALL[:1])
    assert (found.status, "adapter: gone since" in found.said) == ("not applicable", True)
    shutil.copytree(kept, adapter)
    (adapter / "adapter_config.json").write_bytes(b"{}")
    with pytest.raises(VerificationError, match="altered since the gates judged it"):
        tampered(released, ALL[:1])
