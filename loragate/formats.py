"""Row formats: one raw object of a data file into a conversation, by the keys it has.

A format is one entry of `FORMATS`. Foreign spellings end here: roles become system, user, assistant and tool, tool
calls become OpenAI's with their arguments parsed, as chat templates expect them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from loragate.errors import DataFileError
from loragate.rows import TEXT, Conversation, Message

Raw = Mapping[str, object]

KEPT = ("name", "reasoning_content", "tool_call_id")
"""Further fields of a message that chat templates read."""

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
"""Source: LLaMA-Factory's data/README.md, and the files of ShareGPT itself."""


SLICE = "slice"
"""Key, beside those of any format, that names the part of the rows that a row belongs to."""
MOST_SLICE_CHARS = 100
"""Longest name of a slice (own choice: it stands in a table)."""


class RowError(ValueError):
    """A raw row does not follow its format; the message says how."""


@dataclass(frozen=True, slots=True)
class Format:
    """How raw rows of one kind are recognised and read."""

    fits: Callable[[Raw], bool]
    read: Callable[[Raw], Conversation]


def detect(raw: Raw, place: str) -> str:
    """Name the format that a raw row's keys belong to.

    Raises:
        DataFileError: They belong to none.
    """
    for name, known in FORMATS.items():
        if known.fits(raw):
            return name
    raise DataFileError(
        f"{place}: cannot tell the format from the keys {sorted(map(str, raw))}; known formats start from messages, "
        "conversations, instruction/output (alpaca), prompt/completion, question/answer or text. Rename the keys, or "
        "name yours in data.columns, e.g. {prompt: title, completion: body}"
    )


def renamed(raw: Raw, columns: Mapping[str, str]) -> Raw:
    """Give columns the names that formats know.

    Raises:
        RowError: A column is not there.
    """
    for ours, theirs in columns.items():
        if theirs not in raw:
            raise RowError(f'no column "{theirs}", which data.columns.{ours} names')
    return {**raw, **{ours: raw[theirs] for ours, theirs in columns.items()}}


def slice_of(raw: Raw) -> str:
    """Read the name of a row's slice, white space at its ends not counted; empty where it has none.

    Raises:
        RowError: It is no text, or too long for a name.
    """
    name = _text(raw, SLICE).strip() if raw.get(SLICE) is not None else ""
    if len(name) > MOST_SLICE_CHARS:
        raise RowError(f'"{SLICE}" has {len(name):,} characters, at most {MOST_SLICE_CHARS} allowed in a name')
    return name


def _text(raw: Raw, key: str) -> str:
    if raw.get(key) is None:
        found = "is null" if key in raw else "is missing"
        raise RowError(f'"{key}" {found}; it must be a text')
    value = raw[key]
    if not isinstance(value, str):
        raise RowError(f'"{key}" is {type(value).__name__}, must be a text')
    return _whole(value, key)


def _whole(text: str, key: str) -> str:
    """Refuse text that no file can hold."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(f'"{key}" has half a surrogate pair at character {error.start + 1}, not a letter') from None
    return text


def _parsed(value: object, key: str) -> object:
    """Read a value that is JSON written as a text, as .csv cells and some formats have it."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except RecursionError:
        raise RowError(f'"{key}" is nested too deeply') from None
    except ValueError as error:
        raise RowError(f'"{key}" is a text that is not JSON: {getattr(error, "msg", error)}') from None


def _listed(raw: Raw, key: str, what: str) -> list[object]:
    """Read a list with something in it, or the JSON text of one."""
    value = _parsed(raw.get(key), key)
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or not value:
        raise RowError(f'"{key}" must be a list with at least one {what}')
    return list(value)


def _as_json(value: object, key: str) -> str:
    """Write a value as JSON that has one spelling."""
    try:
        return _whole(json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False), key)
    except (TypeError, ValueError, RecursionError) as error:
        raise (
            error if isinstance(error, RowError) else RowError(f'"{key}" cannot be written as JSON: {error}')
        ) from None


def _tools(raw: Raw) -> str:
    return _as_json(_listed(raw, "tools", "tool"), "tools") if raw.get("tools") else ""


def _led(raw: Raw, messages: Sequence[Message]) -> Conversation:
    """Put a row's system text, if it has one, before its messages, and its tools beside them."""
    system = (Message("system", _text(raw, "system")),) if raw.get("system") else ()
    return Conversation((*system, *messages), _tools(raw))


def _alpaca(raw: Raw) -> Conversation:
    instruction, context = _text(raw, "instruction"), _text(raw, "input") if raw.get("input") else ""
    question = f"{instruction}\n\n{context}" if context.strip() else instruction
    earlier = _history(raw) if raw.get("history") else []
    return _led(raw, [*earlier, Message("user", question), Message("assistant", _text(raw, "output"))])


def _history(raw: Raw) -> list[Message]:
    """Read earlier rounds: a list of [question, answer]."""
    messages = []
    for number, turn in enumerate(_listed(raw, "history", "round"), start=1):
        if not isinstance(turn, Sequence) or isinstance(turn, (str, bytes)) or len(turn) != 2:  # noqa: PLR2004
            raise RowError(f'"history" {number} must be [question, answer]')
        said = {"question": turn[0], "answer": turn[1]}
        messages += [Message("user", _text(said, "question")), Message("assistant", _text(said, "answer"))]
    return messages


