"""Retrains of one model, one after the other, by the real command: who becomes champion, and who is refused why.

All of them share one home, one Prefect server and the same held-out rows, which they wear.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import Done, loragate, prefect_for, write_run
from qa_pairs import pairs, write_jsonl

from loragate.home import Home

COMMON, RARE = "common/ünï <b>", "rare"
BETTER = ("--set", "train.epochs=4")


def spells(count: int, *, start: int = 0) -> list[dict[str, str]]:
    """Rows of another kind, whose answers hold words that no other row teaches."""
    return [
        {"prompt": f"Cast spell {n}.", "completion": f"Abracadabra hocus pocus {n} simsalabim voodoo."}
        for n in range(start, start + count)
    ]


def named(rows: list[dict[str, str]], name: str) -> list[dict[str, str]]:
    return [row | {"slice": name} for row in rows]


@dataclass(frozen=True, slots=True)
class Place:
    """A run file, its home, and a server for its commands."""

    folder: Path
    home: Home
    api: str

    def release(self, *more: str) -> Done:
        return loragate("release", "run.yaml", "--json", *more, cwd=self.folder, PREFECT_API_URL=self.api)


def quality(done: Done) -> Mapping[str, Any]:
    """Findings of the quality gate by rule."""
    assert "Traceback" not in done.said
    (gate,) = (gate for gate in done.json["gates"] if gate["gate"] == "quality")
    return {finding["rule"]: finding for finding in gate["findings"]}


def broken(done: Done) -> set[str]:
    return {
        rule for rule, finding in quality(done).items() if not finding["passed"] and finding["severity"] == "refuse"
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, new_home: Path) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("champion")
    write_run(folder, tiny_model)
    write_jsonl(folder / "train.jsonl", pairs(24) + spells(24))
    write_jsonl(folder / "heldout.jsonl", named(pairs(60, start=100), COMMON) + named(spells(20, start=100), RARE))
    shutil.copytree(new_home, folder / "home")
    with prefect_for(folder / "home") as api:
        yield Place(folder, Home(folder / "home"), api)


@pytest.fixture(scope="module")
def first(place: Place) -> Done:
    done = place.release()
    assert done.code == 0, done.said
    return done


@pytest.fixture(scope="module")
def second(place: Place, first: Done) -> Done:
    """The release after the first one: trained for longer."""
    done = place.release(*BETTER)
    assert done.code == 0, done.said
    return done


def test_first_release_has_no_champion_to_beat_and_says_so(first: Done) -> None:
    findings = quality(first)
    assert findings["champion_ratio"]["passed"]
    assert "no release of this model is champion yet" in findings["champion_ratio"]["detail"]
    assert "look number 1 at these held-out rows has alpha 0.025 of 0.05" in findings["heldout_wear"]["detail"]
    judged = {"tuned", "general", f"slice/{COMMON}", f"slice/{RARE}"}
    assert set(first.json["comparisons"]) == judged | {"merged", "gguf_q8_0"}
    assert first.json["comparisons"]["tuned"]["alpha"] == 0.025
    assert [first.json["comparisons"][f"slice/{name}"]["rows"] for name in (COMMON, RARE)] == [60, 20]


def test_better_retrain_passes_against_the_champion_and_takes_its_place(place: Place, second: Done) -> None:
    findings, compared = quality(second), second.json["comparisons"]["champion"]
    assert (second.json["release"], second.json["champion"]) == ("tiny@2", "tiny@1")
    assert compared["high"] < 1
    assert compared["before"] == second.json["comparisons"]["tuned"]["before"] | {"nats": compared["before"]["nats"]}
    assert "champion tiny@1 -> tuned" in findings["champion_ratio"]["detail"]
    assert findings["champion_ratio"]["high"] == compared["high"]
    assert second.json["look"]["number"] == 2
    assert compared["alpha"] == pytest.approx(0.05 / 6)
    shown = loragate("show", "tiny@champion", "--home", "home", cwd=place.folder).stdout
    assert shown.startswith("RELEASED  tiny@2\n")
    assert f"tuned / champion on the slice {COMMON}: x" in shown
    report = Path(second.json["artifacts"]["report"]).read_text(encoding="utf-8")
    assert "tuned ÷ champion on the slice common/ünï &lt;b&gt;, row by row" in report


def test_replay_derives_champion_slices_and_wear_from_rows(place: Place, second: Done) -> None:
    done = loragate("replay", second.json["release"], "--json", "--home", "home", cwd=place.folder)
    assert (done.code, done.json["holds"]) == (0, True), done.said
    claims = {each["claim"]: each["how"] for each in done.json["claims"]}
    assert "perplexity champion" in claims
    assert "to the last digit" in claims["quality gate: intervals follow from rows"]


def test_unchanged_retrain_of_the_champion_is_found_as_released(place: Place, second: Done) -> None:
    again = place.release(*BETTER)
    assert again.code == 0, again.said
    assert again.json == second.json


@pytest.fixture(scope="module")
def third(place: Place, second: Done) -> Done:
    """A challenger that learns less."""
    return place.release("--set", "train.epochs=1", "--set", "train.learning_rate=0.001")


def test_worse_challenger_is_refused_with_the_interval(third: Done) -> None:
    assert third.code == 3, third.said
    assert "champion_ratio" in broken(third)
    found = quality(third)["champion_ratio"]
    assert 1.02 < found["low"] < found["value"] < found["high"]
    assert f"confidence at least {found['low']:.4g}, at most 1.02 x champion allowed" in found["detail"]
    assert quality(third)["perplexity_ratio"]["passed"]


@pytest.fixture(scope="module")
def fourth(place: Place, third: Done) -> Done:
    """A challenger that is better on all rows together and has unlearnt the rare ones."""
    with_rare = (place.folder / "train.jsonl").read_text(encoding="utf-8")
    write_jsonl(place.folder / "train.jsonl", pairs(48))
    done = place.release("--set", "train.epochs=8", "--set", "gates.quality.max_champion_ratio=1.5")
    (place.folder / "train.jsonl").write_text(with_rare, encoding="utf-8")
    return done


def test_regression_in_a_slice_cannot_hide_in_the_total(fourth: Done) -> None:
    assert fourth.code == 3, fourth.said
    assert broken(fourth) == {f"champion/slice/{RARE}"}
    assert "x champion allowed; 20 rows" in quality(fourth)[f"champion/slice/{RARE}"]["detail"]
    assert quality(fourth)[f"champion/slice/{COMMON}"]["passed"]


def test_worn_rows_are_refused_and_fresh_ones_are_not(place: Place, fourth: Done) -> None:
    more = ("--set", "train.epochs=5", "--set", "gates.quality.draws=1000")
    worn = place.release(*more)
    assert worn.code == 3, worn.said
    assert "heldout_wear" in broken(worn)
    found = quality(worn)["heldout_wear"]
    assert "the held-out rows are worn out: look number 5 at these held-out rows" in found["detail"]
    assert "4 earlier looks" in found["detail"]
    assert "name new files under data.heldout" in found["detail"]
    assert (worn.json["look"]["number"], found["evidence"]) == (5, "none")
    write_jsonl(place.folder / "fresh.jsonl", pairs(60, start=300) + spells(20, start=300))
    fresh = place.release(*more, "--set", "data.heldout=[fresh.jsonl]")
    assert fresh.code == 0, fresh.said
    assert (fresh.json["look"]["number"], fresh.json["champion"]) == (1, "tiny@2")


def test_champion_that_cannot_be_scored_refuses_and_says_what_to_do(place: Place, second: Done) -> None:
    merged = Path(second.json["artifacts"]["merged"])
    champion = loragate("show", "tiny@champion", "--json", "--home", "home", cwd=place.folder).json
    model = place.folder / "other"
    shutil.copytree(json.loads((place.folder / "run.yaml").read_text(encoding="utf-8"))["base_model"]["source"], model)
    template = model / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8") + "{# another #}", encoding="utf-8")
    more = ("--set", "train.seed=7", "--set", "data.heldout=[fresh.jsonl]")
    unlike = place.release(*more, "--set", "base_model.source=./other")
    assert (unlike.code, broken(unlike)) == (3, {"champion_ratio"})
    assert "reads the held-out rows otherwise (another chat template)" in quality(unlike)["champion_ratio"]["detail"]
    shutil.rmtree(champion["artifacts"]["merged"])
    gone = place.release(*more)
    assert (gone.code, broken(gone)) == (3, {"champion_ratio"})
    assert "are not in the run store any more" in quality(gone)["champion_ratio"]["detail"]
    assert "run its run file again" in quality(gone)["champion_ratio"]["detail"]
    assert merged.is_dir()
