"""FedVPA-GP's orthogonal prototype loss: latents near their prototype, prototypes orthogonal (its Eq. 9)."""

from __future__ import annotations

import torch
from torch import Tensor


def prototype_pull(z: Tensor, prototypes: Tensor, labels: Tensor) -> Tensor:
    """Return the squared distance of each latent from its prototype, as a mean over dimensions.

    Parameters
    ----------
    z : Tensor, shape (N, d)
    prototypes : Tensor, shape (M, d)
    labels : int64 Tensor, shape (N,)

    Returns
    -------
    Tensor, shape (N,)
    """
    return (z - prototypes[labels]).square().mean(-1)


def orthogonality(prototypes: Tensor, scale: float) -> Tensor:
    """Return the squared Frobenius norm of ``P P^T / scale^2 - I``: 0 for orthogonal prototypes of length ``scale``."""
    gram: Tensor = prototypes @ prototypes.T / scale**2
    apart: Tensor = (gram - torch.eye(len(prototypes), dtype=gram.dtype)).square().sum()
    return apart


def orthogonal_prototypes(count: int, dim: int, scale: float, generator: torch.Generator) -> Tensor:
    """Return ``count`` random orthogonal vectors of length ``scale``, shape (count, dim); ``count <= dim``."""
    q, r = torch.linalg.qr(torch.randn(dim, count, generator=generator))
    # The sign of R's diagonal makes the factorisation, and so the draw, unique.
    rows: Tensor = scale * (q * r.diagonal().sign()).T
    return rows
