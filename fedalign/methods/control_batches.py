"""Responses with what experts found of them: all that a control model needs to be trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedalign.methods.rollouts import rows_of
from fedalign.models.control import Told
from fedalign.models.mixing import Spoken
from fedalign.models.text import ResponseBatch


@dataclass(frozen=True)
class ControlBatch:
    """B responses in columns of fixed width; S is the width of a response, n the number of experts.

    Parameters
    ----------
    tokens : ResponseBatch
    texts : list of str, length B
    told : Told
    spoken : Spoken
        n numbers a token, where the mixture needs no more.
    mask : float32 tensor, shape (B, S)
        1 at tokens of the response.
    even : float32 tensor, shape (B, S)
        How likely the even mixture of the wanted experts finds each token, in nats; 0 beyond the response.
    drawn_at : float32 tensor, shape (B, S)
        How likely the mixture that drew each token found it; the even one's where nothing was drawn.
    """

    tokens: ResponseBatch
    texts: list[str]
    told: Told
    spoken: Spoken
    mask: Tensor
    even: Tensor
    drawn_at: Tensor

    def rows(self, index: Tensor) -> ControlBatch:
        """Return the responses at ``index``, int64 of shape (N,)."""
        return ControlBatch(
            rows_of(self.tokens, index),
            [self.texts[i] for i in index.tolist()],
            self.told.map(lambda tensor: tensor[index]),
            self.spoken.rows(index),
            self.mask[index],
            self.even[index],
            self.drawn_at[index],
        )
