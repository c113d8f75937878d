"""Law 4 for pairs: at its limits the variational method is the simpler method that it contains."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from fedalign.config import parse, resolve, to_json
from fedalign.contribution import State
from fedalign.data.pairs import Role
from fedalign.methods.base import Setting
from fedalign.methods.divergence import Divergence
from fedalign.methods.fedvpa import FedVPA
from fedalign.methods.latent_prior import Components, LatentPrior, StandardPrior
from fedalign.methods.selector import SelectorPhase
from fedalign.models.variational import VariationalSpec
from fedalign.objectives.latent import standard_kl
from fedalign.objectives.preference import preference_nll
from fedalign.rng import Streams
from fedalign.site import open_site
from tests.methods.judgments import FEATURES, linear_world
from tests.methods.selectors import LATENT, Federation, method, selector, settings

from .conftest import Runner, final_state, residuals, selector_overrides


def phase_of(changed: FedVPA, rounds: int = 3) -> SelectorPhase:
    config = settings("method=fedvpl")
    (phase, *_) = changed.phases(Setting(rounds, FEATURES, config.model, config.encoder))
    assert isinstance(phase, SelectorPhase)
    return phase


def test_a_prior_mean_latent_is_the_plain_reward_model() -> None:
    phase, world = selector("method=fedvpl", rounds=2), linear_world(4, 8, 6)
    state = Federation(phase).run(world)
    phase.load(state)
    network = phase.network.reward
    with torch.no_grad():
        for client in world:
            for person in client.people:
                predict = phase.predictors(state, client, person, person.train[:3], Streams(0))["accuracy_prior_z"]
                first, second = person.features[None, person.test, 0], person.features[None, person.test, 1]
                reward = [network.base(network.body(each)).squeeze(-1) for each in (first, second)]
                assert torch.equal(predict(first, second), reward[0] - reward[1])


@dataclass(frozen=True)
class UnitMixture(LatentPrior):
    """A mixture whose only component is N(0, I)."""

    def components(self, state: State, person: str) -> Components:
        zeros = torch.zeros(1, LATENT)
        return Components(torch.zeros(1, dtype=torch.int64), torch.zeros(1), zeros, zeros)


def test_a_mixture_of_one_unit_gaussian_is_the_standard_prior() -> None:
    standard, world = method("method=fedvpl", "method.divergence.beta=0.1"), linear_world(3, 8, 2)
    assert isinstance(standard.prior, StandardPrior)
    term: Divergence = dataclasses.replace(standard.divergence, form="bound", weights="server")
    mixed = dataclasses.replace(standard, prior=UnitMixture(), divergence=term)
    one, other = (Federation(phase_of(each)).run(world) for each in (standard, mixed))
    assert residuals(one, other) == (0.0, 0.0)


def test_without_the_kl_term_the_prior_does_not_matter() -> None:
    world = linear_world(3, 8, 2)
    free = ("method.divergence.beta=0", "method.divergence.form=bound", "method.divergence.weights=server")
    standard, bank = (
        Federation(selector(arm, *free, "method.prototypes=null", "model.evidence=false", rounds=3)).run(world)
        for arm in ("method=fedvpl", "method=fedvpa")
    )
    assert standard.keys() < bank.keys()
    assert residuals(standard, {name: bank[name] for name in standard}) == (0.0, 0.0)


def test_prototypes_without_weight_leave_the_model_alone() -> None:
    world = linear_world(3, 8, 2)
    idle = ("method.prototypes.pull=0", "method.prototypes.orthogonality=0", "method.local.max_grad_norm=null")
    plain = Federation(selector("method.prototypes=null", "method.local.max_grad_norm=null", rounds=3)).run(world)
    state = Federation(selector(*idle, rounds=3)).run(world)
    assert residuals(plain, {name: state[name] for name in plain}) == (0.0, 0.0)


def test_one_client_with_everybody_is_centralised_variational_learning(run_pairs: Runner) -> None:
    """A pooled federation equals a plain training loop that knows no rounds, clients or deltas."""
    change = (
        "method=fedvpl",
        "partition.pooled=true",
        "federation=fedavg",
        "federation.rounds=3",
        "federation/sampler=full",
        "model.body.dropout=0",
        # Plain steps: Adam makes a step of full size of a gradient that is nothing but rounding.
        "method.local.optimizer=sgd",
        "method.local.lr=0.05",
        "method.local.schedule=constant",
        "method.local.max_grad_norm=null",
    )
    federated = final_state(run_pairs("pooled", *change), "selector")
    resolved = resolve(selector_overrides(*change))
    config = parse(resolved)
    site = open_site(to_json(resolved), {})
    (phase, *_) = site.phases
    assert isinstance(config.method, FedVPA)
    assert isinstance(config.model, VariationalSpec)
    (shard,) = (site.data.shard(client.name) for client in site.data.clients if client.role is Role.TRAIN)
    assert len(shard.people) == 6
    network = config.model.build(config.encoder.dim)
    start = phase.initial(Streams(0, "selector"), {})
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(start[f"reward.{name}"])
    optimizer = torch.optim.SGD(network.parameters(), lr=config.method.local.lr)
    for number in (1, 2, 3):
        generator = Streams(0, "selector", number, shard.client).torch("episodes")
        for _ in range(config.method.local.steps):
            drawn = config.method.episodes.draw(shard.people, generator)
            seen, hidden = drawn.context, drawn.target
            mean, log_variance = network.posterior(seen.first, seen.second, seen.preferred)
            z = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=generator)
            nll = preference_nll(network.logits(hidden.first, hidden.second, z), hidden.preferred).mean()
            optimizer.zero_grad()
            (nll + config.method.divergence.beta * standard_kl(mean, log_variance).mean()).backward()
            optimizer.step()
    plain = {f"reward.{name}": parameter.detach() for name, parameter in network.named_parameters()}
    largest, mean_residual = residuals(federated, plain)
    assert largest < 2e-5
    assert mean_residual < 1e-6
