"""A real browser lays the report out: the verdict is seen, every gate has its row, nothing overflows a phone.

Chromium comes from the system (Debian: `apt-get install chromium`). Where there is none the tests skip,
unless LORAGATE_REQUIRE_BROWSER is set: then they fail.
"""

import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from pydantic import JsonValue

from loragate.engines.report import render_report
from loragate.histogram import histogram
from loragate.ladder import Rung
from loragate.perplexity import Nll
from loragate.record import AttemptRecord, Closed, CurvePoint, Opened, Sample
from loragate.refs import Ref
from loragate.verdicts import Finding, Verdict, at_least, at_most, conclude
from loragate.waivers import Review
from loragate.worst_rows import WorstRow

pytestmark = pytest.mark.browser

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
PHONE_WIDTH = 390
LONG = "unbroken" * 60
GATES = ("data", "preflight", "training", "quality")

MEASURE = """<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">
<iframe style="border:0;width:%dpx;height:800px" srcdoc="%s"></iframe><pre id="measured"></pre>
<script>
const frame = document.querySelector("iframe");
addEventListener("load", () => {
  const page = frame.contentDocument, root = page.documentElement;
  const box = (query) => page.querySelector(query).getBoundingClientRect();
  const seen = (query) => {
    const b = box(query);
    return b.width > 0 && b.height > 0 && b.top < 800 && b.left >= 0;
  };
  const all = [...page.querySelectorAll("body *:not(.scroll *):not(svg *):not(.unseen):not(thead, thead *)")];
  const outside = all.filter((e) => e.getBoundingClientRect().right > root.clientWidth + 0.5);
  document.getElementById("measured").textContent = JSON.stringify({
    scripts: page.scripts.length, title: page.title, mode: page.compatMode,
    verdict: page.querySelector("h1").innerText.trim(), verdictSeen: seen("h1"), reasonSeen: seen(".reason"),
    gates: [...page.querySelectorAll("table.gates tbody tr th")].map((e) => e.innerText.trim()),
    findings: page.querySelectorAll("tr.finding").length,
    folded: [...page.querySelectorAll("details[id]")].map((e) => !e.open),
    plots: [...page.querySelectorAll("svg.plot")].map((e) => e.getBoundingClientRect().width),
    drawn: [...page.querySelectorAll("svg.plot")].map((e) => e.querySelectorAll("path").length),
    wide: root.clientWidth, scroll: root.scrollWidth, outside: outside.map((e) => e.outerHTML.slice(0, 80)),
  });
});
</script>"""

FIRST_SCREEN = """<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">
<iframe style="border:0;width:1280px;height:800px" srcdoc="%s"></iframe><pre id="measured"></pre>
<script>
const frame = document.querySelector("iframe");
addEventListener("load", () => {
  const page = frame.contentDocument, seen = {};
  for (const name of ["rule", "value", "between", "limit", "culprit"])
    seen[name] = [...page.querySelectorAll(".why ." + name)].filter((e) => {
      const b = e.getBoundingClientRect();
      return b.width > 0 && b.top >= 0 && b.bottom <= 800 && b.right <= 1280;
    }).map((e) => e.innerText.replace(/\\s+/g, " ").trim());
  document.getElementById("measured").textContent = JSON.stringify(seen);
});
</script>"""

Browse = Callable[..., str]


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    """Run headless Chromium with some flags on a page and return what it writes to stdout."""
    chromium = shutil.which("chromium")
    if chromium is None and os.environ.get("LORAGATE_REQUIRE_BROWSER"):
        pytest.fail("LORAGATE_REQUIRE_BROWSER is set, but `chromium` is not on PATH; install it")
    if chromium is None:
        pytest.skip("`chromium` is not on PATH (Debian: apt-get install chromium)")

    def run(page: str, *flags: str) -> str:
        file = tmp_path / "page.html"
        file.write_text(page, encoding="utf-8")
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        command = [chromium, *FLAGS, profile, *flags, file.as_uri()]
        done = subprocess.run(command, capture_output=True, check=True, timeout=120, cwd=tmp_path)
        return done.stdout.decode("utf-8")

    return run


def opened() -> Opened:
    config: dict[str, JsonValue] = {
        "model": "pydoc-helper",
        "data": {"max_tokens": 512, "train": [LONG]},
        LONG: LONG,
    }
    where = {"platform": LONG, "python": "3.11"}
    return Opened(
        "attempt-1",
        "pydoc-helper",
        "2026-11-22T05:58:01+00:00",
        config,
        where,
    )


