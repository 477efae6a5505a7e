"""Sizes within bounds, at the least cost: beside an exact solver on the host."""

import jax
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from deepclust_jax import data
from deepclust_jax.clustering import balanced, kmeans


@pytest.fixture(scope="module")
def digits():
    dataset, _ = data.load("digits")
    return np.asarray(dataset.x).reshape(len(dataset.x), -1)


assign = jax.jit(balanced.assign)


def blobs(n=240, d=5, k=6, seed=0):
    """Clusters of sizes 1 : 2 : 3 : ... of which the small ones are apart from the rest.

    Most tests fit 6 clusters to 240 rows of 5 features, whatever the rows are: that is one program.
    """
    rng = np.random.default_rng(seed)
    labels = rng.choice(k, size=n, p=np.arange(1, k + 1) / np.arange(1, k + 1).sum())
    return (4 * rng.normal(size=(k, d))[labels] + rng.normal(size=(n, d))).astype(np.float32)


def least_cost(x, centroids, low, high):
    """Cost of the best labels with these sizes, by the Hungarian algorithm on one column for each
    place in a cluster; the places up to `low` must be taken."""
    n, k = len(x), len(centroids)
    cost = ((x[:, None].astype(np.float64) - centroids[None]) ** 2).sum(axis=-1)
    must, may = np.repeat(cost, low, axis=1), np.repeat(cost, min(high, n) - low, axis=1)
    spare = must.shape[1] + may.shape[1] - n  # places left empty: by rows that only fit `may`
    filler = np.zeros((spare, must.shape[1] + may.shape[1]))
    filler[:, : low * k] = 1e9
    whole = np.concatenate([np.concatenate([must, may], axis=1), filler])
    rows, columns = linear_sum_assignment(whole)
    return whole[rows, columns].sum()


@pytest.mark.parametrize("bounds", [(40, 40), (33, 50), (0, 47), (36, 240), (0, 240)])
def test_labels_cost_the_least(bounds):
    x = blobs()
    centroids = np.asarray(kmeans.fit(jax.random.key(0), x, 6).centroids)
    labels, gap = assign(x, centroids, *bounds)
    sizes = np.bincount(labels, minlength=6)
    assert sizes.min() >= bounds[0] and sizes.max() <= bounds[1]
    cost = ((x.astype(np.float64) - centroids[np.asarray(labels)]) ** 2).sum()
    least = least_cost(x, centroids, *bounds)
    assert cost - least <= float(gap) * cost + 1e-4 * least  # the gap is a true bound
    assert cost <= 1.001 * least


@pytest.mark.parametrize("k", [1, 7, 20])
def test_equal_sizes_by_default(digits, k):
    found = balanced.fit(jax.random.key(0), digits, k)
    sizes = np.bincount(found.labels, minlength=k)
    assert sizes.min() == len(digits) // k and sizes.max() == -(-len(digits) // k)
    assert found.converged and 0 <= found.gap < 1e-3
    means = np.stack([digits[np.asarray(found.labels) == j].mean(axis=0) for j in range(k)])
    np.testing.assert_allclose(found.centroids, means, atol=1e-4)
    inertia = ((digits - means[np.asarray(found.labels)]) ** 2).sum()
    np.testing.assert_allclose(found.inertia, inertia, rtol=1e-4)
    # Bounds cost something, and little here.
    free = kmeans.fit(jax.random.key(0), digits, k).inertia
    assert free * (1 - 1e-5) <= found.inertia <= 1.1 * free


def test_bounds_that_hold_anyway_change_nothing(digits):
    free = kmeans.fit(jax.random.key(0), digits, 7)
    found = balanced.fit(jax.random.key(0), digits, 7, min_size=1)
    np.testing.assert_allclose(found.inertia, free.inertia, rtol=1e-4)
    assert np.mean(np.asarray(found.labels) == np.asarray(free.labels)) > 0.99


