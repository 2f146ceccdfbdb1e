"""What a run file asks of every answer: a pattern, a JSON schema, texts that must or must not stand in it.

Laws: an answer without rules obeys them; one that a rule cannot be applied to does not; nothing is ever fetched.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class AnswerRules:
    """Rules for the text of an answer; those that are empty or None ask nothing.

    Attributes:
        regex: Must be found somewhere in the answer.
        json_schema: The answer must be JSON, nothing before or behind it, that this schema allows.
        must_contain, must_not_contain: Texts that all must stand in the answer, and of which none may, as written.
    """

    regex: str | None = None
    json_schema: Mapping[str, object] | None = None
    must_contain: Sequence[str] = ()
    must_not_contain: Sequence[str] = ()

    @property
    def any(self) -> bool:
        """Whether anything is asked."""
        return bool(self.regex or self.json_schema is not None or self.must_contain or self.must_not_contain)

    def problem(self, answer: str) -> str:
        """Say which rule an answer breaks first; empty where it breaks none."""
        if self.regex and not re.search(self.regex, answer):
            return f"{self.regex} is not found in it"
        for text in self.must_contain:
            if text not in answer:
                return f"{text!r} is missing"
        for text in self.must_not_contain:
            if text in answer:
                return f"{text!r} stands in it"
        return _json_problem(answer, self.json_schema) if self.json_schema is not None else ""


def _json_problem(answer: str, schema: Mapping[str, object]) -> str:
    try:
        value = json.loads(answer, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        return f"it is not JSON: {error}"
    fault = next(_validator(schema).iter_errors(value), None)
    return f"the schema does not allow it: {fault.message[:200]}" if fault else ""


def _no_number(word: str) -> object:
    raise ValueError(f"{word} is no JSON number")


def _validator(schema: Mapping[str, object]) -> Any:
    """A validator with a registry of its own, so that no reference is ever fetched."""
    from jsonschema import validators
    from referencing import Registry

    plain = json.loads(json.dumps(schema))
    kind = validators.validator_for(plain, default=validators.Draft202012Validator)
    return kind(plain, registry=Registry())


def schema_faults(where: str, schema: Mapping[str, object]) -> Iterator[str]:
    """Yield why a mapping is no JSON schema, or one that cannot be applied with what it holds."""
    from jsonschema.exceptions import SchemaError
    from referencing.exceptions import Unresolvable

    validator = _validator(schema)
    try:
        validator.check_schema(validator.schema)
    except SchemaError as error:
        yield f"{where}: not a JSON schema: {error.message} (at {error.json_path})"
        return
    resolver = validator._resolver  # noqa: SLF001 - jsonschema has no public word for what its validators use
    for reference in _references(validator.schema):
        try:
            resolver.lookup(reference)
        except Unresolvable:
            yield f"{where}: {reference} leads nowhere within the schema, and nothing is fetched"


def _references(schema: object) -> Iterator[str]:
    """Every $ref of a schema, wherever it stands."""
    if isinstance(schema, Mapping):
        reference = schema.get("$ref")
        if isinstance(reference, str):
            yield reference
        for value in schema.values():
            yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)
