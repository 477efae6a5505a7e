"""k-means in the metric of its own clusters."""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from deepclust_jax import metrics
from deepclust_jax.clustering import adaptive, kmeans

KEY = jax.random.key(0)


def sheets(n=400, seed=0):
    """Two thin parallel sheets: far apart for their own thickness, near for their width."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=n)
    x = rng.normal(size=(n, 3)) * [6.0, 6.0, 0.2]
    x[:, 2] += 3.0 * labels
    return x.astype(np.float32), labels


def scatter(view, x, labels):
    """Scatter within clusters of the rows as seen, in float64. -> [d, d]."""
    y = np.asarray(jax.jit(adaptive._seen)(x, view.mean, view.whitening), np.float64)
    rest = y.copy()
    for k in np.unique(labels):
        rest[labels == k] -= y[labels == k].mean(0)
    return rest.T @ rest / len(x)


def test_sheets_that_kmeans_cuts_across_are_told_apart():
    x, truth = sheets()
    assert metrics.accuracy(truth, np.asarray(kmeans.fit(KEY, x, 2).labels)) < 0.7
    found = adaptive.fit(KEY, x, 2)
    assert metrics.accuracy(truth, np.asarray(found.labels)) == 1.0
    for k in range(2):
        rows = x[np.asarray(found.labels) == k]
        np.testing.assert_allclose(found.centroids[k], rows.mean(0), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_no_linear_map_of_the_rows_changes_the_labels(seed):
    """Trap: the loss of an autoencoder leaves the scale of the code open, plain k-means sees it."""
    x, _ = sheets()
    change = np.random.default_rng(seed).normal(size=(3, 3))
    moved = (x @ change + [5.0, -3.0, 100.0]).astype(np.float32)
    labels = [np.asarray(adaptive.fit(KEY, rows, 2).labels) for rows in (x, moved)]
    assert metrics.accuracy(*labels) == 1.0
    plain = [np.asarray(kmeans.fit(KEY, rows, 2).labels) for rows in (x, moved)]
    assert metrics.accuracy(*plain) < 1.0


def digits(d=5):
    """Of ten classes, along their leading principal axes."""
    x, _ = load_digits(return_X_y=True)
    return PCA(d, random_state=0).fit_transform(x).astype(np.float32)


def test_the_criterion_is_that_of_the_labels_and_falls_with_every_step():
    z = digits()
    n, d = z.shape
    entries = d * (d + 1) / 2
    shrinkage = entries / (n + entries)
    before = np.inf
    for steps in (1, 2, 3, 5, 10, 300):
        found = adaptive.fit(KEY, z, 10, n_init=1, max_iter=steps)
        assert int(found.n_iter) <= steps
        assert float(found.criterion) <= before + 1e-4
        before = float(found.criterion)
    assert int(found.n_iter) < 300  # until no label changes
    labels = np.asarray(found.labels)
    total = scatter(found.view, z, np.zeros(n))
    expected = (1 - shrinkage) * scatter(found.view, z, labels) + shrinkage * total
    expected += adaptive._RIDGE * np.trace(total) / d * np.eye(d)
    np.testing.assert_allclose(before, np.linalg.slogdet(expected)[1], atol=1e-3)
    np.testing.assert_allclose(found.view.precision @ expected, np.eye(d), atol=1e-2)


def test_restarts_are_chosen_by_the_criterion():
    z = digits()
    best = adaptive.fit(KEY, z, 10, n_init=8)
    alone = [adaptive.fit(key, z, 10, n_init=1).criterion for key in jax.random.split(KEY, 8)]
    assert float(best.criterion) <= float(np.median(alone))
    assert float(best.criterion) < max(map(float, alone))


def test_assign_gives_rows_their_labels_in_any_company():
    x, _ = sheets()
    found = adaptive.fit(KEY, x, 2)
    assign = jax.jit(adaptive.assign)
    np.testing.assert_array_equal(assign(found.view, x), found.labels)
    order = np.random.default_rng(1).permutation(len(x))[:37]
    np.testing.assert_array_equal(assign(found.view, x[order]), np.asarray(found.labels)[order])


def blobs(centres, n=80, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.atleast_2d(np.asarray(centres, float))
    truth = np.repeat(np.arange(len(centres)), n)
    return (centres[truth] + rng.normal(size=(len(truth), centres.shape[1]))), truth


# Five clusters of 80 rows in three dimensions, as in most tests here: one program fits them all.
CROSS = np.array([[0, 0, 0], [8, 0, 0], [-8, 0, 0], [0, 8, 0], [0, -8, 0]], float)


@pytest.mark.parametrize(
    "centres",
    [
        [[0.0], [10.0], [20.0], [30.0]],  # one dimension, where directions are only two
        CROSS,  # a cluster at the mean of all rows
        np.outer([-20.0, 0.0, 20.0], np.eye(3)[0]),
    ],
)
def test_plain_blobs_are_found(centres):
    """Trap: rows scaled to unit length lose the clusters that differ in length alone."""
    x, truth = blobs(centres)
    found = adaptive.fit(KEY, x, len(centres))
    assert metrics.accuracy(truth, np.asarray(found.labels)) > 0.99


def test_restarts_are_chosen_where_the_scatter_has_more_entries_than_there_are_rows():
    """Trap: a scatter shrunk to that of all rows is the same for every labelling."""
    x, _ = blobs(1.2 * np.random.default_rng(1).normal(size=(3, 11)), n=20)
    found = adaptive.fit(KEY, x, 3)
    alone = [adaptive.fit(key, x, 3, n_init=1) for key in jax.random.split(KEY, 8)]
    criteria = [float(one.criterion) for one in alone]
    assert max(criteria) - min(criteria) > 0.01
    assert float(found.criterion) < np.median(criteria)


@pytest.mark.parametrize("scale, offset", [(1e18, 0.0), (1e-18, 0.0), (1.0, 1e8)])
def test_neither_scale_nor_offset_changes_the_labels(scale, offset):
    x, truth = blobs(CROSS)
    found = adaptive.fit(KEY, scale * x + offset, 5)
    assert metrics.accuracy(truth, np.asarray(found.labels)) > 0.99
    assert np.isfinite(float(found.criterion))


@pytest.mark.parametrize("factor", [100.0, 1e3, 1e4])
def test_an_axis_on_another_scale_changes_nothing(factor):
    x, truth = blobs([[0, 0, 0], [6, 0, 0], [-6, 0, 0], [0, 6, 6], [0, -6, -6]])
    for axis in range(3):
        scales = np.ones(3)
        scales[axis] = factor
        labels = np.asarray(adaptive.fit(KEY, x * scales, 5).labels)
        assert metrics.accuracy(np.asarray(adaptive.fit(KEY, x, 5).labels), labels) > 0.99


def test_linear_part_has_the_distances_of_the_view_and_keeps_volume():
    x, _ = sheets()
    found = adaptive.fit(KEY, x, 2)
    matrix = np.asarray(adaptive.linear(found.view), np.float64)
    np.testing.assert_allclose(abs(np.linalg.det(matrix)), 1.0, rtol=1e-3)
    near = np.random.default_rng(0).normal(size=(20, 3)) * 1e-3
    whitened = near @ np.asarray(found.view.whitening, np.float64)
    wanted = np.einsum("id,de,ie->i", whitened, np.asarray(found.view.precision), whitened)
    ratio = ((near @ matrix) ** 2).sum(1) / wanted
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-3)


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    "x, k",
    [
        (np.zeros((400, 3), np.float32), 5),  # no variance at all
        (np.eye(3, dtype=np.float32)[np.arange(400) % 3], 5),  # fewer places than clusters
        (np.eye(4, dtype=np.float32), 4),  # as many rows as clusters
        (normal(9, 12), 3),  # wide
        (normal(400, 2)[:, [0, 0, 1]], 5),
        (1e15 * normal(400, 3), 5),
        (np.full((400, 3), 7.0, np.float32), 5),
        (np.float32(1e4) + normal(400, 3), 1),
    ],
)
def test_degenerate_rows_give_no_nan(x, k):
    found = adaptive.fit(KEY, x, k)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.view))
    assert np.isfinite(found.centroids).all() and float(found.criterion) < np.inf
    labels = np.asarray(found.labels)
    assert labels.shape == (len(x),) and labels.min() >= 0 and labels.max() < k


def test_few_rows_in_many_dimensions_are_not_cut_into_planes():
    """Trap: with about as many rows as dimensions any split has some direction without scatter."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(3), 20)
    x = (rng.normal(size=(3, 11))[truth] * 4 + rng.normal(size=(60, 11))).astype(np.float32)
    assert metrics.accuracy(truth, np.asarray(adaptive.fit(KEY, x, 3).labels)) > 0.95


def test_bad_arguments():
    x = np.ones((5, 2), np.float32)
    for arguments in ((x[0], 2), (x, 6), (x, 0), (x * np.nan, 2)):
        with pytest.raises(ValueError, match="expected"):
            adaptive.fit(KEY, *arguments)
