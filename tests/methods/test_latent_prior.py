"""Priors over latents: whose posteriors a person sees, and a mixture that is fitted from sums alone."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.distributions import MultivariateNormal

from fedalign.contribution import Contribution, State, total
from fedalign.methods.base import Needs
from fedalign.methods.latent_prior import (
    BANK,
    MIXTURE,
    BankPrior,
    Components,
    MixturePrior,
    Posterior,
    StandardPrior,
    bank_means,
    person_id,
)
from fedalign.rng import Streams

DIM = 3


def posterior(seed: int, judgments: int = 10, at: Tensor | None = None, spread: float = 1.0) -> Posterior:
    generator = torch.Generator().manual_seed(seed)
    mean = spread * torch.randn(DIM, generator=generator) + (0 if at is None else at)
    return Posterior(mean, torch.randn(DIM, generator=generator) - 2, judgments)


def people(count: int) -> dict[str, Posterior]:
    return {f"person-{place}": posterior(place, 5 + place) for place in range(count)}


def bank(posteriors: dict[str, Posterior]) -> State:
    prior = BankPrior()
    return prior.update_each({}, [Contribution(prior.report({}, {k: v})) for k, v in posteriors.items()])


def test_each_prior_says_what_the_server_must_see() -> None:
    assert (StandardPrior.needs, MixturePrior.needs, BankPrior.needs) == (Needs.SUM, Needs.SUM, Needs.INDIVIDUAL)


def test_the_standard_prior_collects_nothing() -> None:
    prior = StandardPrior()
    assert prior.initial(DIM, Streams(0)) == {}
    assert prior.report({}, people(2)) == {}
    assert prior.update({}, Contribution()) == {}
    assert prior.components({}, "person-0") is None


@given(count=st.integers(2, 6), place=st.integers(0, 5))
def test_nobody_sees_their_own_posterior(count: int, place: int) -> None:
    known = people(count)
    person = f"person-{place % count}"
    found = BankPrior().components(bank(known), person)
    assert found is not None
    others = {person_id(name): value for name, value in known.items() if name != person}
    assert sorted(found.ids.tolist()) == sorted(others)
    for row, number in enumerate(found.ids.tolist()):
        assert torch.equal(found.means[row], others[number].mean)
        assert torch.equal(found.log_variances[row], others[number].log_variance)
    judged = torch.tensor([float(others[number].judgments) for number in found.ids.tolist()])
    torch.testing.assert_close(found.log_weights.exp(), judged / judged.sum())
    torch.testing.assert_close(found.mean, (judged / judged.sum()) @ found.means)


def test_a_stranger_sees_everybody() -> None:
    found = BankPrior().components(bank(people(4)), "somebody else")
    assert found is not None
    assert len(found.ids) == 4


def test_whoever_is_alone_in_the_bank_has_no_mixture() -> None:
    assert BankPrior().components({}, "person-0") is None
    assert BankPrior().components(bank(people(1)), "person-0") is None


def test_a_later_report_replaces_an_earlier_one_and_spares_the_others() -> None:
    prior, before = BankPrior(), bank(people(3))
    fresh = posterior(99, 7)
    state = {**before, "body.weight": torch.zeros(1)}
    after = prior.update_each(state, [Contribution(prior.report({}, {"person-1": fresh}))])
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    assert changed == {f"{BANK}{person_id('person-1')}"}
    assert torch.equal(bank_means(after, [person_id("person-1")])[0], fresh.mean)


def test_numbers_stand_for_people() -> None:
    numbers = [person_id(f"person-{place}") for place in range(1000)]
    assert len(set(numbers)) == 1000
    assert all(0 <= number < 2**63 for number in numbers)
    assert person_id("person-0") == numbers[0]


def mixture(components: int = 2, decay: float = 0.0, spread: float = 2.0) -> MixturePrior:
    return MixturePrior(components, decay, spread)


def contribute(prior: MixturePrior, state: State, posteriors: dict[str, Posterior]) -> Contribution:
    return Contribution(prior.report(state, posteriors))


def test_a_mixture_starts_orthogonal_and_is_not_used_before_it_has_seen_anybody() -> None:
    prior = mixture(3)
    state = prior.initial(DIM, Streams(1))
    means = state[MIXTURE + "mean"]
    torch.testing.assert_close(means @ means.T, 4 * torch.eye(3), atol=1e-5, rtol=0)
    assert prior.components(state, "anybody") is None
    state.update(prior.update(state, contribute(prior, state, people(4))))
    found = prior.components(state, "anybody")
    assert found is not None
    assert found.ids.tolist() == [0, 1, 2]
    torch.testing.assert_close(found.log_weights.exp(), torch.full((3,), 1 / 3))
    assert torch.equal(found.means, state[MIXTURE + "mean"])


def test_responsibilities_are_bayes_rule_on_noisy_points() -> None:
    """A posterior is a point whose measurement has the posterior's variance: both variances add up."""
    prior = mixture(2)
    state = prior.initial(DIM, Streams(0))
    state[MIXTURE + "log_variance"] = torch.tensor([[0.3, -0.2, 0.1], [0.0, 0.5, -1.0]])
    one = posterior(4)
    likelihoods = torch.stack(
        [
            MultivariateNormal(mean, torch.diag(spread.exp() + one.log_variance.exp())).log_prob(one.mean).exp()
            for mean, spread in zip(state[MIXTURE + "mean"], state[MIXTURE + "log_variance"], strict=True)
        ]
    )
    found = prior.responsibilities(state, one.mean, one.log_variance)
    torch.testing.assert_close(found, likelihoods / likelihoods.sum())


