"""Conversations as lists of messages, the form that chat templates and TRL use, turned into text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedalign.data.names import suggest
from fedalign.errors import UserError

SPEAKERS: Mapping[str, str] = {"system": "System", "user": "Human", "assistant": "Assistant"}
"""Role of a message to the name that stands before its text, as in published dialogues."""


def is_messages(value: object) -> bool:
    """Say whether a cell holds a conversation rather than a text."""
    return isinstance(value, (list, tuple))


def prompt_text(messages: object, where: str, column: str) -> str:
    """Return a conversation as one text that ends where the assistant's response begins.

    Raises
    ------
    UserError
        If it is no list of messages, or the assistant has spoken last.
    """
    turns = _turns(messages, where, column)
    if turns[-1][0] == "assistant":
        raise UserError(f"{where}: {column!r} ends with the assistant's message; it must end before the response")
    return "\n\n".join([*(f"{SPEAKERS[role]}: {content}" for role, content in turns), "Assistant:"])


def response_text(messages: object, where: str, column: str) -> str:
    """Return the text of a response given as messages.

    Raises
    ------
    UserError
        If it is no list of messages, or one of them is not the assistant's.
    """
    turns = _turns(messages, where, column)
    others = [role for role, _ in turns if role != "assistant"]
    if others:
        raise UserError(
            f"{where}: {column!r} holds a message of the {others[0]}; it must hold the assistant's response alone, "
            "and the conversation before it belongs into 'prompt'"
        )
    return "\n\n".join(content for _, content in turns)


def _turns(messages: object, where: str, column: str) -> list[tuple[str, str]]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UserError(f"{where}: {column!r} holds {str(messages)[:40]!r}; it must be a list of messages")
    return [_turn(message, where, column) for message in messages]


def _turn(message: object, where: str, column: str) -> tuple[str, str]:
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
        raise UserError(f"{where}: {column!r} holds {str(message)[:40]!r}; a message needs 'role' and 'content'")
    role, content = message["role"], message["content"]
    if role not in SPEAKERS:
        raise UserError(f"{where}: {column!r} has the role {role!r}{suggest(str(role), SPEAKERS)}")
    if not isinstance(content, str):
        raise UserError(f"{where}: {column!r} has the content {str(content)[:40]!r}; it must be a text")
    return str(role), content
