"""Rows as conversations: whatever a file says, in one canonical form with its place of origin.

A row that cannot be read keeps its place and the reason: no row is ever lost silently.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

TEXT = "text"
"""Role of the one message of a row that is plain text: no chat template is applied to it."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: system, user, assistant or tool; or `TEXT`.
        content: Its text; may be empty where an assistant calls a tool.
        extras: What else the chat template is given, as a JSON object: tool_calls, tool_call_id, name,
            reasoning_content; empty where there is nothing else.
        taught: Whether an assistant's turn is to be learnt; OpenAI's `weight` of 0 says no.
    """

    role: str
    content: str
    extras: str = ""
    taught: bool = True

    @property
    def said(self) -> str:
        """What the turn says, white space at its ends not counted: its text, or the tools that it calls."""
        return self.content.strip() or self.extras

    def for_template(self) -> dict[str, Any]:
        """The fields that a chat template reads."""
        return {"role": self.role, "content": self.content} | (json.loads(self.extras) if self.extras else {})


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order, and the tools that may be called in them.

    Attributes:
        tools: Tool definitions as a JSON list; empty where there are none.
    """

    messages: tuple[Message, ...]
    tools: str = ""

    @property
    def text(self) -> str | None:
        """The text of a row that is plain text to go on with; None for a conversation."""
        return self.messages[0].content if self.messages and self.messages[0].role == TEXT else None

    @property
    def question(self) -> "Conversation":
        """What comes before the first answer; of plain text, the first half, cut between words."""
        if self.text is not None:
            half = self.text[: len(self.text) // 2]
            return Conversation((Message(TEXT, half.rsplit(None, 1)[0] if half.split() else half),))
        roles = [message.role for message in self.messages]
        return Conversation(self.messages[: roles.index("assistant")], self.tools)

    @property
    def answer(self) -> str:
        """What the first answer says; of plain text, the rest of it."""
        asked = self.question.messages
        if self.text is not None:
            return self.text[len(asked[0].content) :].strip()
        return self.messages[len(asked)].said


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation to learn from or to judge by.

    Attributes:
        file: Name of its file, for messages to the user.
        number: Line of a .jsonl, .csv or .tsv file, element of a .json or .parquet file; counted from 1.
        conversation: What was said; without messages where the row could not be read.
        problem: Why the row could not be read, None where it could.
        slice_name: The part of the rows that it belongs to, as its file says; empty where that says none. No model
            reads it and no digest of the row covers it.
    """

    file: str
    number: int
    conversation: Conversation
    problem: str | None = None
    slice_name: str = ""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The turns in order."""
        return self.conversation.messages

    @property
    def place(self) -> str:
        """Where the row stands, as file:row."""
        return f"{self.file}:{self.number}"

    @property
    def digest(self) -> str:
        """Digest of the whole conversation: equal for exact copies."""
        return _digest(self.messages, self.conversation.tools)

    @property
    def trimmed(self) -> "Row":
        """The row without white space at the ends of its turns."""
        turns = tuple(replace(message, content=message.content.strip()) for message in self.messages)
        return replace(self, conversation=Conversation(turns, self.conversation.tools))

    @property
    def question_digest(self) -> str:
        """Digest of what comes before the last answer; copies of a question share it whatever the answer."""
        last = self.messages[-1:] if self.messages and self.messages[-1].role == "assistant" else ()
        return _digest(self.messages[: len(self.messages) - len(last)], self.conversation.tools)


def unreadable(file: str, number: int, problem: str) -> Row:
    """A row that could not be read, and why."""
    return Row(file, number, Conversation(()), problem)


def position(row: Row) -> float:
    """Place a row's question evenly in [0, 1): rows below the held-out share are held out.

    A row's side depends on its question alone: it stays there when rows are added, and copies of one question never
    stand on both sides. A row that could not be read has no question and stands last.
    """
    return 1.0 if row.problem else _evenly("heldout", row.question_digest)


def copies(row: Row, weight: float) -> int:
    """How often a training row of a file of some weight is taken in an epoch.

    The whole part of the weight, and once more for the share of rows that the fraction says: a weight of 0.25 takes
    every fourth row, 2.5 every row twice and every second one a third time. Which ones depends on the row alone.
    """
    whole = int(weight)
    fraction = weight - whole
    return whole + (fraction > 0 and _evenly("weight", row.digest) < fraction)


def _evenly(purpose: str, digest: str) -> float:
    mixed = hashlib.sha256(purpose.encode() + bytes.fromhex(digest)).digest()
    return int.from_bytes(mixed[:8]) / 2**64


def _digest(messages: Sequence[Message], tools: str) -> str:
    """Digest turns by a text that no other turns have."""
    parts = [[m.role, m.content, m.extras, m.taught] for m in messages]
    return hashlib.sha256(orjson.dumps([parts, tools])).hexdigest()


def as_fields(conversation: Conversation) -> dict[str, Any]:
    """A conversation as JSON fields."""
    turns = [
        {"role": m.role, "content": m.content, "extras": m.extras, "taught": m.taught} for m in conversation.messages
    ]
    return {"messages": turns, "tools": conversation.tools}


def from_fields(fields: Mapping[str, Any]) -> Conversation:
    """Read a conversation back from its JSON fields; fields of anything else beside them do not matter."""
    return Conversation(tuple(Message(**message) for message in fields["messages"]), fields["tools"])
