"""The variational methods as configured: their phases, and settings that do not go together."""

from __future__ import annotations

import dataclasses
from typing import cast

import pytest

from fedalign.config import parse, resolve
from fedalign.errors import UserError
from fedalign.methods.base import Setting
from fedalign.methods.divergence import Divergence
from fedalign.methods.fedvpa import FedVPA
from fedalign.methods.latent_prior import BankPrior, MixturePrior, StandardPrior
from fedalign.methods.policy_training import PolicyTraining

from .judgments import FEATURES, random_person, shard
from .selectors import ARMS, method, phases, settings


@pytest.mark.parametrize("collect", [True, False])
def test_a_selector_and_the_collection_of_latents_where_asked_for(collect: bool) -> None:
    found = phases(f"method.collect_latents={collect}", rounds=7)
    assert [(phase.name, phase.rounds) for phase in found] == [("selector", 7), ("latents", 1)][: 1 + collect]


def test_arms_are_configurations_of_one_method() -> None:
    priors = [type(method(f"method={arm}").prior) for arm in ARMS]
    assert priors == [StandardPrior, BankPrior, MixturePrior]
    assert [method(f"method={arm}").prototypes is None for arm in ARMS] == [True, False, False]
    assert [method(f"method={arm}").divergence.form == "standard" for arm in ARMS] == [True, False, False]


def test_a_method_without_single_reports_has_no_phase_that_sees_any() -> None:
    assert {str(phase.needs) for phase in phases("method=fedvpa_sums")} == {"sum"}


def test_the_published_arm_is_the_paper_s_loss() -> None:
    config = parse(resolve(["method=fedvpa_published"]))
    assert isinstance(config.method, FedVPA)
    term: Divergence = config.method.divergence
    assert (term.form, term.weights, term.beta) == ("bound", "gumbel", 0.1)
    assert config.method.prototypes is not None
    assert (config.method.prototypes.scale, config.method.prototypes.pull) == (5.0, 1.0)


def test_the_headline_is_held_out_and_the_selection_is_not() -> None:
    assert method().headline == "test/accuracy"
    assert method().selection == "train/accuracy"


def test_weights_of_clients() -> None:
    client = shard(random_person("ann", 9, 0, test=2), random_person("ben", 8, 1, test=1), client="silo")
    assert method("method.weight=uniform").client_weight(client) == 1.0
    assert method("method.weight=judgments").client_weight(client) == 14.0


def test_more_prototypes_than_latent_dimensions_are_refused() -> None:
    with pytest.raises(UserError, match=r"method\.prototypes\.count=9 is above model\.latent=4"):
        phases("method.prototypes.count=9")


def test_a_policy_needs_latents_to_follow() -> None:
    config = settings()
    blind = dataclasses.replace(method(), collect_latents=False, policy=cast(PolicyTraining, object()))
    with pytest.raises(
        UserError, match=r"method\.policy follows the groups' latents; set method\.collect_latents=true"
    ):
        blind.phases(Setting(1, FEATURES, config.model, config.encoder))
