"""Chat templates of real models: what is taught under each, and which conversations each cannot be taught by.

The templates come with the source of the llama.cpp that set-up has built. Text is tokenised one token a character and
one a control token, so that every position can be told.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import _compile_jinja_template

from loragate.rendering import Example, Template, TemplateError, render
from loragate.rows import Message

FOLDER = Path(sys.prefix) / "share" / "loragate" / "llama.cpp" / "templates"
CONTROL = re.compile(r"(<\|[a-z_]+\|>|<(?:start|end)_of_turn>|</?s>|<bos>|\[/?INST\])")
MINIMIND = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}\
{{ '<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' }}{% endif %}\
{{ m.content + '<|im_end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}{% endif %}"""
"""Of MiniMind's shape: an answer always has a thinking block, and the generation prompt closes an empty one."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model's template, where it is found, and the tokens that end its answers."""

    file: str
    bos: str
    stops: tuple[str, ...]


MODELS = {
    "Qwen2.5": Model("Qwen-Qwen2.5-7B-Instruct", "", ("<|im_end|>", "<|endoftext|>")),
    "Qwen3": Model("Qwen-Qwen3-0.6B", "", ("<|im_end|>", "<|endoftext|>")),
    "Llama-3.1": Model("meta-llama-Llama-3.1-8B-Instruct", "<|begin_of_text|>", ("<|eot_id|>", "<|end_of_text|>")),
    "Mistral": Model("mistralai-Mistral-Nemo-Instruct-2407", "<s>", ("</s>",)),
    "Gemma": Model("google-gemma-2-2b-it", "<bos>", ("<end_of_turn>",)),
    "Phi": Model("microsoft-Phi-3.5-mini-instruct", "<s>", ("<|end|>", "<|endoftext|>")),
    "SmolLM3": Model("HuggingFaceTB-SmolLM3-3B", "", ("<|im_end|>",)),
    "MiniMind": Model("", "<|im_start|>", ("<|im_end|>",)),
}
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"


class Vocabulary:
    """Characters and control tokens as ids, and back."""

    def __init__(self) -> None:
        self.control: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in CONTROL.split(text):
            known = CONTROL.fullmatch(part)
            ids += [self.id(part)] if known else map(ord, part)
        return ids

    def id(self, token: str) -> int:
        return self.control.setdefault(token, 0x110000 + len(self.control))

    def decode(self, ids: Sequence[int]) -> str:
        names = {number: token for token, number in self.control.items()}
        return "".join(names.get(number) or chr(number) for number in ids)


VOCABULARY = Vocabulary()


def template_of(model: Model) -> Template:
    source = (FOLDER / f"{model.file}.jinja").read_text(encoding="utf-8") if model.file else MINIMIND
    compiled = _compile_jinja_template(source)

    def apply(messages: Sequence[Message], prompt: bool) -> str:
        turns = [message.for_template() for message in messages]
        tokens = {"bos_token": model.bos, "eos_token": model.stops[-1]}
        return str(compiled.render(messages=turns, tools=None, add_generation_prompt=prompt, **tokens))

    return apply


TEMPLATES = {name: template_of(model) for name, model in MODELS.items()}


def rendered(name: str, messages: Sequence[Message]) -> Example:
    stops = frozenset(map(VOCABULARY.id, MODELS[name].stops))
    return render(messages, TEMPLATES[name], VOCABULARY.encode, stop_ids=stops, max_tokens=100_000)


def taught(example: Example) -> str:
    return VOCABULARY.decode([token for token, is_taught in zip(example.ids, example.mask, strict=True) if is_taught])


def dialogue(*turns: str) -> tuple[Message, ...]:
    return tuple(Message(("user", "assistant")[n % 2], turn) for n, turn in enumerate(turns))


SYSTEM = Message("system", "Be brief.")
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=12)


@pytest.mark.parametrize("answer", ["t", "e", "d", "end", "text", "endoftext", ">", "|>", "<|", "<|end|>"])
def test_an_answer_that_stands_in_a_closing_token_too_is_taught_up_to_its_own_stop(answer: str) -> None:
    assert taught(rendered("Phi", dialogue("0", answer))) == answer + MODELS["Phi"].stops[0]


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(question=TEXT, answer=TEXT)
def test_answer_and_its_stop_token_are_taught_after_the_prompt_of_generation(
    name: str, question: str, answer: str
) -> None:
    messages = dialogue(question, answer)
    example = rendered(name, messages)
    prompt = VOCABULARY.encode(TEMPLATES[name](messages[:1], True))
    assert list(example.ids) == VOCABULARY.encode(TEMPLATES[name](messages, False))
    assert list(example.ids[: len(prompt)]) == prompt
    assert not any(example.mask[: len(prompt)])
    thought = EMPTY_THOUGHT if name == "Qwen3" else ""
    assert taught(example) == thought + answer + MODELS[name].stops[0]
    assert (example.turns, example.stopped_turns) == (1, 1)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "Qwen3"])
@settings(max_examples=50, deadline=None)
@given(turns=st.lists(TEXT, min_size=4, max_size=4))
def test_every_answer_of_a_dialogue_is_taught_with_one_stop_token(name: str, turns: list[str]) -> None:
    messages = dialogue(*turns)
    example = rendered(name, messages)
    stop = MODELS[name].stops[0]
    assert list(example.ids) == VOCABULARY.encode(TEMPLATES[name](messages, False))
    assert taught(example) == turns[1] + stop + turns[3] + stop
    assert (example.turns, example.stopped_turns) == (2, 2)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in {"Gemma", "Mistral"}])
def test_system_text_is_read_and_not_taught(name: str) -> None:
    example = rendered(name, (SYSTEM, *dialogue("a?", "one")))
    assert "Be brief." in VOCABULARY.decode(example.ids)
    assert taught(example).endswith(f"one{MODELS[name].stops[0]}")
    assert "Be brief." not in taught(example)


@pytest.mark.parametrize("name", MODELS)
def test_there_is_at_most_one_token_that_begins_a_text(name: str) -> None:
    if MODELS[name].bos and name != "MiniMind":  # whose bos begins every turn
        assert rendered(name, dialogue("a?", "one")).ids.count(VOCABULARY.id(MODELS[name].bos)) <= 1


def test_template_without_a_system_role_says_so() -> None:
    with pytest.raises(jinja2.TemplateError, match="System role not supported"):
        rendered("Gemma", (SYSTEM, *dialogue("a?", "one")))


def test_template_that_moves_the_system_text_is_refused() -> None:
    with pytest.raises(TemplateError, match="rewrites earlier text when message 3 is added"):
        rendered("Mistral", (SYSTEM, *dialogue("a?", "one")))


@pytest.mark.parametrize("thought", ["", "<think>hm</think>"])
def test_template_that_drops_earlier_thoughts_is_refused_with_the_reason(thought: str) -> None:
    with pytest.raises(TemplateError, match="rewrites earlier text when message 4 is added: '<think>"):
        rendered("Qwen3", dialogue("a?", f"{thought}one", "b?", "two"))


def test_thoughts_of_a_single_answer_are_taught() -> None:
    asked = Message("user", "a?")
    told = Message("assistant", "one", '{"reasoning_content": "hm"}')
    assert taught(rendered("Qwen3", (asked, told))) == "<think>\nhm\n</think>\n\none<|im_end|>"
