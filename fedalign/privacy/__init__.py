"""Guarantees and how they are reported."""
