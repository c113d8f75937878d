"""Sums of clipped gradients of units: a pass for each unit, or all in one pass through Opacus."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedalign.errors import UserError
from fedalign.privacy.local import DPSGD, KEY
from fedalign.privacy.opacus_hooks import first_words, hookable, unhook, without_log_handlers

Losses = Callable[[Tensor], Tensor]
"""From the numbers of units, shape (U,), to their losses, shape (U,)."""

Found = Sequence[Tensor | None]
"""Gradients by parameter; None where the loss does not depend on it."""

_TOLERANCE = 1e-3
_NEGLIGIBLE = 1e-6


class UnitGradients(ABC):
    """Finds the gradient of each unit over all trained parameters jointly, and adds up what clipping leaves of it.

    Parameters
    ----------
    network : nn.Module
        In the state that it is trained in; its parameters that require gradients count.
    clip : float
        L2 bound of a unit's gradient.
    """

    def __init__(self, network: nn.Module, clip: float) -> None:
        self.network, self.bound = network, clip
        self.named = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.parameters = list(self.named.values())

    def clipped_sum(self, losses: Losses, chosen: Tensor) -> list[Tensor]:
        """Return the sum of the chosen units' clipped gradients, a float64 tensor for each parameter.

        A unit whose gradient is not finite adds nothing. How many there were is not told: it depends on the data.

        Parameters
        ----------
        losses : callable
            The loss of a unit depends on the data of that unit alone: no mean over the batch, no normalisation by it.
        chosen : int64 Tensor, shape (U,)
            May be empty.

        Raises
        ------
        RuntimeError
            If a trained parameter has no part in any loss.
        UserError
            If this way of finding gradients does not serve the network.
        """
        if not len(chosen):
            return self._nothing()
        with warnings.catch_warnings():
            # Hooks on a layer that reads data find no gradient of its inputs, and need none.
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            return self._sum(losses, chosen)

    def close(self) -> None:  # noqa: B027 - a loop leaves nothing behind
        """Leave the network as it was."""

    @abstractmethod
    def _sum(self, losses: Losses, chosen: Tensor) -> list[Tensor]: ...

    def _nothing(self) -> list[Tensor]:
        return [torch.zeros_like(p, dtype=torch.float64) for p in self.parameters]

    def _evaluate(self, losses: Losses, chosen: Tensor) -> Tensor:
        values = losses(chosen)
        if values.shape != chosen.shape:
            raise ValueError(f"losses of shape {tuple(values.shape)} for {len(chosen)} units; there must be one a unit")
        return values

    def _require_reached(self, reached: Sequence[bool]) -> None:
        """Refuse a parameter that no loss depends on: an adapter that is not part of what the network computes."""
        missing = [name for name, there in zip(self.named, reached, strict=True) if not there]
        if missing:
            raise RuntimeError(f"trained, but no unit's loss depends on it: {', '.join(missing)}")


class LoopedGradients(UnitGradients):
    """One forward and one backward pass for each unit: exact for every network, and no unit can reach another's."""

    def _sum(self, losses: Losses, chosen: Tensor) -> list[Tensor]:
        total, reached = self._nothing(), [False] * len(self.parameters)
        for unit in torch.split(chosen, 1):
            (value,) = self._evaluate(losses, unit)
            found: Found = torch.autograd.grad(value, self.parameters, allow_unused=True)
            reached = [before or g is not None for before, g in zip(reached, found, strict=True)]
            present = [(place, g.detach()[None]) for place, g in enumerate(found) if g is not None]
            for (place, _), part in zip(present, clip_units([g for _, g in present], self.bound), strict=True):
                total[place] += part
        self._require_reached(reached)
        return total


