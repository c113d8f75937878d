"""Pairs of film reviews that the project makes itself: people who agree on quality and disagree on tone and style.

A response has a contested ``tone`` (praise or criticism words), perhaps a contested ``style`` (plain or ornate words),
and a quality on which everybody agrees (junk words or none). A *conflict* pair differs in one contested attribute, and
groups prefer opposite responses of it; an *agreed* pair differs in quality alone. A coin decides which response of a
pair is the longer one, so that lengths tell nothing unless ``length_shortcut`` makes them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fedalign.data.pairs import Pair, PairSet, PairSource, Split
from fedalign.data.pairs_file import read_pairs_file
from fedalign.data.review_texts import (
    SIDES,
    Prompt,
    Signs,
    attribute_score,
    continuation,
    draw_prompts,
    filler_score,
    pad,
    review_prompts,
    style_score,
    tone_score,
)
from fedalign.rng import Streams


@dataclass(frozen=True)
class SyntheticPairs(PairSource):
    """Judgments drawn from the review world (see the module).

    Parameters
    ----------
    name : str
    path : str or None
        None draws the world; a path reads that pairs file instead and the keys of the world are unused.
    prompt_tail : int
        How many characters of a prompt's end the encoder reads.
    annotators : int
        How many people, called annotator-001, ...; they belong to the groups in turn.
    train_judgments, test_judgments : int
        Judgments of each person.
    contested : 1 or 2
        1: tone, with the groups praise and criticism. 2: tone and style, with four groups.
    conflict_share : float
        Share of the pairs on which groups disagree.
    words : int
        How many words of its tone a response has.
    noise : float
        Probability that a training judgment is turned round; test judgments are exact.
    minority_share : float or None
        Share of the people in the last group; None makes groups equal.
    length_shortcut : float
        Probability that the chosen response of a training pair is padded until it is clearly the longer one.
        Test pairs never are.
    world_seed : int or None
        Seed of the world; None takes the run's seed.
    """

    name: str
    path: str | None
    prompt_tail: Annotated[int, Field(ge=1)]
    annotators: Annotated[int, Field(ge=1)]
    train_judgments: Annotated[int, Field(ge=0)]
    test_judgments: Annotated[int, Field(ge=0)]
    contested: Literal[1, 2]
    conflict_share: Annotated[float, Field(ge=0.0, le=1.0)]
    words: Annotated[int, Field(ge=1, le=8)]
    noise: Annotated[float, Field(ge=0.0, le=0.5)]
    minority_share: Annotated[float, Field(gt=0.0, lt=1.0)] | None
    length_shortcut: Annotated[float, Field(ge=0.0, le=1.0)]
    world_seed: int | None

    def load(self, streams: Streams) -> PairSet:
        """Draw the world, or read ``path`` if it is given.

        Raises
        ------
        UserError
            If ``path`` is given and missing or malformed.
        """
        if self.path is not None:
            return read_pairs_file(Path(self.path), test_fraction=0.2, ties="keep")
        world = streams if self.world_seed is None else Streams(seed=self.world_seed)
        pairs: list[Pair] = []
        for i, group in enumerate(self._groups()):
            name = f"annotator-{i + 1:03d}"
            pairs.extend(self._judgments(name, group, world.at(client=name).numpy("synthetic_pairs/annotator")))
        return PairSet(pairs)

    def _groups(self) -> list[str]:
        """Return each person's group: in turn, the last group as often as ``minority_share`` says."""
        *most, last = group_signs(self.contested)
        share = 1.0 / (len(most) + 1) if self.minority_share is None else self.minority_share
        others = itertools.cycle(most)
        # A person is in the last group where the running count of that group passes a whole number.
        counts = [int(round(share * i, 9)) for i in range(self.annotators + 1)]
        return [last if after > before else next(others) for before, after in itertools.pairwise(counts)]

    def _judgments(self, name: str, group: str, rng: np.random.Generator) -> list[Pair]:
        prompts = draw_prompts(self.train_judgments + self.test_judgments, rng)
        train, test = prompts[: self.train_judgments], prompts[self.train_judgments :]
        return [
            *(self._judgment(prompt, "train", name, group, rng) for prompt in train),
            *(self._judgment(prompt, "test", name, group, rng) for prompt in test),
        ]

    def _judgment(self, prompt: Prompt, split: Split, name: str, group: str, rng: np.random.Generator) -> Pair:
        """Draw one pair as a person of ``group`` judges it."""
        conflict = bool(rng.random() < self.conflict_share)
        chosen, rejected = self._responses(prompt, group_signs(self.contested)[group], conflict, rng)
        if split == "train":
            if rng.random() < self.noise:
                chosen, rejected = rejected, chosen
            if rng.random() < self.length_shortcut:
                chosen = pad(chosen, rejected, rng)
        return Pair(prompt.text, chosen, rejected, split, group, name, conflict=conflict)

    def _responses(self, prompt: Prompt, wanted: Signs, conflict: bool, rng: np.random.Generator) -> tuple[str, str]:
        """Return the response that somebody who wants ``wanted`` prefers, and the other one."""
        better = {attribute: _coin(rng) for attribute in wanted}
        worse = dict(better)
        if conflict:
            attribute = list(wanted)[int(rng.integers(len(wanted)))]
            better[attribute] = wanted[attribute]
            worse[attribute] = -wanted[attribute]
        longer = _coin(rng)
        while True:
            chosen = continuation(prompt, better, True, self.words, rng)
            rejected = continuation(prompt, worse, conflict, self.words, rng)
            if np.sign(len(chosen) - len(rejected)) == longer:
                return chosen, rejected


def group_signs(contested: Literal[1, 2]) -> dict[str, Signs]:
    """Return what each group wants: for each contested attribute the side it prefers.

    Parameters
    ----------
    contested : 1 or 2
        How many attributes are contested.

    Returns
    -------
    dict from group to Signs
        ``{"praise": {"tone": 1}, "criticism": {"tone": -1}}`` for 1.
    """
    attributes = list(SIDES)[:contested]
    patterns: list[tuple[int, ...]] = list(itertools.product((1, -1), repeat=contested))
    return {
        "-".join(SIDES[attribute][sign] for attribute, sign in zip(attributes, pattern, strict=True)): dict(
            zip(attributes, pattern, strict=True)
        )
        for pattern in patterns
    }


def _coin(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


__all__ = [
    "SyntheticPairs",
    "attribute_score",
    "filler_score",
    "group_signs",
    "review_prompts",
    "style_score",
    "tone_score",
]
