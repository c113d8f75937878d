"""A node's side of a run, built from the configuration that travels."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedalign.config import RunConfig, parse
from fedalign.data.prefixed import PrefixedData
from fedalign.data.progress import terminal_bar
from fedalign.data.schema import Question
from fedalign.federation.site import Site
from fedalign.guarantee import local_privacy, metric_names
from fedalign.methods.base import Phase, Setting
from fedalign.privacy.local import LocalPrivacy
from fedalign.privacy.protection import Protection
from fedalign.rng import Streams


def open_site(config: str, node_config: Mapping[str, Any]) -> Site:
    """Return the site of a run; asked again for the same run in the same process, it is the same object.

    Questions that are not in the cache of embeddings are encoded first, with a progress bar on a terminal.

    Parameters
    ----------
    config : str
        Resolved run configuration as JSON, from :func:`fedalign.config.to_json`.
    node_config : mapping
        The node's own configuration; ``data-path`` points it to the site's data, and ``client-prefix`` begins its
        clients' names, which the data may not make up to be different from other sites' (``silo-1``, ``test-1``).
    """
    path, prefix = node_config.get("data-path"), node_config.get("client-prefix", "")
    return _open(config, None if path is None else str(path), str(prefix))


_NO_LOGGER = "fedalign.report.loggers.NoLogger"


@functools.lru_cache(maxsize=2)
def _open(config: str, data_path: str | None, prefix: str) -> Site:
    content = json.loads(config)
    if data_path is not None:
        content["data"]["path"] = data_path
    run = parse({**content, "output": None, "name": "site", "logger": {"_target_": _NO_LOGGER}})
    data = run.data.federate(run.partition, run.encoder, Streams(run.seed), None, terminal_bar)
    phases = phases_of(run, data.questionnaire, data.questions)
    if prefix:
        data = PrefixedData(data, prefix)
    disjoint = run.partition.disjoint
    metrics = metric_names(run, phases)
    return Site(run.seed, run.engine.threads, phases, data, run.privacy, metrics, disjoint, run.compression)


def phases_of(
    run: RunConfig, questionnaire: Mapping[str, int], questions: Mapping[str, Question] | None = None
) -> Sequence[Phase[Any]]:
    """Return a method's phases, with the noise of local training where there is to be any.

    Parameters
    ----------
    run : RunConfig
    questionnaire : mapping from question id to int
        What a survey asks; empty where this process does not know.
    questions : mapping from question id to Question, optional
        Its texts, likewise.
    """
    known = replace(setting(run, questionnaire), questions=questions or {})
    if not isinstance(run.privacy, Protection) or run.privacy.local is None:
        return run.method.phases(known)
    silent = LocalPrivacy(run.privacy.local, 0.0, run.privacy.randomness)
    noise = local_privacy(run, run.method.phases(replace(known, local_privacy=silent)))
    return run.method.phases(replace(known, local_privacy=noise))


def setting(run: RunConfig, questionnaire: Mapping[str, int] | None = None) -> Setting:
    """Return the public facts that a method builds its phases from."""
    private = isinstance(run.privacy, Protection) and run.privacy.private
    return Setting(run.federation.rounds, run.encoder.dim, run.model, run.encoder, questionnaire or {}, private=private)
