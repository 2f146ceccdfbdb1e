"""What MLflow's pages are told in words holds the verdict and its reasons, and no text of a row acts in it."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from loragate.comparison import Comparison
from loragate.ladder import Rung
from loragate.made_models import made_models
from loragate.notes import base_name, run_note, version_description
from loragate.perplexity import Nll
from loragate.record import AttemptRecord, Closed, Merge, Opened
from loragate.refs import Ref
from loragate.verdicts import Finding, conclude

CONFIG = {"base_model": {"source": "org/base"}, "train": {"method": "qlora", "r": 8, "alpha": 16, "epochs": 2}}
NAN = float("nan")


def record(reason: str = "fine", source: str = "org/base") -> AttemptRecord:
    """A refused attempt."""
    verdict = conclude("quality", [Finding("ratio", False, reason)])
    opened = Opened("a", "tiny", "2026-11-27T00:00:00+00:00", CONFIG | {"base_model": {"source": source}}, {})  # type: ignore[arg-type]
    return AttemptRecord(opened, Closed("refused", verdict.sentence, "2026-11-27"), verdicts=(verdict,))


@given(st.text(st.sampled_from("<>|*_`#[]()!~\\&\n ab"), max_size=40))
def test_no_text_of_a_row_is_markup_or_ends_its_line(reason: str) -> None:
    note = run_note(record(f"begin {reason} end"))
    assert "<" not in note
    assert len([line for line in note.splitlines() if line.startswith("| quality")]) == 1
    (line,) = [line for line in note.splitlines() if line.startswith("| quality")]
    assert line.replace("\\\\", "").replace("\\|", "").count("|") == 5


def test_note_of_an_attempt_that_was_killed_says_how_far_it_came() -> None:
    note = run_note(replace(record(), closed=None))
    assert note.startswith("## RUNNING\n\n| gate")
    assert "refused by" not in note


def test_base_is_named_by_its_id_or_the_last_part_of_its_path() -> None:
    sources = ("org/base", "/some/one/base", "./base", "../models/base", "~/base.gguf", "base.gguf")
    named = [base_name(record(source=source)) for source in sources]
    assert named == ["org/base", "base", "base", "base", "base.gguf", "base.gguf"]


def test_numbers_that_are_none_are_told_nowhere() -> None:
    nothing = Comparison(0, Nll(0, 0), Nll(0, 0), NAN, 0.0, NAN, NAN, 1.0, 0.05, 0, NAN, NAN, "no rows")
    rungs = (Rung("baseline", Nll(0.0, 0)), Rung("tuned", Nll(1e9, 1), "baseline"))
    empty = replace(record(), ladder=rungs, comparisons={"tuned": nothing}, artifacts={"adapter": Ref("/a", "d" * 64)})
    (model,) = made_models(empty)
    assert model.numbers == ()
    assert "Perplexity on" not in version_description(empty, "d" * 64)


def test_each_model_is_told_apart_by_kind_place_and_number_format() -> None:
    artifacts = {name: Ref(f"/runs/x/{name}.gguf", name[0] * 64) for name in ("gguf_q8_0", "merged", "adapter", "rows")}
    found = made_models(replace(record(), artifacts=artifacts, merge=Merge("original", "float16", "streamed")))
    assert [(model.name, model.kind, model.place) for model in found] == [
        ("gguf_q8_0", "gguf", "gguf/gguf_q8_0.gguf"),
        ("merged", "merged", ""),
        ("adapter", "adapter", "adapter"),
    ]
    base = {"base_model": "org/base", "method": "qlora", "r": "8", "alpha": "16", "epochs": "2"}
    assert [model.params for model in found] == [
        base | {"quantisation": "q8_0"},
        base | {"dtype": "float16", "merge": "original"},
        base,
    ]
