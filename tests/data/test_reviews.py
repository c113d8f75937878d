"""The world of reviews: both tones are written, praise is preferred, and test prompts are new."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from fedalign.data.corpus import Example
from fedalign.data.review_texts import tone_score
from fedalign.errors import UserError
from fedalign.rng import Streams

Make = Callable[..., Any]
Write = Callable[[str, Sequence[dict[str, Any]]], Path]


def draw(make: Make, seed: int = 0, **changes: Any) -> list[Example]:
    corpus = make("data/reviews", **changes).load(Streams(seed))
    assert corpus.dropped == {}
    return list(corpus.examples)


def chance(hits: int, n: int, p: float) -> bool:
    """Say whether a count may come from a binomial distribution."""
    return bool(binomtest(hits, n, p).pvalue > 1e-3)


def test_the_default_world(make: Make) -> None:
    examples = draw(make)
    own = Counter((e.user, e.split, e.rejected is not None) for e in examples)
    people = {(f"user-{i:05d}", "train", compared): 8 for i in range(1, 101) for compared in (False, True)}
    assert own == {**people, ("test-user", "test", False): 64, ("test-user", "test", True): 64}
    written = [e for e in examples if e.rejected is None]
    assert {abs(tone_score(e.response)) for e in written} == {2}
    assert chance(sum(tone_score(e.response) > 0 for e in written), len(written), 0.5)
    for e in examples:
        assert tone_score(e.prompt) == 0 and e.response.startswith(" ") and e.response.endswith(".")
        if e.rejected is not None:
            assert (tone_score(e.response), tone_score(e.rejected)) == (2, -2)
    prompts = {split: {e.prompt for e in examples if e.split == split} for split in ("train", "test")}
    assert len(prompts["test"]) == 128 and not prompts["train"] & prompts["test"]


def test_settings_change_the_world(make: Make) -> None:
    praised = [e for e in draw(make, praise_share=0.8) if e.rejected is None]
    assert chance(sum(tone_score(e.response) > 0 for e in praised), len(praised), 0.8)
    noisy = [e for e in draw(make, noise=0.2) if e.rejected is not None]
    turned = {split: [tone_score(e.response) < 0 for e in noisy if e.split == split] for split in ("train", "test")}
    assert chance(sum(turned["train"]), len(turned["train"]), 0.2) and not any(turned["test"])
    assert {abs(tone_score(e.response)) for e in draw(make, words=5)} == {5}


def test_seeds_decide(make: Make) -> None:
    assert draw(make) == draw(make) != draw(make, seed=1)
    assert draw(make, world_seed=3) == draw(make, seed=1, world_seed=3) != draw(make)


def test_more_users_leave_the_others_as_they_are(make: Make) -> None:
    few, many = draw(make, users=5), draw(make, users=9)
    assert many[: 5 * 16] == few[: 5 * 16]


def test_a_path_reads_a_file_of_texts(make: Make, write: Write) -> None:
    path = write("texts.jsonl", [{"prompt": "a", "response": "b", "split": "train"}])
    assert draw(make, path=str(path)) == [Example("user-00001", "all", "a", " b", None, "train")]


def test_an_empty_world_is_refused(make: Make) -> None:
    with pytest.raises(UserError, match="no usable text is left to train on"):
        draw(make, demonstrations=0, comparisons=0)
