"""Reinforcement learning: a step against one written by hand, bandits with a known optimum, and gradients by unit."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedalign.contribution import DELTA, State, mean_delta
from fedalign.data.corpus import CorpusShard, Example
from fedalign.data.federated import Role
from fedalign.methods.corpus import Batches, CorpusPhase
from fedalign.methods.local_training import trainable
from fedalign.methods.rl import RLPhase
from tests.cases import mostly_slow
from tests.language_models import WORDS, random_model

from .stages import PLACE, Counts, phases, shard

ALGORITHMS = ("ppo", "rloo", "grpo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model("gpt2", tmp_path_factory.mktemp("model"))


def chosen(algorithm: str) -> str:
    return f"method/algorithm@method.rl.algorithm={algorithm}"


def rl(folder: Path, *overrides: str, **more: Any) -> RLPhase:
    """Return the phase of a run without other stages."""
    phase = phases(folder, "method.sft=null", *overrides, **more)["rl"]
    assert isinstance(phase, RLPhase)
    return phase


# One step after the other, against plain autograd.

SGD = ("method.rl.local.optimizer=sgd", "method.rl.beta=0.3")


@dataclass
class Hand:
    """PPO by hand: texts drawn token by token without a cache, sums over time as they are defined."""

    phase: RLPhase
    gamma: float = 0.9
    lam: float = 0.8
    clip: float = 0.2
    value_clip: float = 0.05
    value_weight: float = 0.5
    beta: float = 0.3
    place: str = "last"
    clipped: int = 0

    def score(self, network: Any, text: list[int], start: int) -> tuple[Tensor, Tensor]:
        """Return log-probabilities of a text's tokens from ``start`` on, and the values before them."""
        ids = torch.tensor([text])
        logits, values = network(ids, torch.ones_like(ids))
        table = torch.log(torch.softmax(logits[0].double(), 1))
        return torch.stack([table[t - 1, text[t]] for t in range(start, len(text))]), values[0, start - 1 : -1]

    @torch.no_grad()
    def draw(self, opening: list[int], seed: int) -> list[int]:
        """Return a text that is drawn by inverting cumulative probabilities."""
        numbers = torch.rand(1, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)[0].tolist()
        text = list(opening)
        for number in numbers:
            ids = torch.tensor([text])
            chances = torch.softmax(self.phase.network(ids, torch.ones_like(ids))[0][0, -1].double(), 0).tolist()
            below = list(itertools.accumulate(chances))
            text.append(next(i for i, reached in enumerate(below) if reached > number * below[-1]))
            if text[-1] == 0:
                break
        return text

    def targets(self, old: Tensor, reference: Tensor, values: Tensor, score: float) -> tuple[list[float], list[float]]:
        """Return advantages and returns by their definitions as sums."""
        steps = len(old)
        ratios = (old - reference).tolist()
        rewards = [0.0] * steps
        rewards[-1] += score
        for t in range(steps):
            rewards[-1 if self.place == "last" else t] -= self.beta * ratios[t]
        known = [*values.tolist(), 0.0]
        surprises = [rewards[t] + self.gamma * known[t + 1] - known[t] for t in range(steps)]
        gains = [
            sum((self.gamma * self.lam) ** (later - t) * surprises[later] for later in range(t, steps))
            for t in range(steps)
        ]
        return gains, [gain + value for gain, value in zip(gains, known, strict=False)]

    def loss(self, text: list[int], start: int, old: Any) -> Tensor:
        log_probs, values = self.score(self.phase.network, text, start)
        total = torch.zeros((), dtype=torch.float64)
        for t in range(len(text) - start):
            ratio = torch.exp(log_probs[t] - old.log_probs[t])
            now = float(ratio.detach())
            held = ratio if abs(now - 1) <= self.clip else ratio.detach().clamp(1 - self.clip, 1 + self.clip)
            self.clipped += held is not ratio
            gain = old.gains[t]
            total = total - (ratio * gain if now * gain <= float(held.detach()) * gain else held * gain)
            before = float(old.values[t])
            near = before + (values[t] - before).clamp(-self.value_clip, self.value_clip)
            errors = (values[t] - old.returns[t]) ** 2, (near - old.returns[t]) ** 2
            total = total + self.value_weight * 0.5 * (errors[0] if errors[0] >= errors[1] else errors[1])
        return total / (len(text) - start)


