"""The report is data on a page: escaped, complete, offline, repeatable, and honest about what is missing."""

import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest

from loragate.engines.report import MOST_SAMPLES, render_report
from loragate.engines.report_text import (
    MOST_CHARACTERS,
    TIMES,
    duration,
    number,
    public,
    ratio,
    readable,
    when,
)
from loragate.histogram import Histogram, histogram
from loragate.ladder import Divergence, Rung
from loragate.perplexity import Nll
from loragate.record import AttemptRecord, Closed, CurvePoint, Opened, Sample, Tracked
from loragate.refs import Ref
from loragate.verdicts import Finding, Verdict, at_most, conclude

HOSTILE = (
    "</div></style></title><script>alert(1)</script><img src=//evil.example/x onerror=alert(2)>"
    "\" ' &amp; {{ 7*7 }} {% raw %}"
)

OPENED = Opened(
    attempt="attempt-1",
    model="pydoc-helper",
    started="2026-11-22T05:58:01+00:00",
    config={"model": "pydoc-helper", "data": {"max_tokens": 512}, "train": {"r": 16, "learning_rate": 2e-4}},
    environment={"python": "3.11", "torch": "2.11"},
)
TRACKED = Tracked("run-1", "https://ann:hidden-word@tracking.example/")
EMPTY = AttemptRecord(OPENED, None, TRACKED)


def sample(**changed: Any) -> Sample:
    told = Sample("Who?", "Ann.", "Bob bob bob", "Ann.", before_stopped=False, after_stopped=True)
    return replace(told, **changed)


def full_record() -> AttemptRecord:
    warned = Finding("overfit_gap", False, "gap is 0.08", severity="warn", value=0.08, limit=0.05)
    held = Finding("finite", True, "every loss is finite")
    return AttemptRecord(
        OPENED,
        Closed("released", "released pydoc-helper@3", "2026-11-22T06:07:16+00:00", "3", "d" * 64, ("champion",)),
        verdicts=(
            conclude("data", [at_most("leaked_share", 0.0, 0.0, "share of leaked questions")]),
            conclude("training", [held, warned]),
            conclude("quality", [at_most("perplexity_ratio", 0.25, 1.0, "tuned / baseline")]),
        ),
        ladder=(
            Rung("baseline", Nll(2000.0, 800)),
            Rung("tuned", Nll(900.0, 800)),
            Rung("gguf_f16", Nll(901.0, 800)),
        ),
        curve=tuple(CurvePoint(s, 2 / s, 1e-4, 0.5, 2.1 / s if s % 4 == 0 else None) for s in range(1, 21)),
        lengths=histogram({10: 1, 12: 2, 40: 1, 90: 1, 600: 1}, limit=512),
        taught_shares=histogram({0: 1, 35: 2, 60: 2, 100: 1}),
        samples=(sample(),),
        artifacts={"adapter": Ref("runs/adapter", "b" * 64), "gguf_f16": Ref("runs/m.gguf", "c" * 64)},
        inputs={"train.jsonl": "e" * 64},
        seconds={"validate": 0.5, "train": 75.0},
    )


