"""How a question and one of its options become the text that an encoder reads."""

from __future__ import annotations

import string

from fedalign.data.names import suggest
from fedalign.data.schema import Question
from fedalign.errors import UserError

FIELDS = ("question", "options", "option", "letter")
"""What a template may name: the question, all options as a lettered list, the option itself, its letter."""


def check_template(template: str) -> None:
    """Refuse a template that cannot be filled or that gives every option the same text.

    Raises
    ------
    UserError
        If braces do not match, a field is unknown, or neither ``{option}`` nor ``{letter}`` is there.
    """
    try:
        parts = [part for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise UserError(f"encoder.template={template!r}: {error}; write a literal brace twice") from None
    for _, field, spec, conversion in parts:
        if field not in FIELDS:
            raise UserError(f"encoder.template: unknown field {{{field}}}{suggest(str(field), FIELDS)}")
        if spec or conversion:
            raise UserError(f"encoder.template: {{{field}}} takes no format; write it without ':' or '!'")
    if not {"option", "letter"} & {field for _, field, _, _ in parts}:
        raise UserError(
            f"encoder.template={template!r}: names neither {{option}} nor {{letter}}, so all options look alike"
        )


def fill(template: str, question: Question) -> list[str]:
    """Return one text per option of ``question``."""
    letters = [option_letter(i) for i in range(len(question.options))]
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip(letters, question.options, strict=True))
    return [
        template.format(question=question.text, options=listed, option=option, letter=letter)
        for letter, option in zip(letters, question.options, strict=True)
    ]


def option_letter(index: int) -> str:
    """Return A, B, ..., Z, AA, AB, ... for option 0, 1, ..."""
    letters = string.ascii_uppercase
    return letters[index] if index < 26 else option_letter(index // 26 - 1) + letters[index % 26]
