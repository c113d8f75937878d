"""Gradient steps on a client: optimiser, learning-rate schedule, proximal term, and what persists between rounds.

With local privacy the gradients are DP-SGD's. All that follows, from the proximal term to the optimiser's moments,
depends on the data through them alone and costs no privacy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from fedalign.contribution import State
from fedalign.errors import UserError
from fedalign.methods.base import Memory
from fedalign.privacy.dp_sgd import UnitLosses, private_gradients
from fedalign.privacy.local import KEY, LocalPrivacy
from fedalign.rng import Streams

MOMENTS = "optimizer"
"""Where a client's memory holds the optimiser's state, by parameter."""


@dataclass(frozen=True)
class LocalTraining:
    """Settings of local training; the ``local`` block of a method.

    Parameters
    ----------
    steps : int
        Gradient steps a round.
    optimizer : {"adam", "sgd"}
    lr : float
        Learning rate at the start.
    schedule : {"constant", "cosine", "cosine_periodic"}
        ``cosine`` falls once over all rounds; ``cosine_periodic`` falls to 0 over ``period`` steps, rises over the
        next ``period`` and so on, as PyTorch's CosineAnnealingLR does when it is stepped past its end.
    period : int
        Half period of ``cosine_periodic`` in steps.
    final_lr : float
        Learning rate at the end of ``cosine``, as a fraction of ``lr``.
    optimizer_state : {"persist", "reset"}
        Whether a client keeps the optimiser's moments from round to round.
    proximal_mu : float
        Weight of FedProx's term ``mu/2 * |w - w_global|^2`` (Li et al. 2020); 0 is FedAvg.
    max_grad_norm : float or None
        Gradients are shrunk to this norm; None leaves them.
    """

    steps: Annotated[int, Field(ge=1)]
    optimizer: Literal["adam", "sgd"]
    lr: Annotated[float, Field(gt=0)]
    schedule: Literal["constant", "cosine", "cosine_periodic"]
    period: Annotated[int, Field(ge=1)]
    final_lr: Annotated[float, Field(ge=0, le=1)]
    optimizer_state: Literal["persist", "reset"]
    proximal_mu: Annotated[float, Field(ge=0)]
    max_grad_norm: Annotated[float, Field(gt=0)] | None

    def learning_rate(self, step: int, total_steps: int) -> float:
        """Return the learning rate of global local-step ``step`` (from 0) out of ``total_steps``."""
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "cosine_periodic":
            return 0.5 * self.lr * (1 + math.cos(math.pi * step / self.period))
        floor = self.final_lr * self.lr
        return floor + 0.5 * (self.lr - floor) * (1 + math.cos(math.pi * step / max(1, total_steps)))

    def build_optimizer(self, parameters: Sequence[Tensor]) -> Optimizer:
        """Return a fresh optimiser over ``parameters``."""
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, lr=self.lr, fused=True)
        return PlainSGD(parameters, self.lr)


class Optimizer(Protocol):
    """What local training needs of PyTorch's optimisers.

    Attributes
    ----------
    param_groups : list of dict
        Each has a learning rate, ``lr``.
    state : mutable mapping from parameter to dict
        Its moments.
    """

    param_groups: list[dict[str, Any]]
    state: Any

    def step(self) -> object:
        """Take a step along the gradients."""


class PlainSGD:
    """Steepest descent without momentum, to the last digit as ``torch.optim.SGD`` takes it.

    For a small model, PyTorch's own step costs more to call than to take.

    Parameters
    ----------
    parameters : sequence of Tensor
    lr : float
    """

    def __init__(self, parameters: Sequence[Tensor], lr: float) -> None:
        self._parameters = list(parameters)
        self.param_groups: list[dict[str, Any]] = [{"lr": lr}]
        self.state: MutableMapping[Any, Any] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Take a step along the gradients; parameters without one stay."""
        moved = [parameter for parameter in self._parameters if parameter.grad is not None]
        if moved:
            gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
            torch._foreach_add_(moved, gradients, alpha=-self.param_groups[0]["lr"])


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained and travel, by name; a frozen base is not among them."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def load_parameters(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a state's tensors into the network's parameters of the same names."""
    _assign(trainable(network), state)


def _assign(parameters: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]) -> None:
    if parameters:
        with torch.no_grad():
            torch._foreach_copy_(list(parameters.values()), [state[name] for name in parameters])


def train(
    network: nn.Module,
    state: State,
    loss: Callable[[int], Tensor],
    settings: LocalTraining,
    steps_before: int,
    total_steps: int,
    memory: Memory,
    personal: Sequence[nn.Parameter] = (),
) -> float:
    """Take ``settings.steps`` steps from ``state``; the network holds the result.

    Parameters
    ----------
    network : nn.Module
        Overwritten with ``state`` first.
    loss : callable
        ``loss(step)`` returns the loss of local step 0, 1, ... at the network's present parameters.
    steps_before, total_steps : int
        Steps of the rounds before this one, and of the whole phase; they place the schedule.
    memory : mutable mapping
        Read and written where the optimiser's state persists.
    personal : sequence of nn.Parameter
        Trained along with the network, but no part of the state; their moments start afresh every round.

    Returns
    -------
    float
        Mean loss over the steps.

    Raises
    ------
    FloatingPointError
        If a loss is not finite.
    """
    losses = 0.0

    def gradients(step: int) -> None:
        nonlocal losses
        value = loss(step)
        value.backward()  # type: ignore[no-untyped-call]
        losses += float(value.detach())

    optimizer = _descend(network, state, gradients, settings, steps_before, total_steps, memory, personal)
    if not math.isfinite(losses):
        raise loss_failure(losses)
    if settings.optimizer_state == "persist":
        _remember(optimizer, network, memory)
    return losses / settings.steps


