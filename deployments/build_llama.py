"""Build the llama.cpp runtime and install its Python bindings, all from one pinned sdist.

The package index has llama-cpp-python only as source, and its own build compiles more than twice
the objects that a text model needs. This script takes the same sdist, compiles just the `llama`
library, packs it with the bindings into one wheel, and keeps the HF-to-GGUF converter that matches
the runtime, and the chat templates of many models, which tests render rows with. Run by the
interpreter of the environment that it fills:

    .venv/bin/python deployments/build_llama.py             # everything
    .venv/bin/python deployments/build_llama.py --compile   # all but the installation

Everything lands in `<sys.prefix>/share/loragate/llama.cpp/`. That folder is moved into place whole,
so a build that was killed leaves nothing half done. Measured choices behind the compiler flags:
`tests/bench/results/2026-11-22-llama-build.md`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

VERSION = "0.3.36"
SDIST = f"llama_cpp_python-{VERSION}.tar.gz"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"

HOME = Path(sys.prefix) / "share" / "loragate"
FINAL = HOME / "llama.cpp"
WORK = HOME / "llama.cpp.building"

VENDOR = "vendor/llama.cpp"
BINDINGS = ("llama_cpp", "CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE.md")
CONVERTER = ("LICENSE", "convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion", "gguf-py")
TEMPLATES = "models/templates"
LIBRARY = ("CMakeLists.txt", "cmake", "ggml", "include", "licenses", "src", "vendor")

# ggml does the arithmetic and keeps its full optimisation; llama.cpp's own sources only build
# graphs and read files, where -O1 cost about 2 % of speed and saves a fifth of their compile time.
GGML_OPTIONS = 'set(CMAKE_CXX_FLAGS_RELEASE "-O3 -DNDEBUG")\nset(CMAKE_C_FLAGS_RELEASE "-O3 -DNDEBUG")\n'
# Most of llama.cpp's compile time goes into reading the same headers again: they are compiled once.
SHARED_HEADERS = """if(PROJECT_NAME STREQUAL "llama.cpp")
  cmake_language(DEFER CALL target_precompile_headers llama PRIVATE
    <algorithm> <functional> <map> <regex> <set> <sstream> <unordered_map>
    "${CMAKE_SOURCE_DIR}/src/llama-context.h" "${CMAKE_SOURCE_DIR}/src/models/models.h")
endif()
"""
# llama.cpp's AMX kernels crash in their first matrix product (ggml-org/llama.cpp issue 20824), so
# they are left out on the processors that would get them; AVX512 and AVX2 kernels take their place.
WITHOUT_AMX = "-U__AMX_INT8__"
CMAKE_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG",
    f"-DCMAKE_C_FLAGS={WITHOUT_AMX}",
    f"-DCMAKE_CXX_FLAGS={WITHOUT_AMX}",
    "-DBUILD_SHARED_LIBS=ON",
    "-DCMAKE_PLATFORM_NO_VERSIONED_SONAME=ON",
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "-DCMAKE_INSTALL_RPATH=$ORIGIN",
    "-DLLAMA_BUILD_COMMON=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_TOOLS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DGGML_CCACHE=OFF",
)


class BuildError(Exception):
    """A step failed; the text says what, where, and what to do."""


def say(text: str) -> None:
    """Write one progress line to stderr."""
    sys.stderr.write(f"build_llama: {text}\n")
    sys.stderr.flush()


def sha256_of(path: Path) -> str:
    """Return the hex digest of one file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of_tree(folder: Path) -> str:
    """Return one hex digest over every converter file's name and content, in name order."""
    total = hashlib.sha256()
    for name in CONVERTER:
        root = folder / name
        for path in [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file()):
            if "__pycache__" not in path.parts:
                total.update(f"{path.relative_to(folder).as_posix()}\0{sha256_of(path)}\n".encode())
    return total.hexdigest()


def run(what: str, command: Sequence[str], extra_env: Mapping[str, str] | None = None) -> None:
    """Run one command with its output in the build log; raise BuildError with the log's end."""
    log = WORK / "build.log"
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    env = {**os.environ, "PATH": tools, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **(extra_env or {})}
    with log.open("ab") as stream:
        done = subprocess.run(
            list(command), stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=env, check=False
        )
    if done.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise BuildError(
            f"{what} failed with status {done.returncode}. The last lines of {log}:\n{tail}\n"
            "Mend what they name (a C and C++ compiler is needed, on Debian the package "
            "build-essential; the sdist needs the package index; the build needs 400 MB of disk) "
            "and run the same command again: it starts afresh."
        )


def fetch() -> Path:
    """Download the pinned sdist and check its digest."""
    say(f"fetching {SDIST}")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-build-isolation"]
    command += ["--no-binary", "llama-cpp-python", "--dest", str(WORK), f"llama-cpp-python=={VERSION}"]
    run("The download of llama-cpp-python", command, {"CMAKE_ARGS": "-DLLAMA_BUILD=OFF"})
    sdist = WORK / SDIST
    found = sha256_of(sdist)
    if found != SHA256:
        raise BuildError(
            f"{sdist} has sha256 {found}, but {SHA256} is pinned in {__file__}. Do not use this file: find "
            "out why the package index serves another one before changing the pin."
        )
    return sdist


