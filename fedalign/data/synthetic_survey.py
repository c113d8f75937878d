"""A survey that the project makes itself, so that everything runs without a network and without anybody's data.

The world is a small latent-factor model. Every theme has a direction, and its words lie near it. An option's
direction is its grade times the mean of the question's words (graded questions) or its own word's (questions that ask
to pick a topic). With ``a`` the taste that all groups share, ``b_g`` the group's own taste, which lies near that of
its bloc, ``v_qo`` the option's direction and ``e_qo`` a question effect that no text tells,

    share_g(q, o) = softmax_o( sharpness * ( <a + group_effect * b_g, v_qo> + question_effect * e_qo ) ),

counted over a finite number of respondents. So texts carry information (words and themes recur across questions), a
group's answers to some questions tell about its answers to others (the same ``b_g``), groups have something to learn
from each other (blocs), and what others answered to the same question tells something that no text does (``e_qo``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedalign.data.schema import Distribution, Question, Survey, SurveySource
from fedalign.data.survey_file import read_survey_file
from fedalign.data.vocabulary import GRADED_SCALES, GRADED_TEMPLATES, PICK_TEMPLATES, THEMES
from fedalign.errors import UserError
from fedalign.rng import Streams

_Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SyntheticSurvey(SurveySource):
    """A survey drawn from a latent-factor world (see the module).

    Parameters
    ----------
    name : str
    path : str or None
        None draws the survey; a path reads that survey file instead and every other key is unused.
    groups, questions : int
        How many groups and how many questions.
    factors : int
        Dimension of the latent taste space.
    blocs : int
        Group i belongs to bloc i modulo this; three quarters of the variance of a group's own taste is its bloc's.
    question_effect : float
        Size of the part of a question's answers that all groups share and no text tells.
    group_effect : float
        Size of a group's own taste against the shared taste.
    sharpness : float
        How far answers are from uniform.
    pick_fraction : float
        Share of the questions that ask to pick one topic from a list; the others are graded.
    missing_fraction : float
        Mean share of the questions that a group was not asked; each group has its own share between 0 and twice this.
    respondents : int or None
        Respondents a group and question; None gives exact shares.
    world_seed : int or None
        Seed of the world; None takes the run's seed.
    """

    name: str
    path: str | None
    groups: Annotated[int, Field(ge=1)]
    questions: Annotated[int, Field(ge=1, le=10_000)]
    factors: Annotated[int, Field(ge=1)]
    blocs: Annotated[int, Field(ge=1)]
    question_effect: Annotated[float, Field(ge=0.0)]
    group_effect: Annotated[float, Field(ge=0.0)]
    sharpness: Annotated[float, Field(ge=0.0)]
    pick_fraction: Annotated[float, Field(ge=0.0, le=1.0)]
    missing_fraction: Annotated[float, Field(ge=0.0, lt=0.5)]
    respondents: Annotated[int, Field(ge=1)] | None
    world_seed: int | None

    def load(self, streams: Streams) -> Survey:
        """Draw the world, or read ``path`` if it is given.

        Raises
        ------
        UserError
            If ``path`` is given and missing or malformed, or nobody was asked anything.
        """
        if self.path is not None:
            return read_survey_file(Path(self.path))
        world = streams if self.world_seed is None else Streams(seed=self.world_seed)
        loadings = self._loadings(world.numpy("synthetic_survey/words"))
        items = self._items(loadings, world.numpy("synthetic_survey/questions"))
        tastes = world.numpy("synthetic_survey/taste")
        shared = _direction(self.factors, tastes)
        blocs = [_direction(self.factors, tastes) for _ in range(self.blocs)]
        answers: dict[str, dict[str, Distribution]] = {}
        for g in range(self.groups):
            name = f"group-{g + 1:02d}"
            answers[name] = self._answers(items, shared, blocs[g % self.blocs], world.at(client=name))
        asked = {question_id for group in answers.values() for question_id in group}
        if not asked:
            raise UserError(
                f"data.questions={self.questions}: no group was asked anything; raise it or lower data.missing_fraction"
            )
        return Survey(questions={item.id: item.question for item in items if item.id in asked}, answers=answers)

    def _loadings(self, rng: np.random.Generator) -> dict[str, _Array]:
        loadings = {}
        for words in THEMES:
            theme = _direction(self.factors, rng)
            loadings.update({word: theme + 0.5 * rng.standard_normal(self.factors) for word in words})
        return loadings

    def _items(self, loadings: dict[str, _Array], rng: np.random.Generator) -> list[_Item]:
        items: dict[str, _Item] = {}
        while len(items) < self.questions:
            item = _pick(loadings, rng) if rng.random() < self.pick_fraction else _graded(loadings, rng)
            items.setdefault(item.id, item)
        return list(items.values())

    def _answers(self, items: list[_Item], shared: _Array, bloc: _Array, here: Streams) -> dict[str, Distribution]:
        rng = here.numpy("synthetic_survey/group")
        own = np.sqrt(0.75) * bloc + np.sqrt(0.25) * _direction(self.factors, rng)
        taste = (shared + self.group_effect * own) / np.sqrt(self.factors)
        missing = rng.uniform(0.0, 2.0 * self.missing_fraction)
        answers: dict[str, Distribution] = {}
        for item in items:
            utility = item.directions @ taste + self.question_effect * item.effect
            shares = _softmax(self.sharpness * utility)
            if self.respondents is not None:
                shares = rng.multinomial(self.respondents, shares) / self.respondents
            if rng.random() >= missing:
                answers[item.id] = shares / shares.sum()
        return answers


@dataclass(frozen=True)
class _Item:
    """A question with its options' directions, shape (options, factors), and the effect no text tells, (options,)."""

    id: str
    question: Question
    directions: _Array
    effect: _Array


def _graded(loadings: dict[str, _Array], rng: np.random.Generator) -> _Item:
    scale = GRADED_SCALES[int(rng.integers(len(GRADED_SCALES)))]
    template = GRADED_TEMPLATES[int(rng.integers(len(GRADED_TEMPLATES)))]
    theme = THEMES[int(rng.integers(len(THEMES)))]
    words = [theme[i] for i in rng.choice(len(theme), size=2, replace=False)]
    topic = (loadings[words[0]] + loadings[words[1]]) / 2
    grades = np.linspace(1.0, -1.0, len(scale))
    # Two untold parts: one tilts the scale, one moves people to or from its middle.
    effect = grades * rng.standard_normal() + (grades**2 - np.mean(grades**2)) * rng.standard_normal()
    question = Question(template.format(*words), scale)
    return _Item(question.id, question, np.outer(grades, topic), effect)


def _pick(loadings: dict[str, _Array], rng: np.random.Generator) -> _Item:
    template = PICK_TEMPLATES[int(rng.integers(len(PICK_TEMPLATES)))]
    themes = rng.choice(len(THEMES), size=int(rng.integers(3, 7)), replace=False)
    words = [THEMES[i][int(rng.integers(len(THEMES[i])))] for i in themes]
    question = Question(template, tuple(word.capitalize() for word in words))
    return _Item(question.id, question, np.stack([loadings[word] for word in words]), rng.standard_normal(len(words)))


def _direction(factors: int, rng: np.random.Generator) -> _Array:
    """Return a random direction, shape (factors,), of length sqrt(factors), so that worlds differ in kind, not size."""
    vector = rng.standard_normal(factors)
    direction: _Array = vector * np.sqrt(factors) / np.linalg.norm(vector)
    return direction


def _softmax(logits: _Array) -> Distribution:
    weights = np.exp(logits - logits.max())
    shares: Distribution = weights / weights.sum()
    return shares
