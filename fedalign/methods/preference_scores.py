"""The reward model of alignment: the fine-tuned model with a scalar head learns which response is preferred."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import logsigmoid

from fedalign.contribution import Contribution, State
from fedalign.data.corpus import REWARD, SFT, CorpusShard, Example
from fedalign.errors import UserError
from fedalign.methods.base import Artefacts, Setting
from fedalign.methods.corpus import CorpusPhase, Stage
from fedalign.methods.text_evaluation import by_group
from fedalign.methods.text_units import RowLosses
from fedalign.metrics.record import encode
from fedalign.privacy.local import KEY as LOCAL
from fedalign.rng import Streams

if TYPE_CHECKING:
    from fedalign.methods.dprlhf import DPRLHF


@dataclass(frozen=True)
class RewardModelTraining(Stage):
    """Settings of the reward model's training; the ``reward_model`` block of the method."""


class RewardModelPhase(CorpusPhase):
    """Federated training of a reward by the Bradley-Terry likelihood of users' preferences.

    It begins at the fine-tuned model. Its training has to be as private as all else: every gradient of the policy
    that it rewards later depends on all the preferences that it has seen.
    """

    name = REWARD
    stage = REWARD
    bounded_metrics = frozenset({"unseen/accuracy"})

    def __init__(self, method: DPRLHF, settings: RewardModelTraining, setting: Setting) -> None:
        super().__init__(settings, "method.reward_model", method.lengths, setting)
        privacy = setting.local_privacy
        if privacy is not None and privacy.settings.grad_sample == "ghost":
            raise UserError(
                f"{LOCAL}.grad_sample=ghost: both responses of a pair go through the same layers, which ghost clipping "
                "cannot serve; set hooks or loop"
            )
        self._evaluation = method.evaluation

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return the fine-tuned model's adapter, and a head that finds all responses alike."""
        head = {name: p.detach().cpu().clone() for name, p in self.network.head.named_parameters(prefix="head")}
        return self.start(streams, artefacts, [SFT]) | {name: torch.zeros_like(t) for name, t in head.items()}

    def row_losses(self, state: State) -> RowLosses:
        """Return the negative log-likelihood of each preference."""
        return lambda examples, seeds: -logsigmoid(self._margins(examples))

    @torch.no_grad()
    def evaluate(self, state: State, shard: CorpusShard, streams: Streams) -> Contribution:
        """Return how often the preferred response scores higher; equal scores are worth a half."""
        self.load(state)
        examples = [e for e in shard.test if e.rejected is not None][: self._evaluation.prompts]
        if not examples:
            return Contribution()
        parts = [examples[i : i + self._evaluation.batch] for i in range(0, len(examples), self._evaluation.batch)]
        margins, groups = torch.cat([self._margins(part) for part in parts]), [e.group for e in examples]
        right = (margins > 0).float() + 0.5 * (margins == 0)
        sums = [*by_group("unseen/accuracy", groups, right), *by_group("unseen/margin", groups, margins)]
        return Contribution(scalars=encode(sums))

    def export(self, state: State, directory: Path) -> None:
        """Write the adapter as peft reads it, and beside it the head that reads a score from a text's last token."""
        self.load(state)
        place = directory / "reward_adapter"
        self.network.policy.transformer.save_adapter(place)
        head = {name: p.detach().cpu().contiguous() for name, p in self.network.head.named_parameters()}
        save_file(head, place / "head.safetensors")

    def _margins(self, examples: Sequence[Example]) -> Tensor:
        """Return the score of each preferred response less that of the other one, shape (B,)."""
        responses = [text for e in examples for text in (e.response, e.rejected or "")]
        # A pair is two rows next to each other, as gradients by unit want it.
        prompts = [e.prompt for e in examples for _ in range(2)]
        batch = self.codec.continuations(prompts, responses, self.lengths.prompt, self.lengths.response)
        device = self.network.policy.device
        scores = self.network.scores(batch.ids.to(device), batch.attention_mask.to(device)).view(-1, 2)
        return scores[:, 0] - scores[:, 1]
