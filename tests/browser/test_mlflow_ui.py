"""MLflow's own pages, in a real browser, tell of a release: verdict, metrics, data sets, models, aliases, the report.

Chromium comes from the system (Debian: `apt-get install chromium`). Where there is none the tests skip,
unless LORAGATE_REQUIRE_BROWSER is set: then they fail.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from devtools import Browser, browser
from mlflow.tracking import MlflowClient
from promotable import promotable, promoted
from rich_attempt import rich
from test_report_in_chromium import FLAGS
from tracking_server import mlflow_server

from loragate.engines import tracking
from loragate.engines.system_metrics import sampled
from loragate.record import Closed, now
from loragate.verdicts import at_most, conclude
from tasks.attempts import end

# MLflow 3.17 asks SQLAlchemy 2.1 for a loading strategy that is on its way out; ours is only the question.
pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:sqlalchemy.exc.SADeprecationWarning"),
]


@dataclass(frozen=True, slots=True)
class Pages:
    """A browser, an MLflow server on a home, and what is on record there.

    Attributes:
        run, refused: Ids of the runs of a release and of a refusal.
        models: Id of each logged model of the release, by its name.
    """

    browser: Browser
    server: str
    run: str
    refused: str
    models: dict[str, str]

    def shown(self, page: str, *texts: str) -> str:
        """Open a page and wait until it shows some texts; return all that it shows."""
        self.browser.open(f"{self.server}/#/{page}")
        return self.browser.wait_for(texts)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    chromium = shutil.which("chromium")
    if chromium is None and os.environ.get("LORAGATE_REQUIRE_BROWSER"):
        pytest.fail("LORAGATE_REQUIRE_BROWSER is set, but `chromium` is not on PATH; install it")
    if chromium is None:
        pytest.skip("`chromium` is not on PATH (Debian: apt-get install chromium)")
    folder = tmp_path_factory.mktemp("pages")
    run, refused, models, uri = release_and_refuse(folder)
    with (
        mlflow_server(folder, store=uri) as server,
        browser(chromium, FLAGS, folder / "profile") as opened,
    ):
        yield Pages(opened, server, run, refused, models)


def release_and_refuse(folder: Path) -> tuple[str, str, dict[str, str], str]:
    """Release once and be refused once; return both runs, the release's models and the store."""
    place = promotable(folder)
    attempt = rich(place, 1)
    run = tracking.open_run(attempt).run_id
    with sampled(attempt):
        pass  # one sample is taken at the end of every training
    assert promoted(attempt).outcome == "champion"
    worse = rich(place, 2, "1")
    verdict = conclude("quality", [at_most("perplexity_ratio", 1.25, 1.0, "the ratio of <i>rows.jsonl</i> | x")])
    worse.note("verdict", "quality", verdict)
    end(worse, Closed("refused", verdict.sentence, now()))
    client = MlflowClient(place.home.tracking_uri)
    found = client.search_logged_models(["1"], f"source_run_id = '{run}'")
    refused = tracking.open_run(worse).run_id
    return run, refused, {model.name: model.model_id for model in found}, place.home.tracking_uri


def test_run_shows_verdict_gates_metrics_data_sets_and_models(pages: Pages) -> None:
    wanted = ("RELEASED tiny@1", "every gate passed: released as tiny@1", "Finished", "ladder/perplexity", "tuned_ppl")
    seen = pages.shown(f"experiments/1/runs/{pages.run}", *wanted, "gguf_q8_0", "train/loss")
    assert "baseline: x0.349 (x0.314 to x0.383 with 95 % confidence)" in seen
    assert "train (" in seen
    assert "run.yaml" in seen


def test_refused_run_shows_why_and_renders_nothing_of_the_reason(pages: Pages) -> None:
    seen = pages.shown(f"experiments/1/runs/{pages.refused}", "REFUSED", "Failed", "refused by the quality gate")
    assert "<i>rows.jsonl</i> | x is 1.25, at most 1 allowed" in seen


@pytest.mark.parametrize("artifact", ["report.html", "model/report.html"])
def test_report_opens_beside_the_run_s_files_and_is_styled(pages: Pages, artifact: str) -> None:
    seen = pages.shown(f"experiments/1/runs/{pages.run}/artifacts/{artifact}", "✓ RELEASED", "Findings of each gate")
    assert "Held-out perplexity" in seen
    assert pages.browser.in_frame("getComputedStyle(document.querySelector('h1')).color") == "rgb(255, 255, 255)"


def test_curves_ladder_and_system_metrics_have_charts(pages: Pages) -> None:
    pages.shown(f"experiments/1/runs/{pages.run}/model-metrics", "ladder (6)", "train (4)")
    pages.shown(f"experiments/1/runs/{pages.run}/system-metrics", "cpu_utilization_percentage")


def test_version_shows_verdict_interval_aliases_and_how_to_verify(pages: Pages) -> None:
    wanted = ("Released: every gate passed.", "champion", "candidate", "loragate verify DIR", "gate.data")
    seen = pages.shown("models/tiny/versions/1", *wanted)
    assert "Perplexity on 100 held-out rows 54.001 -> 18.822, x0.349 (x0.314 to x0.383 with 95 % confidence)" in seen


def test_logged_model_shows_its_numbers_its_data_set_and_its_version(pages: Pages) -> None:
    seen = pages.shown(f"experiments/1/models/{pages.models['adapter']}", "Ready", "ladder/perplexity", "heldout (#")
    assert "18.8215" in seen
    assert "v1" in seen
