"""A push: the hub gets what was sealed, is asked what it holds, and never sees more of the token than it must."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Done, loragate
from model_hub import TOKEN, ModelHub, model_hub
from sealed_home import SealedHome, make_home

from loragate.exporting import bundle_files
from loragate.refs import digest_file, manifest
from loragate.store import MARKER


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> SealedHome:
    """A home whose merged weights lie as a finished step does."""
    folder = tmp_path_factory.mktemp("sealed")
    sealed = make_home(folder)
    (folder / "made1" / "merged" / MARKER).write_text("{}", encoding="utf-8")
    return sealed


@pytest.fixture
def hub() -> Iterator[ModelHub]:
    with model_hub() as running:
        yield running


def push(hub: ModelHub, home: SealedHome, *more: str, name: str = "tiny@1", token: str = TOKEN) -> Done:
    """Push a release; nothing that is said may hold the token."""
    done = loragate(
        *("push", name, "someone/tiny", "--home", str(home.root), *more),
        cwd=home.root,
        HF_ENDPOINT=hub.address,
        HF_TOKEN=token,
        HF_HUB_DISABLE_XET="1",
        HF_HOME=str(home.root / "hub"),
        NO_PROXY="127.0.0.1",
    )
    assert not token or token not in done.said
    return done


def bundle(home: SealedHome) -> dict[str, bytes]:
    return {name: (home.bundle() / name).read_bytes() for name in manifest(home.bundle())}


def test_the_hub_holds_the_bundle_in_one_commit_and_the_same_push_again_changes_nothing(
    hub: ModelHub, home: SealedHome
) -> None:
    hub.files["main"] |= {"NOTES.md": b"mine", "gguf/model-q2_k.gguf": b"GGUF of an earlier release"}
    done = push(hub, home, "--json")
    assert done.code == 0, done.said
    assert hub.files["main"] == bundle(home) | {"NOTES.md": b"mine", ".gitattributes": b"*.gguf lfs\n"}
    assert hub.private is True
    assert done.json["commit"] in hub.files
    assert (done.json["files"], done.json["removed"]) == (len(bundle(home)), ["gguf/model-q2_k.gguf"])
    assert done.json["url"].endswith(f"/commit/{done.json['commit']}")
    assert sum("/commit/" in each for each in hub.asked) == 1
    again = push(hub, home)
    assert sum("/commit/" in each for each in hub.asked) == 1
    assert again.code == 0, again.said
    assert f"commit {done.json['commit']}: {len(bundle(home))} files" in again.stdout


def test_merged_weights_lie_beside_on_a_branch_that_is_made_for_them(hub: ModelHub, home: SealedHome) -> None:
    done = push(hub, home, "--merged", "--public", "--revision", "v1")
    assert done.code == 0, done.said
    merged = {name: content for name, content in hub.files["v1"].items() if name.startswith("merged/")}
    assert {"merged/model.safetensors", "merged/config.json", "merged/modeling_tiny.py"} <= merged.keys()
    assert "merged/done.json" not in merged
    assert {name: hub.files["v1"][name] for name in bundle(home)} == bundle(home)
    assert hub.files["main"].keys() == {".gitattributes"}
    assert hub.private is False


@pytest.mark.parametrize("damaged", ["model-q8_0.gguf", "gates.json"])
def test_a_file_that_arrives_altered_is_named(hub: ModelHub, home: SealedHome, damaged: str) -> None:
    hub.damages = damaged
    done = push(hub, home)
    assert done.code == 4, done.said
    assert f"{damaged}: altered on its way to someone/tiny, commit " in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_file_that_the_repository_ignores_is_named(hub: ModelHub, home: SealedHome) -> None:
    hub.ignores = "adapter_model.safetensors"
    done = push(hub, home)
    assert done.code == 4, done.said
    assert "adapter/adapter_model.safetensors: not in someone/tiny, commit " in done.stderr


def test_a_wrong_token_a_full_hub_and_none_at_all_are_a_paragraph_each(hub: ModelHub, home: SealedHome) -> None:
    wrong = push(hub, home, token=TOKEN[:-1])
    assert (wrong.code, wrong.stdout, wrong.stderr.count("\n")) == (1, "", 1), wrong.said
    assert f"{hub.address} refuses the token; it must be one that may write to someone/tiny (401)" in wrong.stderr
    hub.fails = 413
    full = push(hub, home)
    assert (full.code, full.stderr.count("\n")) == (1, 1), full.said
    assert "does not take a push to someone/tiny (413)" in full.stderr
    away = push(ModelHub("http://127.0.0.1:9"), home)
    assert (away.code, away.stderr.count("\n")) == (1, 1), away.said
    assert "http://127.0.0.1:9 cannot be reached" in away.stderr


def test_without_a_token_nothing_is_asked_and_the_way_to_one_told(
    hub: ModelHub, home: SealedHome, tmp_path: Path
) -> None:
    done = push(hub, home, token="")
    assert (done.code, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.said
    assert "push needs a token" in done.stderr
    (tmp_path / "token").write_text("two words\n", encoding="utf-8")
    assert push(hub, home, "--token-file", str(tmp_path / "token"), token="").code == 2
    assert hub.asked == []
    (tmp_path / "token").write_text(f"{TOKEN}\n", encoding="utf-8")
    done = push(hub, home, "--token-file", str(tmp_path / "token"), token="")
    assert (done.code, TOKEN in done.said) == (0, False), done.said


def test_an_altered_bundle_is_not_pushed_and_no_repository_made(
    hub: ModelHub, home: SealedHome, tmp_path: Path
) -> None:
    shutil.copytree(home.bundle(), tmp_path / "away")
    (tmp_path / "away" / "gates.json").write_bytes(b"[]")
    done = push(hub, home, name=str(tmp_path / "away"))
    assert (done.code, hub.asked) == (4, []), done.said
    done = push(hub, home, "--merged", name=str(home.bundle()))
    assert (done.code, hub.asked) == (2, []), done.said
    assert "a bundle holds no merged weights" in done.stderr


def test_every_file_of_a_bundle_is_pushed_with_the_digest_that_was_signed(home: SealedHome) -> None:
    files = bundle_files(home.bundle())
    assert {name: file.digest for name, file in files.items()} == {
        name: digest_file(home.bundle() / name) for name in bundle(home)
    }


def test_an_export_with_merged_weights_is_a_bundle_and_a_model_beside_it(home: SealedHome, tmp_path: Path) -> None:
    done = loragate("export", "tiny@1", "away", "--merged", "--home", str(home.root), "--json", cwd=tmp_path)
    assert (done.code, done.json["merged"]) == (0, "away-merged"), done.said
    assert {path.name for path in (tmp_path / "away-merged").iterdir()} >= {"model.safetensors", "config.json"}
    assert not (tmp_path / "away-merged" / "done.json").exists()
    assert loragate("verify", "away", "--home", str(home.root), cwd=tmp_path).code == 0
    done = loragate("export", "tiny@1", "other", "--merged", "--home", str(home.root), cwd=tmp_path)
    assert done.code == 0
    shutil.rmtree(tmp_path / "other")
    done = loragate("export", "tiny@1", "other", "--merged", "--home", str(home.root), cwd=tmp_path)
    assert (done.code, (tmp_path / "other").exists()) == (2, False), done.said
    assert "other-merged is already there" in done.stderr
