"""Work in processes: results in order, faults in order, and no process that outlives its caller."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from loragate.errors import DataFileError, StepError
from loragate.workers import available, in_order

PIECES = 40


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_the_order_of_the_pieces(workers: int) -> None:
    def square(piece: int) -> int:
        time.sleep(0.002 * (piece % 3))
        return piece * piece

    assert list(in_order(square, range(PIECES), workers)) == [piece * piece for piece in range(PIECES)]


def test_work_is_done_in_other_processes() -> None:
    found = set(in_order(lambda _: os.getpid(), range(PIECES), 2))
    assert os.getpid() not in found
    assert set(in_order(lambda _: os.getpid(), range(3), 1)) == {os.getpid()}


def faulty(number: int) -> int:
    if number == 7:
        raise DataFileError("row 7")
    if number == 9:
        raise DataFileError("row 9")
    return number


def broken_after(last: int) -> Iterator[int]:
    yield from range(last)
    raise DataFileError("the file ends here")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("pieces", "said"), [(12, "row 7"), (8, "row 7"), (6, "the file ends here")])
def test_first_fault_is_raised_whoever_meets_it(workers: int, pieces: int, said: str) -> None:
    done: list[int] = []
    with pytest.raises(DataFileError, match=said):
        done.extend(in_order(faulty, broken_after(pieces), workers))
    assert done == list(range(min(pieces, 7)))


def test_pieces_are_not_read_far_ahead() -> None:
    handed = []

    def pieces() -> Iterator[int]:
        for piece in range(1000):
            handed.append(piece)
            yield piece

    results = in_order(lambda piece: piece, pieces(), 2)
    assert next(results) == 0
    assert len(handed) <= 5
    results.close()  # type: ignore[attr-defined]


def test_process_that_dies_is_a_sentence() -> None:
    def die(piece: int) -> int:
        if piece == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return piece

    with pytest.raises(StepError, match="a worker process died"):
        list(in_order(die, range(PIECES), 2))


def test_at_least_one_processor_is_available() -> None:
    assert available() >= 1


CALLER = """
import os, sys, time
from loragate.workers import in_order
def work(piece):
    with open(sys.argv[1] + str(os.getpid()), "w"):
        time.sleep(60)
list(in_order(work, range(9), 2))
"""


def test_processes_end_when_their_caller_is_killed(tmp_path: Path) -> None:
    caller = subprocess.Popen([sys.executable, "-c", CALLER, f"{tmp_path}/"])
    end = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert len(workers) == 2
    caller.kill()
    caller.wait()
    while any(Path(f"/proc/{worker}/cmdline").exists() for worker in workers):
        assert time.monotonic() < end, "a worker lives on"
        time.sleep(0.05)
