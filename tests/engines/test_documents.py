"""What a release says about itself: filled from its record, flagged where nobody has said it, free of the machine."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import write_run
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from huggingface_hub import ModelCard
from sealed_home import fill

from loragate.attempt import Attempt
from loragate.benchmark import Benchmarked
from loragate.card import BaseCard
from loragate.comparison import Comparison
from loragate.config import Config, load, plain
from loragate.engines import boms, hub_card
from loragate.facts import Facts, without_folders
from loragate.home import find_home
from loragate.ladder import Rung
from loragate.model_card import HEADINGS
from loragate.perplexity import Nll
from loragate.plan import DeviceFacts, Memory, ModelFacts, Plan, RowFacts
from loragate.record import AttemptRecord, Closed, Merge, now
from loragate.refs import Ref, canonical
from loragate.technical_file import POINTS, technical_file
from loragate.verdicts import Finding, conclude
from tasks.attempts import opened
from tasks.release_documents import CARD, MODEL_BOM, SOFTWARE_BOM, TECHNICAL_FILE
from tasks.release_keys import open_chain
from tasks.seal_release import seal_release

NAMES = (CARD, TECHNICAL_FILE, MODEL_BOM, SOFTWARE_BOM)
ANNEX = [*(f"1({a})" for a in "abcdefgh"), *(f"2({a})" for a in "abcdefgh"), *"3456789"]
STATED: dict[str, object] = {
    "base_model": "org/base",
    "base_licence": "apache-2.0",
    "licence": "Our own terms",
    "language": "en",
    "data_description": "Questions | answers of <our> desk",
    "data_licence": "CC-BY-4.0",
    "intended_use": "Answers about our_desk.",
    "out_of_scope": "Medical advice.",
    "limits": "Makes up names.",
    "human_oversight": "A clerk reads every answer.",
    "contact": "Ann <ann@desk.example>",
}
PLAN = Plan(
    RowFacts(24, 960, 480, 60, 96),
    ModelFacts(1000, 40, 8, ("q_proj",), 16, 64, 512, "float32", "", Memory(1, 1, 1, 1, 1)),
    DeviceFacts("cpu", 10, "float32"),
    steps=12,
    epochs=2,
)
WARNED = Finding("overfit_gap", False, "the gap in /home/ann/runs/x is 0.08", severity="warn", value=0.08, limit=0.05)
WAIVED = Finding(
    "perplexity_ratio", False, "it is 1.2", value=1.2, limit=1.0, low=1.1, high=1.3, waived="by Ada until 2026-12-31"
)


def compared(rows: int, ratio: float, high: float) -> Comparison:
    numbers = {"standard_error": 0.1, "limit": 1.0, "alpha": 0.05, "draws": 1000, "p_value": 0.01, "shown_ratio": 0.9}
    return Comparison(rows=rows, before=Nll(9, 9), after=Nll(8, 9), ratio=ratio, low=0.5, high=high, **numbers)


def full(record: AttemptRecord) -> AttemptRecord:
    task = Benchmarked("acc,none", 50, True, 0.5, 0.75, 0.1, 0.1, -0.25, 0.1, True, 0.0, 1.0)
    return replace(
        record,
        verdicts=(
            conclude("data", [Finding("rows", True, "24 rows", value=24)]),
            conclude("training", [WARNED]),
            conclude("quality", [WAIVED, Finding("lost", False, "nothing", value=math.nan, severity="warn")]),
        ),
        ladder=(Rung("baseline", Nll(20.0, 10)), Rung("tuned", Nll(10.0, 10), "baseline"), Rung("far", Nll(1e9, 1))),
        general=(Rung("general_tuned", Nll(3.0, 3)),),
        comparisons={"tuned": compared(12, 0.4, 0.6), "slice/desk": compared(6, 0.7, math.inf)},
        benchmarks={"sums": task},
        plan=PLAN,
        merge=Merge("original", "float32", "streamed"),
        inputs={
            "base_model": "b" * 64,
            "data": "d" * 64,
            "data/train.jsonl": "1" * 64,
            "data/hub/rows/a.parquet": "2" * 64,
            "data_set/hub/rows:v1[train]@abc": "3" * 64,
            "task//home/ann/tasks/sums.yaml": "4" * 64,
        },
        artifacts={"merged": Ref("/home/ann/runs/merge", "5" * 64)},
        seconds={"train": 12.5},
        base_card=BaseCard("mit"),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    record: dict[str, object] = {
        "tracking_uri": "http://ann:hidden-word@tracking.example",
        "signing_key": "keys/hidden-key.pem",
    }
    return write_run(tmp_path_factory.mktemp("documents"), Path("/home/ann/model"), card=STATED, record=record)


@pytest.fixture(scope="module")
def bundles(run: Path) -> tuple[Path, ...]:
    """Two releases, one after the other: the first states nothing, the second all; the first was champion."""
    emptied = ["card={}", "record={}"]
    return tuple(sealed(run, number, over) for number, over in enumerate((emptied, ["record={}"]), 1))


def sealed(run_file: Path, number: int, overrides: list[str]) -> Path:
    run = load(run_file, overrides)
    attempt = Attempt(run, find_home(None, run))
    attempt.chain = open_chain(run, attempt.home)
    opened(attempt)
    fill(attempt, run_file.parent / f"made{number}", number)
    attempt.note("incumbent", "", str(number - 1) if number > 1 else "")
    folder = seal_release(attempt, str(number) * 64).folder
    attempt.note("closed", "", Closed("released", "", now(), str(number), str(number) * 64, ("champion",)))
    return folder


@pytest.fixture(scope="module")
def facts(run: Path, bundles: tuple[Path, ...]) -> Facts:
    config = load(run).config
    record = full(find_home(None, load(run)).records()[-1])
    record = replace(record, opened=replace(record.opened, config=plain(config), run_file=str(run)))
    return Facts(record, config, "f" * 64, "tiny@1", {"adapter/adapter_model.safetensors": "a" * 64})


@pytest.fixture(scope="module")
def unstated(facts: Facts) -> Facts:
    values = facts.config.model_dump(mode="json") | {"card": {}}
    bare = AttemptRecord(replace(facts.record.opened, environment={}), None)
    return replace(facts, record=bare, config=Config.model_validate_json(json.dumps(values)), rollback="", files={})


def parsed(text: bytes) -> ModelCard:
    return ModelCard(text.decode(), ignore_metadata_errors=False)


def test_all_four_are_in_the_bundle_s_manifest(bundles: tuple[Path, ...]) -> None:
    for folder in bundles:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        assert set(NAMES) <= set(manifest["files"])


def test_the_champion_of_the_time_is_where_to_roll_back_to(bundles: tuple[Path, ...]) -> None:
    cards = [(folder / CARD).read_text(encoding="utf-8") for folder in bundles]
    assert "| Rollback target | none: first release |" in cards[0]
    assert "| Rollback target | tiny@1 |" in cards[1]


def test_the_hub_s_loader_reads_the_card(facts: Facts) -> None:
    data = parsed(hub_card.write(facts)).data
    assert (data.base_model, data.base_model_relation, data.library_name) == ("org/base", "adapter", "peft")
    assert (data.license, data.license_name) == ("other", "Our own terms")
    assert (data.pipeline_tag, data.language, data.datasets) == ("text-generation", "en", ["hub/rows"])
    results = {(each.metric_name, each.metric_type): each for each in data.eval_results or ()}
    assert results["tuned", "perplexity"].metric_value == math.e
    assert results["baseline", "perplexity"].metric_value == math.exp(2)
    assert results["slice/desk", "perplexity_ratio"].dataset_name == "held-out rows, slice desk"
    assert results["tuned", "acc"].metric_value == 0.75
    assert results["quality/perplexity_ratio", "perplexity_ratio"].dataset_name == "quality gate"
    assert results["quality/perplexity_ratio", "perplexity_ratio"].metric_args == {"lower": 1.1, "upper": 1.3}
    assert ("far", "perplexity") not in results
    assert not [name for name, _ in results if name.startswith("data/") or name == "quality/lost"]


def test_the_card_has_seven_items_filled_from_the_record(facts: Facts) -> None:
    text = parsed(hub_card.write(facts)).text
    assert [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")] == list(HEADINGS)
    for said in (
        "| Base model | org/base |",
        "| Licence of this release | Our own terms |",
        f"| Digest of the base (SHA-256) | {'b' * 64} |",
        r"| Description | Questions \| answers of \<our\> desk |",
        "| Training rows an epoch | 24 |",
        f"| data/train.jsonl | {'1' * 64} |",
        "| train.learning_rate | 0.005 |",
        "| train.dora | false |",
        "Merged into the original base in float32, streamed.",
        "| Optimizer steps | 12 in 2 epochs |",
        "| Floating-point operations (estimate) | 7.83e+06 |",
        "| baseline | 7.38906 | 10 |",
        "| far | not finite | 1 |",
        "| tuned | held-out rows | 12 | 0.4 | 0.5 | 0.6 |",
        "| sums | acc | 50 | 0.5 | 0.75 |",
        "| quality | waived | 2 |",
        f"| adapter/adapter_model.safetensors | {'a' * 64} |",
        "| Intended use | Answers about our_desk. |",
        r"| Contact | Ann \<ann@desk.example\> |",
        "training/overfit_gap: the gap in x is 0.08",
        "| Waivers | quality/perplexity_ratio waived by Ada until 2026-12-31 |",
        "| Rollback target | tiny@1 |",
    ):
        assert said in text
    assert "Nobody has stated" not in text


def test_a_licence_that_only_the_base_has_is_said_to_be_the_base_s(facts: Facts, unstated: Facts) -> None:
    only_base = replace(unstated, record=replace(unstated.record, base_card=BaseCard("mit")))
    card = parsed(hub_card.write(only_base))
    assert "| Licence of this release | mit (the base's; nobody has stated another) |" in card.text
    assert (card.data.license, card.data.base_model) == ("mit", None)


def test_what_nobody_stated_is_flagged_everywhere(unstated: Facts) -> None:
    card = parsed(hub_card.write(unstated))
    assert card.data.to_dict().keys().isdisjoint({"license", "base_model", "language", "datasets", "model-index"})
    rows = ("Base model", "Licence of the base", "Licence of this release", "Language", "Description", "Licence")
    used = ("Training rows an epoch", "Commit of loragate", "Optimizer steps", "Intended use", "Limits", "Contact")
    assert [row for row in (*rows, *used) if f"| {row} | **not stated** |" not in card.text] == []
    keys = [f"card.{item}" for item in STATED]
    assert [key for key in keys if f"`{key}`" not in card.text] == []
    bom = json.loads(boms.model_bom(unstated))["metadata"]["component"]["modelCard"]
    assert [each["value"] for each in bom["properties"] if each["name"] == "loragate:not_stated"] == keys


def test_the_technical_file_has_every_point_of_the_annex(facts: Facts) -> None:
    file: Any = technical_file(facts)
    assert [point["point"] for point in file["points"]] == ANNEX
    assert (file["regulation"], file["annex"]) == ("Regulation (EU) 2024/1689", "IV")
    assert all(len(point.heading) > 30 and not point.heading.endswith((" ", ";")) for point in POINTS)
    found = {point["point"]: point["facts"] for point in file["points"]}
    assert found["1(a)"]["intended_purpose"] == "Answers about our_desk."
    assert found["1(a)"]["previous_version"] == "tiny@1"
    assert {"python", "torch", "peft", "llama-cpp-python"} <= set(found["1(c)"]["versions"])
    assert found["2(c)"]["parameters"] == 1000
    assert found["2(d)"]["hub_data_sets"] == ["hub/rows"]
    assert found["2(d)"]["checks"] == [{"rule": "rows", "status": "pass", "value": 24, "limit": None}]
    assert found["3"]["limitations"] == "Makes up names."
    assert found["3"]["warnings"] == ["training/overfit_gap", "quality/lost"]
    assert canonical(file) == canonical(technical_file(facts))


def nulls(points: list[Any]) -> Iterator[str]:
    for point in points:
        if point["facts"] is None:
            yield point["point"]
        yield from (f"{point['point']} {name}" for name, value in (point["facts"] or {}).items() if value is None)


def test_what_is_null_in_the_technical_file_is_listed_as_open(facts: Facts, unstated: Facts) -> None:
    files: list[Any] = [technical_file(facts), technical_file(unstated)]
    for file in files:
        assert file["open"] == list(nulls(file["points"]))
    assert {"1(b)", "4", "5", "8", "9"} <= set(files[0]["open"])
    assert {"2(e)", "1(a) intended_purpose", "2(c) parameters"} <= set(files[1]["open"]) - set(files[0]["open"])


def test_both_boms_are_valid_cyclonedx(facts: Facts, unstated: Facts) -> None:
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    for each in (facts, unstated):
        assert validator.validate_str(boms.model_bom(each).decode()) is None
    assert validator.validate_str(boms.software_bom(facts).decode()) is None
    spoilt = boms.model_bom(facts).replace(b'"approach":{"type":"supervised"}', b'"approach":{"type":"guessed"}')
    assert validator.validate_str(spoilt.decode()) is not None


def test_the_model_s_bom_has_base_data_files_and_what_was_measured(facts: Facts) -> None:
    bom = json.loads(boms.model_bom(facts))
    model = bom["metadata"]["component"]
    assert (model["type"], model["licenses"]) == ("machine-learning-model", [{"license": {"name": "Our own terms"}}])
    assert model["pedigree"]["ancestors"][0]["name"] == "org/base"
    parts = {each["bom-ref"]: each for each in bom["components"]}
    assert parts["base"]["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert parts["data/train.jsonl"]["hashes"] == [{"alg": "SHA-256", "content": "1" * 64}]
    assert parts["file/adapter/adapter_model.safetensors"]["type"] == "file"
    card = model["modelCard"]
    assert {each["ref"] for each in card["modelParameters"]["datasets"]} == {ref for ref in parts if ref[:4] == "data"}
    measured = {each["type"]: each for each in card["quantitativeAnalysis"]["performanceMetrics"]}
    assert float(measured["tuned perplexity"]["value"]) == math.e
    assert measured["quality/perplexity_ratio perplexity_ratio"]["confidenceInterval"] == {
        "lowerBound": "1.1",
        "upperBound": "1.3",
    }
    assert card["considerations"]["technicalLimitations"] == ["Makes up names.", "Out of scope: Medical advice."]


def test_the_software_bom_has_every_installed_package(facts: Facts) -> None:
    bom = json.loads(boms.software_bom(facts))
    found = {each.get("purl") for each in bom["components"]}
    for name in ("torch", "rfc8785", "cyclonedx-python-lib"):
        version = facts.record.opened.environment[f"package/{name}"]
        assert f"pkg:pypi/{name}@{version.replace('+', '%2B')}" in found
    licensed = {each["name"]: each.get("licenses") for each in bom["components"]}
    assert licensed["cyclonedx-python-lib"] == [{"license": {"id": "Apache-2.0"}}]


def test_the_same_attempt_gives_the_same_bytes_and_another_release_another_serial_number(facts: Facts) -> None:
    for write in (hub_card.write, boms.model_bom, boms.software_bom):
        assert write(facts) == write(facts)
    other = replace(facts, release="e" * 64)
    numbers = {
        json.loads(write(f))["serialNumber"] for f in (facts, other) for write in (boms.model_bom, boms.software_bom)
    }
    assert len(numbers) == 4
    assert json.loads(boms.software_bom(facts))["metadata"]["timestamp"] == facts.record.opened.started


def test_no_address_key_or_folder_of_the_machine_gets_into_a_document(
    facts: Facts, bundles: tuple[Path, ...], run: Path
) -> None:
    full_ones = [
        hub_card.write(facts),
        canonical(technical_file(facts)),
        boms.model_bom(facts),
        boms.software_bom(facts),
    ]
    texts = [text.decode() for text in full_ones]
    texts += [(folder / name).read_text(encoding="utf-8") for folder in bundles for name in NAMES]
    unwanted = (
        "/home/ann",
        "hidden-word",
        "tracking.example",
        "hidden-key",
        str(run.parent),
        str(Path.home()) + "/",
        "file:",
    )
    assert [word for word in unwanted for text in texts if word in text] == []


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("lost (/home/ann/runs/x.json); run again", "lost (x.json); run again"),
        ("see https://example.org/a/b and a/b/c", "see https://example.org/a/b and a/b/c"),
        ("~/keys/mine and '/etc/x/y'", "mine and 'y'"),
        ("1/2 of 3 / 4", "1/2 of 3 / 4"),
    ],
)
def test_absolute_paths_are_cut_down_to_their_last_part(text: str, left: str) -> None:
    assert without_folders(text) == left
