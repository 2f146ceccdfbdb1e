"""The whole road with a real language model of 135 million parameters."""

from pathlib import Path

import pytest
from commands import loragate, write_run


@pytest.mark.slow
def test_real_model_is_released_and_better_at_what_it_was_taught(tmp_path: Path, real_model: Path) -> None:
    write_run(
        tmp_path,
        real_model,
        train={"learning_rate": 2e-3, "epochs": 1, "batch_size": 2, "schedule": "constant", "warmup_share": 0.0},
        gates={
            "quality": {"num_samples": 2, "sample_tokens": 16, "min_stop_share": 0.0},
            "gguf": {"min_stop_share": 0.0},
        },
    )
    for name, count in (("train.jsonl", 8), ("heldout.jsonl", 5)):
        lines = (tmp_path / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / name).write_text("".join(lines[:count]), encoding="utf-8")
    done = loragate("release", "run.yaml", "--json", cwd=tmp_path)
    assert done.code == 0, done.said
    assert done.json["verdict"] == "released"
    metrics = done.json["metrics"]
    assert metrics["tuned_ppl"] < 0.8 * metrics["baseline_ppl"]
    assert metrics["gguf_q8_0_ppl"] == pytest.approx(metrics["tuned_ppl"], rel=0.02)