def _pair(prompt: str, completion: str) -> Callable[[Raw], Conversation]:
    """Read a question and its answer; each a text, or (as TRL has it) a list of messages."""

    def read(raw: Raw) -> Conversation:
        sides = ((prompt, "user"), (completion, "assistant"))
        return _led(raw, [message for key, role in sides for message in _side(raw, key, role)])

    return read


def _side(raw: Raw, key: str, role: str) -> list[Message]:
    if not isinstance(raw.get(key), Sequence) or isinstance(raw[key], (str, bytes)):
        return [Message(role, _text(raw, key))]
    return _turns(raw, key, _message)


def _messages(key: str) -> Callable[[Raw], Conversation]:
    """Read a list of role and content."""
    return lambda raw: _led(raw, _turns(raw, key, _message))


def _sharegpt(raw: Raw) -> Conversation:
    return _led(raw, _turns(raw, "conversations", _from_value))


def _turns(raw: Raw, key: str, read: Callable[[Raw], Message]) -> list[Message]:
    messages = []
    for position, turn in enumerate(_listed(raw, key, "message"), start=1):
        if not isinstance(turn, Mapping):
            raise RowError(f"message {position} is {type(turn).__name__}, must have role and content")
        try:
            messages.append(read(turn))
        except RowError as problem:
            raise RowError(f"message {position}: {problem}") from None
    return messages


def _message(turn: Raw) -> Message:
    if turn.get("function_call") is not None:
        raise RowError('"function_call" is OpenAI\'s former spelling; write it as tool_calls')
    role = _text(turn, "role")
    if role == TEXT:
        raise RowError(f"unknown role {role!r}; plain text is a row of its own, with the one key text")
    more: dict[str, object] = {key: _text(turn, key) for key in KEPT if turn.get(key) is not None}
    if turn.get("tool_calls"):
        more["tool_calls"] = [_tool_call(call) for call in _listed(turn, "tool_calls", "call")]
    calls_only = "tool_calls" in more and turn.get("content") is None
    content = "" if calls_only else _content(turn)
    return Message(role, content, _as_json(more, "tool_calls") if more else "", _taught(turn, role))


def _content(turn: Raw) -> str:
    """Read a text, or a list of OpenAI's text parts, which are one text."""
    parts = turn.get("content")
    if not isinstance(parts, Sequence) or isinstance(parts, (str, bytes)):
        return _text(turn, "content")
    texts = []
    for position, part in enumerate(parts, start=1):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if not isinstance(part, Mapping) or kind != "text":
            raise RowError(f"content part {position} is {kind!r}; only text can be taught")
        texts.append(_text(part, "text"))
    return "".join(texts)


def _taught(turn: Raw, role: str) -> bool:
    weight = turn.get("weight")
    if weight is None:
        return True
    if weight not in (0, 1) or role != "assistant":
        raise RowError(f'"weight" is {weight!r} on a message from {role!r}; it is 0 or 1, on assistant messages')
    return weight == 1


def _tool_call(call: object) -> dict[str, object]:
    """Read a call of OpenAI's form, or its inner part alone; its arguments may be JSON written as a text."""
    call = _parsed(call, "tool_calls")
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(inner, Mapping):
        raise RowError('"tool_calls" must hold objects with a function\'s name and arguments')
    arguments = inner.get("arguments")
    function = {"name": _text(inner, "name"), "arguments": {} if arguments is None else _parsed(arguments, "arguments")}
    identity = {"id": _text(call, "id")} if call.get("id") is not None else {}
    return {**identity, "type": "function", "function": function}


def _from_value(turn: Raw) -> Message:
    name, value = _text(turn, "from"), turn.get("value")
    role = SHAREGPT_ROLES.get(name)
    if role is None:
        raise RowError(f"unknown speaker {name!r}; known are {', '.join(SHAREGPT_ROLES)}")
    if name != "function_call":
        return Message(role, _text(turn, "value"), taught=_taught(turn, role))
    called = _parsed(value, "value")
    calls = called if isinstance(called, list) else [called]
    return Message(role, "", _as_json({"tool_calls": [_tool_call(call) for call in calls]}, "value"))


def _is_sharegpt(raw: Raw) -> bool:
    """Whether the first turn has a speaker rather than a role."""
    turns = raw.get("conversations")
    if isinstance(turns, str):
        return '"from"' in turns
    first = turns[0] if isinstance(turns, Sequence) and turns else None
    return isinstance(first, Mapping) and first.get("from") is not None


def _has(*keys: str) -> Callable[[Raw], bool]:
    return lambda raw: all(key in raw for key in keys)


FORMATS: dict[str, Format] = {
    "messages": Format(_has("messages"), _messages("messages")),
    "sharegpt": Format(_is_sharegpt, _sharegpt),
    "conversations": Format(_has("conversations"), _messages("conversations")),
    "alpaca": Format(_has("instruction"), _alpaca),
    "prompt_completion": Format(_has("prompt"), _pair("prompt", "completion")),
    "question_answer": Format(_has("question", "answer"), _pair("question", "answer")),
    "text": Format(_has("text"), lambda raw: Conversation((Message(TEXT, _text(raw, "text")),))),
}
"""Looked through in this order; the first that fits the first row of a file is the file's."""