@given(count=st.integers(1, 8), cuts=st.lists(st.integers(0, 8), max_size=4), decay=st.sampled_from([0.0, 0.7]))
def test_the_step_depends_on_the_sum_over_people_alone(count: int, cuts: list[int], decay: float) -> None:
    """Law 1: people in one silo, on workers of any size, or one by one."""
    prior, known = mixture(2, decay), list(people(count).items())
    state = prior.initial(DIM, Streams(0))
    state.update(prior.update(state, contribute(prior, state, people(3))))
    edges = sorted({0, count, *(min(cut, count) for cut in cuts)})
    silo = contribute(prior, state, dict(known))
    parts = [
        total(contribute(prior, state, dict([person])) for person in known[start:stop])
        for start, stop in itertools.pairwise(edges)
    ]
    whole, apart = (prior.update(state, total(each)) for each in ([silo], parts))
    for name in whole:
        torch.testing.assert_close(whole[name], apart[name], rtol=1e-4, atol=1e-5)


def test_one_round_with_everybody_is_an_m_step() -> None:
    prior, known = mixture(2), people(6)
    state = prior.initial(DIM, Streams(0))
    updated = prior.update(state, contribute(prior, state, known))
    shares = [prior.responsibilities(state, each.mean, each.log_variance) for each in known.values()]
    for k in range(2):
        weights = [float(share[k]) for share in shares]
        for d in range(DIM):
            values = [float(each.mean[d]) for each in known.values()]
            inner = [math.exp(float(each.log_variance[d])) for each in known.values()]
            mean = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
            within = sum(w * s for w, s in zip(weights, inner, strict=True)) / sum(weights)
            between = sum(w * (v - mean) ** 2 for w, v in zip(weights, values, strict=True)) / sum(weights)
            assert float(updated[MIXTURE + "mean"][k, d]) == pytest.approx(mean, rel=1e-4, abs=1e-5)
            variance = math.exp(float(updated[MIXTURE + "log_variance"][k, d]))
            assert variance == pytest.approx(within + between, rel=1e-3)


def test_the_past_weighs_as_much_as_its_decay_says() -> None:
    prior = mixture(1, decay=0.5)
    state = prior.initial(DIM, Streams(0))
    first, second = posterior(0), posterior(1)
    for each in (first, second):
        state.update(prior.update(state, contribute(prior, state, {"somebody": each})))
    torch.testing.assert_close(state[MIXTURE + "mean"][0], (0.5 * first.mean + second.mean) / 1.5)
    assert float(state[MIXTURE + "n"]) == pytest.approx(1.5)


def test_a_component_that_explains_nobody_stays_where_it_is() -> None:
    prior = mixture(2)
    state = prior.initial(DIM, Streams(0))
    near = state[MIXTURE + "mean"][0].clone()
    state[MIXTURE + "mean"][1] += 500
    crowd = {f"p{place}": posterior(place, at=near, spread=0.1) for place in range(4)}
    updated = prior.update(state, contribute(prior, state, crowd))
    for name in ("mean", "log_variance"):
        assert torch.equal(updated[MIXTURE + name][1], state[MIXTURE + name][1])
        assert not torch.equal(updated[MIXTURE + name][0], state[MIXTURE + name][0])


def test_equal_posteriors_leave_a_variance_to_divide_by() -> None:
    prior = mixture(1)
    state = prior.initial(DIM, Streams(0))
    sharp = Posterior(torch.ones(DIM), torch.full((DIM,), -60.0), 5)
    updated = prior.update(state, contribute(prior, state, {"a": sharp, "b": sharp}))
    torch.testing.assert_close(updated[MIXTURE + "mean"][0], torch.ones(DIM))
    assert float(updated[MIXTURE + "log_variance"].exp().min()) == pytest.approx(1e-3)


def test_federated_em_finds_what_scikit_learn_finds_on_separated_clusters() -> None:
    generator = np.random.default_rng(0)
    centres = np.array([[3.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    points = np.concatenate([centre + 0.4 * generator.normal(size=(30, DIM)) for centre in centres])
    oracle = GaussianMixture(2, covariance_type="diag", random_state=0).fit(points)
    prior = mixture(2)
    state = prior.initial(DIM, Streams(2))
    known = {
        f"p{n}": Posterior(torch.tensor(point).float(), torch.full((DIM,), -30.0), 1) for n, point in enumerate(points)
    }
    for _ in range(30):
        state.update(prior.update(state, contribute(prior, state, known)))
    means, variances = state[MIXTURE + "mean"].numpy(), state[MIXTURE + "log_variance"].exp().numpy()
    order = np.argsort(means[:, 0])
    expected = np.argsort(oracle.means_[:, 0])
    np.testing.assert_allclose(means[order], oracle.means_[expected], atol=0.02)
    np.testing.assert_allclose(variances[order], oracle.covariances_[expected], atol=0.02)


def test_components_know_their_mean() -> None:
    parts = Components(torch.arange(2), torch.tensor([0.25, 0.75]).log(), torch.eye(2), torch.zeros(2, 2))
    torch.testing.assert_close(parts.mean, torch.tensor([0.25, 0.75]))
