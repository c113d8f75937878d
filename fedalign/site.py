"""A node's side of a run, built from the configuration that travels."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedalign.config import RunConfig, parse, to_json
from fedalign.confinement import confine
from fedalign.data.federated import FederatedData
from fedalign.data.prefixed import PrefixedData
from fedalign.data.progress import terminal_bar
from fedalign.data.schema import Question
from fedalign.errors import DataError, UserError
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
        The node's own configuration; ``data-path`` points it to the site's data, ``model-path`` to a directory of
        models that runs may name, ``agreed-config`` to the only configuration that it follows, and ``client-prefix``
        begins its clients' names, which the data may not make up to be different from other sites' (``silo-1``,
        ``test-1``).

    Raises
    ------
    DataError
        If the node has data of its own and they cannot be used; what it says must not leave.
    UserError
        If the configuration is wrong, or names a path that is none of its business (:mod:`fedalign.confinement`).
    """
    if "agreed-config" in node_config:
        check_agreed(config, Path(str(node_config["agreed-config"])))
    path, prefix = node_config.get("data-path"), node_config.get("client-prefix", "")
    models = str(node_config.get("model-path", ""))
    return _open(config, None if path is None else str(path), str(prefix), models)


def check_agreed(config: str, path: Path) -> None:
    """Refuse a run's configuration that is not the one a site has agreed to.

    Parameters
    ----------
    config : str
        As it travels.
    path : Path
        What ``fedalign run --print-config`` printed for the run.

    Raises
    ------
    UserError
        Naming keys that differ.
    """
    try:
        agreed = json.loads(to_json(json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise UserError(f"agreed-config={path}: cannot be read as JSON ({type(error).__name__})") from None
    sent = _content_of(config)
    if agreed != sent:
        differing = sorted(key for key in {*agreed, *sent} if agreed.get(key) != sent.get(key))
        raise UserError(
            f"this site has agreed to another configuration (agreed-config): {', '.join(differing)[:80]} differ; send "
            "the one that was agreed, or ask the site to agree to this one"
        )


def open_node_site(config: str, node_config: Mapping[str, Any]) -> Site:
    """Return the site of a run on a node that is not this process's own; as :func:`open_site`.

    Raises
    ------
    UserError
        If the node does not say which data it reads. A simulation's nodes are parts of the run's own data.
    """
    if "data-path" not in node_config and "partition-id" not in node_config:
        raise UserError(
            "this node has no data: start its SuperNode with --node-config 'data-path=\"FILE\"', or with partition-id "
            "where it is to be one part of data that every node can make"
        )
    return open_site(config, node_config)


_NO_LOGGER = "fedalign.report.loggers.NoLogger"


@functools.lru_cache(maxsize=2)
def _open(config: str, data_path: str | None, prefix: str, models: str) -> Site:
    content = _content_of(config)
    if data_path is not None:
        content = confine(content, data_path, [Path(models)] if models else [])
    run = parse({**content, "output": None, "name": "site", "logger": {"_target_": _NO_LOGGER}})
    own = data_path is not None
    data = _federate(run, own)
    phases = phases_of(run, data.questionnaire, data.questions)
    if prefix:
        data = PrefixedData(data, prefix)
    metrics, disjoint = metric_names(run, phases), run.partition.disjoint
    return Site(run.seed, run.engine.threads, phases, data, run.privacy, metrics, disjoint, run.compression, own)


def _content_of(config: str) -> dict[str, Any]:
    try:
        content = json.loads(config)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(
            "the message's configuration is not a JSON object; server and node may be of different versions"
        )
    return content


def _federate(run: RunConfig, own: bool) -> FederatedData:
    """Load the data; what is wrong with a node's own is marked as such."""
    try:
        return run.data.federate(run.partition, run.encoder, Streams(run.seed), None, terminal_bar)
    except UserError as error:
        if own:
            raise DataError(str(error)) from error
        raise


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
