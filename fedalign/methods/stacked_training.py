"""Gradient steps of many clients side by side: what :mod:`fedalign.methods.local_training` does for one of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fedalign.contribution import State
from fedalign.methods.base import Memory
from fedalign.methods.local_training import MOMENTS, LocalTraining, loss_failure
from fedalign.models.stacked import Stack

_STEPS = "step"
"""What Adam calls the number of its steps: a number whatever the shape of the parameter."""


@dataclass(frozen=True)
class StackedOutcome:
    """What training left of several clients.

    Parameters
    ----------
    losses : list of float
        Each client's mean loss over the steps.
    failures : mapping from int to Exception
        Places of clients whose loss was not finite, which are not to be used.
    """

    losses: list[float]
    failures: Mapping[int, Exception] = field(default_factory=dict)


def train_stacked(
    stack: Stack,
    state: State,
    losses: Callable[[int], Tensor],
    settings: LocalTraining,
    steps_before: int,
    total_steps: int,
    memories: Sequence[Memory],
    personal: Sequence[nn.Parameter] = (),
) -> StackedOutcome:
    """Take ``settings.steps`` steps of every client from ``state``; the stack holds the results.

    Each client ends where :func:`fedalign.methods.local_training.train` would have left it, to rounding; also where
    others' losses are not finite.

    Parameters
    ----------
    stack : Stack
        Overwritten with ``state`` first, a copy for each of ``memories``.
    losses : callable
        ``losses(step)`` returns the clients' losses of local step 0, 1, ... at the stack's present parameters, shape
        (clients,). One must depend on its own client's copy alone.
    settings, steps_before, total_steps
        As in ``train``.
    memories : sequence of mutable mapping
        The clients'; read, and written where the optimiser's state persists. Those of clients that fail are left.
    personal : sequence of nn.Parameter
        Trained along with the copies, each in one client's loss alone.
    """
    stack.start(state, len(memories))
    optimizer = _StackedOptimizer(stack, settings, memories, personal)
    sums = torch.zeros(len(memories), dtype=torch.float64)
    plain = settings.optimizer == "sgd" and not settings.proximal_mu and settings.max_grad_norm is None
    for step in range(settings.steps):
        rate = settings.learning_rate(steps_before + step, total_steps)
        stack.begin_step(rate if plain else None)
        for parameter in personal:
            parameter.grad = None
        values = losses(step)
        values.sum().backward()  # type: ignore[no-untyped-call]
        sums += values.detach().cpu()
        _shape_gradients(stack, state, settings)
        optimizer.step(rate)
    stack.begin_step(None)
    failures = {i: loss_failure(value) for i, value in enumerate(sums.tolist()) if not math.isfinite(value)}
    if settings.optimizer_state == "persist":
        optimizer.remember([place for place in range(len(memories)) if place not in failures])
    return StackedOutcome([value / settings.steps for value in sums.tolist()], failures)


class _StackedOptimizer:
    """The optimiser of one client, at work on all; moments go to and from the clients' memories.

    Where clients have taken different numbers of steps, each client's part of a tensor is a tensor to the optimiser:
    Adam's correction of its moments goes by that number.
    """

    def __init__(
        self, stack: Stack, settings: LocalTraining, memories: Sequence[Memory], personal: Sequence[nn.Parameter]
    ) -> None:
        self._stack, self._memories, self._personal = stack, memories, personal
        kept = self._recalled() if settings.optimizer_state == "persist" else {}
        self._apart = any(len({float(step) for step in moments.get(_STEPS, [])}) > 1 for moments in kept.values())
        self._parts: dict[str, list[Tensor]] = {
            name: list(parameter.detach().unbind()) if self._apart else [parameter]
            for name, parameter in stack.parameters.items()
        }
        self._optimizer = settings.build_optimizer([*itertools.chain(*self._parts.values()), *personal])
        for name, moments in kept.items():
            self._put(name, moments)

    def step(self, rate: float) -> None:
        """Take a step along the gradients; where there are none, layers have taken theirs on the way back."""
        if all(parameter.grad is None for parameter in [*self._stack.parameters.values(), *self._personal]):
            return
        if self._apart:
            for name, parameter in self._stack.parameters.items():
                for place, part in enumerate(self._parts[name]):
                    part.grad = None if parameter.grad is None else parameter.grad[place]
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()

    def remember(self, places: Sequence[int]) -> None:
        """Write the moments of the clients at ``places`` into their memories."""
        for name, parts in self._parts.items():
            for number, part in enumerate(parts):
                for key, value in self._optimizer.state.get(part, {}).items():
                    if isinstance(value, Tensor):
                        self._write(f"{MOMENTS}/{name}/{key}", value, [number] if self._apart else None, places)

    def _write(self, key: str, value: Tensor, only: Sequence[int] | None, places: Sequence[int]) -> None:
        """Write one moment, of one client or of all; copies, since a part would keep the whole alive."""
        for place in places:
            if only is None:
                self._memories[place][key] = (value if key.endswith(f"/{_STEPS}") else value[place]).clone()
            elif place in only:
                self._memories[place][key] = value.clone()

    def _recalled(self) -> dict[str, dict[str, list[Tensor]]]:
        """Return every client's moments by parameter and key; zeros for one that has none where another has."""
        found: dict[str, dict[str, list[Tensor]]] = {}
        for name in self._stack.parameters:
            stem = f"{MOMENTS}/{name}/"
            keys = sorted({k.removeprefix(stem) for memory in self._memories for k in memory if k.startswith(stem)})
            moments: dict[str, list[Tensor]] = {}
            for key in keys:
                like = next(memory[stem + key] for memory in self._memories if stem + key in memory)
                moments[key] = [m[stem + key] if stem + key in m else torch.zeros_like(like) for m in self._memories]
            if moments:
                found[name] = moments
        return found

    def _put(self, name: str, moments: dict[str, list[Tensor]]) -> None:
        parts = self._parts[name]
        for number, part in enumerate(parts):
            self._optimizer.state[part] = {
                key: values[number].clone() if self._apart else _joined(key, values) for key, values in moments.items()
            }


def _joined(key: str, values: Sequence[Tensor]) -> Tensor:
    """Return one moment of all clients; numbers of steps are equal, and stay one number."""
    return values[0].clone() if key == _STEPS else torch.stack(list(values))


def _shape_gradients(stack: Stack, state: State, settings: LocalTraining) -> None:
    """Add the proximal term's gradient and bound each client's norm."""
    if not settings.proximal_mu and settings.max_grad_norm is None:
        return
    parameters = {name: p for name, p in stack.parameters.items() if p.grad is not None}
    with torch.no_grad():
        if settings.proximal_mu:
            for name, parameter in parameters.items():
                assert parameter.grad is not None
                parameter.grad.add_(parameter - state[name], alpha=settings.proximal_mu)
        if settings.max_grad_norm is not None:
            _clip([p.grad for p in parameters.values() if p.grad is not None], settings.max_grad_norm)


def _clip(gradients: Sequence[Tensor], bound: float) -> None:
    """Shrink each client's gradients, shapes (clients, ...), as torch.nn.utils.clip_grad_norm_ does it for one."""
    norms = torch.stack([torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1) for g in gradients])
    factors = (bound / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))
