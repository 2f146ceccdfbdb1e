"""Ollama's Modelfile for a GGUF file: what it is, how it is asked, and what ends its answers.

Ollama renders Go templates and not the Jinja of chat templates, so the turns of the chat template are written as one.
Ollama merges messages of one role that follow each other, gives all system messages as `.System`, and adds the token of
a beginning by itself where the GGUF file says so (github.com/ollama/ollama, template/template.go).

A value in three double quotes ends where three of them end a line; nothing in it is escaped, and characters that are
not printable are dropped (the same, parser/parser.go): a template with either is left out.
"""

import json
from dataclasses import dataclass

from loragate.turns import Chat, Turns

QUOTES = '"""'
OPEN = "{{"


@dataclass(frozen=True, slots=True)
class Asked:
    """How a model is asked and what ends its answers.

    Attributes:
        chat: What is known of its chat template.
        start: Text of the token that the runtime begins every text with by itself; empty where it adds none.
        stops: Texts of the tokens that end an answer.
        system: System message that every training row begins with; empty where there is none such.
    """

    chat: Chat
    start: str
    stops: tuple[str, ...]
    system: str = ""


def modelfile(file: str, asked: Asked) -> str:
    """Write the Modelfile of a GGUF file that lies beside it."""
    return "\n".join(
        [
            f"# ollama create NAME -f {modelfile_name(file)}",
            f"FROM ./{file}",
            *_template(asked),
            *_system(asked),
            *(f"PARAMETER stop {_quoted(stop)}" for stop in asked.stops if _quotable(stop)),
            "",
        ]
    )


def _template(asked: Asked) -> list[str]:
    turns, why_not = asked.chat.turns, asked.chat.why_not
    text = go_template(turns.strip_start(asked.start)) if turns else ""
    if turns and not _quotable(text):
        turns, why_not = None, "the chat template holds characters that a Modelfile cannot"
    if turns is None:
        return [
            f"# No TEMPLATE: {' '.join(why_not.split())}.",
            "# Ollama goes by the chat template inside the GGUF file, as far as it knows its kind; look at prompts.",
        ]
    told = ["# The chat template of training, in Ollama's own language; without tools."]
    if turns.with_system is None:
        told.append("# The chat template takes no system message: one that is given is left out.")
    if asked.chat.strips:
        told.append("# The chat template takes white space off the ends of what is said; Ollama does not.")
    if asked.chat.drops_thoughts:
        told.append(
            "# The chat template leaves thoughts (<think>) out of earlier answers; Ollama keeps what it is given."
        )
    return [*told, f"TEMPLATE {QUOTES}{text}{QUOTES}"]


def _system(asked: Asked) -> list[str]:
    """What a model that was never asked without a system message is asked with, unless another one is given."""
    if not asked.system or not _quotable(asked.system):
        return []
    return ["# Every training row has this system message.", f"SYSTEM {QUOTES}{asked.system}{QUOTES}"]


def go_template(turns: Turns) -> str:
    """Write turns as a Go template over Ollama's `.System` and `.Messages`.

    A conversation that ends with an answer is one that the model is to go on with: nothing follows it.
    """
    start = _literal(turns.without_system)
    if turns.with_system is not None:
        before, after = map(_literal, turns.with_system)
        start = f"{{{{ if .System }}}}{before}{{{{ .System }}}}{after}{{{{ else }}}}{start}{{{{ end }}}}"
    return (
        f'{start}{{{{ $last := "" }}}}{{{{ range .Messages }}}}'
        f'{{{{ if eq .Role "user" }}}}{{{{ if $last }}}}{_literal(turns.again)}{{{{ end }}}}{{{{ .Content }}}}'
        f'{{{{ $last = "user" }}}}'
        f'{{{{ else if eq .Role "assistant" }}}}{_literal(turns.answer)}{{{{ .Content }}}}'
        f'{{{{ $last = "assistant" }}}}{{{{ end }}}}{{{{ end }}}}'
        f'{{{{ if ne $last "assistant" }}}}{_literal(turns.prompt)}{{{{ end }}}}'
    )


def _literal(text: str) -> str:
    """Text as it stands, or as a constant of Go where it could be read as the beginning of an action."""
    if OPEN not in text and not text.endswith("{"):
        return text
    return f"{OPEN} {json.dumps(text, ensure_ascii=False)} }}}}"


def _quotable(text: str) -> bool:
    """Whether a value comes out of a Modelfile as it went in."""
    return QUOTES not in text and all(each.isprintable() or each in "\n\r\t" for each in text)


def _quoted(text: str) -> str:
    return f"{QUOTES}{text}{QUOTES}" if '"' in text else f'"{text}"'


def modelfile_name(file: str) -> str:
    """The Modelfile's name beside a GGUF file, in a form that a bundle allows."""
    return f"Modelfile-{file.removesuffix('.gguf').removeprefix('model-')}.txt"
