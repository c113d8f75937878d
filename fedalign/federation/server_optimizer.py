"""Server optimisers: FedAvg, FedAvgM, FedAdam and FedYogi as steps along the mean client delta."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedalign.contribution import State


class Stepper(ABC):
    """A server optimiser at work: settings plus moments, all in float64."""

    def __init__(self) -> None:
        self.moments: State = {}

    @abstractmethod
    def direction(self, name: str, delta: Tensor) -> Tensor:
        """Return the step for one parameter, shape of ``delta``, and update its moments."""

    def step(self, state: State, delta: State) -> State:
        """Return the state moved along ``delta``; tensors without a delta are passed on as they are."""
        moved = dict(state)
        for name, value in delta.items():
            place = state[name].to(torch.float64, copy=True)
            moved[name] = place.add_(self.direction(name, value.double())).to(state[name].dtype)
        return moved

    def _moment(self, kind: str, name: str, like: Tensor, start: float) -> Tensor:
        return self.moments.get(f"{kind}/{name}", torch.full_like(like, start))


class ServerOptimizerSpec(ABC):
    """Settings of a server optimiser."""

    @abstractmethod
    def build(self) -> Stepper:
        """Return the optimiser with fresh moments."""


class _Momentum(Stepper):
    def __init__(self, lr: float, momentum: float) -> None:
        super().__init__()
        self.lr, self.momentum = lr, momentum

    def direction(self, name: str, delta: Tensor) -> Tensor:
        if not self.momentum:
            return delta if self.lr == 1.0 else self.lr * delta
        velocity = self.momentum * self._moment("velocity", name, delta, 0.0) + delta
        self.moments[f"velocity/{name}"] = velocity
        return self.lr * velocity


class _Adaptive(Stepper):
    def __init__(self, rule: str, lr: float, beta1: float, beta2: float, tau: float) -> None:
        super().__init__()
        self.rule, self.lr, self.beta1, self.beta2, self.tau = rule, lr, beta1, beta2, tau

    def direction(self, name: str, delta: Tensor) -> Tensor:
        first = self.beta1 * self._moment("first", name, delta, 0.0) + (1 - self.beta1) * delta
        second, square = self._moment("second", name, delta, self.tau**2), delta.square()
        if self.rule == "yogi":
            second = second - (1 - self.beta2) * square * torch.sign(second - square)
        else:
            second = self.beta2 * second + (1 - self.beta2) * square
        self.moments[f"first/{name}"], self.moments[f"second/{name}"] = first, second
        return self.lr * first / (second.sqrt() + self.tau)


@dataclass(frozen=True)
class FedAvg(ServerOptimizerSpec):
    """Add ``lr`` times the mean delta (McMahan et al. 2017; ``lr`` 1 is the mean of the client weights)."""

    lr: Annotated[float, Field(gt=0)]

    def build(self) -> Stepper:
        """Return the optimiser; it has no moments."""
        return _Momentum(self.lr, 0.0)


@dataclass(frozen=True)
class FedAvgM(ServerOptimizerSpec):
    """Server momentum (Hsu et al. 2019): ``v = momentum * v + delta``, step ``lr * v``."""

    lr: Annotated[float, Field(gt=0)]
    momentum: Annotated[float, Field(ge=0, lt=1)]

    def build(self) -> Stepper:
        """Return the optimiser at rest."""
        return _Momentum(self.lr, self.momentum)


@dataclass(frozen=True)
class FedAdaptive(ServerOptimizerSpec):
    """FedAdam and FedYogi (Reddi et al. 2021, algorithm 2): second moment starts at ``tau**2``, no bias correction."""

    rule: Literal["adam", "yogi"]
    lr: Annotated[float, Field(gt=0)]
    beta1: Annotated[float, Field(ge=0, lt=1)]
    beta2: Annotated[float, Field(ge=0, lt=1)]
    tau: Annotated[float, Field(gt=0)]

    def build(self) -> Stepper:
        """Return the optimiser with fresh moments."""
        return _Adaptive(self.rule, self.lr, self.beta1, self.beta2, self.tau)
