"""k-means whose clusters have sizes between bounds.

    found = balanced.fit(jax.random.key(0), x, 10)  # all of one size, up to one row
    found = balanced.fit(jax.random.key(0), x, 10, min_size=500)  # no tiny cluster

At given centroids the best labels solve a transport problem (Bradley et al. 2000). Its dual is a
price for each cluster: rows go where distance plus price is least, and prices are right when the
sizes are. They are found by Newton's steps at falling temperatures, where sizes are soft (as in
Cuturi 2013); the few rows that are still too many then move where that costs least. `gap` says how
far the labels are from the best ones at most.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepclust_jax.clustering import kmeans, lloyd
from deepclust_jax.types import Array, Key

_COLDEST = 2.0**-14  # of the mean distance between the two nearest clusters of a row
_STEPS = 20  # at each temperature, at most
_LONGEST = 8  # change of a price in one step, in temperatures


class Balanced(NamedTuple):
    """What `fit` found."""

    centroids: Array  # [k, d], means of their rows
    labels: Array  # [n] int32
    inertia: Array  # [], sum of squared distances to the own centroid
    gap: Array  # [], the share of their cost that other labels could save at most, in [0, 1]
    n_iter: Array  # [] int32
    converged: Array  # [] bool, False if max_iter came first


def fit(
    key: Key,
    x: Array,
    n_clusters: int,
    *,
    min_size: int | None = None,
    max_size: int | None = None,
    init: str | Array | Callable[..., Array] = "k-means++",
    n_init: int = 10,
    max_iter: int = 100,
    tol: float = 1e-4,
) -> Balanced:
    """k-means with bounded sizes, from the centroids that `kmeans.fit` finds. [n, d] -> Balanced.

    Args:
        key: a typed key; the result is a function of it and of the rows.
        x: rows [n, d].
        n_clusters: k, 1 <= k <= n.
        min_size: rows of the smallest cluster. None: floor(n / k) where max_size is None too,
            else 0.
        max_size: rows of the largest cluster. None: ceil(n / k) where min_size is None too,
            else n.
        init: first centroids, or how `kmeans.fit` makes its own.
        n_init: its restarts.
        max_iter: iterations of labels and means at most.
        tol: ends when an iteration lowers the inertia by less than this share of it.

    Memory goes with n k: all distances are held. For more clusters see hierarchical.py.

    Raises:
        ValueError: wrong shapes, NaN or infinite values, k outside 1..n, bounds that n rows and k
            clusters cannot meet.
    """
    kmeans.check_key(key)
    kmeans.check(x, n_clusters, init, n_init, max_iter, None, None)
    n = x.shape[0]
    low, high = _bounds(n, n_clusters, min_size, max_size)
    start = kmeans.fit(key, x, n_clusters, init=init, n_init=n_init)
    offset = kmeans.offset_of(x)
    found = _fit(
        kmeans.narrow(x, offset), kmeans.narrow(start.centroids, offset), low, high, max_iter, tol
    )
    return found._replace(centroids=kmeans.with_offset(found.centroids, offset))


def _bounds(n, k, min_size, max_size) -> tuple[int, int]:
    if min_size is None and max_size is None:
        return n // k, -(-n // k)
    low, high = min_size or 0, n if max_size is None else max_size
    if not all(isinstance(size, int | np.integer) for size in (low, high)):
        raise ValueError(f"expected whole numbers min_size and max_size, found {low} and {high}")
    if not 0 <= low * k <= n <= high * k:
        raise ValueError(
            f"expected sizes with min_size * {k} <= {n} (the rows) <= max_size * {k}, found "
            f"min_size {low} and max_size {high}"
        )
    return low, min(high, n)


@jax.jit
def _fit(x, centroids, low, high, max_iter, tol) -> Balanced:
    n, k = x.shape[0], centroids.shape[0]
    x, mean, scale = kmeans.normalise(x)
    centroids = (centroids - mean) / scale
    plan = lloyd.plan(*x.shape, k)
    ones = jnp.ones(n, x.dtype)

    def iterate(carry):
        centroids, best, n_iter, _ = carry
        labels, gap = assign(x, centroids, low, high)
        means = lloyd.means(lloyd.totals(plan, x, ones, labels, k), centroids)
        inertia = jnp.sum(lloyd.distances(x, means, labels))
        found = Balanced(means, labels, inertia, gap, n_iter + 1, jnp.bool_(False))
        is_better = inertia < best.inertia
        done = ~(inertia < (1 - tol) * best.inertia)
        best = jax.tree.map(partial(jnp.where, is_better), found, best)
        return means, best, n_iter + 1, done

    worst = jnp.full((), jnp.inf, x.dtype)
    none = Balanced(
        centroids, jnp.zeros(n, jnp.int32), worst, worst, jnp.int32(0), jnp.bool_(False)
    )
    carry = centroids, none, jnp.int32(0), jnp.bool_(False)
    carry = jax.lax.while_loop(lambda c: (c[2] < max_iter) & ~c[3], iterate, carry)
    best = carry[1]
    return best._replace(
        centroids=best.centroids * scale + mean,
        inertia=best.inertia * scale**2,
        n_iter=carry[2],
        converged=carry[3],
    )


def assign(x: Array, centroids: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """Labels of sizes low to high, and the share of their cost that others could save at most.

    [n, d], [k, d] -> [n] int32, []. Rows as large as the centroids' own; for new rows without
    bounds there is `kmeans.assign`.
    """
    k = centroids.shape[0]
    squares = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(centroids**2, axis=1)[None, :]
    cost = squares - 2.0 * jnp.dot(x, centroids.T, precision=lloyd.EXACT)
    cost = jnp.maximum(cost, 0.0)
    prices = _prices(cost, low, high)
    priced = cost + prices[None, :]
    labels = jnp.argmin(priced, axis=1).astype(jnp.int32)
    labels = _repair(priced, labels, low, high)
    # Weak duality: no labels of these sizes cost less than where every row takes its cheapest
    # cluster, less what the bounds are worth. Of rows one by one: sums would lose the digits.
    own = partial(jnp.take_along_axis, indices=labels[:, None], axis=1)
    over = own(priced)[:, 0] - jnp.min(priced, axis=1)
    sizes = jnp.sum(labels[None, :] == jnp.arange(k)[:, None], axis=1)
    slack = jnp.where(prices > 0, high - sizes, sizes - low) * jnp.abs(prices)
    spent = jnp.sum(own(cost))
    gap = (jnp.sum(over) + jnp.sum(slack)) / jnp.where(spent > 0, spent, 1.0)
    return labels, jnp.where(spent > 0, jnp.minimum(gap, 1.0), 0.0)


def _prices(cost, low, high):
    """Prices at which sizes lie between the bounds, but for a few rows; 0 where they do anyway."""
    n, k = cost.shape
    nearest = -jax.lax.top_k(-cost, min(k, 2))[0]
    margin = jnp.mean(nearest[:, -1] - nearest[:, 0])
    spread = jnp.mean(jnp.max(cost, axis=1) - nearest[:, 0])  # to reach a far centroid
    margin, spread = (jnp.where(a > 0, a, 1.0) for a in (margin, spread))

    def excess(prices, temperature):
        """Soft sizes, less those that the prices speak for: low if negative, high if positive."""
        share = jax.nn.softmax(-(cost + prices[None, :]) / temperature, axis=1)
        wanted = low + (high - low) * jax.nn.sigmoid(prices / temperature)
        return share, jnp.sum(share, axis=0) - wanted

    def at(carry):
        prices, temperature = carry

        def step(carry):
            prices, share, wrong, n_steps, _ = carry
            leaning = jax.nn.sigmoid(prices / temperature)
            sizes = jnp.sum(share, axis=0)
            # That all prices rise together changes little: the diagonal keeps them where they are.
            slope = jnp.diag(sizes * (1 + 1e-4) + (high - low) * leaning * (1 - leaning) + 1e-6)
            slope = slope - jnp.dot(share.T, share, precision=lloyd.EXACT)
            change = temperature * jnp.linalg.solve(slope, wrong)
            longest = jnp.maximum(jnp.max(jnp.abs(change)), 1e-30)
            change = change * jnp.minimum(_LONGEST * temperature / longest, 1.0)

            def shorter(tried):
                length = tried[3] / 2
                new = prices + length * change
                return new, *excess(new, temperature), length

            def is_worse(tried):
                return (jnp.sum(tried[2] ** 2) >= jnp.sum(wrong**2)) & (tried[3] > 2.0**-6)

            tried = jax.lax.while_loop(is_worse, shorter, (prices, share, wrong, 2.0))
            is_good = jnp.sum(tried[2] ** 2) < jnp.sum(wrong**2)
            new = jax.tree.map(partial(jnp.where, is_good), tried[:3], (prices, share, wrong))
            return *new, n_steps + 1, ~is_good

        def goes_on(carry):
            return (jnp.sum(jnp.abs(carry[2])) > 1e-3 * n) & (carry[3] < _STEPS) & ~carry[4]

        carry = prices, *excess(prices, temperature), jnp.int32(0), jnp.bool_(False)
        return jax.lax.while_loop(goes_on, step, carry)[0], temperature / 2

    coldest = margin * _COLDEST
    carry = jnp.zeros(k, cost.dtype), jnp.maximum(spread, margin)
    prices = jax.lax.while_loop(lambda carry: carry[1] > coldest, at, carry)[0]
    # What is left of a price where no bound holds is there for softness alone.
    return jnp.where((low < high) & (jnp.abs(prices) < 32 * coldest), 0.0, prices)


def _repair(cost, labels, low, high):
    """Labels after the rows that are too many have moved to where it costs least. [n, k], [n].

    First out of clusters that are too large, then into those that are too small; in every round the
    rows that lose least, as many as the clusters have to give and to take.
    """
    n, k = cost.shape
    cluster = jnp.arange(k)

    def sizes_of(labels):
        return jnp.sum(labels[None, :] == cluster[:, None], axis=1)

    def limits(sizes):
        is_over = jnp.any(sizes > high)
        give = jnp.where(is_over, sizes - high, sizes - low)
        return jnp.maximum(give, 0), jnp.maximum(jnp.where(is_over, high, low) - sizes, 0)

    def move(carry):
        labels, _, _ = carry
        give, take = limits(sizes_of(labels))
        target = jnp.where((take > 0)[None, :], cost, jnp.inf)
        new = jnp.argmin(target, axis=1).astype(jnp.int32)
        own = jnp.take_along_axis(cost, labels[:, None], axis=1)[:, 0]
        loss = jnp.where(give[labels] > 0, jnp.min(target, axis=1) - own, jnp.inf)
        order = jnp.argsort(loss)

        def is_within(group, limit):  # the rows of a group that come first
            member = group[order][:, None] == cluster[None, :]
            rank = jnp.cumsum(member & jnp.isfinite(loss[order])[:, None], axis=0)
            return jnp.any(member & (rank <= limit[None, :]), axis=1)

        goes = is_within(labels, give) & is_within(new, take) & jnp.isfinite(loss[order])
        labels = labels.at[order].set(jnp.where(goes, new[order], labels[order]))
        return labels, unmet(labels), jnp.any(goes)

    def unmet(labels):
        sizes = sizes_of(labels)
        return jnp.any((sizes > high) | (sizes < low))

    # With nan, which only a traced call can bring here, nothing moves.
    carry = labels, unmet(labels), jnp.bool_(True)
    return jax.lax.while_loop(lambda carry: carry[1] & carry[2], move, carry)[0]
