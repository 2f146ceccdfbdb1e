"""Whatever is altered in MLflow or in the promotion log after a release is found by `verify`, and named."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import loragate
from mlflow.tracking import MlflowClient
from promotable import Promotable, promotable

from loragate.errors import VerificationError
from loragate.home import Home
from loragate.release_commands import verified
from tasks import aliases

# MLflow 3.17 asks SQLAlchemy 2.1 for a loading strategy that is on its way out; ours is only the question.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning")


def client(home: Home) -> MlflowClient:
    return MlflowClient(home.tracking_uri)


def altered_file(home: Home) -> None:
    run = client(home).get_model_version("tiny", "2").run_id
    client(home).log_text(str(run), "other", "model/adapter/adapter_config.json")


def added_file(home: Home) -> None:
    run = client(home).get_model_version("tiny", "2").run_id
    client(home).log_text(str(run), "import os", "model/more.py")


def deleted_file(home: Home) -> None:
    run = client(home).get_run(str(client(home).get_model_version("tiny", "2").run_id))
    Path(str(run.info.artifact_uri).removeprefix("file://"), "model", "gates.json").unlink()


def deleted_version(home: Home) -> None:
    client(home).delete_model_version("tiny", "2")


def moved_alias(home: Home) -> None:
    client(home).set_registered_model_alias("tiny", "champion", "1")


def taken_alias(home: Home) -> None:
    client(home).delete_registered_model_alias("tiny", "previous")


def added_alias(home: Home) -> None:
    client(home).set_registered_model_alias("tiny", "challenger", "1")


def tag(name: str, value: str | None) -> Callable[[Home], None]:
    def alter_tag(home: Home) -> None:
        if value is None:
            client(home).delete_model_version_tag("tiny", "2", name)
        else:
            client(home).set_model_version_tag("tiny", "2", name, value)

    return alter_tag


def model_tag(home: Home) -> None:
    client(home).set_registered_model_tag("tiny", "loragate.chain", "1:" + "0" * 64)


def log_lines(change: Callable[[list[str]], list[str]]) -> Callable[[Home], None]:
    def alter_log(home: Home) -> None:
        path = home.promotions("tiny").path
        path.write_text("".join(change(path.read_text(encoding="utf-8").splitlines(keepends=True))), encoding="utf-8")

    return alter_log


def without_file(home: Home) -> None:
    home.promotions("tiny").path.unlink()


IN_MLFLOW = {
    "a file altered": (altered_file, "adapter_config.json in MLflow has the SHA-256"),
    "a file added": (added_file, "more.py is not of this release, but in MLflow"),
    "a file deleted": (deleted_file, "gates.json is missing in MLflow"),
    "the version deleted": (deleted_version, "MLflow has no such version any more"),
    "an alias moved": (moved_alias, "the alias champion of tiny was moved"),
    "an alias taken": (taken_alias, "the alias previous of tiny was moved"),
    "an alias added": (added_alias, "the alias challenger of tiny was moved"),
    **{
        f"the tag {name} {how}": (tag(f"loragate.{name}", value), f"the tag loragate.{name} in MLflow says")
        for name in ("digest", "manifest", "signature", "chain")
        for how, value in (("altered", "0" * 64), ("deleted", None))
    },
    "the model's tag altered": (model_tag, "tiny: the tag loragate.chain in MLflow says"),
    "the chain's tag of another length": (tag("loragate.chain", "1:" + "0" * 64), "the tag loragate.chain in MLflow"),
}
IN_THE_LOG = {
    "deleted": (without_file, "log.jsonl: altered"),
    "a line deleted": (log_lines(lambda lines: lines[:3] + lines[4:]), "log.jsonl: altered"),
    "its end cut off": (log_lines(lambda lines: lines[:-3]), "log.jsonl: altered"),
    "two lines swapped": (log_lines(lambda lines: [lines[1], lines[0], *lines[2:]]), "log.jsonl: altered"),
    "no JSON": (log_lines(lambda lines: ["{\n", *lines[1:]]), "log.jsonl:1: not a line as it was written"),
    "another champion": (
        log_lines(lambda lines: [line.replace('"goal": "champion"', '"goal": "candidate"') for line in lines]),
        "log.jsonl: altered",
    ),
    "one promotion more": (
        log_lines(lambda lines: lines + [line.replace('"id": "', '"id": "more') for line in lines[-6:]]),
        "chain.jsonl: has no event of the release of tiny@2",
    ),
}


@pytest.fixture(scope="module")
def two_released(tmp_path_factory: pytest.TempPathFactory, new_home: Path) -> Promotable:
    """A champion and the one before, both as they were sealed."""
    place = promotable(tmp_path_factory.mktemp("released") / "place", new_home)
    place.released(1)
    place.released(2, judged_against="1")
    assert verified_in_mlflow(place.home) == ""
    return place


def verified_in_mlflow(home: Home) -> str:
    """What `verify tiny@2 --mlflow` names; nothing where all is as it was."""
    try:
        found = verified("tiny@2", (), str(home.root))
        release = home.standings("tiny").find("2", "")
        assert release is not None
        aliases.verify_registered(home, release, found)
    except VerificationError as error:
        return str(error)
    return ""


def restore(place: Path, kept: Path) -> None:
    """Make a folder what it was; files stay where they are, because MLflow holds its database open."""
    for path in (path for path in place.rglob("*") if path.is_file() and not (kept / path.relative_to(place)).exists()):
        path.unlink()
    for path in (path for path in kept.rglob("*") if path.is_file()):
        there = place / path.relative_to(kept)
        if not there.exists() or there.read_bytes() != path.read_bytes():
            there.write_bytes(path.read_bytes())


@pytest.mark.parametrize(
    ("change", "named"), [*IN_MLFLOW.values(), *IN_THE_LOG.values()], ids=[*IN_MLFLOW, *IN_THE_LOG]
)
def test_whatever_is_altered_in_mlflow_or_in_the_log_is_named(
    change: Callable[[Home], None], named: str, two_released: Promotable, tmp_path: Path
) -> None:
    place = two_released.folder
    kept = shutil.copytree(place, tmp_path / "kept")
    try:
        change(two_released.home)
        assert named in verified_in_mlflow(two_released.home)
    finally:
        restore(place, kept)
    assert verified_in_mlflow(two_released.home) == ""


def test_a_version_downloaded_from_mlflow_is_a_bundle(two_released: Promotable, tmp_path: Path) -> None:
    home = two_released.home
    run = client(home).get_model_version("tiny", "2").run_id
    there = client(home).download_artifacts(str(run), "model", str(tmp_path))
    key = str(next(home.keys.glob("*.pub")))
    done = loragate("verify", there, "--key", key, "--json", cwd=tmp_path)
    assert (done.code, done.json["release"]) == (0, "tiny"), done.said
    Path(there, "gates.json").write_text("[]", encoding="utf-8")
    assert loragate("verify", there, cwd=tmp_path).code == VerificationError.exit_code


def test_verify_asks_mlflow_where_it_is_told_to(two_released: Promotable, tmp_path: Path) -> None:
    home = two_released.home
    done = loragate("verify", "tiny@champion", "--mlflow", "--home", str(home.root), cwd=tmp_path)
    assert (done.code, "MLflow has the same files" in done.stdout) == (0, True), done.said
    moved_alias(home)
    told = loragate("verify", "tiny@2", "--mlflow", "--home", str(home.root), cwd=tmp_path)
    client(home).set_registered_model_alias("tiny", "champion", "2")
    assert (told.code, "the alias champion of tiny was moved" in told.stderr) == (4, True), told.said
