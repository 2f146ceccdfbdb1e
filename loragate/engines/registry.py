"""MLflow's registry: versions and their aliases, read and moved; files read back as it hands them out.

MLflow keeps no digest, has no compare-and-swap, drops aliases with a deleted version and lets anybody write to the
files of a registered version: whatever is asked of it here is read back.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.tracking import MlflowClient

from loragate.errors import OutageError, VerificationError, first_line
from loragate.promotion import VERSION_FOLDER
from loragate.refs import digest_file

GONE = "RESOURCE_DOES_NOT_EXIST"


@contextmanager
def asking(uri: str) -> Iterator[None]:
    """Turn an answer that MLflow does not give into our error.

    Raises:
        OutageError: It cannot be reached, or does not do as asked.
    """
    try:
        yield
    except OutageError:
        raise
    except (MlflowException, OSError) as error:
        raise OutageError(f"MLflow ({uri}) does not do as asked: {first_line(error)[:300]}") from error


def aliases(uri: str, model: str) -> dict[str, str]:
    """Which version has which alias; none where there is no such model."""
    try:
        found = MlflowClient(uri).get_registered_model(model).aliases
    except MlflowException as error:
        if error.error_code == GONE:
            return {}
        raise
    return {alias: str(version) for alias, version in found.items()}


def give_alias(uri: str, model: str, alias: str, version: str) -> str:
    """Give an alias to a version and return who has it when read back."""
    client = MlflowClient(uri)
    client.set_registered_model_alias(model, alias, version)
    return aliases(uri, model).get(alias, "")


def take_alias(uri: str, model: str, alias: str) -> None:
    """Take an alias away, where there is one."""
    MlflowClient(uri).delete_registered_model_alias(model, alias)


def tags(uri: str, model: str, version: str) -> dict[str, str]:
    """What a version's tags say."""
    return dict(MlflowClient(uri).get_model_version(model, version).tags)


def model_tags(uri: str, model: str) -> dict[str, str]:
    """What a registered model's tags say."""
    return dict(MlflowClient(uri).get_registered_model(model).tags)


def tag_model(uri: str, model: str, name: str, value: str) -> None:
    """Give a registered model a tag, in the place of one of that name."""
    MlflowClient(uri).set_registered_model_tag(model, name, value)


def run_of(uri: str, model: str, version: str) -> str:
    """The run that a version's files belong to."""
    return str(MlflowClient(uri).get_model_version(model, version).run_id)


def verify_run(uri: str, run_id: str, files: Mapping[str, str], scratch: Path) -> None:
    """Read back the files of a run that is to be a version.

    Raises:
        VerificationError: A file is missing, is one too many, or has other bytes than were uploaded.
    """
    source = str(MlflowClient(uri).get_run(run_id).info.artifact_uri) + f"/{VERSION_FOLDER}"
    _verify(get_artifact_repository(source, tracking_uri=uri), f"MLflow run {run_id}", files, scratch)


def verify_version(uri: str, model: str, version: str, files: Mapping[str, str], scratch: Path) -> None:
    """Read back the files of a version, as whoever serves it gets them.

    Raises:
        VerificationError: The version or a file is missing, or a file is one too many or has other bytes.
    """
    try:
        source = MlflowClient(uri).get_model_version_download_uri(model, version)
    except MlflowException as error:
        if error.error_code == GONE:
            raise VerificationError(f"{model}@{version}: MLflow has no such version any more") from None
        raise
    _verify(get_artifact_repository(source, tracking_uri=uri), f"{model}@{version}", files, scratch)


def _verify(repository: ArtifactRepository, what: str, files: Mapping[str, str], scratch: Path) -> None:
    found = set(_listed(repository, ""))
    for problem, names in (("missing in", set(files) - found), ("not of this release, but in", found - set(files))):
        if names:
            raise VerificationError(f"{what}: {min(names)} is {problem} MLflow ({len(names)} such)")
    try:
        for name, digest in sorted(files.items()):
            read = _digest(repository, name, scratch)
            if read != digest:
                told = f"{name} in MLflow has the SHA-256 {read[:12]}…, the release {digest[:12]}…"
                raise VerificationError(f"{what}: {told}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _digest(repository: ArtifactRepository, name: str, scratch: Path) -> str:
    """Digest one file; it is copied only where it does not lie on this machine."""
    if isinstance(repository, LocalArtifactRepository):
        return digest_file(Path(repository.download_artifacts(name)))
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        return digest_file(Path(repository.download_artifacts(name, folder)))


def _listed(repository: ArtifactRepository, folder: str) -> Iterator[str]:
    for entry in repository.list_artifacts(folder or None):
        if entry.is_dir:
            yield from _listed(repository, entry.path)
        else:
            yield entry.path


def dangers(uri: str, model: str, standing: Mapping[str, str]) -> list[str]:
    """Say what MLflow would take from under an alias, or has taken: deleted versions and runs, runs without files."""
    client, found = MlflowClient(uri), []
    for alias, version in sorted(standing.items()):
        what = f"{model}@{version} ({alias})"
        try:
            run = client.get_run(str(client.get_model_version(model, version).run_id))
        except MlflowException as error:
            if error.error_code != GONE:
                raise
            found.append(f"{what}: its version or its run is gone from MLflow: {first_line(error)}")
            continue
        if run.info.lifecycle_stage == "deleted":
            found.append(
                f"{what}: its run {run.info.run_id} is deleted, and `mlflow gc` would delete its files; first: "
                f"mlflow runs restore --run-id {run.info.run_id}"
            )
    return found
