"""The embedded survey: the same for a seed, shaped as its keys say, and learnable as the real one is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.spatial.distance import jensenshannon

from fedalign.data.schema import Survey
from fedalign.data.vocabulary import GRADED_TEMPLATES, PICK_TEMPLATES, THEMES
from fedalign.errors import UserError
from fedalign.rng import Streams

Make = Callable[..., Any]
Shares = npt.NDArray[np.float64]


def draw(make: Make, seed: int = 0, **changes: Any) -> Survey:
    survey: Survey = make("data/synthetic_survey", **changes).load(Streams(seed))
    return survey


def same(one: Survey, other: Survey) -> bool:
    return (
        dict(one.questions) == dict(other.questions)
        and {group: list(own) for group, own in one.answers.items()}
        == {group: list(own) for group, own in other.answers.items()}
        and all(
            np.array_equal(shares, other.answers[group][question])
            for group, own in one.answers.items()
            for question, shares in own.items()
        )
    )


def score(survey: Survey, predict: Callable[[str, str, Shares], Shares]) -> float:
    """Mean over groups of 1 - mean Jensen-Shannon distance (natural logarithm)."""
    groups = [
        1 - np.mean([jensenshannon(shares, predict(group, question, shares)) for question, shares in own.items()])
        for group, own in survey.answers.items()
    ]
    return float(np.mean(groups))


def uniform(group: str, question: str, shares: Shares) -> Shares:
    return np.full(len(shares), 1 / len(shares))


def test_the_default_world(make: Make) -> None:
    survey = draw(make)
    assert list(survey.answers) == [f"group-{g:02d}" for g in range(1, 15)]
    assert len(survey.questions) == 160
    assert {len(question.options) for question in survey.questions.values()} <= set(range(2, 11))
    assert {2, 10} <= {len(question.options) for question in survey.questions.values()}
    for question_id, question in survey.questions.items():
        assert question_id == question.id
        assert len(set(question.options)) == len(question.options)
    for own in survey.answers.values():
        for question_id, shares in own.items():
            assert shares.shape == (len(survey.questions[question_id].options),)
            assert shares.min() >= 0 and shares.sum() == pytest.approx(1, abs=1e-12)


def test_a_seed_is_a_world(make: Make) -> None:
    assert same(draw(make, 3), draw(make, 3))
    assert not same(draw(make, 3), draw(make, 4))


def test_a_world_seed_fixes_the_world_for_every_run(make: Make) -> None:
    assert same(draw(make, 3, world_seed=9), draw(make, 4, world_seed=9))
    assert not same(draw(make, 3, world_seed=9), draw(make, 3, world_seed=8))
    assert same(draw(make, 3, world_seed=9), draw(make, 9))


def test_more_groups_leave_the_others_as_they_are(make: Make) -> None:
    few, many = draw(make, groups=3, missing_fraction=0.0), draw(make, groups=5, missing_fraction=0.0)
    assert list(many.answers) == [f"group-0{g}" for g in range(1, 6)]
    assert same(few, Survey(few.questions, {group: many.answers[group] for group in few.answers}))


@pytest.mark.parametrize("seed", range(3))
def test_it_is_as_hard_as_the_real_survey(make: Make, seed: int) -> None:
    survey = draw(make, seed)
    assert 0.64 < score(survey, uniform) < 0.74

    def mean_of_others(group: str, question: str, shares: Shares) -> Shares:
        others = [own[question] for name, own in survey.answers.items() if name != group and question in own]
        return np.mean(others, axis=0) if others else uniform(group, question, shares)

    assert score(survey, mean_of_others) > score(survey, uniform) + 0.05


def test_group_effect_moves_groups_apart(make: Make) -> None:
    keys = {"missing_fraction": 0.0, "respondents": None}
    alike = draw(make, group_effect=0.0, **keys)
    first, *others = alike.answers.values()
    assert all(np.array_equal(first[question], own[question]) for own in others for question in first)
    assert spread(draw(make, group_effect=2.0, **keys)) > spread(draw(make, group_effect=0.5, **keys)) > 0


def spread(survey: Survey) -> float:
    groups = list(survey.answers.values())
    return float(np.mean([np.std([own[question] for own in groups], axis=0).mean() for question in groups[0]]))


def test_groups_of_one_bloc_are_nearer(make: Make) -> None:
    groups = list(draw(make, groups=12, blocs=3, missing_fraction=0.0, respondents=None).answers.values())

    def distance(i: int, j: int) -> float:
        return float(np.mean([np.abs(groups[i][question] - groups[j][question]).mean() for question in groups[0]]))

    pairs = [(i, j) for i in range(12) for j in range(i)]
    within = np.mean([distance(i, j) for i, j in pairs if (i - j) % 3 == 0])
    between = np.mean([distance(i, j) for i, j in pairs if (i - j) % 3 != 0])
    assert within < 0.8 * between


def test_question_effect_is_what_no_text_tells(make: Make) -> None:
    """Without it, two graded questions on the same words and scale have the same answers; with it they differ."""

    def twins(survey: Survey) -> Iterator[float]:
        own = survey.answers["group-01"]
        seen: dict[tuple[str, ...], Shares] = {}
        for question_id, question in survey.questions.items():
            words = frozenset(word.strip("?") for word in question.text.split()) & {w for t in THEMES for w in t}
            key = (*sorted(words), *question.options)
            if len(words) == 2:
                if key in seen:
                    yield float(np.abs(seen[key] - own[question_id]).max())
                seen[key] = own[question_id]

    keys = {"questions": 800, "groups": 1, "pick_fraction": 0.0, "missing_fraction": 0.0, "respondents": None}
    without, with_effect = list(twins(draw(make, question_effect=0.0, **keys))), list(twins(draw(make, **keys)))
    assert len(without) > 10
    assert max(without) < 1e-9
    assert min(with_effect) > 1e-6


def test_sharpness_zero_is_uniform(make: Make) -> None:
    for own in draw(make, sharpness=0.0, respondents=None).answers.values():
        for shares in own.values():
            np.testing.assert_allclose(shares, 1 / len(shares))
    assert score(draw(make, sharpness=0.5), uniform) > score(draw(make, sharpness=1.5), uniform)


def test_respondents_make_counts(make: Make) -> None:
    for own in draw(make, respondents=7).answers.values():
        for shares in own.values():
            np.testing.assert_allclose(shares * 7, np.round(shares * 7), atol=1e-9)
    exact = draw(make, respondents=None, missing_fraction=0.0)
    many = draw(make, respondents=10**7, missing_fraction=0.0)
    gaps = [
        np.abs(exact.answers[group][question] - shares).max()
        for group, own in many.answers.items()
        for question, shares in own.items()
    ]
    assert 0 < max(gaps) < 2e-3


def test_pick_fraction_sets_the_kind_of_question(make: Make) -> None:
    graded = draw(make, pick_fraction=0.0, questions=40)
    picks = draw(make, pick_fraction=1.0, questions=40)
    stems = {template.split("{")[0] for template in GRADED_TEMPLATES}
    assert all(any(q.text.startswith(stem) for stem in stems) for q in graded.questions.values())
    assert {q.text for q in picks.questions.values()} <= set(PICK_TEMPLATES)


def test_missing_fraction_is_the_mean_share_not_asked(make: Make) -> None:
    full = draw(make, missing_fraction=0.0)
    assert {len(own) for own in full.answers.values()} == {160}
    survey = draw(make, missing_fraction=0.3, groups=200)
    missing = np.array([1 - len(own) / 160 for own in survey.answers.values()])
    assert missing.mean() == pytest.approx(0.3, abs=0.03)
    assert missing.max() > 0.5 and missing.min() < 0.1


def test_factors_change_the_world(make: Make) -> None:
    assert not same(draw(make, factors=2), draw(make, factors=4))


def test_a_question_that_nobody_answered_is_not_in_the_survey(make: Make) -> None:
    survey = draw(make, groups=1, missing_fraction=0.45, questions=30)
    assert set(survey.questions) == set(survey.answers["group-01"])
    assert len(survey.questions) < 30


def test_a_path_reads_a_file_instead(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(
        json.dumps({"group": "g", "question": "Q?", "options": ["a", "b"], "distribution": [0.5, 0.5]}) + "\n"
    )
    assert [question.text for question in draw(make, path=str(path)).questions.values()] == ["Q?"]
    with pytest.raises(UserError, match="no such file"):
        draw(make, path=str(tmp_path / "absent.jsonl"))


def test_a_world_in_which_nobody_was_asked_is_an_error(make: Make) -> None:
    def empty(seed: int) -> bool:
        try:
            draw(make, seed, groups=1, questions=1, missing_fraction=0.49)
        except UserError as error:
            assert "data.questions=1: no group was asked anything" in str(error)
            return True
        return False

    assert any(empty(seed) for seed in range(20))
