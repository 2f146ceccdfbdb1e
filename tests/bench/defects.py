"""What can be wrong with a row, a defect for each rule of the data gate: a sound row goes in, a spoilt line comes out.

`planted.py` plants these. Defects come in several kinds where the rule knows several; which one it is, chance decides.
Keys and tokens are put together here from parts, so that nobody's scanner takes this file for a leak.
"""

import json
import random
import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rows import line

Pair = tuple[str, str]
"""A question and its answer."""

Side = Literal["train", "heldout"]

MAX_TOKENS, MAX_ANSWER_CHARS = 1024, 3000
"""Limits that the run files set; real rows of the sources keep to both."""

TOO_MANY_CHARS = 7000
"""More than MAX_TOKENS tokens of English: that is about four characters a token."""

NEAR_JACCARD = 0.8
NEAR_TARGETS = (NEAR_JACCARD, 0.95)
"""Near copies are edited until their similarity is just above a number drawn from here."""

WORD = re.compile(r"\w+")
SHINGLE_WORDS = 3
ALPHANUMERIC = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class Spot:
    """The row that is to be spoilt, and what there is to spoil it with.

    Attributes:
        row: The sound row.
        other: A training row that stands before it and stays as it is.
        passage: Some words of a protected row.
        filler: Sound English, longer than TOO_MANY_CHARS.
    """

    rng: random.Random
    row: Pair
    other: Pair
    passage: str
    filler: str

    def text(self, chars: int) -> str:
        """Some of the filler, cut at a word."""
        return self.filler[:chars].rpartition(" ")[0]


@dataclass(frozen=True, slots=True)
class Defect:
    """A defect and the rules that must name its row.

    Attributes:
        rules: Each of these must.
        plant: Makes the spoilt line.
        brings: Rules that rightly may name the row as well.
        uses_other: Whether another training row is copied from, which must not be spoilt then.
        names_other: Whether the rules rightly name that other row, too.
        needs: What the source must have, or the rule judges nothing; empty where it judges any.
    """

    rules: tuple[str, ...]
    plant: Callable[[Spot], str]
    side: Side = "train"
    brings: frozenset[str] = frozenset()
    uses_other: bool = False
    names_other: bool = False
    needs: Literal["", "language", "protected"] = ""


