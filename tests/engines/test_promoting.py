"""Promotion on a real MLflow store: aliases only ever on files that were read back; moves by others are named."""

import json
import resource
from pathlib import Path

import pytest
from commands import loragate, write_run
from mlflow.tracking import MlflowClient
from promotable import Promotable, promotable, promoted
from rich_attempt import released as rich_release
from rich_attempt import run_folder
from signers import new_key

from loragate.engines import registry
from loragate.errors import BlockedError, ConfigError, OutageError, VerificationError
from loragate.home import Home
from loragate.refs import digest_file, reference
from tasks import aliases
from tasks.approvals import Wish, decide, question

# MLflow 3.17 asks SQLAlchemy 2.1 for a loading strategy that is on its way out; ours is only the question.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning")


LARGE = 64 << 20
"""Bytes of a file that does not fit on the disk any more; MLflow's database is smaller than half of it."""


@pytest.fixture
def place(tmp_path: Path, new_home: Path, monkeypatch: pytest.MonkeyPatch) -> Promotable:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return promotable(tmp_path / "place", new_home)


def owners(home: Home) -> dict[str, str]:
    return registry.aliases(home.tracking_uri, "tiny")


def client(home: Home) -> MlflowClient:
    return MlflowClient(home.tracking_uri)


def alter(home: Home, version: str) -> None:
    """Write other bytes into a registered version, as MLflow lets anybody."""
    run = client(home).get_model_version("tiny", version).run_id
    assert run is not None
    client(home).log_text(run, "other", "model/adapter/adapter_config.json")


def history(store: MlflowClient, run: str) -> list[int]:
    """Steps of the ladder that a run shows, in their order."""
    return sorted(point.step for point in store.get_metric_history(run, "ladder/perplexity"))


def promote(home: Home, version: str, expect: str | None = None) -> None:
    release = home.standings("tiny").find(version, "")
    assert release is not None
    aliases.promote(home, release, expect)


def shown(home: Home) -> dict[str, tuple[str, ...]]:
    """Aliases as the record tells them, by release."""
    return {str(r.release): r.closed.aliases for r in home.records() if r.closed is not None}


def test_releases_become_candidate_and_champion_and_the_one_before_is_previous(place: Promotable) -> None:
    home = place.home
    first = place.released(1)
    assert (first.outcome, first.version, owners(home)) == ("champion", "1", {"candidate": "1", "champion": "1"})
    place.released(2, judged_against="1")
    assert owners(home) == {"candidate": "2", "champion": "2", "previous": "1"}
    assert shown(home) == {"tiny@1": ("previous",), "tiny@2": ("candidate", "champion")}
    (record,) = [r for r in home.journals() if r.closed and r.closed.version == "2"]
    assert record.closed is not None
    assert record.closed.message == "every gate passed: released as tiny@2"
    assert client(home).get_run(str(record.tracked and record.tracked.run_id)).info.status == "FINISHED"


def test_version_tells_its_verdict_gates_digest_and_how_to_verify_it(place: Promotable) -> None:
    home = place.home
    rich_release(place, 1)
    store = client(home)
    version, model = store.get_model_version("tiny", "1"), store.get_registered_model("tiny")
    record = home.records()[0]
    assert record.closed is not None
    bundle = home.releases / "tiny" / str(record.closed.digest)
    wanted = {
        "loragate.verdict": "released",
        "loragate.digest": record.closed.digest,
        "loragate.manifest": digest_file(bundle / "manifest.json"),
        "loragate.signature": digest_file(bundle / "signature.json"),
        "gate.quality": "pass",
    }
    assert wanted.items() <= version.tags.items()
    assert int(version.tags["loragate.chain"].partition(":")[0]) > 1
    text = str(version.description)
    for told in ("Released: every gate passed.", "no-model", "54.001 -> 18.822, x0.349 (x0.314 to x0.383 with 95 %"):
        assert told in text
    assert "loragate verify DIR" in text
    assert {"loragate.base_model": "no-model", "project": "loragate"}.items() <= model.tags.items()
    assert "champion" in str(model.description)


