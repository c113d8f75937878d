"""Who may use the SuperLink's Control API: in Flower's own app, whose routes it must go before."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from flwr.superlink import cli, extensions

from fedalign.deployment import superlink
from fedalign.deployment.superlink import HERE, OperatorsOnly, networks_of


def status_of(app: Any, path: str, client: tuple[str, int] | None) -> int:
    """Ask an ASGI app as a client at an address would."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "scheme": "https", "path": path, "raw_path": b"",
        "query_string": b"", "headers": [], "client": client, "server": ("127.0.0.1", 8000), "root_path": "",
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return int(sent[0]["status"])


async def passed(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


@pytest.mark.parametrize(
    ("client", "networks", "status"),
    [
        (("127.0.0.1", 5), HERE, 200),
        (("127.9.9.9", 5), HERE, 200),
        (("::1", 5), HERE, 200),
        (("::ffff:127.0.0.1", 5), HERE, 200),
        (("10.0.0.5", 5), HERE, 403),
        (("::ffff:10.0.0.5", 5), HERE, 403),
        (("2001:db8::1", 5), HERE, 403),
        (("10.0.0.5", 5), "10.0.0.0/24", 200),
        (("127.0.0.1", 5), "10.0.0.0/24", 403),
        (("not-an-address", 5), HERE, 403),
        (None, HERE, 403),
    ],
)
def test_who_may_submit(client: tuple[str, int] | None, networks: str, status: int) -> None:
    app = OperatorsOnly(passed, networks_of(networks))
    assert status_of(app, "/v1/control/start-run", client) == status
    # Sites are none of its business.
    assert status_of(app, "/v1/fleet/pull-messages", client) == 200


def test_a_refusal_is_in_the_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superlink._log, "propagate", True)
    status_of(OperatorsOnly(passed, []), "/v1/control/register-node", ("10.0.0.5", 5))
    assert "/v1/control/register-node: refused to 10.0.0.5, which FEDALIGN_OPERATORS does not name" in caplog.text


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        networks_of("127.0.0.1 nowhere")


def test_flowers_own_app_has_it_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.superlink.main import create_app

    apps: list[Any] = []
    monkeypatch.setattr(extensions, "get_middleware", extensions.get_middleware)
    monkeypatch.setattr(cli, "flower_superlink", lambda: apps.append(create_app()))
    monkeypatch.setenv("FEDALIGN_OPERATORS", "10.1.0.0/16")
    superlink.main()
    # Flower's own test of who may do what comes later: without ours it answers a stranger.
    assert status_of(apps[0], "/v1/control/list-runs", ("10.2.0.1", 5)) == 403
    assert status_of(apps[0], "/v1/control/list-runs", ("10.1.0.1", 5)) != 403
    assert status_of(apps[0], "/health", ("10.2.0.1", 5)) != 403
