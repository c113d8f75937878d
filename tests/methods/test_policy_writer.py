"""A policy that writes: its own draws scored as drawn, a reference without z, and an exact divergence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedalign.methods.policy_writer import PolicyWriter, rows_of
from fedalign.models.text import TextCodec
from tests.language_models import policy, random_model, shake

PROMPTS = ["the film was", "I liked", "a very dull plot and"]
Z = torch.tensor([[1.0, -1.0], [0.5, 2.0], [-2.0, 0.0]])


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> PolicyWriter:
    folder = random_model("gpt2", tmp_path_factory.mktemp("gpt2"))
    network = policy(folder, init_std=0.3)
    shake(network, 0.1)
    return PolicyWriter(network.eval(), TextCodec(str(folder), "method.policy"), 6, 8)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_a_response_is_scored_token_by_token_as_it_was_drawn(writer: PolicyWriter) -> None:
    """Against one forward pass a response, without padding."""
    written = writer.write(PROMPTS, Z, 1.0, generator())
    tokens = written.tokens
    with torch.no_grad():
        found, reference = writer.log_probability(tokens, Z), writer.reference_log_probability(tokens)
        for row in range(3):
            ids = tokens.ids[row][tokens.attention_mask[row].bool()][None]
            length = int(tokens.response_mask[row].sum())
            for z, value in ((Z[row : row + 1], found[row]), (None, reference[row])):
                context = writer.policy.transformer.without_adapter() if z is None else torch.no_grad()
                with context:
                    each = writer.policy(ids, torch.ones_like(ids), z).log_softmax(2)
                drawn = each[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
                assert float(value) == pytest.approx(float(drawn[-length:].sum()), abs=1e-4)


def test_texts_end_where_the_model_ends_them(writer: PolicyWriter) -> None:
    written = writer.write(PROMPTS * 10, Z.repeat(10, 1), 2.0, generator())
    tokens = written.tokens
    ends = set(writer.policy.end_tokens)
    lengths = tokens.response_mask.sum(1).tolist()
    for row, length in enumerate(lengths):
        response = tokens.ids[row][tokens.response_mask[row].bool()].tolist()
        assert not ends & set(response[:-1])
        assert length == 8 or response[-1] in ends
    assert min(lengths) < 8


def test_the_reference_takes_neither_adapter_nor_z(writer: PolicyWriter) -> None:
    reference = writer.write(PROMPTS, Z, 0.0, generator(), reference=True)
    assert reference.texts == writer.write(PROMPTS, None, 0.0, generator(), reference=True).texts
    assert reference.texts != writer.write(PROMPTS, Z, 0.0, generator()).texts


def test_a_fresh_policy_without_z_has_not_moved(writer: PolicyWriter, tmp_path: Path) -> None:
    folder = random_model("gpt2", tmp_path)
    fresh = PolicyWriter(policy(folder).eval(), TextCodec(str(folder), "method.policy"), 6, 8)
    written = fresh.write(PROMPTS, None, 1.0, generator())
    assert fresh.divergence(written.tokens, None).abs().max() < 1e-5
    moved = writer.divergence(written.tokens, Z)
    assert (moved > 1e-3).all()


def test_the_divergence_is_the_mean_log_ratio_of_its_own_draws(writer: PolicyWriter) -> None:
    n = 1500
    written = writer.write(PROMPTS[:1] * n, Z[:1].expand(n, -1), 1.0, generator(), max_new_tokens=3)
    with torch.no_grad():
        z = Z[:1].expand(n, -1)
        ratio = writer.log_probability(written.tokens, z) - writer.reference_log_probability(written.tokens)
    error = float(ratio.std()) / n**0.5
    assert float(writer.divergence(written.tokens, z).mean()) == pytest.approx(float(ratio.mean()), abs=5 * error)


def test_rows_lose_the_padding_that_they_share(writer: PolicyWriter) -> None:
    tokens = writer.write(PROMPTS, Z, 1.0, generator()).tokens
    index = torch.tensor([1, 1])
    short = rows_of(tokens, index)
    assert short.ids.shape[1] < tokens.ids.shape[1]
    with torch.no_grad():
        whole = writer.log_probability(tokens, Z)[1]
        assert writer.log_probability(short, Z[index]).tolist() == pytest.approx([float(whole)] * 2, abs=1e-4)
