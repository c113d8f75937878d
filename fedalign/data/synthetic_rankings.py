"""Rankings of film reviews that the project makes itself: types of annotators who agree on quality and on little else.

A response has a tone (praise or criticism), a style (plain or ornate words) and a quality (junk words or none). To
somebody of type k a text y is worth

    u_k(y) = tone_k * tone(y) + style_k * style(y) - quality_weight * junk(y),

with tone and style in {-1, 0, 1} and junk in {0, 1}; judgments follow the Plackett-Luce model of these utilities.
The responses of a *contested* menu differ in tone and in style and are of good quality, so that each judgment tells
something of its judge's type; those of the other menus differ in quality alone. All responses of a menu have the same
number of characters, so that lengths tell nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from fedalign.data.annotator_types import AnnotatorType, true_utility, utility
from fedalign.data.ranking_forms import Form, Tiers, check_form, drawn_tiers, told, with_ties
from fedalign.data.ranking_world import dealt, person, world_set
from fedalign.data.rankings import Menu, Ranking, RankingSet, RankingSource, Split
from fedalign.data.rankings_file import read_rankings_file
from fedalign.data.review_menus import review_menu
from fedalign.data.review_texts import Prompt, draw_prompts, review_prompts
from fedalign.errors import UserError
from fedalign.rng import Streams

PROBE_RESPONSES = 3
"""Responses of a public menu."""


@dataclass(frozen=True)
class SyntheticRankings(RankingSource):
    """Judgments drawn from the review world (see the module).

    Parameters
    ----------
    name : str
    path : str or None
        None draws the world; a path reads that rankings file instead and the keys of the world are unused.
    prompt_tail : int
        How many characters of a prompt's end the encoder reads.
    annotators : int
        How many people, called annotator-001, ...; any number of the first ones has the types' shares, up to rounding.
    types : sequence of AnnotatorType
    train_judgments, test_judgments : int
        Judgments of each person; those in which all responses tie are dropped and counted.
    responses : int
        Responses of a menu.
    form : {"pair", "best", "full", "top"}
        What a judgment tells (``ranking_forms``).
    top : int or None
        How many responses a judgment of form ``top`` tells.
    ties : float
        Probability that neighbours in the order of a training judgment are told as a tie.
    type_signal : float
        Share of the contested menus.
    quality_weight : float
    words : int
        How many words of its tone a response has.
    sharpness : float or None
        Factor of the utilities; None is without noise.
    test_exact : bool
        Whether held-out judgments are without noise; responses of the same utility then tie.
    probe_menus : int
        How many public menus of three responses everybody ranks completely, with the noise of training judgments.
    world_seed : int or None
        Seed of the world; None takes the run's seed.
    """

    name: str
    path: str | None
    prompt_tail: Annotated[int, Field(ge=1)]
    annotators: Annotated[int, Field(ge=1)]
    types: Annotated[tuple[AnnotatorType, ...], Field(min_length=1)]
    train_judgments: Annotated[int, Field(ge=0)]
    test_judgments: Annotated[int, Field(ge=0)]
    responses: Annotated[int, Field(ge=2, le=8)]
    form: Form
    top: int | None
    ties: Annotated[float, Field(ge=0.0, lt=1.0)]
    type_signal: Annotated[float, Field(ge=0.0, le=1.0)]
    quality_weight: Annotated[float, Field(ge=0.0)]
    words: Annotated[int, Field(ge=1, le=8)]
    sharpness: Annotated[float, Field(ge=0.0)] | None
    test_exact: bool
    probe_menus: Annotated[int, Field(ge=0)]
    world_seed: int | None

    def load(self, streams: Streams) -> RankingSet:
        """Draw the world, or read ``path`` if it is given.

        Raises
        ------
        UserError
            If ``path`` is given and missing or malformed, two types have one name, or the form asks for other menus.
        """
        if self.path is not None:
            return read_rankings_file(Path(self.path), test_fraction=0.2)
        check_form(self.form, self.responses, self.top)
        _check_names(self.types)
        world = streams if self.world_seed is None else Streams(seed=self.world_seed)
        dealt_types = dealt([kind.share for kind in self.types], self.annotators)
        people = {person(i): self.types[k] for i, k in enumerate(dealt_types)}
        judged: list[Ranking] = []
        for name, kind in people.items():
            judged.extend(self._judgments(name, kind, world.at(client=name).numpy("synthetic_rankings/annotator")))
        probe = self._probe(world.numpy("synthetic_rankings/probe"))
        answers = {name: self._answers(probe, kind, world.at(client=name)) for name, kind in people.items()}
        return world_set(judged, {name: kind.name for name, kind in people.items()}, probe, answers)

    def _judgments(self, name: str, kind: AnnotatorType, rng: np.random.Generator) -> list[Ranking]:
        prompts = draw_prompts(self.train_judgments + self.test_judgments, rng)
        train, test = prompts[: self.train_judgments], prompts[self.train_judgments :]
        return [
            *(self._judgment(prompt, "train", name, kind, rng) for prompt in train),
            *(self._judgment(prompt, "test", name, kind, rng) for prompt in test),
        ]

    def _judgment(
        self, prompt: Prompt, split: Split, name: str, kind: AnnotatorType, rng: np.random.Generator
    ) -> Ranking:
        """Draw one menu and what a person of this type says of it."""
        contested = bool(rng.random() < self.type_signal)
        menu = review_menu(prompt, self.responses, contested, self.words, rng)
        exact = split == "test" and self.test_exact
        tiers = self._ranked(menu, kind, None if exact else self.sharpness, rng)
        if split == "train":
            tiers = with_ties(tiers, self.ties, rng)
        return Ranking(prompt.text, menu, told(tiers, self.form, self.top), split, kind.name, name)

    def _ranked(
        self, menu: Sequence[str], kind: AnnotatorType, sharpness: float | None, rng: np.random.Generator
    ) -> Tiers:
        return drawn_tiers([utility(kind, text, self.quality_weight) for text in menu], sharpness, rng)

    def _probe(self, rng: np.random.Generator) -> list[Menu]:
        prompts = draw_prompts(self.probe_menus, rng)
        return [Menu(prompt.text, review_menu(prompt, PROBE_RESPONSES, True, self.words, rng)) for prompt in prompts]

    def _answers(self, probe: Sequence[Menu], kind: AnnotatorType, here: Streams) -> list[Tiers]:
        rng = here.numpy("synthetic_rankings/answers")
        return [self._ranked(menu.responses, kind, self.sharpness, rng) for menu in probe]


def _check_names(types: Sequence[AnnotatorType]) -> None:
    names = [kind.name for kind in types]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"data.types: two types are called {name!r}; give each its own name")


__all__ = ["PROBE_RESPONSES", "AnnotatorType", "SyntheticRankings", "review_prompts", "true_utility"]