def loss_failure(loss: float) -> FloatingPointError:
    """Return the error of a client whose loss is not finite."""
    return FloatingPointError(f"local loss is {loss}; lower the lr of local training")


def train_privately(
    network: nn.Module,
    state: State,
    units: UnitLosses,
    settings: LocalTraining,
    privacy: LocalPrivacy,
    steps_before: int,
    total_steps: int,
    memory: Memory,
    streams: Streams,
) -> None:
    """Take ``settings.steps`` steps of DP-SGD from ``state``; the network holds the result, which is private.

    Parameters
    ----------
    network : nn.Module
        Overwritten with ``state`` first.
    units : UnitLosses
        What is protected, and its losses at the network's present parameters.
    settings : LocalTraining
    privacy : LocalPrivacy
    steps_before, total_steps, memory
        See :func:`train`.
    streams : Streams
        At the client's place in the round.

    Raises
    ------
    RuntimeError
        If a trained tensor has no part in the losses, or its gradient did not move it.
    FloatingPointError
        If a trained tensor is not finite at the end.
    """
    check_private(settings)
    moved: set[str] = set()
    with private_gradients(network, units, privacy, streams) as writer:

        def gradients(step: int) -> None:
            writer.write(step)
            rate = settings.learning_rate(steps_before + step, total_steps)
            moved.update(name for name, parameter in trainable(network).items() if _moves(parameter, rate))

        optimizer = _descend(network, state, gradients, settings, steps_before, total_steps, memory)
    for name, parameter in trainable(network).items():
        if not bool(parameter.isfinite().all()):
            raise FloatingPointError(f"{name} is not finite after a round; lower the lr of local training")
        if name in moved and torch.equal(parameter, state[name].to(parameter)):
            raise RuntimeError(f"{name} has a gradient, but did not change: the network does not train it")
    if settings.optimizer_state == "persist":
        _remember(optimizer, network, memory)


def check_equal_weight(weight: str) -> None:
    """Refuse ``method.weight`` where clients add noise of their own, unless all count the same.

    Raises
    ------
    UserError
        If a client's weight would tell how much it holds.
    """
    if weight != "uniform":
        raise UserError(f"{KEY}: method.weight={weight} shows how much a client holds; set method.weight=uniform")


def check_private(settings: LocalTraining, key: str = "method.local") -> None:
    """Refuse a setting that DP-SGD has no place for.

    Parameters
    ----------
    settings : LocalTraining
    key : str
        Where they stand in the configuration.

    Raises
    ------
    UserError
        If gradients are to be shrunk once more.
    """
    if settings.max_grad_norm is not None:
        raise UserError(
            f"{key}.max_grad_norm={settings.max_grad_norm}: DP-SGD bounds the gradient of each unit by {KEY}.clip; set "
            f"{key}.max_grad_norm=null"
        )


def _descend(
    network: nn.Module,
    state: State,
    gradients: Callable[[int], None],
    settings: LocalTraining,
    steps_before: int,
    total_steps: int,
    memory: Memory,
    personal: Sequence[nn.Parameter] = (),
) -> Optimizer:
    """Take the steps along what ``gradients(step)`` writes, from ``state``; return the optimiser with its moments."""
    own = trainable(network)
    _assign(own, state)
    start = {name: state[name].to(parameter.device) for name, parameter in own.items()} if settings.proximal_mu else {}
    parameters = [*own.values(), *personal]
    optimizer = settings.build_optimizer(parameters)
    if settings.optimizer_state == "persist":
        _recall(optimizer, network, memory)
    for step in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate(steps_before + step, total_steps)
        for parameter in parameters:
            parameter.grad = None
        gradients(step)
        _shape_gradients(network, start, settings)
        optimizer.step()
    return optimizer


def _moves(parameter: nn.Parameter, rate: float) -> bool:
    """Tell whether a plain step along the gradient is more than rounding."""
    if parameter.grad is None:
        return False
    finest = torch.finfo(parameter.dtype).eps * parameter.detach().abs().max()
    return bool(rate * parameter.grad.abs().max() > finest)


def _shape_gradients(network: nn.Module, start: State, settings: LocalTraining) -> None:
    """Add the gradient of the proximal term, whose centre is ``start``, and bound the norm."""
    if settings.proximal_mu:
        with torch.no_grad():
            for name, parameter in trainable(network).items():
                if parameter.grad is not None:
                    parameter.grad.add_(parameter - start[name], alpha=settings.proximal_mu)
    if settings.max_grad_norm is not None:
        nn.utils.clip_grad_norm_(network.parameters(), settings.max_grad_norm)


def _recall(optimizer: Optimizer, network: nn.Module, memory: Memory) -> None:
    """Put remembered moments into the optimiser, beside their parameters; one without any starts afresh."""
    kept: dict[str, dict[str, Tensor]] = {}
    for place, value in memory.items():
        owner, _, key = place.rpartition("/")
        kept.setdefault(owner, {})[key] = value
    for name, parameter in network.named_parameters():
        if f"{MOMENTS}/{name}" in kept:
            moments = kept[f"{MOMENTS}/{name}"]
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in moments.items()}


def _remember(optimizer: Optimizer, network: nn.Module, memory: Memory) -> None:
    """Write the optimiser's moments into memory, which is the main one: a GPU need not hold those of all clients."""
    for name, parameter in network.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                memory[f"{MOMENTS}/{name}/{key}"] = value.cpu()
