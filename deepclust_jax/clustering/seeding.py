"""First centroids for k-means. `x` is expected to be centred and scaled: see `kmeans.fit`."""

import math

import jax
import jax.numpy as jnp

from deepclust_jax.types import Array, Key

# Below this share of |x|^2 + |c|^2 an expanded squared distance is rounding noise, not distance.
_NOISE = 1e-6


def random_rows(key: Key, x: Array, n_clusters: int, weights: Array) -> Array:
    """Distinct rows, drawn with probability proportional to weight. [n, d], [n] -> [k, d]."""
    # Gumbel top-k: draws without replacement, and a row of weight 0 comes last.
    scores = jnp.log(weights) + jax.random.gumbel(key, weights.shape, x.dtype)
    return x[jax.lax.top_k(scores, n_clusters)[1]]


def kmeans_plus_plus(
    key: Key, x: Array, n_clusters: int, weights: Array, *, n_trials: int | None = None
) -> Array:
    """Centroids by greedy k-means++ (Arthur & Vassilvitskii 2007). [n, d], [n] -> [k, d].

    Each centroid is the best of `n_trials` rows drawn with probability proportional to weight times
    squared distance to the nearest centroid so far; the default is 2 + floor(log k), as in
    scikit-learn. The first k centroids of a longer sequence are a seeding with k centroids.
    """
    n_trials = n_trials or 2 + int(math.log(n_clusters))
    squares = jnp.sum(x**2, axis=-1)
    first = _draw(jax.random.fold_in(key, 0), weights, 1)[0]
    nearest = _distances(x, squares, first[None])[0]
    centroids = jnp.zeros((n_clusters, x.shape[1]), x.dtype).at[0].set(x[first])

    def add(i, carry):
        centroids, nearest = carry
        rows = _draw(jax.random.fold_in(key, i), weights * nearest, n_trials)
        candidates = jnp.minimum(nearest[None, :], _distances(x, squares, rows))  # [trials, n]
        best = jnp.argmin(jnp.dot(candidates, weights, precision=jax.lax.Precision.HIGHEST))
        return centroids.at[i].set(x[rows[best]]), candidates[best]

    return jax.lax.fori_loop(1, n_clusters, add, (centroids, nearest))[0]


def _draw(key: Key, potential: Array, n_draws: int) -> Array:
    """Rows drawn with probability proportional to potential; uniformly where all are 0."""
    potential = jnp.where(jnp.any(potential > 0), potential, 1.0)
    cumulative = jnp.cumsum(potential)
    # 1 - u lies in (0, 1]: a draw of 0 would take row 0 even where its potential is 0.
    target = (1.0 - jax.random.uniform(key, (n_draws,), cumulative.dtype)) * cumulative[-1]
    return jnp.minimum(jnp.searchsorted(cumulative, target), potential.shape[0] - 1)


def _distances(x: Array, squares: Array, rows: Array) -> Array:
    """Squared distances of chosen rows to all rows. [n, d], [n], [t] -> [t, n]."""
    scale = squares[rows][:, None] + squares[None, :]
    product = jnp.dot(x[rows], x.T, precision=jax.lax.Precision.HIGHEST)
    sqdist = scale - 2.0 * product
    return jnp.where(sqdist > _NOISE * scale, sqdist, 0.0)
