"""Priors over a person's latent: the standard normal, a bank of others' posteriors, or a mixture fitted from sums."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedalign.contribution import Contribution, State
from fedalign.methods.base import Needs
from fedalign.objectives.latent import gaussian_log_density
from fedalign.rng import Streams
from fedalign.template import Template

BANK = "bank/"
MIXTURE = "mixture/"
_SMALLEST_VARIANCE = 1e-3


@dataclass(frozen=True)
class Components:
    """A mixture of J Gaussians.

    Parameters
    ----------
    ids : int64 Tensor, shape (J,)
        Name the components, so that a client finds its weights again when their number has changed.
    log_weights : Tensor, shape (J,)
        The server's weights; sum to 1 after exponentiation.
    means, log_variances : Tensor, shape (J, d)
    """

    ids: Tensor
    log_weights: Tensor
    means: Tensor
    log_variances: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean of the mixture, shape (d,)."""
        return self.log_weights.exp() @ self.means


@dataclass(frozen=True)
class Posterior:
    """What a person's judgments say of its latent, over all contexts that could be drawn from them.

    Parameters
    ----------
    mean, log_variance : Tensor, shape (d,)
        By the law of total variance over contexts.
    judgments : int
        Training judgments, the component's weight.
    """

    mean: Tensor
    log_variance: Tensor
    judgments: int


class LatentPrior(ABC):
    """Settings of a prior: what clients report of their posteriors, and what the server makes of it."""

    needs: ClassVar[Needs] = Needs.SUM
    silent: ClassVar[bool] = False
    """Whether clients report nothing, whatever their posteriors."""

    def initial(self, dim: int, streams: Streams) -> State:
        """Return the prior's part of the state before the first round."""
        return {}

    @abstractmethod
    def components(self, state: State, person: str) -> Components | None:
        """Return the mixture as ``person`` should see it, or None for the standard normal."""

    def template(self, state: State) -> Template | None:
        """Return what a report holds; None where names depend on who reports."""
        return Template()

    def report(self, state: State, posteriors: Mapping[str, Posterior]) -> dict[str, Tensor]:
        """Return what a client adds to its contribution, by person."""
        return {}

    def update(self, state: State, total: Contribution) -> State:
        """Return the prior's part of the state after a round, from a sum of reports."""
        return {}

    def update_each(self, state: State, replies: Sequence[Contribution]) -> State:
        """Return the prior's part of the state after a round, from single reports."""
        return {}


@dataclass(frozen=True)
class StandardPrior(LatentPrior):
    """N(0, I), as in VPL."""

    silent: ClassVar[bool] = True

    def components(self, state: State, person: str) -> None:
        """Return None."""
        return


@dataclass(frozen=True)
class BankPrior(LatentPrior):
    """Everybody's last posterior is a component, but one's own is left out (FedVPA-GP, Eq. 6).

    The server must see each person's posterior: ``needs`` is ``INDIVIDUAL``.
    """

    needs: ClassVar[Needs] = Needs.INDIVIDUAL

    def components(self, state: State, person: str) -> Components | None:
        """Return all components but the person's own; None while there is no other."""
        own = person_id(person)
        entries = {int(k.removeprefix(BANK)): v for k, v in state.items() if k.startswith(BANK)}
        entries.pop(own, None)
        if not entries:
            return None
        ids = torch.tensor(sorted(entries))
        rows = torch.stack([entries[i] for i in ids.tolist()])
        means, log_variances = rows[:, 1:].chunk(2, 1)
        return Components(ids, torch.log_softmax(rows[:, 0].log(), 0), means, log_variances)

    def template(self, state: State) -> None:
        """Return None: each person's report has a name of its own."""
        return

    def report(self, state: State, posteriors: Mapping[str, Posterior]) -> dict[str, Tensor]:
        """Return each person's posterior under its id: judgments, mean, log variance."""
        return {f"{BANK}{person_id(person)}": _row(posterior) for person, posterior in posteriors.items()}

    def update_each(self, state: State, replies: Sequence[Contribution]) -> State:
        """Return the bank with the reporters' entries replaced."""
        bank = {name: tensor for name, tensor in state.items() if name.startswith(BANK)}
        for reply in replies:
            bank.update({name: t.float() for name, t in reply.tensors.items() if name.startswith(BANK)})
        return bank


