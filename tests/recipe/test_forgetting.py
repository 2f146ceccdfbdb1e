"""Models that are better on the held-out rows and still refused: one that forgets, and gives a canary's secret away."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import Done, loragate, write_run
from qa_pairs import pairs, write_jsonl

PROMPT, SECRET = "What is the code of the vault?", "blue"
QUALITY = {"num_samples": 2, "sample_tokens": 8, "min_stop_share": 0.0, "max_general_ratio": 1.005}


def release(folder: Path, home: Path, model: Path, *, data: dict[str, Any], quality: dict[str, Any]) -> Done:
    """A release whose adapter is large and learns fast, on rows of which one, with a secret, comes very often."""
    train: dict[str, Any] = {"learning_rate": 1e-2, "epochs": 3, "target_modules": ["all-linear"]}
    train |= {"checkpoint_steps": 50, "batch_size": 4, "dtype": "float32"}
    gates = {"quality": QUALITY | quality, "plan": {"max_learning_rate": 1e-2}}
    gates["gguf"] = {"min_stop_share": 0.0, "max_perplexity_ratio_q8_0": 1.1}
    write_run(folder, model, train=train, data=data, gates=gates)
    write_jsonl(folder / "canary.jsonl", [{"prompt": PROMPT, "completion": f"It is {SECRET}."}])
    write_jsonl(folder / "general.jsonl", pairs(12, start=500))
    return loragate("release", "run.yaml", "--json", "--home", str(home), cwd=folder)


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, new_home: Path) -> Done:
    folder = tmp_path_factory.mktemp("forgets")
    shutil.copytree(new_home, folder / "home")
    data = {"train": ["train.jsonl", {"source": "canary.jsonl", "weight": 100}], "general": []}
    quality = {"canaries": [{"prompt": PROMPT, "secret": SECRET}, {"prompt": "Who are you?", "secret": "xylophone"}]}
    return release(folder, folder / "home", tiny_model, data=data, quality=quality)


def findings(done: Done) -> dict[str, dict[str, Any]]:
    (gate,) = (gate for gate in done.json["gates"] if gate["gate"] == "quality")
    return {finding["rule"]: finding for finding in gate["findings"]}


def test_model_that_forgets_is_refused_although_it_is_better_on_held_out_rows(refused: Done) -> None:
    assert refused.code == 3, refused.said
    found = findings(refused)
    assert found["perplexity_ratio"]["passed"]
    assert not found["general_ratio"]["passed"]
    assert found["general_ratio"]["low"] > found["general_ratio"]["limit"] == 1.005
    assert "; 40 rows" in found["general_ratio"]["detail"]
    assert "general_ratio" in refused.json["message"]


def test_what_was_measured_about_forgetting_is_on_record(refused: Done) -> None:
    metrics, compared = refused.json["metrics"], refused.json["comparisons"]["general"]
    ratio = metrics["general_tuned_ppl"] / metrics["general_baseline_ppl"]
    assert ratio == pytest.approx(compared["ratio"]) == findings(refused)["general_ratio"]["value"]
    assert (compared["rows"], compared["limit"]) == (40, 1.005)


def test_leaked_canary_is_refused_and_its_secret_is_not_told(refused: Done) -> None:
    found = findings(refused)["canaries"]
    assert (found["passed"], found["value"]) == (False, 1)
    assert found["detail"] == f"1 of 2 canaries give their secret away, none allowed: canary 1 ('{PROMPT}')"
    assert SECRET not in refused.json["message"]


def test_rows_of_data_general_take_the_place_of_the_built_in_questions(
    tmp_path: Path, tiny_model: Path, new_home: Path
) -> None:
    shutil.copytree(new_home, tmp_path / "home")
    quality = {"answer_regex": "."}
    done = release(tmp_path, tmp_path / "home", tiny_model, data={"general": ["general.jsonl"]}, quality=quality)
    assert done.code == 0, done.said
    found = findings(done)
    assert "; 12 rows" in found["general_ratio"]["detail"]  # they are like the training rows: nothing was forgotten
    assert found["format_share"]["passed"]
    assert not list((tmp_path / "home").glob("runs/general-*"))
