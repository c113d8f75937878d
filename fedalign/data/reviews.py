"""Film reviews that the project makes itself, whose reward is known: how much a text praises (``tone_score``)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from fedalign.data.corpus import Corpus, CorpusSource, Split
from fedalign.data.corpus_rows import GROUP, CorpusRow, corpus_of
from fedalign.data.review_texts import Prompt, continuation, draw_prompts
from fedalign.data.texts_file import read_texts_file
from fedalign.rng import Streams

TEST_USER = "test-user"
"""Whose the test examples are."""


@dataclass(frozen=True)
class Reviews(CorpusSource):
    """Users who write reviews in either tone, and prefer praise to criticism where they compare two.

    No test prompt is a training prompt.

    Parameters
    ----------
    name : str
    path : str or None
        None draws the world; a path reads that file of texts instead and the keys of the world are unused.
    users : int
        How many people, called user-00001, ...
    demonstrations, comparisons : int
        Training examples of each person: reviews that it wrote, and pairs of reviews of which it prefers one.
    test_demonstrations, test_comparisons : int
        Test examples of the whole world; its comparisons are exact.
    praise_share : float
        Probability that a demonstration praises.
    noise : float
        Probability that a training comparison is turned round.
    words : int
        How many words of its tone a response has.
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
    praise_share: Annotated[float, Field(ge=0.0, le=1.0)]
    noise: Annotated[float, Field(ge=0.0, le=0.5)]
    words: Annotated[int, Field(ge=1, le=8)]
    world_seed: int | None

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

    def _rows(self, world: Streams) -> Iterator[CorpusRow]:
        rng = world.numpy("reviews/test")
        tests = draw_prompts(self.test_demonstrations + self.test_comparisons, rng)
        held_out = {prompt.text for prompt in tests}
        for i in range(self.users):
            name = f"user-{i + 1:05d}"
            own = world.at(client=name).numpy("reviews/user")
            prompts = _other_prompts(self.demonstrations + self.comparisons, held_out, own)
            for place, prompt in enumerate(prompts):
                yield self._row(prompt, name, "train", place < self.demonstrations, own)
        for place, prompt in enumerate(tests):
            yield self._row(prompt, TEST_USER, "test", place < self.test_demonstrations, rng)

    def _row(self, prompt: Prompt, user: str, split: Split, demonstration: bool, rng: np.random.Generator) -> CorpusRow:
        praise, criticism = (continuation(prompt, {"tone": sign}, True, self.words, rng) for sign in (1, -1))
        chance = rng.random()
        if demonstration:
            response = praise if chance < self.praise_share else criticism
            return CorpusRow(prompt.text, response, None, GROUP, user, split)
        turned = split == "train" and chance < self.noise
        response, rejected = (criticism, praise) if turned else (praise, criticism)
        return CorpusRow(prompt.text, response, rejected, GROUP, user, split)


def _other_prompts(n: int, held_out: Collection[str], rng: np.random.Generator) -> list[Prompt]:
    """Return n different prompts that are not held out."""
    return [prompt for prompt in draw_prompts(n + len(held_out), rng) if prompt.text not in held_out][:n]
