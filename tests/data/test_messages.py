"""Conversations become text that ends where the response begins."""

from __future__ import annotations

import pytest

from fedalign.data.hh_rlhf import split_dialogue
from fedalign.data.messages import is_messages, prompt_text, response_text
from fedalign.errors import UserError


def say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_a_conversation_reads_as_published_dialogues_do() -> None:
    talk = [say("user", "Hi"), say("assistant", "Hello."), say("user", "How?")]
    text = prompt_text(talk, "row", "prompt")
    assert text == "Human: Hi\n\nAssistant: Hello.\n\nHuman: How?\n\nAssistant:"
    assert split_dialogue(f"\n\n{text} So.") == (text, "So.")


def test_a_response_is_the_assistants_words() -> None:
    assert response_text([say("assistant", "So."), say("assistant", "Yes.")], "row", "chosen") == "So.\n\nYes."
    assert response_text((say("assistant", ""),), "row", "chosen") == ""


def test_what_is_a_conversation() -> None:
    assert is_messages([]) and is_messages((1,))
    assert not is_messages("text") and not is_messages({"role": "user"}) and not is_messages(None)


@pytest.mark.parametrize(
    ("read", "messages", "message"),
    [
        (prompt_text, [say("assistant", "So.")], "row: 'x' ends with the assistant's message"),
        (response_text, [say("user", "So.")], "row: 'x' holds a message of the user"),
        (prompt_text, [], "row: 'x' holds '\\[\\]'; it must be a list of messages"),
        (prompt_text, [{"role": "user"}], "a message needs 'role' and 'content'"),
        (prompt_text, [say("human", "Hi")], "role 'human'; known: 'system', 'user', 'assistant'"),
        (response_text, [{"role": "assistant", "content": None}], "content 'None'; it must be a text"),
    ],
)
def test_what_is_malformed_is_refused(read: object, messages: object, message: str) -> None:
    assert callable(read)
    with pytest.raises(UserError, match=message):
        read(messages, "row", "x")
