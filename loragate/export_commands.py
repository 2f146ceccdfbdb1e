"""Commands that take a sealed release away: into a folder, or to a model hub."""

import functools
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from loragate.options import common
from loragate.release_commands import verified
from loragate.terminal import answered, put, put_json

if TYPE_CHECKING:
    from loragate.refs import Ref
    from loragate.verification import Verified

MERGED = "merged"
"""Folder of a hub's repository that holds the merged weights."""


@click.command()
@click.argument("name", metavar="RELEASE")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--merged",
    is_flag=True,
    help="Copy the merged model as well, into DIR-merged beside DIR: a folder that transformers loads. It comes from "
    "the home's run store and is held against the digest in the signed manifest.",
)
@common
def export(  # noqa: PLR0913 - one parameter an option
    name: str,
    folder: Path,
    merged: bool,
    home: str | None,
    as_json: bool,
    quiet: bool,  # noqa: ARG001
    verbose: bool,
) -> None:
    """Copy a release's sealed bundle into the new folder DIR, to take away.

    The release is verified first and the copy afterwards; `loragate verify DIR` checks it anywhere, without a home.
    DIR/adapter is an adapter as peft loads it, DIR/gguf holds the GGUF files and their Modelfiles.
    """
    with answered(verbose):
        from loragate.exporting import beside, copy_bundle, copy_merged, require_free

        found = verified(name, (), home)
        ref = merged_weights(name, found, home) if merged else None
        if ref is not None:
            require_free(beside(folder))
        copy_bundle(Path(found.folder), folder, functools.partial(verified, keys=(), home=home))
        if ref is not None:
            copy_merged(ref, beside(folder))
        if as_json:
            told = {"exported": str(folder), "release": found.release, "digest": found.digest, "files": found.files}
            put_json(told | ({"merged": str(beside(folder))} if merged else {}))
        else:
            put(
                f"wrote {found.files:,} files of {found.release} to {folder}; check them with: loragate verify {folder}"
            )
            if merged:
                put(f"wrote the merged model to {beside(folder)}")


@click.command()
@click.argument("name", metavar="RELEASE|DIR")
@click.argument("repo", metavar="REPO")
@click.option(
    "--private/--public",
    default=True,
    help="Who sees a repository that is made for it [default: private]; one that is there stays as it is.",
)
@click.option(
    "--merged",
    is_flag=True,
    help="Upload the merged model as well, into the folder merged/ of the repository; no bundle holds it.",
)
@click.option("--revision", metavar="BRANCH", help="Branch that gets the commit; made where it is not there.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with a token that may write to REPO; else HF_TOKEN. It is neither kept nor shown.",
)
@common
def push(  # noqa: PLR0913 - one parameter an option
    name: str,
    repo: str,
    private: bool,
    merged: bool,
    revision: str | None,
    token_file: Path | None,
    home: str | None,
    as_json: bool,
    quiet: bool,  # noqa: ARG001
    verbose: bool,
) -> None:
    """Upload a release's sealed bundle to the repository REPO (OWNER/NAME) of a model hub, in one commit.

    The release, or the bundle in the folder DIR, is verified first; afterwards the hub is asked what it holds, and
    every file is compared (exit code 4 where one is not as it was sealed). In the folders that a bundle fills, files
    of an earlier release are removed; everything else in the repository stays. HF_ENDPOINT names another hub.

    What is downloaded is the bundle again, and verified as such, once .gitattributes, .cache, merged and whatever else
    the repository has of its own is taken out.
    """
    with answered(verbose):
        token = read_token(token_file)
        found = verified(name, (), home)
        from loragate.engines import hub
        from loragate.exporting import bundle_files, merged_files

        files = bundle_files(Path(found.folder))
        if merged:
            files |= merged_files(merged_weights(name, found, home), MERGED)
        message = f"{found.release}, release {found.digest[:12]}"
        done = hub.push(hub.Push(repo, files, private, revision, message), token)
        if as_json:
            put_json({"release": found.release, "digest": found.digest, "repo": repo} | asdict(done))
        else:
            put(f"PUSHED  {found.release}  {done.url}")
            put(f"commit {done.commit}: {done.files:,} files ({done.size:,} bytes) are there as they were sealed")
            if done.removed:
                put(f"removed {len(done.removed):,} files of an earlier release: {', '.join(done.removed)}")


def read_token(file: Path | None) -> str:
    """The hub's token: from a file, else from HF_TOKEN.

    Raises:
        ConfigError: There is none.
    """
    from loragate.errors import ConfigError

    if file is None:
        token, where = os.environ.get("HF_TOKEN", ""), "HF_TOKEN"
    else:
        where = str(file)
        try:
            token = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"--token-file {file}: cannot be read") from None
    token = token.strip()
    if not token or not token.isascii() or len(token.split()) != 1:
        raise ConfigError(
            f"push needs a token of the hub, and {where} holds {'none' if not token else 'no such thing'}: make one "
            "that may write (https://huggingface.co/settings/tokens), and set HF_TOKEN or name a file by --token-file"
        )
    return token


def merged_weights(name: str, found: "Verified", home: str | None) -> "Ref":
    """The merged weights of a release of this home.

    Raises:
        ConfigError: A bundle was named, which has none.
        VerificationError: They are gone, or other ones.
    """
    from loragate.errors import ConfigError
    from loragate.exporting import find_merged
    from loragate.home import find_home
    from loragate.listing import pick

    if Path(name).is_dir():
        raise ConfigError(f"{name}: a bundle holds no merged weights; name the release, in the home that made it")
    place = find_home(home)
    return find_merged(place, pick(place, name), Path(found.folder))
