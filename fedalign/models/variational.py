"""Variational preference model: a posterior over a person's latent from a few judgments, and rewards given it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedalign.errors import UserError
from fedalign.models.base import ModelSpec
from fedalign.models.body import Body, BodySpec

_INITIAL_GAIN = 4.0


@dataclass(frozen=True)
class VariationalSpec(ModelSpec):
    """Settings of the variational preference model (VPL, Poddar et al. 2024; FedVPA-GP).

    Parameters
    ----------
    body : BodySpec
        Reads an encoded response.
    latent : int
        Dimension d of the latent.
    width : int
        Hidden width of the set encoder and of the heads.
    aggregation : {"mean", "attention"}
        How the codes of a context's pairs become one: their mean, or single-head self-attention and then the mean.
    head : {"reward", "selector"}
        ``reward`` scores one response at a time (Bradley-Terry); ``selector`` reads both responses together.
    decoder : {"bilinear", "mlp", "additive"}
        How the latent enters: ``bilinear`` adds ``<u(h), z> / sqrt(d)`` to a reward without latent, so that z = 0 is
        the plain model; ``mlp`` reads response and latent together; ``additive`` adds a function of the latent alone
        to the logit (FedVPA-GP, Eq. 11).
    base_dropout : float
        Probability that a training step leaves out the part of a pair's logit that does not see the latent.
    max_log_variance : float or None
        Upper bound of the posterior's log variance; None leaves it free.
    evidence : bool
        Whether the posterior mean starts from the decoder's own taste features of the judged pairs, which is where
        exact inference in the bilinear model starts from. Without it the set encoder must find out by itself what
        the decoder's features are.
    """

    body: BodySpec
    latent: Annotated[int, Field(ge=1)]
    width: Annotated[int, Field(ge=1)]
    aggregation: Literal["mean", "attention"]
    head: Literal["reward", "selector"]
    decoder: Literal["bilinear", "mlp", "additive"]
    base_dropout: Annotated[float, Field(ge=0, lt=1)]
    max_log_variance: float | None
    evidence: bool

    def __post_init__(self) -> None:
        """Check that there is a taste for the evidence to speak of."""
        if self.evidence and (self.decoder != "bilinear" or self.head != "reward"):
            raise UserError(
                f"model.evidence=true needs model.decoder=bilinear and model.head=reward, here {self.decoder} and "
                f"{self.head}; change them or set model.evidence=false"
            )

    def build(self, features: int) -> VariationalReward:
        """Return a fresh network for encoder vectors of length ``features``."""
        return VariationalReward(features, self)


class VariationalReward(nn.Module):
    """A body that reads responses, a set encoder that reads judgments, and a decoder that reads latents."""

    stackable: ClassVar[bool] = True

    def __init__(self, features: int, spec: VariationalSpec) -> None:
        super().__init__()
        self.spec = spec
        self.body: Body = spec.body.build(features)
        self.encoder = SetEncoder(self.body.dim, spec)
        inputs = self.body.dim * (2 if spec.head == "selector" else 1)
        self.base = _perceptron(inputs, spec.width, 1)
        # A head per decoder, so that a network carries no weights that it does not use.
        if spec.decoder == "bilinear":
            self.taste = _perceptron(inputs, spec.width, spec.latent)
        elif spec.decoder == "mlp":
            self.joint = _perceptron(inputs + spec.latent, spec.width, 1)
        else:
            self.shift = nn.Linear(spec.latent, 1)
        if spec.evidence:
            self.gain = nn.Parameter(torch.tensor(_INITIAL_GAIN))

    def posterior(
        self, first: Tensor, second: Tensor, preferred: Tensor, known: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of q(z | context).

        Parameters
        ----------
        first, second : float Tensor, shape (..., E, C, features)
            Encoded responses of C context pairs for each of E episodes.
        preferred : float Tensor, shape (..., E, C)
            1 if the first response was preferred, 0 if the second, 1/2 for a tie.
        known : bool Tensor, shape (..., E, C), or None
            Which pairs are there, at least one, where some episodes have fewer than others; None stands for all.

        Returns
        -------
        (Tensor, Tensor), each of shape (..., E, d)
            They do not depend on the order of the pairs, nor on which response of a pair comes first.
        """
        left, right, sign = self.body(first), self.body(second), 2 * preferred - 1
        mean, log_variance = self.encoder(left, right, sign, known)
        if self.spec.evidence:
            # What the judgments say of the taste itself: the first step of exact inference in a bilinear model.
            said = sign[..., None] * (self.taste(left) - self.taste(right))
            mean = mean + self.gain[..., None, None] * _mean(said, known)
        if self.spec.max_log_variance is not None:
            log_variance = log_variance.clamp(max=self.spec.max_log_variance)
        return mean, log_variance

    def logits(self, first: Tensor, second: Tensor, z: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return the log odds that the first response is preferred.

        Parameters
        ----------
        first, second : float Tensor, shape (..., E, T, features)
        z : float Tensor, shape (..., E, d)
        keep : float Tensor, shape (..., E, T), or None
            Factors of the part without latent: 0 leaves it out. None is 1 everywhere.

        Returns
        -------
        Tensor, shape (..., E, T)
        """
        first, second = self.body(first), self.body(second)
        if self.spec.head == "selector":
            pair = torch.cat([first, second], -1)
            plain, taste = self._plain(pair), self._taste(pair, z)
        else:
            plain = self._plain(first) - self._plain(second)
            taste = self._taste(first, z) - self._taste(second, z)
        if self.spec.decoder == "additive":
            taste = taste + self.shift(z)
        return (plain if keep is None else plain * keep) + taste

    def odds(self, first: Tensor, second: Tensor, z: Tensor) -> Tensor:
        """Return :meth:`logits` without what depends on the order of the two responses, shape (E, T).

        A selector may lean to whatever stands first; the mean over both orders cannot. Under ``additive`` the latent
        has no other way to act, and drops out.
        """
        if self.spec.head == "reward" and self.spec.decoder != "additive":
            return self.logits(first, second, z)
        return 0.5 * (self.logits(first, second, z) - self.logits(second, first, z))

    def _plain(self, hidden: Tensor) -> Tensor:
        return self.base(hidden).squeeze(-1)  # type: ignore[no-any-return]

    def _taste(self, hidden: Tensor, z: Tensor) -> Tensor:
        """Return the part of the score that the latent decides, shape (E, T)."""
        wide = z.unsqueeze(-2)
        if self.spec.decoder == "bilinear":
            return (self.taste(hidden) * wide).sum(-1) / math.sqrt(self.spec.latent)  # type: ignore[no-any-return]
        if self.spec.decoder == "mlp":
            joint = torch.cat([hidden, wide.expand(*hidden.shape[:-1], -1)], -1)
            return self.joint(joint).squeeze(-1)  # type: ignore[no-any-return]
        return hidden.new_zeros(hidden.shape[:-1])


class SetEncoder(nn.Module):
    """Judged pairs to a Gaussian: a code for each pair, combined over the context."""

    stackable: ClassVar[bool] = True

    def __init__(self, dim: int, spec: VariationalSpec) -> None:
        super().__init__()
        self.aggregation = spec.aggregation
        self.pair = nn.Sequential(_perceptron(2 * dim + 1, spec.width, spec.width), nn.GELU())
        if spec.aggregation == "attention":
            self.query = nn.Linear(spec.width, spec.width)
            self.key = nn.Linear(spec.width, spec.width)
        self.mean = nn.Linear(spec.width, spec.latent)
        self.log_variance = nn.Linear(spec.width, spec.latent)

    def forward(
        self, first: Tensor, second: Tensor, sign: Tensor, known: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return mean and log variance, shape (..., E, d), from hidden vectors (..., E, C, dim) and signs (..., E, C).

        Where ``known``, shape (..., E, C), is not None, pairs at which it is false are taken for nothing.
        """
        sign = sign.unsqueeze(-1)
        # Signed difference, midpoint and decidedness: what a judgment says, the same whichever response came first.
        codes = self.pair(torch.cat([sign * (first - second), (first + second) / 2, sign.abs()], -1))
        if self.aggregation == "attention":
            scores = self.query(codes) @ self.key(codes).transpose(-1, -2) / math.sqrt(codes.shape[-1])
            if known is not None:
                scores = scores.masked_fill(~known.unsqueeze(-2), -math.inf)
            codes = codes + torch.softmax(scores, -1) @ codes
        pooled = _mean(codes, known)
        return self.mean(pooled), self.log_variance(pooled)


def _mean(rows: Tensor, known: Tensor | None) -> Tensor:
    """Return the mean over the last dimension but one, shape (..., width), of the rows that are there."""
    if known is None:
        return rows.mean(-2)
    there: Tensor = known.unsqueeze(-1)
    return torch.where(there, rows, 0.0).sum(-2) / there.sum(-2)


def _perceptron(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, outputs))
