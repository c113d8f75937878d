"""Weights of somebody who knows the world's words: what token-wise merging of these experts could do.

At every token all weight is on the wanted expert that is least likely to go wrong there, where going wrong is to begin
a word of a side that is not wanted, to join another clause to a text that should be short, or to end one that should be
long. Where none is in danger of that, weights are even.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedalign.data.pair_vocabulary import (
    CRITICISM,
    ORNATE_ADVERBS,
    ORNATE_CONNECTIVES,
    PLAIN_ADVERBS,
    PLAIN_CONNECTIVES,
    PRAISE,
)
from fedalign.models.experts import Pairs
from fedalign.models.mixing import Linear
from fedalign.models.text import TextCodec

_WORDS = {
    "praise": CRITICISM,
    "criticism": PRAISE,
    "plain": (*ORNATE_ADVERBS, *ORNATE_CONNECTIVES),
    "ornate": (*PLAIN_ADVERBS, *PLAIN_CONNECTIVES),
}
"""What must not be begun, by the side that is wanted."""
_JOINT, _STOP = ";", "."
_DANGER = 0.01


@dataclass(frozen=True)
class Oracle(Linear):
    """Linear mixing at weights of its own, whatever a control model says.

    Parameters
    ----------
    wrong : float tensor, shape (n, V)
        1 at tokens with which a text goes wrong where a side is wanted.
    """

    wrong: Tensor

    def next_token(self, log_weights: Tensor, log_probs: Tensor, pairs: Pairs) -> Tensor:
        """Return the distribution of the expert that is least in danger."""
        there = log_weights.isfinite()
        unwanted = (there.float() @ self.wrong.to(log_probs)).clamp(max=1.0)
        danger = log_weights.new_full(log_weights.shape, torch.inf)
        danger[pairs.text, pairs.expert] = (log_probs.exp() * unwanted[pairs.text]).sum(1)
        safest = torch.nn.functional.one_hot(danger.argmin(1), danger.shape[1]).bool()
        calm = danger.where(there, -torch.inf).amax(1, keepdim=True) < _DANGER
        chosen = torch.where(calm, there, safest)
        weights = torch.where(chosen, 0.0, -torch.inf)
        return super().next_token(weights.log_softmax(1), log_probs, pairs)


def wrong_tokens(names: Sequence[str], codec: TextCodec, vocabulary: int) -> Tensor:
    """Return the tokens that begin what a side does not want, float32 of shape (n, V)."""
    found = torch.zeros(len(names), vocabulary)
    for row, name in enumerate(names):
        for word in _WORDS.get(name, ()):
            found[row, _first(codec, f" {word}")] = 1.0
    if "short" in names:
        found[list(names).index("short"), _first(codec, _JOINT)] = 1.0
    if "long" in names:
        found[list(names).index("long"), _first(codec, _STOP)] = 1.0
    # A token that begins words of both sides tells nothing.
    for first, second in (("praise", "criticism"), ("plain", "ornate")):
        rows = [list(names).index(side) for side in (first, second)]
        both = found[rows].prod(0).bool()
        found[rows[0], both] = found[rows[1], both] = 0.0
    return found


def _first(codec: TextCodec, text: str) -> int:
    ids, mask = codec.prompts([text], 2**31)
    return int(ids[0, int(mask[0].argmax())])
