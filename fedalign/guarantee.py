"""A run's guarantee, made of its configuration: who keeps it, what it refuses, and the noise of local training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fedalign.compression.base import NoCompression
from fedalign.config import RunConfig
from fedalign.data.federated import Kind
from fedalign.errors import UserError
from fedalign.federation.account import Account
from fedalign.federation.custodian import Custodian
from fedalign.federation.custody import Custody, NoCustody
from fedalign.federation.directory import ClientDirectory
from fedalign.federation.exposure import Exposure, exposure_of
from fedalign.federation.local_noise import local_noise_multipliers
from fedalign.federation.metric_plan import check_metrics, evaluations, is_evaluated, told_of
from fedalign.federation.population import Everybody
from fedalign.federation.secure.settings import SecAgg
from fedalign.methods.base import Needs, Phase
from fedalign.privacy.adaptive_clipping import update_noise_multiplier
from fedalign.privacy.local import LocalPrivacy
from fedalign.privacy.mechanism import DistributedMechanism
from fedalign.privacy.metric_release import OpenMetrics, SummedMetrics
from fedalign.privacy.protection import Protection
from fedalign.rng import Streams
from fedalign.template import Template

Phases = Sequence[Phase[Any]]

_PUBLIC = {Kind.SURVEY: ("which questions a survey asks",)}


def custody_of(config: RunConfig, phases: Phases, journal: Path | None, checked: bool) -> Custody:
    """Return who keeps the run's guarantee.

    Parameters
    ----------
    config : RunConfig
    phases : sequence of Phase
    journal : Path or None
        File for what has been spent, written before anything is released.
    checked : bool
        Whether :func:`check_guarantee` has seen the clients; else it does when they have told their names.
    """
    privacy = config.privacy
    if not isinstance(privacy, Protection):
        return NoCustody()

    def open_account(directory: ClientDirectory) -> Account | None:
        if not checked:
            check_guarantee(config, phases, directory)
        return account_of(config, phases, directory, journal) if privacy.private else None

    return Custodian(privacy, metric_names(config, phases), open_account, config.seed, taken_as_public(config))


def metric_names(config: RunConfig, phases: Phases) -> tuple[str, ...]:
    """Return the metrics that are released as sums: those asked for, as far as an evaluation tells of them."""
    privacy = config.privacy
    return told_of(privacy, phases, _asked(config)) if isinstance(privacy, Protection) else ()


def taken_as_public(config: RunConfig) -> tuple[str, ...]:
    """Return what a guarantee takes as public because of what the data and the clients are."""
    simulated = () if isinstance(config.population, Everybody) else ("when clients are there and how fast they are",)
    return (*_PUBLIC.get(config.method.kind, ()), *simulated)


def account_of(config: RunConfig, phases: Phases, directory: ClientDirectory, journal: Path | None) -> Account:
    """Return the account of a differentially private run with these clients."""
    assert isinstance(config.privacy, Protection)
    exposures = _exposures(config, phases, directory)
    privacy, names, every = config.privacy, metric_names(config, phases), config.federation.evaluate_every
    evaluated = [phase for phase in phases if is_evaluated(privacy, phase, names, directory)]
    planned = sum(evaluations(phase.rounds, every) for phase in evaluated)
    return Account(privacy, exposures, planned, len(names), journal, len(directory.training))


def check_guarantee(config: RunConfig, phases: Phases, directory: ClientDirectory) -> None:
    """Refuse a run whose guarantee cannot be kept, or would be misstated.

    Parameters
    ----------
    config : RunConfig
    phases : sequence of Phase
    directory : ClientDirectory

    Raises
    ------
    UserError
        Naming the key and what to choose instead.
    """
    privacy = config.privacy
    if not isinstance(privacy, Protection):
        return
    if config.federation.min_clients > 1:
        raise UserError(
            f"federation.min_clients={config.federation.min_clients}: with a guarantee ({_chosen(privacy)}) every "
            "round counts, whoever came; set it to 1 (a secure sum has its own privacy.secure.minimum)"
        )
    for phase in phases:
        if phase.rounds:
            _check_phase(privacy, phase, config)
    if isinstance(privacy.secure, SecAgg):
        cohorts = [int(exposure.sampling.expected) for exposure in _exposures(config, phases, directory)]
        _check_secure(privacy, privacy.secure, min(cohorts, default=len(directory.training)))
    _check_around(privacy, config, phases, directory)
    check_metrics(privacy, phases, _asked(config), directory)
    if privacy.local is not None:
        privacy.local.check_phases([phase.name for phase in phases])
    if privacy.private:
        _check_budget(config, phases, directory)


def check_users(config: RunConfig, phases: Phases, shards: Iterable[tuple[str, Any]]) -> None:
    """Refuse users on more than one client, whom local noise would protect on each by itself, but not altogether.

    Parameters
    ----------
    config : RunConfig
    phases : sequence of Phase
    shards : iterable of client and its shard
        Of the training clients; looked at one by one.

    Raises
    ------
    UserError
        Naming the user and two of the clients.
    """
    privacy = config.privacy
    if not isinstance(privacy, Protection) or privacy.local is None or privacy.local.unit != "user":
        return
    seen: dict[str, str] = {}
    for client, shard in shards:
        for user in {user for phase in phases for user in phase.users(shard)}:
            if user in seen:
                raise UserError(
                    f"privacy.local.unit=user: {user!r} is on the clients {seen[user]!r} and {client!r}, and noise on "
                    "each does not bound what both tell together; choose a partition that keeps users together"
                )
            seen[user] = client


def refuse_open_metrics(config: RunConfig) -> None:
    """Refuse exact metrics beside a guarantee where nodes are other people's.

    Raises
    ------
    UserError
        Naming what to set.
    """
    if isinstance(config.privacy, Protection) and isinstance(config.privacy.metrics, OpenMetrics):
        raise UserError(
            "privacy/metrics=open would send exact metrics of real nodes past the guarantee; set "
            "privacy/metrics=summed or withheld"
        )


def check_aggregation(config: RunConfig, phases: Phases) -> None:
    """Refuse a robust aggregation where replies cannot be seen one by one, or a guarantee is about their sum.

    Raises
    ------
    UserError
        Naming what to choose instead.
    """
    aggregation, privacy = config.federation.aggregation, config.privacy
    if not aggregation.individual:
        return
    name = type(aggregation).__name__
    if isinstance(privacy, Protection):
        if privacy.secure is not None:
            raise UserError(
                f"federation/aggregation={name} looks at single replies, and privacy.secure hides them; choose one of "
                "the two (federation/aggregation=mean, or privacy/secure=null)"
            )
        if privacy.mechanism is not None:
            raise UserError(
                f"federation/aggregation={name}: the noise of privacy ({_chosen(privacy)}) is chosen for a sum, which "
                f"one "
                "client moves by its bound at most; a median or a choice of replies can move by more. Choose "
                "federation/aggregation=mean, whose clients the bound holds already, or privacy=local_user"
            )
    for phase in phases:
        if phase.rounds and phase.needs is Needs.INDIVIDUAL and not phase.diagnostic:
            raise UserError(
                f"federation/aggregation={name}: phase {phase.name!r} of method={config.method.name} makes something "
                f"of "
                "each reply itself; choose federation/aggregation=mean, or another method"
            )
        if phase.rounds and phase.needs is Needs.SUM:
            # Where a phase begins with what earlier ones leave, it is looked at when it begins.
            with contextlib.suppress(KeyError):
                aggregation.check_phase(phase.name, _template(phase, config))


def local_privacy(config: RunConfig, phases: Phases) -> LocalPrivacy | None:
    """Return the noise of local training, chosen for the budget; None where clients add none.

    It follows from the configuration alone, so that every node and the server find the same.

    Parameters
    ----------
    config : RunConfig
    phases : sequence of Phase
        As they are with local training of any noise.
    """
    privacy = config.privacy
    if not isinstance(privacy, Protection) or privacy.local is None:
        return None
    # Phases that clients cannot protect add no noise, and are refused when the clients are known.
    trained = [phase for phase in phases if phase.rounds and privacy.local.unit in phase.local_units]
    noise = local_noise_multipliers(privacy, config.federation.sampler, trained, config.partition.disjoint)
    most = max(noise.values(), default=0.0)
    return LocalPrivacy(privacy.local, most, privacy.randomness, noise_multipliers=noise)


def _check_phase(privacy: Protection, phase: Phase[Any], config: RunConfig) -> None:
    """Refuse a phase that the guarantee does not reach."""
    chosen, method = _chosen(privacy), config.method.name
    if privacy.local is not None:
        if privacy.local.unit not in phase.local_units:
            raise UserError(
                f"privacy.local.unit={privacy.local.unit}: phase {phase.name!r} of method={method} cannot protect a "
                f"single {privacy.local.unit} on the client; choose another method, or privacy=central"
            )
        if privacy.secure is None:
            return
    if phase.needs is Needs.INDIVIDUAL:
        raise UserError(
            f"method={method}: in phase {phase.name!r} the server must see each client's reply, and privacy ({chosen}) "
            "covers sums only; choose a form of the method that needs sums only, as method=fedvpa_sums with "
            "method.collect_latents=false"
        )
    if _template(phase, config) is None:
        raise UserError(
            f"method={method}: what phase {phase.name!r} adds up is not known in advance, so privacy ({chosen}) cannot "
            "cover it; name what it adds up (method.groups=[...] of method=plural_rlhf), or leave that phase out "
            "(method.prior=none of method=pluralllm where the survey's questions are not known)"
        )


def _check_secure(privacy: Protection, secure: SecAgg, cohort: int) -> None:
    """Refuse cohorts that a secure sum must give up or cannot hold."""
    if cohort < secure.minimum:
        raise UserError(
            f"privacy.secure.minimum={secure.minimum}: cohorts of {cohort} clients are expected, and a sum over fewer "
            "than the minimum is never opened; lower it or raise the share of clients in a round"
        )
    if not isinstance(privacy.mechanism, DistributedMechanism):
        secure.check(cohort)


def _check_around(privacy: Protection, config: RunConfig, phases: Phases, directory: ClientDirectory) -> None:
    """Refuse compression that a secure sum cannot add up, and a population that the noise is not accounted for with."""
    if privacy.secure is not None and not isinstance(config.compression, NoCompression):
        raise UserError(
            "compression: a secure sum adds up words of its own fixed-point code, which nothing can be taken from "
            "beforehand; set compression=none, or a smaller privacy.secure.bits"
        )
    if privacy.mechanism is not None:
        for exposure in _exposures(config, phases, directory):
            config.population.check_sampling(exposure.sampling)


def _check_budget(config: RunConfig, phases: Phases, directory: ClientDirectory) -> None:
    """Refuse a budget that not even the first round keeps, and cohorts that the mechanism cannot be charged for."""
    privacy = config.privacy
    assert isinstance(privacy, Protection)
    exposures = _exposures(config, phases, directory)
    if not exposures:
        raise UserError(f"method={config.method.name} trains nothing, so there is nothing to protect; set privacy=none")
    if privacy.mechanism is not None:
        for exposure in exposures:
            if exposure.rounds > 1:
                privacy.mechanism.check(exposure.sampling)
    account = account_of(config, phases, directory, None)
    if privacy.clip is not None and privacy.clip.adaptive is not None:
        for exposure in exposures:
            count_std = privacy.clip.adaptive.count_std(exposure.sampling.expected)
            update_noise_multiplier(account.noise_multipliers[exposure.name], count_std)
    if isinstance(privacy.mechanism, DistributedMechanism) and isinstance(privacy.secure, SecAgg):
        for exposure in exposures:
            cohort, secure, noise = int(exposure.sampling.expected), privacy.secure, account.noise_multipliers
            privacy.mechanism.check_width(exposure.size, secure.bits, secure.minimum, cohort, noise[exposure.name])
    # Noise that is chosen for the plan keeps within it.
    if privacy.noise_multiplier is None:
        return
    for phase in phases:
        if phase.rounds and not account.affords(phase.name, directory.training_for(phase.stage)):
            raise UserError(
                f"privacy.epsilon={privacy.epsilon} does not allow a single round of phase {phase.name!r} at "
                f"privacy.noise_multiplier={privacy.noise_multiplier}; raise one of them, or set "
                "privacy.noise_multiplier=null"
            )


def _exposures(config: RunConfig, phases: Phases, directory: ClientDirectory) -> list[Exposure]:
    privacy, sampler, disjoint = config.privacy, config.federation.sampler, config.partition.disjoint
    assert isinstance(privacy, Protection)
    found = []
    for phase in phases:
        if not phase.rounds:
            continue
        template = _template(phase, config) if phase.needs is Needs.SUM else None
        size, clients = 0 if template is None else template.size, directory.training_for(phase.stage)
        found.append(exposure_of(phase, size, sampler, clients, config.seed, privacy, disjoint))
    return found


def _template(phase: Phase[Any], config: RunConfig) -> Template | None:
    """Return a phase's template before the run; it may not depend on what earlier phases leave."""
    return phase.template(phase.broadcast(phase.initial(Streams(config.seed, phase.name), {})))


def _asked(config: RunConfig) -> tuple[str, ...]:
    """Return the metrics that sums are asked of; where none is named, those that a run shows and chooses by."""
    privacy, method = config.privacy, config.method
    if not isinstance(privacy, Protection) or not isinstance(privacy.metrics, SummedMetrics):
        return ()
    return privacy.metrics.names or (method.headline, method.selection)


def _chosen(privacy: Protection) -> str:
    """Name what was asked for."""
    asked = [f"mechanism {privacy.mechanism.name}"] if privacy.mechanism is not None else []
    return " with ".join([*asked, *(["a secure sum"] if privacy.secure is not None else [])])