class Page(HTMLParser):
    """What a browser's parser sees: the tags with their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def hostile_record() -> AttemptRecord:
    text = HOSTILE
    finding = Finding(text, False, text, value=1.0)
    return AttemptRecord(
        replace(OPENED, model=text, attempt=text, started=text, config={text: {text: text}}),
        Closed("refused", text, text),
        verdicts=(Verdict(text, "fail", (finding,)),),
        ladder=(Rung(text, Nll(1.0, 1)), Rung("$x^{2$ \\frac", Nll(1.0, 1)), Rung("模型", Nll(1.0, 1))),
        samples=(Sample(text, text, text, text, True, False),),
        artifacts={text: Ref(text, text)},
        inputs={text: text},
        seconds={text: 1.0},
    )


@pytest.mark.parametrize("place", ["question", "reference", "before", "after"])
def test_report_escapes_sample_text(place: str) -> None:
    html = render_report(replace(EMPTY, samples=(sample(**{place: HOSTILE}),)))
    assert Page(html).count("script") == Page(html).count("img") == 0
    assert HOSTILE in Page(html).text


def test_no_text_of_the_record_becomes_markup() -> None:
    page = Page(render_report(hostile_record()))
    expected = {"script": 0, "img": 0, "title": 1, "style": 1}
    assert {tag: page.count(tag) for tag in expected} == expected
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]


def test_control_characters_and_overrides_of_direction_become_visible() -> None:
    html = render_report(replace(EMPTY, samples=(sample(after="a\0b\x1bc\u202ed\ud800e\u2067f\r\ng\rh\x85"),)))
    assert "a[U+0000]b[U+001B]c[U+202E]d[U+D800]e[U+2067]f\ng[U+000D]h[U+0085]" in html
    html.encode("utf-8")


def test_scripts_of_every_writing_system_stay_as_they_are() -> None:
    text = "用一句话 مرحبا שלום 🐍👩\N{ZERO WIDTH JOINER}💻 e\N{COMBINING ACUTE ACCENT}"
    assert text in render_report(replace(EMPTY, samples=(sample(after=text),)))


def test_a_huge_text_is_cut_and_the_rest_counted() -> None:
    html = render_report(replace(EMPTY, samples=(sample(after="x" * 1_000_000),)))
    assert f"({1_000_000 - MOST_CHARACTERS:,} more characters)" in html
    assert len(html) < 100_000


def test_samples_are_capped_and_the_rest_counted() -> None:
    page = Page(render_report(replace(EMPTY, samples=(sample(),) * (MOST_SAMPLES + 5))))
    assert page.count("article") == MOST_SAMPLES
    assert "5 more samples are in the record" in page.text


@pytest.mark.parametrize(
    ("outcome", "word"),
    [
        ("released", "RELEASED"),
        ("refused", "REFUSED"),
        ("failed", "FAILED"),
        ("running", "RUNNING (or killed)"),
    ],
)
def test_the_verdict_is_the_first_heading_and_the_reason_follows(outcome: Any, word: str) -> None:
    html = render_report(replace(EMPTY, closed=Closed(outcome, "because of this", "2026-11-22T06:00:00+00:00")))
    headings = [tag for tag, _ in Page(html).tags if tag in {"h1", "h2", "h3", "h4"}]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1
    assert html.index(f"</span> {word}</h1>") < html.index("because of this") < html.index("<h2")


def test_an_attempt_without_an_end_says_that_it_runs_or_was_killed() -> None:
    assert "still running, or it was killed" in render_report(EMPTY)


def test_every_finding_of_every_verdict_appears() -> None:
    findings = [Finding(f"rule_{i}", i % 3 > 0, f"detail number {i} <", value=i / 7, limit=i) for i in range(90)]
    verdicts = (conclude("one", findings[:40]), conclude("two", findings[40:]), conclude("none", []))
    page = Page(render_report(replace(EMPTY, verdicts=verdicts)))
    rows = [attrs for tag, attrs in page.tags if tag == "tr" and attrs.get("class") == "finding"]
    assert len(rows) == 91
    assert all(finding.rule in page.text and finding.detail in page.text for finding in findings)


def test_refusing_gates_come_first_and_open_and_passed_ones_are_folded() -> None:
    good, bad = Finding("good", True, "fine"), Finding("bad", False, "broken")
    html = render_report(replace(EMPTY, verdicts=(conclude("calm", [good]), conclude("angry", [good, bad]))))
    gates = [
        attrs for tag, attrs in Page(html).tags if tag == "details" and "id" in attrs and "gate" in str(attrs["id"])
    ]
    assert ["open" in gate for gate in gates] == [True, False]
    assert html.index("angry") < html.index("calm")
    assert html.index("<code>bad</code><p") < html.index("<code>good</code><p")


def test_pass_fail_and_warning_differ_by_word_not_only_by_colour() -> None:
    text = Page(render_report(full_record())).text
    assert "✓ pass" in text
    assert "⚠\N{VARIATION SELECTOR-15} warn" in text


def test_nothing_is_loaded_from_outside() -> None:
    html = render_report(full_record())
    page = Page(html)
    loaders = {"src", "href", "xlink:href", "action", "data", "poster", "srcset", "background"}
    targets = {str(value) for _, attrs in page.tags for name, value in attrs.items() if name in loaders}
    assert {target for target in targets if not target.startswith("#")} == set()
    assert html.count("url(") == html.count("url(#")
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_every_link_inside_the_page_has_its_target_once() -> None:
    tags = Page(render_report(full_record())).tags
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    links = {str(attrs["href"])[1:] for _, attrs in tags if "href" in attrs}
    assert len(ids) == len(set(ids))
    assert links <= set(ids)


def test_the_same_record_gives_the_same_bytes() -> None:
    assert render_report(full_record()) == render_report(full_record())


def test_the_order_in_which_inputs_were_recorded_does_not_matter() -> None:
    one = replace(EMPTY, inputs={"a": "1", "b": "2"})
    other = replace(EMPTY, inputs={"b": "2", "a": "1"})
    assert render_report(one) == render_report(other)


def test_sections_without_data_say_so_and_draw_nothing() -> None:
    page = Page(render_report(EMPTY))
    said = ("No gate has judged", "No training step", "No perplexity was", "No row's tokens", "No sample was")
    assert [line for line in (*said, "No artifact was", "No step's time") if line not in page.text] == []
    assert page.count("svg") == 0


def test_a_loss_that_is_never_finite_is_written_and_not_drawn() -> None:
    curve = (CurvePoint(1, math.nan, 1e-4, math.nan), CurvePoint(2, math.inf, 1e-4, 1.0, math.nan))
    text = Page(render_report(replace(EMPTY, curve=curve))).text
    assert "No loss on record is a finite number" in text
    assert "NaN → infinite" in text
    assert "steps 1, 2" in text


def test_numbers_that_are_not_finite_are_written_as_words() -> None:
    record = replace(
        full_record(),
        verdicts=(conclude("quality", [at_most("ratio", math.nan, 1, "ratio"), at_most("loss", math.inf, 1, "loss")]),),
        ladder=(Rung("baseline", Nll(0.0, 0)), Rung("tuned", Nll(1e9, 1)), Rung("merged", Nll(3.0, 3))),
        curve=(
            CurvePoint(1, 2.0, 0.1, 1.0),
            CurvePoint(2, math.nan, 0.1, math.inf, 1e300),
            CurvePoint(3, 1.0, 0.1, 1.0),
        ),
        seconds={"train": math.nan, "merge": 2.0},
    )
    page = Page(render_report(record))
    assert page.text.count("NaN") >= 4
    assert "infinite" in page.text
    assert not [value for _, attrs in page.tags for value in attrs.values() if value in {"nan", "inf", "nan%"}]


def test_every_svg_has_a_role_and_a_label() -> None:
    svgs = [attrs for tag, attrs in Page(render_report(full_record())).tags if tag == "svg"]
    assert len(svgs) == 6
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in svgs)


def test_the_page_names_its_language_title_and_table_headers() -> None:
    tags = Page(render_report(full_record())).tags
    assert ("html", {"lang": "en"}) in tags
    assert all(attrs.get("scope") in {"row", "col"} for tag, attrs in tags if tag == "th")


def test_headings_do_not_skip_a_level() -> None:
    levels = [int(tag[1]) for tag, _ in Page(render_report(full_record())).tags if tag in {"h1", "h2", "h3", "h4"}]
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_digests_paths_and_configuration_are_written_in_full() -> None:
    record = full_record()
    text = Page(render_report(record)).text
    refs = [part for ref in record.artifacts.values() for part in (ref.path, ref.digest)]
    wanted = [*refs, *record.inputs.values(), "d" * 64, "train.learning_rate", "0.0002"]
    assert [part for part in wanted if part not in text] == []


def test_credentials_in_addresses_are_hidden() -> None:
    config: dict[str, Any] = {"record": {"tracking_uri": "postgresql://ann:hidden-word@db/x"}}
    html = render_report(replace(EMPTY, opened=replace(OPENED, config=config)))
    assert "hidden-word" not in html
    assert "https://***@tracking.example/" in html


def test_a_steep_ladder_is_drawn_on_a_logarithmic_axis_and_says_so() -> None:
    steep = (Rung("baseline", Nll(10.0, 1)), Rung("tuned", Nll(1.0, 1)))
    assert "(logarithmic)" in render_report(replace(EMPTY, ladder=steep))
    assert "(logarithmic)" not in render_report(full_record())


def test_ladder_ratios_are_to_the_rung_before_and_to_the_first() -> None:
    far = {"tuned": Divergence(0.25, 0.5, 40)}
    rungs = (
        *(Rung("baseline", Nll(math.log(8), 1)), Rung("tuned", Nll(math.log(4), 1), "baseline")),
        *(Rung("merged", Nll(math.log(5), 1), "tuned", far), Rung("gguf_q8_0", Nll(math.log(10), 1), "merged")),
    )
    text = "".join(Page(render_report(replace(EMPTY, ladder=rungs))).text.split())
    assert f"mergedmergingoftuned5{TIMES}1.250–0.250.5{TIMES}0.625" in text
    assert f"gguf_q8_0quantisationofmerged10{TIMES}2.000–––{TIMES}1.250" in text


def words(record: AttemptRecord) -> str:
    """The page's text, white space made single."""
    return " ".join(Page(render_report(record)).text.split())


