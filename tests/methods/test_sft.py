"""Supervised fine-tuning: its likelihood against transformers', and that it learns."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fedalign.contribution import total
from fedalign.federation.server_optimizer import FedAvg
from fedalign.methods.corpus import CorpusPhase
from fedalign.metrics.record import decode
from fedalign.rng import Streams
from tests.language_models import WORDS, random_model

from .stages import PLACE, phases, shard


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model("gpt2", tmp_path_factory.mktemp("model"))


def measured(phase: CorpusPhase, state: dict[str, torch.Tensor]) -> dict[str, float]:
    told = phase.evaluate(state, shard(), PLACE)
    return phase.summarise(decode(told.scalars), told.tensors)


def by_transformers(folder: Path) -> dict[str, tuple[float, int]]:
    """Return the negative log-likelihood and number of tokens of each group's test responses, text by text."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    found: dict[str, tuple[float, int]] = {}
    for example in shard().test:
        prompt = [WORDS.index(w) for w in example.prompt.split()][-4:] or [0]
        response = [*(WORDS.index(w) for w in example.response.split()), 0][:5]
        ids = torch.tensor([[*prompt, *response]])
        labels = torch.tensor([[*([-100] * len(prompt)), *response]])
        with torch.no_grad():
            nll = float(model(ids, labels=labels).loss) * len(response)
        before = found.get(example.group, (0.0, 0))
        found[example.group] = (before[0] + nll, before[1] + len(response))
    return found


def test_before_training_the_likelihood_is_the_pretrained_model_s(folder: Path) -> None:
    phase = phases(folder)["sft"]
    values = measured(phase, phase.initial(PLACE, {}))
    groups = [nll / tokens for nll, tokens in by_transformers(folder).values()]
    assert len(groups) == 2
    expected = sum(groups) / 2
    assert values["unseen/test_nll"] == pytest.approx(expected, rel=1e-5)
    assert values["unseen/test_perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
    assert values["unseen/kl"] == pytest.approx(0.0, abs=1e-6)


def test_the_loss_of_a_text_is_the_mean_over_its_own_tokens(folder: Path) -> None:
    phase = phases(folder)["sft"]
    state = phase.initial(PLACE, {})
    phase.load(state)
    losses = phase.row_losses(state)(shard().test, [0] * len(shard().test)).detach()
    lengths = [min(len(e.response.split()) + 1, 5) for e in shard().test]
    assert len(set(lengths)) > 1
    summed = sum(float(loss) * n for loss, n in zip(losses, lengths, strict=True))
    assert summed == pytest.approx(sum(nll for nll, _ in by_transformers(folder).values()), rel=1e-5)


def test_it_learns_what_users_wrote(folder: Path) -> None:
    phase = phases(folder, "method.sft.local.lr=0.03", "method.sft.local.steps=20", "method.sft.batch=6")["sft"]
    state = phase.initial(PLACE, {})
    before = measured(phase, state)
    told = phase.local(state, shard(), Streams(0, "sft", 1, "ann"), {})
    (loss,) = [item for item in decode(told.scalars) if item.name == "train/loss" and item.group == "x"]
    after = measured(phase, phase.update(state, total([told]), FedAvg(1.0).build()))
    assert after["unseen/test_nll"] < 0.7 * before["unseen/test_nll"]
    assert after["unseen/kl"] > 0.1
    assert 0 < loss.total / loss.n < before["unseen/test_nll"] * 1.5
