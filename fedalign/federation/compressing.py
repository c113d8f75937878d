"""Compression on the client: what is kept back stays in the node's own state until the client's next round."""

from __future__ import annotations

from flwr.app import Context

from fedalign.compression.base import Compression, NoCompression
from fedalign.contribution import Contribution
from fedalign.federation.site import load_memory, store_memory
from fedalign.rng import Streams


def compressed(
    contribution: Contribution, compression: Compression, context: Context, streams: Streams, bound: float
) -> Contribution:
    """Return a client's contribution as it is sent, and keep what it lacks.

    Parameters
    ----------
    contribution : Contribution
        Checked, bounded and with noise, as the run asks: what is kept back is a part of this.
    compression : Compression
    context : Context
        Of the node.
    streams : Streams
        Of the client's round.
    bound : float
        L2 norm that the contribution was clipped to; 0 where nothing is clipped.
    """
    if isinstance(compression, NoCompression):
        return contribution
    place = f"residual:{streams.phase}"
    residual = load_memory(context, place, streams.client)
    sent, kept = compression.compress(contribution, residual, streams.torch("compression"), bound)
    store_memory(context, place, streams.client, kept)
    return sent
