"""Law 8 for pairs: every option of the methods that learn from pairs changes what is learnt, predicted or measured."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fedalign.config import parse, resolve, to_json
from fedalign.data.federated import Role
from fedalign.methods.pairs import PairPhase
from fedalign.rng import Streams
from fedalign.site import open_site
from tests.cases import mostly_slow
from tests.methods.selectors import Federation, scores

from .conftest import PAIRS, selector_overrides

SHORT = ("federation.rounds=2",)
ARMS: dict[str, Sequence[str]] = {
    "fedvpa": (),
    "fedvpa_sums": (),
    "fedvpl": (),
    "fedavg_bt": (),
    "fedavg_bt_finetuned": ("method.adapt.steps=5", "method.adapt.lr=0.01"),
    "fedbiscuit": ("method.heads=2", "method.assignment.warmup=0", "method.assignment.regroup=1"),
    "fedem": (),
    "pal": ("method.assignment.context_iterations=5",),
    "oracle_group": (),
    "length_rule": (),
}
"""Overrides that make an arm small."""

VARIATIONAL = {arm for arm in ARMS if arm.startswith("fedvp")}


@dataclass(frozen=True)
class Outcome:
    """What came out of a run: everything that was learnt, predictions for everybody, and what was measured."""

    tensors: dict[str, Tensor]
    metrics: dict[str, float]


@functools.cache
def outcome(arm: str, *overrides: str) -> Outcome:
    """Run an arm on the tiny world, with all clients in every round and no engine."""
    if arm in VARIATIONAL:
        all_overrides = selector_overrides(f"method={arm}", *SHORT, *ARMS[arm], *overrides)
    elif arm == "length_rule":
        tiny = [o for o in PAIRS if not o.startswith(("model.", "method.local", "method.episodes"))]
        all_overrides = [f"method={arm}", *tiny, *overrides]
    else:
        all_overrides = [f"method={arm}", *PAIRS, *SHORT, *ARMS[arm], *overrides]
    resolved = resolve(all_overrides)
    config, site = parse(resolved), open_site(to_json(resolved), {})
    everybody = [site.data.shard(client.name) for client in site.data.clients]
    training = [shard for shard in everybody if shard.role is Role.TRAIN]
    artefacts: dict[str, dict[str, Tensor]] = {}
    for phase in site.phases:
        server = config.federation.server_optimizer
        artefacts[phase.name] = Federation(phase, server, config.seed, artefacts).run(training)
    assert isinstance(phase, PairPhase)
    state = artefacts[phase.name]
    tensors = {f"{name}/{key}": tensor for name, known in artefacts.items() for key, tensor in known.items()}
    with torch.inference_mode():
        phase.load(state)
        for shard in everybody:
            for person in shard.people:
                # Lengths stand in for a network's vectors where it has none.
                pairs = person.lengths[None, :, :, None] if arm == "length_rule" else person.features[None]
                shown = person.train[: phase.evaluation.context]
                predictor = phase.predictors(state, shard, person, shown, Streams(config.seed))["accuracy"]
                tensors[f"odds/{person.person}"] = predictor(pairs[:, :, 0], pairs[:, :, 1])
    return Outcome(tensors, scores(phase, state, everybody))


def differ(one: Outcome, other: Outcome) -> bool:
    if one.tensors.keys() != other.tensors.keys():
        return True
    pairs = [(tensor, other.tensors[name]) for name, tensor in one.tensors.items()]
    return any(a.shape != b.shape or float((a.double() - b.double()).abs().max()) > 1e-9 for a, b in pairs if a.numel())


# Two options have no effect here, and have tests of their own: method.weight, since all clients hold equally many
# judgments, and fedbiscuit's regroup, since clusters do not change in a few rounds with everybody.
SELECTOR_CHANGES = [
    "method.prior._target_=fedalign.methods.latent_prior.StandardPrior",
    "method.divergence.beta=1",
    "method.divergence.form=standard",
    "method.divergence.form=bound",
    "method.divergence.weights=server",
    "method.divergence.temperature=5",
    "method.divergence.final_temperature=5",
    "method.divergence.samples=2",
    "method.divergence.annealing.schedule=linear",
    "method.divergence.annealing.schedule=cyclical",
    "method.divergence.annealing.schedule=linear -> method.divergence.annealing.rounds=3",
    "method.divergence.annealing.schedule=linear -> method.divergence.annealing.floor=0.5",
    "method.prototypes=null",
    "method.prototypes.count=3",
    "method.prototypes.scale=9",
    "method.prototypes.pull=7",
    "method.prototypes.orthogonality=7",
    "method.prototypes.labels=nearest",
    "method.prototypes.labels=category method.prototypes.categories=[praise,criticism]",
    "method.prototypes.labels=category method.prototypes.categories=[praise,criticism] -> "
    "method.prototypes.categories=[criticism,praise]",
    "method.prototypes.warmup=1",
    "method.episodes.count=3",
    "method.episodes.min_context=4",
    "method.episodes.max_context=8",
    "method.episodes.targets=2",
    "method.collect_latents=false",
    "method.local.steps=3",
    "method.local.optimizer=adam",
    "method.local.lr=0.01",
    "method.local.proximal_mu=1",
    "method.local.max_grad_norm=0.01",
    "method.evaluation.context=3",
    "method.evaluation.draws=2",
    "method.evaluation.train=false",
    "model.body.width=9",
    "model.body.layers=2",
    "model.body.dropout=0.5",
    "model.latent=5",
    "model.width=9",
    "model.aggregation=attention",
    "model.evidence=false",
    "model.evidence=false -> model.head=selector",
    "model.evidence=false -> model.decoder=mlp",
    "model.evidence=false -> model.decoder=additive",
    "model.base_dropout=0.5",
    "model.max_log_variance=-3",
    "federation/server_optimizer=fedavg",
    "encoder.size=16",
    "partition.clients=5",
    "partition.unseen=1",
    "partition.pooled=true",
    "partition.max_train=9",
    "partition.max_test=2",
    "data.annotators=9",
    "data.train_judgments=11",
    "data.test_judgments=4",
    "data.contested=2",
    "data.conflict_share=0.9",
    "data.words=3",
    "data.noise=0.4",
    "data.minority_share=0.2",
    "data.length_shortcut=1",
    "data.prompt_tail=5",
    "data.world_seed=8",
    "partition=strict partition.clients=6",
    "partition=mixed partition.clients=6",
    "partition=ratio_70_30 partition.clients=6",
    "partition=ratio_90_10 partition.clients=6",
    "seed=1",
]
CHANGES = [
    *(("fedvpa", change) for change in SELECTOR_CHANGES),
    ("fedvpa_sums", "method.prior.components_count=3"),
    ("fedvpa_sums", "method.prior.decay=0.1"),
    ("fedvpa_sums", "method.prior.spread=4"),
    ("fedvpl", "model.evidence=true"),
    ("fedvpl", "method.divergence.beta=1"),
    ("fedavg_bt", "method.heads=2"),
    ("fedavg_bt", "method.episodes.count=3"),
    ("fedavg_bt", "method.local.steps=3"),
    ("fedavg_bt", "model.head=selector"),
    ("fedavg_bt", "model.width=9"),
    ("fedavg_bt", "model.body.layers=2"),
    ("fedavg_bt_finetuned", "method.adapt=null"),
    ("fedavg_bt_finetuned", "method.adapt.steps=6"),
    ("fedavg_bt_finetuned", "method.adapt.optimizer=sgd"),
    ("fedavg_bt_finetuned", "method.adapt.lr=0.02"),
    ("fedavg_bt_finetuned", "method.adapt.schedule=cosine"),
    ("fedavg_bt_finetuned", "method.adapt.schedule=cosine -> method.adapt.final_lr=0.9"),
    ("fedavg_bt_finetuned", "method.adapt.proximal_mu=1"),
    ("fedavg_bt_finetuned", "method.adapt.optimizer=sgd -> method.adapt.max_grad_norm=0.001"),
    ("fedbiscuit", "method.heads=3"),
    ("fedbiscuit", "method.assignment.warmup=1"),
    ("fedbiscuit", "method.assignment.decide=vote"),
    ("fedem", "method.heads=3"),
    ("fedem", "method.assignment.train_iterations=5"),
    ("fedem", "method.assignment.context_iterations=1"),
    ("fedem", "method.assignment.shares=uniform"),
    ("pal", "method.heads=3"),
    ("pal", "method.assignment.rate=300"),
    ("pal", "method.assignment.context_iterations=50"),
    ("pal", "method.assignment.shares=uniform"),
    ("oracle_group", "method.assignment.groups=[criticism,praise]"),
    ("length_rule", "method.prefer=shorter"),
]


FAST = [
    *(
        ("fedvpa", change)
        for change in (
            "method.prior._target_=fedalign.methods.latent_prior.StandardPrior",
            "method.divergence.beta=1",
            "method.prototypes=null",
            "method.collect_latents=false",
            "model.aggregation=attention",
            "partition=strict partition.clients=6",
        )
    ),
    ("fedvpa_sums", "method.prior.spread=4"),
    ("fedvpl", "model.evidence=true"),
    ("fedavg_bt", "method.heads=2"),
    ("fedavg_bt_finetuned", "method.adapt=null"),
    ("fedbiscuit", "method.assignment.decide=vote"),
    ("fedem", "method.assignment.shares=uniform"),
    ("pal", "method.assignment.shares=uniform"),
    ("oracle_group", "method.assignment.groups=[criticism,praise]"),
    ("length_rule", "method.prefer=shorter"),
]
"""Some of every arm."""


@pytest.mark.parametrize(("arm", "change"), mostly_slow(CHANGES, FAST))
def test_an_option_changes_what_is_learnt_predicted_or_measured(arm: str, change: str) -> None:
    # Before an arrow stands what it takes for the option to matter.
    given, _, new = change.rpartition(" -> ")
    known, changed = outcome(arm, *given.split()), outcome(arm, *given.split(), *new.split())
    assert differ(known, changed) or known.metrics != changed.metrics


def test_the_comparison_can_tell_no_change_from_a_change() -> None:
    once = outcome("fedvpl")
    outcome.cache_clear()
    again = outcome("fedvpl")
    assert once is not again
    assert not differ(once, again)
    assert once.metrics == again.metrics
