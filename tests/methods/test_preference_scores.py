"""The reward model: its likelihood and metrics against a computation by hand, and that it learns and is the reward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from fedalign.contribution import State, total
from fedalign.data.corpus import CorpusShard, Example
from fedalign.data.federated import Role
from fedalign.federation.server_optimizer import FedAvg
from fedalign.methods.corpus import CorpusPhase
from fedalign.metrics.record import decode
from fedalign.rng import Streams
from tests.language_models import WORDS, random_model, shake

from .stages import PLACE, phases, shard


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model("gpt2", tmp_path_factory.mktemp("model"))


def by_hand(phase: CorpusPhase, example: Example, response: str) -> float:
    """Return the head's number at the last token of a text that is read alone, without padding."""
    prompt = [WORDS.index(w) for w in example.prompt.split()][-4:] or [0]
    ids = torch.tensor([[*prompt, *[*(WORDS.index(w) for w in response.split()), 0][:5]]])
    with torch.no_grad():
        hidden = phase.network.policy.transformer.hidden(torch.ones_like(ids), ids)
        return float(hidden[0, -1].float() @ phase.network.head.weight[0] + phase.network.head.bias)


def shaken(phase: CorpusPhase) -> State:
    state = phase.initial(PLACE, {})
    phase.load(state)
    shake(phase.network)
    known = dict(phase.network.named_parameters())
    return {name: known[name].detach().clone() for name in state}


def test_losses_and_metrics_are_those_by_hand(folder: Path) -> None:
    phase = phases(folder, arm="dprlhf_preferences")["reward"]
    state = shaken(phase)
    phase.load(state)
    test = shard().test
    margins = torch.tensor([by_hand(phase, e, e.response) - by_hand(phase, e, e.rejected or "") for e in test])
    losses = phase.row_losses(state)(test, [0] * len(test)).detach()
    torch.testing.assert_close(losses, torch.log(1 + torch.exp(-margins)), rtol=1e-4, atol=1e-5)
    told = {(item.name, item.group): item for item in decode(phase.evaluate(state, shard(), PLACE).scalars)}
    for group in ("x", "y"):
        own = margins[[e.group == group for e in test]]
        accuracy, margin = (told[f"unseen/{name}", group] for name in ("accuracy", "margin"))
        assert accuracy.total == float((own > 0).sum())
        assert accuracy.n == margin.n == len(own)
        assert margin.total == pytest.approx(float(own.sum()), rel=1e-4)


def test_before_training_all_are_alike_and_ties_are_worth_a_half(folder: Path) -> None:
    phase = phases(folder, arm="dprlhf_preferences")["reward"]
    told = phase.evaluate(phase.initial(PLACE, {}), shard(), PLACE)
    values = phase.summarise(decode(told.scalars), told.tensors)
    assert values == {"unseen/accuracy": 0.5, "unseen/margin": 0.0}


def likes(word: str, other: str, split: str, prompts: Sequence[str]) -> tuple[Example, ...]:
    return tuple(
        Example(f"u{i}", "all", prompt, f"{tail} {word}", f"{tail} {other}", split)  # type: ignore[arg-type]
        for i, (prompt, tail) in enumerate((p, t) for p in prompts for t in ("the plot was", "a very", ""))
    )


def test_it_learns_a_preference_and_rewards_by_it(folder: Path) -> None:
    fast = ("method.reward_model.local.lr=0.02", "method.reward_model.local.steps=40", "method.reward_model.batch=8")
    found = phases(folder, *fast, "method.sft=null", arm="dprlhf_preferences")
    own = CorpusShard(
        "ann",
        Role.TRAIN,
        {"reward": likes("good", "bad", "train", ("the film", "it was", "actor")), "rl": shard().stages["rl"]},
        likes("good", "bad", "test", ("I liked", "the ending", "a")),
    )
    phase = found["reward"]
    state = phase.initial(PLACE, {})
    told = phase.local(state, own, Streams(0, "reward", 1, "ann"), {})
    learnt = phase.update(state, total([told]), FedAvg(1.0).build())
    accuracy = decode(phase.evaluate(learnt, own, PLACE).scalars)
    assert {item.name: item.total / item.n for item in accuracy}["unseen/accuracy"] > 0.9

    # What the policy is rewarded by is that very score, of the text with its prompt.
    policy = found["rl"]
    start = policy.initial(Streams(0), {"reward": learnt})
    told = policy.evaluate(start, own, PLACE)
    rewards = [item for item in decode(told.scalars) if item.name == "unseen/reward"]
    assert rewards
    phase.load(learnt)
    from fedalign.methods.rollouts import uniform, write

    numbers = Streams(PLACE.seed, client="ann").numpy("evaluation/texts").integers(2**62, size=len(own.test))
    policy.load(start)
    prompts = [example.prompt for example in own.test]
    draws = uniform([int(n) for n in numbers], 5)
    written = write(policy.network.policy, policy.codec, policy.lengths, prompts, draws)
    expected = 0.0
    for row in range(len(prompts)):
        ids = written.tokens.ids[row][written.tokens.attention_mask[row] == 1][None]
        with torch.no_grad():
            expected += float(phase.network.scores(ids, torch.ones_like(ids)))
    assert rewards[0].total == pytest.approx(expected, rel=1e-4, abs=1e-4)
    # A score of its own for each reward model.
    zero = {name: torch.zeros_like(t) if "head" in name else t for name, t in learnt.items()}
    told = policy.evaluate(policy.initial(Streams(0), {"reward": zero}), own, PLACE)
    assert [item.total for item in decode(told.scalars) if item.name == "unseen/reward"] == [0.0]
