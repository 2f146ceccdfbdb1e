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


def segments(messages: Sequence[Message], template: Template) -> list[tuple[str, bool]]:
    """Cut the rendered conversation into (text, is the assistant's) stretches.

    Raises:
        TemplateError: A shorter prefix's text does not begin the longer one's.
    """
    stretches: list[tuple[str, bool]] = []
    done = ""
    for end, message in enumerate(messages, start=1):
        if message.role != "assistant":
            continue
        prompt = template(messages[: end - 1], True)
        answered = template(messages[:end], False)
        _require_prefix(done, prompt, end)
        _require_prefix(prompt, answered, end)
        stretches += [(prompt[len(done) :], False), (answered[len(prompt) :], True)]
        done = answered
    whole = template(messages, False)
    _require_prefix(done, whole, len(messages))
    return [*stretches, (whole[len(done) :], False)]


def _require_prefix(shorter: str, longer: str, position: int) -> None:
    if longer.startswith(shorter):
        return
    same = next((i for i, (a, b) in enumerate(zip(shorter, longer, strict=False)) if a != b), len(longer))
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

    Template text after a turn's stop token (a newline, say) is there but not supervised: at inference the model is
    never asked for it. A turn that the template gives no stop token is supervised whole and not counted as stopped.

    Raises:
        TemplateError: The template rewrites history.
    """
    ids: list[int] = []
    mask: list[bool] = []
    stops: list[int] = []
    turns = 0
    for text, is_answer in segments(messages, template):
        added = list(encode(text))
        stop = max((i for i, token in enumerate(added) if is_answer and token in stop_ids), default=None)
        taught = 0 if not is_answer else len(added) if stop is None else stop + 1
        turns += is_answer
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
