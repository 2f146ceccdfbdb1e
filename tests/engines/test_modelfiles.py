"""Modelfiles: what Ollama would make of a conversation is what the chat template of training makes of it."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prepared import describe as describe_base

from loragate.artifact_work import DescribeChat
from loragate.bundle import why_not_named
from loragate.child import ignore
from loragate.engines import chat_template
from loragate.engines.language_model import template_of
from loragate.modelfile import Asked, go_template, modelfile, modelfile_name
from loragate.rendering import Example, Template, TemplateError, common_system, rendered_line
from loragate.rows import Conversation, Message
from loragate.turns import Chat, conversation, find_turns

START = "<s>"
LLAMA_3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set messages = messages[1:] %}{% endif %}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + (system + '\n\n' if system is defined and loop.first else '') + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + '</s>' }}{% endif %}{% endfor %}"
)
BRACES = (
    "{% for message in messages %}{{ '{{\"' + message['role'] + '\": {' }}{{ message['content'] }}{{ '}}\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '{\"assistant\": {' }}{% endif %}"
)
LAST_ONLY = (  # the system message goes into the last question, as in some of Mistral's
    "{% for m in messages %}{% if m['role'] != 'system' %}{% if loop.last and messages[0]['role'] == 'system' %}"
    "{{ messages[0]['content'] }}{% endif %}[{{ m['content'] }}]{% endif %}{% endfor %}"
)
OWN: Mapping[str, str] = {"llama 3": LLAMA_3, "gemma": GEMMA, "mistral": MISTRAL, "braces": BRACES}
FILES = sorted((Path(sys.prefix) / "share" / "loragate" / "llama.cpp" / "templates").glob("*.jinja"))
SAID = ('What?\n\nIt is "odd": {{ .System }} and {% x %}.', "Größe 😀", "So.", "{", "}}", "Yes, 'so'", "End?")


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """What of a tokenizer a chat template sees."""

    template: str
    special_tokens_map: Mapping[str, str] = field(default_factory=lambda: {"bos_token": START, "eos_token": "</s>"})

    def get_chat_template(self, tools: object) -> str:  # noqa: ARG002
        return self.template


def jinja(template: str) -> Template:
    return chat_template.refusing(template_of(Tokenizer(template)))


def chat(template: str) -> Chat:
    return find_turns(template, jinja(template))


# Go's template language as far as Modelfiles of ours use it (pkg.go.dev/text/template), over Ollama's values.

ACTION = re.compile(r"\{\{ (.*?) \}\}", re.DOTALL)
Values = dict[str, Any]


def tokens(text: str) -> Iterator[tuple[str, str]]:
    """Cut a template into texts and actions at the first {{, as Go's lexer does."""
    while (at := text.find("{{")) >= 0:
        yield "text", text[:at]
        action = ACTION.match(text, at)
        assert action, f"Go would stop at {text[at : at + 30]!r}"
        yield "action", action[1]
        text = text[action.end() :]
    yield "text", text


def evaluated(term: str, values: Values) -> Any:
    if term.startswith('"'):
        return re.sub(r"\\(.)", lambda found: {"n": "\n"}.get(found[1], found[1]), term[1:-1])
    return values[term]


def holds(condition: str, values: Values) -> bool:
    if condition.startswith(("eq ", "ne ")):
        _, one, other = condition.split(" ")
        return (evaluated(one, values) == evaluated(other, values)) == condition.startswith("eq")
    return bool(evaluated(condition, values))


def run(items: list[tuple[str, str]], values: Values, live: bool = True) -> str:
    """Evaluate up to the `else` or `end` that ends the block; that action is left in place."""
    out = ""
    while items:
        kind, what = items[0]
        if kind == "action" and (what == "end" or what.startswith("else")):
            return out
        items.pop(0)
        if kind == "text":
            out += what if live else ""
        elif what.startswith("if "):
            out += branch(items, what.removeprefix("if "), values, live)
        elif what.startswith("range "):
            body, each = list(items), items
            for message in values[what.removeprefix("range ")] if live else []:
                each = list(body)
                inner = values | {".Role": message.role, ".Content": message.content}
                out += run(each, inner)
                values |= {name: value for name, value in inner.items() if name.startswith("$")}
            run(items, values | {".Role": "", ".Content": ""}, live=False)
            assert items.pop(0) == ("action", "end")
        elif assigned := re.fullmatch(r"(\$\w+) :?= (\".*\")", what):
            values |= {assigned[1]: evaluated(assigned[2], values)} if live else {}
        else:
            out += str(evaluated(what, values)) if live else ""
    return out


def branch(items: list[tuple[str, str]], condition: str, values: Values, live: bool) -> str:
    taken = live and holds(condition, values)
    out = run(items, values, taken)
    _, ends = items.pop(0)
    if ends.startswith("else if "):
        return out + branch(items, ends.removeprefix("else if "), values, live and not taken)
    if ends == "else":
        out += run(items, values, live and not taken)
        items.pop(0)
    return out


def ollama(template: str, messages: Sequence[Message]) -> str:
    """What Ollama makes of a conversation whose roles take turns."""
    system = "\n\n".join(message.content for message in messages if message.role == "system")
    return run(list(tokens(template)), {".System": system, ".Messages": messages})


def commands(text: str) -> dict[str, list[str]]:
    """Read a Modelfile as Ollama does (parser/parser.go): a value ends with the line where its quotes are closed."""
    found: dict[str, list[str]] = {}
    lines = iter(text.splitlines(keepends=True))
    for line in lines:
        if line.startswith("#") or not line.strip():
            continue
        name, _, value = line.partition(" ")
        if name == "PARAMETER":
            name, _, value = value.partition(" ")
        quotes = next((each for each in ('"""', '"') if value.startswith(each)), "")
        while quotes and not (value.strip().endswith(quotes) and len(value.strip()) >= 2 * len(quotes)):
            value += next(lines)
        found.setdefault(name, []).append(value.strip().removeprefix(quotes).removesuffix(quotes))
    return found


def conversations(takes_system: bool) -> Iterator[tuple[Message, ...]]:
    for system in (None, "Be brief.", SAID[0]) if takes_system else (None,):
        for turns in (1, 3, 5, 7):
            yield conversation(SAID[:turns], system)
            yield conversation([f"text {at}" for at in range(turns)], system)


def require_equal(found: Chat, template: Template, start: str = "") -> None:
    assert found.turns is not None, found.why_not
    written = go_template(found.turns)
    for messages in conversations(found.turns.with_system is not None):
        assert ollama(written, messages) == template(messages, True)


@pytest.mark.parametrize("name", OWN)
def test_ollama_asks_as_the_chat_template_does(name: str) -> None:
    found = chat(OWN[name])
    require_equal(found, jinja(OWN[name]))
    assert found.turns is not None
    assert (found.turns.with_system is None) == (name == "gemma")
    assert found.strips == (name in ("llama 3", "gemma"))


def test_of_every_chat_template_that_llama_cpp_keeps_ollama_s_is_the_same_or_left_out_with_a_reason() -> None:
    found = {path.name: chat(path.read_text(encoding="utf-8")) for path in FILES}
    for path in FILES:
        if found[path.name].turns:
            require_equal(found[path.name], jinja(path.read_text(encoding="utf-8")))
    left_out = {name: each.why_not for name, each in found.items() if not each.turns}
    assert all(left_out.values())
    assert len(left_out) < len(FILES) / 4
    for family in ("Qwen2.5-7B", "gemma-2", "Llama-3.1", "Phi-3.5", "SmolLM3"):
        assert any(family in name for name in found.keys() - left_out.keys()), family
    assert any("the date" in why for why in left_out.values())


def test_the_modelfile_of_the_tiny_model_says_how_it_was_taught_to_be_asked(tiny_model: Path) -> None:
    base = describe_base(tiny_model)
    asked = chat_template.describe(DescribeChat(base), ignore)
    said = commands(modelfile("model-q4_k_m.gguf", asked))
    assert said.keys() == {"FROM", "TEMPLATE", "stop"}
    assert (said["FROM"], said["stop"]) == (["./model-q4_k_m.gguf"], ["<|im_end|>"])
    assert "You are a helpful AI assistant named SmolLM" in said["TEMPLATE"][0]
    rendered = jinja(base.template)
    for messages in conversations(takes_system=True):
        assert ollama(said["TEMPLATE"][0], messages) == rendered(messages, True)


def test_a_beginning_that_the_runtime_adds_is_not_written_twice() -> None:
    for start in ("", START):
        (template,) = commands(modelfile("model-f16.gguf", Asked(chat(MISTRAL), start, ("</s>",))))["TEMPLATE"]
        for messages in conversations(takes_system=True):
            assert start + ollama(template, messages) == jinja(MISTRAL)(messages, True)


def test_a_conversation_that_ends_with_an_answer_is_to_be_gone_on_with() -> None:
    found = chat(LLAMA_3).turns
    assert found is not None
    messages = conversation(["Hello", "It is"])
    whole = jinja(LLAMA_3)(messages, False)
    assert ollama(go_template(found), messages) == whole.removesuffix("<|eot_id|>")


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (LAST_ONLY, "does not repeat what is said once and in order"),
        ("{{ strftime_now('%d') }}" + MISTRAL, "tells the date"),
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "does not repeat what is said"),
        (
            "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
            "no fixed texts between turns",
        ),
        ("{{ undefined_thing.field }}", "refuses a conversation"),
        ('{% for m in messages %}"""{{ m["content"] }}{% endfor %}', "characters that a Modelfile cannot"),
        ("{% for m in messages %}\u200b{{ m['content'] }}{% endfor %}", "characters that a Modelfile cannot"),
    ],
    ids=["system last", "date", "upper case", "counts", "fails", "quotes", "invisible"],
)
def test_a_template_without_such_a_form_is_left_out_and_the_reason_told(template: str, why: str) -> None:
    written = modelfile("model-f16.gguf", Asked(chat(template), "", ("<end>",)))
    assert why in next(line for line in written.splitlines() if line.startswith("# No TEMPLATE: "))
    assert commands(written) == {"FROM": ["./model-f16.gguf"], "stop": ["<end>"]}


