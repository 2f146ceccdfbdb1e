"""A release on a model hub: uploaded in one commit, and read back from it.

Promises: the token is given to the hub and to nobody else, and is in no message. What the hub says it holds is compared
file by file: the SHA-256 of large files, git's own hash of small ones (SHA-1 over `blob SIZE\\0` and the content).
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.tqdm import disable_progress_bars

from loragate.errors import ConfigError, StepError, VerificationError, first_line
from loragate.exporting import Shipped

REFUSED = (401, 403)
Operation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete


@dataclass(frozen=True, slots=True)
class Push:
    """What is pushed where.

    Attributes:
        repo: Its id on the hub: NAME or OWNER/NAME.
        files: By the name that each gets in the repository.
        private: Whether a repository that is made for it can be seen by its owner alone.
        revision: Branch that gets the commit; made where it is not there; None: main.
        message: Of the commit.
    """

    repo: str
    files: Mapping[str, Shipped]
    private: bool
    revision: str | None
    message: str


@dataclass(frozen=True, slots=True)
class Pushed:
    """A commit that holds every file as it was sealed.

    Attributes:
        removed: Files of an earlier release that were in the same folders and are not in this one.
    """

    commit: str
    url: str
    files: int
    size: int
    removed: tuple[str, ...]


def push(asked: Push, token: str) -> Pushed:
    """Upload files in one commit and read back what the hub holds then.

    Raises:
        ConfigError: There can be no repository of this name.
        StepError: The hub cannot be reached, or refuses.
        VerificationError: The hub holds something else than was uploaded; the message begins with the file.
    """
    disable_progress_bars()
    api = HfApi(token=token)
    with _told(asked.repo, api.endpoint, token):
        api.create_repo(asked.repo, private=asked.private, exist_ok=True)
        if asked.revision:
            api.create_branch(asked.repo, branch=asked.revision, exist_ok=True)
        removed = _outdated(asked, _held(api, asked.repo, asked.revision))
        operations: list[Operation] = [
            *(CommitOperationAdd(name, str(file.path)) for name, file in asked.files.items()),
            *(CommitOperationDelete(name) for name in removed),
        ]
        commit = api.create_commit(asked.repo, operations, commit_message=asked.message, revision=asked.revision)
        held = _held(api, asked.repo, str(commit.oid))
    _require_same(asked, held, f"{asked.repo}, commit {str(commit.oid)[:12]}")
    size = sum(file.path.stat().st_size for file in asked.files.values())
    return Pushed(str(commit.oid), commit.commit_url, len(asked.files), size, removed)


def _held(api: HfApi, repo: str, revision: str | None) -> dict[str, RepoFile]:
    tree = api.list_repo_tree(repo, recursive=True, revision=revision)
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _outdated(asked: Push, held: Mapping[str, RepoFile]) -> tuple[str, ...]:
    """Files in folders that the release fills which are not of it; what lies beside those folders is not ours."""
    ours = {PurePosixPath(name).parts[0] for name in asked.files if "/" in name}
    return tuple(
        sorted(
            name for name in held if "/" in name and name not in asked.files and PurePosixPath(name).parts[0] in ours
        )
    )


def _require_same(asked: Push, held: Mapping[str, RepoFile], where: str) -> None:
    for name, file in sorted(asked.files.items()):
        found = held.get(name)
        if found is None:
            raise VerificationError(
                f"{name}: not in {where} after the upload; does the repository's .gitignore name it?"
            )
        same = found.lfs.sha256 == file.digest if found.lfs else found.blob_id == _git_hash(file.path)
        if not same or found.size != file.path.stat().st_size:
            raise VerificationError(
                f"{name}: altered on its way to {where}: the hub holds other bytes than were sealed; push again"
            )


def _git_hash(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def _told(repo: str, endpoint: str, token: str) -> Iterator[None]:
    """Turn what the hub's client raises into one sentence without the token."""
    try:
        yield
    except HFValidationError as error:
        raise ConfigError(f"{repo}: no name of a repository: {first_line(error)}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        what = "refuses the token; it must be one that may write to" if status in REFUSED else "does not take a push to"
        raise StepError(f"{endpoint} {what} {repo} ({status}): {_without(token, error)}") from None
    except (httpx2.HTTPError, OSError) as error:
        raise StepError(
            f"{endpoint} cannot be reached, nothing is pushed to {repo}: {_without(token, error)}"
        ) from None
    except ValueError as error:
        raise StepError(f"{endpoint} answers a push to {repo} as no hub does: {_without(token, error)}") from None


def _without(token: str, error: Exception) -> str:
    return first_line(error).replace(token, "…")
