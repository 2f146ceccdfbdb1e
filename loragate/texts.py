"""What is wrong with a row's texts as such, before any model reads them.

Every check answers with what it found, shortened so that it can be shown, or with nothing. Secrets are never repeated.
Most rows have nothing, so a cheap look at what every find must hold (an @, seven digits, a long word) comes before the
patterns.
"""

import re
from collections.abc import Callable, Sequence
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

SECRETS = tuple((str(d.secret_type), pattern) for d in DETECTORS for pattern in d.denylist)
SECRET_CHARS = 20
"""No key or token is shorter than this, whatever its pattern allows, but for those that hold the parts below."""
SHORT_SECRETS = ("private key", "xox")

PLACEHOLDER = re.compile(
    r"\{\{\s*[A-Za-z_]\w*\s*\}\}|\[(?:your|insert|enter|company|customer)(?![a-z])[^\]\n]{0,40}\]"
    r"|<(?:your|insert)(?![a-z])[^>\n]{0,40}>"
    r"|lorem ipsum|as an ai (?:language )?model|\bi'?m (?:just )?an ai language model",
    re.IGNORECASE,
)
"""Blanks that nobody filled in, and phrases of another model about itself."""
PLACEHOLDER_PARTS = ("{{", "[", "<", "lorem ipsum", " ai ")

EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,4}[A-Za-z]{2,24}\b")
TELEPHONE = re.compile(
    r"(?<![\w.])(?:\+\d{1,3}[ .-]?)?\(\d{2,4}\)[ .-]?\d{3,4}[ .-]?\d{3,4}(?!\d)"
    r"|(?<![\w.])\+\d{1,3}(?:[ .-]?\d{2,4}){3,4}(?!\d)|(?<![\w.-])\d{3}[.-]\d{3}[.-]\d{4}(?![\d.-])"
)
"""E-mail addresses and telephone numbers as people write them; reserved example domains do not count."""
TELEPHONE_DIGITS = 7

DIGIT = re.compile(r"\d")
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
        same = answer.role == "assistant" and len(asked.said) == len(answer.said) and answer.said
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
        if len(DIGIT.findall(text)) >= TELEPHONE_DIGITS and (found := _first(TELEPHONE, text)):
            return found
    return ""


def secret(texts: Sequence[str]) -> str:
    """The kind of the first key, token or password."""
    for text in texts:
        if _may_be_secret(text):
            kind = next((kind for kind, pattern in SECRETS if pattern.search(text)), "")
            if kind:
                return kind
    return ""


def _may_be_secret(text: str) -> bool:
    if max(map(len, text.split()), default=0) >= SECRET_CHARS:
        return True
    small = text.lower()
    return any(part in small for part in SHORT_SECRETS)


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