def test_one_bound_alone(digits):
    few = balanced.fit(jax.random.key(0), digits, 20, max_size=95)
    sizes = np.bincount(few.labels, minlength=20)
    assert sizes.max() <= 95 and sizes.min() < 89  # not made equal
    many = balanced.fit(jax.random.key(0), digits, 20, min_size=80)
    assert np.bincount(many.labels, minlength=20).min() >= 80
    assert few.gap < 1e-3 and many.gap < 1e-3


@pytest.mark.parametrize("spread", [1.0, 1.5])
def test_rows_far_out_do_not_stop_the_search(spread):
    """Trap: prices that fit one far centroid are no start for others: the search froze, and said
    that it had converged."""
    rng = np.random.default_rng(0)
    x = np.exp(spread * rng.normal(size=(240, 5))).astype(np.float32)
    centroids = np.asarray(kmeans.fit(jax.random.key(0), x, 6).centroids)
    for _ in range(4):
        labels, gap = assign(x, centroids, 40, 40)
        labels = np.asarray(labels)
        cost = ((x.astype(np.float64) - centroids[labels]) ** 2).sum()
        assert cost <= 1.001 * least_cost(x, centroids, 40, 40) and gap < 2e-3
        centroids = np.stack([x[labels == j].mean(axis=0) for j in range(6)])


def test_huge_rows_and_nan_end():
    x = (blobs() * 1e36).astype(np.float32)
    sizes = np.bincount(balanced.fit(jax.random.key(0), x, 6).labels)
    assert sizes.tolist() == [40] * 6
    bad = blobs()
    bad[3, 1] = np.nan
    traced = jax.jit(lambda x: balanced.fit(jax.random.key(0), x, 6, n_init=1).labels)
    assert traced(bad).shape == (240,)


def test_the_gap_is_a_share():
    for x in (np.full((240, 5), 3.0), np.repeat(blobs(n=6), 40, axis=0)):
        found = balanced.fit(jax.random.key(0), x, 6)
        assert 0 <= found.gap <= 1


def test_duplicates_are_split():
    x = np.repeat(np.eye(5, dtype=np.float32)[:2], [220, 20], axis=0)
    found = balanced.fit(jax.random.key(0), x, 6)
    assert np.bincount(found.labels, minlength=6).tolist() == [40] * 6
    same = balanced.fit(jax.random.key(0), np.ones((240, 5), np.float32), 6)
    assert np.bincount(same.labels).tolist() == [40] * 6 and same.inertia == 0


def test_every_row_its_own_cluster():
    x = blobs(n=8)
    found = balanced.fit(jax.random.key(0), x, 8)
    assert sorted(np.asarray(found.labels).tolist()) == list(range(8))
    assert found.inertia < 1e-6


def test_a_large_offset_costs_no_digits(digits):
    near = balanced.fit(jax.random.key(0), digits, 7)
    far = balanced.fit(jax.random.key(0), digits.astype(np.float64) + 1e6, 7)
    assert far.centroids.dtype == np.float64
    np.testing.assert_allclose(far.inertia, near.inertia, rtol=1e-2)
    labels = np.asarray(far.labels)
    means = np.stack([digits[labels == j].mean(axis=0) for j in range(7)])
    np.testing.assert_allclose(far.centroids - 1e6, means, atol=1e-4)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"min_size": 200}, r"min_size \* 10 <= 1797"),
        ({"max_size": 100}, r"<= max_size \* 10"),
        ({"min_size": 180, "max_size": 170}, "found min_size 180 and max_size 170"),
        ({"min_size": -1}, "found min_size -1"),
        ({"min_size": 1.5}, "whole numbers"),
    ],
)
def test_bounds_that_cannot_be_met(digits, bounds, message):
    with pytest.raises(ValueError, match=message):
        balanced.fit(jax.random.key(0), digits, 10, **bounds)


def test_real_images(data_dir):
    dataset, _ = data.load("usps")
    x = np.asarray(dataset.x).reshape(len(dataset.x), -1)
    found = balanced.fit(jax.random.key(0), x, 31, n_init=1)
    sizes = np.bincount(found.labels, minlength=31)
    assert sizes.max() - sizes.min() <= 1 and found.gap < 1e-3
    assert found.inertia < 1.05 * kmeans.fit(jax.random.key(0), x, 31, n_init=1).inertia
