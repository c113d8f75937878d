"""What an engine is: something that carries messages between one ServerApp and its nodes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from flwr.serverapp import ServerApp

from fedalign.federation.site import OpenSite


class Engine(ABC):
    """Runs a federation's apps; one subclass a way to carry messages, a frozen dataclass of its settings.

    A phase cannot tell which engine runs it.

    Attributes
    ----------
    threads : int
        PyTorch threads of every process that does local work. Results agree to the last digit only for
        equal numbers of threads.
    """

    name: str
    threads: int

    @abstractmethod
    def nodes(self, clients: int) -> int:
        """Return how many nodes host ``clients`` clients on this engine."""

    @abstractmethod
    def run(self, server_app: ServerApp, open_site: OpenSite, clients: int, state_path: Path) -> None:
        """Run the server app to its end with nodes that host ``clients`` clients.

        Parameters
        ----------
        server_app : ServerApp
        open_site : callable
            Builds a node's site.
        clients : int
        state_path : Path
            Directory for client memories at checkpoints.
        """
