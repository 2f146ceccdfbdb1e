"""Altering what MLflow has of a version, as anybody who can reach it may; each alteration can be taken back."""

from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.tracking import MlflowClient

from loragate.promotion import VERSION_FOLDER


def new_store(folder: Path, model: str) -> str:
    """Make an MLflow store of its own in a folder, files included; return its address."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    MlflowClient(uri).create_experiment(model, artifact_location=(folder / "mlartifacts").as_uri())
    return uri


def put_file(uri: str, run_id: str, name: str, content: bytes | None) -> bytes | None:
    """Have a version's file hold these bytes, or take it away where there are none; return what was there before."""
    client = MlflowClient(uri)
    root = str(client.get_run(run_id).info.artifact_uri)
    repository, path = get_artifact_repository(root, tracking_uri=uri), PurePosixPath(VERSION_FOLDER, name)
    with TemporaryDirectory() as folder:
        known = [entry.path for entry in repository.list_artifacts(str(path.parent))]
        before = Path(repository.download_artifacts(str(path), folder)).read_bytes() if str(path) in known else None
    if content is None:
        repository.delete_artifacts(str(path))
        return before
    with TemporaryDirectory() as folder:
        file = Path(folder, path.name)
        file.write_bytes(content)
        repository.log_artifact(str(file), str(path.parent))
    return before


def put_tag(uri: str, model: str, version: str, tag: str, value: str) -> str:
    """Have a version's tag say something else; return what it said."""
    client = MlflowClient(uri)
    before = str(client.get_model_version(model, version).tags[tag])
    client.set_model_version_tag(model, version, tag, value)
    return before
