"""The in-process engine with small models of many clients trained side by side, as one batch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from flwr.serverapp import ServerApp
from pydantic import Field

from fedalign.engines.base import Engine
from fedalign.engines.in_process import run_on_one_node
from fedalign.federation.batching import Batching, Choice
from fedalign.federation.client_app import make_client_app
from fedalign.federation.site import OpenSite


@dataclass(frozen=True)
class Vectorised(Engine):
    """Settings of the vectorised engine.

    Parameters
    ----------
    name : str
    threads : int
        PyTorch threads.
    cohort : int
        Clients in a stack, at most.
    choose : {"auto", "stack", "loop"}
        ``auto`` times both ways on the first clients of a phase and keeps to the faster; the others keep to theirs
        wherever the phase can. Results agree to rounding, so that under ``auto`` last digits depend on timing.
    largest : int
        Trained numbers a client above which ``auto`` tries no stack.
    """

    name: str
    threads: Annotated[int, Field(ge=1)]
    cohort: Annotated[int, Field(ge=2)]
    choose: Choice
    largest: Annotated[int, Field(ge=1)]

    def nodes(self, clients: int) -> int:
        """Return 1: one node hosts everybody and adds up on the spot."""
        return 1

    def run(self, server_app: ServerApp, open_site: OpenSite, clients: int, state_path: Path) -> None:
        """Call the server app with a grid of one node."""
        batching = Batching(self.cohort, self.choose, self.largest)
        run_on_one_node(server_app, make_client_app(open_site, state_path, batching))