class HookedGradients(UnitGradients):
    """All units in one backward pass, by Opacus' hooks on the layers (``GradSampleHooks``, Opacus 1.6).

    The first dimension of what a layer reads must go through the units in their order, the same number of rows for
    each; rows are added up by unit. Of the first batch, one unit is checked against autograd on that unit alone: hooks
    see neither parameters that are used outside their layer, nor rows in another order, nor what units share.

    Parameters
    ----------
    network : nn.Module
    clip : float
    functorch : bool
        Whether gradients of all layers come from ``torch.func``, instead of Opacus' formulas where it has them.
    """

    def __init__(self, network: nn.Module, clip: float, functorch: bool) -> None:
        super().__init__(network, clip)
        self._name = "functorch" if functorch else "hooks"
        self._checked = False
        self._modes = hookable(network)
        with without_log_handlers():
            from opacus.grad_sample import GradSampleHooks
        try:
            self._hooks: Any = GradSampleHooks(network, loss_reduction="sum", force_functorch=functorch)
        except NotImplementedError as error:
            unhook(network, self._modes)
            raise UserError(f"{KEY}.grad_sample={self._name}: {first_words(error)}; set loop") from error

    def close(self) -> None:
        """Take the hooks off and forget what they kept."""
        self._hooks.cleanup()
        unhook(self.network, self._modes)

    def _sum(self, losses: Losses, chosen: Tensor) -> list[Tensor]:
        values = self._evaluate(losses, chosen)
        example = None if self._checked else self._example(losses, chosen[:1], values[0])
        values.sum().backward()  # type: ignore[no-untyped-call]
        self._require_reached([p.grad is not None for p in self.parameters])
        gradients = [self._by_unit(name, p, len(chosen)) for name, p in self.named.items()]
        for parameter in self.parameters:
            parameter.grad, parameter.grad_sample = None, None  # type: ignore[attr-defined]
        if example is not None:
            self._check(example, [g[0] for g in gradients])
        return clip_units(gradients, self.bound)

    def _example(self, losses: Losses, unit: Tensor, value: Tensor) -> list[Tensor]:
        """Return the gradient of one unit by autograd, while hooks look away; ``value`` is its loss in the batch."""
        self._hooks.disable_hooks()
        source = self._alone(losses, unit, value)
        found: Found = torch.autograd.grad(source, self.parameters, retain_graph=True, allow_unused=True)
        self._hooks.enable_hooks()
        return [torch.zeros_like(p) if g is None else g for g, p in zip(found, self.parameters, strict=True)]

    def _alone(self, losses: Losses, unit: Tensor, value: Tensor) -> Tensor:
        """Return a unit's loss from a pass over it alone, which also finds out losses that other units have a part in.

        Where the pass draws, as dropout does, only the batch's own graph has the same draws, and where weights have
        less than 32 bits only that rounds alike; a way back through it costs as much as all units'.
        """
        if any(torch.finfo(p.dtype).bits < 32 for p in self.network.parameters() if p.is_floating_point()):
            return value
        with torch.random.fork_rng():
            before = _random_states(value.device)
            (alone,) = self._evaluate(losses, unit)
            drew = any(not torch.equal(a, b) for a, b in zip(before, _random_states(value.device), strict=True))
        return value if drew else alone

    def _by_unit(self, name: str, parameter: nn.Parameter, units: int) -> Tensor:
        """Return a parameter's gradients by unit, shape (units, ...), from those by row."""
        rows = getattr(parameter, "grad_sample", None)
        if not isinstance(rows, Tensor) or len(rows) % units:
            raise self._refusal(name)
        return rows.reshape(units, -1, *parameter.shape).sum(1)

    def _check(self, expected: Sequence[Tensor], found: Sequence[Tensor]) -> None:
        off = joint_norms([(a - b)[None] for a, b in zip(expected, found, strict=True)])
        size = joint_norms([g[None] for g in expected])
        if bool(off > _TOLERANCE * size + _NEGLIGIBLE * min(1.0, self.bound)):
            raise self._refusal("some layer")
        # A unit that is not finite tells nothing.
        self._checked = bool(off.isfinite())

    def _refusal(self, where: str) -> UserError:
        return UserError(
            f"{KEY}.grad_sample={self._name} does not give the gradients of {where}: it is used outside its layer, "
            "reads something else than rows of units, or a unit's loss depends on other units; set loop"
        )


def unit_gradients(network: nn.Module, settings: DPSGD) -> UnitGradients:
    """Return what finds gradients for ``network`` as the settings say; it must be closed."""
    if settings.grad_sample == "loop":
        return LoopedGradients(network, settings.clip)
    if settings.grad_sample == "ghost":
        from fedalign.privacy.ghost import GhostGradients

        return GhostGradients(network, settings.clip)
    return HookedGradients(network, settings.clip, functorch=settings.grad_sample == "functorch")


def joint_norms(gradients: Sequence[Tensor]) -> Tensor:
    """Return each unit's L2 norm over all tensors, float64, shape (U,); every tensor has shape (U, ...)."""
    norms = [torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1, dtype=torch.float64) for g in gradients]
    joint: Tensor = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    return joint


def clip_units(gradients: Sequence[Tensor], bound: float) -> list[Tensor]:
    """Return the sum over units of gradients that are shrunk to a joint norm of at most ``bound``, in float64.

    Parameters
    ----------
    gradients : sequence of Tensor, shape (U, ...)
        By parameter. Units with a NaN or an infinite entry are left out.
    bound : float
    """
    norms = joint_norms(gradients)
    valid = norms.isfinite()
    factors = (bound / norms[valid]).clamp(max=1.0)
    return [torch.tensordot(factors, g[valid].double(), 1) for g in gradients]


def _random_states(device: torch.device) -> list[Tensor]:
    """Return the states of PyTorch's generators that a pass on a device may draw from."""
    states = [torch.get_rng_state()]
    return states if device.type != "cuda" else [*states, torch.cuda.get_rng_state(device)]