def verdicts() -> tuple[Verdict, ...]:
    warned = Finding("overfit_gap", False, LONG, severity="warn", value=0.08, limit=0.05)
    return (
        conclude("data", [at_most(f"rule_{i}_{'long_' * 9}", 0.0, 0.1, "share of rows") for i in range(7)]),
        conclude("preflight", [at_most("step_0", 1e-7, 1e-5, "divergence")]),
        conclude("training", [Finding("finite", True, "every loss is finite"), warned]),
        conclude("quality", [at_most("ratio", 1.2, 1.0, "ratio"), at_least("stops", 1.0, 0.75, "share of stops")]),
    )


def full_record() -> AttemptRecord:
    hostile = "<script>document.title = 'owned'</script></section><style>h1 { display: none }</style>\0\u202e"
    names = ("baseline", "tuned", "merged", "gguf_f16", "gguf_q8_0", "gguf_q4_k_m")
    return AttemptRecord(
        opened(),
        Closed("refused", verdicts()[-1].sentence, "2026-11-22T06:07:16+00:00"),
        verdicts=verdicts(),
        ladder=tuple(Rung(name, Nll(123_456_789.0 - i, 100_000_000)) for i, name in enumerate(names)),
        curve=tuple(CurvePoint(s, 2 / s, 1e-4, 0.5, 2.1 / s if s % 5 == 0 else None) for s in range(1, 101)),
        lengths=histogram(dict.fromkeys(range(10, 600, 7), 1), limit=512),
        taught_shares=histogram({3: 1, 40: 5, 41: 6, 97: 2}),
        samples=(
            Sample("用一句话解释装饰器 🐍", "مرحبا بالعالم", hostile, LONG * 9, False, True),
            Sample(LONG, LONG, "", "x\n" * 50, False, True),
        ),
        artifacts={name: Ref(f"/home/someone/{name}/{LONG}", "b" * 64) for name in names},
        inputs={LONG: "c" * 64},
        seconds={"validate": 1.2, "train": 4000.0, LONG: 3.0},
    )


def quality_refusal() -> AttemptRecord:
    """A tuned model that is worse, on a whole road of gates before it."""
    ratio = Finding(
        "perplexity_ratio",
        False,
        "perplexity 18.212 -> 22.765: the ratio is 1.25, with 95 % confidence at least 1.118, at most 1 x baseline "
        "allowed; 100 rows",
        value=1.25,
        limit=1.0,
        low=1.118,
        high=1.402,
    )
    asked = "What does the function itertools.chain.from_iterable do, and when is it better than chain?"
    worst = tuple(
        WorstRow(f"heldout.jsonl:{n}", f"{n}: {asked}", Nll(30.0 + n, 20), Nll(60.5 - n, 20)) for n in range(5)
    )
    passed = at_least("stop_share", 1.0, 0.75, "share of 8 answers that end with a stop token")
    return replace(
        full_record(),
        verdicts=(*verdicts()[:2], conclude("quality", [ratio, passed])),
        worst_rows={"baseline": worst},
        waivers={"quality": Review("c" * 64, commands=("loragate waive 20261125T041034-12b9e4 --rule quality/x",))},
    )


def data_refusal() -> AttemptRecord:
    """Rows that break three rules, one of them with much to say about each."""
    places = tuple(f"refused.jsonl:{n}" for n in (3, 9, 33, 36, 55))
    long = tuple(f"refused.jsonl:{n}: holds a passage of bench/questions.jsonl:{n}" for n in range(5))
    findings = [
        Finding(
            f"train.{rule}",
            False,
            f"training rows: {said}: broken by 14 of 100: {'; '.join(examples)}; and 9 more",
            value=14,
            limit=0,
            examples=examples,
        )
        for rule, said, examples in (
            ("answer_not_empty", "no answer may be empty", places),
            ("not_in_protected", "training rows must not hold passages of protected rows", long),
            ("answer_supervised", "every row must have an answer left to learn after truncation", places),
        )
    ]
    return replace(full_record(), verdicts=(conclude("data", findings),), ladder=(), curve=(), samples=())


def first_screen(browse: Browse, page: str) -> dict[str, list[str]]:
    dom = browse(FIRST_SCREEN % html.escape(page), "--virtual-time-budget=5000", "--dump-dom", "--window-size=1280,900")
    found = re.search(r'<pre id="measured">(.*?)</pre>', dom, re.DOTALL)
    assert found, "the page was not measured"
    return dict(json.loads(html.unescape(found[1])))


def measured(browse: Browse, page: str, width: int) -> dict[str, object]:
    wrapper = MEASURE % (width, html.escape(page))
    dom = browse(wrapper, "--virtual-time-budget=5000", "--dump-dom", f"--window-size={max(width, 800)},900")
    found = re.search(r'<pre id="measured">(.*?)</pre>', dom, re.DOTALL)
    assert found, "the page was not measured"
    return dict(json.loads(html.unescape(found[1])))


