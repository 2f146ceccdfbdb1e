"""What the model reads and what it is taught: token ids and the mask over them, built together.

The chat template is used as it is, by rendering ever longer prefixes of the conversation: the text that a generation
prompt ends is what the model is given, and what the template adds for the assistant's turn is what it must learn, up
to and including the token that stops it. Each stretch is tokenised on its own, as the serving runtime does, so the
prompt's ids are exactly those of generation. A template that changes earlier text when a turn is added has no such
stretches and is refused.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from loragate.rows import Conversation, Message, as_fields, from_fields

Template = Callable[[Sequence[Message], bool], str]
"""(messages, add_generation_prompt) -> text."""

Encode = Callable[[str], Sequence[int]]
"""Text -> token ids, nothing added before or after."""

Stretch = tuple[str, Message | None]
"""A stretch of the rendered conversation and the answer that it holds, None where it holds none."""


class TemplateError(ValueError):
    """The chat template cannot render a conversation in a way that can be taught; the message says why."""


@dataclass(frozen=True, slots=True)
class Example:
    """One rendered row.

    Attributes:
        ids: Token ids, at most `max_tokens`.
        spans: Where tokens are supervised (assistant text and its stop token): [start, end) in order.
        turns: Assistant turns in the conversation.
        stopped_turns: Assistant turns whose stop token is present and supervised after truncation.
        rendered_tokens: Length before truncation.
        copies: How often an epoch takes the row.
    """

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    turns: int
    stopped_turns: int
    rendered_tokens: int
    copies: int = 1

    @property
    def mask(self) -> tuple[bool, ...]:
        """For each token whether it is supervised."""
        mask = [False] * len(self.ids)
        for start, end in self.spans:
            mask[start:end] = [True] * (end - start)
        return tuple(mask)

    @property
    def predicted(self) -> tuple[int, ...]:
        """Positions of the supervised tokens that are predicted: all but a row's first, which nothing predicts."""
        return tuple(position for start, end in self.spans for position in range(max(start, 1), end))

    @property
    def supervised(self) -> int:
        """How many tokens are supervised."""
        return sum(end - start for start, end in self.spans)

    @property
    def truncated(self) -> bool:
        """Whether tokens were cut off at the end."""
        return self.rendered_tokens > len(self.ids)


def rendered_line(example: Example, conversation: Conversation, place: str, slice_name: str = "") -> bytes:
    """A rendered row as one line of JSON."""
    fields = {
        "ids": example.ids,
        "spans": example.spans,
        "turns": example.turns,
        "stopped_turns": example.stopped_turns,
        "rendered_tokens": example.rendered_tokens,
        "copies": example.copies,
        **as_fields(conversation),
        "place": place,
        "slice": slice_name,
    }
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def read_rendered(line: bytes) -> tuple[Example, Conversation, str]:
    """Read a rendered row back: what the model reads, what was said, and where the row stands."""
    fields: Mapping[str, Any] = orjson.loads(line)
    example = Example(
        ids=tuple(fields["ids"]),
        spans=tuple((start, end) for start, end in fields["spans"]),
        turns=fields["turns"],
        stopped_turns=fields["stopped_turns"],
        rendered_tokens=fields["rendered_tokens"],
        copies=fields["copies"],
    )
    return example, from_fields(fields), fields["place"]


def common_system(lines: Iterable[bytes]) -> str:
    """The system message that every rendered row begins with; empty where one has none or another."""
    common = ""
    for line in lines:
        first = orjson.loads(line)["messages"][0]
        if first["role"] != "system" or first["content"] != (common or first["content"]):
            return ""
        common = first["content"]
    return common


def segments(messages: Sequence[Message], template: Template, is_stop: Callable[[str], bool]) -> list[Stretch]:
    """Cut the rendered conversation into stretches.

    Some templates close a conversation with a stop token that is gone when another turn follows (Phi); `is_stop` says
    whether a text is stop tokens and nothing else, and such a closing is left out of the turns before the last.

    Raises:
        TemplateError: A shorter prefix's text does not begin the longer one's.
    """
    stretches: list[Stretch] = []
    done = ""
    for end, message in enumerate(messages, start=1):
        if message.role != "assistant" or not message.taught:
            continue
        prompt = template(messages[: end - 1], True)
        _require_prefix(done, prompt, end)
        answered = template(messages[:end], False)
        _require_prefix(prompt, answered, end)
        if end < len(messages):
            answered = _unclosed(answered, template(messages[: end + 1], False), is_stop)
        stretches += [(prompt[len(done) :], None), (answered[len(prompt) :], message)]
        done = answered
        if end == len(messages):
            return stretches
    whole = template(messages, False)
    _require_prefix(done, whole, len(messages))
    return [*stretches, (whole[len(done) :], None)]


