"""A refused release, waived by a signed file, released with the waiver in every place; by the real command line."""

import json
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from commands import Done, loragate, prefect_for, write_run
from mlflow.tracking import MlflowClient
from qa_pairs import pairs, write_jsonl
from signers import new_key, write_key

from loragate.engines.signing import load_private_key, sign
from loragate.waivers import NAMESPACE, read_waiver

ADA, RULE = "Ada Lovelace", "quality/perplexity_ratio"
REASON = "a pilot with three customers"
IMPOSSIBLE = {"quality": {"max_perplexity_ratio": 0.01, "num_samples": 2, "sample_tokens": 8, "min_stop_share": 0.0}}

# MLflow 3.17 asks SQLAlchemy 2.1 for a loading strategy that is on its way out; ours is only the question.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning")


def day(ahead: int) -> str:
    return (datetime.now(UTC).date() + timedelta(days=ahead)).isoformat()


@dataclass(frozen=True, slots=True)
class Place:
    """A folder with a run file whose quality limit cannot be met, and one signer."""

    folder: Path
    api: str

    def run(self, *arguments: str) -> Done:
        home = ("--home", str(self.folder / "home"))
        return loragate(*arguments, *home, cwd=self.folder, PREFECT_API_URL=self.api)

    def waive(self, attempt: str, **changed: str) -> Done:
        asked = {"rule": RULE, "by": ADA, "reason": REASON, "until": day(30), "key": "ada"} | changed
        options = [word for name, value in asked.items() for word in (f"--{name}", value)]
        return self.run("waive", attempt, *options, "--json")

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.folder / 'home' / 'mlflow.db'}")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, new_home: Path) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("waived")
    key = new_key()
    write_key(folder / "ada", key)
    write_key(folder / "other", new_key())
    write_run(folder, tiny_model, gates=IMPOSSIBLE | {"waivers": {"signers": {ADA: f"{key.public} ada@laptop"}}})
    shutil.copytree(new_home, folder / "home")
    with prefect_for(folder / "home") as api:
        yield Place(folder, api)


@pytest.fixture(scope="module")
def refused(place: Place) -> Done:
    done = place.run("release", "run.yaml", "--json")
    assert done.code == 3, done.said
    return done


@pytest.fixture(scope="module")
def waived(place: Place, refused: Done) -> Done:
    done = place.waive(refused.json["attempt"])
    assert done.code == 0, done.said
    return done


@pytest.fixture(scope="module")
def released(place: Place, waived: Done) -> Done:
    done = place.run("release", "run.yaml", "--json")
    assert done.code == 0, done.said
    return done


def test_a_refusal_names_its_candidate_the_command_and_the_rows(place: Place, refused: Done) -> None:
    said = refused.json
    review = said["waivers"]["quality"]
    (command,) = review["commands"]
    wanted = ["loragate", "waive", said["attempt"], "--rule", RULE, "--by", ADA, "--reason", "WHY", "--until"]
    assert shlex.split(command)[:10] == wanted
    assert f"--home {place.folder / 'home'}" in command
    for part in (review["candidate"], command):
        assert part in said["message"]
        assert part in place.run("show", said["attempt"]).stdout
    report = Path(said["artifacts"]["report"]).read_text(encoding="utf-8")
    assert review["candidate"] in report
    shown = place.run("show", said["attempt"]).stdout
    assert len(said["worst_rows"]["baseline"]) == 5
    changes = [row["after"]["nats"] - row["before"]["nats"] for row in said["worst_rows"]["baseline"]]
    assert changes == sorted(changes, reverse=True)
    for row in said["worst_rows"]["baseline"]:
        assert row["place"].startswith("heldout.jsonl:")
        assert row["place"] in shown
        assert row["place"] in report


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rule": "quality/stop_share"}, "was not refused by quality/stop_share"),
        ({"by": "Charles Babbage"}, "gates.waivers.signers names Ada Lovelace"),
        ({"key": "other"}, "is not the key that"),
        ({"key": "none"}, "none: the key cannot be read"),
        ({"until": day(-1)}, "it ended on"),
        ({"until": day(91)}, "more than 90 days ahead"),
    ],
)
def test_what_would_not_count_is_not_signed(place: Place, refused: Done, changed: dict[str, str], said: str) -> None:
    before = sorted(place.folder.glob("waivers/*"))
    done = place.waive(refused.json["attempt"], **changed)
    assert (done.code, done.stdout) == (2, ""), done.said
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(place.folder.glob("waivers/*")) == before