def test_every_model_of_a_release_is_ready_measured_on_its_data_set_and_leads_to_files_and_version(
    place: Promotable,
) -> None:
    rich_release(place, 1)
    store = client(place.home)
    version = store.get_model_version("tiny", "1")
    run = store.get_run(str(version.run_id))
    found = {m.name: m for m in store.search_logged_models([run.info.experiment_id])}
    assert {name: str(m.status) for name, m in found.items()} == dict.fromkeys(
        ("adapter", "merged", "gguf_q8_0"), "READY"
    )
    steps = {name: {n.step for n in m.metrics or ()} for name, m in found.items()}
    assert steps == {"adapter": {1}, "merged": {2}, "gguf_q8_0": {3}}
    ratios = {n.key: round(n.value, 3) for n in found["adapter"].metrics or () if n.dataset_name == "heldout"}
    assert (ratios["ladder/ratio"], ratios["ladder/ratio_low"], ratios["ladder/ratio_high"]) == (0.349, 0.314, 0.383)
    assert history(store, run.info.run_id) == [0, 1, 2, 3]
    places = {name: m.tags["loragate.files"] for name, m in found.items()}
    assert places.pop("merged") == "not uploaded: base and adapter make them again"
    files = run_folder(place, run.info.run_id)
    for where in places.values():
        assert where.startswith(f"runs:/{run.info.run_id}/model/")
        assert (files / where.partition(run.info.run_id + "/")[2]).exists()
    assert {m.tags["mlflow.modelVersions"] for m in found.values()} == {'[{"name": "tiny", "version": 1}]'}
    assert not list((place.home.artifacts / "tiny").rglob("models/*"))


def test_candidate_waits_until_it_is_promoted_and_rollbacks_go_further_back(place: Promotable) -> None:
    home = place.home
    place.released(1)
    place.released(2, judged_against="1")
    assert place.released(3, judged_against="2", goal="candidate").outcome == "candidate"
    assert owners(home) == {"candidate": "3", "challenger": "3", "champion": "2", "previous": "1"}
    promote(home, "3")
    assert owners(home) == {"candidate": "3", "champion": "3", "previous": "2"}
    aliases.rollback(home, "tiny", None)
    assert owners(home) == {"candidate": "3", "challenger": "3", "champion": "2", "previous": "1"}
    aliases.rollback(home, "tiny", None)
    assert owners(home) == {"candidate": "3", "challenger": "3", "champion": "1"}
    with pytest.raises(ConfigError, match="no champion before today's"):
        aliases.rollback(home, "tiny", None)
    kinds = [p.intent.kind for p in home.standings("tiny").promotions]
    assert kinds == ["release", "release", "release", "promotion", "rollback", "rollback"]


def test_release_that_was_judged_against_another_champion_stays_candidate(place: Promotable) -> None:
    home = place.home
    place.released(1)
    place.released(2, judged_against="1")
    lost = place.released(3, judged_against="1")
    assert (lost.outcome, owners(home)["champion"], owners(home)["candidate"]) == ("lost", "2", "3")
    assert "tiny@3 was judged against tiny@1, but tiny@2 is champion now" in lost.lost
    with pytest.raises(BlockedError, match="tiny@2 is champion now"):
        promote(home, "3")
    promote(home, "3", expect="tiny@2")
    assert owners(home)["champion"] == "3"


def test_promoting_the_champion_does_nothing_and_another_expected_one_is_refused(place: Promotable) -> None:
    home = place.home
    place.released(1)
    before = home.promotions("tiny").path.read_bytes(), (home.chain / "chain.jsonl").read_bytes()
    promote(home, "1")
    promote(home, "1", expect="tiny@1")
    for expect in ("tiny@3", "none"):
        with pytest.raises(BlockedError, match=r"^tiny@1 is champion already, and not to replace"):
            promote(home, "1", expect)
    assert (home.promotions("tiny").path.read_bytes(), (home.chain / "chain.jsonl").read_bytes()) == before
    with pytest.raises(ConfigError, match=r"^tinny: no such model \(not a release\) in .*; known: tiny"):
        aliases.rollback(home, "tinny", None)


