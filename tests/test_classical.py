"""Agglomerative clustering and HDBSCAN: worked examples, real rows, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.cluster import hierarchy
from sklearn import datasets

from deepclust_jax import metrics
from deepclust_jax.clustering import classical


def test_linkages_on_a_worked_example():
    """A chain of near rows and a compact pair: single linkage keeps the chain, complete cuts it."""
    x = np.array([[0], [1], [2.1], [3.3], [4.6], [8], [8.1]], np.float32)
    single = classical.agglomerative(x, 2, linkage="single")
    assert len(set(single[:5].tolist())) == 1 and single[5] == single[6] != single[0]
    complete = classical.agglomerative(x, 3, linkage="complete")
    assert len(set(complete[:5].tolist())) == 2


@pytest.mark.parametrize("linkage", classical.LINKAGES)
def test_as_scipy_on_digits(linkage):
    x = datasets.load_digits().data[:600].astype(np.float32)
    theirs = hierarchy.fcluster(hierarchy.linkage(x, linkage), 10, "maxclust")
    labels = classical.agglomerative(x, 10, linkage=linkage)
    assert metrics.ari(theirs, labels) == pytest.approx(1.0) and labels.dtype == np.int32


def test_one_and_n_clusters():
    x = datasets.load_iris().data
    assert set(classical.agglomerative(x, 1).tolist()) == {0}
    assert len(set(classical.agglomerative(x[:20], 20).tolist())) == 20


def test_hdbscan_finds_clusters_of_different_density():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(150, 2)) * 0.1, 8 + rng.normal(size=(150, 2)) * 1.5])
    labels = classical.hdbscan(x.astype(np.float32), min_cluster_size=20)
    assert len(set(labels[labels >= 0].tolist())) == 2 and labels.dtype == np.int32
    assert metrics.ari(np.repeat([0, 1], 150)[labels >= 0], labels[labels >= 0]) == 1.0


def test_types_that_sklearn_does_not_know():
    x = datasets.load_iris().data
    expected = classical.agglomerative(x.astype(np.float32), 3)
    labels = classical.agglomerative(jnp.asarray(x, jnp.bfloat16), 3)
    assert metrics.ari(expected, labels) > 0.9  # eight bits of each value are left
    assert len(classical.hdbscan(jnp.asarray(x, jnp.float16))) == 150


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x: classical.agglomerative(x, 0), "expected 1 <= n_clusters <= 150"),
        (lambda x: classical.agglomerative(x, 3, linkage="median"), "expected linkage ward, "),
        (lambda x: classical.agglomerative(x[0], 2), r"expected rows x of shape \[n, d\]"),
        (lambda x: classical.agglomerative(np.zeros((40_001, 1)), 2), "at most 40,000 rows"),
        (lambda x: classical.hdbscan(x, min_cluster_size=1), "2 <= min_cluster_size <= 150"),
        (lambda x: classical.hdbscan(x, min_samples=0), "expected 1 <= min_samples <= 150"),
        (lambda x: classical.hdbscan(np.where(x > 7, np.nan, x)), "expected finite x"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(datasets.load_iris().data)
    assert "\n" not in str(error.value)
