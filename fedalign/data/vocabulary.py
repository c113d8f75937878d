"""The words that the synthetic survey's questions are made of."""

from __future__ import annotations

THEMES: tuple[tuple[str, ...], ...] = (
    ("taxes", "wages", "pensions", "banks", "trade", "factories", "prices", "jobs"),
    ("police", "courts", "elections", "parliament", "mayors", "army", "borders", "ministers"),
    ("schools", "libraries", "museums", "science", "teachers", "universities", "books", "exams"),
    ("hospitals", "medicine", "nurses", "vaccines", "diets", "surgery", "doctors", "hygiene"),
    ("forests", "rivers", "climate", "animals", "windmills", "oceans", "farming", "parks"),
    ("religion", "marriage", "family", "children", "neighbours", "traditions", "weddings", "prayer"),
    ("football", "music", "television", "newspapers", "internet", "films", "games", "festivals"),
    ("railways", "cars", "bicycles", "airports", "roads", "buses", "bridges", "harbours"),
)
"""Topic words by theme; a question stays within one theme, and words of a theme mean similar things."""

GRADED_TEMPLATES: tuple[str, ...] = (
    "What do you think of {} and {}?",
    "Should the state spend more on {} and {}?",
    "Do {} and {} make life better?",
    "How do you see the future of {} and {}?",
)
"""Question templates for graded scales, two topic words each."""

PICK_TEMPLATES: tuple[str, ...] = (
    "Which of these matters most to you?",
    "Which of these should get more money?",
    "Which of these do people talk about most?",
)
"""Question templates whose options are topic words."""

GRADED_SCALES: tuple[tuple[str, ...], ...] = (
    ("Yes", "No"),
    ("Good", "Bad"),
    ("More", "About the same", "Less"),
    ("Strongly agree", "Agree", "Disagree", "Strongly disagree"),
    ("Very good", "Somewhat good", "Somewhat bad", "Very bad"),
    ("Completely agree", "Agree", "Undecided", "Disagree", "Completely disagree"),
    ("Very much", "Much", "Somewhat", "Neutral", "A little", "Hardly", "Not at all"),
    tuple(f"{grade} of 10" for grade in range(10, 0, -1)),
)
"""Answer scales of 2 to 10 options, from the most to the least favourable."""
