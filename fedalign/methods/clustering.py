"""Clusters of people on the server: k-means with sizes that differ by at most one, and labels that last over rounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from torch import Tensor

_Floats = npt.NDArray[np.float64]
_Ints = npt.NDArray[np.int64]

_STARTS = 10
_SEEDS = 2**32
"""scikit-learn's seeds are 32 bits wide."""


@dataclass(frozen=True)
class Clusters:
    """A partition of points.

    Parameters
    ----------
    labels : int64 Tensor, shape (N,)
        Cluster of each point, from 0.
    centres : Tensor, shape (k, d)
        Mean of each cluster's points.
    """

    labels: Tensor
    centres: Tensor


def balanced_kmeans(points: Tensor, k: int, seed: int, iterations: int) -> Clusters:
    """Return clusters whose sizes differ by at most one, from k-means followed by balanced assignments.

    From the centres of plain k-means, points are given to clusters so that the sum of squared distances is the least
    that balanced sizes allow, and centres become the means of their points, until nothing changes. Neither step can
    raise the sum. The result does not depend on the order of the points. The assignment takes O(N^3) time and
    O(N^2) memory: it is meant for up to a few thousand points.

    Parameters
    ----------
    points : Tensor, shape (N, d)
        Finite; equal points are allowed, and are spread over clusters where balance asks for it.
    k : int
        Number of clusters, between 1 and N.
    seed : int
        Of the k-means starts.
    iterations : int
        Most balanced assignments, at least 1.

    Raises
    ------
    ValueError
        If ``k`` is not between 1 and N.
    """
    if not 1 <= k <= len(points):
        raise ValueError(f"{k} clusters of {len(points)} points; each cluster needs one at least")
    values: _Floats = points.detach().cpu().double().numpy()
    order = np.lexsort(values.T)
    ordered = values[order]
    centres = _start(ordered, k, seed)
    labels: _Ints = np.full(len(ordered), -1, dtype=np.int64)
    for _ in range(iterations):
        distances = ((ordered[:, None, :] - centres[None, :, :]) ** 2).sum(-1)
        before, labels = labels, _assign(distances)
        centres = np.stack([ordered[labels == cluster].mean(0) for cluster in range(k)])
        if np.array_equal(labels, before):
            break
    unordered = np.empty_like(labels)
    unordered[order] = labels
    return Clusters(torch.from_numpy(unordered), torch.from_numpy(centres).to(points))


def balanced_assignment(cost: Tensor) -> Tensor:
    """Return the cluster of each point, of sizes that differ by at most one, with the least total cost.

    Parameters
    ----------
    cost : Tensor, shape (N, k)
        Of putting a point into a cluster; finite.

    Returns
    -------
    int64 Tensor, shape (N,)
    """
    return torch.from_numpy(_assign(cost.detach().cpu().double().numpy()))


def match(centres: Tensor, anchors: Tensor) -> Tensor:
    """Return the anchor that each centre goes with, one to one, so that ``match(...)[labels]`` keeps its meaning.

    The permutation has the largest sum of inner products of centres and anchors, both around their own mean; of all
    permutations it also has the smallest sum of squared distances. Anchors are the centres of an earlier round, or
    prototypes.

    Parameters
    ----------
    centres, anchors : Tensor, shape (k, d)

    Returns
    -------
    int64 Tensor, shape (k,)
        Index of the anchor of each centre.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if centres.shape != anchors.shape:
        raise ValueError(f"centres of shape {tuple(centres.shape)}, anchors of shape {tuple(anchors.shape)}")
    left, right = (each.detach().cpu().double() for each in (centres, anchors))
    products = (left - left.mean(0)) @ (right - right.mean(0)).T
    _, chosen = linear_sum_assignment(products.numpy(), maximize=True)
    return torch.from_numpy(chosen.astype(np.int64))


def _start(points: _Floats, k: int, seed: int) -> _Floats:
    """Return the centres of plain k-means; where there are too few different points, these points in turn."""
    distinct = np.unique(points, axis=0)
    if len(distinct) <= k:
        return np.resize(distinct, (k, points.shape[1]))
    found: _Floats = KMeans(k, n_init=_STARTS, random_state=seed % _SEEDS).fit(points).cluster_centers_
    return found


def _assign(cost: _Floats) -> _Ints:
    """Return the cluster of each point with the least total cost among balanced assignments; cost has shape (N, k).

    Every cluster has N // k seats that must be filled and, if N does not divide, one more that may stay free. A row
    for each seat that stays free makes the problem square; such a row can take no seat that must be filled.
    """
    count, k = cost.shape
    seats, extra = divmod(count, k)
    owner = np.repeat(np.arange(k), seats)
    if extra:
        owner = np.concatenate([owner, np.arange(k)])
        free = np.full((k - extra, len(owner)), np.inf)
        free[:, k * seats :] = 0.0
        expanded = np.concatenate([cost[:, owner], free])
    else:
        expanded = cost[:, owner]
    _, taken = linear_sum_assignment(expanded)
    labels: _Ints = owner[taken[:count]].astype(np.int64)
    return labels
