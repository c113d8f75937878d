"""Which mixture of type policies leaves no type far behind: min-max regret (MMRA) and max-min reward."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linprog, nnls
from torch import Tensor

_SLACK = 1e-9
"""What a mixture may fall short of the best value, relative to the size of the matrix, to count as optimal."""


def regret_matrix(rewards: Tensor, weights: Tensor, normalise: bool) -> Tensor:
    """Return what each type loses under each type's policy (MMRA; Chidambaram et al., arXiv 2405.15065).

    Parameters
    ----------
    rewards : Tensor, shape (K, K)
        Row i: what type i's mean implicit reward ``L_ij`` of policy j's responses is.
    weights : Tensor, shape (K,)
        How much each type's regret counts.
    normalise : bool
        Whether a type's regret is a share of the reward ``L_ii`` of its own policy, an estimate of a divergence that
        grows with the length of its responses. A type that its own policy gives nothing, ``L_ii <= 0``, has none.

    Returns
    -------
    float64 Tensor, shape (K, K)
        ``a_i (L_ii - L_ij)``; the diagonal is 0.
    """
    rewards = rewards.double()
    own = rewards.diagonal()[:, None]
    regrets = own - rewards
    if normalise:
        regrets = torch.where(own > 0, regrets / own.where(own > 0, 1.0), 0.0)
    return weights.double()[:, None] * regrets


def minmax_weights(regrets: Tensor) -> tuple[Tensor, float]:
    """Return the mixture of policies under which the worst type's regret is least, where negative regret counts as 0.

    The linear program of the matrix game with a row of zeros, which has the value that the multiplicative weights of
    the paper's code approach. If several mixtures are best, the most even of them.

    Parameters
    ----------
    regrets : Tensor, shape (K, M)
        Row i: regret of type i under each of M policies.

    Returns
    -------
    weights : float64 Tensor, shape (M,)
        Chances of the policies: one is drawn for a whole response, since regret is linear in sequence probabilities
        only.
    value : float
        ``max(0, max_i sum_j w_j R_ij)``.
    """
    weights, value = _least_worst(regrets.double().cpu().numpy(), 0.0)
    return torch.from_numpy(weights), max(0.0, value)


def maxmin_weights(rewards: Tensor) -> tuple[Tensor, float]:
    """Return the mixture of policies under which the worst type's reward is highest (after MaxMin-RLHF).

    Chakraborty et al. 2024, arXiv 2402.08925, train one policy to this end; here existing ones are mixed. If several
    mixtures are best, the most even of them.

    Parameters
    ----------
    rewards : Tensor, shape (K, M)
        Row i: reward of type i under each of M policies.

    Returns
    -------
    weights : float64 Tensor, shape (M,)
    value : float
        ``min_i sum_j w_j L_ij``.
    """
    weights, value = _least_worst(-rewards.double().cpu().numpy(), None)
    return torch.from_numpy(weights), -value


def _least_worst(costs: npt.NDArray[np.float64], floor: float | None) -> tuple[npt.NDArray[np.float64], float]:
    """Return the most even w of the simplex that minimises ``max(floor, max_i sum_j w_j C_ij)``, and its worst row."""
    rows, columns = costs.shape
    scale = float(np.abs(costs).max()) or 1.0
    scaled = costs / scale
    solved = linprog(
        np.append(np.zeros(columns), 1.0),
        A_ub=np.hstack([scaled, -np.ones((rows, 1))]),
        b_ub=np.zeros(rows),
        A_eq=np.append(np.ones(columns), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0.0, None)] * columns + [(floor, None)],
        method="highs",
    )
    if solved.x is None:
        raise ValueError(f"the game has no solution: {solved.message}")
    weights = _most_even(scaled, float(solved.x[-1]) + _SLACK)
    return weights, float((costs @ weights).max())


def _most_even(costs: npt.NDArray[np.float64], limit: float) -> npt.NDArray[np.float64]:
    """Return the w of the simplex of least norm with ``C w <= limit``.

    A least-distance problem ``min |w| subject to G w >= h`` as non-negative least squares (Lawson and Hanson 1974,
    *Solving Least Squares Problems*, chapter 23).
    """
    columns = costs.shape[1]
    ones = np.ones((1, columns))
    bounds = np.vstack([-costs, np.eye(columns), ones, -ones])
    least = np.concatenate([np.full(len(costs), -limit), np.zeros(columns), [1.0, -1.0]])
    dual = np.vstack([bounds.T, least])
    target = np.append(np.zeros(columns), 1.0)
    residual = dual @ nnls(dual, target)[0] - target
    weights = np.clip(-residual[:-1] / residual[-1], 0.0, None)
    return np.asarray(weights / weights.sum(), dtype=np.float64)


__all__ = ["maxmin_weights", "minmax_weights", "regret_matrix"]
