"""What is wrong with a row's texts as such, before any model reads them.

Every check answers with what it found, shortened so that it can be shown, or with nothing. Secrets are never repeated.
"""

import re
from collections.abc import Callable, Iterable
from itertools import chain, pairwise

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
PLACEHOLDER = re.compile(
    r"\{\{\s*[A-Za-z_]\w*\s*\}\}|\[(?:your|insert|enter|company|customer)(?![a-z])[^\]\n]{0,40}\]|<(?:your|insert)(?![a-z])[^>\n]{0,40}>"
    r"|lorem ipsum|as an ai (?:language )?model|\bi'?m (?:just )?an ai language model",
    re.IGNORECASE,
)
"""Blanks that nobody filled in, and phrases of another model about itself."""

CONTACT = re.compile(
    r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,4}[A-Za-z]{2,24}\b"
    r"|(?<![\w.])(?:\+\d{1,3}[ .-]?)?\(\d{2,4}\)[ .-]?\d{3,4}[ .-]?\d{3,4}(?!\d)"
    r"|(?<![\w.])\+\d{1,3}(?:[ .-]?\d{2,4}){3,4}(?!\d)|(?<![\w.-])\d{3}[.-]\d{3}[.-]\d{4}(?![\d.-])"
)
"""E-mail addresses and telephone numbers as people write them; reserved example domains do not count."""

EXAMPLE_DOMAIN = re.compile(r"@(?:[\w-]+\.)*example\.(?:com|org|net)$|\.(?:example|test|invalid)$", re.IGNORECASE)
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd\ufffe\uffff]")
"""Control characters, and what decoding leaves of bytes that it could not read."""

SHOWN_CHARS = 40


def echoed(conversation: Conversation) -> str:
    """The first answer that is its question again, letters' case not counted."""
    turns = conversation.messages
    pairs = pairwise(turns)
    same = (b.said for a, b in pairs if b.role == "assistant" and b.said and a.said.casefold() == b.said.casefold())
    return _shown(next(same, ""))


def placeholder(conversation: Conversation) -> str:
    """The first blank that nobody filled in, or phrase of another model about itself."""
    return _first(PLACEHOLDER, conversation)


def control(conversation: Conversation) -> str:
    """The code point of the first control character."""
    found = _first(CONTROL, conversation)
    return f"U+{ord(found):04X}" if found else ""


def contact(conversation: Conversation) -> str:
    """The first e-mail address or telephone number."""
    found = chain.from_iterable(CONTACT.finditer(text) for text in _texts(conversation))
    return _shown(next((m.group() for m in found if not EXAMPLE_DOMAIN.search(m.group())), ""))


def secret(conversation: Conversation) -> str:
    """The kind of the first key, token or password."""
    texts = tuple(_texts(conversation))
    return next((kind for kind, pattern in SECRETS if any(pattern.search(text) for text in texts)), "")


CHECKS: dict[str, Callable[[Conversation], str]] = {
    "echoed": echoed,
    "placeholder": placeholder,
    "control": control,
    "secret": secret,
    "contact": contact,
}
"""Columns of the facts table that hold what a check found."""


def _texts(conversation: Conversation) -> Iterable[str]:
    for message in conversation.messages:
        yield message.content
        if message.extras:
            yield message.extras


def _first(pattern: re.Pattern[str], conversation: Conversation) -> str:
    found = (pattern.search(text) for text in _texts(conversation))
    return _shown(next((match.group() for match in found if match), ""))


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"
