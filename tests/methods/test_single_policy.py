"""One policy in place of the mixture: the log-linear merge of types, and distillation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedalign.contribution import State, mean_delta
from fedalign.errors import UserError
from fedalign.methods.distillation import SINGLE, Distilled, DistilledPhase
from fedalign.methods.local_training import LocalTraining
from fedalign.methods.log_linear import LogLinearPolicy, MergedNetwork
from fedalign.methods.mixture_policy import MixturePolicy
from fedalign.methods.mmra import MIXTURE
from fedalign.methods.single_policy import LogLinear, LogLinearPhase, NoSingle
from fedalign.methods.text_policies import Writing, type_policies
from fedalign.methods.type_adapters import AdapterTypes
from fedalign.methods.type_model import all_utilities, type_of
from fedalign.methods.type_rewards import menu_log_policies
from fedalign.metrics.record import decode
from fedalign.models.generation import generate
from fedalign.rng import Streams
from tests.language_models import random_model
from tests.methods.type_worlds import PROMPTS, WRITING, adapters, fair, heads, mixture_phase, random_shard

Types = tuple[AdapterTypes, State]
LOCAL = LocalTraining(
    steps=60,
    optimizer="adam",
    lr=0.005,
    schedule="constant",
    period=1,
    final_lr=1.0,
    optimizer_state="reset",
    proximal_mu=0.0,
    max_grad_norm=None,
)


@pytest.fixture(scope="module")
def types(tmp_path_factory: pytest.TempPathFactory) -> Types:
    """Return three types that write differently."""
    return adapters(random_model("gpt2", tmp_path_factory.mktemp("single")), 3)


def generator(seed: int = 0) -> torch.Generator:
    """Return a generator of one's own."""
    return torch.Generator().manual_seed(seed)


def distilled(**changes: Any) -> Distilled:
    """Return settings of distillation."""
    values: dict[str, Any] = {
        "rounds": 1,
        "prompts": None,
        "client_prompts": 6,
        "writing": Writing(samples=30, max_new_tokens=6, temperature=1.0, batch=180),
        "batch": 48,
        "local": LOCAL,
    }
    return Distilled(**{**values, **changes})


@pytest.mark.parametrize("number", [0, 2])
def test_a_merge_of_one_type_is_that_type_to_the_last_bit(types: Types, number: int) -> None:
    model, state = types
    merged = LogLinearPolicy(model, state, torch.eye(3)[number])
    own = type_policies(model, state)[number]
    first, second = (p.write(PROMPTS, WRITING, generator()) for p in (merged, own))
    assert torch.equal(first.tokens.ids, second.tokens.ids)
    assert torch.equal(merged.log_probability(first.tokens), own.log_probability(first.tokens))


def test_a_merge_of_equal_types_is_the_type(types: Types) -> None:
    model, state = types
    same = {name: state[name.replace("types.1.", "types.0.").replace("types.2.", "types.0.")] for name in state}
    merged = LogLinearPolicy(model, same, torch.tensor([0.2, 0.5, 0.3]))
    own = type_policies(model, same)[0]
    tokens = own.write(PROMPTS, WRITING, generator()).tokens
    torch.testing.assert_close(merged.log_probability(tokens), own.log_probability(tokens), atol=1e-4, rtol=1e-5)
    assert torch.equal(merged.write(PROMPTS, WRITING, generator()).tokens.ids, tokens.ids)


