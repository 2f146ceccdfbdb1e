"""What is wrong with a row's texts as such, before any model reads them.

Every check answers with what it found, shortened so that it can be shown, or with nothing. Secrets are never repeated.
Most rows have nothing, so a cheap look at what every find must hold (an @, a bracket, a long word) comes before the
patterns.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from detect_secrets.plugins.aws import AWSKeyDetector
from detect_secrets.plugins.azure_storage_key import AzureStorageKeyDetector
from detect_secrets.plugins.base import RegexBasedDetector
from detect_secrets.plugins.github_token import GitHubTokenDetector
from detect_secrets.plugins.gitlab_token import GitLabTokenDetector
from detect_secrets.plugins.jwt import JwtTokenDetector
from detect_secrets.plugins.mailchimp import MailchimpDetector
from detect_secrets.plugins.openai import OpenAIDetector
from detect_secrets.plugins.private_key import PrivateKeyDetector
from detect_secrets.plugins.pypi_token import PypiTokenDetector
from detect_secrets.plugins.sendgrid import SendGridDetector
from detect_secrets.plugins.slack import SlackDetector
from detect_secrets.plugins.square_oauth import SquareOAuthDetector
from detect_secrets.plugins.stripe import StripeDetector
from detect_secrets.plugins.telegram_token import TelegramBotTokenDetector
from detect_secrets.plugins.twilio import TwilioKeyDetector

from loragate.rows import Conversation

DETECTORS: tuple[RegexBasedDetector, ...] = (
    AWSKeyDetector(),
    AzureStorageKeyDetector(),
    GitHubTokenDetector(),
    GitLabTokenDetector(),
    JwtTokenDetector(),
    MailchimpDetector(),
    OpenAIDetector(),
    PrivateKeyDetector(),
    PypiTokenDetector(),
    SendGridDetector(),
    SlackDetector(),
    SquareOAuthDetector(),
    StripeDetector(),
    TelegramBotTokenDetector(),
    TwilioKeyDetector(),
)
"""Those of detect-secrets that know a secret by its form. Left out: those that guess by entropy or by a word
nearby, and those whose form plain words can have (Discord, Artifactory)."""

NEWER = (
    ("Anthropic API Key", r"sk-ant-[A-Za-z0-9_-]{20,}"),
    ("GitHub Token", r"github_pat_[A-Za-z0-9_]{40,}"),
    ("Google API Key", r"AIza[0-9A-Za-z_-]{35}"),
    ("Hugging Face Token", r"hf_[A-Za-z0-9]{30,}"),
    ("npm Token", r"npm_[A-Za-z0-9]{36}"),
    ("OpenAI Token", r"sk-(?:proj|svcacct|admin)-[A-Za-z0-9_-]{20,}"),
    ("Password in an address", r"[a-z][a-z0-9+.-]*://[^\s:/@]+:[^\s:/@]{3,}@[a-z0-9]"),
)
"""Forms that detect-secrets 1.5 does not know yet, as their makers document them."""

SHORTEST_SECRET = 20
"""No key or token is shorter, whatever its pattern allows, but for those whose sign stands in `SHORT_SIGNS`."""
SHORT_SIGNS = ("private key", "xox", "://")
SIGNS = {
    "aws.{0,20}": ("aws", 40),
    "[0-9a-z]{32}-us": ("-us", 36),
    "xox": ("xox", 0),
    "https://hooks": ("hooks.slack.com", 30),
    "(?:r|s)k_live_": ("k_live_", 32),
    "[a-z][a-z0-9+.-]*://": ("@", 0),
    r"\d{8,10}:": (":", 44),
}
"""How costly patterns begin, what every match holds in small letters, and how long a word it has; the other patterns
begin with letters of their own, which makes them quick."""


@dataclass(frozen=True, slots=True)
class Secret:
    """A form of secret: its kind, its pattern, and what a quick look asks for."""

    kind: str
    pattern: re.Pattern[str]
    sign: str
    shortest: int


def _secret(kind: str, pattern: re.Pattern[str]) -> Secret:
    found = next((look for start, look in SIGNS.items() if pattern.pattern.startswith(start)), ("", 0))
    return Secret(kind, pattern, *found)


SECRETS = (
    *(_secret(str(d.secret_type), pattern) for d in DETECTORS for pattern in d.denylist),
    *(_secret(kind, re.compile(pattern)) for kind, pattern in NEWER),
)

PLACEHOLDER = re.compile(
    r"\{\{\s*[A-Za-z_]\w*\s*\}\}|\[(?:your|insert|enter|company|customer)(?![a-z])[^\]\n]{0,40}\]"
    r"|<(?:your|insert)(?![a-z])[^>\n]{0,40}>"
    r"|lorem ipsum|as an ai (?:language )?model|\bi'?m (?:just )?an ai language model",
    re.IGNORECASE,
)
"""Blanks that nobody filled in, and phrases of another model about itself."""
PLACEHOLDER_PARTS = ("{{", "[", "<", "lorem ipsum", " ai ")

EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,4}[A-Za-z]{2,24}\b")
TELEPHONES = (
    ("(", re.compile(r"(?<![\w.])(?:\+\d{1,3}[ .-]?)?\(\d{2,4}\)[ .-]?\d{3,4}[ .-]?\d{3,4}(?!\d)")),
    ("+", re.compile(r"(?<![\w.])\+\d{1,3}(?:[ .-]?\d{2,4}){3,4}(?!\d)")),
    ("", re.compile(r"\d{3}[.-]\d{3}[.-]\d{4}(?![\d.-])(?<![\w.-].{12})")),
)
"""E-mail addresses and telephone numbers as people write them, the latter with a sign that each has; reserved example
domains do not count."""

EXAMPLE_DOMAIN = re.compile(r"@(?:[\w-]+\.)*example\.(?:com|org|net)$|\.(?:example|test|invalid)$", re.IGNORECASE)
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd\ufffe\uffff]")
"""Control characters, and what decoding leaves of bytes that it could not read."""

SHOWN_CHARS = 40


def texts_of(conversation: Conversation) -> list[str]:
    """Everything that is said in a conversation."""
    return [text for m in conversation.messages for text in (m.content, m.extras) if text]


def echoed(conversation: Conversation) -> str:
    """The first answer that is its question again, letters' case not counted."""
    for asked, answer in pairwise(conversation.messages):
        turns = (asked.role, answer.role) == ("user", "assistant")
        same = turns and len(asked.said) == len(answer.said) and answer.said
        if same and asked.said.casefold() == answer.said.casefold():
            return _shown(answer.said)
    return ""


