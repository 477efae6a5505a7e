"""Stability of a k-means between halves of the rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepclust_jax.clustering import kmeans, stability
from deepclust_jax.metrics import ari

KEY = jax.random.key(0)


def blobs(k: int, apart: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = apart * np.stack([np.cos(np.arange(k)), np.sin(np.arange(k))], axis=1)
    return np.float32(centres[np.arange(60 * k) % k] + rng.normal(size=(60 * k, 2)))


def test_clusters_that_are_there_are_found_again_and_others_are_not():
    x = blobs(4, 40.0)
    assert float(stability.of_halves(KEY, x, 4)) == 1.0
    assert float(stability.of_halves(KEY, x, 7)) < 0.95
    assert float(stability.of_halves(KEY, blobs(4, 0.0), 4)) < 0.8


def test_it_is_the_mean_index_of_every_two_halves():
    x, n_halves = blobs(3, 2.0), 4
    half_keys, fit_keys = (jax.random.split(k, n_halves) for k in jax.random.split(KEY))
    labels = []
    for half_key, fit_key in zip(half_keys, fit_keys, strict=True):
        half = np.asarray(jax.random.permutation(half_key, len(x)))[: len(x) // 2]
        assert len(set(half.tolist())) == 90
        found = kmeans.fit(fit_key, x[half], 5, n_init=3, sample=None)
        labels.append(np.asarray(kmeans.assign(x, found.centroids)[0]))
    every = [ari(labels[i], labels[j]) for i in range(n_halves) for j in range(i)]
    assert 0.2 < min(every) < max(every) < 1.0
    found = stability.of_halves(KEY, x, 5, n_halves=n_halves, n_init=3)
    np.testing.assert_allclose(float(found), np.mean(every), atol=1e-5)


def test_rows_at_one_place_are_not_stable():
    """Trap: features that are all the same agree with themselves in every half."""
    assert float(stability.of_halves(KEY, jnp.ones((40, 3)), 4)) == 0.0


def test_more_clusters_than_half_of_the_rows_are_refused():
    with pytest.raises(ValueError, match=r"expected 1 <= n_clusters <= 5 \(the rows\), found 6"):
        stability.of_halves(KEY, jnp.zeros((10, 2)), 6)