def test_what_the_chat_template_does_to_contents_is_told() -> None:
    thinking = "{% for m in messages %}[{{ m['content'].split('</think>')[-1] }}]{% endfor %}"
    assert "thoughts" in modelfile("model-f16.gguf", Asked(chat(thinking), "", ()))
    assert "white space" in modelfile("model-f16.gguf", Asked(chat(LLAMA_3), "", ()))
    assert "takes no system message" in modelfile("model-f16.gguf", Asked(chat(GEMMA), "", ()))


@pytest.mark.parametrize(
    ("systems", "common"),
    [(["Be brief."] * 2, "Be brief."), (["Be brief.", "Be long."], ""), ([None, "Be brief."], ""), ([], "")],
    ids=["same", "several", "not all", "no rows"],
)
def test_a_system_message_is_written_where_every_training_row_has_it(systems: list[str | None], common: str) -> None:
    rows = [Conversation(conversation(["Hello", "Yes"], system)) for system in systems]
    lines = [rendered_line(Example((1, 2), (), 1, 1, 2), row, "train.jsonl:1") for row in rows]
    assert common_system(lines) == common
    said = commands(modelfile("model-f16.gguf", Asked(chat(LLAMA_3), "", (), common_system(lines))))
    assert said.get("SYSTEM", [""]) == [common]


def test_names_are_ones_that_a_bundle_allows() -> None:
    names = [modelfile_name(f"model-{name}.gguf") for name in ("f16", "q8_0", "q4_k_m")]
    assert names == ["Modelfile-f16.txt", "Modelfile-q8_0.txt", "Modelfile-q4_k_m.txt"]
    assert [why_not_named(f"gguf/{name}") for name in names] == ["", "", ""]


def test_an_error_of_a_template_is_one_of_ours() -> None:
    with pytest.raises(TemplateError, match="System role not supported"):
        jinja(GEMMA)(conversation(["Hello"], "Be brief."), True)
