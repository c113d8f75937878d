"""How many tokens the stages of alignment read and write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from fedalign.errors import UserError


@dataclass(frozen=True)
class Lengths:
    """Widths of prompts and responses; the ``lengths`` block of the method.

    Parameters
    ----------
    prompt : int
        Longest prompt, in tokens; a longer one loses its beginning.
    response : int
        Longest response, in tokens.
    """

    prompt: Annotated[int, Field(ge=1)]
    response: Annotated[int, Field(ge=1)]

    def check(self, limit: int | None) -> None:
        """Refuse texts that are longer than a model reads.

        Raises
        ------
        UserError
            Naming both lengths.
        """
        if limit is not None and self.prompt + self.response > limit:
            raise UserError(
                f"method.lengths.prompt={self.prompt} and method.lengths.response={self.response}: "
                f"{self.prompt + self.response} tokens together, and the model reads {limit}; lower them"
            )
