"""How steps behave under the orchestrator; each policy has a name and is defined once.

Prefect shows and retries; it does not cache. Its keys cover a task's own lines but neither helpers nor files, so what
may be reused is decided by the run store.
"""

from typing import TypedDict

from prefect.cache_policies import NO_CACHE, CachePolicy


class Policy(TypedDict):
    """Options of a task."""

    cache_policy: CachePolicy
    persist_result: bool
    retries: int
    retry_delay_seconds: int


STEP: Policy = {"cache_policy": NO_CACHE, "persist_result": False, "retries": 0, "retry_delay_seconds": 0}
"""A step that gives the same answer however often it is asked: a refusal or an error is final."""
