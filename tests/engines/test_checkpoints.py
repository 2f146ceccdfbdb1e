"""Checkpoints: what was written is read, what was not written whole is never read, and nothing random is lost."""

import logging
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loragate.engines import checkpoints

CONTENT: dict[str, Any] = {
    "weights": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "moments": {"0": torch.full((5,), 0.5, dtype=torch.bfloat16)},
    "curve": [{"step": 1, "loss": 2.5, "heldout": None}],
    "rates": (1e-4, float("inf")),
}


def content(step: int) -> dict[str, Any]:
    return CONTENT | {"step": step}


def step_of(folder: Path) -> int | None:
    found = checkpoints.newest(folder)
    return None if found is None else found["step"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """The checkpoints of steps 10 and 20."""
    return checkpoints.write(tmp_path, 10, content(10)), checkpoints.write(tmp_path, 20, content(20))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = checkpoints.write(tmp_path, 12, content(12))
    assert path == tmp_path / "checkpoint-00000012.pt"
    found = checkpoints.newest(tmp_path)
    assert found is not None
    assert torch.equal(found.pop("weights"), CONTENT["weights"])
    assert torch.equal(found.pop("moments")["0"], CONTENT["moments"]["0"])
    assert found == {"step": 12, "curve": CONTENT["curve"], "rates": CONTENT["rates"]}


def test_no_folder_and_an_empty_one_have_none(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path / "none") is None
    assert checkpoints.newest(tmp_path) is None


def test_the_newest_is_read_and_not_the_last_by_name(tmp_path: Path) -> None:
    for step in (9, 99_999_999, 100_000_000):
        checkpoints.write(tmp_path, step, content(step))
    assert step_of(tmp_path) == 100_000_000


@pytest.mark.parametrize("left", [0, 1, 72, 73, 74, 0.25, 0.5, 0.999, -74, -73, -72, -1])
def test_one_cut_short_is_passed_over_and_named(
    two: tuple[Path, Path], left: float, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = two
    whole = newer.read_bytes()
    newer.write_bytes(whole[: left if isinstance(left, int) else int(left * len(whole))])
    with caplog.at_level(logging.WARNING):
        assert step_of(older.parent) == 10
    assert f"checkpoint passed over: {newer}: " in caplog.text
    assert "cut short" in caplog.text


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_flipped_bit_anywhere_is_seen(two: tuple[Path, Path], place: float, bit: int) -> None:
    older, newer = two
    whole = newer.read_bytes()
    altered = bytearray(whole)
    altered[int(place * len(whole))] ^= 1 << bit
    newer.write_bytes(altered)
    assert step_of(older.parent) == 10
    newer.write_bytes(whole)
    assert step_of(older.parent) == 20


def test_one_that_grew_or_is_another_files_is_passed_over(two: tuple[Path, Path]) -> None:
    older, newer = two
    newer.write_bytes(newer.read_bytes() + b"\n")
    assert step_of(older.parent) == 10
    torch.save(content(20), newer)
    assert step_of(older.parent) == 10


def test_all_of_them_broken_is_none(two: tuple[Path, Path]) -> None:
    for path in two:
        path.write_bytes(b"")
    assert step_of(two[0].parent) is None


def test_one_that_cannot_be_read_is_passed_over(two: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    older, newer = two
    newer.unlink()
    newer.mkdir()
    assert step_of(older.parent) == 10
    assert "Is a directory" in caplog.text


class KilledError(Exception):
    """Stands for whatever ends a process."""


def killed(*_: object) -> None:
    raise KilledError


def test_one_killed_before_its_rename_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.write(tmp_path, 10, content(10))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KilledError, match=r"^$"):
            checkpoints.write(tmp_path, 20, content(20))
    assert names(tmp_path) == ["checkpoint-00000010.pt", "checkpoint-00000020.pt.unfinished"]
    assert step_of(tmp_path) == 10
    checkpoints.write(tmp_path, 20, content(20))
    assert names(tmp_path) == ["checkpoint-00000010.pt", "checkpoint-00000020.pt"]
    assert step_of(tmp_path) == 20


def test_one_killed_while_it_is_saved_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.write(tmp_path, 10, content(10))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", killed)
        with pytest.raises(KilledError, match=r"^$"):
            checkpoints.write(tmp_path, 20, content(20))
    assert step_of(tmp_path) == 10


def test_file_is_on_disk_before_its_name_and_its_name_before_any_other_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints.write(tmp_path, 10, content(10))
    done: list[str] = []
    fsync, replace, unlink = os.fsync, Path.replace, Path.unlink
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("sync"), fsync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda path, to: (done.append("rename"), replace(path, to))[1])
    monkeypatch.setattr(Path, "unlink", lambda path: (done.append("delete"), unlink(path))[1])
    checkpoints.write(tmp_path, 20, content(20), keep=1)
    assert done == ["sync", "rename", "sync", "delete"]


@pytest.mark.parametrize(("keep", "kept"), [(1, [50]), (2, [40, 50]), (3, [30, 40, 50])])
def test_all_but_the_newest_few_are_deleted(tmp_path: Path, keep: int, kept: list[int]) -> None:
    (tmp_path / "checkpoint-00000007.pt.unfinished").write_bytes(b"half of one")
    (tmp_path / "best-40").mkdir()
    for step in (10, 20, 30, 40, 50):
        checkpoints.write(tmp_path, step, content(step), keep)
    assert names(tmp_path) == ["best-40", *(f"checkpoint-{step:08d}.pt" for step in kept)]


def test_one_cut_short_does_not_count_among_those_kept(tmp_path: Path) -> None:
    for step in (10, 20):
        path = checkpoints.write(tmp_path, step, content(step))
    path.write_bytes(path.read_bytes()[:-1])
    checkpoints.write(tmp_path, 30, content(30))
    assert names(tmp_path) == ["checkpoint-00000010.pt", "checkpoint-00000030.pt"]


def test_later_steps_of_a_course_given_up_are_deleted(two: tuple[Path, Path]) -> None:
    older, newer = two
    newer.write_bytes(b"\0" + newer.read_bytes()[1:])
    assert step_of(older.parent) == 10
    checkpoints.write(older.parent, 15, content(15))
    assert names(older.parent) == ["checkpoint-00000010.pt", "checkpoint-00000015.pt"]


def draws() -> list[float]:
    return [
        *(random.random() for _ in range(3)),
        *(random.gauss(0, 1) for _ in range(3)),
        *np.random.standard_normal(3).tolist(),
        *torch.randn(3).tolist(),
    ]


def test_random_numbers_go_on_where_they_were_also_across_a_file(tmp_path: Path) -> None:
    draws()  # an odd number of normal ones: each library has one in store
    checkpoints.write(tmp_path, 1, {"random": checkpoints.random_state()})
    first, second = draws(), draws()
    assert first != second
    found = checkpoints.newest(tmp_path)
    assert found is not None
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        checkpoints.restore_random(found["random"])
        assert draws() + draws() == first + second


def test_random_state_of_every_cuda_device_is_taken_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    states = [torch.tensor([number], dtype=torch.uint8) for number in range(3)]
    restored: dict[int, int] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: restored.update({device: int(state)}))
    state = checkpoints.random_state()
    for devices in (2, 3, 4):
        restored.clear()
        monkeypatch.setattr(torch.cuda, "device_count", lambda devices=devices: devices)
        checkpoints.restore_random(state)
        assert restored == {number: number for number in range(min(3, devices))}
