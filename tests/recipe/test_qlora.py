"""A QLoRA release: both merges are on record with their numbers, the nearer one is what is released."""

import shutil
from pathlib import Path

import pytest
from commands import loragate, write_run

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning")


def test_a_qlora_release_keeps_the_merge_that_is_nearest_to_what_was_trained(
    tmp_path: Path, tiny_model: Path, new_home: Path
) -> None:
    train = {"method": "qlora", "learning_rate": 5e-3, "epochs": 2, "batch_size": 4, "dtype": "float32"}
    write_run(tmp_path, tiny_model, train=train)
    shutil.copytree(new_home, tmp_path / "home")
    done = loragate("release", "run.yaml", "--json", cwd=tmp_path)
    assert done.code == 0, done.said
    merge = done.json["merge"]
    dequantised, original = merge["candidates"]
    assert (merge["chosen"], merge["dtype"], merge["way"]) == ("dequantised", "float32", "streamed")
    assert (dequantised["name"], original["name"]) == ("dequantised", "original")
    assert dequantised["kl"] < 1e-6 < original["kl"]
    assert dequantised["nll"]["tokens"] == original["nll"]["tokens"] > 0
    (gate,) = [gate for gate in done.json["gates"] if gate["gate"] == "merge"]
    assert {"rule": "best_candidate", "passed": True}.items() <= gate["findings"][-1].items()

    merged = Path(done.json["artifacts"]["merged"])
    assert (merged / "model.safetensors").is_file()
    assert [path for path in merged.iterdir() if path.is_dir()] == []
    shown = loragate("show", "tiny@1", "--home", str(tmp_path / "home"), cwd=tmp_path).stdout
    assert "merges of the adapter, held against what was trained; kept: dequantised" in shown
    assert "dequantised (kept)" in Path(done.json["artifacts"]["report"]).read_text(encoding="utf-8")
