"""k-means on rows that do not fit in memory: exact, block by block, or one mini-batch at a time.

found = streaming.fit(jax.random.key(0), np.load("rows.npy", mmap_mode="r"), 100)

state = streaming.start(centroids)      # mini-batches as they come
for batch in batches:
    state = streaming.partial_fit(state, batch)
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepclust_jax.clustering import kmeans, lloyd
from deepclust_jax.types import Array, Key

Source = np.ndarray | Callable[[], Iterable[np.ndarray]]


class MiniBatch(NamedTuple):
    """Centroids and how much weight each has seen."""

    centroids: Array  # [k, d]
    counts: Array  # [k]


def start(centroids: Array) -> MiniBatch:
    """A state that has seen no row: the first ones replace these centroids [k, d]."""
    centroids = jnp.asarray(centroids, jnp.float32)
    if centroids.ndim != 2 or 0 in centroids.shape:
        raise ValueError(f"expected centroids [k, d], found {centroids.shape}")
    return MiniBatch(centroids, jnp.zeros(centroids.shape[0], jnp.float32))


def partial_fit(state: MiniBatch, x: Array, weights: Array | None = None) -> MiniBatch:
    """The state after one more batch: every centroid is the mean of all rows that were ever given
    to it (Sculley 2010, with the rate 1 / count). [b, d], [b].

    Raises:
        ValueError: wrong shapes, NaN or infinite values, negative weights.
    """
    d = state.centroids.shape[1]
    shape = getattr(x, "shape", ())
    if len(shape) != 2 or shape[0] == 0 or shape[1] != d:
        found = shape or f"a {type(x).__name__}"
        raise ValueError(f"expected a batch as an array [b, {d}], found {found}")
    weights = np.ones(x.shape[0], np.float32) if weights is None else weights
    if np.shape(weights) != (x.shape[0],):
        raise ValueError(f"expected weights of shape ({x.shape[0]},), found {np.shape(weights)}")
    weights = jnp.asarray(weights, jnp.float32)
    kmeans.check_finite("x", x)
    kmeans.check_finite("weights", weights)
    if not isinstance(weights, jax.core.Tracer) and bool(jnp.any(weights < 0)):
        raise ValueError("expected weights >= 0, found negative ones")
    return _partial_fit(state, kmeans.narrow(x, np.float32(0)).astype(jnp.float32), weights)


@jax.jit
def _partial_fit(state, x, weights):
    k = state.centroids.shape[0]
    labels, _ = kmeans.assign(x, state.centroids)
    moved = x - state.centroids[labels]  # differences: large means lose no digits
    sums, counts = lloyd.totals(lloyd.plan(*x.shape, k), moved, weights, labels, k)
    total = state.counts + counts
    shift = sums / jnp.maximum(total, 1e-30)[:, None]
    return MiniBatch(
        jnp.where(counts[:, None] > 0, state.centroids + shift, state.centroids), total
    )


def fit(
    key: Key,
    source: Source,
    n_clusters: int,
    *,
    init: str | Array | Callable[..., Array] = "k-means++",
    n_init: int = 10,
    max_iter: int = 300,
    tol: float = 1e-4,
    sample: int | None = None,
    block: int = 65_536,
) -> kmeans.KMeans:
    """`kmeans.fit` for rows on disk or from an iterator: exact Lloyd iterations in bounded memory.

    Args:
        key: a typed key; the result is a function of it, of the rows and of `block`.
        source: an array [n, d], such as `numpy.load(file, mmap_mode="r")`, or a function that
            returns an iterator of arrays [b, d], the same ones at every call.
        n_clusters: k.
        init: as in `kmeans.fit`; restarts are made on a sample.
        n_init: restarts.
        max_iter: passes over the rows at most.
        tol: as in `kmeans.fit`.
        sample: rows of the sample, which is held in memory. None: 65,536, or 8 for each cluster
            where that is more.
        block: rows of an array read at a time; the blocks of an iterator are its own.

    The result is that of `kmeans.fit` with the centroids found on the sample, but that a cluster
    which loses its last row keeps its centroid. `labels` [n] is a NumPy array.

    Raises:
        ValueError: wrong shapes, fewer rows than clusters, NaN or infinite values, or an iterator
            that gives other rows at its second call.
    """
    kmeans.check_key(key)
    if n_clusters < 1:
        raise ValueError(f"expected n_clusters >= 1, found {n_clusters}")
    sample = kmeans.sample_size(sample, n_clusters)
    if min(block, max_iter) < 1:
        raise ValueError(f"expected block and max_iter >= 1, found {block} and {max_iter}")
    blocks = _blocks(source, block)
    few, offset, variance, n = _survey(key, blocks, sample)
    if n < n_clusters:
        raise ValueError(f"expected at least {n_clusters} rows, one for each cluster, found {n}")
    if hasattr(init, "shape"):
        centroids = np.asarray(init, np.float64) - offset
        kmeans.check_finite("init", init)
        if centroids.shape != (n_clusters, few.shape[1]):
            raise ValueError(
                f"expected first centroids {(n_clusters, few.shape[1])}, found {centroids.shape}"
            )
    else:
        found = kmeans.fit(key, few, n_clusters, init=init, n_init=n_init, tol=tol)
        centroids = found.centroids
    centroids = jnp.asarray(centroids, jnp.float32)
    labels, n_iter, converged = np.full(n, -1, np.int32), 0, False
    while n_iter < max_iter and not converged:
        totals = lloyd.Totals(jnp.zeros_like(centroids), jnp.zeros(n_clusters, jnp.float32))
        repeated = True
        for rows, new, part, _ in _passes(blocks, centroids, offset, n):
            totals = jax.tree.map(jnp.add, totals, part)
            repeated &= np.array_equal(labels[rows], new)
            labels[rows] = new
        means = lloyd.means(totals, centroids)
        converged = repeated or bool(jnp.sum((means - centroids) ** 2) <= tol * variance)
        centroids, n_iter = means, n_iter + 1
    inertia = 0.0
    for rows, new, _, part_inertia in _passes(blocks, centroids, offset, n):
        labels[rows] = new
        inertia += float(part_inertia)
    return kmeans.KMeans(
        np.asarray(centroids, np.float64) + offset if np.any(offset) else centroids,
        labels,
        jnp.float32(inertia),
        jnp.int32(n_iter),
        jnp.bool_(converged),
    )


def _blocks(source: Source, block: int) -> Callable[[], Iterator[np.ndarray]]:
    """A function that gives the rows again at every call, in blocks."""
    if callable(source):
        return lambda: (x for x in source() if not hasattr(x, "shape") or x.shape[0] > 0)
    shape = getattr(source, "shape", ())
    if len(shape) != 2 or 0 in shape:
        found = shape or f"a {type(source).__name__}"
        raise ValueError(
            "expected rows as an array [n, d] or a function that gives an iterator of blocks, "
            f"found {found}"
        )
    starts = range(0, source.shape[0], block)
    return lambda: (np.asarray(source[start : start + block]) for start in starts)


def _survey(key, blocks, size) -> tuple[np.ndarray, np.ndarray, float, int]:
    """One pass: a random sample of the rows less their mean, the mean, the mean variance, n.

    Every row has a random number, and the smallest ones are kept: a draw without replacement of
    rows whose count is not known before.
    """
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
    kept, numbers, n = None, np.empty(0), 0
    mean = squares = 0.0
    for x in blocks():
        width = "d" if kept is None else kept.shape[1]
        if not hasattr(x, "shape") or x.ndim != 2 or width not in ("d", x.shape[1]):
            raise ValueError(f"expected blocks as arrays [b, {width}], found {np.shape(x)}")
        kmeans.check_finite(f"x, rows from {n} on", x)
        drawn = rng.uniform(size=len(x))
        # The means of blocks are joined (Chan et al. 1979): a large offset costs no digits.
        wide = np.asarray(x, np.float64)
        part = wide.mean(axis=0)
        delta, total = part - mean, n + len(x)
        squares = squares + ((wide - part) ** 2).sum(axis=0) + delta**2 * (n * len(x) / total)
        mean = mean + delta * (len(x) / total)
        n = total
        is_low = drawn < (np.inf if len(numbers) < size else numbers.max())
        numbers = np.concatenate([numbers, drawn[is_low]])
        kept = x[is_low] if kept is None else np.concatenate([kept, x[is_low]])
        if len(numbers) > size:
            lowest = np.sort(np.argpartition(numbers, size)[:size])
            numbers, kept = numbers[lowest], kept[lowest]
    if kept is None:
        raise ValueError("expected blocks of rows, found none")
    # Rows of float32 that have no large offset stay as they are.
    offset = mean if np.sum(mean**2) > 4 * np.sum(squares) / n else np.zeros_like(mean)
    few = np.asarray(kept - offset, np.float32)
    return few, offset, float(np.mean(squares) / n), n


def _passes(blocks, centroids, offset, n):
    """For every block: its rows, their labels, totals and inertia. The next block is read and sent
    while the last one is computed."""
    waiting, start = None, 0
    for x in blocks():
        rows = slice(start, start + len(x))
        if rows.stop > n:
            raise ValueError(f"expected {n} rows at every pass, found more; give them again alike")
        start = rows.stop
        found = _of_block(jnp.asarray(np.asarray(x - offset, np.float32)), centroids)
        if waiting is not None:
            yield waiting[0], np.asarray(waiting[1][0]), *waiting[1][1:]
        waiting = rows, found
    if start != n:
        raise ValueError(f"expected {n} rows at every pass, found {start}; give them again alike")
    yield waiting[0], np.asarray(waiting[1][0]), *waiting[1][1:]


@jax.jit
def _of_block(x, centroids):
    k = centroids.shape[0]
    labels, sqdist = kmeans.assign(x, centroids)
    plan = lloyd.plan(*x.shape, k)
    totals = lloyd.totals(plan, x, jnp.ones(x.shape[0], x.dtype), labels, k)
    return labels, totals, jnp.sum(sqdist)
