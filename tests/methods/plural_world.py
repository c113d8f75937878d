"""A small public questionnaire in words that the random language models know, and groups that answer it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch

from fedalign.data.encoders.hashing import HashingEncoder
from fedalign.data.schema import GroupJudgments, Question
from fedalign.methods.base import Setting
from fedalign.methods.local_training import LocalTraining
from fedalign.methods.option_policy import OptionPolicySpec
from fedalign.methods.plural_policy import PluralPolicyPhase
from fedalign.methods.plural_rlhf import PluralRLHF
from fedalign.methods.pluralllm import Episode, PluralLLM
from fedalign.methods.survey import Evaluation
from fedalign.models.gpo import GPOModel
from fedalign.models.language_model import LanguageModelSpec
from fedalign.objectives.reward_aggregation import MeanRewards, RewardAggregation
from tests.methods import surveys

SUBJECTS = ("film", "plot", "actor", "ending", "I", "it")
OPTIONS = (("good", "bad", "fine"), ("liked", "disliked"), ("very good", "good", "bad", "very bad"))
QUESTIONS = tuple(
    Question(f"{subject} was {word}", options)
    for word, subject, options in itertools.product(("the", "a"), SUBJECTS, OPTIONS)
)
ENCODER = HashingEncoder(template="{question} {option}", size=surveys.FEATURES, word_pairs=True)
TRAINING = LocalTraining(
    steps=2, optimizer="adam", lr=0.02, schedule="constant", period=10, final_lr=1.0, optimizer_state="persist",
    proximal_mu=0.0, max_grad_norm=None,
)  # fmt: skip


def spec(folder: Path, **changes: Any) -> OptionPolicySpec:
    """Return settings of a policy on a folder's model; ``model`` changes single settings of that."""
    model = {
        "rank": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": None, "freeze_a": False, "dtype": "float32",
        "device": "cpu", **changes.pop("model", {}),
    }  # fmt: skip
    values: dict[str, Any] = {
        "rounds": 4,
        "prompt": "{question}",
        "response": "text",
        "length_normalised": False,
        "max_prompt_tokens": 8,
        "max_new_tokens": 4,
        "questions": 6,
        "samples": 4,
        "baseline": "rloo",
        "clip": 0.2,
        "kl": 0.0,
        "training": TRAINING,
    }
    return OptionPolicySpec(model=LanguageModelSpec(model=str(folder), **model), **{**values, **changes})


def predictor() -> PluralLLM:
    """Return settings of a small predictor."""
    return PluralLLM(
        name="pluralllm", prior="federated", smoothing=0.5, episode=Episode(2, 4), loss_reduction="mean",
        weight="uniform", local=TRAINING, evaluation=Evaluation(draws=1, context_questions=3, train=True),
    )  # fmt: skip


def method(
    folder: Path,
    aggregation: RewardAggregation | None = None,
    groups: tuple[str, ...] | None = None,
    questions_file: Path | None = None,
    held_out: float = 0.25,
    **policy: Any,
) -> PluralRLHF:
    """Return the method; keys that it does not have are settings of its policy."""
    return PluralRLHF(
        name="plural_rlhf", predictor=predictor(), aggregation=aggregation or MeanRewards(), groups=groups,
        questions=None if questions_file is None else str(questions_file), held_out=held_out, context_questions=5,
        policy=spec(folder, **policy),
    )  # fmt: skip


def setting(questions: tuple[Question, ...] = QUESTIONS) -> Setting:
    """Return what a method is told: the questionnaire, an encoder and a small network."""
    model = GPOModel(width=16, layers=1, heads=2, feedforward=16, embed_depth=1, input_scale="all")
    sizes = {question.id: len(question.options) for question in questions}
    return Setting(1, ENCODER.dim, model, ENCODER, sizes, questions={q.id: q for q in questions})


def phase(folder: Path, public: tuple[Question, ...] = QUESTIONS, **changes: Any) -> PluralPolicyPhase:
    """Return the policy's phase."""
    last = method(folder, **changes).phases(setting(public))[-1]
    assert isinstance(last, PluralPolicyPhase)
    return last


def group(name: str, seed: int, test: int = 9, without: int = 0) -> GroupJudgments:
    """Return a group that answered all questions but the first few; its last ``test`` are held out."""
    asked = QUESTIONS[without:]
    made = surveys.group(name, [len(q.options) for q in asked], seed, test, [q.id for q in asked])
    vectors = [torch.from_numpy(ENCODER.encode(ENCODER.texts(q), lambda _: None)) for q in asked]
    return GroupJudgments(**{**made.__dict__, "features": torch.cat(vectors)})


def survey_rows(groups: int = 4, seed: int = 0) -> list[dict[str, Any]]:
    """Return the rows of a survey file of these questions."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(groups):
        for question in QUESTIONS:
            shares = torch.rand(len(question.options), generator=generator, dtype=torch.float64) + 0.05
            distribution = (shares / shares.sum()).tolist()
            row = {"group": f"g{number}", "question": question.text, "options": question.options}
            rows.append({**row, "distribution": distribution})
    return rows
