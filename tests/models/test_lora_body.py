"""A transformer as the body of a reward model: rows of ids in, the states of the last or of all tokens out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedalign.build import build
from fedalign.errors import UserError
from fedalign.models.body import Body, BodySpec
from fedalign.models.lora import trainable_state
from tests.language_models import LENGTH, shake

ROWS = torch.tensor([[2.0, 3, 4, -1, -1, -1], [6, 7, 8, 9, 10, -1], [5, -1, -1, -1, -1, -1]])


def spec(folder: Path, **changes: Any) -> BodySpec:
    node = {
        "_target_": "fedalign.models.lora_body.LoraBody",
        "model": str(folder),
        "rank": 4,
        "alpha": 8.0,
        "dropout": 0.0,
        "target_modules": None,
        "pooling": "last",
        "dtype": "float32",
        "device": "cpu",
        "compile": False,
    }
    return build({**node, **changes}, BodySpec, "model.body")


def body(folder: Path, features: int = 6, **changes: Any) -> Body:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return spec(folder, **changes).build(features)


def states(folder: Path, row: torch.Tensor) -> torch.Tensor:
    """The oracle: one text alone, as transformers computes it, shape (tokens, width)."""
    from transformers import AutoModel

    ids = row[row >= 0].long()[None]
    with torch.no_grad():
        found: torch.Tensor = AutoModel.from_pretrained(folder).eval()(input_ids=ids).last_hidden_state[0]
    return found


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_fresh_body_gives_the_pretrained_states_of_each_text_alone(model: Path, pooling: str) -> None:
    fresh = body(model, pooling=pooling)
    with torch.no_grad():
        found = fresh(ROWS)
    assert found.shape == (3, fresh.dim)
    assert found.dtype == torch.float32
    for row, vector in zip(ROWS, found, strict=True):
        hidden = states(model, row)
        expected = hidden[-1] if pooling == "last" else hidden.mean(0)
        torch.testing.assert_close(vector, expected, atol=1e-4, rtol=1e-4)


def test_leading_dimensions_are_kept(gpt2: Path) -> None:
    reader = body(gpt2)
    with torch.no_grad():
        flat = reader(ROWS)
        torch.testing.assert_close(reader(ROWS[None].expand(2, 3, 6))[1], flat, atol=1e-5, rtol=1e-5)


def test_only_the_adapter_learns_to_tell_texts_apart(model: Path) -> None:
    reader = body(model)
    weight = torch.randn(reader.dim, generator=torch.Generator().manual_seed(1))

    def margin() -> torch.Tensor:
        reward = reader(ROWS) @ weight
        return reward[0] - reward[1]

    frozen = {n: p.clone() for n, p in reader.named_parameters() if not p.requires_grad}
    assert {n for n, p in reader.named_parameters() if p.requires_grad} == set(trainable_state(reader))
    optimizer = torch.optim.Adam([p for p in reader.parameters() if p.requires_grad], lr=1e-2)
    before = float(margin().detach())
    for _ in range(10):
        optimizer.zero_grad()
        (-torch.nn.functional.logsigmoid(margin())).backward()
        optimizer.step()
    assert float(margin().detach()) > before + 0.1
    assert all(torch.equal(p, frozen[n]) for n, p in reader.named_parameters() if n in frozen)


def test_two_bodies_on_one_base_are_apart(model: Path) -> None:
    first, second = body(model), body(model)
    with torch.no_grad():
        before = second(ROWS)
        shake(first)
        assert torch.equal(second(ROWS), before)
        assert not torch.equal(first(ROWS), before)


def test_rows_longer_than_the_model_reads_are_refused_at_once(gpt2: Path) -> None:
    body(gpt2, LENGTH)
    with pytest.raises(UserError, match=rf"encoder\.max_length={LENGTH + 1}: .* reads {LENGTH} tokens"):
        body(gpt2, LENGTH + 1)


@pytest.mark.parametrize(
    "rows",
    [torch.full((2, 6), 0.25), torch.full((2, 6), 999.0), torch.full((2, 6), -1.0)],
    ids=["vectors", "another model's ids", "no token"],
)
def test_what_is_no_row_of_ids_is_refused(gpt2: Path, rows: torch.Tensor) -> None:
    with pytest.raises(UserError, match="encoder=tokens"):
        body(gpt2)(rows)


@pytest.mark.parametrize("change", [{"rank": 0}, {"dropout": 1.0}, {"pooling": "first"}, {"alpha": 0}])
def test_settings_out_of_range_are_refused(gpt2: Path, change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"model\.body\.{next(iter(change))}="):
        spec(gpt2, **change)
