"""What is wrong with texts as such: what is found, and what only looks like it."""

import random
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loragate.rows import Conversation, Message
from loragate.texts import CHECKS, SECRETS, SHORTEST_SECRET, Secret, echoed, pattern_of, secret, special, texts_of


def found(answer: str, question: str = "a?") -> dict[str, str]:
    conversation = Conversation((Message("user", question), Message("assistant", answer)))
    said = {name: check(texts_of(conversation)) for name, check in CHECKS.items()}
    return {name: text for name, text in (said | {"echoed": echoed(conversation)}).items() if text}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dear {{name}},", {"placeholder": "{{name}}"}),
        ("Yours, [Your Name]", {"placeholder": "[Your Name]"}),
        ("at [insert date here]", {"placeholder": "[insert date here]"}),
        ("<your_api_key>", {"placeholder": "<your_api_key>"}),
        ("Lorem ipsum dolor", {"placeholder": "Lorem ipsum"}),
        ("As an AI language model, I", {"placeholder": "As an AI language model"}),
        ("nul\x00", {"control": "U+0000"}),
        ("caf\ufffd", {"control": "U+FFFD"}),
        ("\x9fx", {"control": "U+009F"}),
        ("-----BEGIN RSA PRIVATE KEY-----", {"secret": "Private Key"}),
        (f"AKIA{'ABCD' * 4}", {"secret": "AWS Access Key"}),
        (f"ghp_{'a1B2' * 9}", {"secret": "GitHub Token"}),
        ("xoxb-123-456-abcdef", {"secret": "Slack Token"}),
        (f"sk_live_{'a1' * 12}", {"secret": "Stripe Access Key"}),
        (f"hf_{'aB3d' * 9}", {"secret": "Hugging Face Token"}),
        (f"sk-ant-api03-{'aB3-' * 9}", {"secret": "Anthropic API Key"}),
        (f"sk-proj-{'aB3_' * 9}", {"secret": "OpenAI Token"}),
        (f"AIza{'aB3dE' * 7}", {"secret": "Google API Key"}),
        (f"github_pat_{'aB3d' * 12}", {"secret": "GitHub Token"}),
        (f"npm_{'aB3d' * 9}", {"secret": "npm Token"}),
        ("postgres://admin:hunter2@db/main", {"secret": "Password in an address"}),
        ("ask ann.lee+x@mail.co.uk", {"contact": "ann.lee+x@mail.co.uk"}),
        ("call (555) 123-4567", {"contact": "(555) 123-4567"}),
        ("call +49 30 1234 5678", {"contact": "+49 30 1234 5678"}),
        ("call 555-123-4567 now", {"contact": "555-123-4567"}),
    ],
)
def test_defect_is_found_by_its_check_alone(text: str, expected: dict[str, str]) -> None:
    assert found(text) == expected
    assert found("fine", question=text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "d = {{'a': 1}, {'b': 2}}",
        "a[your] is no list",  # a bracket with a space after the word would be one
        "f'{name}' and ${name}",
        "tabs\tand\r\nlines\u2028and\x85ends",
        "2026-11-22 10:15, 3.141-592-6535, 192.168.10.100, 10.1000/182",
        "ann@example.com, bob@host.test",
        "price 1 234 567, ISBN 978-3-16-148410-0",
        "the private key begins a chapter",
        "@property, x@y, user@host",
        "https://example.org:8080/a@b and sk-learn-contrib-extensions-of-many-kinds",
        "中文 👩‍👩‍👧‍👦 עברית",
    ],
)
def test_what_only_looks_like_a_defect_is_let_pass(text: str) -> None:
    assert found(text).keys() <= ({"placeholder"} if "[your]" in text else set())


@pytest.mark.parametrize("question", ["What is it?", " what IS it? "])
def test_answer_that_is_its_question_is_found(question: str) -> None:
    assert found("What is it?", question) == {"echoed": "What is it?"}


def test_answer_that_repeats_a_tool_s_result_is_no_echo() -> None:
    turns = (Message("user", "2+2?"), Message("assistant", "", "{}"), Message("tool", "4"), Message("assistant", "4"))
    assert echoed(Conversation(turns)) == ""


def test_an_empty_answer_is_no_echo_of_an_empty_question() -> None:
    assert found("", "") == {}


def test_long_finds_are_shortened() -> None:
    assert found("say " * 30, "say " * 30)["echoed"].endswith("say …")


def test_a_secret_is_never_repeated() -> None:
    token = f"ghp_{'a1B2' * 9}"
    assert token not in str(found(f"take {token}"))


@pytest.mark.parametrize("form", SECRETS, ids=lambda form: form.pattern.pattern[:20])
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_quick_look_passes_over_no_secret(form: Secret, data: st.DataObject) -> None:
    token = data.draw(st.from_regex(form.pattern, fullmatch=True, alphabet=st.characters(max_codepoint=126)))
    short = {"Private Key", "Slack Token", "Password in an address"}
    if max(map(len, token.split()), default=0) >= SHORTEST_SECRET or form.kind in short:
        assert secret([f"take {token} now"])
    else:
        assert form.kind == "JSON Web Token"  # whose pattern allows for six characters


def test_control_tokens_of_the_tokenizer_are_found_whole_and_plain_text_is_not() -> None:
    tokens = pattern_of(["<|im_end|>", "<|im_end|>x", "</s>", ""])
    assert special(["fine", "so <|im_end|>x"], tokens) == "<|im_end|>x"
    assert special(["a < b | c </b> im_end"], tokens) == ""
    assert special(["anything"], pattern_of([])) == ""


DEFECTS = {
    "placeholder": " [Your Name]",
    "control": "\x07",
    "secret": f" ghp_{'a1B2' * 9}",
    "contact": " ann@mail.org",
}


@pytest.mark.parametrize("check", DEFECTS)
@pytest.mark.parametrize("rate", [0.001, 0.01, 0.1])
def test_every_planted_defect_is_found_and_nothing_else(check: str, rate: float) -> None:
    chance = random.Random(rate)
    texts = ["".join(chance.choices(string.ascii_letters + "  ,.\n", k=200)) for _ in range(2000)]
    planted = set(chance.sample(range(len(texts)), int(len(texts) * rate)))
    marked = [text[:100] + DEFECTS[check] + " " + text[100:] if n in planted else text for n, text in enumerate(texts)]
    assert {n for n, text in enumerate(marked) if check in found(text)} == planted
