"""Whatever is altered in a sealed release's record is found and named, and trying it touches nobody's own home."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
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


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory, new_home: Path) -> Iterator[Promotable]:
    """A home with a champion; from then on the user's own keys and server are such that using them fails."""
    place = promotable(tmp_path_factory.mktemp("tampering") / "place", new_home)
    place.released(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAGATE_SIGNING_KEY", str(place.folder / "no-key"))
        patch.setenv("LORAGATE_KEY_PASSPHRASE", "of another key")
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        yield place


def tampered(place: Promotable, mutants: list[Defect]) -> tuple[Planted, ...]:
    """What became of some mutants."""
    attempt = Attempt(load(place.folder / "run.yaml"), place.home, "sabotage")
    opened(attempt)
    (record,) = place.home.records()
    tamper_record(attempt, record.opened.attempt, mutants, ())
    assert [path.name for path in attempt.journal.path.parent.iterdir()] == ["journal.jsonl"]
    return attempt.journal.read().planted


def test_every_mutant_is_named_and_the_home_stays_as_it_was(released: Promotable) -> None:
    before = manifest(released.folder)
    found = tampered(released, ALL)
    assert [(each.defect, each.status, each.gate) for each in found] == [(m.name, "caught", RECORD) for m in MUTANTS]
    assert all(each.rules and each.rules[0] in each.said for each in found)
    after = {name: digest for name, digest in manifest(released.folder).items() if "/sabotage/" not in name}
    assert after == before


def test_whoever_has_the_home_s_own_key_can_rewrite_it_and_is_found_by_mlflow_alone(released: Promotable) -> None:
    (rewritten,) = (defect for defect in ALL if defect.name == "history-rewritten")
    (found,) = tampered(released, [replace(rewritten, place="chain")])  # so that MLflow is not asked
    assert (found.status, found.said) == ("survived", "verification found nothing wrong")


def test_a_release_whose_files_are_not_those_that_were_judged_is_no_measure(released: Promotable) -> None:
    adapter = released.folder / "made" / "1" / "adapter"
    kept = adapter.rename(released.folder / "kept")
    (found,) = tampered(released, ALL[:1])
    assert (found.status, "adapter: gone since" in found.said) == ("not applicable", True)
    shutil.copytree(kept, adapter)
    (adapter / "adapter_config.json").write_bytes(b"{}")
    with pytest.raises(VerificationError, match="altered since the gates judged it"):
        tampered(released, ALL[:1])
    shutil.rmtree(adapter)
    kept.rename(adapter)
