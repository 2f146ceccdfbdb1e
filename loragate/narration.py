"""Telling a person what goes on, on stderr: a bar where it is a terminal, plain lines where not."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from loragate.child import Progress, Report

LINE_SECONDS = 5.0
"""Plain lines about one step come no closer together than this."""

quiet = False
"""Set by the command line's -q: only warnings and the verdict are told."""


def tell(text: str) -> None:
    """Write one line, unless told to be quiet."""
    if not quiet:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


@contextmanager
def hushed() -> Iterator[None]:
    """Tell nothing while the context lasts."""
    global quiet  # noqa: PLW0603 - the command line's own switch
    before, quiet = quiet, True
    try:
        yield
    finally:
        quiet = before


@contextmanager
def narrated(step: str) -> Iterator[Report]:
    """Show the progress of one step while the context lasts."""
    if quiet or not sys.stderr.isatty():
        yield _lines(step)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, TextColumn("{task.fields[numbers]}"), console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(step, total=None, numbers="")
        yield lambda p: bar.update(task, completed=p.done, total=p.total or None, numbers=_numbers(p))


def _lines(step: str) -> Report:
    last = [time.monotonic()]

    def report(progress: Progress) -> None:
        if time.monotonic() - last[0] >= LINE_SECONDS:
            last[0] = time.monotonic()
            done = f"{progress.done:,}" + (f"/{progress.total:,}" if progress.total else "")
            tell(f"  {step}: {done} {progress.unit} {_numbers(progress)}".rstrip())

    return report


def _numbers(progress: Progress) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in progress.numbers.items())
