"""`loragate check` on many rows against the bare fast tokenizer on the same rows, on the same machine, in one run.

    .venv/bin/python tests/bench/check.py --rows 1000000 --also 100000

Compared, for each number of made-up rows (see rows.py):

- rows a second of the whole command, from the start of its process to its end (its own Prefect server, the report of
  Great Expectations and all else included, the base model prepared before), against rows a second of the tokenizer's
  `encode_batch` alone on the rendered rows (see encode.py), taken before and after it. Wanted: at least half.
- peak memory: the most that all processes of the command have together, PSS, looked at every 0.2 s. Wanted: below 3 GB.
- with --also: seconds a row at both sizes, with and without what a check of 1,000 rows takes. Wanted: within 15 %.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rows import write_rows
from setting import JUDGED, LORAGATE, busy, environment, heading, judged, progress, table, told, write_run

MARK = "LORAGATE_BENCH_MARK"
"""Environment variable that every process of one command inherits, whatever parent it moves to."""

SAMPLE_SECONDS = 0.2
NOTABLE_CHANGE = 0.005
"""PSS is read anew only where what is resident has changed by this share: reading it walks every page, and would cost
the check a tenth of two cores at some GB."""

TINY_ROWS, START_ROWS = 200, 1000
MIN_SHARE, MAX_GB, MAX_GROWTH = 0.5, 3.0, 1.15
MAX_TOKENS, HELDOUT = 1024, 0.05
SHOWN_PARTS, SHOWN_CHARS = 12, 90
ENCODE = str(Path(__file__).with_name("encode.py"))


@dataclass(frozen=True, slots=True)
class Moment:
    """What all processes of a command have in memory at one moment, in bytes.

    Attributes:
        parts: Each process's command and PSS.
        anonymous: What of it is no file; pages of files that are mapped can be taken back at any time.
    """

    parts: tuple[tuple[str, int], ...] = ()
    anonymous: int = 0

    @property
    def total(self) -> int:
        """PSS of all processes."""
        return sum(size for _, size in self.parts)


@dataclass(frozen=True, slots=True)
class Checked:
    """A check that has come to a verdict.

    Attributes:
        processor: Seconds of processor time of all its processes, as far as samples tell.
        sampling: The same of watching it.
        others: How many cores other programs kept busy meanwhile, those that share the host with us included.
    """

    rows: int
    seconds: float
    processor: float
    sampling: float
    others: float
    peak: Moment
    outcome: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Encoded:
    """What the bare tokenizer did, and in how many seconds, of which of the processor."""

    rows: int
    tokens: int
    seconds: float
    processor: float

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.rows / self.seconds


@dataclass(frozen=True, slots=True)
class Measured:
    """One number of rows: the tokenizer before, the check, the tokenizer after."""

    before: Encoded
    checked: Checked
    after: Encoded

    @property
    def tokenizer(self) -> float:
        """Rows a second, mean of before and after."""
        return (self.before.rate + self.after.rate) / 2

    @property
    def rate(self) -> float:
        """Rows a second of the check."""
        return self.checked.rows / self.checked.seconds


@dataclass(frozen=True, slots=True)
class Place:
    """Where one run works, and what it works with."""

    folder: Path
    threads: int
    seed: int

    @property
    def home(self) -> Path:
        """State of the checks: new for each run, or what an earlier one has judged would be found done."""
        return self.folder / "home"


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--also", type=int, help="a smaller number of rows, to see how the cost grows")
    parser.add_argument("--workdir", type=Path, help="folder for a temporary folder of some GB (default: the system's)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads of the bare tokenizer")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.workdir:
        options.workdir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="loragate-check-", dir=options.workdir))
    try:
        measure(Place(folder, options.threads, options.seed), options.rows, options.also)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(place: Place, rows: int, also: int | None) -> None:
    """Measure one or two sizes, and tell of each as soon as it is known."""
    told(*heading(f"`loragate check` on {rows:,} rows against the bare tokenizer"))
    check(place, make_rows(place, TINY_ROWS))
    start = check(place, make_rows(place, START_ROWS))
    found = [measure_size(place, size) for size in (also, rows) if size]
    told(*_summary(found, place.threads), *_steps([start, *(each.checked for each in found)]))
    for each in found:
        told(*_memory(each.checked), *_broken(each.checked))
    if also:
        told(*_growth(start, found[0].checked, found[1].checked))


def make_rows(place: Place, count: int) -> Path:
    """Make rows; sizes have different ones, so that nothing of one is found done by the other."""
    path = place.folder / f"rows-{count}.jsonl"
    progress(f"making {count:,} rows")
    write_rows(path, count, place.seed + count)
    return path


def measure_size(place: Place, count: int) -> Measured:
    """Measure the tokenizer, the check, and the tokenizer again."""
    rows, rendered = make_rows(place, count), place.folder / f"rendered-{count}"
    progress(f"rendering {count:,} rows")
    _encode_step("render", str(rows), str(rendered))
    before = encode(rendered, place.threads)
    checked = check(place, rows)
    measured = Measured(before, checked, encode(rendered, place.threads))
    shutil.rmtree(rendered)
    return measured


def encode(rendered: Path, threads: int) -> Encoded:
    """Time the bare tokenizer in a process of its own."""
    progress("the bare tokenizer")
    found = json.loads(_encode_step("encode", str(rendered), RAYON_NUM_THREADS=str(threads)))
    return Encoded(found["rows"], found["tokens"], found["seconds"], found["processor"])


def _encode_step(*arguments: str, **more: str) -> str:
    command = [sys.executable, ENCODE, *arguments]
    return subprocess.run(command, env=environment(**more), stdout=subprocess.PIPE, text=True, check=True).stdout


def check(place: Place, rows: Path) -> Checked:
    """Run `loragate check` to its end and watch its memory.

    Raises:
        SystemExit: It came to no verdict.
    """
    run, count = rows.with_suffix(".yaml"), int(rows.stem.rpartition("-")[2])
    write_run(run, {"train": [str(rows)], "heldout": HELDOUT, "max_tokens": MAX_TOKENS}, {})
    progress(f"loragate check on {count:,} rows")
    mark, own, before = uuid.uuid4().hex, time.process_time(), busy()
    with run.with_suffix(".out").open("w+", encoding="utf-8") as out, run.with_suffix(".err").open("w+") as err:
        start = time.perf_counter()
        command = [LORAGATE, "check", str(run), "--json", "--home", str(place.home)]
        process = subprocess.Popen(command, env=environment(**{MARK: mark}), stdout=out, stderr=err)
        family = Family(process.pid, mark)
        try:
            peak = watch(process, family)
        finally:
            process.terminate()  # it has ended, unless we end early
        seconds, sampling = time.perf_counter() - start, time.process_time() - own
        out.seek(0), err.seek(0)
        if process.returncode not in JUDGED:
            raise SystemExit(f"the check ended with {process.returncode}:\n{err.read()[-4000:]}")
        others = max(0.0, (busy() - before - family.processor - sampling) / seconds)
        return Checked(count, seconds, family.processor, sampling, others, peak, json.load(out))


def watch(process: subprocess.Popen[bytes], family: "Family") -> Moment:
    """Wait for a process to end; return the moment at which it and all that it started had most in memory."""
    peak = Moment()
    while True:
        peak = max(peak, family.look(peak.total), key=lambda each: each.total)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=SAMPLE_SECONDS)
            return peak


class Family:
    """A process, its descendants, and whoever carries its mark: servers of forks are nobody's children."""

    def __init__(self, pid: int, mark: str) -> None:
        """Follow the process with this number, which was started with this mark."""
        self._pid, self._mark = pid, f"{MARK}={mark}".encode()
        self._marked: dict[tuple[int, bytes], bool] = {}
        self._ticks: dict[tuple[int, bytes], int] = {}
        self._resident = 0

    @property
    def processor(self) -> float:
        """Seconds of processor time that they have taken, those that have ended too."""
        return sum(self._ticks.values()) / os.sysconf("SC_CLK_TCK")

    def look(self, most: int) -> Moment:
        """Add up what all of them have in memory now; where that is surely not above `most` or as before, nothing."""
        members = self._members()
        resident = sum(_resident(pid) for pid in members)
        if resident <= most or abs(resident - self._resident) < NOTABLE_CHANGE * self._resident:
            return Moment()
        self._resident = resident
        parts, anonymous = [], 0
        for pid in members:
            with suppress(OSError):  # it has ended in the meantime
                size, own = _size(pid)
                parts.append((_command(pid), size))
                anonymous += own
        return Moment(tuple(parts), anonymous)

    def _members(self) -> list[int]:
        parents, members, ticks = {}, {self._pid}, {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
                pid, key = int(folder.name), (int(folder.name), fields[19])
                parents[pid], ticks[pid] = int(fields[1]), (key, int(fields[11]) + int(fields[12]))
                members |= {pid} if self._is_marked(folder, key) else set()
        while more := {child for child, parent in parents.items() if parent in members} - members:
            members |= more
        self._ticks |= dict(ticks[pid] for pid in members if pid in ticks)
        return sorted(members)

    def _is_marked(self, folder: Path, key: tuple[int, bytes]) -> bool:
        """Whether a process carries the mark; it has it from its start or never, so each is asked once."""
        if key not in self._marked:
            self._marked[key] = self._mark in (folder / "environ").read_bytes().split(b"\0")
        return self._marked[key]


def _size(pid: int) -> tuple[int, int]:
    """PSS of a process and what of it is no file, in bytes; what is resident, where the kernel does not tell PSS."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    except PermissionError:
        return _resident(pid), _resident(pid)
    kilobytes = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines)}
    pss = kilobytes.get("Pss", 0) * 1024
    return pss, pss - kilobytes.get("Pss_File", 0) * 1024


def _resident(pid: int) -> int:
    """What a process has in memory in bytes, pages that it shares counted whole; 0 where it has ended."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _command(pid: int) -> str:
    """The command of a process, short enough to be shown, without what makes processes of one kind differ."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    short = " ".join(Path(word).name if word.startswith("/") else " ".join(word.split()) for word in words if word)
    return short[:SHOWN_CHARS].replace("|", "/") or "(ended)"


def _summary(found: Sequence[Measured], threads: int) -> Iterator[str]:
    columns = ["rows", "tokens a row", "tokenizer before, rows/s", "after", "mean", "check, s", "check, rows/s"]
    columns += ["check / tokenizer", "peak memory, GB", "verdict"]
    rows = []
    for each in found:
        share, peak = each.rate / each.tokenizer, each.checked.peak.total / 1e9
        cells = [f"{each.checked.rows:,}", f"{each.before.tokens / each.before.rows:.1f}", f"{each.before.rate:,.0f}"]
        cells += [f"{each.after.rate:,.0f}", f"{each.tokenizer:,.0f}", f"{each.checked.seconds:.1f}"]
        cells += [f"{each.rate:,.0f}", judged(share, share >= MIN_SHARE, f"at least {MIN_SHARE}")]
        cells += [judged(peak, peak < MAX_GB, f"below {MAX_GB:.0f}"), str(each.checked.outcome["verdict"])]
        rows.append(cells)
    yield from table(columns, rows)
    yield f"The tokenizer had {threads} threads. GB are 10^9 bytes; memory is PSS, all the command's processes"
    yield f"together, looked at every {SAMPLE_SECONDS} s. How quiet it was, in seconds of processor time:"
    yield ""
    yield from _quiet(found)


def _quiet(found: Sequence[Measured]) -> Iterator[str]:
    columns = ["rows", "tokenizer before", "after", "check", "watching the check", "cores busy meanwhile for others"]
    rows = []
    for each in found:
        checked = each.checked
        seconds = (each.before.processor, each.after.processor, checked.processor, checked.sampling)
        rows.append([f"{checked.rows:,}", *(f"{value:.1f}" for value in seconds), f"{checked.others:.2f}"])
    yield from table(columns, rows)


def _steps(checks: Sequence[Checked]) -> Iterator[str]:
    """Seconds of each step as the command tells them; the rest is what no step is: imports, server, flow, end."""
    names = list(dict.fromkeys(name for each in checks for name in each.outcome["seconds"]))
    told_of = [{**each.outcome["seconds"]} for each in checks]
    lines = [[name, *(f"{steps.get(name, 0):.2f}" for steps in told_of)] for name in names]
    rest = (each.seconds - sum(steps.values()) for each, steps in zip(checks, told_of, strict=True))
    lines.append(["(outside of steps)", *(f"{seconds:.2f}" for seconds in rest)])
    lines.append(["whole command", *(f"{each.seconds:.2f}" for each in checks)])
    yield from table(["step, s", *(f"{each.rows:,} rows" for each in checks)], lines)


def _memory(checked: Checked) -> Iterator[str]:
    peak, sizes, counts = checked.peak, Counter[str](), Counter(command for command, _ in checked.peak.parts)
    for command, size in peak.parts:
        sizes[command] += size
    yield f"The peak of {checked.rows:,} rows, {peak.total / 1e9:.3f} GB, of which {peak.anonymous / 1e9:.3f} GB are no"
    yield from ("pages of files, by command:", "")
    shown = sizes.most_common(SHOWN_PARTS)
    yield from table(["processes", "command", "MB"], [[str(counts[c]), f"`{c}`", f"{s / 1e6:.0f}"] for c, s in shown])


def _broken(checked: Checked) -> Iterator[str]:
    findings = [finding for gate in checked.outcome["gates"] for finding in gate["findings"]]
    broken = [finding for finding in findings if not finding["passed"]]
    yield f"{checked.rows:,} rows: {len(findings)} findings, {len(broken)} of them not fine."
    yield from (f"- {finding['severity']} {finding['rule']}: {finding['detail'][:300]}" for finding in broken)
    yield ""


def _growth(start: Checked, small: Checked, large: Checked) -> Iterator[str]:
    whole = (large.seconds / large.rows) / (small.seconds / small.rows)
    rates = [(each.seconds - start.seconds) / (each.rows - start.rows) for each in (small, large)]
    yield f"Seconds a row at {large.rows:,} rows / at {small.rows:,} rows:"
    yield f"{judged(whole, whole <= MAX_GROWTH, f'at most {MAX_GROWTH}')} as it is;"
    beyond = rates[1] / rates[0]
    yield f"{judged(beyond, beyond <= MAX_GROWTH, f'at most {MAX_GROWTH}')} without the {start.seconds:.1f} s that a"
    yield f"check of {start.rows:,} rows takes ({rates[0] * 1e6:.1f} and {rates[1] * 1e6:.1f} microseconds a row)."


if __name__ == "__main__":
    main()
