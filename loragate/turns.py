"""What a chat template puts between what is said: found by rendering conversations of marks and looking between them.

    system, user, answer, user:   with_system[0] SYSTEM with_system[1] USER answer ANSWER again USER prompt
    user, answer, user:           without_system USER answer ANSWER again USER prompt

Promises: turns are returned only where texts put together from them are the template's own, for one to three questions,
with a system message and without, of plain and of odd contents. A template of another shape is refused with the reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from loragate.rendering import Template, TemplateError
from loragate.rows import Message

SYSTEM = "qz system qz"
MOST_QUESTIONS = 3
ODD = ("Two lines.\n\nAnd {{ braces }}, \"quotes\" and 'more'.", "Größe, 中文, 😀; <b>1 < 2</b>\tend", "a")
"""Contents that a template, or what stands in its place, could treat otherwise than plain words."""
THOUGHT = "<think>\nIt is so.\n</think>\n\nYes."
NO_CLOCK = "strftime_now"
"""The function by which a chat template asks for the date."""


@dataclass(frozen=True, slots=True)
class Turns:
    """Texts around what is said, up to where the model is to answer.

    Attributes:
        without_system: Before the first question, where there is no system message.
        with_system: Before a system message, and between it and the first question; None where the template takes none.
        answer: Between a question and its answer, once that is given.
        again: Between an answer and the next question.
        prompt: Between the last question and the answer that is asked for.
    """

    without_system: str
    with_system: tuple[str, str] | None
    answer: str
    again: str
    prompt: str

    def render(self, messages: Sequence[Message]) -> str:
        """Put a conversation together: a system message or none, then questions and answers in turn."""
        text, before = self.without_system, ""
        for message in messages:
            if message.role == "system":
                assert self.with_system is not None
                text = self.with_system[0] + message.content + self.with_system[1]
            else:
                between = {"user": self.again, "assistant": self.answer}[message.role] if before else ""
                text, before = text + between + message.content, message.role
        return text + self.prompt

    def strip_start(self, start: str) -> "Turns":
        """The same without the text of the token of a beginning, for a runtime that adds it by itself."""
        system = self.with_system
        stripped = None if system is None else (system[0].removeprefix(start), system[1])
        return Turns(self.without_system.removeprefix(start), stripped, self.answer, self.again, self.prompt)


@dataclass(frozen=True, slots=True)
class Chat:
    """What is known of a chat template.

    Attributes:
        turns: None where it has another shape.
        why_not: Why there are none; empty where there are.
        strips: Whether it takes white space off the ends of what is said.
        drops_thoughts: Whether it leaves what stands between <think> and </think> out of earlier answers.
    """

    turns: Turns | None
    why_not: str = ""
    strips: bool = False
    drops_thoughts: bool = False


def find_turns(source: str, template: Template) -> Chat:
    """Find the turns of a chat template, given its source and the function that renders it.

    The function raises TemplateError where the template refuses a conversation.
    """
    if NO_CLOCK in source:
        return Chat(None, "the chat template tells the date of the day on which it is rendered")
    try:
        turns = _turns(template)
        _require_same(turns, template)
        padded, thought = conversation([" padded "]), conversation(["Hello", THOUGHT, "Hello"])
        return Chat(
            turns,
            strips=template(padded, True) != turns.render(padded),
            drops_thoughts=template(thought, True) != turns.render(thought),
        )
    except TemplateError as error:
        return Chat(None, str(error))


def conversation(contents: Sequence[str], system: str | None = None) -> tuple[Message, ...]:
    """A conversation of these contents, questions and answers in turn, after a system message where there is one."""
    turns = tuple(Message("assistant" if at % 2 else "user", content) for at, content in enumerate(contents))
    return turns if system is None else (Message("system", system), *turns)


def _turns(template: Template) -> Turns:
    said = [f"qz {number} qz" for number in range(3)]
    first, answer, again, prompt = _between(template, conversation(said))
    if not _takes_system(template):
        return Turns(first, None, answer, again, prompt)
    before, after, *_ = _between(template, conversation(said, SYSTEM))
    return Turns(first, (before, after), answer, again, prompt)


def _takes_system(template: Template) -> bool:
    """Whether a system message is rendered; a template that knows none refuses it, or leaves it out."""
    try:
        return SYSTEM in template(conversation(["Hello"], SYSTEM), True)
    except TemplateError:
        return False


def _between(template: Template, messages: Sequence[Message]) -> list[str]:
    """Cut what a template makes of marks at the marks."""
    rest, parts = template(messages, True), []
    for message in messages:
        part, found, rest = rest.partition(message.content)
        if not found or message.content in rest:
            raise TemplateError("the chat template does not repeat what is said once and in order")
        parts.append(part)
    return [*parts, rest]


def _require_same(turns: Turns, template: Template) -> None:
    for system in (None, "Be brief.", ODD[0]) if turns.with_system else (None,):
        for questions in range(1, MOST_QUESTIONS + 1):
            for contents in ([f"text {at}" for at in range(5)], [ODD[at % len(ODD)] for at in range(5)]):
                messages = conversation(contents[: 2 * questions - 1], system)
                if turns.render(messages) != template(messages, True):
                    told = "a system message and " if system else ""
                    raise TemplateError(
                        f"the chat template has no fixed texts between turns: {told}{questions} questions are rendered "
                        "otherwise than the parts of shorter conversations"
                    )
