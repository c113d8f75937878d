"""Rewards that count words: known sentences, known worlds, and nothing that leaks from one text to another."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedalign.build import build
from fedalign.config import conf_directory
from fedalign.data import pair_vocabulary as vocabulary
from fedalign.data.review_texts import continuation, draw_prompts
from fedalign.methods.text_reward import TextReward, Tone, Vader, scored_texts
from tests.methods.rewards import STRANGE, shipped

COUNTING = [Vader("response"), Vader("text"), Tone(3.0, 0.5)]


def one(reward: TextReward, response: str, prompt: str = "") -> float:
    return float(reward.score([prompt], [response]))


@pytest.mark.parametrize("reward", COUNTING)
def test_a_score_does_not_depend_on_other_texts(reward: TextReward) -> None:
    prompts = ["A wonderful night." if i % 2 else "" for i in range(len(STRANGE))]
    together = reward.score(prompts, STRANGE)
    alone = torch.cat([reward.score([p], [r]) for p, r in zip(prompts, STRANGE, strict=True)])
    assert together.dtype == torch.float32 and together.shape == (len(STRANGE),)
    assert torch.equal(together, alone)
    assert torch.equal(reward.score(prompts[::-1], STRANGE[::-1]), together.flip(0))
    assert bool(together.isfinite().all())


@pytest.mark.parametrize("reward", COUNTING)
def test_prompts_and_responses_come_in_pairs(reward: TextReward) -> None:
    assert reward.score([], []).shape == (0,)
    with pytest.raises(ValueError):
        reward.score(["a"], [])


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("The film was wonderful and I loved every minute.", 0.7, 1.0),
        ("The film was terrible and I hated every minute.", -1.0, -0.7),
        ("The film lasts two hours.", 0.0, 0.0),
        ("The film was not good.", -0.5, -0.1),
        ("", 0.0, 0.0),
    ],
)
def test_vader_knows_praise_from_blame(text: str, low: float, high: float) -> None:
    assert low <= one(Vader("response"), text) <= high


def test_vader_is_its_lexicon_and_formula() -> None:
    # The lexicon gives "good" 1.9; the compound is x / sqrt(x^2 + 15), to four places.
    assert one(Vader("response"), "good") == pytest.approx(1.9 / math.sqrt(1.9**2 + 15), abs=1e-4)


def test_vader_reads_the_prompt_where_it_is_asked_to() -> None:
    assert one(Vader("response"), " was shown.", "The wonderful film") == 0.0
    assert one(Vader("text"), " was shown.", "The wonderful film") > 0.5
    assert scored_texts("text", ["a film"], [" was"]) == ["a film was"]


def test_tone_counts_words_up_to_its_limit_and_charges_for_junk() -> None:
    praise, blame, junk = vocabulary.PRAISE, vocabulary.CRITICISM, vocabulary.FILLER[0]
    words = sum(word != "here" for word in junk.split())
    reward = Tone(3.0, 0.5)
    assert one(reward, " ".join(praise[:2])) == 2.0
    assert one(reward, f"{praise[0]} {blame[0]} {blame[1]}") == -1.0
    assert one(reward, f"{praise[0]} " * 50) == 3.0
    assert one(reward, f"{blame[0]} " * 50) == -3.0
    assert one(reward, f"{praise[0]} {junk}") == 1.0 - 0.5 * words
    assert one(Tone(3.0, 0.0), f"{praise[0]} {junk}") == 1.0
    assert one(reward, "", prompt=praise[0]) == 0.0


def test_tone_prefers_what_the_world_calls_good() -> None:
    rng = np.random.default_rng(0)
    prompts = draw_prompts(20, rng)
    scores = {
        (tone, good): Tone(3.0, 0.5).score(
            [p.text for p in prompts], [continuation(p, {"tone": tone}, good, 2, rng) for p in prompts]
        )
        for tone in (1, -1)
        for good in (True, False)
    }
    assert scores[1, True].tolist() == [2.0] * 20
    assert scores[-1, True].tolist() == [-2.0] * 20
    assert bool((scores[1, False] < scores[1, True]).all())


def test_every_shipped_reward_builds_under_a_name_of_its_own() -> None:
    files = sorted((conf_directory() / "method" / "reward").glob("*.yaml"))
    built = [build(shipped(path.stem), TextReward, "method.reward") for path in files]
    assert [reward.name for reward in built] == [path.stem for path in files]
    assert len(files) == 5


@pytest.mark.parametrize("kind", ["vader", "tone"])
def test_what_needs_nothing_is_prepared_at_once(kind: str) -> None:
    build(shipped(kind), TextReward, "method.reward").prepare()