def test_the_report_on_a_phone_shows_its_verdict_and_does_not_overflow(browse: Browse) -> None:
    seen = measured(browse, render_report(full_record()), PHONE_WIDTH)
    assert seen["verdict"] == "✗ REFUSED"
    assert (seen["verdictSeen"], seen["reasonSeen"]) == (True, True)
    assert (seen["wide"], seen["scroll"], seen["outside"]) == (PHONE_WIDTH, PHONE_WIDTH, [])


def test_the_report_on_a_desk_does_not_overflow_either(browse: Browse) -> None:
    seen = measured(browse, render_report(full_record()), 1200)
    assert (seen["scroll"], seen["outside"]) == (1200, [])
    assert seen["mode"] == "CSS1Compat"


def test_every_gate_has_one_row_and_every_finding_too(browse: Browse) -> None:
    seen = measured(browse, render_report(full_record()), PHONE_WIDTH)
    assert sorted(seen["gates"]) == sorted(GATES)  # type: ignore[call-overload]
    assert seen["findings"] == sum(len(verdict.findings) for verdict in verdicts())
    assert seen["folded"] == [False, False, True, True]


def test_the_plots_are_drawn_and_hostile_text_ran_nothing(browse: Browse) -> None:
    seen = measured(browse, render_report(full_record()), PHONE_WIDTH)
    assert [width > 250 for width in seen["plots"]] == [True] * 4  # type: ignore[attr-defined]
    assert min(seen["drawn"]) > 5  # type: ignore[call-overload]
    assert seen["scripts"] == 0
    assert "REFUSED" in str(seen["title"])


def test_an_attempt_that_has_just_begun_lays_out_too(browse: Browse) -> None:
    seen = measured(browse, render_report(AttemptRecord(opened(), None)), PHONE_WIDTH)
    assert (seen["verdictSeen"], seen["gates"], seen["scroll"]) == (True, [], PHONE_WIDTH)


def test_a_check_lays_out_on_a_phone_with_its_two_plots_only(browse: Browse) -> None:
    checked = replace(full_record(), verdicts=verdicts()[:1], closed=Closed("passed", "the data gate passed", LONG))
    seen = measured(browse, render_report(checked, "checks"), PHONE_WIDTH)
    assert (seen["verdict"], seen["gates"]) == ("✓ PASSED", ["data"])
    assert (seen["scroll"], seen["outside"]) == (PHONE_WIDTH, [])
    assert len(seen["plots"]) == 2  # type: ignore[arg-type]


def test_a_quality_refusal_shows_rule_value_interval_limit_and_rows_on_the_first_screen(browse: Browse) -> None:
    seen = first_screen(browse, render_report(quality_refusal()))
    assert seen["rule"] == ["quality/perplexity_ratio"]
    assert (seen["value"], seen["between"], seen["limit"]) == (["1.25 1.118 to 1.402"], ["1.118 to 1.402"], ["1"])
    rows = seen["culprit"]
    assert [row.split()[0] for row in rows] == [f"heldout.jsonl:{n}" for n in range(5)]
    assert rows[0].endswith("30 60.5")
    assert "What does the function" in rows[0]


def test_a_data_refusal_by_three_rules_shows_them_with_rows_on_the_first_screen(browse: Browse) -> None:
    seen = first_screen(browse, render_report(data_refusal()))
    assert seen["rule"] == [
        "data/train.answer_not_empty",
        "data/train.not_in_protected",
        "data/train.answer_supervised",
    ]
    assert (seen["value"], seen["limit"]) == (["14"] * 3, ["0"] * 3)
    assert len(seen["culprit"]) == 12
    assert seen["culprit"][0] == "refused.jsonl:3"
    assert "holds a passage of bench/questions.jsonl:0" in seen["culprit"][5]


@pytest.mark.parametrize("record", [quality_refusal, data_refusal])
def test_the_cause_of_a_refusal_does_not_overflow_a_phone(browse: Browse, record: Callable[[], AttemptRecord]) -> None:
    seen = measured(browse, render_report(record()), PHONE_WIDTH)
    assert (seen["scroll"], seen["outside"]) == (PHONE_WIDTH, [])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_screenshot_is_not_blank_and_follows_the_colour_scheme(browse: Browse, tmp_path: Path, scheme: str) -> None:
    picture = tmp_path / "report.png"
    preferred = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    browse(render_report(full_record()), f"--screenshot={picture}", "--window-size=800,1200", preferred)
    pixels = imread(picture)[:, :, :3]
    height, width, _ = pixels.shape
    edge, banner = pixels[height - 5, 2], pixels[60, width - 40]
    assert (width, height) == (800, 1200)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
    assert (edge.mean() > 0.5) == (scheme == "light")
    assert banner[0] > 2 * banner[2], "the banner of a refusal is vermilion"