def unpack(sdist: Path) -> Path:
    """Unpack the parts of the sdist that the build and the converter need."""
    top = SDIST.removesuffix(".tar.gz")
    keep = [f"{top}/{name}" for name in BINDINGS]
    keep += [f"{top}/{VENDOR}/{name}" for name in (*LIBRARY, *CONVERTER, TEMPLATES)]
    with tarfile.open(sdist, "r|gz") as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extraction_filter = tarfile.data_filter
        for member in archive:
            if any(member.name == name or member.name.startswith(f"{name}/") for name in keep):
                archive.extract(member, WORK)
    return WORK / top


def compile_library(source: Path) -> list[Path]:
    """Compile the target `llama` and return its shared libraries."""
    build = WORK / "objects"
    ggml_options = WORK / "ggml-options.cmake"
    ggml_options.write_text(GGML_OPTIONS, encoding="utf-8")
    shared_headers = WORK / "shared-headers.cmake"
    shared_headers.write_text(SHARED_HEADERS, encoding="utf-8")
    processors = len(os.sched_getaffinity(0))
    say(f"compiling llama.cpp with {processors} jobs (about 4 CPU minutes)")
    configure = ["cmake", "-G", "Ninja", "-S", f"{source / VENDOR}", "-B", f"{build}", *CMAKE_FLAGS]
    configure += [f"-DCMAKE_PROJECT_INCLUDE={shared_headers}"]
    configure += [f"-DCMAKE_PROJECT_ggml_INCLUDE={ggml_options}"]
    run("Configuring llama.cpp", configure)
    compile_it = ["cmake", "--build", f"{build}", "--target", "llama", "--parallel", f"{processors}"]
    run("Compiling llama.cpp", compile_it)
    return sorted((build / "bin").glob("lib*.so"))


def build_wheel(source: Path, libraries: list[Path], into: Path) -> None:
    """Pack the bindings with the compiled libraries inside into one wheel."""
    (source / "llama_cpp" / "lib").mkdir(exist_ok=True)
    for library in libraries:
        shutil.copy2(library, source / "llama_cpp" / "lib")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--wheel-dir", str(into), str(source)]
    run("Packing the bindings", command, {"CMAKE_ARGS": "-DLLAMA_BUILD=OFF"})


def pin() -> dict[str, str]:
    """Return what decides whether an earlier build may be kept."""
    flags = hashlib.sha256(repr((CMAKE_FLAGS, GGML_OPTIONS, SHARED_HEADERS)).encode()).hexdigest()
    kept = ", ".join((*CONVERTER, TEMPLATES))
    return {"sdist": SDIST, "version": VERSION, "sha256": SHA256, "build_flags": flags, "kept": kept}


def is_built() -> bool:
    """Tell whether a finished build of exactly this pin lies in place."""
    try:
        recorded = json.loads((FINAL / "source.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(recorded, dict) and pin().items() <= recorded.items()


def is_installed() -> bool:
    """Tell whether the wheel of this build was installed, and imports and loads its library."""
    if not (FINAL / "installed").exists():
        return False
    probe = f"import llama_cpp; raise SystemExit(llama_cpp.__version__ != {VERSION!r})"
    done = subprocess.run([sys.executable, "-I", "-c", probe], capture_output=True, check=False)
    return done.returncode == 0


def build() -> None:
    """Build everything beside its final place, then move it there as one folder."""
    started = time.monotonic()
    shutil.rmtree(WORK, ignore_errors=True)
    stage = WORK / "stage"
    stage.mkdir(parents=True)
    source = unpack(fetch())
    build_wheel(source, compile_library(source), stage)
    for name in CONVERTER:
        shutil.move(source / VENDOR / name, stage / name)
    shutil.move(source / VENDOR / TEMPLATES, stage / "templates")
    record = {**pin(), "converter_sha256": digest_of_tree(stage)}
    (stage / "source.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(FINAL, ignore_errors=True)
    stage.rename(FINAL)
    shutil.rmtree(WORK, ignore_errors=True)
    say(f"built in {time.monotonic() - started:.0f} s")


def install() -> None:
    """Install the built wheel into this environment and check that it loads."""
    WORK.mkdir(parents=True, exist_ok=True)
    wheel = next(FINAL.glob("*.whl"))
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--force-reinstall"]
    run("Installing the bindings", [*command, str(wheel)])
    (FINAL / "installed").touch()
    if not is_installed():
        raise BuildError(
            f"{wheel.name} was installed into {sys.prefix}, but `import llama_cpp` fails. Run "
            f"{sys.executable} -c 'import llama_cpp' to see why; packages that it needs come from "
            "requirements.lock. If this folder was copied from another machine, remove it and set up anew."
        )
    shutil.rmtree(WORK, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build and install what is missing; return the exit status."""
    parser = argparse.ArgumentParser(description="Build llama.cpp and install its Python bindings.")
    parser.add_argument("--compile", action="store_true", help="build only; a later run installs")
    only_compile = parser.parse_args(arguments).compile
    try:
        if not is_built():
            build()
        if not only_compile and not is_installed():
            install()
    except (BuildError, OSError) as error:
        say(f"stopped. {error}")
        return 1
    say(f"llama.cpp of {SDIST} is ready in {FINAL}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
