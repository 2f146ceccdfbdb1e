"""A person's decision about a release, and where it stands: no training and no orchestrator, done in a second."""

from tasks.approvals import Asked, Signed, Wish, decide, question, require_approved

__all__ = ["Asked", "Signed", "Wish", "decide", "question", "require_approved"]
