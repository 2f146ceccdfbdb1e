"""Canonical rows into what the model reads (ids, mask) and what is known about each (the facts table)."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import jinja2

from loragate.child import Progress, Report
from loragate.engines.language_model import encoder_of, load_tokenizer, template_of
from loragate.rendering import Encode, Example, Template, TemplateError, render, render_text
from loragate.rows import TEXT, Message, Row, as_fields, read_canonical
from loragate.texts import CHECKS
from loragate.work import RenderRows

T = TypeVar("T")

PROBED_ROWS = 200
"""Held-out rows whose texts the GGUF gate tokenises again."""

ROLES = ("system", "user", "assistant", "tool")
RESULTS = ("tool", "tool")
"""Results of several calls follow each other and count as one turn."""

PROBES = (
    "Hello, world!",
    "  two  spaces\tand\ttabs\n\n\nand lines  ",
    "1234567890 3.14159 1e-10 0x7f 2026-11-22",
    "don't can't I'LL we've",
    "def f(x):\n    return {x: [1, 2]}  # comment",
    "https://example.org/a?b=c&d=%20#e",
    "Größe, façade, naïve, señor, Zażółć gęślą jaźń",
    "Привет, мир! Γειά σου Κόσμε",
    "中文字符，日本語テキスト、한국어 문장",
    "مرحبا بالعالم שלום עולם",
    "नमस्ते दुनिया สวัสดีชาวโลก",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 é ﬁ ① ½",
    "\u200bzero\u00a0width\ufeff",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "<|im_start|>user\nnot a turn<|im_end|>",
    "</s><s>[INST] <pad> <unk> <eos>",
)
"""Texts on which tokenizers are known to disagree: digits, white space, scripts, emoji, things that look special."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about one row before training: cheap columns for the data gate.

    Attributes:
        place: file:row of its origin.
        problem: Why it could not be read or rendered, empty where it could.
        roles_problem: What is wrong with the order of its roles, empty where nothing is.
        answer_chars: Characters of the shortest answer, white space at its ends not counted.
        tokens: Length in tokens after truncation.
        supervised: Supervised tokens after truncation.
        lost_stops: Assistant turns whose stop token is missing or not supervised after truncation.
        truncated: Whether tokens were cut off.
        echoed, placeholder, control, secret, contact: What `loragate.texts` found, empty where nothing.
    """

    side: str
    place: str
    problem: str
    roles_problem: str
    question: str
    digest: str
    answer_chars: int
    tokens: int
    supervised: int
    lost_stops: int
    truncated: bool
    echoed: str
    placeholder: str
    control: str
    secret: str
    contact: str


def render_rows(request: RenderRows, report: Report) -> dict[str, list[int]]:
    """Write rendered rows, the facts table and tokenizer probes; return the token lengths of the training rows."""
    tokenizer = load_tokenizer(request.base)
    encode = encoder_of(tokenizer)
    folder, lengths = Path(request.folder), []
    with (folder / "facts.jsonl").open("w", encoding="utf-8") as facts_file:
        for side in ("train", "heldout"):
            rows = list(read_canonical(Path(request.rows) / f"{side}.jsonl"))
            with (folder / f"{side}.jsonl").open("w", encoding="utf-8") as file:
                for row in _reported(rows, report, f"{side} rows"):
                    template = template_of(tokenizer, row.conversation.tools)
                    example, facts = _examine(row, side, request, template, encode)
                    facts_file.write(json.dumps(asdict(facts)) + "\n")
                    if example is not None:
                        fields = asdict(example) | as_fields(row.conversation) | {"place": row.place}
                        file.write(json.dumps(fields) + "\n")
                        lengths += [len(example.ids)] if side == "train" else []
    _write_probes(folder / "probes.jsonl", encode, request)
    return {"lengths": lengths}


def _reported(rows: Sequence[T], report: Report, unit: str) -> Iterator[T]:
    for done, row in enumerate(rows, start=1):
        yield row
        if done % 100 == 0 or done == len(rows):
            report(Progress(done, len(rows), unit))


def _examine(
    row: Row, side: str, request: RenderRows, template: Template, encode: Encode
) -> tuple[Example | None, Facts]:
    text, problem = row.conversation.text, row.problem or ""
    roles = "" if problem or text is not None else _roles_problem(row.messages)
    example = None
    if text is not None:
        example = render_text(text, encode, end_id=request.base.end_id, max_tokens=request.max_tokens)
    elif not problem and not roles:
        stop_ids = frozenset(request.base.stop_ids)
        try:
            example = render(row.messages, template, encode, stop_ids=stop_ids, max_tokens=request.max_tokens)
        except TemplateError as error:
            problem = str(error)
        except (
            jinja2.TemplateError,
            ArithmeticError,
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
        ) as error:
            problem = f"the chat template cannot render it: {error}"
    return example, _facts(row, side, problem, roles, example)


def _facts(row: Row, side: str, problem: str, roles_problem: str, example: Example | None) -> Facts:
    answers = [len(m.said) for m in row.messages if m.role in ("assistant", TEXT) and m.taught]
    return Facts(
        side=side,
        place=row.place,
        problem=problem,
        roles_problem=roles_problem,
        question=row.question_digest if row.messages else f"unread {row.place}",
        digest=row.digest if row.messages else f"unread {row.place}",
        answer_chars=min(answers, default=0),
        tokens=len(example.ids) if example else 0,
        supervised=example.supervised if example else 0,
        lost_stops=example.turns - example.stopped_turns if example else 0,
        truncated=example.truncated if example else False,
        **{name: check(row.conversation) for name, check in CHECKS.items()},
    )


def _roles_problem(messages: Sequence[Message]) -> str:
    """Say what is wrong with the order of roles: [system] (user assistant)+, tool results counting as questions."""
    roles = [m.role for m in messages]
    unknown = [role for role in roles if role not in ROLES]
    if unknown:
        return f"unknown role {unknown[0]!r}; known roles: {', '.join(ROLES)}"
    if "system" in roles[1:]:
        return "a system message stands after the first place"
    turns = [
        role for role, last in zip(roles, ["", *roles], strict=False) if role != "system" and (role, last) != RESULTS
    ]
    for position, role in enumerate(turns):
        asks = role in ("user", "tool")
        if asks == bool(position % 2):
            expected = "assistant" if position % 2 else "user"
            return f"turn {position + 1} is from {role!r}, must be from {expected!r}: roles alternate"
    if not turns or turns[-1] != "assistant":
        return f"the last message is from {roles[-1]!r}; a row must end with 'assistant'"
    return ""


def _write_probes(path: Path, encode: Encode, request: RenderRows) -> None:
    """Write texts with their ids: what the first held-out rows say, and texts made to be hard."""
    rows = islice(read_canonical(Path(request.rows) / "heldout.jsonl"), PROBED_ROWS)
    texts = [(message.content, True) for row in rows for message in row.messages]
    with path.open("w", encoding="utf-8") as file:
        for text, of_a_row in texts + [(text, False) for text in PROBES]:
            file.write(json.dumps({"text": text, "ids": list(encode(text)), "of_a_row": of_a_row}) + "\n")
