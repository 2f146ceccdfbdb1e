"""Rendering: what is taught is exactly the answers and their stop tokens, after exactly the prompt of generation."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loragate.rendering import Example, TemplateError, read_rendered, render, rendered_line, segments, text_example
from loragate.rows import Conversation, Message

STOP = "#"
STOP_IDS = frozenset({ord(STOP)})
MANY = 10_000


def encode(text: str) -> list[int]:
    """One token a character, its code point the id: positions in the text are positions in the ids."""
    return [ord(character) for character in text]


def is_stop(text: str) -> bool:
    return text == STOP


def chatml(messages: Sequence[Message], add_generation_prompt: bool) -> str:
    """A turn is `[role]text#` and a newline."""
    turns = "".join(f"[{message.role}]{message.content}{STOP}\n" for message in messages)
    return turns + ("[assistant]" if add_generation_prompt else "")


def stopless(messages: Sequence[Message], add_generation_prompt: bool) -> str:
    return chatml(messages, add_generation_prompt).replace(STOP, "")


def forgetful(messages: Sequence[Message], add_generation_prompt: bool) -> str:
    """Leave thoughts out of all answers but the last one, as templates of reasoning models do."""
    *earlier, last = messages
    kept = [Message(m.role, m.content.rpartition("</think>")[2]) for m in earlier]
    return chatml([*kept, last], add_generation_prompt)


def dialogue(*turns: str) -> tuple[Message, ...]:
    return tuple(Message(("user", "assistant")[n % 2], turn) for n, turn in enumerate(turns))


def rendered(messages: Sequence[Message], max_tokens: int = MANY) -> Example:
    return render(messages, chatml, encode, stop_ids=STOP_IDS, max_tokens=max_tokens)


def taught(example: Example) -> str:
    return "".join(chr(token) for token, is_taught in zip(example.ids, example.mask, strict=True) if is_taught)


def test_mask_covers_the_answer_and_its_stop_token_and_nothing_else() -> None:
    example = rendered(dialogue("hi?", "yo"))
    text = "[user]hi?#\n[assistant]yo#\n"
    assert example.ids == tuple(encode(text))
    assert [n for n, is_taught in enumerate(example.mask) if is_taught] == [22, 23, 24]
    assert text[22:25] == "yo#"
    assert (example.supervised, example.turns, example.stopped_turns) == (3, 1, 1)
    assert (example.rendered_tokens, example.truncated) == (26, False)


def test_every_answer_of_a_dialogue_is_taught_with_its_stop_token() -> None:
    example = rendered((Message("system", "be"), *dialogue("a?", "one", "b?", "two", "c?", "three")))
    assert taught(example) == "one#two#three#"
    assert (example.turns, example.stopped_turns) == (3, 3)


def test_question_after_the_last_answer_is_there_but_not_taught() -> None:
    example = rendered(dialogue("a?", "one", "b?"))
    assert example.ids == tuple(encode(chatml(dialogue("a?", "one", "b?"), False)))
    assert taught(example) == "one#"


def test_conversation_without_an_answer_teaches_nothing() -> None:
    example = rendered(dialogue("a?"))
    assert (example.supervised, example.turns, example.stopped_turns) == (0, 0, 0)


def test_empty_answer_still_teaches_to_stop() -> None:
    assert taught(rendered(dialogue("a?", ""))) == "#"


@pytest.mark.parametrize(
    ("max_tokens", "left", "stopped"),
    [(26, "yo#", 1), (25, "yo#", 1), (24, "yo", 0), (23, "y", 0), (22, "", 0), (1, "", 0)],
)
def test_truncation_loses_the_stop_token_and_says_so(max_tokens: int, left: str, stopped: int) -> None:
    example = rendered(dialogue("hi?", "yo"), max_tokens)
    assert taught(example) == left
    assert (example.turns, example.stopped_turns) == (1, stopped)
    assert (example.rendered_tokens, example.truncated) == (26, max_tokens < 26)
    assert len(example.ids) == len(example.mask) == max_tokens


def test_truncation_counts_the_turns_that_still_stop() -> None:
    whole = rendered(dialogue("a?", "one", "b?", "two"))
    cut = rendered(dialogue("a?", "one", "b?", "two"), whole.rendered_tokens - 2)
    assert (cut.turns, cut.stopped_turns) == (2, 1)


def test_template_without_stop_tokens_gives_no_stopped_turn() -> None:
    example = render(dialogue("a?", "one"), stopless, encode, stop_ids=STOP_IDS, max_tokens=MANY)
    assert (example.turns, example.stopped_turns) == (1, 0)
    assert taught(example) == "one\n"


def test_stop_token_of_a_question_does_not_count_as_the_answers() -> None:
    messages = dialogue("a#?", "one")
    example = render(messages, stopless, encode, stop_ids=frozenset({ord("?")}), max_tokens=MANY)
    assert example.stopped_turns == 0


def test_template_that_rewrites_history_is_refused_with_the_place() -> None:
    messages = dialogue("a?", "<think>hm</think>one", "b?", "two")
    said = r"rewrites earlier text when message 4 is added: '<think>hm.*' becomes 'one#"
    with pytest.raises(TemplateError, match=said):
        segments(messages, forgetful, is_stop)
    assert taught(render(messages[:2], forgetful, encode, stop_ids=STOP_IDS, max_tokens=MANY)).startswith("<think>")


def test_generation_prompt_that_the_answer_does_not_follow_is_refused() -> None:
    def other_prompt(messages: Sequence[Message], add_generation_prompt: bool) -> str:
        return chatml(messages, False) + ("[model]" if add_generation_prompt else "")

    with pytest.raises(TemplateError, match=r"message 2 is added: 'model\]' becomes 'assistant\]one#"):
        segments(dialogue("a?", "one"), other_prompt, is_stop)


def closing(messages: Sequence[Message], add_generation_prompt: bool) -> str:
    """End a conversation that is over with one more stop token, as Phi's template does."""
    return chatml(messages, add_generation_prompt) + ("" if add_generation_prompt else STOP)


