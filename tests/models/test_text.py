"""Texts to token batches: where padding stands, what is cut, and which tokens are the response."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedalign.errors import UserError
from fedalign.models.generation import generate
from fedalign.models.text import TextCodec
from tests.language_models import WORDS, policy, trained_model


@pytest.fixture(scope="module")
def codec(gpt2: Path) -> TextCodec:
    return TextCodec(str(gpt2), "method.policy")


def words(ids: torch.Tensor) -> str:
    return " ".join(WORDS[i] for i in ids.tolist())


def test_prompts_are_padded_on_the_left_and_lose_their_beginning(codec: TextCodec) -> None:
    ids, mask = codec.prompts(["the film", "a very dull bright plot", ""], max_tokens=4)
    assert words(ids[1]) == "very dull bright plot"
    assert words(ids[0][mask[0].bool()]) == "the film"
    assert mask.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]]
    assert ids[2, -1] == 0


def test_responses_end_and_are_marked(codec: TextCodec) -> None:
    batch = codec.responses(["the film was", ""], ["very dull", "good"], max_tokens=10)
    assert words(batch.ids[0]) == "the film was very dull <end>"
    assert words(batch.ids[1][batch.attention_mask[1].bool()]) == "<end> good <end>"
    assert batch.response_mask.tolist() == [[0, 0, 0, 1, 1, 1], [0, 1, 1, 0, 0, 0]]
    assert batch.attention_mask.tolist() == [[1] * 6, [1] * 3 + [0] * 3]


@pytest.mark.parametrize(
    ("length", "expected", "response"),
    [
        (6, "the film was very dull <end>", 3),
        (4, "was very dull <end>", 3),
        (3, "was very dull", 2),
        (2, "was very", 1),
    ],
)
def test_what_is_too_long_loses_its_prompt_first(codec: TextCodec, length: int, expected: str, response: int) -> None:
    batch = codec.responses(["the film was"], ["very dull"], max_tokens=length)
    assert words(batch.ids[0]) == expected
    assert batch.response_mask.sum() == response


def test_generated_tokens_become_text_without_their_end(codec: TextCodec) -> None:
    assert codec.decode(torch.tensor([[3, 5, 0, 0], [6, 6, 6, 6]])) == ["film good", "bad bad bad bad"]


def test_a_generated_response_is_scored_as_it_was_sampled() -> None:
    folder = trained_model()
    codec = TextCodec(str(folder), "method.policy")
    prompts = ["This film was"] * 8
    ids, mask = codec.prompts(prompts, 16)
    drawn = generate(policy(folder), ids, mask, None, 12, 1.0, torch.Generator().manual_seed(0))
    texts = codec.decode(drawn)
    batch = codec.responses(prompts, texts, 64)
    again = [row[chosen.bool()].tolist() for row, chosen in zip(batch.ids, batch.response_mask, strict=True)]
    # A byte-pair tokenizer may split the same text in another way, but the text stays the same.
    assert codec.decode(torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in again], True)) == texts
    assert all(row[-1] == 0 for row in again)


def test_a_model_without_an_end_is_refused(gpt2: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gpt2)
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((gpt2 / "config.json").read_text())
    with pytest.raises(UserError, match=r"method\.policy\.model=.*no token that ends a text"):
        TextCodec(str(tmp_path), "method.policy")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"method\.policy\.model=.*tokenizer cannot be loaded") as error:
        TextCodec(str(tmp_path), "method.policy")
    assert "\n" not in str(error.value)
