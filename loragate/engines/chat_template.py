"""How a model is asked: what its chat template puts between turns, and what begins and ends a text."""

from collections.abc import Sequence

import jinja2

from loragate.artifact_work import DescribeChat
from loragate.child import Progress, Report
from loragate.engines.language_model import load_tokenizer, template_of
from loragate.modelfile import Asked
from loragate.rendering import Template, TemplateError
from loragate.rows import Message
from loragate.turns import find_turns


def describe(request: DescribeChat, report: Report) -> Asked:
    """Find the turns of the chat template, and the texts of the tokens around them."""
    base, tokenizer = request.base, load_tokenizer(request.base)
    chat = find_turns(base.template, refusing(template_of(tokenizer)))
    start = str(tokenizer.bos_token) if base.adds_start else ""
    stops = tuple(str(tokenizer.decode([stop])) for stop in base.stop_ids)
    report(Progress(1, 1, "chat template"))
    return Asked(chat, start, tuple(stop for stop in stops if stop))


def refusing(template: Template) -> Template:
    """The same template; what it raises of its own is a TemplateError."""

    def apply(messages: Sequence[Message], prompt: bool) -> str:
        try:
            return template(messages, prompt)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise TemplateError(f"the chat template refuses a conversation: {error}") from None

    return apply
