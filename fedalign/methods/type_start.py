"""Where EM begins: types must differ before judgments can tell them apart.

With all types equal the posterior is the prior, every type gets the same gradient, and they stay equal for ever. A
start breaks that tie: annotators are clustered by what they answered to a public probe, or by where a first training
takes them; or types are drawn at random.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedalign.contribution import State
from fedalign.data.rankings import RankingShard
from fedalign.errors import UserError
from fedalign.methods.local_training import LocalTraining, train
from fedalign.methods.type_model import TypeModel, named
from fedalign.objectives.plackett_luce import orders_of, ranking_log_likelihood
from fedalign.rng import Streams

KEY = "method.start"


class Start(ABC):
    """Where types begin; the ``start`` block of the method."""

    def check_types(self, number: int) -> None:  # noqa: B027 - most starts leave types apart
        """Refuse a start that leaves so many types alike.

        Raises
        ------
        UserError
            Naming the setting and the fix.
        """

    @abstractmethod
    def types(self, model: TypeModel, number: int, streams: Streams) -> State:
        """Return the types' first parameters, under their names in a state."""


@dataclass(frozen=True)
class RandomStart(Start):
    """Types are drawn apart from one another.

    Parameters
    ----------
    scale : float
        Standard deviation of what is added to every parameter of a type, as a multiple of the parameters' root mean
        square. Fresh adapters all act alike, so that 0 would leave them equal.
    """

    scale: Annotated[float, Field(ge=0)]

    def check_types(self, number: int) -> None:
        """Refuse types that would not be drawn apart."""
        if number > 1 and self.scale == 0:
            raise UserError(
                f"{KEY}.scale=0: types that begin alike stay alike, for the posterior of each annotator is the prior "
                f"then; set {KEY}.scale above 0, or take method/start=probe or method/start=deltas"
            )

    def types(self, model: TypeModel, number: int, streams: Streams) -> State:
        """Return types that differ."""
        return _drawn(model, number, streams, self.scale)


@dataclass(frozen=True)
class EqualStart(Start):
    """All types begin with the same parameters, which EM cannot leave: refused, but for a demonstration.

    Parameters
    ----------
    demonstration : bool
        Whether to begin like this all the same.
    """

    demonstration: bool

    def check_types(self, number: int) -> None:
        """Refuse several types, unless it is a demonstration."""
        if number > 1 and not self.demonstration:
            raise UserError(
                "method/start=equal: types that begin alike stay alike, for the posterior of each annotator is the "
                "prior then; take method/start=probe, deltas or random (method.start.demonstration=true shows it)"
            )

    def types(self, model: TypeModel, number: int, streams: Streams) -> State:
        """Return one draw for all."""
        state: State = {}
        for k in range(number):
            state |= named(model.fresh(streams.at(client="type")), k)
        return state


@dataclass(frozen=True)
class ClusteredStart(Start):
    """Annotators are clustered by a signature of each, and train the type of their cluster at first.

    The clusters are k-means', found by sums alone. A sum over one annotator is its signature, though: without secure
    sums the server reads it from a device's, and a cluster of one has it as its centre, which all clients are sent.
    Noise (``privacy=central``) bounds what can be learnt of it. First centres are drawn from the normal distribution of
    the signatures, in its directions of largest variance.

    Parameters
    ----------
    dimensions : int
        Length of a signature; a longer one is projected at random, by a matrix that the seed gives.
    iterations : int
        Rounds of k-means.
    restarts : int
        How many times it begins, side by side; the clusters with the least spread are taken.
    rounds : int
        Rounds of EM in which the clusters say who is of which type; after them, judgments do.
    spread : float
        What :class:`RandomStart` has as ``scale``; types need not differ, since clusters tell them apart.
    """

    dimensions: Annotated[int, Field(ge=1)]
    iterations: Annotated[int, Field(ge=1)]
    restarts: Annotated[int, Field(ge=1)]
    rounds: Annotated[int, Field(ge=1)]
    spread: Annotated[float, Field(ge=0)]

    def types(self, model: TypeModel, number: int, streams: Streams) -> State:
        """Return types as they are drawn."""
        return _drawn(model, number, streams, self.spread)

    def check(self, shard: RankingShard) -> None:
        """Refuse a shard whose annotators have no signatures; by default all have.

        Raises
        ------
        UserError
            Naming the client and the fix.
        """

    @abstractmethod
    def raw(self, model: TypeModel, base: State, shard: RankingShard, index: Tensor, seed: int) -> Tensor:
        """Return what annotators are told apart by, float32 of shape (P, any).

        Parameters
        ----------
        model : TypeModel
        base : State
            One type's parameters, from which signatures that need training begin; the same for all.
        shard : RankingShard
        index : int64 Tensor
            Judgments that may be learnt from.
        seed : int
        """

    def signatures(self, model: TypeModel, base: State, shard: RankingShard, index: Tensor, seed: int) -> Tensor:
        """Return the annotators' signatures, float64 of shape (P, dimensions); see :meth:`raw`."""
        raw = self.raw(model, base, shard, index, seed).double()
        if raw.shape[1] <= self.dimensions:
            return torch.nn.functional.pad(raw, (0, self.dimensions - raw.shape[1]))
        generator = Streams(seed, "start").torch("projection")
        parts = []
        # In pieces, since a projection of whole adapters would be larger than they are, many times over.
        for piece in torch.split(raw, 4096, 1):
            matrix = torch.randn(piece.shape[1], self.dimensions, generator=generator, dtype=torch.float64)
            parts.append(piece @ matrix)
        projected: Tensor = torch.stack(parts).sum(0) / self.dimensions**0.5
        return projected


