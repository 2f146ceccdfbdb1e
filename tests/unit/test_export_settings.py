"""The run file's section export: an adapter that cannot be a GGUF file is refused before anything is trained."""

from pathlib import Path

import pytest

from loragate.config import load
from loragate.errors import ConfigError


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("model: tiny\nbase_model: {source: org/base}\ndata: {train: [rows.jsonl]}\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("train", "why"),
    [
        ("{dora: true}", "the format has no DoRA"),
        ("{alpha_pattern: {q_proj: 8}}", "the format has one alpha for all layers"),
        ("{rslora: true, rank_pattern: {q_proj: 8}}", "the format cannot scale ranks that differ"),
        ("{target_modules: [q_proj, lm_head]}", "llama.cpp's converter takes no adapter of lm_head"),
    ],
)
def test_adapter_that_cannot_be_a_gguf_file_is_refused_where_one_is_asked_for(
    run_file: Path, train: str, why: str
) -> None:
    load(run_file, [f"train={train}"])
    with pytest.raises(
        ConfigError, match=r"export\.gguf_adapter: the adapter cannot be a GGUF file of its own"
    ) as caught:
        load(run_file, [f"train={train}", "export.gguf_adapter=true"])
    assert why in str(caught.value)


@pytest.mark.parametrize("train", ["{rslora: true}", "{rank_pattern: {q_proj: 8}}", "{method: qlora}"])
def test_every_other_adapter_can_be_one(run_file: Path, train: str) -> None:
    config = load(run_file, [f"train={train}", "export.gguf_adapter=true"]).config
    assert (config.export.gguf_adapter, config.export.ollama) == (True, True)