TRIES = 16
"""Places of an answer's content, from the last one back, that a stop token is looked for behind."""
CLOSING_CHARS = 64
"""Longest text that can close a conversation."""


def _unclosed(answered: str, continued: str, is_stop: Callable[[str], bool]) -> str:
    """Leave out the stop tokens at the end that are gone when the conversation goes on."""
    if continued.startswith(answered):
        return answered
    same = _common(answered, continued)
    for cut in range(same, max(same - CLOSING_CHARS, -1), -1):
        if is_stop(answered[cut:]):
            return answered[:cut]
    return answered


def _common(one: str, other: str) -> int:
    """Length of what two texts begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _require_prefix(shorter: str, longer: str, position: int) -> None:
    if longer.startswith(shorter):
        return
    same = _common(shorter, longer)
    raise TemplateError(
        f"the chat template rewrites earlier text when message {position} is added: "
        f"{shorter[same : same + 40]!r} becomes {longer[same : same + 40]!r}"
    )


def render(
    messages: Sequence[Message],
    template: Template,
    encode: Encode,
    *,
    stop_ids: frozenset[int],
    max_tokens: int,
) -> Example:
    """Render a conversation into ids and mask, cut at `max_tokens` from the end.

    Raises:
        TemplateError: The template rewrites history.
    """
    stretches = segments(messages, template, stops_only(encode, stop_ids))
    tokens = [encode(text) for text, _ in stretches]
    return assemble(stretches, tokens, encode, stop_ids=stop_ids, max_tokens=max_tokens)


def stops_only(encode: Encode, stop_ids: frozenset[int]) -> Callable[[str], bool]:
    """Return whether a text is stop tokens and nothing else, as a function."""

    def is_stop(text: str) -> bool:
        tokens = encode(text)
        return bool(tokens) and stop_ids.issuperset(tokens)

    return is_stop


def assemble(
    stretches: Sequence[Stretch],
    tokens: Sequence[Sequence[int]],
    encode: Encode,
    *,
    stop_ids: frozenset[int],
    max_tokens: int,
) -> Example:
    """Put stretches and their token ids together, cut at `max_tokens` from the end.

    An answer is supervised up to the first stop token after its content. Template text behind that (a newline, a token
    that closes the conversation) is there but not supervised: at inference the model is never asked for it. A turn
    that the template gives no stop token is supervised whole and not counted as stopped.
    """
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    turns = stopped = 0
    for (text, answer), added in zip(stretches, tokens, strict=True):
        if answer is not None:
            stop = _stop(text, added, answer, encode, stop_ids)
            taught = len(added) if stop is None else stop + 1
            start, end = min(len(ids), max_tokens), min(len(ids) + taught, max_tokens)
            spans += [(start, end)] if start < end else []
            turns += 1
            stopped += stop is not None and len(ids) + stop < max_tokens
        ids += added
    return Example(tuple(ids[:max_tokens]), tuple(spans), turns, stopped, len(ids))


def text_example(tokens: Sequence[int], *, end_id: int, max_tokens: int) -> Example:
    """Plain text and the token that ends it, cut at `max_tokens` from the end.

    All of it is supervised but the first token, which nothing predicts.
    """
    kept = (*tokens, end_id)[:max_tokens]
    spans = ((1, len(kept)),) if len(kept) > 1 else ()
    whole = len(tokens) < max_tokens
    return Example(kept, spans, turns=1, stopped_turns=int(whole), rendered_tokens=len(tokens) + 1)


def _stop(text: str, tokens: Sequence[int], answer: Message, encode: Encode, stop_ids: frozenset[int]) -> int | None:
    """Position of the token that ends an answer: the first stop token behind its content, which may hold some too."""
    content = answer.content.strip()
    at = text.find(content) if content else -1
    for _ in range(TRIES):  # from the front: a content as short as `>` is found in the text of closing tokens, too
        if at < 0:
            break
        behind = list(encode(text[at + len(content) :]))
        start = len(tokens) - len(behind)
        first = next((i for i, token in enumerate(behind) if token in stop_ids), None)
        if first is not None and list(tokens[start:]) == behind:
            return start + first
        at = text.find(content, at + 1)
    return max((i for i, token in enumerate(tokens) if token in stop_ids), default=None)