def test_a_waived_release_says_so_everywhere_and_keeps_value_and_limit(
    place: Place, refused: Done, released: Done
) -> None:
    said = released.json
    assert said["verdict"] == "released"
    quality = next(gate for gate in said["gates"] if gate["gate"] == "quality")
    finding = next(each for each in quality["findings"] if each["rule"] == "perplexity_ratio")
    assert (quality["status"], finding["passed"], finding["limit"]) == ("waived", False, 0.01)
    for part in (ADA, REASON, day(30)):
        assert part in finding["waived"]
        assert part in said["message"]
        assert part in place.run("show", said["release"]).stdout
        assert part in Path(said["artifacts"]["report"]).read_text(encoding="utf-8")
    assert said["waivers"]["quality"]["candidate"] == refused.json["waivers"]["quality"]["candidate"]
    assert "quality gate       WAIVED" in place.run("show", said["release"]).stdout


def test_replay_finds_the_waiver_signed_and_for_this_candidate(place: Place, released: Done) -> None:
    done = place.run("replay", released.json["release"], "--json")
    assert (done.code, done.json["holds"]) == (0, True), done.said
    (quality,) = (each for each in done.json["claims"] if each["claim"].startswith("quality gate: waived"))
    assert "waivers by their signatures and this candidate's digest" in quality["how"]


def test_mlflow_has_the_waiver_as_a_tag_of_run_and_version_and_as_files(place: Place, released: Done) -> None:
    version = place.client.get_model_version_by_alias("tiny", "candidate")
    assert version.run_id is not None
    run = place.client.get_run(version.run_id)
    for tags in (run.data.tags, version.tags):
        assert tags["loragate.waivers"].startswith(f"{RULE} waived by {ADA}")
    files = {Path(entry.path).name for entry in place.client.list_artifacts(version.run_id, "waivers")}
    assert files == {path.name for path in place.folder.glob("waivers/*")}


def test_the_same_command_again_finds_the_release(place: Place, released: Done) -> None:
    again = place.run("release", "run.yaml", "--json")
    assert (again.code, again.json["digest"]) == (0, released.json["digest"]), again.said


def test_other_limits_or_other_data_are_another_candidate_and_are_refused(place: Place, released: Done) -> None:
    other = place.run("release", "run.yaml", "--json", "--set", "gates.quality.max_perplexity_ratio=0.02")
    assert other.code == 3, other.said
    (ignored,) = other.json["waivers"]["quality"]["ignored"]
    assert "it is for candidate " in ignored["why"]
    assert ignored["file"] in other.json["message"]
    write_jsonl(place.folder / "train.jsonl", pairs(25))
    try:
        data = place.run("release", "run.yaml", "--json")
    finally:
        write_jsonl(place.folder / "train.jsonl", pairs(24))
    assert data.code == 3, data.said
    assert "it is for candidate " in data.json["waivers"]["quality"]["ignored"][0]["why"]


def test_an_expired_waiver_refuses_again_and_says_when_it_ended(place: Place, released: Done) -> None:
    (path,) = place.folder.glob("waivers/*.json")
    signed = path.with_name(f"{path.name}.sig")
    before = path.read_text(encoding="utf-8"), signed.read_text(encoding="ascii")
    old = json.dumps(json.loads(before[0]) | {"until": day(-1)})
    read_waiver(old)
    key = load_private_key(place.folder / "ada", str)
    path.write_text(old, encoding="utf-8")
    signed.write_text(sign(key, old.encode(), NAMESPACE), encoding="ascii")
    try:
        done = place.run("release", "run.yaml", "--json")
    finally:
        path.write_text(before[0], encoding="utf-8")
        signed.write_text(before[1], encoding="ascii")
    assert done.code == 3, done.said
    assert f"it ended on {day(-1)}" in done.json["message"]
    assert done.json["gates"][-1]["status"] == "fail"
