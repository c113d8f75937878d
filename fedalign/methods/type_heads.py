"""Types as reward networks on the vectors of a frozen encoder: the fast path."""

from __future__ import annotations

from torch import Tensor

from fedalign.contribution import State
from fedalign.data.rankings import RankingShard
from fedalign.errors import UserError
from fedalign.methods.local_training import trainable
from fedalign.methods.type_model import TypeModel, Utilities
from fedalign.models.utility import UtilitySpec
from fedalign.rng import Streams


class HeadTypes(TypeModel):
    """One network from an encoded response to its utility.

    Parameters
    ----------
    spec : UtilitySpec
    features : int
        Length of an encoded response.
    """

    def __init__(self, spec: UtilitySpec, features: int) -> None:
        self._spec, self._features = spec, features
        with Streams(0).torch_default("type"):
            self.network = spec.build_utility(features)

    def fresh(self, streams: Streams) -> State:
        """Return a freshly drawn network's parameters."""
        with streams.torch_default("type"):
            network = self._spec.build_utility(self._features)
        return {name: parameter.detach() for name, parameter in trainable(network).items()}

    def check(self, shard: RankingShard) -> None:
        """Refuse vectors of another length than the encoder's; data that are not encoded may have such."""
        own = shard.features.shape[-1]
        if own != self._features:
            raise UserError(
                f"client {shard.client!r}: its responses are vectors of length {own}, and types are made for the "
                f"encoder's length, {self._features}; set encoder.size={own}"
            )

    def utilities(self, shard: RankingShard, index: Tensor) -> Utilities:
        """Return the loaded network's output for every response."""
        return Utilities(self.network(shard.features[index]))