def bars(record: AttemptRecord, label: str) -> int:
    """How many filled bars the plot has whose label begins so."""
    html = render_report(record)
    drawn = html[html.index(f'aria-label="{label}') :].partition("</svg>")[0]
    return drawn.count("fill: var(--plot-blue)") + drawn.count("fill: var(--plot-green)")


def test_lengths_are_the_exact_figures_and_rows_beyond_the_limit_are_counted() -> None:
    text = words(full_record())
    exact = ("Rows6 764 tokens together", "Shortest10 tokens", "Median12 tokens", "90% have at most600 tokens")
    assert [fact for fact in (*exact, "Longest600 tokens") if fact not in text] == []
    assert "1 of 6 rows are longer than data.max_tokens = 512." in text
    assert "max_tokens 512" in text


def test_shares_are_the_exact_figures() -> None:
    text = words(full_record())
    assert [s for s in ("Median share35%", "Smallest share0%", "Largest share100%") if s not in text] == []
    assert "supervised tokens in percent of the row" in text


@pytest.mark.parametrize("tally", [{7: 3}, {0: 1}, {100: 2}, dict.fromkeys(range(101), 1), {1: 1, 99: 10**9}])
def test_each_bar_of_a_histogram_is_drawn(tally: dict[int, int]) -> None:
    made = histogram(tally)
    assert made is not None
    record = replace(EMPTY, lengths=made, taught_shares=made)
    assert bars(record, f"Histogram of {made.values:,} rows between {made.smallest} and") == len(made.counts)
    assert bars(record, f"Histogram of {made.values:,} rows, between {made.smallest} and") == len(made.counts)


