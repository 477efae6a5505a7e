"""A tree of centroids: what it finds, beside all leaves at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import cluster

from deepclust_jax import data
from deepclust_jax.clustering import hierarchical, kmeans


def blobs(n=3000, d=6, k=40, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.choice(k, size=n, p=rng.dirichlet(np.ones(k)))
    return (3 * rng.normal(size=(k, d))[labels] + rng.normal(size=(n, d))).astype(np.float32)


@pytest.fixture(scope="module")
def found():
    return hierarchical.fit(jax.random.key(0), blobs(), 100)


def squared(x, centroids):
    return ((x[:, None].astype(np.float64) - np.asarray(centroids)[None]) ** 2).sum(axis=-1)


def test_rows_go_to_the_nearest_leaf_of_their_part(found):
    x, (parts, leaves, first) = blobs(), found.tree
    part_of_leaf = np.repeat(np.arange(len(parts)), np.diff(first))
    own = squared(x, parts).argmin(axis=1)
    distances = np.where(part_of_leaf[None] == own[:, None], squared(x, leaves), np.inf)
    np.testing.assert_array_equal(found.labels, distances.argmin(axis=1))
    np.testing.assert_allclose(found.inertia, distances.min(axis=1).sum(), rtol=1e-5)


def test_all_probes_find_the_nearest_leaf_of_all(found):
    x = blobs(seed=1)
    labels, sqdist = hierarchical.assign(x, found.tree, probes=len(found.tree.parts))
    nearest, least = kmeans.assign(x, found.tree.leaves)
    np.testing.assert_array_equal(labels, nearest)
    np.testing.assert_allclose(sqdist, least, rtol=1e-5, atol=1e-5)


def test_more_probes_never_find_a_farther_leaf(found):
    x = blobs(seed=1)
    sqdist = [np.asarray(hierarchical.assign(x, found.tree, probes=p)[1]) for p in (1, 2, 4)]
    assert (sqdist[1] <= sqdist[0]).all() and (sqdist[2] <= sqdist[1]).all()
    assert (sqdist[2] < sqdist[0]).any()


def test_iterations_never_raise_the_inertia():
    x = blobs()
    rows = jnp.asarray(x)
    top = kmeans.fit(jax.random.key(0), rows, 10, n_init=3)
    sizes = np.bincount(top.labels, minlength=10)
    first = np.r_[0, np.cumsum(hierarchical._shares(sizes * 1.0, sizes, 100))]
    leaves = hierarchical._begin(jax.random.key(1), rows, np.asarray(top.labels), first)
    groups = hierarchical._Groups.of(np.asarray(top.labels), first)
    inertias = []
    for _ in range(6):
        tree = hierarchical.Tree(top.centroids, leaves, first)
        inertias.append(float(jnp.sum(hierarchical.assign(rows, tree)[1])))
        leaves = hierarchical._iterate(rows, leaves, groups.arrays, width=groups.width)
    assert (np.diff(inertias) <= 1e-6 * inertias[0]).all() and inertias[-1] < inertias[0]


@pytest.mark.parametrize(
    ("weights", "sizes", "k"),
    [
        ([100, 1, 0, 50], [100, 1, 0, 50], 20),
        ([5, 5, 5], [5, 5, 5], 15),
        ([1, 1, 1000], [1, 1, 1000], 3),
        ([7, 0, 9], [7, 0, 9], 2),
        ([0.0, 0.0, 0.0], [4, 3, 0], 5),
        ([1e-3, 1e6, 1.0], [1000, 3, 50], 200),
        ([1e30, 0.0], [2, 1000], 900),
    ],
)
def test_leaves_go_by_weight(weights, sizes, k):
    weights, sizes = np.array(weights, float), np.array(sizes)
    shares = hierarchical._shares(weights, sizes, k)
    assert shares.sum() == k and (shares <= sizes).all() and (shares[sizes > 0] > 0).all()
    free = (shares > 1) & (shares < sizes)  # bounds aside, as the weights are
    if free.sum() > 1:
        per_leaf = weights[free] / shares[free]
        assert per_leaf.max() < 3 * per_leaf.min() + 1e-9


def test_real_images_beside_all_leaves_at_once(data_dir):
    dataset, _ = data.load("usps")
    x = np.asarray(dataset.x).reshape(len(dataset.x), -1)
    found = hierarchical.fit(jax.random.key(0), x, 400, probes=4)
    flat = kmeans.fit(jax.random.key(0), x, 400, n_init=1, max_iter=10)
    assert found.inertia < 1.05 * flat.inertia
    assert len(np.unique(found.labels)) == 400


@pytest.mark.parametrize("k, n_parts", [(400, None), (100, 20), (40, 20)])
def test_fewer_distinct_rows_than_parts(k, n_parts):
    """Trap: parts that no row went to have no leaves, and rows must not be sent there later."""
    distinct = np.random.default_rng(0).normal(size=(15, 3)).astype(np.float32)
    x = np.repeat(distinct, 100, axis=0)
    found = hierarchical.fit(jax.random.key(0), x, k, n_parts=n_parts)
    assert found.inertia < 1e-6 * np.sum((x - x.mean(axis=0)) ** 2)
    new = x + np.float32(0.01)
    labels, sqdist = hierarchical.assign(new, found.tree)
    np.testing.assert_allclose(found.tree.leaves[labels], x, atol=1e-3)
    np.testing.assert_allclose(sqdist, 3e-4, rtol=0.05)


def test_few_leaves_where_rows_are_dense():
    """Nearly all rows in a tight ball: the leaves are needed outside."""
    rng = np.random.default_rng(0)
    x = np.concatenate([1e-3 * rng.normal(size=(2910, 6)), 5 * rng.normal(size=(90, 6))])
    found = hierarchical.fit(jax.random.key(0), x.astype(np.float32), 100)
    assert found.inertia < 0.02 * np.sum((x - x.mean(axis=0)) ** 2)
    assert np.diff(found.tree.first).max() < 34


@pytest.mark.parametrize("change", [lambda x: x + 1e3, lambda x: x * 1e18, lambda x: x * 1e-18])
def test_labels_of_fit_are_those_of_assign(change):
    x = change(blobs()).astype(np.float32)
    found = hierarchical.fit(jax.random.key(0), x, 100)
    labels, _ = hierarchical.assign(x, found.tree)
    np.testing.assert_array_equal(labels, found.labels)
    nearest = kmeans.assign(x, found.tree.leaves)[0]
    every = hierarchical.assign(x, found.tree, probes=len(found.tree.parts))[0]
    assert np.mean(np.asarray(every) == np.asarray(nearest)) > 0.999
    assert len(np.unique(labels)) > 90


def test_every_row_a_leaf_and_duplicates():
    x = blobs(n=16)
    found = hierarchical.fit(jax.random.key(0), x, 16)
    assert len(found.tree.leaves) == 16
    assert found.inertia < 0.05 * cluster.KMeans(4, n_init=3, random_state=0).fit(x).inertia_
    same = hierarchical.fit(jax.random.key(0), np.ones((16, 6), np.float32), 16)
    assert same.inertia == 0 and np.isfinite(same.tree.leaves).all()
    one = hierarchical.fit(jax.random.key(0), x, 1)
    np.testing.assert_allclose(one.tree.leaves[0], x.mean(axis=0), atol=1e-5)


def test_a_large_offset_costs_no_digits(found):
    x = blobs()
    far = hierarchical.fit(jax.random.key(0), x.astype(np.float64) + 1e7, 100)
    assert far.tree.leaves.dtype == np.float64
    np.testing.assert_allclose(far.inertia, found.inertia, rtol=0.02)
    labels, sqdist = hierarchical.assign(x.astype(np.float64) + 1e7, far.tree)
    np.testing.assert_array_equal(labels, far.labels)
    np.testing.assert_allclose(jnp.sum(sqdist), far.inertia, rtol=1e-4)


def test_a_pure_function_of_its_key(found):
    x = blobs()
    again = hierarchical.fit(jax.random.key(0), x, 100)
    np.testing.assert_array_equal(found.labels, again.labels)
    other = hierarchical.fit(jax.random.key(4), x, 100)
    assert not np.array_equal(found.labels, other.labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_clusters": 5000}, "1 <= n_clusters <= 3000"),
        ({"n_clusters": 10, "n_parts": 11}, "n_parts as a whole number from 1 to 10"),
        ({"n_clusters": 100, "probes": 11}, "probes as a whole number from 1 to 10"),
        ({"n_clusters": 10, "max_iter": 0}, "max_iter >= 1"),
        ({"n_clusters": 10, "n_parts": 3.5}, "n_parts as a whole number from 1 to 10, found 3.5"),
        ({"n_clusters": 10, "probes": 1.5}, "probes as a whole number"),
    ],
)
def test_numbers_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        hierarchical.fit(jax.random.key(0), blobs(), **arguments)


def test_new_rows_of_another_width(found):
    with pytest.raises(ValueError, match=r"expected x \[n, 6\]"):
        hierarchical.assign(np.zeros((4, 5), np.float32), found.tree)
    with pytest.raises(ValueError, match=r"expected a Tree, such as found.tree, found a Hier"):
        hierarchical.assign(blobs(), found)
    bad = blobs()
    bad[3, 1] = np.nan
    with pytest.raises(ValueError, match="found 1 NaN"):
        hierarchical.assign(bad, found.tree)
    with pytest.raises(ValueError, match="found 1 NaN"):
        hierarchical.fit(jax.random.key(0), bad, 10)
