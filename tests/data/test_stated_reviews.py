"""The world of stated reviews: texts have the sides that are stated, all are dealt evenly, and some are held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest, chisquare

from fedalign.data import pair_vocabulary as vocabulary
from fedalign.data.corpus import Example
from fedalign.data.review_texts import filler_score, style_score, tone_score
from fedalign.data.stated_reviews import COMBINATIONS, PLACES, stated_signs, statement
from fedalign.errors import UserError
from fedalign.rng import Streams

Make = Callable[..., Any]
Write = Callable[[str, Sequence[dict[str, Any]]], Path]

HELD_OUT = {"praise, ornate, short", "criticism, plain, long"}
ALL = {statement(signs) for signs in COMBINATIONS}


def draw(make: Make, seed: int = 0, **changes: Any) -> list[Example]:
    corpus = make("data/stated_reviews", **changes).load(Streams(seed))
    assert corpus.dropped == {}
    return list(corpus.examples)


def compared(examples: Sequence[Example], split: str) -> list[Example]:
    return [e for e in examples if e.split == split and e.rejected is not None]


def written(examples: Sequence[Example], split: str) -> list[Example]:
    return [e for e in examples if e.split == split and e.rejected is None]


def clauses(text: str) -> int:
    words = text.replace(".", "").split()
    return sum(word in vocabulary.PRAISE + vocabulary.CRITICISM for word in words)


def sides(text: str, short: int = 1, long: int = 2) -> str:
    """State a response from its words alone; every clause must have the tone and the style."""
    count = clauses(text)
    tone, style = tone_score(text), style_score(text)
    assert abs(tone) == count and abs(style) == 2 * count - 1 and filler_score(text) == 0
    return ", ".join(
        (
            "praise" if tone > 0 else "criticism",
            "plain" if style > 0 else "ornate",
            {short: "short", long: "long"}[count],
        )
    )


def test_the_default_world_has_its_counts_and_shares_no_prompt(make: Make) -> None:
    examples = draw(make)
    own = Counter((e.user, e.split, e.rejected is not None) for e in examples)
    people = {(f"user-{i:05d}", "train", paired): n for i in range(1, 121) for paired, n in ((False, 12), (True, 8))}
    assert own == {**people, ("test-user", "test", False): 48, ("test-user", "test", True): 96}
    prompts = {split: {e.prompt for e in examples if e.split == split} for split in ("train", "test")}
    assert len(prompts["test"]) == 144 and not prompts["train"] & prompts["test"]
    for e in examples:
        assert tone_score(e.prompt) == style_score(e.prompt) == filler_score(e.prompt) == 0
        assert e.response.startswith(" ") and e.response.endswith(".")


def test_a_demonstration_has_the_side_of_its_group_and_any_other(make: Make) -> None:
    examples = draw(make)
    seen: Counter[tuple[str, str]] = Counter()
    for e in written(examples, "train") + written(examples, "test"):
        found = sides(e.response)
        assert e.group in found.split(", ")
        seen[e.group, found] += 1
    assert len(seen) == 6 * 4
    assert chisquare(list(seen.values())).pvalue > 1e-3


def test_a_comparison_prefers_what_its_group_states(make: Make) -> None:
    examples = draw(make)
    differences: Counter[int] = Counter()
    for e in compared(examples, "train") + compared(examples, "test"):
        assert e.rejected is not None
        preferred, rejected = sides(e.response), sides(e.rejected)
        assert preferred == e.group != rejected
        differences[sum(a != b for a, b in zip(preferred.split(", "), rejected.split(", "), strict=True))] += 1
    # Of the seven other combinations three differ in one dimension, three in two and one in all.
    n = sum(differences.values())
    assert chisquare([differences[k] for k in (1, 2, 3)], [n * 3 / 7, n * 3 / 7, n / 7]).pvalue > 1e-3


def test_sides_and_preferences_are_dealt_evenly(make: Make) -> None:
    examples = draw(make)
    per_user = Counter((e.user, e.group) for e in written(examples, "train"))
    assert len(per_user) == 120 * 6 and set(per_user.values()) == {2}
    assert Counter(e.group for e in written(examples, "test")) == dict.fromkeys(PLACES, 8)
    preferences = {e.user: e.group for e in compared(examples, "train")}
    assert {(e.user, e.group) for e in compared(examples, "train")} == set(preferences.items())
    assert Counter(preferences.values()) == dict.fromkeys(ALL - HELD_OUT, 20)
    assert Counter(e.group for e in compared(examples, "test")) == dict.fromkeys(ALL, 12)


def test_few_demonstrations_are_even_over_users(make: Make) -> None:
    few = written(draw(make, users=9, demonstrations=4), "train")
    assert Counter(e.group for e in few) == dict.fromkeys(PLACES, 6)
    assert max(Counter((e.user, e.group) for e in few).values()) == 1


def test_what_is_held_out_is_in_no_training_preference(make: Make) -> None:
    held_out = ["long, ornate,praise", " short , criticism, plain"]
    examples = draw(make, held_out=held_out)
    assert {e.group for e in compared(examples, "train")} == ALL - {"praise, ornate, long", "criticism, plain, short"}
    assert {e.group for e in compared(draw(make, held_out=[]), "train")} == ALL
    only = draw(make, held_out=sorted(ALL - {"praise, plain, long"}))
    assert {e.group for e in compared(only, "train")} == {"praise, plain, long"}
    assert {e.group for e in compared(only, "test")} == ALL


def test_noise_turns_training_pairs_round_and_changes_nothing_else(make: Make) -> None:
    exact, noisy = draw(make), draw(make, noise=0.2)
    turned = [(e.response, e.rejected) == (n.rejected, n.response) for e, n in zip(exact, noisy, strict=True)]
    assert all(e == n for e, n, other in zip(exact, noisy, turned, strict=True) if not other)
    assert binomtest(sum(turned), len(compared(exact, "train")), 0.2).pvalue > 1e-3
    assert compared(noisy, "test") == compared(exact, "test")


def test_lengths_are_as_set(make: Make) -> None:
    examples = draw(make, short=2, long=4)
    assert {clauses(e.response) for e in examples} == {2, 4}
    assert all(sides(e.response, 2, 4) == e.group for e in compared(examples, "train"))


def test_seeds_decide(make: Make) -> None:
    assert draw(make) == draw(make) != draw(make, seed=1)
    assert draw(make, world_seed=3) == draw(make, seed=1, world_seed=3) != draw(make)


def test_more_users_leave_the_others_as_they_are(make: Make) -> None:
    few, many = draw(make, users=5), draw(make, users=9)
    assert many[: 5 * 20] == few[: 5 * 20]


def test_a_path_reads_a_file_of_texts(make: Make, write: Write) -> None:
    rows = [{"prompt": "a", "response": "b", "group": "praise", "split": "train"}]
    assert draw(make, path=str(write("texts.jsonl", rows))) == [
        Example("user-00001", "praise", "a", " b", None, "train")
    ]


def test_a_statement_names_its_sides_in_one_order() -> None:
    assert {statement(stated_signs(text, "key")) for text in ALL} == ALL and len(ALL) == 8
    assert statement(stated_signs("short,criticism, ornate", "key")) == "criticism, ornate, short"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"held_out": ["praise, fancy, long"]},
            r"data\.held_out='praise, fancy, long': 'fancy' is no side; name praise or criticism, plain or ornate",
        ),
        ({"held_out": ["praise, long"]}, r"data\.held_out='praise, long': it takes one side of each of tone, style"),
        ({"held_out": ["praise, plain, ornate"]}, r"it takes one side of each of tone, style, length; name praise or"),
        ({"held_out": ["praise, plain, plain, long"]}, r"it takes one side of each"),
        ({"held_out": [""]}, r"data\.held_out='': '' is no side"),
        ({"held_out": sorted(ALL)}, r"data\.held_out=\[.*\]: nothing is left that users may prefer; leave out one"),
        ({"short": 2}, r"data\.short=2: a long response has no more clauses \(data\.long=2\); set data\.short below"),
        ({"long": 9}, r"data\.long"),
        ({"demonstrations": 0, "comparisons": 0}, "no usable text is left to train on"),
    ],
)
def test_bad_settings_are_refused(make: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw(make, **changes)
