"""Scores as pure functions and as sums."""
