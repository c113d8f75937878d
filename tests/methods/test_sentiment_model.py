"""A classifier of transformers as a reward, against the model itself run text by text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedalign.build import build
from fedalign.errors import UserError
from fedalign.methods.sentiment_model import SentimentModel
from fedalign.methods.text_reward import TextReward
from tests.language_models import WORDS
from tests.methods.rewards import STRANGE, shipped

LABELS = {0: "negative", 1: "neutral", 2: "positive"}
POSITIONS = 32
SPECIAL = ["<pad>", "<s>", "</s>"]


@pytest.fixture(scope="module", params=["roberta", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(request.param, tmp_path_factory.mktemp(request.param))


def classifier(kind: str, folder: Path) -> Path:
    """Write a random classifier: one that wraps texts in tokens of its own, or a causal one without padding."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        GPT2Config,
        GPT2ForSequenceClassification,
        PreTrainedTokenizerFast,
        RobertaConfig,
        RobertaForSequenceClassification,
    )

    words = [*SPECIAL, *WORDS[1:]]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"eos_token": "</s>", "unk_token": "<unk>"}
    if kind == "roberta":
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1))
        names |= {"pad_token": "<pad>", "bos_token": "<s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    shared: dict[str, Any] = {"vocab_size": len(words), "initializer_range": 0.3, "id2label": LABELS}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "roberta":
            size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
            config = RobertaConfig(**size, **shared, pad_token_id=0, max_position_embeddings=POSITIONS + 1)
            RobertaForSequenceClassification(config).save_pretrained(folder)
        else:
            config = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=POSITIONS, **shared)
            GPT2ForSequenceClassification(config).save_pretrained(folder)
    return folder


def reward(folder: Path, **changes: Any) -> SentimentModel:
    settings = {**shipped("sentiment_model"), "model": str(folder), "max_tokens": POSITIONS, **changes}
    found = build(settings, TextReward, "method.reward")
    assert isinstance(found, SentimentModel)
    return found


@torch.no_grad()
def direct(folder: Path, text: str, label: int) -> float:
    """Return the logit by the model's own interface, without padding."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    network = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return float(network(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[0, label])


TEXTS = ["the film was very good and I liked it", "bad", "a dull plot", "the actor was unheard of"]


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_the_reward_is_the_models_own_logit_in_the_order_of_the_texts(folder: Path, batch_size: int) -> None:
    found = reward(folder, batch_size=batch_size).score([""] * 4, TEXTS)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([direct(folder, text, 2) for text in TEXTS], abs=1e-5)
    assert float(found.std()) > 0.01


def test_scores_are_the_same_to_the_bit_one_by_one_and_to_rounding_in_batches(folder: Path) -> None:
    prompts = ["a film"] * len(STRANGE)
    alone = torch.cat([reward(folder).score(["a film"], [text]) for text in STRANGE])
    assert torch.equal(reward(folder, batch_size=1).score(prompts, STRANGE), alone)
    assert torch.allclose(reward(folder).score(prompts, STRANGE), alone, atol=1e-5)
    assert bool(alone.isfinite().all())
    assert reward(folder).score([], []).shape == (0,)


@pytest.mark.parametrize(("label", "index"), [("negative", 0), ("Neutral", 1), (2, 2)])
def test_labels_by_name_or_index(folder: Path, label: str | int, index: int) -> None:
    assert float(reward(folder, label=label).score([""], ["good"])) == pytest.approx(
        direct(folder, "good", index), abs=1e-5
    )


def test_a_long_text_keeps_the_end_that_a_response_loses(folder: Path) -> None:
    filler, last = "the " * 100, "very good"
    cut = reward(folder, max_tokens=8)
    assert torch.equal(cut.score([""], [filler + last]), cut.score([""], [filler]))
    both = reward(folder, max_tokens=8, scored="text")
    assert not torch.equal(both.score([filler], [last]), both.score([filler], ["the the"]))
    assert torch.equal(both.score([filler], [last]), both.score(["good " + filler], [last]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "positve"}, "method.reward.label=positve: .* did you mean 'positive'"),
        ({"label": 3}, "method.reward.label=3: the model has labels 0 to 2"),
        ({"max_tokens": POSITIONS + 1}, f"method.reward.max_tokens=33: .* at most {POSITIONS} tokens"),
        ({"model": "./nowhere"}, "method.reward.model=./nowhere: no such folder"),
        ({"device": "nonsense"}, "method.reward.model=.* cannot be loaded on nonsense"),
    ],
)
def test_mistakes_are_said_before_training(folder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        reward(folder, **changes).prepare()