def test_model_that_is_not_on_record_cannot_be_reconciled(place: Promotable) -> None:
    place.released(1)
    with pytest.raises(ConfigError, match=r"^tinny: no release of it is on record in .*; known: tiny"):
        aliases.reconcile(place.home, "tinny")


def test_released_digest_is_found_and_not_released_again(place: Promotable) -> None:
    first, again = place.passed(1, ""), place.passed(1, "")
    assert promoted(first).intent.attempt == promoted(again).intent.attempt == first.id
    assert again.journal.read().closed is None


def test_version_with_other_bytes_becomes_nothing(place: Promotable) -> None:
    home = place.home
    place.released(1)
    place.released(2, judged_against="1", goal="candidate")
    alter(home, "2")
    with pytest.raises(VerificationError, match=r"tiny@2: adapter/adapter_config.json in MLflow has the SHA-256"):
        promote(home, "2")
    assert owners(home)["champion"] == "1"
    assert aliases.reconcile(home, None) == []


def test_rollback_refuses_a_forerunner_with_other_bytes_or_one_file_more(place: Promotable) -> None:
    home = place.home
    place.released(1)
    place.released(2, judged_against="1")
    run = str(client(home).get_model_version("tiny", "1").run_id)
    client(home).log_text(run, "import os", "model/adapter/more.py")
    with pytest.raises(VerificationError, match=r"adapter/more.py is not of this release, but in MLflow"):
        aliases.rollback(home, "tiny", None)
    assert owners(home)["champion"] == "2"


def test_artifacts_altered_before_the_upload_are_never_registered(place: Promotable) -> None:
    home, attempt = place.home, place.passed(1, "")
    (Path(attempt.journal.read().artifacts["adapter"].path) / "adapter_config.json").write_text("other")
    with pytest.raises(VerificationError, match="altered since the gates judged it"):
        promoted(attempt)
    assert owners(home) == {}


def test_alias_moved_by_hand_is_named_stays_and_blocks_until_it_is_named(place: Promotable) -> None:
    home = place.home
    place.released(1)
    place.released(2, judged_against="1")
    client(home).set_registered_model_alias("tiny", "champion", "1")
    found = aliases.reconcile(home, None, looks=True)
    assert [each.state for each in found] == ["moved"]
    assert "champion of tiny was moved outside of loragate: MLflow has tiny@1, the log tiny@2" in found[0].text
    assert aliases.reconcile(home, None) == aliases.reconcile(home, None) == found
    assert [line.happened for line in home.promotions("tiny").lines()].count("moved") == 1
    assert owners(home)["champion"] == "1"
    lost = place.released(3, judged_against="2")
    assert "moved outside of loragate" in lost.lost
    promote(home, "2", expect="tiny@1")
    assert owners(home) == {"candidate": "3", "challenger": "3", "champion": "2", "previous": "1"}
    assert aliases.reconcile(home, None) == []


def test_alias_that_went_with_a_deleted_version_is_named(place: Promotable) -> None:
    home = place.home
    place.released(1)
    client(home).delete_model_version("tiny", "1")
    found = aliases.reconcile(home, None)
    assert {each.state for each in found} == {"danger", "moved"}
    assert any("its version or its run is gone from MLflow" in each.text for each in found)


