"""What responses are compared with: texts of an even mixture of experts, the same for everybody who asks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedalign.methods.rollouts import uniform
from fedalign.methods.stated_preference import SideRewards
from fedalign.methods.stated_writer import MergedWriter
from fedalign.models.experts import Experts
from fedalign.rng import Streams


class ReferenceTexts:
    """Writes with all experts at equal weights, whatever is wanted.

    The reference response of a prompt depends on the prompt and the experts alone: it is drawn from the prompt's own
    stream, so that clients, rounds and arms compare with the same text. The paper does not say what model wrote its
    reference responses.

    Parameters
    ----------
    writer : MergedWriter
        Its control model is never asked: weights are fixed.
    """

    def __init__(self, writer: MergedWriter) -> None:
        self._writer = writer
        self._measured: dict[str, Tensor] = {}

    @property
    def experts(self) -> Experts:
        """Who writes."""
        return self._writer.merger.experts

    @property
    def width(self) -> int:
        """Tokens of a response, at most."""
        return self._writer.lengths.response

    def forget(self) -> None:
        """Forget all texts: the experts are others."""
        self._measured.clear()

    def measured(self, rewards: SideRewards, prompts: Sequence[str]) -> Tensor:
        """Return the measures of the prompts' reference responses, float32 of shape (B, D); each is written once."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._measured]
        if new:
            everybody = torch.ones(len(new), len(self.experts.names))
            seeds = [int(Streams(0, client=prompt).numpy("reference").integers(2**62)) for prompt in new]
            texts = self.even(new, everybody, uniform(seeds, self.width), 1.0)
            self._measured |= dict(zip(new, rewards.measured(new, texts), strict=True))
        return torch.stack([self._measured[prompt] for prompt in prompts])

    @torch.no_grad()
    def even(self, prompts: Sequence[str], vectors: Tensor, draws: Tensor | None, temperature: float) -> list[str]:
        """Return what the experts that preferences name write at equal weights.

        Parameters
        ----------
        prompts : sequence of str, length B
        vectors : float32 tensor, shape (B, n)
            No row is all 0.
        draws, temperature
            See :class:`fedalign.methods.stated_writer.StatedWriter`.
        """
        return self._writer.write_told(prompts, self._writer.told(vectors).even(), draws, temperature).texts
