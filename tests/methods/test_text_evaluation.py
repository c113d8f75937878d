"""Metrics of what a language model writes, each against a computation of its own."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

from fedalign.contribution import Contribution, State, total
from fedalign.methods.corpus import CorpusPhase
from fedalign.methods.rollouts import uniform, write
from fedalign.methods.text_evaluation import MOMENTS, TextEvaluation
from fedalign.methods.text_reward import Vader
from fedalign.metrics.record import decode
from fedalign.rng import Streams
from tests.language_models import random_model

from .stages import PLACE, Counts, phases, shard


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model("gpt2", tmp_path_factory.mktemp("model"))


def acting(phase: CorpusPhase) -> State:
    """Return a state whose policy is not its reference."""
    generator = torch.Generator().manual_seed(3)
    state = phase.initial(PLACE, {})
    return {
        name: t + 0.2 * torch.randn(t.shape, generator=generator) if not name.startswith("reference/") else t
        for name, t in state.items()
    }


def evaluation(**changes: Any) -> TextEvaluation:
    values: dict[str, Any] = {
        "prompts": 9,
        "batch": 3,
        "temperature": 1.0,
        "judge": None,
        "baseline": "pretrained",
        "rouge": True,
    }
    return TextEvaluation(**{**values, **changes})


def written(phase: CorpusPhase, count: int, pretrained: bool = False) -> Any:
    numbers = Streams(PLACE.seed, client="ann").numpy("evaluation/texts").integers(2**62, size=count)
    prompts = [example.prompt for example in shard(test=count).test]
    draws = uniform([int(n) for n in numbers], 5)
    return write(phase.network.policy, phase.codec, phase.lengths, prompts, draws, pretrained=pretrained)


def lcs(one: list[str], other: list[str]) -> int:
    if not one or not other:
        return 0
    if one[-1] == other[-1]:
        return 1 + lcs(one[:-1], other[:-1])
    return max(lcs(one[:-1], other), lcs(one, other[:-1]))


def f1(hits: int, one: list[Any], other: list[Any]) -> float:
    return 2 * hits / (len(one) + len(other)) if hits else 0.0


def test_every_metric_is_what_it_is_called(folder: Path) -> None:
    phase = phases(folder, evaluation=evaluation(judge=Vader("response")))["rl"]
    state = acting(phase)
    told = phase.evaluate(state, shard(), PLACE)
    values = phase.summarise(decode(told.scalars), told.tensors)
    by_hand: dict[str, list[tuple[str, float, float]]] = {}

    def note(name: str, group: str, value: float, n: float = 1.0) -> None:
        by_hand.setdefault(name, []).append((group, value, n))

    phase.load(state)
    reference = phases(folder)["rl"]
    reference.load(reference.initial(PLACE, {}))
    texts, before = written(phase, 5), written(phase, 5, pretrained=True)
    test = shard().test
    for row, (example, text) in enumerate(zip(test, texts.texts, strict=True)):
        group, words, wanted = example.group, text.split(), example.response.split()
        ids = texts.tokens.ids[row][texts.tokens.attention_mask[row] == 1][None]
        length = int(texts.tokens.response_mask[row].sum())
        with torch.no_grad():
            ours, theirs = (
                torch.softmax(n.network.policy(ids, torch.ones_like(ids), None)[0].double(), 1)
                for n in (phase, reference)
            )
        start = ids.shape[1] - length
        places = range(start - 1, ids.shape[1] - 1)
        note("kl", group, sum(float((ours[t] * (ours[t] / theirs[t]).log()).sum()) for t in places))
        note("reference_nll", group, -sum(float(theirs[t, ids[0, t + 1]].log()) for t in places), length)
        note("length", group, length)
        # Words of the tokenizer are words of ROUGE, brackets aside; stems of the few words differ where words do.
        note("reward", group, float(Counts().score([""], [text])))
        pairs = [list(itertools.pairwise(each)) for each in (words, wanted)]
        note("distinct_1", group, len(set(words)) / len(words) if words else 1.0)
        note("distinct_2", group, len(set(pairs[0])) / len(pairs[0]) if pairs[0] else 1.0)
        shown = [[w.strip("<>") for w in each if w != "<unk>"] for each in (words, wanted)]
        lower = [[w.lower() for w in each] for each in shown]
        hits = sum(min(lower[0].count(w), lower[1].count(w)) for w in set(lower[0]))
        note("rouge1", group, f1(hits, lower[0], lower[1]))
        note("rougeL", group, f1(lcs(lower[0], lower[1]), lower[0], lower[1]))
        one, other = (float(Vader("response").score([""], [t])) for t in (text, before.texts[row]))
        note("win_rate", group, 1.0 if one > other else 0.5 if one == other else 0.0)
    assert set(values) == {f"unseen/{name}" for name in by_hand} | {
        f"unseen/{name}" for name in ("rouge2", "perplexity", "reward_worst", "reward_interval")
    }
    means = {}
    for name, found in by_hand.items():
        groups = [[(v, n) for g, v, n in found if g == group] for group in ("x", "y")]
        means[name] = [sum(v for v, _ in each) / sum(n for _, n in each) for each in groups]
        assert values[f"unseen/{name}"] == pytest.approx(sum(means[name]) / 2, rel=1e-4, abs=1e-6), name
    assert values["unseen/kl"] > 0.01
    assert values["unseen/perplexity"] == pytest.approx(math.exp(sum(means["reference_nll"]) / 2), rel=1e-4)
    assert values["unseen/reward_worst"] == pytest.approx(min(means["reward"]))
    rewards = [value for _, value, _ in by_hand["reward"]]
    assert len(set(rewards)) > 1
    low, high = stats.t.interval(0.95, 4, loc=0, scale=stats.sem(rewards))
    assert values["unseen/reward_interval"] == pytest.approx((high - low) / 2, rel=1e-5)


def test_the_baseline_may_be_the_response_in_the_data(folder: Path) -> None:
    phase = phases(folder, evaluation=evaluation(judge=Vader("response"), baseline="response"))["rl"]
    state = acting(phase)
    found = [item for item in decode(phase.evaluate(state, shard(), PLACE).scalars) if item.name == "unseen/win_rate"]
    phase.load(state)
    texts = written(phase, 5).texts
    vader = Vader("response")
    ones, others = (vader.score([""] * 5, each) for each in (texts, [e.response for e in shard().test]))
    wins = sum(float(a > b) + 0.5 * float(a == b) for a, b in zip(ones, others, strict=True))
    assert sum(item.total for item in found) == wins


def test_the_pretrained_model_draws_with_itself_and_ties(folder: Path) -> None:
    phase = phases(folder, evaluation=evaluation(judge=Vader("response")))["sft"]
    told = phase.evaluate(phase.initial(PLACE, {}), shard(), PLACE)
    values = phase.summarise(decode(told.scalars), told.tensors)
    assert values["unseen/win_rate"] == 0.5
    assert values["unseen/kl"] == pytest.approx(0.0, abs=1e-6)


def test_clients_add_up_and_the_interval_is_over_all_of_their_prompts(folder: Path) -> None:
    phase = phases(folder, evaluation=evaluation(rouge=False))["rl"]
    state = acting(phase)
    each = [phase.evaluate(state, shard(test=n), PLACE.at(client=str(n))) for n in (2, 5)]
    summed: Contribution = total(each)
    values = phase.summarise(decode(summed.scalars), summed.tensors)
    phase.load(state)
    rewards = [float(Counts().score([""], [t])) for n in (2, 5) for t in written(phase, n).texts]
    assert sum(float(t[2]) for name, t in summed.tensors.items() if name.startswith(MOMENTS)) == 7
    low, high = stats.t.interval(0.95, 6, loc=0, scale=stats.sem(rewards))
    assert values["unseen/reward_interval"] == pytest.approx((high - low) / 2, rel=1e-5)
    assert "unseen/rouge1" not in values


def test_greedy_texts_draw_nothing_and_few_prompts_are_the_first(folder: Path) -> None:
    phase = phases(folder, evaluation=evaluation(temperature=0.0, prompts=2))["rl"]
    state = acting(phase)
    one, other = (phase.evaluate(state, shard(), Streams(seed)) for seed in (1, 2))
    assert one.scalars == other.scalars
    assert {item.n for item in decode(one.scalars) if item.name == "unseen/reward"} == {1.0}
    drawn = phases(folder, evaluation=evaluation())["rl"]
    assert drawn.evaluate(state, shard(), Streams(1)).scalars != drawn.evaluate(state, shard(), Streams(2)).scalars