def test_token_that_closes_a_conversation_is_there_once_and_not_taught() -> None:
    messages = dialogue("a?", "one", "b?", "two")
    example = render(messages, closing, encode, stop_ids=STOP_IDS, max_tokens=MANY)
    assert example.ids == tuple(encode(closing(messages, False)))
    assert taught(example) == "one#two#"
    assert (example.turns, example.stopped_turns) == (2, 2)


def test_stop_token_inside_an_answer_does_not_end_it() -> None:
    assert taught(rendered(dialogue("a?", "one # two"))) == "one # two#"


def test_answer_that_is_not_to_be_taught_is_part_of_the_question() -> None:
    first, *rest = dialogue("a?", "one", "b?", "two")
    kept = Message("assistant", "one", taught=False)
    example = rendered((first, kept, *rest[1:]))
    assert example.ids == rendered((first, *rest)).ids
    assert taught(example) == "two#"
    assert (example.turns, example.stopped_turns) == (1, 1)


@pytest.mark.parametrize(
    ("max_tokens", "left", "stopped"), [(MANY, "ello#", 1), (6, "ello#", 1), (5, "ello", 0), (1, "", 0)]
)
def test_plain_text_is_taught_but_for_its_first_token_up_to_the_end_token(
    max_tokens: int, left: str, stopped: int
) -> None:
    example = text_example(encode("hello"), end_id=ord(STOP), max_tokens=max_tokens)
    assert taught(example) == left
    assert (example.turns, example.stopped_turns, example.rendered_tokens) == (1, stopped, 6)


contents = st.text(st.characters(codec="utf-8", exclude_characters=STOP), max_size=8)
dialogues = st.lists(contents, min_size=2, max_size=8).map(lambda turns: dialogue(*turns))


@given(dialogues)
def test_stretches_put_together_are_the_rendered_conversation(messages: tuple[Message, ...]) -> None:
    stretches = segments(messages, chatml, is_stop)
    assert "".join(text for text, _ in stretches) == chatml(messages, False)
    answers = [message.content for message in messages if message.role == "assistant"]
    assert [text for text, answer in stretches if answer] == [f"{answer}{STOP}\n" for answer in answers]


@given(dialogues)
def test_prompt_of_generation_is_a_prefix_of_the_supervised_example(messages: tuple[Message, ...]) -> None:
    last = max(n for n, message in enumerate(messages) if message.role == "assistant")
    prompt = encode(chatml(messages[:last], True))
    example = rendered(messages)
    assert list(example.ids[: len(prompt)]) == prompt
    answer = encode(messages[last].content + STOP)
    assert list(example.ids[len(prompt) :][: len(answer)]) == answer
    assert all(example.mask[len(prompt) :][: len(answer)])
    assert not any(example.mask[len(prompt) + len(answer) :])


@given(dialogues)
def test_taught_tokens_are_the_answers_and_one_stop_token_each(messages: tuple[Message, ...]) -> None:
    example = rendered(messages)
    answers = [message.content for message in messages if message.role == "assistant"]
    assert taught(example) == "".join(answer + STOP for answer in answers)
    assert example.turns == example.stopped_turns == len(answers)


@given(dialogues, st.integers(1, 120))
def test_truncated_example_is_the_start_of_the_whole_one(messages: tuple[Message, ...], max_tokens: int) -> None:
    whole, cut = rendered(messages), rendered(messages, max_tokens)
    assert cut.ids == whole.ids[:max_tokens]
    assert cut.mask == whole.mask[:max_tokens]
    assert cut.truncated == (whole.rendered_tokens > max_tokens)
    assert cut.stopped_turns == taught(cut).count(STOP)


def test_rendered_rows_read_back_as_they_were_written() -> None:
    rich = (Message("user", "Grün \u2028?"), Message("assistant", "", '{"tool_calls": []}', taught=False))
    conversation = Conversation(rich, '[{"type": "function"}]')
    example = Example((5, 6, 7), ((1, 2), (2, 3)), turns=2, stopped_turns=1, rendered_tokens=9, copies=3)
    line = rendered_line(example, conversation, "a.jsonl:1")
    assert line.count(b"\n") == 1
    assert read_rendered(line) == (example, conversation, "a.jsonl:1")
    assert example.mask == (False, True, True)
    assert example.supervised == 2
