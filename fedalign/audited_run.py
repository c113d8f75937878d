"""The run that an audit looks at: a configuration run again with canaries among its clients, and nothing kept of it."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedalign.config import RunConfig, parse, to_json
from fedalign.data.federated import Role
from fedalign.errors import RunFailed, UserError
from fedalign.federation.canary import Canaries, with_canaries
from fedalign.federation.canary_score import ScoringCustodian
from fedalign.federation.conductor import Job, Outcome
from fedalign.federation.server_app import make_server_app
from fedalign.federation.site import Site
from fedalign.guarantee import Phases, account_of, check_guarantee
from fedalign.methods.base import Participation
from fedalign.privacy.protection import Protection
from fedalign.privacy.scheme import Scheme
from fedalign.report.progress import Progress
from fedalign.site import open_site, phases_of

_NORM = 10.0
"""Of what a canary contributes, over the clipping bound: a missing clip shows, and is not refused on the way."""


def auditable(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as it is audited: no metrics, which no canary is scored by, and no logger.

    Raises
    ------
    UserError
        If it is wrong, or claims nothing that canary clients could refute.
    """
    privacy = parse(resolved).privacy
    if not isinstance(privacy, Protection) or not privacy.private:
        raise UserError("privacy claims no epsilon, so there is nothing to audit; choose privacy=central, for example")
    if privacy.local is not None:
        raise UserError(
            f"privacy.local protects one {privacy.local.unit} of a client, and the audit's canaries are clients; audit "
            "privacy=central, central_adaptive, central_ftrl or distributed"
        )
    if privacy.noise_multiplier == 0:
        raise UserError("privacy.noise_multiplier=0 claims nothing, so there is nothing to audit; raise it")
    withheld = {"_target_": "fedalign.privacy.metric_release.WithheldMetrics"}
    silent = {"_target_": "fedalign.report.loggers.NoLogger"}
    return {**resolved, "privacy": {**resolved["privacy"], "metrics": withheld}, "logger": silent}


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
    own = open_site(travels, {})
    training = [client.name for client in own.data.clients if client.role is Role.TRAIN]
    phases = phases_of(config, own.data.questionnaire)
    canaries = Canaries(count, _NORM, seed, _opposed(config, phases, len(training) + count))
    training = sorted([*training, *canaries.names])
    config.federation.sampler.check(len(training))
    check_guarantee(config, phases, training)
    own.check(client.name for client in own.data.clients)
    account = account_of(config, phases, training, None)
    assert isinstance(config.privacy, Protection)
    custodian = ScoringCustodian(config.privacy, lambda directory: account, config.seed)
    _conduct(config, travels, phases, canaries, custodian)
    return custodian, canaries


def _opposed(config: RunConfig, phases: Phases, clients: int) -> bool:
    """Tell whether the claim is about replaced data, as where secret cohorts of a fixed size amplify."""
    assert isinstance(config.privacy, Protection) and config.privacy.mechanism is not None
    sampling = config.federation.sampler.describe(clients)
    drawn = any(phase.rounds and phase.participation is Participation.SAMPLED for phase in phases)
    return drawn and sampling.scheme is Scheme.FIXED_SIZE and config.privacy.mechanism.amplified(sampling)


def _conduct(config: RunConfig, travels: str, phases: Phases, canaries: Canaries, custodian: ScoringCustodian) -> None:
    """Run it on the configured engine."""
    clients = len(with_canaries(open_site(travels, {}), canaries).data.clients)
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
    return with_canaries(open_site(config, node_config), canaries)
