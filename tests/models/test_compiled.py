"""Compiled passes: the numbers and gradients of plain ones, at any size, and a clear line where nothing compiles."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedalign.errors import UserError
from fedalign.models.generation import generate
from fedalign.models.lora import trainable_state
from fedalign.models.lora_body import LoraBody
from fedalign.privacy.local import DPSGD
from fedalign.privacy.unit_gradients import unit_gradients
from tests.cases import mostly_slow
from tests.language_models import policy, random_model, shake
from tests.models.test_language_model import padded, valued

TEXTS = [[2, 3, 4, 5], [6, 7, 8, 9, 10, 11], [4, 4]]


@pytest.fixture(params=mostly_slow(["gpt2", "qwen2"], ["gpt2"]))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Give random models of two architectures."""
    return random_model(request.param, tmp_path)


@pytest.fixture(autouse=True)
def forget() -> Any:
    """Forget what was compiled, which otherwise stays for the process."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let PyTorch trace passes and run the traced graphs as they are; return sizes of the graphs it made."""
    made: list[int] = []

    def run(graph: Any, _: Any) -> Any:
        made.append(len(list(graph.graph.nodes)))
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=run))
    return made


def numbers(network: Any, texts: list[list[int]]) -> list[Tensor]:
    """Return logits, values, scores and the gradients of a loss of them all."""
    ids, mask = padded(texts, "left")
    logits, values = network(ids, mask)
    scores = network.scores(ids, mask)
    real = mask[..., None]
    loss = (logits * real).square().sum() + (values * mask).sum() + scores.sum()
    own = [p for p in network.parameters() if p.requires_grad]
    return [logits * real, values * mask, scores, *torch.autograd.grad(loss, own)]


def agree(one: Any, other: Any, texts: list[list[int]]) -> None:
    for a, b in zip(numbers(one, texts), numbers(other, texts), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1.0, float(a.detach().abs().max())))


def test_a_compiled_network_gives_the_numbers_and_gradients_of_a_plain_one(folder: Path, traced: list[int]) -> None:
    plain, quick = valued(folder, move=0.1), valued(folder, move=0.1, compile=True)
    agree(plain, quick, TEXTS)
    graphs = len(traced)
    assert graphs and max(traced) > 20
    agree(plain, quick, [text[:2] for text in TEXTS])
    agree(plain, quick, [*TEXTS, [7, 8, 9]])
    assert len(traced) == graphs, "another size was compiled again"


def test_networks_of_the_same_settings_share_what_was_compiled(tmp_path: Path, traced: list[int]) -> None:
    folder = random_model("gpt2", tmp_path)
    numbers(valued(folder, move=0.1, compile=True), TEXTS)
    graphs = len(traced)
    agree(valued(folder, seed=1, move=0.2), valued(folder, seed=1, move=0.2, compile=True), TEXTS)
    assert len(traced) == graphs


def test_its_state_has_the_names_of_a_plain_one(tmp_path: Path) -> None:
    folder = random_model("gpt2", tmp_path)
    plain, quick = valued(folder), valued(folder, compile=True)
    assert list(trainable_state(plain)) == list(trainable_state(quick))
    assert list(plain.state_dict()) == list(quick.state_dict())


def test_a_compiled_policy_writes_what_a_plain_one_does_and_steps_back_to_the_model(
    folder: Path, traced: list[int]
) -> None:
    plain, quick = policy(folder), policy(folder, compile=True)
    for network in (plain, quick):
        shake(network)
    ids, mask = padded(TEXTS, "left")
    z = torch.ones(3, 2)
    written = [generate(p, ids, mask, z, 6, 1.0, torch.Generator().manual_seed(0)) for p in (plain, quick)]
    assert torch.equal(*written)
    assert not traced, "writing with a cache grows tensors at every token"
    torch.testing.assert_close(quick(ids, mask, z)[:, -1], plain(ids, mask, z)[:, -1])
    torch.testing.assert_close(quick.reference(ids, mask)[:, -1], plain.reference(ids, mask)[:, -1])
    torch.testing.assert_close(quick(ids, mask, z)[:, -1], plain(ids, mask, z)[:, -1])
    assert traced


def test_a_compiled_body_reads_what_a_plain_one_reads(folder: Path, traced: list[int]) -> None:
    rows = torch.tensor([[2.0, 3, 4, -1], [5, 6, -1, -1]])

    def read(compile: bool) -> Tensor:
        torch.manual_seed(0)
        return LoraBody(str(folder), 2, 4.0, 0.0, None, "last", "float32", "cpu", compile).build(4)(rows)  # type: ignore[no-any-return]

    torch.testing.assert_close(read(True), read(False))
    assert traced


@pytest.mark.parametrize("way", mostly_slow(["hooks", "functorch", "ghost"], ["hooks"]))
def test_hooks_refuse_a_compiled_network_and_a_pass_for_each_unit_takes_it(
    tmp_path: Path, way: Any, traced: list[int]
) -> None:
    folder = random_model("gpt2", tmp_path)
    quick, plain = valued(folder, move=0.1, compile=True), valued(folder, move=0.1)
    with pytest.raises(UserError, match="compile=false"):
        unit_gradients(quick, DPSGD("example", 1.0, 1.0, way))
    ids, mask = padded(TEXTS, "right")
    sums = []
    for network in (quick, plain):
        network.policy.requires_grad_(False)

        def losses(chosen: Tensor, network: Any = network) -> Tensor:
            return network(ids[chosen], mask[chosen])[1].sum(1)  # type: ignore[no-any-return]

        sums.append(unit_gradients(network, DPSGD("example", 1.0, 1.0, "loop")).clipped_sum(losses, torch.arange(3)))
    for one, other in zip(*sums, strict=True):
        torch.testing.assert_close(one, other)


def test_where_nothing_compiles_the_setting_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no compiler\nanywhere")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=broken))
    with pytest.raises(UserError, match=r"^model\.compile=true: .* set model\.compile=false") as raised:
        numbers(valued(random_model("gpt2", tmp_path), compile=True), TEXTS)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_what_pytorchs_own_compiler_makes_gives_the_same(folder: Path) -> None:
    agree(valued(folder, move=0.1), valued(folder, move=0.1, compile=True), TEXTS)
