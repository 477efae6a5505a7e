"""DBSCAN: scikit-learn's labels, on worked and real rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import cluster, datasets
from sklearn.preprocessing import StandardScaler

from deepclust_jax.clustering import dbscan


def assert_same(x, eps, min_samples):
    theirs = cluster.DBSCAN(eps=eps, min_samples=min_samples).fit(np.asarray(x, np.float64))
    found = dbscan.fit(x, eps, min_samples=min_samples)
    np.testing.assert_array_equal(found.labels, theirs.labels_)
    is_core = np.zeros(len(x), bool)
    is_core[theirs.core_sample_indices_] = True
    np.testing.assert_array_equal(found.is_core, is_core)
    return theirs.labels_


def test_worked_example():
    """Two chains, a border row between them that goes to the first, and noise."""
    x = np.array([[0.0], [1.0], [2.0], [9.0], [8.0], [7.0], [4.5], [50.0], [3.2]], np.float32)
    found = dbscan.fit(x, 1.25, min_samples=3)
    np.testing.assert_array_equal(found.labels, [0, 0, 0, 1, 1, 1, -1, -1, 0])
    np.testing.assert_array_equal(np.flatnonzero(found.is_core), [1, 2, 4])
    both = np.array([[0.0], [1], [2], [6], [5], [4], [3]], np.float32)
    assert assert_same(both, 1.1, 4).tolist() == [-1] * 7
    assert_same(np.r_[both, both], 1.1, 4)


@pytest.mark.parametrize("tile", [7, 64, 500])
@pytest.mark.parametrize("eps, min_samples", [(0.1, 5), (0.2, 5), (0.3, 20), (0.05, 1), (9.0, 3)])
def test_as_sklearn_on_moons(monkeypatch, tile, eps, min_samples):
    monkeypatch.setattr(dbscan, "_TILE", tile)
    x = datasets.make_moons(500, noise=0.08, random_state=0)[0].astype(np.float32)
    assert_same(x, eps, min_samples)


def test_a_long_chain_is_one_cluster(monkeypatch):
    """The worst case for labels that spread from neighbour to neighbour, in a random order."""
    monkeypatch.setattr(dbscan, "_TILE", 256)
    x = np.random.default_rng(0).permutation(3000).astype(np.float32)[:, None]
    found = dbscan.fit(x, 1.5, min_samples=2)
    assert set(np.asarray(found.labels).tolist()) == {0}


def test_border_rows_go_to_the_first_cluster():
    rng = np.random.default_rng(1)
    x = np.concatenate([rng.normal(size=(250, 2)), rng.normal(size=(250, 2)) + [3.2, 0]])
    x = x[rng.permutation(500)].astype(np.float32)
    labels = assert_same(x, 0.5, 12)
    assert len(set(labels.tolist())) >= 2 and (labels == -1).any()


def test_real_tables(data_dir):
    x = np.load(data_dir / "pendigits.npz", allow_pickle=False)["X"]
    labels = assert_same(x, 25.5, 10)  # distances of integers: no ties at 25.5
    assert 5 < labels.max() < 200


def test_real_images(data_dir):
    x = np.load(data_dir / "usps.npz", allow_pickle=False)["X"].reshape(9298, -1)[:3000]
    labels = assert_same(x, 800.5, 5)
    assert labels.max() >= 1


def test_digits_scaled():
    x = StandardScaler().fit_transform(datasets.load_digits().data).astype(np.float32)
    assert_same(x, 4.9999, 5)


@pytest.mark.parametrize("dtype, offset", [(np.float64, 1e6), (np.float32, 1e3), (np.int64, 10**9)])
def test_offsets_and_types(dtype, offset):
    x = np.round(datasets.make_blobs(400, 3, random_state=0)[0] * 8)
    plain = dbscan.fit(x.astype(np.float32), 6.3, min_samples=4)
    moved = dbscan.fit((x + offset).astype(dtype), 6.3, min_samples=4)
    np.testing.assert_array_equal(plain.labels, moved.labels)


def test_duplicates_and_one_row():
    assert dbscan.fit(np.eye(30, 4, dtype=np.float32), 1e30).labels.tolist() == [0] * 30
    assert dbscan.fit(np.ones((30, 4), np.float32), 0.5).labels.tolist() == [0] * 30
    assert dbscan.fit(np.ones((1, 4), np.float32), 0.5, min_samples=2).labels.tolist() == [-1]
    assert dbscan.fit(np.ones((1, 4), np.float32), 0.5, min_samples=1).labels.tolist() == [0]


def test_near_duplicates_far_from_the_origin_and_outliers():
    """Trap: distances from a product are rounding noise where rows are large beside eps."""
    rng = np.random.default_rng(0)
    twins = np.repeat(rng.normal(size=(20, 50)), 10, axis=0).astype(np.float32)
    assert assert_same(twins, 1e-3, 5).max() == 19
    assert_same(twins[:, :2], 1e-4, 5)
    for far in (1e4, 1e6):
        x = np.concatenate([rng.normal(size=(199, 2)), [[far, 0]]]).astype(np.float32)
        assert assert_same(x, 0.2, 5).max() > 3


def test_memory_does_not_go_with_pairs():
    rows = jax.ShapeDtypeStruct((32_768, 200), jnp.float32)
    squares, counts = (jax.ShapeDtypeStruct((32_768,), kind) for kind in (jnp.float32, jnp.int32))
    pairs = jax.ShapeDtypeStruct((1024, 2), jnp.int32)
    both = (rows, squares), (rows, squares)
    program = dbscan._fold_pairs.lower(
        dbscan._count, *both, pairs, 1000, jnp.float32(1), counts, (), tile=1024, is_same=True
    )
    assert program.compile().memory_analysis().temp_size_in_bytes < 32 * 2**20


@pytest.mark.parametrize(
    "args, message",
    [
        ((np.ones(3), 1.0), r"expected rows x of shape \[n, d\]"),
        ((np.full((3, 2), np.nan), 1.0), "expected finite x"),
        ((np.ones((3, 2)), 0.0), "expected eps > 0, found 0.0"),
        ((np.ones((3, 2)), np.nan), "expected eps > 0, found nan"),
        ((np.ones((3, 2)), "1"), "expected eps > 0, found '1'"),
    ],
)
def test_bad_input(args, message):
    with pytest.raises(ValueError, match=message):
        dbscan.fit(*args)
    with pytest.raises(ValueError, match="expected a whole number min_samples >= 1, found 0"):
        dbscan.fit(np.ones((3, 2)), 1.0, min_samples=0)
