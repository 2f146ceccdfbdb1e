"""Options that commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

F = TypeVar("F", bound=Callable[..., None])


def common(command: F) -> F:
    """Add the options that every command has."""
    for option in reversed(
        (
            click.option(
                "--home", metavar="DIR", help="State folder; else the run file's home, LORAGATE_HOME, ./.loragate."
            ),
            click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else."),
            click.option("-q", "--quiet", is_flag=True, help="Tell only the result and errors."),
            click.option("-v", "--verbose", is_flag=True, help="Show orchestrator logs, and tracebacks of errors."),
        )
    ):
        command = option(command)
    return command


def private_key_option(whose: str) -> Callable[[F], F]:
    """Add the private key that a person signs with."""
    return click.option(
        "--key",
        required=True,
        type=click.Path(path_type=Path),
        help=f"Private key of {whose} (ssh-keygen -t ed25519). Its passphrase, where it has one, is taken from "
        "LORAGATE_KEY_PASSPHRASE or asked for.",
    )


config_argument = click.argument("config", type=click.Path(path_type=Path))
overrides_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY.PATH=VALUE",
    help="Override a key of the run file; repeatable.",
)
