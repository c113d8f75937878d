"""Ghost clipping: norms of units' gradients without the gradients, then one pass over the clipped losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fedalign.errors import UserError
from fedalign.privacy.local import KEY
from fedalign.privacy.opacus_hooks import first_words, hookable, unhook, without_log_handlers
from fedalign.privacy.unit_gradients import Found, Losses, UnitGradients, joint_norms

# Norms by Gram matrices in float32 are less exact than norms of gradients; the rest of the bound is given away.
_MARGIN = 1e-4
_TOLERANCE = 1e-3


class GhostGradients(UnitGradients):
    """Clipped sums whose memory does not grow with the batch, for training whole networks (Li et al. 2022, section 4).

    A unit is one row of a batch, and every layer may read it once only: pairs, whose two responses go through the same
    layers one after the other, and networks that use their embedding as output matrix too are refused. So are users
    of several rows.

    Parameters
    ----------
    network : nn.Module
    clip : float
    """

    def __init__(self, network: nn.Module, clip: float) -> None:
        super().__init__(network, clip)
        self._checked = False
        self._modes = hookable(network)
        with without_log_handlers():
            from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleHooksFastGradientClipping
        try:
            self._hooks: Any = GradSampleHooksFastGradientClipping(network, loss_reduction="sum", max_grad_norm=clip)
        except NotImplementedError as error:
            unhook(network, self._modes)
            raise _refusal(first_words(error)) from error

    def close(self) -> None:
        """Take the hooks off and forget what they kept."""
        self._hooks.cleanup()
        unhook(self.network, self._modes)

    def _sum(self, losses: Losses, chosen: Tensor) -> list[Tensor]:
        try:
            values = self._evaluate(losses, chosen)
        except NotImplementedError as error:
            raise _refusal(first_words(error)) from error
        norms = self._norms(values)
        valid = norms.isfinite()
        if not bool(valid.all()):
            # A factor of 0 does not make NaN disappear; the others start again, with norms of their own.
            return self.clipped_sum(losses, chosen[valid.cpu()])
        factors = (self.bound / (norms * (1 + _MARGIN))).clamp(max=1.0)
        self._hooks.disable_hooks()
        found: Found = torch.autograd.grad(
            (factors.to(values.dtype) * values).sum(), self.parameters, allow_unused=True
        )
        self._hooks.enable_hooks()
        self._require_reached([g is not None for g in found])
        return [g.double() for g in found if g is not None]

    def _norms(self, values: Tensor) -> Tensor:
        """Return each unit's gradient norm, shape (U,), from a first backward pass."""
        expected = None if self._checked else self._example(values[0])
        values.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
        self._require_reached([p.grad is not None for p in self.parameters])
        norms = []
        for name, parameter in self.named.items():
            found = getattr(parameter, "_norm_sample", None)
            if found is None or found.shape != values.shape:
                raise _refusal(f"{name} does not read one row a unit")
            norms.append(found)
            parameter.grad = None
        joint = joint_norms([n[:, None] for n in norms])
        if expected is not None:
            if bool((joint[0] - expected).abs() > _TOLERANCE * (expected + self.bound)):
                raise _refusal("a parameter is used outside its layer")
            self._checked = bool(expected.isfinite())
        return joint

    def _example(self, value: Tensor) -> Tensor:
        """Return one unit's gradient norm by autograd."""
        self._hooks.disable_hooks()
        found: Found = torch.autograd.grad(value, self.parameters, retain_graph=True, allow_unused=True)
        self._hooks.enable_hooks()
        return joint_norms([g[None] for g in found if g is not None])[0]


def _refusal(reason: str) -> UserError:
    return UserError(f"{KEY}.grad_sample=ghost: {reason}; set hooks or loop")
