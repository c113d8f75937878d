"""Responses in columns of fixed width: what they depend on, and where they end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedalign.errors import UserError
from fedalign.methods.rollouts import rows_of, uniform, write
from fedalign.methods.text_lengths import Lengths
from fedalign.models.generation import generate
from fedalign.models.policy import ConditionalPolicy
from fedalign.models.text import TextCodec
from tests.language_models import LENGTH, WORDS, policy, random_model, shake

LENGTHS = Lengths(4, 6)
PROMPTS = ["the film", "", "I liked the plot and the", "it was very"]
END = 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model("gpt2", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def writer(folder: Path) -> ConditionalPolicy:
    made = policy(folder, latent=0)
    shake(made)
    return made.eval()


@pytest.fixture(scope="module")
def codec(folder: Path) -> TextCodec:
    return TextCodec(str(folder), "model")


def test_a_text_depends_on_its_prompt_and_its_seed_alone(writer: ConditionalPolicy, codec: TextCodec) -> None:
    seeds = [7, 8, 9, 10]
    together = write(writer, codec, LENGTHS, PROMPTS, uniform(seeds, 6))
    for place, (prompt, seed) in enumerate(zip(PROMPTS, seeds, strict=True)):
        alone = write(writer, codec, LENGTHS, [prompt], uniform([seed], 6))
        assert alone.texts == [together.texts[place]]
        row = rows_of(together.tokens, torch.tensor([place]))
        for name in ("ids", "attention_mask", "response_mask"):
            assert torch.equal(getattr(alone.tokens, name), getattr(row, name))
    other = write(writer, codec, LENGTHS, PROMPTS, uniform([1, 2, 3, 4], 6))
    assert other.texts != together.texts


def test_columns_are_as_wide_whatever_is_in_them(writer: ConditionalPolicy, codec: TextCodec) -> None:
    for prompts in (["the"], [""], PROMPTS):
        # With draws near 1 a text ends late, near 0 at once: token 0 ends it.
        for draw in (0.0, 0.999999):
            draws = torch.full((len(prompts), 6), draw, dtype=torch.float64)
            tokens = write(writer, codec, LENGTHS, prompts, draws).tokens
            assert tokens.ids.shape == tokens.attention_mask.shape == tokens.response_mask.shape == (len(prompts), 10)
            if draw == 0.0:
                assert tokens.response_mask.sum(1).tolist() == [1] * len(prompts)
                assert tokens.ids[:, 4].tolist() == [END] * len(prompts)


def test_a_response_is_masked_up_to_its_end_and_prompts_stand_on_the_left(
    writer: ConditionalPolicy, codec: TextCodec
) -> None:
    tokens = write(writer, codec, LENGTHS, PROMPTS * 8, uniform(list(range(32)), 6)).tokens
    lengths = set()
    for ids, seen, response in zip(tokens.ids.tolist(), tokens.attention_mask, tokens.response_mask, strict=True):
        new = ids[4:]
        length = new.index(END) + 1 if END in new else 6
        assert response.tolist() == [0] * 4 + [1] * length + [0] * (6 - length)
        assert seen[4:].tolist() == response[4:].tolist()
        lengths.add(length)
    assert len(lengths) > 2
    words = [[WORDS.index(w) for w in p.split()] for p in PROMPTS]
    shown = [
        ids[mask == 1].tolist() for ids, mask in zip(tokens.ids[:4, :4], tokens.attention_mask[:4, :4], strict=True)
    ]
    # An empty prompt is the end of the text before; a long one loses its beginning.
    assert shown == [words[0], [END], words[2][-4:], words[3]]
    assert tokens.attention_mask[0, :4].tolist() == [0, 0, 1, 1]


def test_without_draws_the_likeliest_are_taken_and_the_pretrained_model_writes_without_its_adapter(
    folder: Path, writer: ConditionalPolicy, codec: TextCodec
) -> None:
    greedy = write(writer, codec, LENGTHS, PROMPTS, None, temperature=0.0)
    ids, mask = codec.openings(PROMPTS, 4)
    by_hand = ids
    for _ in range(6):
        with torch.no_grad():
            chosen = writer(by_hand, mask, None)[:, -1].argmax(1)
        by_hand, mask = (
            torch.cat([by_hand, chosen[:, None]], 1),
            torch.cat([mask, torch.ones(4, 1, dtype=torch.int64)], 1),
        )
    inside = greedy.tokens.response_mask.bool()
    assert torch.equal(greedy.tokens.ids[inside], by_hand[inside])
    plain, draws = policy(folder, latent=0).eval(), uniform([1, 2, 3, 4], 6)
    before = write(writer, codec, LENGTHS, PROMPTS, draws, pretrained=True)
    assert before.texts == write(plain, codec, LENGTHS, PROMPTS, draws).texts
    assert before.texts != write(writer, codec, LENGTHS, PROMPTS, draws).texts


def test_draws_are_those_of_their_seed_and_uniform() -> None:
    found = uniform([3, 4], 500, rows=2)
    assert found.shape == (4, 500)
    assert found.dtype is torch.float64
    assert torch.equal(found[2:], uniform([4], 500, rows=2))
    assert len(set(found.flatten().tolist())) == 2000
    assert float(found.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(found.var()) == pytest.approx(1 / 12, abs=0.01)


def test_given_texts_stand_as_drawn_ones_do(codec: TextCodec) -> None:
    long = "the film was good and the plot was"
    batch = codec.continuations([PROMPTS[2], ""], ["bad", long], 4, 6)
    ids = [[WORDS.index(w) for w in text.split()] for text in (PROMPTS[2], long)]
    assert batch.ids[0].tolist() == [*ids[0][-4:], WORDS.index("bad"), *[END] * 5]
    # What ends a text is part of it, and is missing where the text was cut.
    assert batch.response_mask[0].tolist() == [0] * 4 + [1, 1, 0, 0, 0, 0]
    assert batch.ids[1, 3:].tolist() == [END, *ids[1][:6]]
    assert batch.response_mask[1].tolist() == [0] * 4 + [1] * 6
    assert batch.attention_mask[1].tolist() == [0, 0, 0, *[1] * 7]
    exact = codec.continuations(["the"], ["the film was good and"], 4, 6)
    assert int(exact.response_mask.sum()) == 6
    assert int(exact.ids[0, -1]) == END
    opening, mask = codec.openings([PROMPTS[2], ""], 4)
    assert torch.equal(opening, batch.ids[:, :4])
    assert torch.equal(mask, batch.attention_mask[:, :4])


def test_draws_in_place_of_a_generator_give_its_texts_and_modes_are_kept(
    writer: ConditionalPolicy, codec: TextCodec
) -> None:
    ids, mask = codec.openings(PROMPTS, 4)
    generator = torch.Generator().manual_seed(5)
    draws = torch.rand(4, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    own = generate(writer, ids, mask, None, 6, 1.0, generator)
    assert torch.equal(own, generate(writer, ids, mask, None, 6, 1.0, None, draws=draws))
    # Temperature bends the same draws.
    assert not torch.equal(own, generate(writer, ids, mask, None, 6, 9.0, None, draws=draws)[:, : own.shape[1]])
    modules = list(writer.modules())
    kept = [module.training for module in modules]
    modules[-1].training = True
    try:
        wanted = [module.training for module in modules]
        generate(writer, ids, mask, None, 2, 1.0, None, draws=draws)
        assert [module.training for module in modules] == wanted
    finally:
        for module, mode in zip(modules, kept, strict=True):
            module.training = mode


def test_lengths_beyond_the_model_are_refused() -> None:
    Lengths(LENGTH - 6, 6).check(LENGTH)
    Lengths(10**6, 6).check(None)
    with pytest.raises(UserError, match=r"method\.lengths\.prompt=59 and method\.lengths\.response=6: 65 tokens"):
        Lengths(59, 6).check(LENGTH)
