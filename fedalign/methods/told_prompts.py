"""Prompts before which a preference stands in words."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fedalign.errors import UserError
from fedalign.methods.stated_preference import Preferences
from fedalign.methods.text_lengths import Lengths
from fedalign.models.text import TextCodec

KEY = "method.merging"


class Teller:
    """Puts preferences before prompts, in words: ``praise, ornate, short. `` and the prompt.

    Parameters
    ----------
    preferences : Preferences
    codec : TextCodec
    lengths : Lengths
        Of prompts without a statement, and of responses.
    statement : int
        Tokens that a statement may have.

    Attributes
    ----------
    widened : Lengths
        Of prompts with a statement.

    Raises
    ------
    UserError
        If a statement is longer.
    """

    def __init__(self, preferences: Preferences, codec: TextCodec, lengths: Lengths, statement: int) -> None:
        self.preferences, self.codec, self.lengths = preferences, codec, lengths
        self.widened = Lengths(lengths.prompt + statement, lengths.response)
        opened = [f"{each}. " for each in preferences.statements]
        longest = int(codec.prompts(opened, 2**31)[1].sum(1).max())
        if longest > statement:
            raise UserError(f"{KEY}.statement={statement}: a statement has {longest} tokens; set {longest}, or more")

    def check(self, limit: int | None, statement: int) -> None:
        """Refuse a statement for which a model has no room."""
        total = self.widened.prompt + self.widened.response
        if limit is not None and total > limit:
            raise UserError(
                f"{KEY}.statement={statement}: with method.lengths that is {total} tokens, and the model reads "
                f"{limit}; lower them"
            )

    def told(self, prompts: Sequence[str], vectors: Tensor) -> list[str]:
        """Return prompts with what is wanted before them; where nothing is stated, as they are.

        A prompt that is too long loses its beginning first, so that the statement stays.
        """
        ids, mask = self.codec.prompts(prompts, 2**31)
        found = []
        for row, (prompt, vector) in enumerate(zip(prompts, vectors, strict=True)):
            if int(mask[row].sum()) > self.lengths.prompt:
                (prompt,) = self.codec.decode(ids[row : row + 1, -self.lengths.prompt :])
            statement = self.preferences.statement(vector)
            found.append(f"{statement}. {prompt}" if statement else prompt)
        return found
