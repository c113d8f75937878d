"""Why a client did not contribute, as far as the server may know."""

from __future__ import annotations

import logging

import torch

from fedalign.errors import DataError, UserError

_log = logging.getLogger(__name__)

FULL = (
    "the GPU's memory is full; let fewer clients share it (a larger engine.gpus_per_worker, fewer engine.workers), "
    "keep frozen weights in half the bytes (model.dtype=bfloat16), or take smaller batches (in the method)"
)
"""What to change where a GPU is too small."""


class SiteFailed(Exception):
    """What a site tells of an error in place of the error itself."""


def forget_work(error: Exception) -> None:
    """Let go of what a client held when its memory ran out, which else lives as long as the error does."""
    if isinstance(error, torch.OutOfMemoryError):
        error.__traceback__ = error.__context__ = error.__cause__ = None
        if torch.cuda.is_available():
            # Others that share the GPU cannot use what PyTorch keeps for this process.
            torch.cuda.empty_cache()


def failure_of(client: str, error: Exception, guarded: bool) -> str:
    """Return what is reported of a client's failure; the node's own log has it all.

    Parameters
    ----------
    client : str
    error : Exception
    guarded : bool
        Whether the text of an error must not leave, since it may repeat data: the run has a guarantee, or the node
        reads data of its own. Only its kind is told then. What a user can mend is told all the same, since it is about
        settings, but not what is wrong with data.
    """
    kind = type(error).__name__
    if isinstance(error, torch.OutOfMemoryError):
        _log.error("%s failed: %s", client, error)
        return f"{kind}: {FULL}"
    if not guarded or (isinstance(error, UserError) and not isinstance(error, DataError)):
        _log.debug("%s failed", client, exc_info=error)
        return f"{kind}: {error}"
    _log.error("%s failed; the server is told: %s", client, kind, exc_info=error)
    return kind