def placeholder(texts: Sequence[str]) -> str:
    """The first blank that nobody filled in, or phrase of another model about itself."""
    return next((found for text in texts if _may_be_blank(text) and (found := _first(PLACEHOLDER, text))), "")


def _may_be_blank(text: str) -> bool:
    small = text.lower()
    return any(part in small for part in PLACEHOLDER_PARTS)


def control(texts: Sequence[str]) -> str:
    """The code point of the first control character."""
    found = next((match for text in texts if (match := CONTROL.search(text))), None)
    return f"U+{ord(found.group()):04X}" if found else ""


def contact(texts: Sequence[str]) -> str:
    """The first e-mail address or telephone number."""
    for text in texts:
        if "@" in text:
            for match in EMAIL.finditer(text):
                if not EXAMPLE_DOMAIN.search(match.group()):
                    return _shown(match.group())
        found = next((found for sign, form in TELEPHONES if sign in text and (found := _first(form, text))), "")
        if found:
            return found
    return ""


def secret(texts: Sequence[str]) -> str:
    """The kind of the first key, token or password."""
    return next((found for text in texts if (found := _secret_in(text))), "")


def _secret_in(text: str) -> str:
    longest, small = max(map(len, text.split()), default=0), text.lower()
    if longest < SHORTEST_SECRET and not any(sign in small for sign in SHORT_SIGNS):
        return ""
    likely = (s for s in SECRETS if longest >= s.shortest and s.sign in small)
    return next((s.kind for s in likely if s.pattern.search(text)), "")


CHECKS: dict[str, Callable[[Sequence[str]], str]] = {
    "placeholder": placeholder,
    "control": control,
    "secret": secret,
    "contact": contact,
}
"""Columns of the facts table that hold what a check of the texts found."""


def _first(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return _shown(match.group()) if match else ""


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"


def pattern_of(words: Sequence[str]) -> re.Pattern[str]:
    """A pattern that finds any of some literal texts, the longest where several begin alike; none finds nothing."""
    longest_first = sorted(filter(None, words), key=lambda word: (-len(word), word))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def special(texts: Sequence[str], tokens: re.Pattern[str]) -> str:
    """The first control token of the model's tokenizer that stands in a text as if somebody had said it."""
    return next((found for text in texts if (found := _first(tokens, text))), "")
