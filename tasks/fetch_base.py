"""Bring the base model to this machine."""

from dataclasses import replace
from pathlib import Path

from prefect import task

from loragate.attempt import Attempt, FetchedBase, recipe
from loragate.config import find_base
from loragate.refs import digest_json, reference
from loragate.work import Base, FetchBase
from tasks.policies import STEP


@task(name="fetch base", **STEP)
def fetch_base(attempt: Attempt) -> FetchedBase:
    """Download, de-quantise or find the base model, and describe it."""
    source = attempt.config.base_model
    path = find_base(attempt.run)
    origin = reference(path).digest if path else digest_json([source.source, source.revision])
    steps = recipe(
        "base",
        {"origin": origin},
        code=("loragate.engines.language_model",),
        libraries=("transformers", "torch", "gguf"),
        settings={"trust_remote_code": source.trust_remote_code},
    )

    def make(folder: Path) -> object:
        name = str(path or source.source)
        request = FetchBase(name, path is not None, source.revision, source.trust_remote_code, str(folder))
        return attempt.call("loragate.engines.language_model:fetch", request)

    stored, base = attempt.build(steps, Base, make)
    base = replace(base, path=str(path) if path and path.is_dir() else stored.ref.path)
    attempt.note("input", "base_model", origin)
    return FetchedBase(base, digest_json([origin, base.commit]))
