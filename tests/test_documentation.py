"""The reader of Markdown pages finds every command and refuses what it could not test."""

from __future__ import annotations

import pytest

from tests.documentation import Command, File, PageError, read_page


def page(*lines: str) -> str:
    return "\n".join(lines) + "\n"


def test_commands_in_order_with_comments_and_continuations():
    text = page(
        "# Title",
        "```bash",
        "# a comment",
        "fedalign list  # methods",
        "",
        "fedalign run \\",
        "  seed=1",
        "```",
    )
    assert read_page(text) == [
        Command(("fedalign", "list"), slow=False),
        Command(("fedalign", "run", "seed=1"), slow=False),
    ]


def test_quotes_group_words():
    text = page("```bash", "fedalign run 'partition.unseen=[a b, c]'", "```")
    assert read_page(text) == [Command(("fedalign", "run", "partition.unseen=[a b, c]"), slow=False)]


def test_files_keep_their_text_and_place():
    text = page("```bash", "fedalign list", "```", "", "```jsonl file=answers.jsonl", '{"a": 1}', "", "```")
    assert read_page(text) == [
        Command(("fedalign", "list"), slow=False),
        File("answers.jsonl", '{"a": 1}\n\n', slow=False),
    ]


def test_slow_marks_the_next_block_only():
    text = page("<!-- test: slow -->", "", "```bash", "fedalign run", "```", "```bash", "fedalign list", "```")
    assert [step.slow for step in read_page(text)] == [True, False]


def test_other_blocks_are_left_alone():
    text = page(
        "```console",
        "$ pip install fedalign | tee log",
        "```",
        "```",
        "text",
        "```",
        "````md",
        "```bash",
        "````",
    )
    assert read_page(text) == []


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["```bash", "rm -r outputs", "```"], "'rm' is not run"),
        (["```bash", "fedalign report outputs/*", "```"], "needs a shell"),
        (["```bash", "fedalign list > names.txt", "```"], "needs a shell"),
        (["```bash", 'fedalign run "name=$USER"', "```"], "needs a shell"),
        (["```bash", "fedalign list"], "never closed"),
        (["1. First", "   ```bash", "   fedalign list", "   ```"], "without indentation"),
        (["<!-- test: slow -->", "text", "```bash", "fedalign list", "```"], "right before"),
        (["```bash", "fedalign list", "```", "<!-- test: slow -->"], "marks no block"),
        (["<!-- test: skip -->", "```bash", "fedalign list", "```"], "unknown marker"),
        (["<!-- test: slow -->", "```text", "output", "```"], "never run"),
    ],
)
def test_refuses_what_it_could_not_test(lines, reason):
    with pytest.raises(PageError, match=reason):
        read_page(page(*lines))
