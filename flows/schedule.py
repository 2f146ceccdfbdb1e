"""Releases on a schedule, on one box."""

from pathlib import Path
from typing import Any

from prefect import serve
from prefect.schedules import Cron

from flows.release import release_model
from loragate.errors import ConfigError


def check_schedule(cron: str, timezone: str) -> None:
    """Refuse a schedule that cannot be kept.

    Raises:
        ConfigError: The cron expression or the time zone is none.
    """
    try:
        Cron(cron, timezone=timezone)
    except ValueError as error:
        raise ConfigError(f'--cron "{cron}" --timezone {timezone}: {error}') from None


def serve_releases(configs: list[str], home: str, cron: str, timezone: str) -> None:
    """Serve one deployment a run file until the process is ended; schedules go on after a restart."""
    deployments: list[Any] = [
        release_model.to_deployment(
            name=Path(config).stem,
            parameters={"config": config, "home": home},
            schedule=Cron(cron, timezone=timezone),
            concurrency_limit=1,
        )
        for config in configs
    ]
    serve(*deployments, pause_on_shutdown=False, limit=1)
