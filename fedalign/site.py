"""A node's side of a run, built from the configuration that travels."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

from fedalign.config import RunConfig, parse
from fedalign.data.progress import terminal_bar
from fedalign.federation.site import Site
from fedalign.methods.base import Setting
from fedalign.rng import Streams


def open_site(config: str, node_config: Mapping[str, Any]) -> Site:
    """Return the site of a run; asked again for the same run in the same process, it is the same object.

    Questions that are not in the cache of embeddings are encoded first, with a progress bar on a terminal.

    Parameters
    ----------
    config : str
        Resolved run configuration as JSON, from :func:`fedalign.config.to_json`.
    node_config : mapping
        The node's own configuration; ``data-path`` points it to the site's data.
    """
    path = node_config.get("data-path")
    return _open(config, None if path is None else str(path))


_NO_LOGGER = "fedalign.report.loggers.NoLogger"


@functools.lru_cache(maxsize=2)
def _open(config: str, data_path: str | None) -> Site:
    content = json.loads(config)
    if data_path is not None:
        content["data"]["path"] = data_path
    run = parse({**content, "output": None, "name": "site", "logger": {"_target_": _NO_LOGGER}})
    data = run.data.federate(run.partition, run.encoder, Streams(run.seed), None, terminal_bar)
    return Site(run.seed, run.engine.threads, run.method.phases(setting(run)), data)


def setting(run: RunConfig) -> Setting:
    """Return the public facts that a method builds its phases from."""
    return Setting(run.federation.rounds, run.encoder.dim, run.model, run.encoder)
