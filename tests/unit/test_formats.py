"""Formats: what each spelling means, and the reason for every row that is none."""

import json
from typing import Any

import pytest

from loragate.formats import FORMATS, RowError, detect, renamed
from loragate.rows import Conversation, Message

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
SYSTEM, ASKED, SAID = Message("system", "Be brief."), Message("user", "a?"), Message("assistant", "a")
CALLED = Message("assistant", "", json.dumps({"tool_calls": [CALL]}, sort_keys=True))
FOUR = Message("tool", "4")


def read(raw: dict[str, Any], name: str = "auto") -> Conversation:
    return FORMATS[detect(raw, "rows.jsonl:1") if name == "auto" else name].read(raw)


def openai(*turns: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


SPELLINGS: dict[str, tuple[dict[str, Any], Conversation]] = {
    "messages": (openai(("user", "a?"), ("assistant", "a")), Conversation((ASKED, SAID))),
    "messages as JSON text": (
        {"messages": json.dumps(openai(("user", "a?"), ("assistant", "a"))["messages"])},
        Conversation((ASKED, SAID)),
    ),
    "text parts are one text": (
        openai(("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "?"}]), ("assistant", "a")),
        Conversation((ASKED, SAID)),
    ),
    "fields of null are none": (
        {"messages": [{"role": "user", "content": "a?", "tool_calls": None, "weight": None, "name": None}]},
        Conversation((ASKED,)),
    ),
    "tools and their calls, arguments as text": (
        {
            "messages": [
                {"role": "user", "content": "a?"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}}],
                },
                {"role": "tool", "content": "4"},
                {"role": "assistant", "content": "a"},
            ],
            "tools": TOOLS,
        },
        Conversation((ASKED, CALLED, FOUR, SAID), json.dumps(TOOLS, sort_keys=True)),
    ),
    "a call keeps its id, its result the call's": (
        {
            "messages": [
                {"role": "assistant", "content": "", "tool_calls": [{"id": "1", **CALL}]},
                {"role": "tool", "content": "4", "tool_call_id": "1"},
            ]
        },
        Conversation(
            (
                Message("assistant", "", json.dumps({"tool_calls": [{"id": "1", **CALL}]}, sort_keys=True)),
                Message("tool", "4", '{"tool_call_id": "1"}'),
            )
        ),
    ),
    "a weight of 0 is not taught": (
        {
            "messages": [
                {"role": "user", "content": "a?"},
                {"role": "assistant", "content": "a", "weight": 0},
                {"role": "assistant", "content": "a", "weight": 1},
            ]
        },
        Conversation((ASKED, Message("assistant", "a", taught=False), SAID)),
    ),
    "MiniMind": (
        {
            "conversations": [
                {"role": "user", "content": "a?"},
                {"role": "assistant", "content": "a", "reasoning_content": "hm"},
            ]
        },
        Conversation((ASKED, Message("assistant", "a", '{"reasoning_content": "hm"}'))),
    ),
    "MiniMind, calls as text": (
        {"conversations": [{"role": "assistant", "content": "", "tool_calls": json.dumps([CALL["function"]])}]},
        Conversation((CALLED,)),
    ),
    "sharegpt": (
        {
            "conversations": [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "a"}],
            "system": "Be brief.",
        },
        Conversation((SYSTEM, ASKED, SAID)),
    ),
    "sharegpt with a tool": (
        {
            "conversations": [
                {"from": "human", "value": "a?"},
                {"from": "function_call", "value": json.dumps(CALL["function"])},
                {"from": "observation", "value": "4"},
                {"from": "gpt", "value": "a"},
            ],
            "tools": json.dumps(TOOLS),
        },
        Conversation((ASKED, CALLED, FOUR, SAID), json.dumps(TOOLS, sort_keys=True)),
    ),
    "alpaca": (
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        Conversation((Message("user", "Add.\n\n1 2"), Message("assistant", "3"))),
    ),
    "alpaca with blank input": (
        {"instruction": "a?", "input": " \n", "output": "a"},
        Conversation((ASKED, SAID)),
    ),
    "alpaca with input of null": (
        {"instruction": "a?", "input": None, "output": "a"},
        Conversation((ASKED, SAID)),
    ),
    "alpaca with system and history": (
        {"instruction": "b?", "output": "b", "system": "Be brief.", "history": [["a?", "a"]]},
        Conversation((SYSTEM, ASKED, SAID, Message("user", "b?"), Message("assistant", "b"))),
    ),
    "prompt and completion": ({"prompt": "a?", "completion": "a"}, Conversation((ASKED, SAID))),
    "prompt and completion as messages": (
        {
            "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a?"}],
            "completion": [{"role": "assistant", "content": "a"}],
        },
        Conversation((SYSTEM, ASKED, SAID)),
    ),
    "plain text": ({"text": "a? a"}, Conversation((Message("text", "a? a"),))),
    "question and answer": ({"question": "a?", "answer": "a"}, Conversation((ASKED, SAID))),
}


