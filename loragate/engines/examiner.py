"""One row at a time: rendered, tokenised, and looked at for everything that would spoil a training.

Rows come and go in batches, because a tokenizer is fast on many texts at once; what is found about a row depends on the
row alone.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import Any

import jinja2

from loragate.engines.language_model import encoder_of, load_tokenizer, marked_answers, template_of
from loragate.engines.languages import foreign, require_known
from loragate.passages import Passages
from loragate.refs import digest_text
from loragate.rendering import Example, Stretch, TemplateError, assemble, segments, stops_only, text_example
from loragate.row_work import PrepareRows
from loragate.rows import TEXT, Message, Row
from loragate.texts import CHECKS, echoed, pattern_of, special, texts_of
from loragate.words import words_of

ROLES = ("system", "user", "assistant", "tool")
RESULTS = ("tool", "tool")
"""Results of several calls follow each other and count as one turn."""

CANNED_WORDS = 12
"""Words that an answer has before giving it to several questions is odd: shorter ones are labels and set phrases."""
MARKS_COMPARED = 100
"""Rows at the start of each file whose supervised text is held against what the template itself marks as generated."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about one row before training: cheap columns for the data gate; texts are empty where all is well.

    Attributes:
        side: train, heldout, or unused where the weight of its file leaves the row out.
        copies: How often an epoch takes the row.
        file, row: Where it stands.
        problem: Why it could not be read or rendered.
        roles_problem: What is wrong with the order of its roles.
        question, digest: 64 bits of the digests of its question and of the whole row.
        answer: 64 bits of the digest of the words of its taught answers, 0 for fewer than `CANNED_WORDS` of them.
        answer_chars, longest_answer: Characters of the shortest and longest answer, without white space at its ends.
        tokens: Length in tokens after truncation.
        supervised: Supervised tokens after truncation.
        lost_stops: Assistant turns whose stop token is missing or not supervised after truncation.
        truncated: Whether tokens were cut off.
        doubled_bos: Whether it begins with the token that begins a text twice.
        echoed, placeholder, control, secret, contact, special: What `loragate.texts` found.
        language: The language that its answers are in where that is not the one they must be in.
        passage: The protected passage that a training row holds.
    """

    side: str
    copies: int
    file: str
    row: int
    problem: str
    roles_problem: str
    question: int
    digest: int
    answer: int
    answer_chars: int
    longest_answer: int
    tokens: int
    supervised: int
    lost_stops: int
    truncated: bool
    doubled_bos: bool
    echoed: str
    placeholder: str
    control: str
    secret: str
    contact: str
    special: str
    language: str
    passage: str


@dataclass(slots=True)
class Draft:
    """A row on its way: what has been found out about it so far.

    Attributes:
        copies: How often an epoch takes it.
        words: Its words in small letters.
    """

    row: Row
    side: str
    copies: int = 1
    problem: str = ""
    roles_problem: str = ""
    stretches: Sequence[Stretch] = ()
    example: Example | None = None
    words: list[str] = field(default_factory=list)

    @property
    def rendered(self) -> bool:
        """Whether the row could be read and rendered."""
        return not self.problem and not self.roles_problem


class Examiner:
    """What looking at rows needs: tokenizer, chat template, and what must not be in them."""

    def __init__(self, request: PrepareRows, passages: Passages) -> None:
        """Load the tokenizer; nothing is tokenised yet, so that the process may still be forked.

        Raises:
            ConfigError: The language that answers must be in is none that can be told.
        """
        self.request, self.passages = request, passages
        if request.language:
            require_known(request.language)
        self.tokenizer = load_tokenizer(request.base)
        self.encode_all = encoder_of(self.tokenizer)
        self.encode = lru_cache(maxsize=4096)(lambda text: tuple(self.encode_all([text])[0]))
        self.template = cache(lambda tools: template_of(self.tokenizer, tools))
        self.stop_ids = frozenset(request.base.stop_ids)
        self.special = pattern_of(self.tokenizer.all_special_tokens)
        self.stop_texts = [self.tokenizer.decode([stop]) for stop in request.base.stop_ids]

    def examine(self, drafts: Iterable[Draft]) -> Iterator[tuple[Draft, Facts]]:
        """Render rows and state the facts about each, in order."""
        drafts = list(drafts)
        for draft in drafts:
            self._render(draft)
        tokens = iter(self.encode_all([text for draft in drafts for text, _ in draft.stretches]))
        for draft in drafts:
            if draft.rendered:
                self._assemble(draft, [next(tokens) for _ in draft.stretches])
            yield draft, self._facts(draft)

    def _render(self, draft: Draft) -> None:
        """Cut a row into stretches, or say why it has none."""
        conversation = draft.row.conversation
        draft.problem = draft.row.problem or ""
        if draft.problem:
            return
        if conversation.text is not None:
            draft.stretches = ((conversation.text, None),)
            return
        draft.roles_problem = roles_problem(conversation.messages)
        if draft.roles_problem:
            return
        try:
            template = self.template(conversation.tools)
            draft.stretches = segments(conversation.messages, template, stops_only(self.encode, self.stop_ids))
            draft.problem = self._marked_otherwise(draft)
        except TemplateError as error:
            draft.problem = str(error)
        except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            draft.problem = f"the chat template cannot render it: {error}"
        if draft.problem:
            draft.stretches = ()

    def _marked_otherwise(self, draft: Draft) -> str:
        """Say where the template's own marks of generated text contradict what would be taught; empty where nowhere."""
        conversation = draft.row.conversation
        if draft.row.number > MARKS_COMPARED:
            return ""
        marked = marked_answers(self.tokenizer, conversation.messages, conversation.tools)
        if marked is None:
            return ""
        answers = [message for message in conversation.messages if message.role == "assistant"]
        theirs = [text for text, message in zip(marked, answers, strict=False) if message.taught]
        ours = [text for text, answer in draft.stretches if answer is not None]
        if [self._bare(text) for text in theirs] == [self._bare(text) for text in ours]:
            return ""
        return f"the chat template marks {theirs} as generated, but its generation prompt leaves {ours} to the model"

    def _bare(self, text: str) -> str:
        """A text without white space and stop tokens at its end."""
        text = text.strip()
        while stop := next((stop for stop in self.stop_texts if stop and text.endswith(stop)), ""):
            text = text.removesuffix(stop).strip()
        return text

    def _assemble(self, draft: Draft, tokens: Sequence[Sequence[int]]) -> None:
        most, base = self.request.max_tokens, self.request.base
        if draft.row.conversation.text is not None:
            example = text_example(tokens[0], end_id=base.end_id, max_tokens=most)
        else:
            example = assemble(draft.stretches, tokens, self.encode, stop_ids=self.stop_ids, max_tokens=most)
        draft.example = replace(example, copies=draft.copies)

    def _facts(self, draft: Draft) -> Facts:
        row, example = draft.row, draft.example
        answers = [len(m.said) for m in row.messages if m.role in ("assistant", TEXT) and m.taught]
        bos = self.tokenizer.bos_token_id
        return Facts(
            side=draft.side,
            copies=draft.copies,
            file=row.file,
            row=row.number,
            problem=draft.problem,
            roles_problem=draft.roles_problem,
            question=_bits(row.question_digest if row.messages else digest_text(row.place)),
            digest=_bits(row.digest if row.messages else digest_text(row.place)),
            answer=_answer_bits(row),
            answer_chars=min(answers, default=0),
            longest_answer=max(answers, default=0),
            tokens=len(example.ids) if example else 0,
            supervised=example.supervised if example else 0,
            lost_stops=example.turns - example.stopped_turns if example else 0,
            truncated=example.truncated if example else False,
            doubled_bos=bos is not None and example is not None and example.ids[:2] == (bos, bos),
            **self._found(draft),
        )

    def _found(self, draft: Draft) -> Mapping[str, Any]:
        """The columns about a row's texts; its words are kept for the sketch."""
        row = draft.row
        texts = texts_of(row.conversation)
        draft.words = words_of(texts)
        wanted = self.request.language
        return {
            **{name: check(texts) for name, check in CHECKS.items()},
            "echoed": echoed(row.conversation),
            "special": special(texts, self.special),
            "language": foreign(_answers(row), wanted) if wanted else "",
            "passage": self.passages.find(row, draft.words) if draft.side == "train" else "",
        }


def _answers(row: Row) -> str:
    return "\n".join(m.content for m in row.messages if m.role in ("assistant", TEXT) and m.taught)


def _answer_bits(row: Row) -> int:
    words = words_of([_answers(row)])
    return _bits(digest_text(" ".join(words))) if len(words) >= CANNED_WORDS else 0


def _bits(digest: str) -> int:
    """64 bits of a digest as a signed number; of a million rows, two share them by chance once in 40 million times."""
    return int.from_bytes(bytes.fromhex(digest[:16]), signed=True)


def roles_problem(messages: Sequence[Message]) -> str:
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
