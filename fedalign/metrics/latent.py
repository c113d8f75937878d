"""Latent-space metrics: how many dimensions are in use, and how well people's posterior means tell groups apart.

Every function has a value, or None, for input on which the usual definition breaks down: one group, too few people,
or a collapsed posterior that gives everybody the same mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, silhouette_score
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

_FOLDS = 5
_STARTS = 10
_SEEDS = 2**32
"""scikit-learn's seeds are 32 bits wide."""


@dataclass(frozen=True)
class Projection:
    """People's posterior means on their first two principal components.

    Parameters
    ----------
    points : float64 Tensor, shape (N, 2)
    explained : float64 Tensor, shape (2,)
        Share of the variance along each component.
    """

    points: Tensor
    explained: Tensor


def active_units(means: Tensor, threshold: float) -> int:
    """Return how many dimensions of the latent variable are in use (Burda et al. 2016, arXiv 1509.00519, section 5.1).

    A dimension is in use when the variance over people of its posterior mean exceeds ``threshold`` (0.01 in the
    paper). A collapsed posterior has none; so has a single person.

    Parameters
    ----------
    means : Tensor, shape (N, d)
        Posterior mean of each person.
    threshold : float
    """
    if len(means) == 0:
        return 0
    return int((means.double().var(0, correction=0) > threshold).sum())


def active_units_of_sums(total: Tensor, squares: Tensor, count: float, threshold: float) -> int:
    """Return what ``active_units`` returns, from sums over people that clients can add up.

    Parameters
    ----------
    total, squares : Tensor, shape (d,)
        Sum over people of the posterior mean, and of its square; in float64, since their difference is small.
    count : float
        Number of people.
    threshold : float
    """
    if count <= 0:
        return 0
    variance = squares.double() / count - (total.double() / count).square()
    return int((variance > threshold).sum())


def linear_probe(means: Tensor, labels: Sequence[str]) -> float | None:
    """Return the cross-validated accuracy of logistic regression of people's group from their posterior mean.

    Up to five stratified folds in the order of the people; features are standardised on each fold's training people,
    so a dimension counts whatever its scale. Equal means give about the share of the largest group.

    Parameters
    ----------
    means : Tensor, shape (N, d)
    labels : sequence of str, length N
        Group of each person.

    Returns
    -------
    float or None
        None when there are fewer than two groups, or a group has a single person, who can be in one fold only.
    """
    points = _array(means, labels)
    sizes = Counter(labels)
    if len(sizes) < 2 or min(sizes.values()) < 2:
        return None
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(min(_FOLDS, min(sizes.values())))
    # Weighted by the size of folds: every person counts once.
    scores = cross_val_score(probe, points, list(labels), cv=folds)
    held_out = [len(test) for _, test in folds.split(points, list(labels))]
    return float(np.average(scores, weights=held_out))


def silhouette(means: Tensor, labels: Sequence[str]) -> float | None:
    """Return the mean silhouette of people in their true groups: near 1 apart, 0 overlapping, negative mixed up.

    Parameters
    ----------
    means : Tensor, shape (N, d)
    labels : sequence of str, length N

    Returns
    -------
    float or None
        None when there are fewer than two groups, every person is a group, or all means are equal.
    """
    points = _array(means, labels)
    if not 2 <= len(set(labels)) < len(points) or _distinct(points) < 2:
        return None
    return float(silhouette_score(points, list(labels)))


def cluster_agreement(means: Tensor, labels: Sequence[str], clusters: int, seed: int) -> float:
    """Return the adjusted Rand index of k-means clusters with the true groups: 1 the same, about 0 by chance.

    Parameters
    ----------
    means : Tensor, shape (N, d)
    labels : sequence of str, length N
    clusters : int
        Number of clusters; no more than there are distinct means are made.
    seed : int
        Of the k-means starts.

    Returns
    -------
    float
        0 when there is nothing to find: fewer than three people, one group, one cluster or all means equal.
    """
    points = _array(means, labels)
    made = min(clusters, _distinct(points))
    if len(points) < 3 or made < 2:
        return 0.0
    found = KMeans(made, n_init=_STARTS, random_state=seed % _SEEDS).fit_predict(points)
    return adjusted_rand_index(torch.as_tensor(found), labels)


def adjusted_rand_index(assigned: Tensor, labels: Sequence[str]) -> float:
    """Return the adjusted Rand index of given clusters with the true groups.

    Parameters
    ----------
    assigned : int Tensor, shape (N,)
        Cluster of each person; the numbers themselves mean nothing.
    labels : sequence of str, length N

    Returns
    -------
    float
        0 when there are fewer than two groups.
    """
    if len(assigned) != len(labels):
        raise ValueError(f"{len(assigned)} people in clusters, but {len(labels)} labels")
    return float(adjusted_rand_score(list(labels), assigned.tolist())) if len(set(labels)) > 1 else 0.0


def project(means: Tensor) -> Projection:
    """Return the first two principal components, each turned so that its largest loading is positive.

    Parameters
    ----------
    means : Tensor, shape (N, d)

    Returns
    -------
    Projection
        Zeros where there is no such component: fewer than two people, one dimension, or all means equal.
    """
    points = means.detach().cpu().double().numpy()
    projected, explained = np.zeros((len(points), 2)), np.zeros(2)
    made = min(2, *points.shape)
    if len(points) > 1 and made and _distinct(points) > 1:
        pca = PCA(made, svd_solver="full")
        scores = pca.fit_transform(points)
        largest = np.abs(pca.components_).argmax(1)
        signs = np.sign(pca.components_[np.arange(made), largest])
        projected[:, :made] = scores * signs
        explained[:made] = pca.explained_variance_ratio_
    return Projection(torch.from_numpy(projected), torch.from_numpy(explained))


def _array(means: Tensor, labels: Sequence[str]) -> npt.NDArray[np.float64]:
    """Return the means as an array, one row a label."""
    if len(means) != len(labels):
        raise ValueError(f"{len(means)} posterior means, but {len(labels)} labels")
    array: npt.NDArray[np.float64] = means.detach().cpu().double().numpy()
    return array


def _distinct(points: npt.NDArray[np.float64]) -> int:
    """Return how many different rows there are."""
    return len(np.unique(points, axis=0))