def shingles(pair: Pair) -> frozenset[str]:
    """Three-word shingles of a row in small letters, as the data gate compares them."""
    words = [word for text in pair for word in WORD.findall(text.lower())]
    starts = range(max(1, len(words) - SHINGLE_WORDS + 1))
    return frozenset(" ".join(words[start : start + SHINGLE_WORDS]) for start in starts)


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Intersection over union."""
    return len(one & other) / len(one | other)


def _messages(*turns: tuple[str, object]) -> str:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]}) + "\n"


def _unreadable(spot: Spot) -> str:
    question, answer = (json.dumps(text) for text in spot.row)
    asked, said = f'{{"role": "user", "content": {question}}}', f'{{"role": "assistant", "content": {answer}}}'
    return spot.rng.choice(
        (
            f'{{"messages": [{asked}, {{"role": "assistant"}}]}}\n',
            f'{{"messages": [{asked}, {{"role": "assistant", "content": {spot.rng.randrange(100)}}}]}}\n',
            f'{{"messages": [{{"content": {question}}}, {said}]}}\n',
            f'{{"messages": [{asked}, {{"role": "assistant", "content": {answer}, "content": {question}}}]}}\n',
            f'{{"messages": {question}}}\n',
            f"[{question}, {answer}]\n",
            '{"messages": []}\n',
        )
    )


def _roles(spot: Spot) -> str:
    question, answer = spot.row
    asked, said = ("user", question), ("assistant", answer)
    turns: tuple[tuple[tuple[str, str], ...], ...] = (
        (asked,),
        (asked, asked, said),
        (said, asked),
        (asked, said, ("assistant", "That is all there is to say.")),
        (asked, said, asked),
        (asked, ("robot", answer)),
    )
    return _messages(*spot.rng.choice(turns))


def _empty(spot: Spot) -> str:
    return line(spot.row[0], spot.rng.choice(("", " ", "\n", " \n\t ")))


def _echo(spot: Spot) -> str:
    question = spot.row[0]
    return line(question, spot.rng.choice((question, question.lower(), question.upper(), f" {question}\n")))


def _long_answer(spot: Spot) -> str:
    return line(spot.row[0], f"{spot.row[1]} {spot.text(TOO_MANY_CHARS)}.")


def _long_question(spot: Spot) -> str:
    return line(f"{spot.text(TOO_MANY_CHARS)}. {spot.row[0]}", spot.row[1])


def _wordy_answer(spot: Spot) -> str:
    return line(spot.row[0], f"{spot.row[1]} {spot.text(MAX_ANSWER_CHARS + spot.rng.randrange(60, 200))}.")


def _inside(spot: Spot, what: str) -> str:
    """Put something between two words of the question or the answer."""
    texts = list(spot.row)
    side = spot.rng.randrange(2)
    words = texts[side].split(" ")
    words.insert(spot.rng.randint(1, len(words)), what)
    texts[side] = " ".join(words)
    return line(texts[0], texts[1])


def _behind(spot: Spot, what: str) -> str:
    return line(spot.row[0], f"{spot.row[1]} {what}")


def _control(spot: Spot) -> str:
    return _inside(spot, spot.rng.choice("\x00\x07\x08\x1b\x7f\x9d\ufffd\uffff"))


def _special(spot: Spot) -> str:
    return _inside(spot, f"<|{spot.rng.choice(('im_end', 'im_start', 'endoftext'))}|>")


def _secret(spot: Spot) -> str:
    letters, digits = ALPHANUMERIC, string.digits
    kinds = (
        "AK" + "IA" + _drawn(spot, string.ascii_uppercase + digits, 16),
        "gh" + "p_" + _drawn(spot, letters, 36),
        "-----BEGIN RSA PRIV" + "ATE KEY-----\n" + _drawn(spot, letters, 64),
        "xo" + "xb-" + _drawn(spot, digits, 12) + "-" + _drawn(spot, string.ascii_lowercase + digits, 24),
        "sk_" + "live_" + _drawn(spot, letters, 24),
    )
    return _behind(spot, f"Use {spot.rng.choice(kinds)} for it.")


def _drawn(spot: Spot, letters: str, count: int) -> str:
    return "".join(spot.rng.choices(letters, k=count))


def _placeholder(spot: Spot) -> str:
    kinds = ("[Your Name]", "[Insert date here]", "{{first_name}}", "<your company>", "[Customer Name]")
    phrases = ("Lorem ipsum dolor sit amet.", "As an AI language model, I cannot say more.")
    return _behind(spot, spot.rng.choice((*(f"Yours, {kind}" for kind in kinds), *phrases)))


def _contact(spot: Spot) -> str:
    """Addresses at made-up domains, and telephone numbers that are set aside for fiction."""
    number = spot.rng.randrange(100, 200)
    kinds = (
        f"ann.{_drawn(spot, string.ascii_lowercase, 6)}@{_drawn(spot, string.ascii_lowercase, 8)}.org",
        f"(212) 555-0{number}",
        f"212-555-0{number}",
        f"+44 20 7946 0{number}",
    )
    return _behind(spot, f"Ask {spot.rng.choice(kinds)} about it.")


def _copy(spot: Spot) -> str:
    return line(*spot.other)


def _near_copy(spot: Spot) -> str:
    """Put a word before the other row, replace its words as long as it stays near enough, and then put more before."""
    target, whole = spot.rng.uniform(*NEAR_TARGETS), shingles(spot.other)
    copy = _begun(spot, spot.other)
    for edit in (_replaced, _begun):
        while jaccard(whole, shingles(edited := edit(spot, copy))) >= target:
            copy = edited
    return line(*copy)


def _begun(spot: Spot, row: Pair) -> Pair:
    return f"{_new_word(spot)} {row[0]}", row[1]


def _replaced(spot: Spot, row: Pair) -> Pair:
    words = [text.split(" ") for text in row]
    text = spot.rng.choice(words)
    text[spot.rng.randrange(len(text))] = _new_word(spot)
    return " ".join(words[0]), " ".join(words[1])


def _new_word(spot: Spot) -> str:
    return _drawn(spot, "aeiou", 1) + _drawn(spot, "lmnrst", 2) + _drawn(spot, "aeiou", 1) + _drawn(spot, "dgkp", 1)


def _asked_again(spot: Spot) -> str:
    return line(spot.other[0], spot.row[1])


def _passage(spot: Spot) -> str:
    return _behind(spot, spot.passage)


GERMAN = (
    "Zuerst sollte man {0} gründlich prüfen, bevor man weitere Schritte plant.",
    "Wer {0} verstehen will, muss auch wissen, woher {1} kommt.",
    "Es ist üblich, dass {0} erst nach {2} Tagen fertig wird.",
    "In vielen Gegenden gehört {0} seit langem zum Alltag der Menschen.",
    "Danach werden {0} und {1} miteinander verglichen und aufgeschrieben.",
    "Niemand weiß genau, warum {0} früher so viel teurer gewesen ist.",
    "Am besten fragt man jemanden, der sich mit {0} schon gut auskennt.",
    "Ohne {0} wäre das Ergebnis nach {2} Jahren kaum besser geworden.",
    "Trotzdem bleibt {0} für die meisten Leute wichtiger als {1}.",
    "Schließlich hängt alles davon ab, ob {0} rechtzeitig eintrifft.",
)
THINGS = ("das Wetter", "die Brücke", "der Garten", "das Brot", "die Rechnung", "der Wald", "die Straße", "das Geld")


def _german(spot: Spot) -> str:
    """Three to five sentences, each about something else."""
    chosen = spot.rng.sample(GERMAN, spot.rng.randint(3, 5))
    said = (sentence.format(*spot.rng.sample(THINGS, 2), spot.rng.randint(3, 99)) for sentence in chosen)
    return line(spot.row[0], " ".join(said))


TOO_LONG = ("stop_token_supervised", "not_truncated")
NEAR = ("no_near_duplicates", "not_near_training_rows")

DEFECTS = (
    Defect(("format",), _unreadable),
    Defect(("roles",), _roles),
    Defect(("answer_not_empty",), _empty),
    Defect(("answer_not_question",), _echo),
    Defect(TOO_LONG, _long_answer, brings=frozenset({"answer_length"})),
    Defect(("answer_supervised",), _long_question, brings=frozenset(TOO_LONG)),
    Defect(("answer_length",), _wordy_answer, brings=frozenset(TOO_LONG)),
    Defect(("no_control_characters",), _control),
    Defect(("no_special_tokens",), _special, brings=frozenset({"stop_token_supervised"})),
    Defect(("no_secrets",), _secret),
    Defect(("no_placeholders",), _placeholder),
    Defect(("no_contacts",), _contact),
    Defect(("no_duplicates",), _copy, brings=frozenset(NEAR), uses_other=True),
    Defect(("no_near_duplicates",), _near_copy, uses_other=True),
    Defect(("one_answer_per_question",), _asked_again, uses_other=True, names_other=True),
    Defect(("language",), _german, needs="language"),
    Defect(("not_in_protected",), _passage, needs="protected"),
    Defect(("not_in_training_rows",), _asked_again, side="heldout", uses_other=True),
    Defect(("not_near_training_rows",), _near_copy, side="heldout", uses_other=True),
)
"""Every rule that one row can break; a token that begins the text twice (bos_once) is a fault of the template."""
