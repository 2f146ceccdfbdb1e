"""Journeys: what happens, in what order."""
