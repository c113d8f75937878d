"""Local training of a variational selector on many clients side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fedalign.contribution import Contribution, StackedContribution, State, stacked_delta
from fedalign.data.pairs import PairShard
from fedalign.methods.base import Memory
from fedalign.methods.local_training import load_parameters
from fedalign.methods.pair_stack import StackedBatch, drop, stack_batches
from fedalign.methods.stacked_training import train_stacked
from fedalign.models.stacked import Stack
from fedalign.models.variational import VariationalReward
from fedalign.objectives.latent import standard_kl
from fedalign.objectives.preference import preference_nll
from fedalign.rng import Streams

if TYPE_CHECKING:
    from fedalign.methods.selector import Drawing, PersonView, SelectorPhase


@dataclass(frozen=True)
class _Client:
    """One client in training: its people, and its own streams of episodes and of dropout."""

    shard: PairShard
    views: Mapping[str, PersonView]
    generator: torch.Generator
    dropout: torch.Generator


class SelectorStack:
    """Does what :meth:`SelectorPhase.local` does, for several clients together.

    Parameters
    ----------
    phase : SelectorPhase
    """

    def __init__(self, phase: SelectorPhase) -> None:
        self._phase, self._stack = phase, Stack(phase.network)

    def local_many(
        self, state: State, shards: Sequence[PairShard], streams: Sequence[Streams], memories: Sequence[Memory]
    ) -> StackedContribution:
        """Train every client on episodes of its own people."""
        phase, local, past = self._phase, self._phase.method.local, streams[0].round - 1
        clients = [
            _Client(shard, phase.views(state, shard, memory), own.torch("episodes"), own.torch("dropout"))
            for shard, own, memory in zip(shards, streams, memories, strict=True)
        ]
        sums = {name: torch.zeros(len(clients), dtype=torch.float64) for name in ("reconstruction", "kl")}

        def losses(step: int) -> Tensor:
            position = past + step / local.steps
            reconstruction, kl, rest = self._losses(clients, position)
            sums["reconstruction"] += reconstruction.detach().double() / local.steps
            sums["kl"] += kl.detach().double() / local.steps
            return reconstruction + phase.kl_weight(position) * kl + rest

        weights = [[view.weights for view in c.views.values() if view.weights is not None] for c in clients]
        personal = [each.logits for own in weights for each in own]
        steps = (local.steps * past, local.steps * phase.rounds)
        outcome = train_stacked(self._stack, state, losses, local, *steps, memories, personal)
        for own, memory in zip(weights, memories, strict=True):
            for each in own:
                each.remember(memory)
        told = [
            self._told(state, client, place, {"loss": loss, **{name: float(sums[name][place]) for name in sums}})
            for place, (client, loss) in enumerate(zip(clients, outcome.losses, strict=True))
        ]
        shares = [phase.method.client_weight(shard) for shard in shards]
        return stacked_delta(state, self._stack.parameters, shares, told, outcome.failures)

    def _told(self, state: State, client: _Client, place: int, values: Mapping[str, float]) -> Contribution:
        """Return what a client adds beside its change."""
        if not self._phase.method.prior.silent:
            load_parameters(self._phase.network, self._stack.one(place))
        return self._phase.told(state, client.shard, values, client.generator)

    def _losses(self, clients: Sequence[_Client], position: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return negative log-likelihood, KL and prototype loss of every client, each of shape (clients,)."""
        reward = cast(VariationalReward, self._stack.network.reward)
        draws = [self._phase.draw(client.shard.people, client.generator) for client in clients]
        context, target = self._batches(draws, clients)
        mean, log_variance = reward.posterior(context.first, context.second, context.preferred, context.known)
        z = mean + (0.5 * log_variance).exp() * torch.stack([drawing.noise for drawing in draws])
        kept = [drawing.keep.T for drawing in draws if drawing.keep is not None]
        keep = pad_sequence(kept, batch_first=True).transpose(1, 2) if kept else None
        nll = preference_nll(reward.logits(target.first, target.second, z, keep), target.preferred)
        kl = self._divergences(mean, log_variance, draws, clients, position)
        return target.mean(nll), kl, self._pulls(z, draws, clients, position)

    def _batches(self, draws: Sequence[Drawing], clients: Sequence[_Client]) -> tuple[StackedBatch, StackedBatch]:
        """Return all clients' contexts and targets, as the body reads them in training."""
        share = self._phase.network.reward.body.input_dropout
        pairs = [
            (drop(drawing.drawn.context, share, client.dropout), drop(drawing.drawn.target, share, client.dropout))
            for drawing, client in zip(draws, clients, strict=True)
        ]
        return stack_batches([context for context, _ in pairs]), stack_batches([target for _, target in pairs])

    def _divergences(
        self,
        mean: Tensor,
        log_variance: Tensor,
        draws: Sequence[Drawing],
        clients: Sequence[_Client],
        position: float,
    ) -> Tensor:
        """Return each client's KL; from the standard normal for all at once."""
        mixed = self._phase.method.divergence.form != "standard"
        if not (mixed and any(view.components is not None for c in clients for view in c.views.values())):
            return standard_kl(mean, log_variance).mean(1)
        return torch.stack(
            [
                self._phase.kl(mean[i], log_variance[i], draws[i].drawn, client.views, position, client.generator)
                for i, client in enumerate(clients)
            ]
        )

    def _pulls(self, z: Tensor, draws: Sequence[Drawing], clients: Sequence[_Client], position: float) -> Tensor:
        """Return each client's prototype loss."""
        if self._phase.method.prototypes is None:
            return torch.zeros(len(clients))
        prototypes = self._stack.parameters["prototypes"]
        return torch.stack(
            [
                self._phase.pull(z[i], prototypes[i], draws[i].drawn, client.views, position)
                for i, client in enumerate(clients)
            ]
        )
