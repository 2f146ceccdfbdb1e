"""Verbs: one step each, with its orchestration concerns."""
