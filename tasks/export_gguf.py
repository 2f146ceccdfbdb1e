"""Convert the merged model to GGUF, and ask llama.cpp what it makes of each file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prefect import task

from loragate.artifact_work import ExportGguf, GgufEvidence, ProbeGguf
from loragate.attempt import Attempt, FetchedBase, Measurement, Rows, recipe
from loragate.ladder import ADAPTER, F16, Hop, made_from
from loragate.refs import Ref, digest_file
from tasks.compare_models import descend
from tasks.export_adapter import CODE, LIBRARIES, base_gguf, export_adapter
from tasks.models import first_questions
from tasks.policies import STEP
from tasks.write_modelfiles import write_modelfiles


@dataclass(frozen=True, slots=True)
class Probed:
    """A file measured by llama.cpp, what it is made of, and the step to it from what it was made from."""

    name: str
    measured: Measurement
    evidence: GgufEvidence
    hop: Hop


@task(name="export GGUF", **STEP)
def export_gguf(attempt: Attempt, base: FetchedBase, rows: Rows, adapter: Ref, merged: Ref) -> dict[str, Ref]:
    """Return one GGUF file for each quantisation of the run file, f16 first: the others are held against it.

    Where the run file asks for them, Modelfiles are written for these, and the adapter's own file comes last.
    """
    files = _convert(attempt, merged)
    if attempt.config.export.ollama:
        write_modelfiles(attempt, base, rows, [Path(ref.path).name for ref in files.values()])
    if attempt.config.export.gguf_adapter:
        files[ADAPTER] = export_adapter(attempt, base, adapter)
    return files


def _convert(attempt: Attempt, merged: Ref) -> dict[str, Ref]:
    wanted = tuple(sorted(attempt.config.export.gguf, key=lambda name: name != F16))
    settings = {"gguf": list(wanted), "name": attempt.config.model}
    steps = recipe("gguf", {"merged": merged.digest}, code=CODE, libraries=LIBRARIES, settings=settings)

    def make(folder: Path) -> object:
        request = ExportGguf(merged.path, wanted, str(folder), attempt.config.model)
        return attempt.call("loragate.engines.llama:export", request)

    stored, names = attempt.build(steps, dict[str, str], make)
    files = {name: Ref(stored.file(file), digest_file(Path(stored.file(file)))) for name, file in names.items()}
    for name, ref in files.items():
        attempt.note("artifact", f"gguf_{name}", ref)
    return files


@task(name="probe GGUF", task_run_name="probe {name}", **STEP)
def probe_gguf(
    attempt: Attempt, name: str, gguf: Ref, base: FetchedBase, rows: Rows, ladder: Mapping[str, Measurement]
) -> Probed:
    """Load a file in a fresh process, tokenise, score and talk to it; hold it against what it was made from."""
    limits = attempt.config.gates.quality
    above = ladder[made_from(name, ladder)]
    questions = first_questions(rows, limits.num_samples)
    below = base_gguf(attempt, base) if name == ADAPTER else None
    steps = recipe(
        f"probe_{name}",
        ({"base_gguf": below.digest} if below else {})
        | {"gguf": gguf.digest, "base": base.digest, "rows": rows.digest, "against": above.digest},
        code=CODE,
        libraries=LIBRARIES,
        settings={"samples": limits.num_samples, "answer_tokens": limits.sample_tokens},
    )

    def make(folder: Path) -> object:
        request = ProbeGguf(
            below.path if below else gguf.path,
            rows.file("heldout.jsonl"),
            rows.file("probes.jsonl"),
            questions,
            limits.sample_tokens,
            base.base.stop_ids,
            str(folder),
            {above.name: above.folder},
            gguf.path if below else "",
        )
        return attempt.call("loragate.engines.llama:probe", request, fresh=True)

    stored, evidence = attempt.build(steps, GgufEvidence, make)
    ref, rung = stored.ref, f"gguf_{name}"
    measured = Measurement(rung, evidence.rows, evidence.answers, ref.path, ref.digest, evidence.divergences)
    attempt.note_rung(measured, above)
    limit = getattr(attempt.config.gates.gguf, f"max_perplexity_ratio_{name}")
    return Probed(name, measured, evidence, descend(attempt, above, measured, limit))
