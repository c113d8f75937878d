"""The run that an audit looks at: a configuration run again with canaries among its clients, and nothing kept of it."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedalign.config import RunConfig, parse, to_json
from fedalign.data.federated import Role
from fedalign.errors import RunFailed, UserError
from fedalign.federation.canary import OneClient, with_canaries
from fedalign.federation.canary_score import ScoringCustodian
from fedalign.federation.directory import ClientDirectory
from fedalign.federation.job import Job, Outcome
from fedalign.federation.server_app import make_server_app
from fedalign.federation.site import Site
from fedalign.guarantee import Phases, account_of, check_guarantee, local_privacy, taken_as_public
from fedalign.privacy.canaries import Canaries
from fedalign.privacy.canary_units import CanaryLocalPrivacy
from fedalign.privacy.events import Relation
from fedalign.privacy.protection import Protection
from fedalign.report.progress import Progress
from fedalign.site import open_site, phases_of, setting

_NO_LOGGER = "fedalign.report.loggers.NoLogger"
_NORM = 10.0
"""Of what a canary contributes, over the clipping bound: a missing clip shows, and is not refused on the way."""


def auditable(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as it is audited: no metrics, which no canary is scored by, and no logger.

    Where DP-SGD protects units of a client, that client trains alone and in every round, its upload is not hidden from
    the auditor, and the gradients of units are found in a loop, which serves canaries as well.

    Raises
    ------
    UserError
        If it is wrong, or claims nothing that canaries could refute.
    """
    privacy = parse(resolved).privacy
    if not isinstance(privacy, Protection) or not privacy.private:
        raise UserError("privacy claims no epsilon, so there is nothing to audit; choose privacy=central, for example")
    if privacy.noise_multiplier == 0:
        raise UserError("privacy.noise_multiplier=0 claims nothing, so there is nothing to audit; raise it")
    metrics = {"_target_": "fedalign.privacy.metric_release.WithheldMetrics"}
    quiet = {**resolved, "logger": {"_target_": _NO_LOGGER}}
    audited = {**resolved["privacy"], "metrics": metrics}
    if privacy.local is None:
        return {**quiet, "privacy": audited}
    local = {**audited, "secure": None, "local": {**audited["local"], "grad_sample": "loop"}}
    everyone = {"_target_": "fedalign.federation.sampling.FractionSampler", "fraction": 1.0}
    return {**quiet, "privacy": local, "federation": {**resolved["federation"], "sampler": everyone}}


def run_with_canaries(resolved: Mapping[str, Any], count: int, seed: int) -> tuple[ScoringCustodian, Canaries]:
    """Run the federation of an auditable configuration with canaries in it.

    Parameters
    ----------
    resolved : mapping
        From :func:`auditable`.
    count : int
        Of the canaries.
    seed : int
        Of their coins and directions.

    Returns
    -------
    ScoringCustodian
        With all that was released, and the ledger of it.
    Canaries

    Raises
    ------
    UserError
        If the configuration or the data are wrong.
    RunFailed
        If the federation breaks down.
    """
    config, travels = parse(resolved), to_json(resolved)
    canaries = Canaries(count, _NORM, seed, opposed=False, stages=_stages(config, open_site(travels, {})))
    site = _open(canaries, travels, {})
    phases = phases_of(config, site.data.questionnaire)
    directory = ClientDirectory.of(site.data.clients)
    assert isinstance(config.privacy, Protection)
    if config.privacy.local is not None:
        _check_alone(phases, directory)
    directory.check(phases, config.federation.sampler)
    check_guarantee(config, phases, directory)
    site.check(client.name for client in site.data.clients)
    account = account_of(config, phases, directory, None)
    canaries = replace(canaries, opposed=account.relation is Relation.REPLACE_ONE)
    public = taken_as_public(config)
    custodian = ScoringCustodian(config.privacy, lambda _: account, config.seed, public)
    _conduct(config, travels, phases, canaries, custodian)
    return custodian, canaries


def _check_alone(phases: Phases, directory: ClientDirectory) -> None:
    """Refuse a client that cannot train every phase alone."""
    lacking = {phase.stage for phase in phases if phase.rounds and not directory.training_for(phase.stage)}
    if lacking:
        raise UserError(
            "an audit of local noise looks at one client that trains alone, and none holds data of all stages (it "
            f"lacks {', '.join(sorted(str(stage) for stage in lacking))}); audit the same settings with partition=silos"
        )


def _stages(config: RunConfig, site: Site) -> tuple[tuple[str, ...], ...]:
    """Return the stages that single units take part in, each combination once, so that canaries do as they do."""
    assert isinstance(config.privacy, Protection)
    if config.privacy.local is None:
        found = {client.stages for client in site.data.clients if client.role is Role.TRAIN}
    elif config.partition.disjoint:
        found = {(phase.stage,) for phase in site.phases if phase.rounds and phase.stage is not None}
    else:
        found = set()
    return tuple(sorted(found)) or ((),)


def _conduct(config: RunConfig, travels: str, phases: Phases, canaries: Canaries, custodian: ScoringCustodian) -> None:
    """Run it on the configured engine."""
    clients = len(_open(canaries, travels, {}).data.clients)
    progress, outcomes = Progress(config.method.headline), list[Outcome]()
    with tempfile.TemporaryDirectory() as scratch:
        job = Job(
            method=config.method.name,
            selection=config.method.selection,
            phases=phases,
            federation=config.federation,
            seed=config.seed,
            config=travels,
            nodes=config.engine.nodes(clients),
            checkpoints=Path(scratch),
            observers=[progress],
            resume=False,
            custody=custodian,
        )
        server = make_server_app(lambda _: job, outcomes.append)
        try:
            config.engine.run(server, functools.partial(_open, canaries), clients, Path(scratch).resolve() / "clients")
        finally:
            progress.run_ended()
    if not outcomes:
        raise RunFailed("the engine ended before the audited run did")


def _open(canaries: Canaries, config: str, node_config: Mapping[str, Any]) -> Site:
    """Open a node's site, as :func:`fedalign.site.open_site` does, with the canaries in it."""
    site = open_site(config, node_config)
    assert isinstance(site.privacy, Protection)
    if site.privacy.local is None:
        return with_canaries(site, canaries)
    return replace(site, phases=_phases_with_units(canaries, config), data=OneClient(site.data))


@functools.lru_cache(maxsize=2)
def _phases_with_units(canaries: Canaries, config: str) -> Phases:
    """Return phases whose local training has canaries among its units."""
    resolved = json.loads(config)
    run = parse({**resolved, "output": None, "name": "audit", "logger": {"_target_": _NO_LOGGER}})
    phases = phases_of(run, {})
    plain, stages = local_privacy(run, phases), {phase.name: phase.stage for phase in phases}
    assert plain is not None
    joined = CanaryLocalPrivacy(
        plain.settings, plain.noise_multiplier, plain.randomness, canaries,
        noise_multipliers=plain.noise_multipliers, stages=stages,
    )  # fmt: skip
    return run.method.phases(replace(setting(run, {}), local_privacy=joined))
