"""Better centroids by swaps: what restarts are for few clusters, this is for many.

A row drawn by its squared distance takes the place of the centroid that is missed least, where that
lowers the inertia (Lattanzi & Sohler 2019, LS++); Lloyd's iterations follow every swap. k-means++
leaves a few of many clusters without a centroid, and Lloyd's iterations never mend that.
"""

import jax
import jax.numpy as jnp

from deepclust_jax.clustering import lloyd, seeding
from deepclust_jax.types import Array, Key

_CANDIDATES = 8  # rows drawn in one step, of which the best is tried
_FOLLOW = 3  # Lloyd's iterations after each


def improve(
    key: Key,
    plan: lloyd.Plan,
    rows: lloyd.Rows,
    centroids: Array,
    active: Array,
    steps: int,
    *,
    spherical: bool = False,
) -> Array:
    """Centroids after `steps` tried swaps; their inertia is at most that of those given. [k, d]."""

    def step(i, centroids):
        swapped = _swap(jax.random.fold_in(key, i), plan, rows, centroids, active)
        found = lloyd.descend(plan, rows, swapped, active, _FOLLOW, 0.0, spherical=spherical)
        return found.centroids

    return jax.lax.fori_loop(0, steps, step, centroids)


def _swap(key, plan, rows, centroids, active):
    """The best swap of one of the drawn rows for one of the centroids, if it lowers the inertia."""
    x, weights = rows.x, rows.weights
    k = centroids.shape[0]
    labels, first, second = two_nearest(plan, x, centroids, active)
    drawn = seeding.draw(key, weights * first, _CANDIDATES)
    new = seeding.distances(x, jnp.sum(x**2, axis=-1), drawn).T  # [n, candidates]
    stays = jnp.minimum(first[:, None], new) * weights[:, None]
    goes = jnp.minimum(second[:, None], new) * weights[:, None]
    lost = jax.ops.segment_sum(goes - stays, labels, k)  # by the own centroid, if it goes
    cost = jnp.sum(stays, axis=0)[None, :] + jnp.where(active[:, None], lost, jnp.inf)
    best = jnp.argmin(cost)
    centroid, candidate = best // _CANDIDATES, best % _CANDIDATES
    better = cost[centroid, candidate] < jnp.sum(weights * first)
    return jnp.where(better, centroids.at[centroid].set(x[drawn[candidate]]), centroids)


def two_nearest(
    plan: lloyd.Plan, x: Array, centroids: Array, active: Array
) -> tuple[Array, Array, Array]:
    """Nearest centroid, and squared distances to it and to the next one. -> [n], [n], [n].

    The second is infinite where only one centroid is active.
    """
    n, k = x.shape[0], centroids.shape[0]
    block = min(n, max(2**20 // max(k, x.shape[1]), 256))
    offsets = jnp.where(active, jnp.sum(centroids**2, axis=-1), jnp.inf)

    def measure(start, _, found):
        rows = jax.lax.dynamic_slice_in_dim(x, start, block)
        squares = jnp.sum(rows**2, axis=-1)
        scores = offsets[:, None] - 2.0 * jnp.dot(centroids, rows.T, precision=lloyd.EXACT)
        labels = jnp.argmin(scores, axis=0).astype(jnp.int32)
        own = jnp.arange(k)[:, None] == labels[None, :]
        first = squares + jnp.min(scores, axis=0)
        second = squares + jnp.min(jnp.where(own, jnp.inf, scores), axis=0)
        part = labels, jnp.maximum(first, 0.0), jnp.maximum(second, 0.0)
        put = lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, start, axis=0)  # noqa: E731
        return jax.tree.map(put, found, part)

    zeros = jnp.zeros(n, x.dtype)
    return lloyd.over_blocks(n, block, measure, (jnp.zeros(n, jnp.int32), zeros, zeros))
