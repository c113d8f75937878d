"""Transformers models as encoders, on a tiny random BERT that the test itself writes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fedalign.data.encoders.transformers_encoder import content_hash, pool
from fedalign.data.schema import Question
from fedalign.errors import UserError
from tests.language_models import trained_model

Make = Callable[..., Any]
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *["tea", "coffee", "is", "good", "bad", "or", "what", "do", "you", "drink", "?", "."],
]
TEXTS = ["tea is good", "what do you drink or do ?", "coffee", "tea or coffee ?", "tea is good ."]


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a randomly drawn BERT of 16 numbers a token."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_bert")
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {name: f"[{name[:3].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.5,  # the usual 0.02 makes all texts nearly alike
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder


def encode(make: Make, folder: Path, texts: list[str] = TEXTS, **changes: Any) -> npt.NDArray[np.float32]:
    encoder = make("encoder/transformers", model=str(folder), **{"max_length": 32, **changes})
    vectors: npt.NDArray[np.float32] = encoder.encode(texts, lambda n: None)
    return vectors


def hidden_states(folder: Path, text: str) -> torch.Tensor:
    """The oracle: one text alone, so nothing is padded; shape (tokens, 16)."""
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.no_grad():
        hidden: torch.Tensor = AutoModel.from_pretrained(folder).eval()(**tokens).last_hidden_state[0]
    return hidden


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_are_the_pooled_states_of_each_text_alone(
    make: Make, tiny_bert: Path, pooling: str, normalize: bool
) -> None:
    vectors = encode(make, tiny_bert, pooling=pooling, normalize=normalize, batch_size=3)
    for text, vector in zip(TEXTS, vectors, strict=True):
        hidden = hidden_states(tiny_bert, text)
        expected = {"mean": hidden.mean(0), "last": hidden[-1], "cls": hidden[0]}[pooling]
        if normalize:
            expected = expected / expected.norm()
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_batches_do_not_matter(make: Make, tiny_bert: Path) -> None:
    whole = encode(make, tiny_bert)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(encode(make, tiny_bert, batch_size=1), whole, atol=1e-6)
    np.testing.assert_allclose(encode(make, tiny_bert, TEXTS[::-1])[::-1], whole, atol=1e-6)
    np.testing.assert_array_equal(encode(make, tiny_bert), whole)


def test_long_texts_are_cut(make: Make, tiny_bert: Path) -> None:
    short, long = encode(make, tiny_bert, ["tea is", "tea is good bad"], max_length=4)
    np.testing.assert_allclose(short, long, atol=1e-6)
    assert np.abs(np.subtract(*encode(make, tiny_bert, ["tea is", "tea is good bad"]))).max() > 1e-3


def test_a_causal_model_without_a_padding_token(make: Make) -> None:
    folder = trained_model()
    vectors = encode(make, folder, pooling="last")
    np.testing.assert_allclose(vectors, encode(make, folder, pooling="last", batch_size=1), atol=1e-4)


def test_dim_fingerprint_and_texts(make: Make, tiny_bert: Path, tmp_path: Path) -> None:
    encoder = make("encoder/transformers", model=str(tiny_bert))
    assert encoder.dim == 16
    assert encoder.texts(Question("Q?", ("x", "y"))) == ["Q? x", "Q? y"]
    copy = shutil.copytree(tiny_bert, tmp_path / "elsewhere")
    assert make("encoder/transformers", model=str(copy)).fingerprint == encoder.fingerprint
    changes = ({"pooling": "mean"}, {"normalize": False}, {"max_length": 8}, {"dtype": "bfloat16"})
    prints = {make("encoder/transformers", model=str(tiny_bert), **keys).fingerprint for keys in changes}
    assert len(prints | {encoder.fingerprint}) == 5
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert make("encoder/transformers", model=str(copy)).fingerprint != encoder.fingerprint


def test_bfloat16_is_coarser_and_still_float32_outside(make: Make, tiny_bert: Path) -> None:
    fine, coarse = encode(make, tiny_bert), encode(make, tiny_bert, dtype="bfloat16")
    assert coarse.dtype == np.float32
    assert 1e-6 < np.abs(fine - coarse).max() < 0.05


def test_hidden_files_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = content_hash(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "lock").write_text("x")
    assert content_hash(tmp_path) == before
    (tmp_path / "config.json").rename(tmp_path / "other.json")
    assert content_hash(tmp_path) != before


def test_pooling_ignores_padding() -> None:
    hidden = torch.arange(12.0).reshape(1, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0]])
    for pooling, expected in (("mean", [1.5, 2.5, 3.5]), ("last", [3.0, 4.0, 5.0]), ("cls", [0.0, 1.0, 2.0])):
        assert pool(hidden, mask, pooling).tolist() == [expected]  # type: ignore[arg-type]


@pytest.mark.parametrize("model", ["./absent", "/no/such/folder", "~/absent-model", "a/b/c"])
def test_a_missing_folder_is_refused(make: Make, model: str) -> None:
    with pytest.raises(UserError, match=r"encoder.model=.*: no such folder"):
        _ = make("encoder/transformers", model=model).dim


def test_a_folder_that_is_no_model_is_refused(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no config.json"):
        _ = make("encoder/transformers", model=str(tmp_path)).fingerprint


def test_a_folder_without_weights_ends_in_one_line(make: Make, tiny_bert: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(tiny_bert, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded on cpu") as error:
        encode(make, bare)
    assert "\n" not in str(error.value)


def test_an_unknown_device_ends_in_one_line(make: Make, tiny_bert: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded on abacus") as error:
        encode(make, tiny_bert, device="abacus")
    assert "\n" not in str(error.value)


def test_loading_draws_no_bar(make: Make, tiny_bert: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    encode(make, tiny_bert)
    assert capfd.readouterr().err == ""
    assert logging.is_progress_bar_enabled()


def test_the_shipped_alpaca_template_is_the_papers(make: Make) -> None:
    encoder = make("encoder/alpaca")
    first, second = encoder.texts(Question("Tea?", ("yes", "no")))
    assert first.endswith("### Input:\nTea?\n\nOptions:\nA. yes\nB. no\n\n### Response:\nA. yes")
    assert second.endswith("### Response:\nB. no")
    assert (encoder.pooling, encoder.normalize) == ("mean", False)
