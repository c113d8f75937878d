"""A finished run, opened again: its configuration, its data and the model that it ended with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedalign.config import RunConfig, parse, to_json
from fedalign.contribution import State
from fedalign.data.federated import Role
from fedalign.data.rankings import RankingShard
from fedalign.federation.site import Site
from fedalign.methods.em import EMPhase
from fedalign.model_files import load_model
from fedalign.report.run_directory import RunDirectory
from fedalign.site import open_site


@dataclass(frozen=True)
class Finished:
    """A finished run, opened.

    Parameters
    ----------
    config : RunConfig
    site : Site
    phase : EMPhase
    state : State
        Of the end of EM.
    """

    config: RunConfig
    site: Site
    phase: EMPhase
    state: State

    def shards(self) -> list[RankingShard]:
        """Return the training clients' shards."""
        data = self.site.data
        return [data.shard(client.name) for client in data.clients if client.role is Role.TRAIN]


def opened(path: Path, seed: int = 0) -> Finished:
    """Return a finished run beside its data, or beside those of its own seed plus ``seed``."""
    directory = RunDirectory.open(path)
    resolved: dict[str, Any] = dict(directory.read_config())
    resolved["seed"] = int(resolved["seed"]) + seed
    config = parse(resolved)
    site = open_site(to_json(resolved), {})
    phase = site.phases[-1]
    assert isinstance(phase, EMPhase)
    return Finished(config, site, phase, load_model(directory.model, config.method.name)[phase.name])
