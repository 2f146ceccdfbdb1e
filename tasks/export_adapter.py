"""Convert the adapter alone to GGUF, and the base model that it is judged on top of."""

from pathlib import Path

from loragate.artifact_work import ExportAdapter, ExportGguf
from loragate.attempt import Attempt, FetchedBase, recipe
from loragate.ladder import ADAPTER, F16, gguf_file
from loragate.refs import Ref, digest_file

CODE = ("loragate.engines.llama", "loragate.engines.predictions", "loragate.ladder")
LIBRARIES = ("llama_cpp_python",)
FILE = gguf_file(ADAPTER)


def export_adapter(attempt: Attempt, base: FetchedBase, adapter: Ref) -> Ref:
    """Return the adapter as a GGUF file of its own."""
    steps = recipe("gguf_adapter", {"adapter": adapter.digest, "base": base.digest}, code=CODE, libraries=LIBRARIES)

    def make(folder: Path) -> object:
        request = ExportAdapter(adapter.path, base.base.path, str(folder / FILE))
        return attempt.call("loragate.engines.llama:export_adapter", request)

    ref = _file(attempt.build(steps, str, make)[0].file(FILE))
    attempt.note("artifact", f"gguf_{ADAPTER}", ref)
    return ref


def base_gguf(attempt: Attempt, base: FetchedBase) -> Ref:
    """Return the base model as an f16 GGUF file; it is judged by and does not ship."""
    steps = recipe("gguf_base", {"base": base.digest}, code=CODE, libraries=LIBRARIES)

    def make(folder: Path) -> object:
        return attempt.call("loragate.engines.llama:export", ExportGguf(base.base.path, (F16,), str(folder)))

    stored, names = attempt.build(steps, dict[str, str], make)
    return _file(stored.file(names[F16]))


def _file(path: str) -> Ref:
    return Ref(path, digest_file(Path(path)))