@dataclass(frozen=True)
class MixturePrior(LatentPrior):
    """A Gaussian mixture fitted to the posteriors by online federated EM; the server sees sums only.

    The E-step runs on the clients, the M-step on running sufficient statistics (Cappé and Moulines 2009), since a
    round reaches a part of the people only. Components keep equal weights, as FedVPA-GP's clusters keep equal sizes.

    Parameters
    ----------
    components_count : int
    decay : float
        Weight of the past in the running statistics of a round; 0 forgets it.
    spread : float
        Length of the orthogonal means that the components start from.
    """

    components_count: Annotated[int, Field(ge=1)]
    decay: Annotated[float, Field(ge=0, lt=1)]
    spread: Annotated[float, Field(gt=0)]

    def initial(self, dim: int, streams: Streams) -> State:
        """Return random orthogonal means with unit variances, and statistics that weigh nothing."""
        from fedalign.objectives.prototypes import orthogonal_prototypes

        means = orthogonal_prototypes(self.components_count, dim, self.spread, streams.torch("prior"))
        zeros = torch.zeros(self.components_count, dim)
        return {
            MIXTURE + "mean": means,
            MIXTURE + "log_variance": zeros,
            MIXTURE + "n": zeros[:, 0].clone(),
            MIXTURE + "sum": zeros.clone(),
            MIXTURE + "square": zeros.clone(),
        }

    def components(self, state: State, person: str) -> Components | None:
        """Return the fitted mixture; None before the first M-step."""
        if not bool(state[MIXTURE + "n"].sum() > 0):
            return None
        count = self.components_count
        weights = torch.full((count,), 1.0 / count).log()
        return Components(torch.arange(count), weights, state[MIXTURE + "mean"], state[MIXTURE + "log_variance"])

    def responsibilities(self, state: State, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Return p(component | posterior) of a person, shape (K,), with the posterior's variance taken in."""
        spread = torch.logaddexp(state[MIXTURE + "log_variance"], log_variance)
        return torch.softmax(gaussian_log_density(mean, state[MIXTURE + "mean"], spread), 0)

    def template(self, state: State) -> Template:
        """Return the sufficient statistics of every component."""
        return Template({MIXTURE + part: tuple(state[MIXTURE + part].shape) for part in ("n", "sum", "square")})

    def report(self, state: State, posteriors: Mapping[str, Posterior]) -> dict[str, Tensor]:
        """Return responsibilities, and first and second moments weighted by them, summed over people."""
        n = first = second = torch.zeros(())
        for posterior in posteriors.values():
            share = self.responsibilities(state, posterior.mean, posterior.log_variance)
            n = n + share
            first = first + share[:, None] * posterior.mean
            second = second + share[:, None] * (posterior.mean.square() + posterior.log_variance.exp())
        return {MIXTURE + "n": n, MIXTURE + "sum": first, MIXTURE + "square": second}

    def update(self, state: State, total: Contribution) -> State:
        """Return the mixture after an M-step on the running statistics."""
        running = {
            name: (self.decay * state[name].double() + total.tensors[name]).float()
            for name in (MIXTURE + "n", MIXTURE + "sum", MIXTURE + "square")
        }
        # A component that explains nobody stays where it is.
        n = running[MIXTURE + "n"].clamp(min=1e-6)[:, None]
        alive = running[MIXTURE + "n"][:, None] > 1e-3
        mean = running[MIXTURE + "sum"] / n
        variance = (running[MIXTURE + "square"] / n - mean.square()).clamp(min=_SMALLEST_VARIANCE)
        return {
            **running,
            MIXTURE + "mean": torch.where(alive, mean, state[MIXTURE + "mean"]),
            MIXTURE + "log_variance": torch.where(alive, variance.log(), state[MIXTURE + "log_variance"]),
        }


def person_id(person: str) -> int:
    """Return a 63-bit number that stands for a person's name, so that names need not be broadcast."""
    return int.from_bytes(hashlib.blake2b(person.encode(), digest_size=8).digest(), "big") >> 1


def bank_means(state: State, ids: Iterable[int]) -> Tensor:
    """Return the means of a bank's entries, shape (J, d), in the order of ``ids``."""
    rows = torch.stack([state[f"{BANK}{i}"] for i in ids])
    return rows[:, 1:].chunk(2, 1)[0]


def _row(posterior: Posterior) -> Tensor:
    return torch.cat([torch.tensor([float(posterior.judgments)]), posterior.mean, posterior.log_variance])
