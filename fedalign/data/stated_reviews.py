"""Film reviews that the project makes itself, of users who state what they prefer in tone, style and length."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from fedalign.data.corpus import Corpus, CorpusSource, Split
from fedalign.data.corpus_rows import CorpusRow, corpus_of
from fedalign.data.review_texts import SIDES, Prompt, Signs, continuation, draw_prompts
from fedalign.data.reviews import TEST_USER
from fedalign.data.texts_file import read_texts_file
from fedalign.errors import UserError
from fedalign.rng import Streams

DIMENSIONS: Mapping[str, Mapping[int, str]] = {**SIDES, "length": {1: "long", -1: "short"}}
"""What a preference speaks of, in the order of a statement, and the name of either side."""

PLACES: Mapping[str, tuple[str, int]] = {
    name: (dimension, sign) for dimension, sides in DIMENSIONS.items() for sign, name in sides.items()
}
"""A side's name to its dimension and its sign there."""

COMBINATIONS: tuple[Signs, ...] = tuple(
    dict(zip(DIMENSIONS, signs, strict=True)) for signs in itertools.product((1, -1), repeat=len(DIMENSIONS))
)
"""Every choice of a side in each dimension."""

Clauses = Annotated[int, Field(ge=1, le=8)]


@dataclass(frozen=True)
class StatedReviews(CorpusSource):
    """Users who state a side of each dimension and prefer reviews that have all three; the statement is the group.

    A demonstration's group is a single side: the review has it, and any side of the other dimensions. Users'
    preferences, and the sides of demonstrations, are dealt in turn, so that there are equally many of each, up to
    rounding. No test prompt is a training prompt.

    Parameters
    ----------
    name : str
    path : str or None
        None draws the world; a path reads that file of texts instead and the keys of the world are unused.
    users : int
        How many people, called user-00001, ...; each has one preference.
    demonstrations, comparisons : int
        Training examples of each person: reviews with a stated side, and pairs of reviews of which the first suits the
        person's preference in all dimensions and the second does not in one at least.
    test_demonstrations, test_comparisons : int
        Test examples of the whole world; its comparisons are exact, and of all preferences.
    held_out : tuple of str
        Preferences that nobody in training has, such as ``"praise, ornate, short"``; sides in any order.
    noise : float
        Probability that a training comparison is turned round.
    short, long : int
        How many clauses, each with an adjective, a short and a long response have.
    world_seed : int or None
        Seed of the world; None takes the run's seed.
    """

    name: str
    path: str | None
    users: Annotated[int, Field(ge=1)]
    demonstrations: Annotated[int, Field(ge=0, le=1000)]
    comparisons: Annotated[int, Field(ge=0, le=1000)]
    test_demonstrations: Annotated[int, Field(ge=0, le=1000)]
    test_comparisons: Annotated[int, Field(ge=0, le=1000)]
    held_out: tuple[str, ...]
    noise: Annotated[float, Field(ge=0.0, le=0.5)]
    short: Clauses
    long: Clauses
    world_seed: int | None

    def __post_init__(self) -> None:
        if self.short >= self.long:
            raise UserError(
                f"data.short={self.short}: a long response has no more clauses (data.long={self.long}); "
                "set data.short below data.long"
            )
        if not self._trained():
            raise UserError(
                f"data.held_out={list(self.held_out)}: nothing is left that users may prefer; leave out one of them"
            )

    def load(self, streams: Streams) -> Corpus:
        """Draw the world, or read ``path`` if it is given.

        Raises
        ------
        UserError
            If the world is empty, or ``path`` is given and missing or malformed.
        """
        per_user = max(1, self.demonstrations + self.comparisons)
        if self.path is not None:
            return read_texts_file(Path(self.path), 0.2, per_user, streams)
        world = streams if self.world_seed is None else Streams(seed=self.world_seed)
        return corpus_of(self._rows(world), 0.0, per_user, world)

    def _trained(self) -> list[Signs]:
        """Return the combinations that users may prefer."""
        held_out = [stated_signs(text, "data.held_out") for text in self.held_out]
        return [signs for signs in COMBINATIONS if signs not in held_out]

    def _rows(self, world: Streams) -> Iterator[CorpusRow]:
        rng = world.numpy("stated_reviews/test")
        tests = draw_prompts(self.test_demonstrations + self.test_comparisons, rng)
        taken = {prompt.text for prompt in tests}
        trained = self._trained()
        for i in range(self.users):
            name = f"user-{i + 1:05d}"
            own = world.at(client=name).numpy("stated_reviews/user")
            count = self.demonstrations + self.comparisons
            prompts = [p for p in draw_prompts(count + len(taken), own) if p.text not in taken][:count]
            for place, prompt in enumerate(prompts[: self.demonstrations]):
                # Counted on over users, so that sides are even where a user has too few demonstrations for that.
                yield self._demonstration(prompt, i * self.demonstrations + place, name, "train", own)
            for prompt in prompts[self.demonstrations :]:
                yield self._comparison(prompt, trained[i % len(trained)], name, "train", own)
        for place, prompt in enumerate(tests[: self.test_demonstrations]):
            yield self._demonstration(prompt, place, TEST_USER, "test", rng)
        for place, prompt in enumerate(tests[self.test_demonstrations :]):
            yield self._comparison(prompt, COMBINATIONS[place % len(COMBINATIONS)], TEST_USER, "test", rng)

    def _demonstration(
        self, prompt: Prompt, place: int, user: str, split: Split, rng: np.random.Generator
    ) -> CorpusRow:
        side = list(PLACES)[place % len(PLACES)]
        dimension, sign = PLACES[side]
        signs = {**COMBINATIONS[int(rng.integers(len(COMBINATIONS)))], dimension: sign}
        return CorpusRow(prompt.text, self._text(prompt, signs, rng), None, side, user, split)

    def _comparison(self, prompt: Prompt, signs: Signs, user: str, split: Split, rng: np.random.Generator) -> CorpusRow:
        others = [other for other in COMBINATIONS if other != signs]
        response = self._text(prompt, signs, rng)
        rejected = self._text(prompt, others[int(rng.integers(len(others)))], rng)
        # Drawn in any case: noise turns pairs round and moves no other draw.
        if rng.random() < self.noise and split == "train":
            response, rejected = rejected, response
        return CorpusRow(prompt.text, response, rejected, statement(signs), user, split)

    def _text(self, prompt: Prompt, signs: Signs, rng: np.random.Generator) -> str:
        return continuation(prompt, signs, True, self.long if signs["length"] == 1 else self.short, rng)


def statement(signs: Signs) -> str:
    """Return how a combination of sides is stated, such as ``"praise, ornate, long"``."""
    return ", ".join(sides[signs[dimension]] for dimension, sides in DIMENSIONS.items())


def stated_signs(text: str, key: str) -> Signs:
    """Return the combination of sides that a statement names, in any order.

    Parameters
    ----------
    text : str
        Such as ``"long, praise, ornate"``.
    key : str
        Where it stands in the configuration, for messages.

    Raises
    ------
    UserError
        If a side is unknown, or a dimension has no side or more than one.
    """
    names = [name.strip() for name in text.split(",")]
    fix = "; name " + ", ".join(" or ".join(sides.values()) for sides in DIMENSIONS.values())
    for name in names:
        if name not in PLACES:
            raise UserError(f"{key}={text!r}: {name!r} is no side{fix}")
    signs = dict(PLACES[name] for name in names)
    if not len(names) == len(signs) == len(DIMENSIONS):
        raise UserError(f"{key}={text!r}: it takes one side of each of {', '.join(DIMENSIONS)}{fix}")
    return signs
