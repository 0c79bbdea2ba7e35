"""Differences of two variants, paired by object and seed: against a bootstrap, and object by object."""

from __future__ import annotations

import math

import numpy as np
import pytest

from projects.FCOSIS.paired import clustered_error, paired_difference


def test_the_clustered_error_is_that_of_drawing_images_anew() -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(60), rng.integers(1, 9, 60))
    values = rng.normal(size=60)[clusters] + 0.5 * rng.normal(size=len(clusters))
    members = [values[clusters == number] for number in range(60)]
    means = [np.concatenate([members[one] for one in rng.integers(0, 60, 60)]).mean() for _ in range(4000)]
    assert clustered_error(values, clusters) == pytest.approx(np.std(means), rel=0.06)
    # Objects as if drawn one by one would seem to tell much more.
    assert clustered_error(values, np.arange(len(values))) < 0.6 * clustered_error(values, clusters)
    assert clustered_error(values, np.arange(len(values))) == pytest.approx(values.std(ddof=1) / len(values) ** 0.5)
    # Numbers of clusters are names.
    assert clustered_error(values, 7 * clusters + 3) == clustered_error(values, clusters)
    assert math.isnan(clustered_error(values, np.zeros(len(values))))


def test_the_paired_difference_agrees_with_the_formulas_object_by_object() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.random((3, 8)), rng.random((3, 8))
    images = np.array([4, 4, 1, 1, 1, 9, 9, 2])
    found = paired_difference(first, second, images)
    per_seed = [sum(first[seed, one] - second[seed, one] for one in range(8)) / 8 for seed in range(3)]
    mean = sum(per_seed) / 3
    sums: dict[int, float] = {}
    for one in range(8):
        own = sum(first[seed, one] - second[seed, one] for seed in range(3)) / 3
        sums[images[one]] = sums.get(images[one], 0.0) + own - mean
    image_error = math.sqrt(4 / 3 * sum(value**2 for value in sums.values())) / 8
    seed_error = math.sqrt(sum((value - mean) ** 2 for value in per_seed) / 2 / 3)
    np.testing.assert_allclose(found.per_seed, per_seed)
    np.testing.assert_allclose(
        [found.mean, found.image_error, found.seed_error, found.error],
        [mean, image_error, seed_error, math.sqrt(image_error**2 + seed_error**2)],
    )
    single = paired_difference(first[:1], second[:1], images)
    assert math.isnan(single.seed_error)
    assert math.isnan(single.error)
    assert not math.isnan(single.image_error)
    with pytest.raises(ValueError, match="objects"):
        paired_difference(first, second[:2], images)
