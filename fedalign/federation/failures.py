"""Why a client did not contribute, as far as the server may know."""

from __future__ import annotations

import logging

from fedalign.errors import UserError

_log = logging.getLogger(__name__)


def failure_of(client: str, error: Exception, guarded: bool) -> str:
    """Return what is reported of a client's failure; the node's own log has it all.

    Parameters
    ----------
    client : str
    error : Exception
    guarded : bool
        Whether the run has a guarantee: the text of an error may repeat data, so only its kind is told then. What a
        user can mend is told all the same, since it is about settings.
    """
    _log.debug("client %s failed", client, exc_info=error)
    kind = type(error).__name__
    return kind if guarded and not isinstance(error, UserError) else f"{kind}: {error}"