@dataclass
class Drawn:
    """What is kept of a response by hand."""

    text: list[int]
    start: int
    log_probs: Tensor
    values: Tensor
    gains: list[float]
    returns: list[float]


@pytest.mark.parametrize(("epochs", "minibatches", "place"), [(1, 1, "last"), (1, 1, "token"), (2, 2, "last")])
def test_local_training_is_ppo_by_hand(folder: Path, epochs: int, minibatches: int, place: str) -> None:
    steps, lr = epochs * minibatches, 0.5
    algorithm: dict[str, Any] = {
        "epochs": epochs,
        "minibatches": minibatches,
        "gamma": 0.9,
        "lam": 0.8,
        "value_clip": 0.05,
    }
    algorithm |= {"value_weight": 0.5, "place": place}
    phase = rl(
        folder,
        *SGD,
        *(f"method.rl.algorithm.{key}={value}" for key, value in algorithm.items()),
        f"method.rl.local.steps={steps}",
        f"method.rl.local.lr={lr}",
        reward=Counts(word=WORDS[5]),
    )
    state = moved(phase)
    found = phase.local(state, shard(6), PLACE, {}).tensors

    hand = Hand(phase, place=place)
    phase.load(state)
    reference = rl(folder)
    reference.load(
        {**state, **{name.removeprefix("reference/"): state[name] for name in state if "reference/" in name}}
    )
    own, seeds = Batches(phase.own(shard(6)), 4, PLACE.torch("batches")).draw()
    kept = [drawn_by_hand(hand, reference, example, seed) for example, seed in zip(own, seeds, strict=True)]
    parameters = trainable(phase.network)
    start = {name: p.detach().clone() for name, p in parameters.items()}
    for epoch in range(epochs):
        order = torch.randperm(4, generator=torch.Generator().manual_seed(seeds[0] ^ (epoch + 1)))
        for part in order.tensor_split(minibatches):
            rows = [kept[i] for i in part.tolist()]
            loss = torch.stack([hand.loss(row.text, row.start, row) for row in rows]).mean()
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            with torch.no_grad():
                for parameter, gradient in zip(parameters.values(), gradients, strict=True):
                    parameter.sub_(lr * gradient)
    assert (hand.clipped > 0) == (steps > 1)
    for name, parameter in parameters.items():
        expected = parameter.detach() - start[name]
        assert float(expected.abs().max()) > 1e-4
        # Single precision, and the framework sums in another order.
        assert float((found[DELTA + name] - expected).norm()) < 2e-3 * float(expected.norm())


def moved(phase: CorpusPhase) -> State:
    """Return a state whose policy is not its reference, with values of its own."""
    state = phase.initial(PLACE, {})
    generator = torch.Generator().manual_seed(3)
    trained = phase.template(state).tensors
    return {
        name: tensor + 0.2 * torch.randn(tensor.shape, generator=generator) if DELTA + name in trained else tensor
        for name, tensor in state.items()
    }


@torch.no_grad()
def drawn_by_hand(hand: Hand, reference: RLPhase, example: Example, seed: int) -> Drawn:
    opening = [WORDS.index(word) for word in example.prompt.split()][-4:] or [0]
    text = hand.draw(opening, seed)
    log_probs, values = hand.score(hand.phase.network, text, len(opening))
    known, _ = hand.score(reference.network, text, len(opening))
    score = sum(WORDS[token] == WORDS[5] for token in text[len(opening) :])
    gains, returns = hand.targets(log_probs, known, values, float(score))
    return Drawn(text, len(opening), log_probs, values, gains, returns)


# Bandits: responses of one token, of which one is worth 1.

BANDIT = (
    "method.lengths.prompt=1",
    "method.lengths.response=1",
    "method.rl.batch=32",
    "method.rl.local.steps=80",
    "method.rl.local.lr=0.05",
)


