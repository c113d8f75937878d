"""Judges: the world's own words, a reward on the log-odds scale, and verdicts that cannot be read."""

from __future__ import annotations

import math

import pytest
import torch

from fedalign.data.encoders.hashing import HashingEncoder
from fedalign.data.synthetic_pairs import group_signs, tone_score
from fedalign.errors import UserError
from fedalign.methods.judges import OracleJudge, RewardJudge, Verdicts

GOOD, BAD, NEUTRAL = "A brilliant film.", "A dull film.", "A film."


def test_the_oracle_counts_tone_words() -> None:
    assert (tone_score(GOOD), tone_score(BAD), tone_score(NEUTRAL)) == (1, -1, 0)
    first, second = [GOOD, BAD, GOOD, NEUTRAL], [BAD, GOOD, GOOD, BAD]
    prompts = ["Well,"] * 4
    assert OracleJudge().scores("praise", prompts, first, second).first.tolist() == [1.0, 0.0, 0.5, 1.0]
    assert OracleJudge().scores("criticism", prompts, first, second).first.tolist() == [0.0, 1.0, 0.5, 0.0]


@pytest.mark.parametrize("contested", [1, 2])
def test_the_oracle_agrees_with_every_group_of_the_world(contested: int) -> None:
    from fedalign.build import build
    from fedalign.data.pairs import PairSource
    from fedalign.rng import Streams

    node = {
        "_target_": "fedalign.data.synthetic_pairs.SyntheticPairs",
        "name": "synthetic_pairs",
        "path": None,
        "prompt_tail": 200,
        "annotators": 4,
        "train_judgments": 0,
        "test_judgments": 30,
        "contested": contested,
        "conflict_share": 1.0,
        "words": 3,
        "noise": 0.0,
        "minority_share": None,
        "length_shortcut": 0.0,
        "world_seed": 1,
    }
    pairs = build(node, PairSource, "data").load(Streams(0)).pairs
    for group in group_signs(contested):  # type: ignore[arg-type]
        own = [pair for pair in pairs if pair.group == group]
        verdicts = OracleJudge().scores(
            group, [p.prompt for p in own], [p.chosen for p in own], [p.rejected for p in own]
        )
        assert own
        assert verdicts.win_rate == 1.0


def test_an_unknown_preference_is_refused() -> None:
    with pytest.raises(UserError, match="no preference 'prase'; did you mean 'praise'"):
        OracleJudge().scores("prase", [], [], [])


def test_a_reward_is_a_probability_of_the_pair() -> None:
    encoder = HashingEncoder("{option}", 64, False)
    seen: list[str] = []

    def text(prompt: str, response: str) -> str:
        seen.append(f"{prompt}|{response}")
        return response

    def reward(features: torch.Tensor) -> torch.Tensor:
        return 3.0 * features.abs().amax(1)

    judge = RewardJudge({"long": reward, "short": lambda f: -reward(f)}, encoder, text)
    first, second = ["one", "one two three four"], ["one two three four", "one"]
    found = judge.scores("long", ["p", "q"], first, second).first
    # One word of four has half of the vector's length.
    expected = 1 / (1 + math.exp(-3.0 * (1 - 0.5)))
    assert found.tolist() == pytest.approx([expected, 1 - expected], abs=1e-6)
    assert judge.scores("short", ["p", "q"], first, second).first.tolist() == pytest.approx(
        [1 - expected, expected], abs=1e-6
    )
    assert seen[:4] == ["p|one", "q|one two three four", "p|one two three four", "q|one"]
    with pytest.raises(UserError, match="no preference 'lang'"):
        judge.scores("lang", ["p"], ["a"], ["b"])


def test_verdicts_that_cannot_be_read_are_no_wins_and_no_losses() -> None:
    verdicts = Verdicts(torch.tensor([1.0, math.nan, 0.5, 0.0, 1.0]))
    assert verdicts.unreadable == 1
    assert verdicts.win_rate == 0.625
    nothing = Verdicts(torch.tensor([math.nan]))
    assert nothing.unreadable == 1
    assert math.isnan(nothing.win_rate)
