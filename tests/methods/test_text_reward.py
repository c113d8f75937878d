"""Rewards that count words: known sentences, known worlds, and nothing that leaks from one text to another."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from fedalign.build import build
from fedalign.config import conf_directory
from fedalign.data import pair_vocabulary as vocabulary
from fedalign.data.review_texts import continuation, draw_prompts, word_count
from fedalign.methods.text_reward import Length, Style, TextReward, Tone, Vader, scored_texts
from tests.methods.rewards import STRANGE, shipped

COUNTING = [Vader("response"), Vader("text"), Tone(3.0, 0.5), Style(3.0), Length(11.0, 5.0)]


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


def test_style_counts_words_up_to_its_limit_and_nothing_else() -> None:
    plain, ornate, junk = vocabulary.PLAIN_ADVERBS, vocabulary.ORNATE_CONNECTIVES, vocabulary.FILLER[0]
    reward = Style(3.0)
    assert one(reward, " ".join(plain[:2])) == 2.0
    assert one(reward, f"{plain[0]} {ornate[0]} {ornate[1]}") == -1.0
    assert one(reward, f"{plain[0]} " * 50) == 3.0
    assert one(reward, f"{ornate[0]} " * 50) == -3.0
    assert one(Style(1.5), f"{plain[0]} " * 50) == 1.5
    assert one(reward, f"{vocabulary.PRAISE[0]} {junk}") == 0.0
    assert one(reward, "", prompt=plain[0]) == 0.0


def test_length_is_linear_in_words_between_its_ends() -> None:
    reward = Length(4.0, 2.0)
    assert [one(reward, "a " * words) for words in range(8)] == [-1.0, -1.0, -1.0, -0.5, 0.0, 0.5, 1.0, 1.0]
    assert one(Length(5.0, 2.0), "a " * 4) == -0.5
    assert one(Length(4.0, 4.0), "a " * 5) == 0.25
    assert one(reward, "was great, in the end ... !!! 10", prompt="The acting") == 0.5


def test_style_and_length_tell_the_sides_of_the_world_apart() -> None:
    """The middle of the shipped length lies between the words of a short response and those of a long one."""
    rng = np.random.default_rng(0)
    prompts = draw_prompts(200, rng)
    rewards = [build(shipped(kind), TextReward, "method.reward") for kind in ("style", "length")]
    means = {}
    for style, words in itertools.product((1, -1), (1, 2)):
        responses = [continuation(p, {"tone": 1, "style": style}, True, words, rng) for p in prompts]
        styles, lengths = (reward.score([p.text for p in prompts], responses) for reward in rewards)
        assert styles.tolist() == [style * (2 * words - 1)] * 200
        assert bool((lengths.sign() == (1 if words == 2 else -1)).all())
        means[style, words] = float(np.mean([word_count(response) for response in responses]))
    middle, half = shipped("length")["middle"], shipped("length")["half"]
    for style in (1, -1):
        assert (means[style, 1] + means[style, 2]) / 2 == pytest.approx(middle, abs=0.5)
        assert (means[style, 2] - means[style, 1]) / 2 == pytest.approx(half, abs=0.5)


def test_every_shipped_reward_builds_under_a_name_of_its_own() -> None:
    files = sorted((conf_directory() / "method" / "reward").glob("*.yaml"))
    built = [build(shipped(path.stem), TextReward, "method.reward") for path in files]
    assert [reward.name for reward in built] == [path.stem for path in files]
    assert len(files) == 7


@pytest.mark.parametrize("kind", ["vader", "tone", "style", "length"])
def test_what_needs_nothing_is_prepared_at_once(kind: str) -> None:
    build(shipped(kind), TextReward, "method.reward").prepare()
