"""Templates are filled as written, and refused when they cannot be."""

from __future__ import annotations

import pytest

from fedalign.data.encoders.template import check_template, fill, option_letter
from fedalign.data.schema import Question
from fedalign.errors import UserError

QUESTION = Question("Tea {or} coffee?", ("tea", "coffee"))


def test_every_field_is_filled() -> None:
    template = "{question}|{options}|{letter}. {option}|{{literal}}"
    check_template(template)
    assert fill(template, QUESTION) == [
        "Tea {or} coffee?|A. tea\nB. coffee|A. tea|{literal}",
        "Tea {or} coffee?|A. tea\nB. coffee|B. coffee|{literal}",
    ]


@pytest.mark.parametrize(("index", "letter"), [(0, "A"), (25, "Z"), (26, "AA"), (27, "AB"), (51, "AZ"), (52, "BA")])
def test_letters_go_on_after_z(index: int, letter: str) -> None:
    assert option_letter(index) == letter


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{question}", "names neither {option} nor {letter}"),
        ("{quesion} {option}", "unknown field {quesion}; did you mean 'question'?"),
        ("{} {option}", "unknown field {}"),
        ("{option.text}", "unknown field {option.text}; did you mean 'option'?"),
        ("{option", "write a literal brace twice"),
        ("{option} }", "write a literal brace twice"),
        ("{option:d}", "{option} takes no format"),
        ("{option!r}", "{option} takes no format"),
    ],
)
def test_a_template_that_cannot_be_filled_is_refused(template: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        check_template(template)
    assert message in str(error.value)
