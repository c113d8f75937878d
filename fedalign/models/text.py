"""Texts to token batches and back, for policies: prompts to continue, and responses to score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedalign.errors import UserError
from fedalign.hub import model_folder
from fedalign.pretrained import load_tokenizer

BROKEN = "\ufffd"
"""What stands for a character of which some tokens are still missing."""


@dataclass(frozen=True)
class ResponseBatch:
    """Prompts with their responses, padded on the right; B texts of at most T tokens.

    Parameters
    ----------
    ids : int64 tensor, shape (B, T)
    attention_mask : int64 tensor, shape (B, T)
        1 for tokens, 0 for padding.
    response_mask : int64 tensor, shape (B, T)
        1 for the response's tokens, the one that ends it included.
    """

    ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor


class TextCodec:
    """A model's tokenizer.

    Prompt and response are tokenised apart, so that their border is exact and a response that was sampled token by
    token is scored as it was sampled.

    Parameters
    ----------
    model : str
        Hub name or local folder.
    key : str
        Where the settings that name the model stand in the configuration, e.g. ``method.policy``.

    Raises
    ------
    UserError
        If the tokenizer cannot be had, or has no token that ends a text.
    """

    def __init__(self, model: str, key: str) -> None:
        self._tokenizer = load_tokenizer(model_folder(model, f"{key}.model"), f"{key}.model")
        if self._tokenizer.eos_token_id is None:
            raise UserError(f"{key}.model={model}: its tokenizer has no token that ends a text; choose a causal model")

    def prompts(self, texts: Sequence[str], max_tokens: int) -> tuple[Tensor, Tensor]:
        """Return token ids and attention mask, each int64 of shape (B, P), padded on the left.

        A prompt that is too long loses its beginning; an empty one becomes the token that ends texts, which is what
        causal models see before a text.
        """
        rows = [ids[-max_tokens:] for ids in self._prompt_ids(texts)]
        return _padded(rows, self._tokenizer.pad_token_id, left=True)

    def responses(self, prompts: Sequence[str], responses: Sequence[str], max_tokens: int) -> ResponseBatch:
        """Return the texts that a policy is asked to score.

        A text that is too long loses the beginning of its prompt, then the end of its response.

        Parameters
        ----------
        prompts, responses : sequences of str, each of length B
        max_tokens : int
            At least 2.
        """
        written = self._tokenizer(list(responses), add_special_tokens=False)["input_ids"]
        # One token of the prompt stays: without it nothing predicts the response's first.
        endings = [[*ids, self._tokenizer.eos_token_id][: max_tokens - 1] for ids in written]
        openings = [
            ids[-(max_tokens - len(ending)) :] for ids, ending in zip(self._prompt_ids(prompts), endings, strict=True)
        ]
        pad = self._tokenizer.pad_token_id
        ids, mask = _padded([a + b for a, b in zip(openings, endings, strict=True)], pad, left=False)
        before = torch.tensor([len(opening) for opening in openings])[:, None]
        return ResponseBatch(ids, mask, mask * (torch.arange(ids.shape[1]) >= before))

    def continuations(
        self, prompts: Sequence[str], responses: Sequence[str], max_prompt_tokens: int, max_new_tokens: int
    ) -> ResponseBatch:
        """Return prompts and responses in columns of their own, as rollouts have them: B texts of one fixed width.

        A prompt that is too long loses its beginning. A response that is too long loses its end and the token that
        would end it. The width does not depend on the texts, so that no text reaches how another is computed.

        Parameters
        ----------
        prompts, responses : sequences of str, each of length B
        max_prompt_tokens, max_new_tokens : int
            Widths of the columns: prompts are padded on the left, responses on the right.
        """
        ids, mask = self.openings(prompts, max_prompt_tokens)
        written = self._tokenizer(list(responses), add_special_tokens=False)["input_ids"]
        endings = [[*each, self._tokenizer.eos_token_id][:max_new_tokens] for each in written]
        pad = self._tokenizer.pad_token_id
        new, seen = _padded(endings, pad, left=False, width=max_new_tokens)
        return ResponseBatch(
            torch.cat([ids, new], 1), torch.cat([mask, seen], 1), torch.cat([torch.zeros_like(mask), seen], 1)
        )

    def openings(self, prompts: Sequence[str], max_prompt_tokens: int) -> tuple[Tensor, Tensor]:
        """Return what :meth:`prompts` does, padded to ``max_prompt_tokens`` columns whatever the texts are."""
        rows = [ids[-max_prompt_tokens:] for ids in self._prompt_ids(prompts)]
        return _padded(rows, self._tokenizer.pad_token_id, left=True, width=max_prompt_tokens)

    def decode(self, ids: Tensor) -> list[str]:
        """Return the texts of generated tokens, shape (B, new), up to the token that ends each."""
        texts: list[str] = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        return texts

    def pieces(self, ids: Tensor) -> list[list[str]]:
        """Return what each token adds to the texts of :meth:`decode`, which are these pieces joined.

        A character of several tokens belongs to the first of them; the others, and tokens that are not text, such as
        the one that ends it, add nothing.

        Parameters
        ----------
        ids : int64 tensor, shape (B, new)
        """
        return [self._pieces(row) if len(row) else [] for row in ids]

    def _pieces(self, row: Tensor) -> list[str]:
        (text,) = self.decode(row[None])
        prefixes = self._prefixes(row)
        pieces, place, waiting = [""] * len(row), 0, None
        for number, prefix in enumerate(prefixes):
            known = max(place, _common(prefix, text))
            if known > place and waiting is not None:
                pieces[waiting] += text[place]
                place, waiting = place + 1, None
            pieces[number] += text[place:known]
            place = known
            if prefix.endswith(BROKEN) and known < len(prefix) and waiting is None:
                waiting = number
        pieces[-1] += text[place:]
        return pieces

    def _prefixes(self, row: Tensor) -> list[str]:
        """Return the texts of the first token, the first two, and so on; int64 of shape (new,)."""
        prefixes = [row[: end + 1].tolist() for end in range(len(row))]
        texts: list[str] = self._tokenizer.batch_decode(prefixes, skip_special_tokens=True)
        return texts

    def _prompt_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [ids or [self._tokenizer.eos_token_id] for ids in self._tokenizer(list(texts))["input_ids"]]


class TextStream:
    """Hands on a text while its tokens are drawn; a character waits until all of its tokens are there.

    Parameters
    ----------
    codec : TextCodec
    on_piece : callable
    """

    def __init__(self, codec: TextCodec, on_piece: Callable[[str], None]) -> None:
        self._codec, self._on_piece = codec, on_piece
        self._ids: list[Tensor] = []
        self._shown = 0

    def take(self, token: Tensor, weights: Tensor, ended: Tensor) -> None:
        """Add the only text's next token."""
        if not bool(ended[0]):
            self._ids.append(token)
            self._show(self._text().rstrip(BROKEN))

    def close(self) -> None:
        """Show what was still waiting."""
        if self._ids:
            self._show(self._text())

    def _text(self) -> str:
        return self._codec.decode(torch.stack(self._ids, 1))[0]

    def _show(self, text: str) -> None:
        if len(text) > self._shown:
            self._on_piece(text[self._shown :])
            self._shown = len(text)


def _padded(rows: Sequence[Sequence[int]], pad: int, left: bool, width: int | None = None) -> tuple[Tensor, Tensor]:
    """Return ids and mask, int64 of shape (rows, width); without a width, that of the longest row."""
    longest = max(len(row) for row in rows) if width is None else width
    ids = torch.full((len(rows), longest), pad, dtype=torch.int64)
    mask = torch.zeros(len(rows), longest, dtype=torch.int64)
    for i, row in enumerate(rows):
        place = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[i, place] = torch.tensor(row)
        mask[i, place] = 1
    return ids, mask


def _common(one: str, other: str) -> int:
    """Return how long the beginning is that two texts share."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
