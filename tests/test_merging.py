"""The number of clusters by merging: the folding test, and where it stops."""

import jax
import numpy as np
import pytest

from deepclust_jax import data, metrics
from deepclust_jax.clustering import graph_embedding, merging

KEY = jax.random.key(0)


def blobs(sizes, apart, d=5, seed=0):
    """Gaussians of deviation 1 with centres on the axes, `apart` from each other."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    centres = np.eye(len(sizes), max(d, len(sizes))) * apart / np.sqrt(2)
    return (centres[labels] + rng.normal(size=(len(labels), centres.shape[1]))).astype(
        np.float32
    ), labels


folding = jax.jit(merging.folding, static_argnums=2)


def phi_by_definition(t, weights):
    def mean(values):
        return np.sum(weights * values) / np.sum(weights)

    variance = mean(t**2) - mean(t) ** 2
    fold = (mean(t**3) - mean(t) * mean(t**2)) / (2 * variance)
    folded = np.abs(t - fold)
    return 4 * (mean(folded**2) - mean(folded) ** 2) / variance


def test_phi_by_numpy():
    x, labels = blobs((300, 40, 90), 4.0)
    found = np.asarray(folding(x, labels, 4))
    for a in range(3):
        for b in range(3):
            if a == b:
                continue
            rows = (labels == a) | (labels == b)
            centres = np.stack([x[labels == c].mean(0) for c in (a, b)]).astype(np.float64)
            line = (centres[1] - centres[0]) / np.linalg.norm(centres[1] - centres[0])
            t = (x[rows] - centres.mean(0)) @ line
            weights = 1 / np.bincount(labels)[labels[rows]]  # either cluster counts as much
            np.testing.assert_allclose(found[a, b], phi_by_definition(t, weights), rtol=1e-3)
    np.testing.assert_array_equal(np.diag(found), -1.0)
    np.testing.assert_array_equal(found[3], -1.0)  # a cluster without rows
    np.testing.assert_allclose(found, found.T, rtol=1e-5)


def test_phi_of_a_uniform_line_is_1_and_of_two_points_0():
    t = np.linspace(0, 1, 1001, dtype=np.float32)[:, None]
    labels = (t[:, 0] > 0.5).astype(np.int32)
    np.testing.assert_allclose(np.asarray(folding(t, labels, 2))[0, 1], 1.0, atol=1e-3)
    two = labels[:, None].astype(np.float32)
    np.testing.assert_allclose(np.asarray(folding(two, labels, 2))[0, 1], 0.0, atol=1e-6)


@pytest.mark.parametrize("apart", [2.0, 4.0, 4.5, 8.0])
def test_phi_of_two_gaussians_falls_with_their_distance(apart):
    """The 4 / (1 + d^2/4) of the head of merging.py, where they do not overlap much."""
    x, labels = blobs((20_000, 20_000), apart)
    found = float(np.asarray(folding(x, labels, 2))[0, 1])
    expected = 4 / (1 + apart**2 / 4)
    assert found == pytest.approx(expected, rel=0.1 if apart > 3 else 0.4)
    assert (found < merging.THRESHOLD) == (apart > 4.2)


@pytest.mark.parametrize("most", [20, 35])
def test_blobs_of_unequal_sizes_are_found(most):
    x, labels = blobs((1000, 60, 500, 250, 100, 800, 90, 300), 10.0, d=8)
    found = merging.fit(KEY, x, most)
    assert int(found.n_clusters) == 8
    assert metrics.accuracy(labels, np.asarray(found.labels)) > 0.999


def test_one_gaussian_is_one_cluster():
    x, _ = blobs((3100,), 0.0, d=8)
    found = merging.fit(KEY, x, 20)
    assert int(found.n_clusters) == 1
    np.testing.assert_array_equal(found.labels, 0)


def test_labels_are_without_gaps_and_do_not_move_with_shift_and_rotation():
    x, _ = blobs((1550, 1000, 550), 9.0, d=8)
    found = merging.fit(KEY, x, 20)
    assert sorted(set(np.asarray(found.labels).tolist())) == list(range(int(found.n_clusters)))
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(x.shape[1],) * 2))[0]
    moved = merging.fit(KEY, (x @ turn + 100.0).astype(np.float32), 20)
    assert metrics.ari(np.asarray(found.labels), np.asarray(moved.labels)) == pytest.approx(1.0)


def test_rows_at_one_place_are_one_cluster():
    """Trap: a variance of 0 is no number to divide by."""
    x = np.repeat(np.float32([[0.0, 1.0]]), 40, axis=0)
    labels = merging.merge(x, np.arange(40) % 3, 3, 0.7)
    np.testing.assert_array_equal(labels, 0)


def test_a_threshold_that_is_not_positive_is_refused():
    x, _ = blobs((30,), 0.0)
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="expected threshold > 0"):
            merging.fit(KEY, x, 3, threshold=bad)


def test_points_of_a_graph_of_digits():
    """On the points of a neighbour graph more is found than the ten classes, and little is mixed:
    digits have several ways to be written."""
    dataset, y = data.load("digits")
    x = dataset.x.reshape(len(y), -1)
    found = graph_embedding.cluster(KEY, x, 20, dim=5, n_layouts=3, merge=True)
    labels = np.asarray(found.labels)
    assert 10 <= len(np.unique(labels)) <= 19
    assert metrics.nmi(y, labels) > 0.85
    assert labels.max() + 1 == len(np.unique(labels))
    np.testing.assert_array_equal(np.argmax(found.posterior, axis=1), labels)
    assert 0.6 < float(found.agreement) <= 1.0


@pytest.mark.parametrize("n", [60, 120, 300])
def test_few_rows_of_one_gaussian_are_one_cluster(n):
    assert merging.fit(KEY, blobs((n,), 0.0)[0]).n_clusters == 1


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
def test_few_rows_of_three_clusters_of_any_scale(scale):
    x, labels = blobs((40, 40, 40), 12.0)
    found = merging.fit(KEY, x * np.float32(scale))
    assert metrics.accuracy(labels, np.asarray(found.labels)) == 1.0


def test_a_row_alone_is_no_cluster():
    x, _ = blobs((1600, 1500), 12.0, d=8)
    x[0] = 40.0
    assert merging.fit(KEY, x).n_clusters == 2


def test_fewer_rows_than_clusters_at_the_start():
    x, labels = blobs((10, 10), 12.0)
    assert merging.fit(KEY, x, 35).n_clusters == 1  # one for each twenty rows
    found = graph_embedding.cluster(KEY, x, 35, n_layouts=1, epochs=5, merge=True)
    assert found.labels.shape == (20,) and found.posterior.shape == (20, 35)
    with pytest.raises(ValueError, match="expected a whole number n_clusters >= 1, found 0"):
        merging.fit(KEY, x, 0)
