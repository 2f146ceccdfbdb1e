"""Convert the merged model to GGUF, and ask llama.cpp what it makes of each file."""

from pathlib import Path

from prefect import task

from loragate.attempt import Attempt, FetchedBase, Rows, recipe
from loragate.perplexity import total
from loragate.record import Rung
from loragate.refs import Ref, digest_file
from loragate.work import ExportGguf, GgufEvidence, ProbeGguf
from tasks.models import first_questions
from tasks.policies import STEP

CODE = ("loragate.engines.llama",)
LIBRARIES = ("llama_cpp_python",)


@task(name="export GGUF", **STEP)
def export_gguf(attempt: Attempt, merged: Ref) -> dict[str, Ref]:
    """Return one GGUF file for each quantisation of the run file."""
    wanted = attempt.config.export.gguf
    settings = {"gguf": list(wanted)}
    steps = recipe("gguf", {"merged": merged.digest}, code=CODE, libraries=LIBRARIES, settings=settings)

    def make(folder: Path) -> object:
        return attempt.call("loragate.engines.llama:export", ExportGguf(merged.path, wanted, str(folder)))

    stored, names = attempt.build(steps, dict[str, str], make)
    files = {name: Ref(stored.file(file), digest_file(Path(stored.file(file)))) for name, file in names.items()}
    for name, ref in files.items():
        attempt.note("artifact", f"gguf_{name}", ref)
    return files


@task(name="probe GGUF", task_run_name="probe {name}", **STEP)
def probe_gguf(attempt: Attempt, name: str, gguf: Ref, base: FetchedBase, rows: Rows) -> GgufEvidence:
    """Load a file in a fresh process, tokenise, score and talk to it."""
    limits = attempt.config.gates.quality
    questions = first_questions(rows, limits.num_samples)
    request = ProbeGguf(
        gguf.path,
        rows.file("heldout.jsonl"),
        rows.file("probes.jsonl"),
        questions,
        limits.sample_tokens,
        base.base.stop_ids,
    )
    steps = recipe(
        f"probe_{name}",
        {"gguf": gguf.digest, "base": base.digest, "rows": rows.digest},
        code=CODE,
        libraries=LIBRARIES,
        settings={"samples": limits.num_samples, "answer_tokens": limits.sample_tokens},
    )
    target = "loragate.engines.llama:probe"
    _, evidence = attempt.build(steps, GgufEvidence, lambda _: attempt.call(target, request, fresh=True))
    attempt.note("rung", f"gguf_{name}", Rung(f"gguf_{name}", total(evidence.rows)))
    return evidence
