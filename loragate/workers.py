"""Work on many pieces in processes of their own, with the results in the order of the pieces.

The processes are forks: they find what the caller has loaded, and must be asked for before the caller uses libraries
that start threads. They end with the caller, whatever ends that. Memory holds a few pieces a process, never all.
"""

import gc
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from loragate.child import watch_caller
from loragate.errors import StepError

P = TypeVar("P")
R = TypeVar("R")

AHEAD = 2
"""Pieces handed out for each process: one in work, one waiting."""

COLLECT_AFTER = 100_000
"""Objects between garbage collections: pieces are made of many objects and leave none behind."""

_work: Callable[[Any], Any]


def available() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(work: Callable[[P], R], pieces: Iterable[P], workers: int) -> Iterator[R]:
    """Yield `work(piece)` for each piece, in order; with one worker in this process itself.

    An error of an earlier piece is raised before one of a later piece, and before one that the pieces themselves raise.

    Raises:
        StepError: A process died.
    """
    if workers <= 1:
        yield from map(work, pieces)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(work,)) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            yield from _through(pool, pieces, waiting, workers * AHEAD)
        except BrokenProcessPool:
            raise StepError("a worker process died (out of memory, or killed from outside)") from None
        finally:
            for future in waiting:
                future.cancel()


def _through(pool: ProcessPoolExecutor, pieces: Iterable[P], waiting: "deque[Future[R]]", most: int) -> Iterator[R]:
    left = iter(pieces)
    fault: Exception | None = None
    while True:
        while fault is None and len(waiting) < most:
            try:
                waiting.append(pool.submit(_run, next(left)))
            except StopIteration:
                break
            except BrokenProcessPool:
                raise
            except Exception as error:  # noqa: BLE001 - raised again, after what was handed out before it
                fault = error
        if not waiting:
            break
        yield waiting.popleft().result()
    if fault is not None:
        raise fault


def _begin(work: Callable[[Any], Any]) -> None:
    global _work  # noqa: PLW0603 - one process, one kind of work
    _work = work
    gc.freeze()  # what the caller has loaded is neither looked through nor, by that, copied
    gc.set_threshold(COLLECT_AFTER)
    watch_caller()


def _run(piece: Any) -> Any:
    return _work(piece)
