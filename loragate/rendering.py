"""What the model reads and what it is taught: token ids and the mask over them, built together.

The chat template is used as it is, by rendering ever longer prefixes of the conversation: the text that a generation
prompt ends is what the model is given, and what the template adds for the assistant's turn is what it must learn, up
to and including the token that stops it. Each stretch is tokenised on its own, as the serving runtime does, so the
prompt's ids are exactly those of generation. A template that changes earlier text when a turn is added has no such
stretches and is refused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loragate.rows import Message

Template = Callable[[Sequence[Message], bool], str]
"""(messages, add_generation_prompt) -> text."""

Encode = Callable[[str], Sequence[int]]
"""Text -> token ids, nothing added before or after."""


class TemplateError(ValueError):
    """The chat template cannot render a conversation in a way that can be taught; the message says why."""


@dataclass(frozen=True, slots=True)
class Example:
    """One rendered row.

    Attributes:
        ids: Token ids, at most `max_tokens`.
        mask: Same length; True where the token is supervised (assistant text and its stop token).
        turns: Assistant turns in the conversation.
        stopped_turns: Assistant turns whose stop token is present and supervised after truncation.
        rendered_tokens: Length before truncation.
    """

    ids: tuple[int, ...]
    mask: tuple[bool, ...]
    turns: int
    stopped_turns: int
    rendered_tokens: int

    @property
    def supervised(self) -> int:
        """How many tokens are supervised."""
        return sum(self.mask)

    @property
    def truncated(self) -> bool:
        """Whether tokens were cut off at the end."""
        return self.rendered_tokens > len(self.ids)


def segments(
    messages: Sequence[Message], template: Template, is_stop: Callable[[str], bool]
) -> list[tuple[str, Message | None]]:
    """Cut the rendered conversation into (text, the answer that it holds or None) stretches.

    Some templates close a conversation with a stop token that is gone when another turn follows (Phi); `is_stop` says
    whether a text is stop tokens and nothing else, and such a closing is left out of the turns before the last.

    Raises:
        TemplateError: A shorter prefix's text does not begin the longer one's.
    """
    stretches: list[tuple[str, Message | None]] = []
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
    whole = template(messages, False)
    _require_prefix(done, whole, len(messages))
    return [*stretches, (whole[len(done) :], None)]


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

    An answer is supervised up to the first stop token after its content. Template text behind that (a newline, a token
    that closes the conversation) is there but not supervised: at inference the model is never asked for it. A turn
    that the template gives no stop token is supervised whole and not counted as stopped.

    Raises:
        TemplateError: The template rewrites history.
    """
    ids: list[int] = []
    mask: list[bool] = []
    stops: list[int] = []
    turns = 0

    def is_stop(text: str) -> bool:
        tokens = encode(text)
        return bool(tokens) and stop_ids.issuperset(tokens)

    for text, answer in segments(messages, template, is_stop):
        added = list(encode(text))
        stop = _stop(text, added, answer, encode, stop_ids) if answer else None
        taught = 0 if not answer else len(added) if stop is None else stop + 1
        turns += answer is not None
        stops += [] if stop is None else [len(ids) + stop]
        ids += added
        mask += [position < taught for position in range(len(added))]
    return Example(
        ids=tuple(ids[:max_tokens]),
        mask=tuple(mask[:max_tokens]),
        turns=turns,
        stopped_turns=sum(stop < max_tokens for stop in stops),
        rendered_tokens=len(ids),
    )


def render_text(text: str, encode: Encode, *, end_id: int, max_tokens: int) -> Example:
    """Render plain text and the token that ends it, cut at `max_tokens` from the end.

    All of it is supervised but the first token, which nothing predicts.
    """
    ids = (*encode(text), end_id)
    kept = ids[:max_tokens]
    mask = tuple(position > 0 for position in range(len(kept)))
    return Example(kept, mask, turns=1, stopped_turns=int(kept == ids), rendered_tokens=len(ids))


def _stop(text: str, tokens: Sequence[int], answer: Message, encode: Encode, stop_ids: frozenset[int]) -> int | None:
    """Position of the token that ends an answer: the first stop token behind its content, which may hold some too."""
    content = answer.content.strip()
    behind = list(encode(text[text.rfind(content) + len(content) :])) if content and content in text else []
    start = len(tokens) - len(behind)
    if behind and list(tokens[start:]) == behind:
        first = next((i for i, token in enumerate(behind) if token in stop_ids), None)
        if first is not None:
            return start + first
    return max((i for i, token in enumerate(tokens) if token in stop_ids), default=None)
