"""Law 4: at its limits a method is the simpler method that it contains."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch

from fedalign.config import parse, resolve, to_json
from fedalign.contribution import mean_delta
from fedalign.methods.pluralllm import GPOPhase, PluralLLM
from fedalign.metrics.record import MetricSum
from fedalign.objectives.gpo_nll import gpo_nll
from fedalign.rng import Streams
from fedalign.site import open_site, setting

from .conftest import TINY, Runner, final_state, residuals


def test_one_client_with_all_data_is_centralised_training(run: Runner) -> None:
    """A pooled federation equals a plain training loop that knows no rounds, clients or deltas."""
    # Plain steps: Adam makes a step of full size of a gradient that is nothing but rounding.
    plainly = ["method.local.optimizer=sgd", "method.local.lr=0.05"]
    pooled = ["partition=pooled", "partition.unseen=2", "partition.min_questions=8", "method.prior=none"]
    overrides = [*TINY, *pooled, *plainly]
    federated = final_state(run("pooled", *overrides[len(TINY) :]))
    resolved = resolve(overrides)
    config = parse(resolved)
    method = config.method
    assert isinstance(method, PluralLLM)
    phase = method.phases(setting(config))[-1]
    assert isinstance(phase, GPOPhase)
    site = open_site(to_json(resolved), {})
    shard = site.data.shard(next(c.name for c in site.data.clients))
    network = config.model.build(config.encoder.dim, 0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(phase.initial(Streams(0, "gpo"), {})[name])
    optimizer = torch.optim.SGD(network.parameters(), lr=method.local.lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, cosine(method.local.final_lr, 10))
    for round in range(1, 6):
        episodes = Streams(0, "gpo", round, shard.client).torch("episodes")
        for _ in range(2):
            losses = []
            for group in shard.groups:
                context, target = method.episode.draw(group.train, episodes)
                losses.append(group_loss(network, group, context.tolist(), target.tolist()))
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            if method.local.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(network.parameters(), method.local.max_grad_norm)
            optimizer.step()
            scheduler.step()
    plain = {name: parameter.detach() for name, parameter in network.named_parameters()}
    largest, mean = residuals(federated, plain)
    assert largest < 2e-5
    assert mean < 1e-6


def cosine(floor: float, total: int) -> Callable[[int], float]:
    return lambda step: floor + (1 - floor) * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * step / total))))


def group_loss(network, group, context: list[int], target: list[int]) -> torch.Tensor:
    """GPO's loss of one group, written without the package's own layout of points."""
    spans = {q: range(int(group.offsets[q]), int(group.offsets[q + 1])) for q in [*context, *target]}
    seen = list(itertools.chain.from_iterable(spans[q] for q in context))
    hidden = list(itertools.chain.from_iterable(spans[q] for q in target))
    shares = torch.cat([group.shares[seen], torch.zeros(len(hidden))])
    tokens = torch.cat([group.features[seen + hidden], shares[:, None]], dim=1)
    mean, log_std = network(tokens, len(seen))
    segments = torch.tensor([place for place, q in enumerate(target) for _ in spans[q]])
    return gpo_nll(mean, log_std, group.shares[hidden], segments, len(target)).mean()


def test_no_local_change_is_no_global_change() -> None:
    """A federation whose clients return what they were sent stays where it is."""
    resolved = resolve([*TINY])
    config = parse(resolved)
    state = config.method.phases(setting(config))[-1].initial(Streams(0), {})
    from fedalign.contribution import total, weighted_delta

    summed = total([weighted_delta(state, state, weight) for weight in (1.0, 2.5)])
    stepped = config.federation.server_optimizer.build().step(state, mean_delta(summed))
    assert residuals(state, stepped) == (0.0, 0.0)


def test_equal_groups_are_perfectly_fair() -> None:
    resolved = resolve([*TINY])
    phase = parse(resolved).method.phases(setting(parse(resolved)))[-1]
    values = phase.summarise([MetricSum("unseen/alignment_score", g, 1.5, 2.0) for g in "abc"], {})
    assert values["unseen/fairness_index"] == 1.0
    assert values["unseen/alignment_gap"] == 0.0
