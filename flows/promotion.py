"""Promotion on request, rollback and reconciliation: no training and no orchestrator, each is done in seconds."""

from tasks.aliases import Found, promote, reconcile, rollback, verify_registered

__all__ = ["Found", "promote", "reconcile", "rollback", "verify_registered"]
