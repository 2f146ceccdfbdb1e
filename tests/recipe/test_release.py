"""The whole road on the tiny model, by the real command line, with real Prefect servers and MLflow stores."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import Done, loragate, write_run
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from huggingface_hub import ModelCard
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from qa_pairs import pairs, write_jsonl
from tracking_server import mlflow_server

from loragate.modelfile import modelfile_name
from loragate.perplexity import Nll, total
from loragate.refs import digest_bytes, digest_file
from loragate.replay_commands import DOCUMENTS, MADE, SCORES

FILES = ["gguf_f16", "gguf_q8_0", "gguf_q4_k_m", "gguf_adapter"]
GATES = ["data", "plan", "preflight", "training", "quality", "merge", *FILES]
STEPS = 12
"""24 rows, 4 a step, 2 epochs."""

# MLflow 3.17 asks SQLAlchemy 2.1 for a loading strategy that is on its way out; ours is only the question.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning")


@dataclass(frozen=True, slots=True)
class Released:
    """A finished `loragate release --json` and the store that it left."""

    folder: Path
    done: Done

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def outcome(self) -> Any:
        return self.done.json

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.home / 'mlflow.db'}")

    @property
    def runs(self) -> list[Run]:
        return runs(self.client, "tiny")


def runs(client: MlflowClient, model: str) -> list[Run]:
    experiment = client.get_experiment_by_name(model)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def artifacts(client: MlflowClient, run: Run, folder: str = "") -> set[str]:
    """Paths of all files of a run."""
    found: set[str] = set()
    for entry in client.list_artifacts(run.info.run_id, folder or None):
        found |= artifacts(client, run, entry.path) if entry.is_dir else {entry.path}
    return found


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*")}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Released:
    folder = tmp_path_factory.mktemp("release")
    write_run(folder, tiny_model, export={"gguf": ["f16", "q8_0", "q4_k_m"], "gguf_adapter": True})
    done = loragate("release", "run.yaml", "--json", cwd=folder)
    assert done.code == 0, done.said
    return Released(folder, done)


@pytest.fixture(scope="module")
def tracking_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as uri:
        yield uri


def test_release_prints_the_contract_s_object_and_nothing_else(released: Released) -> None:
    outcome = released.outcome
    assert outcome["verdict"] == "released"
    assert (outcome["model"], outcome["version"], outcome["release"]) == ("tiny", "1", "tiny@1")
    assert len(outcome["digest"]) == 64
    assert [gate["gate"] for gate in outcome["gates"]] == GATES
    assert {gate["status"] for gate in outcome["gates"]} == {"pass"}
    assert all({"rule", "passed", "detail"} <= set(f) for gate in outcome["gates"] for f in gate["findings"])
    assert outcome["metrics"]["tuned_ppl"] < outcome["metrics"]["baseline_ppl"]
    assert outcome["metrics"]["merged_ppl"] == pytest.approx(outcome["metrics"]["tuned_ppl"], rel=1e-5)
    assert {"base", "rows", "facts", "baseline", "train", "merge", "gguf", "probe_q8_0"} <= set(outcome["seconds"])


def test_release_leaves_every_artifact_that_it_names(released: Released) -> None:
    found = released.outcome["artifacts"]
    assert len(found["gguf"]) == 4
    for path in (found["adapter"], found["merged"], found["report"], *found["gguf"]):
        assert Path(path).exists()
    assert released.outcome["metrics"]["gguf_adapter_ppl"] == pytest.approx(
        released.outcome["metrics"]["tuned_ppl"], rel=0.01
    )
    report = Path(found["report"]).read_text(encoding="utf-8")
    assert released.outcome["digest"] in report
    assert "tiny@1" in report


def test_release_tells_its_steps_and_gates_on_stderr(released: Released) -> None:
    for gate in GATES:
        assert f"{gate}  PASS" in released.done.stderr
    assert "Traceback" not in released.done.stderr
    assert "Warning" not in released.done.stderr


def test_release_is_one_finished_mlflow_run_with_its_parameters_and_every_training_step(released: Released) -> None:
    (run,) = released.runs
    assert run.info.status == "FINISHED"
    assert run.data.tags["loragate.verdict"] == "released"
    assert run.data.tags["gate.quality"]
    assert run.data.params["train.learning_rate"] == "0.005"
    assert run.data.params["model"] == "tiny"
    history = released.client.get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in history] == list(range(1, STEPS + 1))
    assert run.data.metrics["tuned_ppl"] == pytest.approx(released.outcome["metrics"]["tuned_ppl"])


def test_release_s_mlflow_run_names_its_data_sets_and_files_by_sha256(released: Released) -> None:
    (run,) = released.runs
    assert run.inputs is not None
    found = {entry.dataset.name: entry for entry in run.inputs.dataset_inputs}
    tags = {name: {tag.key: tag.value for tag in entry.tags} for name, entry in found.items()}
    sides = {"train": "training", "heldout": "evaluation", "general": "evaluation"}
    files = {f"{side}.jsonl": context for side, context in sides.items()}
    assert {name: told["mlflow.data.context"] for name, told in tags.items()} == sides | files
    for name in files:
        assert tags[name]["sha256"] == digest_file(released.folder / name)
    profile = json.loads(str(found["train"].dataset.profile))
    assert (profile["num_rows"], profile["num_files"]) == (24, 1)
    assert profile["num_tokens"] > 24 * 10
    assert str(released.folder) not in str(run.inputs.to_dictionary())
    assert len(run.data.tags["digest.base_model"]) == 64


def test_release_s_training_is_sampled_into_its_run(released: Released) -> None:
    (run,) = released.runs
    assert 0 <= run.data.metrics["system/cpu_utilization_percentage"] <= 100
    assert run.data.metrics["system/system_memory_usage_megabytes"] > 100


def test_release_s_models_are_logged_with_the_perplexities_that_the_outcome_has(released: Released) -> None:
    (run,) = released.runs
    models = released.client.search_logged_models([run.info.experiment_id])
    found = {m.name: {n.key: n.value for n in m.metrics or ()}["ladder/perplexity"] for m in models}
    metrics = released.outcome["metrics"]
    wanted = {"adapter": metrics["tuned_ppl"]}
    wanted |= {name: metrics[f"{name}_ppl"] for name in ("merged", *FILES)}
    assert found == pytest.approx(wanted)
    assert {str(m.status) for m in models} == {"READY"}


def test_release_s_mlflow_run_holds_adapter_gguf_files_and_evidence(released: Released) -> None:
    (run,) = released.runs
    found = artifacts(released.client, run)
    gguf = {f"model/gguf/{Path(path).name}" for path in released.outcome["artifacts"]["gguf"]}
    assert gguf | {"model/adapter/adapter_model.safetensors", "model/adapter/adapter_config.json"} <= found
    assert {"run.yaml", "config.json", "environment.json", "journal.jsonl", "report.html"} <= found
    assert any(path.startswith("data_gate/") for path in found)


def test_release_is_sealed_and_its_mlflow_version_says_how(released: Released) -> None:
    done = loragate("verify", "tiny@1", "--json", "--home", "home", cwd=released.folder)
    assert (done.code, done.json["digest"]) == (0, released.outcome["digest"]), done.said
    bundle = Path(done.json["folder"])
    version = released.client.get_model_version("tiny", "1")
    assert version.tags["loragate.manifest"] == digest_file(bundle / "manifest.json")
    assert version.tags["loragate.signature"] == digest_file(bundle / "signature.json")
    lines = (released.home / "chain" / "chain.jsonl").read_bytes().splitlines(keepends=True)
    length, _, head = version.tags["loragate.chain"].partition(":")
    assert head == digest_bytes(lines[int(length) - 1])
    assert json.loads(lines[int(length) - 1])["fields"]["release"] == released.outcome["digest"]
    said = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    files = {name.removeprefix("gguf/"): digest for name, digest in said["files"].items() if name.startswith("gguf/")}
    models = {"model-f16.gguf", "model-q8_0.gguf", "model-q4_k_m.gguf"}
    assert files.keys() == models | {"adapter-f16.gguf"} | {modelfile_name(name) for name in models}
    assert files["adapter-f16.gguf"] == said["artifacts"]["gguf_adapter"]
    assert "FROM ./model-f16.gguf\n" in (bundle / "gguf" / "Modelfile-f16.txt").read_text(encoding="utf-8")
    assert all(said["digests"].values())
    assert said["training_flops"]["estimate"] > 0
    assert {path.stem for path in (bundle / "scores").iterdir()} == {
        name.removesuffix("_ppl") for name in released.outcome["metrics"]
    }
    rows = [json.loads(line) for line in (bundle / "scores/tuned.jsonl").read_text(encoding="utf-8").splitlines()]
    tuned = total(Nll(row["nats"], row["tokens"]) for row in rows)
    assert tuned.perplexity == released.outcome["metrics"]["tuned_ppl"]
    assert [gate["gate"] for gate in json.loads((bundle / "gates.json").read_text(encoding="utf-8"))] == GATES


def test_bundle_says_what_was_measured_and_where_it_came_from(released: Released) -> None:
    bundle, metrics = released.home / "releases" / "tiny" / released.outcome["digest"], released.outcome["metrics"]
    card = ModelCard.load(bundle / "README.md")
    results = card.data.eval_results or []
    told = {f"{each.metric_name}_ppl": each.metric_value for each in results if each.metric_type == "perplexity"}
    assert told == metrics
    assert {"quality/perplexity_ratio", "gguf_q8_0/kl"} <= {each.metric_name for each in results}
    assert "| Held-out rows | 12 |" in card.text
    for name in ("ml-bom.cdx.json", "sbom.cdx.json"):
        text = (bundle / name).read_text(encoding="utf-8")
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
        assert str(released.folder) not in text
    points = json.loads((bundle / "technical_file.json").read_text(encoding="utf-8"))["points"]
    (development,) = (point["facts"] for point in points if point["point"] == "2(c)")
    assert development["training_operations"]["estimate"] > 0
    for text in (card.content, json.dumps(points)):
        assert str(released.folder) not in text


def test_replay_judges_scores_and_rebuilds_the_release_to_the_bit(released: Released, tmp_path: Path) -> None:
    home = ("--home", str(released.home))
    before = {name: names(released.home / name) for name in ("record", "runs", "releases")}
    done = loragate("replay", "tiny@1", "--json", *home, cwd=tmp_path)
    assert done.code == 0, done.said
    claims = {each["claim"]: each for each in done.json["claims"]}
    judged = [name for name in claims if name.split(" gate: ")[0] in GATES and name.endswith("findings")]
    assert [name.split(" gate: ")[0] for name in judged] == GATES
    assert {claims[name]["holds"] for name in judged} == {"yes"}
    derived = [each for name, each in claims.items() if name.endswith("intervals follow from rows")]
    assert [("to the last digit" in each["how"]) for each in derived] == [True] * 6
    assert [name for name, each in claims.items() if each["holds"] != "yes"] == [SCORES, DOCUMENTS, MADE]
    done = loragate("replay", "tiny@1", "--score", "--rows", "5", "--rebuild", "--json", *home, cwd=tmp_path)
    assert done.code == 0, done.said
    found = {each["claim"]: each["how"] for each in done.json["claims"]}
    assert "bit-equal" in found[SCORES]
    made = {
        name.split()[0]: how for name, how in found.items() if name.endswith("follows from base, data and settings")
    }
    assert set(made) == {"adapter", "merged", "modelfiles", *FILES}
    assert {how.partition(" (")[0] for how in made.values()} == {"made anew: bit-equal"}
    assert {name: names(released.home / name) for name in before} == before
    assert list(released.folder.glob(".loragate-replay-*")) == []


def test_replay_away_from_home_says_what_is_missing_or_changed(released: Released, tmp_path: Path) -> None:
    bundle = loragate("verify", "tiny@1", "--json", "--home", "home", cwd=released.folder).json["folder"]
    done = loragate("replay", bundle, "--score", "--home", str(tmp_path / "none"), cwd=tmp_path)
    assert (done.code, "data.train: no file matches" in done.stderr, "--data DIR" in done.stderr) == (2, True, True)
    for name in ("train.jsonl", "heldout.jsonl", "general.jsonl"):
        (tmp_path / name).write_bytes((released.folder / name).read_bytes())
    write_jsonl(tmp_path / "heldout.jsonl", pairs(12, start=101))
    done = loragate("replay", bundle, "--rebuild", "--home", str(tmp_path / "none"), cwd=tmp_path)
    assert (done.code, "data/heldout.jsonl: changed since the release" in done.stderr) == (4, True), done.said


def test_release_is_a_registered_version_that_is_candidate_and_champion(released: Released) -> None:
    (run,) = released.runs
    for alias in ("candidate", "champion"):
        version = released.client.get_model_version_by_alias("tiny", alias)
        assert (str(version.version), version.run_id) == ("1", run.info.run_id)
        assert version.tags["loragate.digest"] == released.outcome["digest"]


def test_list_and_show_answer_about_the_release(released: Released) -> None:
    home = ("--home", str(released.home))
    (row,) = loragate("list", "tiny", "--json", *home, cwd=released.folder).json["releases"]
    assert (row["release"], row["verdict"], row["digest"]) == ("tiny@1", "released", released.outcome["digest"])
    assert row["aliases"] == ["candidate", "champion"]
    assert loragate("show", "tiny@1", "--json", *home, cwd=released.folder).json == released.outcome
    text = loragate("show", "tiny@1", *home, cwd=released.folder).stdout
    assert text.startswith("RELEASED  tiny@1\n")
    shown = loragate("show", "tiny@1", "--html", *home, cwd=released.folder).stdout
    assert shown == released.outcome["artifacts"]["report"] + "\n"
    assert Path(shown.strip()).is_file()


def test_second_identical_run_finds_the_release_and_makes_nothing(released: Released) -> None:
    before = {name: names(released.home / name) for name in ("record", "runs")}
    markers = {path: path.stat().st_mtime_ns for path in released.home.glob("runs/*/done.json")}
    again = loragate("release", "run.yaml", "--json", cwd=released.folder)
    assert again.code == 0, again.said
    assert again.json == released.outcome
    assert {name: names(released.home / name) for name in before} == before
    assert {path: path.stat().st_mtime_ns for path in released.home.glob("runs/*/done.json")} == markers
    assert len(released.runs) == 1
    steps = [line for line in again.stderr.splitlines() if "rules)" not in line]
    assert len(steps) == len(released.outcome["seconds"]) + 1  # and the release itself
    assert [line for line in steps if not line.endswith("  reused")] == []


def test_check_passes_and_records_no_release(released: Released) -> None:
    before = names(released.home / "record")
    done = loragate("check", "run.yaml", "--json", cwd=released.folder)
    assert done.code == 0, done.said
    assert done.json["verdict"] == "passed"
    assert done.json["release"] is None
    assert [gate["gate"] for gate in done.json["gates"]] == ["data", "plan"]
    assert names(released.home / "record") == before
    assert len(released.runs) == 1


def test_release_goes_to_the_mlflow_server_that_the_environment_names(released: Released, tracking_server: str) -> None:
    other = ("--set", "model=far", "--set", "train.seed=1", "--set", "export.gguf=[f16]")
    done = loragate("release", "run.yaml", "--json", *other, cwd=released.folder, MLFLOW_TRACKING_URI=tracking_server)
    assert done.code == 0, done.said
    client = MlflowClient(tracking_server)
    (run,) = runs(client, "far")
    assert (run.info.status, run.data.tags["loragate.verdict"]) == ("FINISHED", "released")
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == STEPS
    assert {"model/adapter/adapter_model.safetensors", "report.html"} <= artifacts(client, run)
    version = client.get_model_version_by_alias("far", "champion")
    assert (version.run_id, version.tags["loragate.digest"]) == (run.info.run_id, done.json["digest"])
    assert released.client.get_experiment_by_name("far") is None


def test_plain_text_in_an_mlx_lm_folder_walks_the_whole_road(released: Released, tmp_path: Path) -> None:
    texts = [f"Q: {row['prompt']}\nA: {row['completion']}" for row in pairs(36)]
    (tmp_path / "rows").mkdir()
    write_jsonl(tmp_path / "rows" / "train.jsonl", [{"text": text} for text in texts[:24]])
    write_jsonl(tmp_path / "rows" / "valid.jsonl", [{"text": text} for text in texts[24:]])
    run = json.loads((released.folder / "run.yaml").read_text(encoding="utf-8"))
    run |= {"model": "text", "home": str(released.home), "data": {"train": ["rows"], "max_tokens": 96}}
    run["export"] = {"gguf": ["f16"], "ollama": False}
    (tmp_path / "run.yaml").write_text(json.dumps(run), encoding="utf-8")
    done = loragate("release", "run.yaml", "--json", cwd=tmp_path)
    assert done.code == 0, done.said
    assert done.json["metrics"]["tuned_ppl"] < done.json["metrics"]["baseline_ppl"]
    (gguf,) = (released.home / "releases" / "text").glob("*/gguf")
    assert names(gguf) == {"model-f16.gguf"}
    assert done.json["metrics"]["gguf_f16_ppl"] == pytest.approx(done.json["metrics"]["tuned_ppl"], rel=0.01)


def test_journal_on_disk_and_in_mlflow_are_one(released: Released, tmp_path: Path) -> None:
    run = min(released.runs, key=lambda run: run.info.start_time)
    copy = Path(released.client.download_artifacts(run.info.run_id, "journal.jsonl", str(tmp_path)))
    ours = released.home / "record" / released.outcome["attempt"] / "journal.jsonl"
    assert copy.read_bytes() == ours.read_bytes()
    events = [json.loads(line)["event"] for line in ours.read_text(encoding="utf-8").splitlines()]
    assert (events[0], events[-1]) == ("opened", "closed")