@pytest.mark.parametrize("weights", [(0.0, 0.0, 0.0), (0.5, 0.0, 0.5), (0.2, 0.3, 0.1), (0.8, 0.7, 0.0)])
def test_next_tokens_are_the_normalised_product(types: Types, weights: tuple[float, ...]) -> None:
    model, state = types
    ids, mask = model.codec.prompts(PROMPTS, 8)
    with torch.no_grad():
        logs = []
        for number in range(3):
            model.load(type_of(state, number))
            logs.append(model.policy(ids, mask, None).double().log_softmax(2))
        product = (1 - sum(weights)) * model.policy.reference(ids, mask).double().log_softmax(2)
        for weight, log in zip(weights, logs, strict=True):
            product = product + weight * log
        network = MergedNetwork(model, state, torch.tensor(weights))
        found = network(ids, mask, None).double().log_softmax(2)
    there = mask.bool()
    torch.testing.assert_close(found.exp()[there], product.softmax(2)[there], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(network.reference(ids, mask)[there], model.policy.reference(ids, mask)[there])


def test_caches_of_types_do_not_mix(types: Types) -> None:
    model, state = types
    network = MergedNetwork(model, state, torch.tensor([0.4, 0.3, 0.1]))
    ids, mask = model.codec.prompts(PROMPTS, 8)
    kept, anew = (generate(network, ids, mask, None, 6, 1.0, generator(4), use_cache=cache) for cache in (True, False))
    assert torch.equal(kept, anew)


def test_a_merge_over_menus_is_the_softmax_of_weighted_utilities() -> None:
    model, state = heads([1.0, 0.0, -1.0, 2.0], [0.5, -1.0, 0.3, 0.0])
    client = random_shard(2, 12)
    phase = LogLinear().phases(mixture_phase(model, 2, fair()))[0]
    state = {**state, MIXTURE: torch.tensor([0.3, 0.7])}
    present = client.tiers >= 0
    merged = menu_log_policies(phase.utilities(state, client, client.train), present)
    policies = menu_log_policies(all_utilities(model, state, client, client.train), present).exp()
    product = (policies[0] ** 0.3) * (policies[1] ** 0.7)
    product = product.masked_fill(~present, 0.0)
    torch.testing.assert_close(merged.exp(), product / product.sum(1, keepdim=True), atol=1e-6, rtol=1e-5)


def test_a_merge_is_evaluated_like_the_mixture_where_one_type_has_all_weight() -> None:
    model, state = heads([1.0, 0.0, -1.0, 2.0], [0.5, -1.0, 0.3, 0.0])
    client = random_shard(3, 20, test=8)
    mixture = mixture_phase(model, 2, fair())
    single = LogLinear().phases(mixture)[0]
    state = {**mixture.initial(Streams(0), {"em": state}), MIXTURE: torch.tensor([0.0, 1.0])}
    assert single.initial(Streams(0), {"mmra": state}) is state
    found = [phase.evaluate(state, client, Streams(0)) for phase in (mixture, single)]
    values = [phase.summarise(decode(c.scalars), c.tensors) for phase, c in zip((mixture, single), found, strict=True)]
    assert values[0] == pytest.approx(values[1], abs=1e-6)
    assert abs(values[0]["test/regret_mean"]) > 0.01
    assert isinstance(single, LogLinearPhase)
    assert not NoSingle().phases(mixture)


def test_distillation_on_the_clients_moves_the_adapter_to_the_mixture(types: Types, tmp_path: Path) -> None:
    model, learnt = types
    mixture = mixture_phase(model, 3, fair())
    phase = distilled().phases(mixture)[0]
    before = {**mixture.initial(Streams(0), {"em": learnt}), MIXTURE: torch.tensor([0.4, 0.3, 0.3])}
    state = phase.initial(Streams(0), {"mmra": before})
    assert all(torch.equal(state[SINGLE + name], tensor) for name, tensor in type_of(state, 0).items())
    kept = {name: tensor.clone() for name, tensor in state.items()}
    reply = phase.local(state, random_shard(1, 12), Streams(0, "single", 1, "c"), {})
    phase.template(state).check(reply)
    assert all(torch.equal(state[name], kept[name]) for name in state)
    changes = mean_delta(reply)
    after = {name: tensor + changes[name].to(tensor) if name in changes else tensor for name, tensor in state.items()}
    assert {name for name in state if not torch.equal(state[name], after[name])} == set(_single(state))
    tokens = MixturePolicy(model, state, state[MIXTURE]).write(PROMPTS * 20, WRITING, generator(5)).tokens
    likely = [float(phase.policy(s).log_probability(tokens).mean()) for s in (state, after)]
    assert likely[1] > likely[0] + 0.5
    phase.export(after, tmp_path)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_distillation_on_public_prompts_asks_nobody(types: Types, tmp_path: Path) -> None:
    model, learnt = types
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS), encoding="utf-8")
    mixture = mixture_phase(model, 3, fair())
    before = {**mixture.initial(Streams(0), {"em": learnt}), MIXTURE: torch.tensor([0.4, 0.3, 0.3])}
    phase = distilled(prompts=str(file)).phases(mixture)[0]
    assert isinstance(phase, DistilledPhase)
    assert phase.rounds == 0
    state = phase.initial(Streams(0), {"mmra": before})
    start = distilled().phases(mixture)[0].initial(Streams(0), {"mmra": before})
    tokens = MixturePolicy(model, state, state[MIXTURE]).write(PROMPTS * 20, WRITING, generator(5)).tokens
    likely = [float(phase.policy(s).log_probability(tokens).mean()) for s in (start, state)]
    assert likely[1] > likely[0] + 0.5


def test_heads_cannot_be_distilled() -> None:
    model, _ = heads([1.0], [2.0])
    with pytest.raises(UserError, match="method/single=log_linear"):
        distilled().phases(mixture_phase(model, 2, fair()))


def _single(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name.startswith(SINGLE)}
