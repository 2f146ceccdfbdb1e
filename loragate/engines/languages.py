"""Which language a text is in (py3langid: naive Bayes over byte n-grams; Lui and Baldwin 2012)."""

from functools import cache
from typing import Any

from loragate.errors import ConfigError

FEWEST_LETTERS = 40
"""Shorter texts are not judged: a name or a number is in no language."""
LEAST_CERTAIN = 0.95
"""A text counts as foreign only where the classifier is this sure of another language."""
MOST_CHARS = 600


def foreign(text: str, wanted: str) -> str:
    """The language of a text and how sure that is, where it is not the wanted one; empty where it may be."""
    start = text[:MOST_CHARS]
    if sum(map(str.isalpha, start)) < FEWEST_LETTERS:
        return ""
    language, certainty = _identifier().classify(start)
    return f"{language} ({certainty:.2f})" if language != wanted and certainty >= LEAST_CERTAIN else ""


def require_known(language: str) -> None:
    """Refuse a language that the classifier does not know.

    Raises:
        ConfigError: It does not.
    """
    known = sorted(map(str, _identifier().labels))
    if language not in known:
        raise ConfigError(f"data.language: found {language}, allowed: {', '.join(known)}")


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
