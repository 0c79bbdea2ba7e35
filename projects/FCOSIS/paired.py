"""Differences of two variants on the same objects and seeds, with standard errors.

Shape shorthand: S seeds (trainings), O objects.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Difference(NamedTuple):
    """Mean over objects and seeds of (first variant - second variant), and how sure it is.

    mean: each object counts once a seed.
    per_seed: (S,) means of the seeds; the two trainings of a seed are a pair.
    image_error: standard error where images are drawn anew and the trainings are given: each object's difference is
        averaged over the seeds, then images are clusters of objects.
    seed_error: where trainings are drawn anew and the images are given: sqrt(variance of per_seed / S), of S - 1
        degrees of freedom. NaN for a single seed.
    error: sqrt(image_error^2 + seed_error^2), for new images and new trainings. What images and seeds do together is in
        both parts, so it is rather too large than too small. NaN for a single seed.
    """

    mean: float
    per_seed: np.ndarray
    image_error: float
    seed_error: float
    error: float


def paired_difference(first: np.ndarray, second: np.ndarray, images: np.ndarray) -> Difference:
    """Compares two variants object by object.

    Args:
        first, second: (S, O) a figure of each object under each seed.
        images: (O,) image of each object, any numbers.

    Raises:
        ValueError: the shapes differ, or there is no object.
    """
    if first.shape != second.shape or first.ndim != 2 or first.shape[1:] != images.shape or not first.size:
        raise ValueError(f"figures of shape {first.shape} and {second.shape} for {images.shape} objects")
    differences = first.astype(np.float64) - second.astype(np.float64)
    per_seed = differences.mean(axis=1)
    image_error = clustered_error(differences.mean(axis=0), images)
    num_seeds = len(per_seed)
    seed_error = float(per_seed.std(ddof=1)) / math.sqrt(num_seeds) if num_seeds > 1 else math.nan
    return Difference(float(differences.mean()), per_seed, image_error, seed_error, math.hypot(image_error, seed_error))


def clustered_error(values: np.ndarray, clusters: np.ndarray) -> float:
    """Standard error of the mean of values that are drawn cluster by cluster.

    The mean is a ratio, sum of the clusters' sums by sum of their sizes; this is the usual first-order error of it:
    sqrt(C / (C - 1) * sum over the C clusters of (sum of (value - mean))^2) / O.

    Args:
        values: (O,).
        clusters: (O,) cluster of each value, any numbers.

    Returns:
        NaN for a single cluster.
    """
    _, owners = np.unique(clusters, return_inverse=True)
    sums = np.bincount(owners, values - values.mean())
    count = len(sums)
    if count < 2:
        return math.nan
    return math.sqrt(count / (count - 1) * float((sums**2).sum())) / len(values)
