"""What an attempt ran on: enough to set up the same again, and nothing secret."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

from loragate.refs import digest_file, digest_manifest

ROOMS = ("checks", "flows", "loragate", "tasks")
DECISIVE = (
    *("processor", "threads"),
    *(
        f"package/{name}"
        for name in (
            *("bitsandbytes", "gguf", "liger-kernel", "llama-cpp-python", "numpy", "peft", "safetensors", "tokenizers"),
            *("torch", "transformers"),
        )
    ),
)
"""What of an environment decides how arithmetic is rounded and what files are written."""


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
        "threads": os.environ.get("OMP_NUM_THREADS") or str(len(os.sched_getaffinity(0))),
        "loragate_commit": _commit(),
    }
    return machine | dict(sorted(packages.items()))


def program_digest() -> str:
    """Digest every module of this program."""
    root = Path(__file__).resolve().parent.parent
    return digest_manifest(
        {
            f"{room}/{path.relative_to(root / room).as_posix()}": digest_file(path)
            for room in ROOMS
            for path in (root / room).rglob("*.py")
        }
    )


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> tuple[str, ...]:
    """Say in what of `DECISIVE` two environments differ, a phrase each."""
    return tuple(
        f"{name.removeprefix('package/')} {then.get(name, 'not there')} -> {now.get(name, 'not there')}"
        for name in DECISIVE
        if then.get(name) != now.get(name)
    )


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
