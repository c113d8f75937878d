"""The fitted classifier: sides, the rows that are read, what a text is worth alone, and the real reviews."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fedalign.build import build
from fedalign.errors import UserError
from fedalign.methods.fitted_sentiment import FittedSentiment, read_labelled
from fedalign.methods.text_reward import TextReward
from tests.methods.rewards import STRANGE, shipped

GOOD = ["a good film", "a bright plot", "good and bright actors", "a very good ending"]
BAD = ["a bad film", "a dull plot", "bad and dull actors", "a very bad ending"]


def labelled(path: Path, rows: Sequence[tuple[str, Any]]) -> str:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)
    return str(path)


@pytest.fixture
def reviews(tmp_path: Path) -> str:
    return labelled(tmp_path / "reviews.jsonl.gz", [*((t, 1) for t in GOOD), *((t, 0) for t in BAD)])


def fitted(path: str | None, **changes: Any) -> FittedSentiment:
    reward = build({**shipped("fitted_sentiment"), "path": path, **changes}, TextReward, "method.reward")
    assert isinstance(reward, FittedSentiment)
    return reward


def scores(reward: TextReward, *responses: str) -> torch.Tensor:
    return reward.score([""] * len(responses), responses)


def test_it_learns_the_side_of_words(reviews: str) -> None:
    good, bad, neither = scores(fitted(reviews), "good and bright", "bad and dull", "unheard words").tolist()
    assert good > 0.5 and bad < -0.5
    # The sides are of equal size and mirror each other, so that a text of no known word is worth nothing.
    assert neither == pytest.approx(0.0, abs=1e-3)


def test_it_is_the_logistic_regression_of_its_own_features(reviews: str) -> None:
    """At the optimum of sum of log-losses plus |w|^2 / (2 C), mistakes balance and weights are C times their sum."""
    from fedalign.methods.fitted_sentiment import _fitted

    vectorizer, regression = (step for _, step in _fitted(reviews, "1", None, None).steps)
    x = torch.tensor(vectorizer.transform([*GOOD, *BAD]).toarray())
    mistakes = torch.tensor([1.0] * 4 + [0.0] * 4) - fitted(reviews, output="probability").score(
        [""] * 8, [*GOOD, *BAD]
    )
    assert float(mistakes.sum()) == pytest.approx(0.0, abs=1e-2)
    weights = torch.tensor(regression.coef_[0])
    assert torch.allclose(weights, 10.0 * x.T @ mistakes.double(), atol=2e-2)
    assert torch.allclose(x.norm(dim=1), torch.ones(8, dtype=torch.float64))
    assert {"good", "very good"} <= set(vectorizer.get_feature_names_out())


def test_probability_and_log_odds_say_the_same(reviews: str) -> None:
    odds, chances = (scores(fitted(reviews, output=kind), *STRANGE) for kind in ("log_odds", "probability"))
    assert torch.allclose(odds.sigmoid(), chances, atol=1e-6)
    assert chances.dtype == torch.float32 and bool(((chances > 0) & (chances < 1)).all())


def test_a_score_does_not_depend_on_other_texts(reviews: str) -> None:
    reward = fitted(reviews)
    together = scores(reward, *STRANGE)
    assert torch.equal(together, torch.cat([scores(reward, text) for text in STRANGE]))
    assert bool(together.isfinite().all())
    assert reward.score([], []).shape == (0,)


def test_the_positive_label_may_be_any(tmp_path: Path) -> None:
    rows = [*((t, "pos") for t in GOOD), *((t, "neg") for t in BAD), ("a film", "mixed")]
    path = labelled(tmp_path / "named.jsonl.gz", rows)
    assert float(scores(fitted(path, positive="pos"), "good")) > 0 > float(scores(fitted(path, positive="neg"), "good"))
    truth = labelled(tmp_path / "truth.jsonl.gz", [*((t, True) for t in GOOD), *((t, False) for t in BAD)])
    assert float(scores(fitted(truth), "good")) > 0


def test_the_prompt_counts_where_it_is_asked_to(reviews: str) -> None:
    assert float(fitted(reviews, scored="text").score(["good"], [""])) > 0.5
    assert float(fitted(reviews).score(["good"], [""])) == pytest.approx(0.0, abs=1e-3)


def test_only_the_first_words_are_read(tmp_path: Path) -> None:
    rows = [("film good " + "dull " * 5, 1), ("film bad " + "bright " * 5, 0)]
    path = labelled(tmp_path / "long.jsonl.gz", rows)
    assert float(scores(fitted(path), "bright")) < 0
    assert float(scores(fitted(path, words=2), "bright")) == pytest.approx(0.0, abs=1e-6)
    assert float(scores(fitted(path, words=2), "good")) > 0


def test_texts_are_taken_from_all_over_a_sorted_file(reviews: str) -> None:
    first_and_last = scores(fitted(reviews, max_texts=2), "film", "good film", "very bad ending", "plot")
    assert float(first_and_last[1]) > 0 > float(first_and_last[2])
    # "plot" is in neither of the two texts.
    assert float(first_and_last[3]) == pytest.approx(0.0, abs=1e-6)
    assert torch.equal(scores(fitted(reviews, max_texts=100), *GOOD), scores(fitted(reviews), *GOOD))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, "method.reward.path is not set"),
        ("nowhere.jsonl", "method.reward.path=nowhere.jsonl: no such file"),
        ("reviews.txt", "method.reward.path=reviews.txt: unknown suffix"),
    ],
)
def test_a_file_that_is_not_there_is_said_before_training(path: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fitted(path).prepare()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no text"),
        ([("good", 1), ("bad", 1)], "positive=1: .* with and without it; its labels: 1"),
        ([("good", "pos"), ("bad", "neg")], "positive=1: .* its labels: neg, pos"),
        ([(None, 1)], "'text' holds 'None'; it must be a text"),
        ([("?!", 1), ("", 0)], "hold no words"),
    ],
)
def test_a_file_that_cannot_be_learnt_from_is_refused(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fitted(labelled(tmp_path / "odd.jsonl.gz", rows)).prepare()


@pytest.mark.data
@pytest.mark.slow
def test_it_tells_real_reviews_apart(real_data) -> None:
    reward = fitted(str(real_data("imdb/test.jsonl.gz")))
    texts, labels = read_labelled(real_data("imdb/train.jsonl.gz"))
    truth = torch.tensor([label == "1" for label in labels])
    for words, least in ((None, 0.83), (40, 0.70)):
        cut = [" ".join(text.split()[:words]) for text in texts]
        assert float(((scores(reward, *cut) > 0) == truth).double().mean()) > least