@pytest.mark.parametrize(("raw", "expected"), SPELLINGS.values(), ids=SPELLINGS)
def test_spelling_is_recognised_and_means_the_conversation(raw: dict[str, Any], expected: Conversation) -> None:
    assert read(raw) == expected


CALLING = {"role": "assistant", "content": None}
FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "a?"}, '"completion" is missing; it must be a text'),
    ({"prompt": "a?", "completion": None}, '"completion" is null; it must be a text'),
    ({"prompt": "a?", "completion": 3}, '"completion" is int, must be a text'),
    ({"prompt": "a?", "completion": "\ud83d"}, '"completion" has half a surrogate pair at character 1'),
    ({"prompt": "a?", "completion": []}, '"completion" must be a list with at least one message'),
    ({"prompt": "a?", "completion": "a", "system": 1}, '"system" is int, must be a text'),
    ({"prompt": "a?", "completion": "a", "tools": "no"}, '"tools" is a text that is not JSON'),
    ({"prompt": "a?", "completion": "a", "tools": {"name": "add"}}, '"tools" must be a list with at least one tool'),
    ({"prompt": "a?", "completion": "a", "tools": "[" * 9999}, '"tools" is nested too deeply'),
    ({"prompt": "a?", "completion": "a", "tools": [float("nan")]}, '"tools" cannot be written as JSON'),
    ({"prompt": "a?", "completion": "a", "tools": [{"name": "\ud83d"}]}, '"tools" has half a surrogate pair'),
    ({"instruction": "a?", "input": [1], "output": "b"}, '"input" is list, must be a text'),
    ({"instruction": "a?", "output": "b", "history": [["a?"]]}, r'"history" 1 must be \[question, answer\]'),
    ({"instruction": "a?", "output": "b", "history": [["a?", 1]]}, '"answer" is int, must be a text'),
    ({"messages": []}, '"messages" must be a list with at least one message'),
    ({"messages": None}, '"messages" must be a list with at least one message'),
    ({"messages": {"role": "user"}}, '"messages" must be a list with at least one message'),
    ({"messages": "[{]"}, '"messages" is a text that is not JSON'),
    ({"messages": ["hello"]}, "message 1 is str, must have role and content"),
    ({"messages": [{"role": "user"}]}, 'message 1: "content" is missing'),
    ({"messages": [CALLING]}, 'message 1: "content" is null'),
    (openai(("user", [{"type": "image_url"}])), "content part 1 is 'image_url'; only text can be taught"),
    (openai(("user", [["a"]])), "content part 1 is 'list'; only text can be taught"),
    (openai(("user", [{"type": "text"}])), '"text" is missing'),
    ({"messages": [{"role": "user", "content": "a", "weight": 1}]}, '"weight" is 1 on a message from'),
    ({"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]}, '"weight" is 0.5'),
    ({"messages": [{**CALLING, "function_call": {}}]}, "function_call.*write it as tool_calls"),
    ({"messages": [{**CALLING, "tool_calls": {"name": "add"}}]}, '"tool_calls" must be a list'),
    ({"messages": [{**CALLING, "tool_calls": [7]}]}, '"tool_calls" must hold objects'),
    ({"messages": [{**CALLING, "tool_calls": [{"function": {}}]}]}, '"name" is missing'),
    (
        {"messages": [{**CALLING, "tool_calls": [{"name": "add", "arguments": "{"}]}]},
        '"arguments" is a text that is not',
    ),
    (
        {"messages": [{"role": "text", "content": "a"}]},
        "message 1: unknown role 'text'; plain text is a row of its own",
    ),
    ({"conversations": [{"from": "robot", "value": "a"}]}, "message 1: unknown speaker 'robot'; known are human,"),
    ({"conversations": [{"from": "gpt", "text": "a"}]}, 'message 1: "value" is missing'),
    ({"conversations": [{"from": "function_call", "value": "add"}]}, '"value" is a text that is not JSON'),
    ({"conversations": [{"from": "function_call", "value": None}]}, '"tool_calls" must hold objects'),
]


@pytest.mark.parametrize(("raw", "said"), FAULTS)
def test_fault_of_a_row_is_named(raw: dict[str, Any], said: str) -> None:
    with pytest.raises(RowError, match=said):
        read(raw)


def test_columns_take_the_names_that_formats_know() -> None:
    raw = renamed({"title": "a?", "body": "a", "prompt": "not this"}, {"prompt": "title", "completion": "body"})
    assert read(dict(raw)) == Conversation((ASKED, SAID))


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(RowError, match=r'no column "body", which data\.columns\.completion names'):
        renamed({"title": "a?"}, {"prompt": "title", "completion": "body"})


def test_reasoning_and_tool_calls_reach_the_template() -> None:
    message = Message("assistant", "", '{"reasoning_content": "hm", "tool_calls": [1]}')
    assert message.for_template() == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "hm",
        "tool_calls": [1],
    }
