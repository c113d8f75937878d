"""The colours of every plot."""

# Of Okabe and Ito's palette, told apart by most colour-blind readers.
BLUE, ORANGE = "#0072B2", "#D55E00"
CATEGORIES = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Colours of things without an order, the most different first."""
INK, MUTED, GRID = "#24292f", "#6b7480", "#e3e7ec"
