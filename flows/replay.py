"""Judging a release again: no training and no orchestrator, it is done in seconds."""

from tasks.judge_again import judge_again

__all__ = ["judge_again"]
