"""What an attempt ran on: enough to set up the same again, and nothing secret."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path


def describe() -> dict[str, str]:
    """Name the interpreter, the machine, the commit of this checkout and every installed package's version."""
    packages = {
        f"package/{distribution.metadata['Name'].lower()}": distribution.version
        for distribution in importlib.metadata.distributions()
    }
    machine = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "loragate_commit": _commit(),
    }
    return machine | dict(sorted(packages.items()))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _commit() -> str:
    """The checkout's commit, with `+changes` where files differ from it; `unknown` outside a checkout."""
    root = str(Path(__file__).resolve().parent.parent)
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(root, "status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(root: str, *arguments: str) -> str:
    command = ["git", "-C", root, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
