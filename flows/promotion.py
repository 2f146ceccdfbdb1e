"""Promotion on request, rollback and reconciliation: no training and no orchestrator, each is done in seconds."""

from tasks.aliases import Found, promote, reconcile, rollback
from tasks.promote import told

__all__ = ["Found", "promote", "reconcile", "rollback", "told"]
