"""The house itself: its walls stand, its journeys are light and short, and its front door opens fast."""

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("flows", "tasks", "checks", "loragate", "deployments")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
HEAVY = ("torch", "transformers", "peft", "great_expectations", "mlflow", "pandas", "matplotlib", "llama_cpp")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def walled_modules() -> set[str]:
    """Every module or package that a contract of the import linter forbids something."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    return {module for contract in contracts for module in contract.get("source_modules", ())}


def modules(folder: str) -> set[str]:
    """Every module of a package but the package itself."""
    names = (path.stem for path in (ROOT / folder).glob("*.py"))
    return {f"{folder.replace('/', '.')}.{name}" for name in names if name != "__init__"}


def test_walls_between_the_rooms_stand() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_module_stands_outside_the_walls() -> None:
    assert {"flows", "tasks", "checks", "loragate.engines"} <= walled_modules()
    assert modules("loragate") - walled_modules() == set()


def loaded_by(module: str) -> set[str]:
    code = f"import json, sys, {module}; print(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    return set(json.loads(python(code)))


def test_release_flow_is_imported_without_any_heavy_library() -> None:
    assert not loaded_by("flows.release") & set(HEAVY)


@pytest.mark.parametrize("module", ["loragate.cli", "loragate.starter", "loragate.config", "loragate.child"])
def test_core_is_imported_without_orchestrator_and_heavy_libraries(module: str) -> None:
    assert not loaded_by(module) & {*HEAVY, "prefect", "numpy"}


def test_a_bundle_is_verified_with_three_small_packages() -> None:
    """Whoever is handed a bundle need not install what makes one: no pydantic, no YAML, nothing heavy, no network."""
    libraries = loaded_by("loragate.verification, loragate.engines.seals, loragate.release_commands")
    foreign = {name for name in libraries - sys.stdlib_module_names if not name.startswith("_")}
    # cryptography looks for bcrypt and does without it
    assert foreign - {"loragate", "bcrypt"} == {"click", "cryptography", "rfc8785"}


def test_release_flow_fits_on_one_screen() -> None:
    assert len((ROOT / "flows" / "release.py").read_text(encoding="utf-8").splitlines()) <= 60


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_no_file_is_longer_than_400_lines() -> None:
    lengths = {named(path): len(path.read_text(encoding="utf-8").splitlines()) for path in [*SOURCES, *TESTS]}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_no_function_is_longer_than_60_lines() -> None:
    lengths = {
        f"{named(path)}:{function.name}": (function.end_lineno or 0) - function.lineno + 1
        for path in [*SOURCES, *TESTS]
        for function in functions(path)
    }
    assert {name: length for name, length in lengths.items() if length > 60} == {}


def test_nothing_is_printed_by_accident() -> None:
    calls = [
        f"{named(path)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert calls == []


def test_every_module_says_what_it_is() -> None:
    silent = [named(p) for p in [*SOURCES, *TESTS] if not ast.get_docstring(ast.parse(p.read_text(encoding="utf-8")))]
    assert silent == []


def cpu_seconds_of_help() -> float:
    """User and system time of one `loragate --help`; waiting for the machine is not in it."""
    code = "import sys; sys.argv = ['loragate', '--help']; from loragate.cli import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


def test_help_takes_less_than_half_a_second_of_cpu() -> None:
    """The one test with a clock: the time is a line of the product's contract."""
    assert min(cpu_seconds_of_help() for _ in range(3)) < 0.5
