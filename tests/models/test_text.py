"""Texts to token batches: where padding stands, what is cut, and which tokens are the response."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedalign.errors import UserError
from fedalign.models.generation import generate
from fedalign.models.text import TextCodec, TextStream
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


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    """A tokenizer of bytes, to which every character that is not ASCII is two tokens or more."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(["<end>", *letters])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder = tmp_path_factory.mktemp("bytewise")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    GPT2Config(vocab_size=257).save_pretrained(folder)
    return TextCodec(str(folder), "model")


def tokens_of(codec: TextCodec, text: str) -> torch.Tensor:
    ids, mask = codec.prompts([text], 100)
    return ids[:, mask[0].bool()]


def test_pieces_are_what_each_token_adds(codec: TextCodec) -> None:
    ids = torch.tensor([[3, 5, 0, 0], [6, 6, 6, 6]])
    assert codec.pieces(ids) == [["film", " good", "", ""], ["bad", " bad", " bad", " bad"]]
    assert codec.pieces(ids[:, :0]) == [[], []]


def test_a_character_belongs_to_its_first_token(bytewise: TextCodec) -> None:
    ids = tokens_of(bytewise, "né 日本!")
    assert bytewise.pieces(ids) == [["n", "é", "", " ", "日", "", "", "本", "", "", "!"]]


def test_pieces_joined_are_the_text_whatever_the_tokens_are(bytewise: TextCodec) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(257, (200, 9), generator=generator)
    assert ["".join(pieces) for pieces in bytewise.pieces(ids)] == bytewise.decode(ids)
    assert "\ufffd" in "".join(bytewise.decode(ids))


def streamed(codec: TextCodec, ids: torch.Tensor) -> list[str]:
    shown: list[str] = []
    stream = TextStream(codec, shown.append)
    for token in ids[0]:
        stream.take(token[None], torch.ones(1, 1), torch.tensor([False]))
    stream.take(torch.tensor([5]), torch.ones(1, 1), torch.tensor([True]))
    stream.close()
    return shown


def test_a_stream_shows_whole_characters(bytewise: TextCodec) -> None:
    assert streamed(bytewise, tokens_of(bytewise, "né 日!")) == ["n", "é", " ", "日", "!"]
    cut = tokens_of(bytewise, "né")[:, :-1]
    assert streamed(bytewise, cut) == ["n", "\ufffd"]
    TextStream(bytewise, lambda piece: pytest.fail("nothing was written")).close()


def test_a_stream_is_the_text_whatever_the_tokens_are(bytewise: TextCodec) -> None:
    generator = torch.Generator().manual_seed(0)
    for ids in torch.randint(257, (100, 1, 9), generator=generator):
        assert "".join(streamed(bytewise, ids)) == bytewise.decode(ids)[0]