def test_champion_s_deleted_run_is_named_before_mlflow_s_gc_takes_its_files(place: Promotable) -> None:
    home = place.home
    place.released(1)
    run = str(client(home).get_model_version("tiny", "1").run_id)
    client(home).delete_run(run)
    done = loragate("reconcile", "--check", "--json", "--home", str(home.root), cwd=place.folder)
    assert done.code == 4, done.said
    assert {each["state"] for each in done.json["found"]} == {"danger"}
    assert f"mlflow runs restore --run-id {run}" in done.json["found"][0]["text"]
    client(home).restore_run(run)
    assert aliases.reconcile(home, None) == []


def test_commands_promote_and_roll_back_and_tell_what_they_did(place: Promotable) -> None:
    place.released(1)
    place.released(2, judged_against="1", goal="candidate")
    home = ("--home", str(place.home.root))
    done = loragate("promote", "tiny@2", "--json", *home, cwd=place.folder)
    assert (done.code, done.json["release"], done.json["replaced"]) == (0, "tiny@2", "1"), done.said
    rows = loragate("list", "tiny", "--json", *home, cwd=place.folder).json["releases"]
    assert [row["aliases"] for row in rows] == [["candidate", "champion"], ["previous"]]
    back = loragate("rollback", "tiny", *home, cwd=place.folder)
    assert (back.code, back.stdout) == (0, "tiny@1 is champion; before: tiny@2\n"), back.said
    lost = loragate("promote", "tiny@2", "--expect", "tiny@2", *home, cwd=place.folder)
    assert (lost.code, lost.stdout) == (5, "")
    assert lost.stderr == "loragate: tiny@1 is champion now, not 2\n"
    wrong = loragate("promote", "tiny@2", "--expect", "two", *home, cwd=place.folder)
    assert (wrong.code, wrong.stderr) == (2, "loragate: --expect two: write tiny@N, N, or none\n")
    clean = loragate("reconcile", *home, cwd=place.folder)
    assert (clean.code, clean.stdout) == (0, "nothing to do: all is as the log says\n"), clean.said


def test_disk_that_is_full_loses_nothing_and_reconcile_brings_it_later(place: Promotable) -> None:
    home = place.home
    place.released(1)
    attempt = place.passed(2, judged_against="1")
    large = Path(attempt.journal.read().artifacts["gguf_q8_0"].path)
    with large.open("ab") as file:
        file.truncate(LARGE)
    attempt.note("artifact", "gguf_q8_0", reference(large))
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGE // 2, most))
    try:
        with pytest.raises(OutageError, match="File too large"):
            promoted(attempt)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert attempt.journal.read().outcome == "released"
    assert owners(home)["champion"] == "1"
    assert [found.state for found in aliases.reconcile(home, None)] == ["finished"]
    assert owners(home) == {"candidate": "2", "champion": "2", "previous": "1"}


def test_a_release_that_needs_approvals_is_candidate_until_they_are_signed(place: Promotable) -> None:
    ann, home = new_key(), place.home
    (place.folder / "approvers.yaml").write_text(json.dumps([{"name": "Ann", "key": ann.public}]), encoding="utf-8")
    write_run(place.folder, place.folder / "no-model", record={"approvals": 1, "approvers": "approvers.yaml"})
    assert (place.released(1).outcome, owners(home)) == ("candidate", {"candidate": "1", "challenger": "1"})
    with pytest.raises(BlockedError, match=r"^tiny@1: 1 approval needed, 0 count; to approve, Ann: loragate approve"):
        promote(home, "1")
    release = home.standings("tiny").find("1", "")
    assert release is not None
    decide(home, question(home, release), Wish(rejects=False, reason="", expires=""), ann)
    promote(home, "1")
    assert owners(home) == {"candidate": "1", "champion": "1"}
    place.released(2, judged_against="1")
    second = home.standings("tiny").find("2", "")
    assert second is not None
    decide(home, question(home, second), Wish(rejects=False, reason="", expires=""), ann)
    decide(home, question(home, second), Wish(rejects=True, reason="it swears", expires=""), ann)
    with pytest.raises(BlockedError, match="rejected by Ann: it swears"):
        promote(home, "2")
    assert owners(home)["champion"] == "1"
