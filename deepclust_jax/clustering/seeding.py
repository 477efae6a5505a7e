"""First centroids for k-means. No large offset is expected in `x`: see `kmeans.fit`."""

import math

import jax
import jax.numpy as jnp

from deepclust_jax.clustering import lloyd
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
    first = draw(jax.random.fold_in(key, 0), weights, 1)[0]
    nearest = distances(x, squares, first[None])[0]
    centroids = jnp.zeros((n_clusters, x.shape[1]), x.dtype).at[0].set(x[first])

    def add(i, carry):
        centroids, nearest = carry
        rows = draw(jax.random.fold_in(key, i), weights * nearest, n_trials)
        candidates = jnp.minimum(nearest[None, :], distances(x, squares, rows))  # [trials, n]
        best = jnp.argmin(jnp.dot(candidates, weights, precision=jax.lax.Precision.HIGHEST))
        return centroids.at[i].set(x[rows[best]]), candidates[best]

    return jax.lax.fori_loop(1, n_clusters, add, (centroids, nearest))[0]


def kmeans_parallel(
    key: Key, x: Array, n_clusters: int, weights: Array, *, rounds: int = 5, oversampling: float = 2
) -> Array:
    """Centroids by k-means|| (Bahmani et al. 2012), for many clusters. [n, d], [n] -> [k, d].

    Every round draws `oversampling` times k rows at once, with probability proportional to weight
    times squared distance to the nearest row drawn before; greedy k-means++ then chooses among
    them, each with the weight of the rows nearest to it. That is a few products over all rows where
    k-means++ passes over them k times. Rounds draw a fixed number of rows, with replacement, where
    the paper draws each row by itself, so that shapes are static.
    """
    n, d = x.shape
    per_round = min(max(int(oversampling * n_clusters), 1), n)
    plan = lloyd.plan(n, d, per_round)
    rows = lloyd.prepare(plan, x, weights)
    first = x[draw(jax.random.fold_in(key, 0), weights, 1)]

    def add(i, carry):
        candidates, nearest, own = carry
        new = x[draw(jax.random.fold_in(key, i + 1), weights * nearest, per_round)]
        labels = lloyd.nearest(plan, rows, new, jnp.sum(new**2, axis=-1))
        sqdist = lloyd.distances(x, new, labels)
        own = jnp.where(sqdist < nearest, 1 + i * per_round + labels, own)
        return candidates.at[i].set(new), jnp.minimum(nearest, sqdist), own

    candidates, own = jnp.zeros((rounds, per_round, d), x.dtype), jnp.zeros(n, jnp.int32)
    carry = candidates, lloyd.distances(x, first, own), own
    candidates, _, own = jax.lax.fori_loop(0, rounds, add, carry)
    candidates = jnp.concatenate([first, candidates.reshape(-1, d)])
    counts = jax.ops.segment_sum(weights, own, len(candidates))  # of a row drawn twice 0
    return kmeans_plus_plus(jax.random.fold_in(key, rounds + 1), candidates, n_clusters, counts)


def draw(key: Key, potential: Array, n_draws: int) -> Array:
    """Rows drawn with probability proportional to potential; uniformly where all are 0."""
    potential = jnp.where(jnp.any(potential > 0), potential, 1.0)
    cumulative = jnp.cumsum(potential)
    # 1 - u lies in (0, 1]: a draw of 0 would take row 0 even where its potential is 0.
    target = (1.0 - jax.random.uniform(key, (n_draws,), cumulative.dtype)) * cumulative[-1]
    return jnp.minimum(jnp.searchsorted(cumulative, target), potential.shape[0] - 1)


def distances(x: Array, squares: Array, rows: Array) -> Array:
    """Squared distances of chosen rows to all rows. [n, d], [n], [t] -> [t, n]."""
    scale = squares[rows][:, None] + squares[None, :]
    product = jnp.dot(x[rows], x.T, precision=jax.lax.Precision.HIGHEST)
    sqdist = scale - 2.0 * product
    return jnp.where(sqdist > _NOISE * scale, sqdist, 0.0)
