"""Rows of token ids: the tokenizer's own, padded with -1, long texts with their end."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedalign.data.schema import Question
from fedalign.errors import UserError
from tests.language_models import language_model

Make = Callable[..., Any]
TEXTS = ["the film was good", "I liked a very bright plot ending", "", "film"]


@pytest.fixture(scope="module", params=["gpt2", "trained"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_model(request.param, tmp_path_factory.mktemp(request.param))


def test_rows_are_the_tokenizers_ids(make: Make, model: Path) -> None:
    from transformers import AutoTokenizer

    done: list[int] = []
    rows = make("encoder/tokens", model=str(model), max_length=32).encode(TEXTS, done.append)
    assert (rows.dtype, rows.shape, sum(done)) == (np.float32, (4, 32), 4)
    tokenizer = AutoTokenizer.from_pretrained(model)
    for text, row in zip(TEXTS, rows, strict=True):
        ids = tokenizer(text)["input_ids"] or [tokenizer.eos_token_id]
        assert row.tolist() == [*ids, *[-1] * (32 - len(ids))]


def test_a_long_text_keeps_its_end(make: Make, model: Path) -> None:
    whole = make("encoder/tokens", model=str(model), max_length=32).encode(TEXTS[1:2], lambda n: None)[0]
    short = make("encoder/tokens", model=str(model), max_length=3).encode(TEXTS[1:2], lambda n: None)[0]
    real = whole[whole >= 0]
    assert len(real) > 3
    assert short.tolist() == real[-3:].tolist()


def test_the_end_is_kept_with_the_tokens_that_frame_a_text(make: Make, tmp_path: Path) -> None:
    """Of a model that marks the beginning of every text, the mark stays."""
    from tokenizers import processors
    from transformers import AutoTokenizer

    folder = language_model("gpt2", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<end> $A", None, [("<end>", 0)])
    tokenizer.save_pretrained(folder)
    (row,) = make("encoder/tokens", model=str(folder), max_length=3).encode(["the film was good"], lambda n: None)
    assert row.tolist() == [0, 4, 5]


def test_dim_and_fingerprint(make: Make, tmp_path: Path) -> None:
    folder = language_model("gpt2", tmp_path / "a")
    encoder = make("encoder/tokens", model=str(folder), max_length=7)
    assert encoder.dim == 7
    assert encoder.texts(Question("Q?", ("x", "y"))) == ["Q? x", "Q? y"]
    copy = shutil.copytree(folder, tmp_path / "b")
    assert make("encoder/tokens", model=str(copy), max_length=7).fingerprint == encoder.fingerprint
    assert make("encoder/tokens", model=str(copy), max_length=8).fingerprint != encoder.fingerprint
    (copy / "tokenizer_config.json").write_text("{}")
    assert make("encoder/tokens", model=str(copy), max_length=7).fingerprint != encoder.fingerprint


def test_the_papers_backbone_has_a_config(make: Make) -> None:
    encoder = make("encoder/qwen2_tokens")
    assert (encoder.model, encoder.dim) == ("Qwen/Qwen2-0.5B", 1024)


def test_a_missing_model_is_refused(make: Make) -> None:
    with pytest.raises(UserError, match=r"encoder\.model=\./absent: no such folder"):
        make("encoder/tokens", model="./absent").encode(["x"], lambda n: None)
