"""The run store: what is found there is whole and what was asked for, or it is not found."""

import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from loragate.errors import BusyError
from loragate.refs import digest_file, digest_json, digest_manifest, manifest, reference
from loragate.store import MARKER, Recipe, Store, Stored, code_digest, locked, write_atomically

RECIPE = Recipe("train", {"rows": "a" * 64}, {"r": 16}, code=("loragate.store",), libraries=("pydantic",))


def two_files(folder: Path) -> object:
    (folder / "deep").mkdir()
    (folder / "weights.bin").write_bytes(b"\x00\x01\x02")
    (folder / "deep" / "note.txt").write_text("hi", encoding="utf-8")
    return {"steps": 3}


def never(folder: Path) -> object:
    raise AssertionError(folder)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def folder_of(stored: Stored) -> Path:
    return Path(stored.ref.path)


def test_second_build_finds_what_the_first_one_made(store: Store) -> None:
    assert store.find(RECIPE) is None
    made = store.build(RECIPE, two_files)
    found = store.build(RECIPE, never)
    assert (made.reused, found.reused) == (False, True)
    assert found == replace(made, reused=True) == store.find(RECIPE)
    assert found.value == {"steps": 3}
    assert Path(found.file("weights.bin")).read_bytes() == b"\x00\x01\x02"


def test_digest_of_an_outcome_is_that_of_its_files_without_the_marker(store: Store) -> None:
    made = store.build(RECIPE, two_files)
    files = manifest(folder_of(made), without=frozenset({MARKER}))
    assert list(files) == ["deep/note.txt", "weights.bin"]
    assert made.ref.digest == digest_manifest(files)


def test_marker_is_written_after_everything_else(store: Store) -> None:
    def look(folder: Path) -> object:
        assert not (folder / MARKER).exists()
        assert store.find(RECIPE) is None
        return two_files(folder)

    marker = folder_of(store.build(RECIPE, look)) / MARKER
    said = json.loads(marker.read_text(encoding="utf-8"))
    assert (said["key"], said["recipe"]["step"], said["value"]) == (RECIPE.key, "train", {"steps": 3})


@pytest.mark.parametrize("name", ["weights.bin", "deep/note.txt"])
@pytest.mark.parametrize("bit", [1, 128])
def test_altered_byte_is_not_reused_but_made_anew(store: Store, name: str, bit: int) -> None:
    made = store.build(RECIPE, two_files)
    path = Path(made.file(name))
    content = bytearray(path.read_bytes())
    content[-1] ^= bit
    path.write_bytes(content)
    assert store.find(RECIPE) is None
    assert store.build(RECIPE, two_files) == made


@pytest.mark.parametrize(
    "alter",
    [
        lambda folder: (folder / "weights.bin").unlink(),
        lambda folder: (folder / "extra").touch(),
        lambda folder: (folder / "weights.bin").rename(folder / "other.bin"),
        lambda folder: (folder / MARKER).unlink(),
        lambda folder: (folder / MARKER).write_text("", encoding="utf-8"),
        lambda folder: (folder / MARKER).write_text("[]", encoding="utf-8"),
        lambda folder: (folder / MARKER).write_text("{}", encoding="utf-8"),
        lambda folder: (folder / MARKER).write_bytes(b"\xff"),
    ],
    ids=["lost", "added", "renamed", "no marker", "empty marker", "list", "no content", "not text"],
)
def test_folder_that_does_not_match_its_marker_is_made_anew(store: Store, alter: Callable[[Path], object]) -> None:
    made = store.build(RECIPE, two_files)
    alter(folder_of(made))
    assert store.find(RECIPE) is None
    assert store.build(RECIPE, two_files) == made
    assert manifest(folder_of(made)).keys() == {"deep/note.txt", "weights.bin", MARKER}


@pytest.mark.parametrize("fields", [{"value": {"steps": 4}}, {"value_digest": ""}, {"files": {}}])
def test_marker_with_another_value_is_not_believed(store: Store, fields: dict[str, object]) -> None:
    marker = folder_of(store.build(RECIPE, two_files)) / MARKER
    said = json.loads(marker.read_text(encoding="utf-8"))
    marker.write_text(json.dumps(said | fields), encoding="utf-8")
    assert store.find(RECIPE) is None


def test_every_bit_flip_in_a_marker_is_harmless(store: Store) -> None:
    made = store.build(RECIPE, two_files)
    marker = folder_of(made) / MARKER
    content = marker.read_bytes()
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        marker.write_bytes(flipped)
        found = store.find(RECIPE)
        assert found is None or (found.ref, found.value) == (made.ref, made.value)


def test_failed_build_leaves_nothing_usable(store: Store) -> None:
    def fail(folder: Path) -> object:
        two_files(folder)
        raise ValueError("no luck")

    with pytest.raises(ValueError, match="no luck"):
        store.build(RECIPE, fail)
    assert store.find(RECIPE) is None

    def clean(folder: Path) -> object:
        assert list(folder.iterdir()) == []
        return two_files(folder)

    assert not store.build(RECIPE, clean).reused


KILLED = """
import os, signal, sys
from pathlib import Path
from loragate.store import Recipe, Store

def make(folder):
    (folder / "weights.bin").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

Store(Path(sys.argv[1])).build(Recipe("train", {}), make)
"""


def test_killed_build_leaves_nothing_usable_and_no_lock(store: Store) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(store.root)], check=False)
    assert killed.returncode == -signal.SIGKILL
    recipe = Recipe("train", {})
    assert (store.root / f"train-{recipe.key[:20]}" / "weights.bin").read_bytes() == b"half"
    assert store.find(recipe) is None
    made = store.build(recipe, two_files)
    assert Path(made.file("weights.bin")).read_bytes() == b"\x00\x01\x02"


