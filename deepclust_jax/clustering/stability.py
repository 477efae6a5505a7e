"""How much of a k-means depends on which rows it was given: a score that needs no labels.

    score = stability.of_halves(jax.random.key(0), x, 10)

Clusters that are in the data are found again in other rows of it, those that k-means cut through a
dense place are not (Ben-Hur et al. 2002, "A stability based method for discovering structure in
clustered data"; here the halves are compared on all rows and not on those in both).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from deepclust_jax.clustering import kmeans
from deepclust_jax.metrics.jittable import ari_jax
from deepclust_jax.types import Array, Key


@partial(jax.jit, static_argnames=("n_clusters", "n_halves", "n_init"))
def of_halves(
    key: Key,
    x: Array,
    n_clusters: int,
    *,
    n_halves: int = 6,
    n_init: int = 10,
    n_active: Array | int | None = None,
) -> Array:
    """Mean adjusted Rand index of k-means fitted to random halves of the rows. [n, d] -> [], <= 1.

    Every two of `n_halves` halves are compared, each by the nearest of its centroids to all rows.
    A half in which all rows are in one cluster agrees with none: 0. The halves depend on the key
    alone, not on rows or clusters. `n_active` is that of `kmeans.fit`.

    Raises:
        ValueError: as `kmeans.fit`, for half of the rows.
    """
    half_key, fit_key = jax.random.split(key)
    n = len(x)

    def clusters(keys):
        half = jax.random.permutation(keys[0], n)[: n // 2]
        found = kmeans.fit(
            keys[1], x[half], n_clusters, n_init=n_init, n_active=n_active, sample=None
        )
        return kmeans.assign(x, found.centroids)[0]

    keys = jax.random.split(half_key, n_halves), jax.random.split(fit_key, n_halves)
    labels = jax.lax.map(clusters, keys)
    index = partial(ari_jax, n_classes=n_clusters, n_clusters=n_clusters)
    first, second = np.triu_indices(n_halves, 1)
    is_one = jnp.all(labels == labels[:, :1], axis=1)
    either = is_one[first] | is_one[second]
    return jnp.mean(jnp.where(either, 0.0, jax.vmap(index)(labels[first], labels[second])))
