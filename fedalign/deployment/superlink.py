"""Flower's SuperLink, whose Control API answers to operators only; ``python -m fedalign.deployment.superlink``.

Flower serves sites and operators on one port and authenticates sites alone: whoever reaches the port could register a
key of their own, or submit a run, that is, code. So such requests are taken from this machine only, or from networks
that the environment variable ``FEDALIGN_OPERATORS`` names.
"""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

CONTROL = "/v1/control/"
"""Where Flower's Control API begins."""
HERE = "127.0.0.0/8 ::1"

_log = logging.getLogger("flwr")


class OperatorsOnly:
    """ASGI middleware that refuses the Control API to everybody but some networks.

    Parameters
    ----------
    app : callable
        What comes after it.
    networks : sequence of network
    """

    def __init__(self, app: App, networks: Sequence[Network]) -> None:
        self._app, self._networks = app, networks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403, or pass the request on."""
        if scope["type"] != "http" or not scope["path"].startswith(CONTROL) or self._allows(scope.get("client")):
            await self._app(scope, receive, send)
            return
        host = (scope.get("client") or ("an unknown address",))[0]
        _log.error("%s: refused to %s, which FEDALIGN_OPERATORS does not name", scope["path"], host)
        await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"only operators may do this"})

    def _allows(self, client: tuple[str, int] | None) -> bool:
        if client is None:
            return False
        try:
            address = ipaddress.ip_address(client[0])
        except ValueError:
            return False
        # An IPv4 client of a socket that speaks both.
        plain = getattr(address, "ipv4_mapped", None) or address
        return any(plain in network for network in self._networks)


def networks_of(text: str) -> list[Network]:
    """Return the networks that a text names, with blanks between them.

    Raises
    ------
    ValueError
        If one is none.
    """
    return [ipaddress.ip_network(part) for part in text.split()]


def main() -> None:
    """Start the SuperLink with the arguments of ``flower-superlink``."""
    from flwr.superlink import cli, extensions
    from starlette.middleware import Middleware

    networks = networks_of(os.environ.get("FEDALIGN_OPERATORS", HERE))
    others = extensions.get_middleware
    # The place that Flower keeps for middleware of others.
    extensions.get_middleware = lambda: (Middleware(OperatorsOnly, networks=networks), *others())
    cli.flower_superlink()


if __name__ == "__main__":
    main()