@pytest.mark.parametrize(
    "changed",
    [
        {"step": "measure"},
        {"inputs": {"rows": "b" * 64}},
        {"inputs": {"row": "a" * 64}},
        {"inputs": {}},
        {"settings": {"r": 8}},
        {"settings": {"r": 16, "alpha": 1.0}},
        {"code": ("loragate.refs",)},
        {"code": ()},
        {"libraries": ("pydantic", "rfc8785")},
    ],
)
def test_key_changes_with_whatever_decides_the_outcome(changed: dict[str, object]) -> None:
    assert replace(RECIPE, **changed).key != RECIPE.key  # type: ignore[arg-type]


def test_key_does_not_depend_on_the_order_of_inputs_and_settings() -> None:
    one = Recipe("train", {"a": "1", "b": "2"}, {"x": 1, "y": [1, 2]})
    other = Recipe("train", {"b": "2", "a": "1"}, {"y": [1, 2], "x": 1})
    assert one.key == other.key
    assert replace(one, settings={"x": 1, "y": [2, 1]}).key != one.key


def test_key_changes_with_the_source_of_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = tmp_path / "step_for_keys.py"
    source.write_text("RATE = 1\n", encoding="utf-8")
    recipe = Recipe("train", {}, code=("step_for_keys",))
    before = recipe.key
    assert code_digest("step_for_keys") == digest_file(source)
    source.write_text("RATE = 2\n", encoding="utf-8")
    assert recipe.key != before
    assert "step_for_keys" not in sys.modules


def test_other_recipe_has_a_folder_of_its_own(store: Store) -> None:
    first = store.build(RECIPE, two_files)
    second = store.build(replace(RECIPE, settings={"r": 8}), two_files)
    assert first.ref.path != second.ref.path
    assert store.find(RECIPE) == replace(first, reused=True)


def test_step_that_is_being_made_is_busy_and_free_afterwards(store: Store) -> None:
    def inner(folder: Path) -> object:
        with pytest.raises(BusyError, match="the step train of another release is running"):
            store.build(RECIPE, never)
        other = replace(RECIPE, step="measure")
        assert not store.build(other, two_files).reused
        return two_files(folder)

    store.build(RECIPE, inner)
    assert store.build(RECIPE, never).reused


def test_lock_ends_with_its_block_also_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "model.lock"
    with pytest.raises(ValueError, match="no luck"), locked(path, "a release"):
        raise ValueError("no luck")
    with (
        locked(path, "a release"),
        pytest.raises(BusyError, match=r"a release is running \(.*model\.lock is locked\)"),
    ):
        locked(path, "a release").__enter__()


HOLDER = """
import sys, time
from pathlib import Path
from loragate.store import locked

with locked(Path(sys.argv[1]), "a release"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / "model.lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match="a release is running"):
            locked(path, "a release").__enter__()
        holder.kill()
    with locked(path, "a release"):
        pass


def test_scratch_outlives_an_interrupted_build_and_not_a_finished_one(store: Store) -> None:
    def interrupted(folder: Path) -> object:
        store.scratch(RECIPE).mkdir(parents=True)
        (store.scratch(RECIPE) / "checkpoint").write_text("step 10", encoding="utf-8")
        raise KeyboardInterrupt("stopped by hand")

    with pytest.raises(KeyboardInterrupt, match="stopped by hand"):
        store.build(RECIPE, interrupted)

    def resumed(folder: Path) -> object:
        assert (store.scratch(RECIPE) / "checkpoint").read_text(encoding="utf-8") == "step 10"
        return two_files(folder)

    store.build(RECIPE, resumed)
    assert not store.scratch(RECIPE).exists()


def test_value_with_nan_and_infinity_comes_back_as_it_was(store: Store) -> None:
    value = {"losses": [1.5, math.nan, math.inf, -math.inf], "name": "緑\u2028"}
    for stored in (store.build(RECIPE, lambda _: value), store.build(RECIPE, never)):
        assert repr(stored.value) == repr(value)


def test_value_that_is_no_json_is_not_marked_as_done(store: Store) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        store.build(RECIPE, lambda _: {1, 2})
    assert store.find(RECIPE) is None


def test_file_is_written_whole_and_leaves_no_other_behind(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_atomically(path, "first")
    write_atomically(path, "second")
    assert path.read_text(encoding="utf-8") == "second"
    assert list(path.parent.iterdir()) == [path]


def test_digest_of_json_does_not_depend_on_key_order_or_spacing() -> None:
    # sha256 of b'{"a":1,"b":[true,null]}', by `printf ... | sha256sum`
    expected = "1cc69c7fa23616ca2ec3ee70d24390a6225c8832db8a4c814c7e0e7f942f8668"
    assert digest_json({"b": [True, None], "a": 1}) == expected == digest_json({"a": 1, "b": [True, None]})


def test_digest_of_a_folder_does_not_depend_on_where_it_lies(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        two_files(tmp_path / name)
    one, other = reference(tmp_path / "one"), reference(tmp_path / "other")
    assert one.digest == other.digest
    (tmp_path / "other" / "deep" / "note.txt").rename(tmp_path / "other" / "note.txt")
    assert reference(tmp_path / "other").digest != one.digest
    assert reference(tmp_path / "one" / "weights.bin").digest == digest_file(tmp_path / "one" / "weights.bin")
