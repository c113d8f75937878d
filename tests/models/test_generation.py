"""Generation: a cache that changes nothing, rows that do not meet, ends that hold, and draws that follow the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedalign.errors import UserError
from fedalign.models.generation import generate
from fedalign.models.policy import ConditionalPolicy
from tests.cases import mostly_slow
from tests.language_models import LENGTH, policy, shake

PROMPTS = [[2, 3, 4], [12, 7], [5, 9, 8, 6, 3]]
Z = torch.tensor([[1.0, -1.0], [0.5, 2.0], [-2.0, 0.0]])

conditions = pytest.mark.parametrize("condition", ["embedding", "prefix"])


def padded(prompts: list[list[int]], extra: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts)) + extra
    ids = torch.tensor([[1] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


def moved(folder: Path, condition: str = "embedding") -> ConditionalPolicy:
    """A policy that says different things under different z."""
    found = policy(folder, condition=condition, init_std=0.1)
    shake(found, 0.05)
    return found


def decode(
    told: ConditionalPolicy,
    prompts: list[list[int]],
    z: torch.Tensor | None,
    new: int = 8,
    temperature: float = 0.0,
    seed: int = 0,
    extra: int = 0,
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return generate(told, *padded(prompts, extra), z, new, temperature, generator)


def naive(told: ConditionalPolicy, prompt: list[int], z: torch.Tensor | None, new: int) -> list[int]:
    """The oracle: one prompt, no cache, no padding, everything computed again for every token."""
    tokens = list(prompt)
    for _ in range(new):
        ids = torch.tensor([tokens])
        with torch.no_grad():
            tokens.append(int(told.eval()(ids, torch.ones_like(ids), z)[0, -1].argmax()))
        if tokens[-1] in told.end_tokens:
            break
    return tokens[len(prompt) :]


@conditions
@pytest.mark.parametrize("with_z", mostly_slow([True, False], [True]))
def test_greedy_rows_are_what_each_prompt_gives_alone(model: Path, condition: str, with_z: bool) -> None:
    told = moved(model, condition)
    z = Z if with_z else None
    for extra in (0, 4):
        rows = decode(told, PROMPTS, z, extra=extra).tolist()
        for i, prompt in enumerate(PROMPTS):
            alone = naive(told, prompt, None if z is None else z[i : i + 1], 8)
            assert rows[i][: len(alone)] == alone
            assert set(rows[i][len(alone) :]) <= {told.pad_token}


def test_z_decides_what_is_said(model: Path) -> None:
    told = policy(model, init_std=1.0)
    assert not torch.equal(decode(told, PROMPTS, 3 * Z), decode(told, PROMPTS, -3 * Z))


def test_rows_end_and_are_padded(gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = moved(gpt2)
    free = decode(told, PROMPTS, Z)
    end = int(free[0, 2])
    first = {i: row.index(end) for i, row in enumerate(free.tolist()) if end in row}
    assert len(first) < len(PROMPTS), "one row must go on"
    monkeypatch.setattr(ConditionalPolicy, "end_tokens", (end,))
    monkeypatch.setattr(ConditionalPolicy, "pad_token", 19)
    stopped = decode(told, PROMPTS, Z).tolist()
    for i, row in enumerate(stopped):
        stop = first.get(i, 7) + 1
        assert row == free[i, :stop].tolist() + [19] * (8 - stop)
    assert decode(told, [PROMPTS[0]], Z[:1]).shape == (1, first[0] + 1)


def test_the_generator_alone_decides(model: Path) -> None:
    told = moved(model)
    torch.manual_seed(1)
    first = decode(told, PROMPTS, Z, temperature=1.0)
    torch.manual_seed(2)
    untouched = torch.random.get_rng_state()
    assert torch.equal(decode(told, PROMPTS, Z, temperature=1.0), first)
    assert torch.equal(torch.random.get_rng_state(), untouched)
    assert not torch.equal(decode(told, PROMPTS, Z, temperature=1.0, seed=1), first)


def test_a_sampled_row_does_not_depend_on_those_after_it(model: Path) -> None:
    told = moved(model)
    whole = decode(told, PROMPTS, Z, temperature=1.0)
    alone = decode(told, PROMPTS[:1], Z[:1], temperature=1.0)
    assert torch.equal(whole[:1, : alone.shape[1]], alone)


def test_samples_follow_the_models_distribution(gpt2: Path) -> None:
    told = moved(gpt2)
    n, temperature = 4000, 2.0
    prompts = [PROMPTS[0]] * n
    drawn = decode(told, prompts, Z[:1].expand(n, -1), new=1, temperature=temperature)[:, 0]
    with torch.no_grad():
        ids = torch.tensor(PROMPTS[:1])
        expected = (told.eval()(ids, torch.ones_like(ids), Z[:1])[0, -1] / temperature).softmax(0)
    share = torch.bincount(drawn, minlength=len(expected)) / n
    # Five standard errors of a share of 1/2.
    assert (share - expected).abs().max() < 5 * 0.5 / n**0.5
    assert (share > 0).sum() > 3


def test_a_low_temperature_is_greedy(model: Path) -> None:
    told = moved(model)
    assert torch.equal(decode(told, PROMPTS, Z, temperature=1e-6), decode(told, PROMPTS, Z))


def test_dropout_is_off_meanwhile_and_on_afterwards(gpt2: Path) -> None:
    told = policy(gpt2, dropout=0.5)
    shake(told, 0.3)
    assert torch.equal(decode(told.train(), PROMPTS, Z), decode(told.eval(), PROMPTS, Z))
    told.train()
    decode(told, PROMPTS, Z)
    assert told.training
    assert any(m.training for m in told.modules() if isinstance(m, torch.nn.Dropout))


def test_prompts_that_cannot_be_continued_are_refused(gpt2: Path) -> None:
    told = moved(gpt2)
    ids = torch.tensor([[2, 3], [4, 1]])
    with pytest.raises(ValueError, match="padded on the left"):
        generate(told, ids, torch.tensor([[1, 1], [1, 0]]), None, 2, 0.0, torch.Generator())
    decode(told, [PROMPTS[0]], Z[:1], new=LENGTH - 3)
    with pytest.raises(UserError, match=rf"max_new_tokens={LENGTH - 2}: .* {LENGTH + 1} tokens, .* {LENGTH};"):
        decode(told, [PROMPTS[0]], Z[:1], new=LENGTH - 2)
