"""The model card's metadata, written and read as the hub's own library does."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from loragate import model_card
from loragate.facts import Facts

TASK = "text-generation"
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")
FRONT_MATTER = re.compile(r"\s*---\s*\n(.*?)\n---\s*(?:\n|$)", re.DOTALL)
"""What a card begins with where it has metadata."""


def licence(path: Path) -> str:
    """The licence that a model card says; empty where there is no card, or none that can be read."""
    try:
        found = FRONT_MATTER.match(path.read_text(encoding="utf-8"))
        data = YAML(typ="safe", pure=True).load(found[1]) if found else None
    except (OSError, UnicodeDecodeError, YAMLError, ValueError):  # foreign text: whatever is wrong, it says no licence
        return ""
    if not isinstance(data, dict):
        return ""
    said, name = data.get("license"), data.get("license_name")
    chosen = name if name and said in ("other", "unknown") else said
    return chosen.strip() if isinstance(chosen, str) and chosen not in ("other", "unknown") else ""


def write(facts: Facts) -> bytes:
    """The model card: metadata for a hub, and the text."""
    metadata = _metadata(facts).to_yaml(line_break="\n")
    return f"---\n{metadata}\n---\n\n{model_card.text(facts)}".encode()


def _metadata(facts: Facts) -> ModelCardData:
    said, quantised = facts.said, facts.config.train.method == "qlora"
    return ModelCardData(
        model_name=facts.config.model,
        base_model=said["base_model"] or None,
        base_model_relation="adapter",
        library_name="peft",
        pipeline_tag=TASK,
        language=said["language"] or None,
        **_licence(said["licence"]),
        datasets=list(facts.data_sets) or None,
        metrics=["perplexity"],
        tags=["lora", *(["qlora"] if quantised else []), "gguf", "loragate"],
        eval_results=list(_results(facts)) or None,
    )


def _licence(said: str) -> dict[str, Any]:
    """The hub knows licences by their SPDX ids in small letters, and every other one by a name."""
    if not said:
        return {}
    return {"license": said.lower()} if ID.fullmatch(said) else {"license": "other", "license_name": said}


def _results(facts: Facts) -> Iterator[EvalResult]:
    for metric in facts.metrics:
        ends = {"lower": metric.low, "upper": metric.high}
        bounds = {name: value for name, value in ends.items() if value is not None}
        yield EvalResult(
            task_type=TASK,
            dataset_type="own",
            dataset_name=metric.dataset,
            dataset_config=metric.dataset,  # the hub tells data sets apart by this, not by their names
            metric_type=metric.kind,
            metric_name=metric.name,
            metric_value=metric.value,
            metric_args=bounds or None,
        )
