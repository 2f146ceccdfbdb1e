"""JSON lists an element at a time: the same values and the same faults as when the whole text is parsed at once."""

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loragate import streamed_json
from loragate.streamed_json import Doubled, elements, parse

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(params=[1, 2, 7, 1 << 18])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How much is read at a time."""
    monkeypatch.setattr(streamed_json, "BLOCK_CHARS", request.param)
    return int(request.param)


def whole(text: str) -> Any:
    """What parsing at once makes of a text: its elements, or where the fault is and what it is."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return error.msg, error.lineno, error.colno


def streamed(text: str) -> Any:
    try:
        return list(elements(io.StringIO(text, newline="")))
    except json.JSONDecodeError as error:
        return error.msg, error.lineno, error.colno


@settings(max_examples=60, deadline=None)
@given(values=st.lists(VALUES, max_size=6), indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
def test_elements_are_those_of_the_whole_list(values: list[Any], indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=ascii_only)
    for size in (1, 3, 50):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(streamed_json, "BLOCK_CHARS", size)
            assert streamed(text) == values


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 1},\n {"a": }]',
        '[1, 2\n, "open',
        "[1 2]",
        "[1,\n]",
        '[1] \n"more"',
        '["\\u12"]',
        "[tru",
        "[1,\n\n nul]",
        "",
        "  \n",
        "{",
    ],
)
def test_fault_is_named_as_when_the_whole_text_is_parsed(block: int, text: str) -> None:
    expected = whole(text)
    found = streamed(text)
    assert found[1:] == expected[1:]
    assert found[0] == expected[0] or text == "[1,\n]"  # which Python words by its own rule


def test_number_that_is_cut_by_the_end_of_a_block_is_read_whole(block: int) -> None:
    assert streamed("[123456789, -1.5e-10]") == [123456789, -1.5e-10]


@pytest.mark.parametrize(("text", "kind"), [('{"a": 1}', "dict"), ('"x"', "str"), ("3", "int"), ("null", "NoneType")])
def test_text_that_is_no_list_is_named_by_its_type(block: int, text: str, kind: str) -> None:
    with pytest.raises(TypeError, match=kind):
        list(elements(io.StringIO(text)))


def test_key_that_stands_twice_is_kept_in_mind_at_every_depth() -> None:
    for text in ('{"a": 1, "a": 2}', '{"b": {"a": 1, "a": 2}}', '{"b": [{"a": 1, "a": 2}]}'):
        found = parse(text)
        assert isinstance(found, Doubled)
        assert found.key == "a"


def test_memory_is_that_of_the_largest_element(monkeypatch: pytest.MonkeyPatch) -> None:
    widest = 0
    more = streamed_json._Window.more

    def measured(window: Any, characters: int) -> bool:
        nonlocal widest
        found = more(window, characters)
        widest = max(widest, len(window.text))
        return found

    monkeypatch.setattr(streamed_json._Window, "more", measured)
    monkeypatch.setattr(streamed_json, "BLOCK_CHARS", 1000)
    text = json.dumps([{"a": "x" * 100}] * 1000)
    assert len(streamed(text)) == 1000
    assert widest < 3000
