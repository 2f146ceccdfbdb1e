"""The terminal: results on stdout, errors as one paragraph on stderr with the exit code of the contract."""

import json
import math
import os
import sys
import traceback
from collections.abc import Mapping
from typing import NoReturn

import click

from loragate.errors import LoragateError


class answered:  # noqa: N801 - reads as a phrase where it is used
    """Turn our errors into one paragraph on stderr and the exit code of the contract."""

    def __init__(self, verbose: bool) -> None:
        """Show tracebacks where `verbose`."""
        self.verbose = verbose

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """End the process with the error's exit code."""
        if error is None or isinstance(error, (SystemExit, click.exceptions.Exit, click.ClickException)):
            return
        if self.verbose:
            traceback.print_exception(error)
        if isinstance(error, LoragateError):
            fail(str(error), error.exit_code)
        if isinstance(error, KeyboardInterrupt):
            fail("interrupted; the same command goes on where this one stopped", 130)
        fail(f"unexpected {type(error).__name__}: {error}; -v shows where", 1)


def fail(message: str, code: int) -> NoReturn:
    """End with one paragraph on stderr."""
    click.echo(f"loragate: {message}", err=True)
    sys.exit(code)


def put(text: str) -> None:
    """Write to stdout."""
    click.echo(text)


def put_json(value: Mapping[str, object]) -> None:
    """Write one line of JSON; numbers that JSON has no form for become null."""
    click.echo(json.dumps(_finite(value), ensure_ascii=False))


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def passphrase() -> str:
    """A private key's passphrase: from the environment, else from the terminal."""
    known = os.environ.get("LORAGATE_KEY_PASSPHRASE")
    if known is not None or not sys.stdin.isatty():
        return known or ""
    return str(click.prompt("Passphrase of the key", hide_input=True, err=True))