SCHEDULE = ("method.rl.local.schedule=cosine", "method.rl.local.final_lr=0.02")
WORD = WORDS.index("bright")


def bandit() -> CorpusShard:
    prompts = tuple(Example(f"u{i}", "all", "film", "good", None, "train") for i in range(64))
    return CorpusShard("ann", Role.TRAIN, {"rl": prompts}, ())


@torch.no_grad()
def chances(phase: RLPhase, state: State, temperature: float = 1.0) -> Tensor:
    """Return the probability of each token after the bandit's prompt."""
    phase.load(state)
    ids = torch.tensor([[WORDS.index("film")]])
    return torch.softmax(phase.network(ids, torch.ones_like(ids))[0][0, -1].double() / temperature, 0)


def learnt(folder: Path, algorithm: str, *overrides: str, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the probabilities of tokens before and after a round of the bandit."""
    few = ("method.rl.batch=8",) if algorithm in ("rloo", "grpo") else ()
    phase = rl(folder, chosen(algorithm), *BANDIT, *few, *overrides, "method.rl.rounds=1", reward=Counts(word="bright"))
    state = phase.initial(PLACE, {})
    contribution = phase.local(state, bandit(), PLACE, {})
    after = {**state, **{name: state[name] + delta for name, delta in mean_delta(contribution).items()}}
    return chances(phase, state, temperature), chances(phase, after, temperature)


def divergence(one: Tensor, other: Tensor) -> float:
    return float((one * (one.log() - other.log())).sum())


@pytest.mark.parametrize("algorithm", mostly_slow(ALGORITHMS, ["grpo"]))
def test_a_bandit_is_solved(folder: Path, algorithm: str) -> None:
    # What the values learn moves the body that the policy shares.
    slower = ("method.rl.local.lr=0.015", "method.rl.local.steps=120") if algorithm == "ppo" else ()
    before, after = learnt(folder, algorithm, "method.rl.beta=0", *slower)
    assert before[WORD] < 0.2
    # The mean reward is the probability of the word.
    assert after[WORD] > 0.9


@pytest.mark.parametrize("algorithm", mostly_slow(["ppo", "rloo"], ["ppo"]))
def test_a_large_weight_of_the_divergence_holds_the_policy(folder: Path, algorithm: str) -> None:
    held, free = (
        learnt(folder, algorithm, f"method.rl.beta={beta}", "method.rl.local.lr=0.01", "method.rl.local.steps=25")
        for beta in (20, 0)
    )
    assert divergence(held[1], held[0]) < 0.02
    assert divergence(free[1], free[0]) > 0.2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("beta", "temperature"),
    [(0.4, 1.0), (0.2, 1.0), (0.4, 2.0)],
)
def test_in_between_the_policy_is_the_tilted_reference(folder: Path, beta: float, temperature: float) -> None:
    """At the temperature that draws: it is that policy which is rewarded, and pays for leaving the reference's."""
    many = ("method.rl.batch=16", "method.rl.local.steps=150", f"method.rl.temperature={temperature}", *SCHEDULE)
    before, after = learnt(folder, "rloo", f"method.rl.beta={beta}", *many, temperature=temperature)
    reward = torch.zeros(len(before), dtype=torch.float64)
    reward[WORD] = 1.0
    tilted = before * torch.exp(reward / beta)
    tilted /= tilted.sum()
    assert divergence(tilted, before) > 0.05
    assert divergence(after, tilted) < 0.02
    assert float((after - tilted).abs().max()) < 0.05


def test_responses_serve_as_many_steps_as_said_whatever_a_client_holds(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    usual = Batches.draw

    def counted(batches: Batches) -> Any:
        found = usual(batches)
        drawn.append(len(found[0]))
        return found

    monkeypatch.setattr(Batches, "draw", counted)
    four = ("method.rl.algorithm.minibatches=4", "method.rl.local.steps=8", "method.rl.batch=5")
    phase = rl(folder, *four)
    phase.local(phase.initial(PLACE, {}), shard(6), PLACE, {})
    # Five prompts make four parts, not three.
    assert drawn == [5, 5]
