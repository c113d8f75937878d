"""Copies of a network side by side: each one's outputs and gradients are those it has alone."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from fedalign.models.gpo import GPOModel
from fedalign.models.reward import RewardHeads
from fedalign.models.stacked import Stack, stackable

COPIES = 3


class Scaled(nn.Module):
    """Has a parameter of its own, and allows for dimensions in front of it."""

    stackable: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor[..., None, :]


class Closed(Scaled):
    """Does not say so."""

    stackable = False


def network() -> nn.Sequential:
    layers = (nn.Linear(3, 4), nn.GELU(), nn.LayerNorm(4), nn.SiLU(), Scaled(), nn.Linear(4, 2, bias=False))
    return nn.Sequential(*layers).double()


def gpo() -> nn.Module:
    return GPOModel(width=4, layers=2, heads=2, feedforward=5, embed_depth=2, input_scale="all").build(3, 0).double()


def filled(stack: Stack, alone: nn.Module) -> list[dict[str, Tensor]]:
    """Give every copy parameters of its own, and return them."""
    stack.start(dict(alone.named_parameters()), COPIES)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in stack.parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return [stack.one(place) for place in range(COPIES)]


def check(made: nn.Module, x: Tensor, more: tuple[Any, ...] = ()) -> None:
    """Compare outputs and gradients of a sum over copies with those of each copy alone."""

    def value(output: Any) -> Tensor:
        return torch.stack(list(output), -1) if isinstance(output, tuple) else output

    stack = Stack(made)
    copies = filled(stack, made)
    together = value(stack.network(x, *more))
    together.square().sum().backward()  # type: ignore[no-untyped-call]
    for place, parameters in enumerate(copies):
        made.load_state_dict(parameters)
        made.zero_grad()
        alone = value(made(x[place], *more))
        alone.square().sum().backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(together[place], alone)
        for name, parameter in made.named_parameters():
            gradient = stack.parameters[name].grad
            assert gradient is not None
            torch.testing.assert_close(gradient[place], parameter.grad, msg=name)


@pytest.mark.parametrize("middle", [(), (5,), (2, 5)])
def test_copies_of_layers_do_what_each_does_alone(middle: tuple[int, ...]) -> None:
    made = network()
    x = torch.randn(COPIES, *middle, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    if len(middle) != 1:
        made = nn.Sequential(*(layer for layer in made if not isinstance(layer, Scaled)))
    check(made, x)


def test_copies_of_a_transformer_do_what_each_does_alone() -> None:
    check(gpo(), torch.randn(COPIES, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), (2,))


def test_context_points_that_are_not_there_are_not_looked_at() -> None:
    made = gpo()
    tokens = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    known = torch.tensor([True, True, False, True])
    masked = made(tokens, 4, known)
    torch.testing.assert_close(masked, made(torch.cat([tokens[:2], tokens[3:]]), 3))
    assert (masked[0] - made(tokens, 4)[0]).abs().max() > 1e-6


def test_a_stack_leaves_the_network_alone_and_starts_every_copy_at_the_state() -> None:
    made = network()
    before = {name: parameter.detach().clone() for name, parameter in made.named_parameters()}
    stack = Stack(made)
    filled(stack, made)
    for name, parameter in made.named_parameters():
        assert torch.equal(parameter, before[name])
    stack.start(before, COPIES + 1)
    assert all(torch.equal(stack.one(COPIES)[name], before[name]) for name in before)
    assert stack.parameters.keys() == dict(stack.network.named_parameters()).keys() == before.keys()


def frozen() -> nn.Module:
    made = network()
    next(made.parameters()).requires_grad_(False)
    return made


@pytest.mark.parametrize(
    "made",
    [nn.Bilinear(2, 2, 2), nn.Sequential(Closed()), frozen(), nn.LayerNorm((2, 2)), nn.LayerNorm(2, bias=False)],
    ids=["unknown", "closed", "frozen", "two dimensions", "no shift"],
)
def test_what_cannot_stand_side_by_side_is_refused(made: nn.Module) -> None:
    assert not stackable(made)
    with pytest.raises(TypeError, match="cannot stand side by side"):
        Stack(made)


def test_networks_of_the_package_can_stand_side_by_side() -> None:
    from tests.configs import configured

    assert stackable(gpo())
    reward = configured("method=fedavg_bt").model.build(4, 2)  # type: ignore[attr-defined]
    assert isinstance(reward, RewardHeads)
    assert stackable(reward)
    for change in ("model.aggregation=attention", "model.evidence=true"):
        assert stackable(configured("method=fedvpa", change).model.build(4))  # type: ignore[attr-defined]


class Twice(nn.Module):
    """Uses one layer two times, and another once."""

    stackable: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.shared(torch.tanh(self.shared(x)))))
        return out


def test_layers_step_on_the_way_back_only_where_they_were_used_once() -> None:
    torch.manual_seed(0)
    plain = Twice().double()
    stack = Stack(plain)
    state = {name: parameter.detach().clone() for name, parameter in plain.named_parameters()}
    stack.start(state, COPIES)
    rows = torch.randn(COPIES, 5, 4, dtype=torch.float64)
    stack.begin_step(0.1)
    stack.network(rows).square().sum().backward()
    assert stack.parameters["last.weight"].grad is None
    assert stack.parameters["shared.weight"].grad is not None
    for place in range(COPIES):
        plain.zero_grad()
        plain(rows[place]).square().sum().backward()
        own = stack.one(place)
        for name in ("last.weight", "last.bias"):
            parameter = plain.get_parameter(name)
            assert parameter.grad is not None
            torch.testing.assert_close(own[name], parameter.detach() - 0.1 * parameter.grad)
        torch.testing.assert_close(stack.parameters["shared.weight"].grad[place], plain.shared.weight.grad)
        torch.testing.assert_close(own["shared.weight"], plain.shared.weight.detach())
