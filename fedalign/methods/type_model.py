"""K latent types as K sets of parameters of one network: what each type finds of each response."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedalign.contribution import State
from fedalign.data.rankings import RankingShard
from fedalign.methods.local_training import load_parameters, trainable
from fedalign.rng import Streams

TYPES = "types."
"""What names of type parameters begin with: ``types.<k>.<parameter>``."""

PRIOR = "prior"
"""Name of the share of annotators of each type, float32 of shape (K,), sum 1."""


@dataclass(frozen=True)
class Utilities:
    """What one type finds of the responses of n judgments.

    Parameters
    ----------
    values : Tensor, shape (n, S)
        Utilities, comparable within a menu only; what stands at absent responses means nothing.
    likelihood : Tensor, shape (n,), or None
        Mean log-probability of a token of the best response, where types are language models.
    """

    values: Tensor
    likelihood: Tensor | None = None


class TypeModel(ABC):
    """A workspace network that any type's parameters can be loaded into.

    Attributes
    ----------
    network : nn.Module
        Its own weights mean nothing. What requires a gradient is trained and travels.
    """

    network: nn.Module

    @abstractmethod
    def fresh(self, streams: Streams) -> State:
        """Return one type's parameters as training finds them, drawn from the streams."""

    @abstractmethod
    def utilities(self, shard: RankingShard, index: Tensor) -> Utilities:
        """Return what the loaded type finds of the responses of judgments at ``index``, int64 of shape (n,).

        With gradients where PyTorch records them.
        """

    def check(self, shard: RankingShard) -> None:  # noqa: B027 - most read any
        """Refuse a shard whose responses the network cannot read; by default it can read any.

        Raises
        ------
        UserError
            Naming the client and the fix.
        """

    def load(self, parameters: Mapping[str, Tensor]) -> None:
        """Put one type's parameters into the workspace network, in evaluation mode."""
        load_parameters(self.network, parameters)
        self.network.eval()

    def trained(self) -> State:
        """Return copies of the workspace network's trained parameters."""
        return {name: tensor.detach().clone() for name, tensor in trainable(self.network).items()}


def type_of(state: Mapping[str, Tensor], number: int) -> State:
    """Return the parameters of type ``number``, without their prefix."""
    prefix = f"{TYPES}{number}."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def named(parameters: Mapping[str, Tensor], number: int) -> State:
    """Return the parameters of type ``number`` under their names in a state."""
    return {f"{TYPES}{number}.{name}": tensor for name, tensor in parameters.items()}


def count(state: Mapping[str, Tensor]) -> int:
    """Return how many types a state holds."""
    return len({name.split(".")[1] for name in state if name.startswith(TYPES)})


def all_utilities(model: TypeModel, state: Mapping[str, Tensor], shard: RankingShard, index: Tensor) -> Tensor:
    """Return what every type finds, shape (K, n, S), without gradients; the workspace holds the last type then."""
    found = []
    with torch.no_grad():
        for number in range(count(state)):
            model.load(type_of(state, number))
            found.append(model.utilities(shard, index).values)
    return torch.stack(found)
