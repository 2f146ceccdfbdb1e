"""Engines: one foreign heavy library each, imported at the top."""