@dataclass(frozen=True)
class ProbeStart(ClusteredStart):
    """Signatures are the answers to the probe: public menus that every annotator ranked before the first round."""

    def check(self, shard: RankingShard) -> None:
        """Refuse annotators who were asked nothing, or answered nothing."""
        if not shard.probe.shape[1] or bool((shard.probe < 0).flatten(1).all(1).any()):
            raise UserError(
                f"method/start=probe: client {shard.client!r} has annotators without answers to a probe; set "
                "data.probe_menus, give the file rows with probe=true for each, or take method/start=deltas"
            )

    def raw(self, model: TypeModel, base: State, shard: RankingShard, index: Tensor, seed: int) -> Tensor:
        """Return the scores that each annotator gave the responses of each menu."""
        return borda(shard.probe).flatten(1)


@dataclass(frozen=True)
class DeltaStart(ClusteredStart):
    """Signatures are where some steps of training on an annotator's own judgments take the network.

    Parameters
    ----------
    batch : int
        Judgments in a gradient step, at most.
    local : LocalTraining
        The steps.
    """

    batch: Annotated[int, Field(ge=1)]
    local: LocalTraining

    def raw(self, model: TypeModel, base: State, shard: RankingShard, index: Tensor, seed: int) -> Tensor:
        """Return each annotator's change of the parameters, at length 1."""
        rows = [self._change(model, base, shard, index, number, seed) for number in range(len(shard.people))]
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)

    def _change(
        self, model: TypeModel, base: State, shard: RankingShard, index: Tensor, number: int, seed: int
    ) -> Tensor:
        own = index[shard.owner[index] == number]
        streams = Streams(seed, "start", client=shard.people[number])
        generator = streams.torch("batches")

        def loss(step: int) -> Tensor:
            drawn = own[torch.randperm(len(own), generator=generator)[: self.batch]]
            values = model.utilities(shard, drawn).values
            return -ranking_log_likelihood(values, orders_of(shard.tiers[drawn])).mean()

        settings = replace(self.local, optimizer_state="reset")
        with torch.inference_mode(False), torch.enable_grad(), streams.torch_default("dropout"):
            model.network.train()
            train(model.network, base, loss, settings, 0, settings.steps, {})
        after = model.trained()
        return torch.cat([(after[name] - base[name]).flatten() for name in sorted(base)])


def borda(tiers: Tensor) -> Tensor:
    """Return ranks as scores around 0, by menu: from 1/2 for the best of a strict order to -1/2 for the worst.

    Parameters
    ----------
    tiers : int64 Tensor, shape (..., R)
        -1 where there is no response.

    Returns
    -------
    float32 Tensor, shape (..., R)
        0 where there is no response.
    """
    there = tiers >= 0
    below = (tiers[..., :, None] < tiers[..., None, :]) & there[..., :, None] & there[..., None, :]
    won, lost = below.sum(-1), below.sum(-2)
    others = (there.sum(-1, keepdim=True) - 1).clamp(min=1)
    return torch.where(there, (won - lost) / (2 * others), 0.0).float()


def _drawn(model: TypeModel, number: int, streams: Streams, scale: float) -> State:
    state: State = {}
    for k in range(number):
        state |= named(shaken(model.fresh(streams.at(client=f"type {k}")), scale, streams, f"apart/{k}"), k)
    return state


def shaken(parameters: State, scale: float, streams: Streams, purpose: str) -> State:
    """Return parameters with normal noise of ``scale`` times the root mean square of all of them."""
    generator = streams.torch(purpose)
    square = sum(float(t.double().square().sum()) for t in parameters.values())
    size = scale * (square / max(1, sum(t.numel() for t in parameters.values()))) ** 0.5
    return {
        name: tensor + size * torch.randn(tensor.shape, generator=generator).to(tensor)
        for name, tensor in parameters.items()
    }
