"""Several copies of one small network side by side: the same layers, with the copies along the first dimension.

A sum over copies of their losses has the gradient of each copy's own loss in its own place, so that one backward pass
serves them all. Unlike under torch.vmap nothing is traced: a layer is one batched product.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WITHOUT_PARAMETERS = (nn.Sequential, nn.ModuleList, nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Identity, nn.Dropout)


class _Affine(torch.autograd.Function):
    """A product with each copy's weights, whose gradients come in the layout of the weights.

    PyTorch's own gradient of a product with a transposed weight is a transposed one, which costs a copy and slow steps.
    Where the layer may, it takes its plain step on the way back, and no gradient is ever written.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, layer: StackedLinear) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.layer = layer
        layer.uses += 1
        if bias is None:
            return torch.bmm(rows, weight.transpose(1, 2))
        return torch.baddbmm(bias.unsqueeze(1), rows, weight.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (gradient,), (rows, weight), layer = gradients, ctx.saved_tensors, ctx.layer
        below = torch.bmm(gradient, weight) if ctx.needs_input_grad[0] else None
        if layer.rate is not None and layer.uses == 1:
            layer.weight.data.baddbmm_(gradient.transpose(1, 2), rows, alpha=-layer.rate)
            if layer.bias is not None:
                layer.bias.data.sub_(gradient.sum(1), alpha=layer.rate)
            return below, None, None, None
        of_bias = gradient.sum(1) if ctx.needs_input_grad[2] else None
        return below, torch.bmm(gradient.transpose(1, 2), rows), of_bias, None


class StackedLinear(nn.Module):
    """A linear layer a copy: weights of shape (copies, out, in), inputs of shape (copies, ..., in).

    Attributes
    ----------
    rate : float or None
        Size of the plain gradient step that the layer takes by itself in a backward pass, if it was used once in the
        forward pass; None takes none, and leaves gradients.
    uses : int
        How often it was used since `Stack.begin_step`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.rate: float | None = None
        self.uses = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the layers' outputs, shape (copies, ..., out)."""
        rows = x.reshape(len(x), -1, x.shape[-1])
        out: Tensor = _Affine.apply(rows, self.weight, self.bias, self)  # type: ignore[no-untyped-call]
        return out.view(*x.shape[:-1], out.shape[-1])


class StackedLayerNorm(nn.Module):
    """A layer norm a copy, over the last dimension: scales and shifts of shape (copies, width)."""

    def __init__(self, weight: Tensor, bias: Tensor, eps: float) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(weight), nn.Parameter(bias), eps

    def forward(self, x: Tensor) -> Tensor:
        """Return what has mean and variance as its copy wants it, shape of ``x``: (copies, ..., width)."""
        rows = F.layer_norm(x, x.shape[-1:], eps=self.eps).reshape(len(x), -1, x.shape[-1])
        return torch.addcmul(self.bias.unsqueeze(1), rows, self.weight.unsqueeze(1)).view(x.shape)


def stackable(network: nn.Module) -> bool:
    """Tell whether copies of a network can stand side by side.

    All of it must be trained, and every module be a linear layer, a layer norm over the last dimension, one without
    parameters of its own, or of a class that says ``stackable = True``: its forward, and its use of parameters of its
    own, allow for further dimensions in front.
    """
    return all(p.requires_grad for p in network.parameters()) and all(map(_known, network.modules()))


class Stack:
    """Copies of a network side by side.

    Parameters
    ----------
    network : nn.Module
        A :func:`stackable` one; it is not changed.

    Attributes
    ----------
    network : nn.Module
        Of the same class, in evaluation mode, so that dropout is the caller's to draw; inputs, outputs and parameters
        have the copies as their first dimension.

    Raises
    ------
    TypeError
        If the network is not stackable.
    """

    def __init__(self, network: nn.Module) -> None:
        if not stackable(network):
            raise TypeError(f"{type(network).__name__}: copies of it cannot stand side by side")
        self.network = _replaced(copy.deepcopy(network)).eval()
        self._owners = {
            name: (self.network.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2])
            for name, _ in self.network.named_parameters()
        }
        self.parameters: dict[str, nn.Parameter] = {}
        self._linear = [module for module in self.network.modules() if isinstance(module, StackedLinear)]

    def begin_step(self, rate: float | None) -> None:
        """Forget gradients; with a rate, let linear layers take plain steps of that size in the next backward pass.

        Those that cannot, and all other parameters, are left with gradients.
        """
        for parameter in self.parameters.values():
            parameter.grad = None
        for layer in self._linear:
            layer.rate, layer.uses = rate, 0

    def start(self, state: Mapping[str, Tensor], copies: int) -> None:
        """Let ``copies`` copies begin at the tensors of a state, each of them of its own."""
        for name, (owner, key) in self._owners.items():
            parameter, shape = self.parameters.get(name), (copies, *state[name].shape)
            if parameter is None or parameter.shape != shape:
                parameter = nn.Parameter(torch.empty(shape, dtype=state[name].dtype, device=state[name].device))
                self.parameters[name] = parameter
                setattr(owner, key, parameter)
            parameter.grad = None
            with torch.no_grad():
                parameter.copy_(state[name])

    def one(self, place: int) -> dict[str, Tensor]:
        """Return the parameters of one copy, by name; they are not copied."""
        return {name: parameter.detach()[place] for name, parameter in self.parameters.items()}


def _known(module: nn.Module) -> bool:
    if isinstance(module, nn.LayerNorm):
        return len(module.normalized_shape) == 1 and len(list(module.parameters())) == 2
    kinds = (nn.Linear, *_WITHOUT_PARAMETERS)
    return type(module) in kinds or bool(getattr(module, "stackable", False))


def _replaced(module: nn.Module) -> nn.Module:
    """Return the module with its layers, at any depth, turned into those of many copies."""
    if isinstance(module, nn.Linear):
        return StackedLinear(**{name: value.detach() for name, value in module.named_parameters()})
    if isinstance(module, nn.LayerNorm):
        return StackedLayerNorm(module.weight.detach(), module.bias.detach(), module.eps)
    for name, child in module.named_children():
        setattr(module, name, _replaced(child))
    return module