@pytest.mark.parametrize(("present", "absent"), [("lengths", "Supervised share"), ("taught_shares", "max_tokens =")])
def test_one_histogram_is_shown_without_the_other(present: str, absent: str) -> None:
    page = Page(render_report(replace(EMPTY, **{present: Histogram(5, 1, (3,), 15, 5, 5, 5, 5)})))
    assert page.count("svg") == 1
    assert absent not in page.text
    assert "No row's tokens" not in page.text


def test_a_long_curve_stays_a_small_page() -> None:
    curve = tuple(CurvePoint(s, 2 + math.sin(s), 1e-4, 1.0, 2.0) for s in range(1, 20_001))
    assert len(render_report(replace(EMPTY, curve=curve))) < 1_000_000


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\N{EN DASH}"),
        (math.nan, "NaN"),
        (math.inf, "infinite"),
        (-math.inf, "minus infinite"),
        (0.0, "0"),
        (8.0, "8"),
        (0.0002, "0.0002"),
        (3.1e-07, "3.1e-07"),
        (3.14159, "3.142"),
        (1234.56, "1,234.6"),
        (2_162_688, "2,162,688"),
        (123456.7, "123,457"),
        (1e300, "1e+300"),
    ],
)
def test_numbers_are_written_for_reading(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.5, "0.5 s"),
        (59.96, "1 min 0 s"),
        (75, "1 min 15 s"),
        (3700, "1 h 1 min"),
        (math.nan, "NaN"),
        (-1, "-1"),
    ],
)
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_small_texts_are_written_for_reading() -> None:
    assert ratio(0.25) == f"{TIMES}0.250"
    assert when("2026-11-22T05:58:01+00:00") == "2026-11-22 05:58:01 UTC"
    assert when("yesterday") == "yesterday"
    assert public("see https://a:b@c/d and mail ann@example.org") == "see https://***@c/d and mail ann@example.org"
    assert readable(json.loads('"\\ud83d\\ude00"')) == "😀"
