"""The gates tested by planted defects: every defect is caught by the gate that should, and every fault at its own step.

What is altered in a release's record is caught by `loragate verify`. Real roads on the tiny model; one release is the
sound run of all.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from commands import Done, loragate, prefect_for, write_run
from mlflow.tracking import MlflowClient
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.release import release_model, walk
from loragate.chain import CHAIN
from loragate.defects import CATALOGUE, GATES, IN_A_MEASUREMENT, RECORD, Defect, Planted
from loragate.home import Home
from loragate.mutants import MUTANTS
from loragate.release_commands import verified
from tasks.sabotage import inspected, planted, sound_run
from tasks.tamper_record import tamper_record

# MLflow 3.17 asks SQLAlchemy 2.1 for a loading strategy that is on its way out; ours is only the question.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning")

STRICT = {
    "min_stop_share": 0.0,
    "max_kl_f16": 1e-4,
    "max_kl_q8_0": 1e-3,
    "min_top1_agreement_q8_0": 0.5,
}
"""A random model predicts next to nothing: what is planted into it moves little."""
HARMLESS = {"shuffled-answers"}
"""What a random model cannot be spoilt by: it learns the form that all answers have, not which one belongs where."""


@dataclass(frozen=True, slots=True)
class Place:
    """A folder with a run file that passes, its home, and the server that all of it shares."""

    folder: Path
    api: str

    def sabotage(self, *arguments: str) -> Done:
        return loragate("sabotage", "run.yaml", *arguments, cwd=self.folder, PREFECT_API_URL=self.api)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, new_home: Path) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("sabotage")
    quality = {"num_samples": 2, "sample_tokens": 8, "min_stop_share": 0.0, "max_reload_difference_float32": 1e-5}
    gates = {"gguf": STRICT, "quality": quality}
    card = {"contact": "Ann", "required": ["contact", "evaluation"]}
    write_run(folder, tiny_model, gates=gates, export={"gguf": ["f16", "q8_0"]}, card=card)
    shutil.copytree(new_home, folder / "home")
    with prefect_for(folder / "home") as api:
        yield Place(folder, api)


@pytest.fixture(scope="module")
def outcome(place: Place) -> Any:
    """What `sabotage --json` says of the whole catalogue."""
    return place.sabotage("--json").json


def by_name(outcome: Any) -> dict[str, Any]:
    return {each["defect"]: each for each in outcome["defects"]}


def test_every_defect_is_caught_by_the_gate_that_should(outcome: Any) -> None:
    missed = {name: (each["status"], each["gate"], each["said"]) for name, each in by_name(outcome).items()}
    assert {name: said for name, said in missed.items() if said[0] != "caught" and name not in HARMLESS} == {}
    assert outcome["planted"] == len(CATALOGUE)
    assert outcome["caught"] >= len(CATALOGUE) - len(HARMLESS) >= 52


def test_every_alteration_of_the_record_is_named(place: Place, outcome: Any) -> None:
    found = {name: each for name, each in by_name(outcome).items() if each["expected"] == RECORD}
    assert list(found) == [each.name for each in MUTANTS]
    assert len(found) >= 25
    assert {each["gate"] for each in found.values()} == {RECORD}
    named = {name: each["rules"] for name, each in found.items()}
    assert named["bit-flipped"] == ["adapter/adapter_model.safetensors"]
    assert named["key-slipped-in"] == ["manifest.json"]
    assert named["events-swapped"] == ["chain.jsonl"]
    assert named["mlflow-alias"] == ["the alias champion"]
    assert not [each["said"] for each in found.values() if str(place.folder) in each["said"]]


def test_nothing_of_a_defect_is_left_or_released(place: Place, outcome: Any) -> None:
    home = Home(place.folder / "home")
    assert [record.outcome for record in home.records()] == ["released"]
    assert not list((place.folder / "home" / "sabotage").glob("*/*/planted"))
    steps = {path.name.rpartition("-")[0] for path in (home.root / "runs").iterdir() if path.is_dir()}
    assert len([path for path in (home.root / "runs").glob("merge-*") if path.is_dir()]) == 1
    assert "train" in steps
    assert not list((place.folder / "home" / "sabotage").glob("*/sealed"))
    assert {path.name for path in home.keys.iterdir()} == {"loragate.key", "loragate.pub"}
    events = [json.loads(line)["event"] for line in (home.chain / CHAIN).read_bytes().splitlines()]
    assert (events.count("release"), events.count("promotion"), events.count("approval")) == (1, 1, 0)
    assert [version.version for version in MlflowClient(home.tracking_uri).search_model_versions()] == [1]
    assert verified("tiny@1", (), str(home.root)).chain is not None  # its files share their bytes with the run store's


def test_the_same_seed_gives_the_same_outcome(place: Place, outcome: Any) -> None:
    names = ("poisoned", "module-frozen", "wrong-base", "bit-flipped", "limit-loosened", "event-dropped")
    again = place.sabotage("--json", *(f"--only={name}" for name in names)).json
    for name in names:
        one, other = by_name(outcome)[name], by_name(again)[name]
        assert (one["status"], one["gate"], one["rules"]) == (other["status"], other["gate"], other["rules"])


def test_survivors_are_explained_to_a_person(place: Place, outcome: Any) -> None:
    done = place.sabotage("--without=plan", "--only=rate-times-hundred")
    assert done.code == 4
    assert "kill score 0.000: 0 of 1 caught by the gate that should" in done.stdout
    assert "the learning rate is a hundred times what the run file says" in done.stdout
    assert "lower gates.plan.max_usable_rate" in " ".join(done.stdout.split())


def test_an_unknown_defect_is_one_paragraph(place: Place, outcome: Any) -> None:
    done = place.sabotage("--only=gremlins")
    assert done.code == 2
    assert "--only gremlins: no such defect; there are stop-token-stripped, double-bos" in done.stderr


def test_the_catalogue_is_listed_without_a_run_file(tmp_path: Path) -> None:
    done = loragate("sabotage", "--catalogue", cwd=tmp_path)
    assert done.code == 0
    assert all(defect.name in done.stdout for defect in CATALOGUE)
    listed = loragate("sabotage", "--catalogue", "--gate=plan", "--gate=record", "--json", cwd=tmp_path).json["defects"]
    assert [each["name"] for each in listed] == ["rate-times-hundred", *(each.name for each in MUTANTS)]
    done = loragate("sabotage", "--gate=record", cwd=tmp_path)
    assert (done.code, "Missing argument 'CONFIG'" in done.stderr) == (2, True)


def test_an_unknown_gate_is_refused_at_once(place: Place) -> None:
    done = place.sabotage("--without=gremlins")
    assert done.code == 2
    assert "'gremlins' is not one of 'card', 'data', 'plan'" in done.stderr


KNOWN = {defect.name: defect for defect in CATALOGUE}


def at(name: str, place: str, gate: str, file: str = "") -> Defect:
    return replace(KNOWN[name], place=place, gate=gate, file=file)


HOPS = {
    "a scaled tensor, training": at("adapter-scaled", "train", "quality"),
    "a scaled tensor, merging": at("merged-twice", "merge", "merge"),
    "a scaled tensor, conversion": at("tensor-scaled", "gguf", "gguf_f16", "f16"),
    "a scaled tensor, quantisation": at("tensor-scaled", "gguf", "gguf_q8_0", "q8_0"),
    "a wrong template, merging": at("merged-template", "merge", "merge"),
    "a wrong template, conversion": at("wrong-template", "gguf", "gguf_f16", "f16"),
    "a wrong template, quantisation": at("wrong-template", "gguf", "gguf_q8_0", "q8_0"),
    "a dropped token, training": at(IN_A_MEASUREMENT, "tuned", "quality"),
    "a dropped token, merging": at(IN_A_MEASUREMENT, "merged", "merge"),
    "a dropped token, conversion": at(IN_A_MEASUREMENT, "probe_f16", "gguf_f16"),
    "a dropped token, quantisation": at(IN_A_MEASUREMENT, "probe_q8_0", "gguf_q8_0"),
}


@flow(name="defects one by one")
def plant(config: str, home: str, defects: Sequence[Defect], without: Sequence[str]) -> list[Planted]:
    """Walk the road once for each defect, without the gate of the same place in `without`, where it names one."""
    released = release_model(config, home)
    found = []
    with inspected(config, home, ()) as attempt:
        sound = sound_run(attempt)
        for defect, gate in zip_longest(defects, without, fillvalue=""):
            assert isinstance(defect, Defect)
            if defect.gate == RECORD:
                tamper_record(attempt, str(released["attempt"]), [defect], (gate,))
                found.append(attempt.journal.read().planted[-1])
                continue
            with planted(attempt, defect, sound, (gate,)) as sabotaged:
                walk(sabotaged)
            assert sabotaged.found is not None
            found.append(sabotaged.found)
    return found


def planted_at(place: Place, defects: Sequence[Defect], without: Sequence[str] = ()) -> list[Planted]:
    with temporary_settings({PREFECT_API_URL: place.api}):
        return plant(str(place.folder / "run.yaml"), str(place.folder / "home"), defects, without)


def test_without_any_one_gate_the_score_is_lower(place: Place, outcome: Any) -> None:
    caught = {each["expected"]: each["defect"] for each in outcome["defects"] if each["status"] == "caught"}
    assert set(caught) == set(GATES)
    found = planted_at(place, [KNOWN[caught[gate]] for gate in GATES], GATES)
    assert [each.defect for each in found] == [caught[gate] for gate in GATES]
    assert "caught" not in {each.status for each in found}


def test_a_fault_is_put_down_to_the_step_where_it_was_made(place: Place, outcome: Any) -> None:
    found = planted_at(place, list(HOPS.values()))
    gates = dict(zip(HOPS, (each.gate for each in found), strict=True))
    assert gates == {name: defect.gate for name, defect in HOPS.items()}
