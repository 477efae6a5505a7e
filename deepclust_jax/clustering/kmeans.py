"""k-means by Lloyd's iterations, equal to scikit-learn's from the same first centroids.

    result = kmeans.fit(jax.random.key(0), x, n_clusters=10)
    labels, sqdist = kmeans.assign(new_x, result.centroids)

Everything is computed after subtracting the mean of the data, in blocks of rows, so that neither a
large offset costs digits nor the n x k matrix of distances ever exists whole.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepclust_jax.clustering import seeding
from deepclust_jax.types import Array, Key

# Products of full float32 precision: the defaults of GPU (TF32) and TPU (bfloat16) move labels.
_EXACT = jax.lax.Precision.HIGHEST

# From this many clusters on a scatter costs less than a product with the one-hot labels.
_SCATTER_FROM = 64


class KMeans(NamedTuple):
    """What `fit` found; `labels` are the nearest of `centroids`."""

    centroids: Array  # [k, d]
    labels: Array  # [n] int32
    inertia: Array  # [], sum of weight times squared distance to the own centroid
    n_iter: Array  # [] int32, iterations of the restart that was kept
    converged: Array  # [] bool, False if max_iter came first


def assign(x: Array, centroids: Array) -> tuple[Array, Array]:
    """Nearest centroid and squared distance to it. [n, d], [k, d] -> [n] int32, [n].

    Ties go to the lowest index. The distances are differentiable in both arguments. NumPy arrays of
    float64 are centred before they become float32, so that a large offset is harmless.

    Raises:
        ValueError: the arrays are not [n, d] and [k, d].
    """
    if not (hasattr(x, "shape") and hasattr(centroids, "shape")):
        found = f"a {type(x).__name__} and a {type(centroids).__name__}"
        raise ValueError(f"expected arrays x [n, d] and centroids [k, d], found {found}")
    shapes = np.shape(x), np.shape(centroids)
    if not len(shapes[0]) == len(shapes[1]) == 2 or 0 in shapes[0] or shapes[0][1] != shapes[1][1]:
        raise ValueError(f"expected x [n, d] and centroids [k, d], found {shapes[0]}, {shapes[1]}")
    offset = np.float32(0)
    if _is_host(x) and _is_host(centroids):
        offset = np.median(np.asarray(centroids, np.float64), axis=0)
    return _assign(narrow(x, offset), narrow(centroids, offset))


def fit(
    key: Key,
    x: Array,
    n_clusters: int,
    *,
    init: str | Array | Callable[..., Array] = "k-means++",
    n_init: int = 10,
    max_iter: int = 300,
    tol: float = 1e-4,
    weights: Array | None = None,
    n_active: Array | int | None = None,
) -> KMeans:
    """The best of `n_init` runs of Lloyd's algorithm, by inertia. [n, d] -> KMeans.

    Args:
        key: a typed key; the result is a function of it.
        x: rows [n, d]; float32, or what can be cast to it. NumPy input is centred in float64 before
            the cast, and float64 or wide integers give NumPy float64 centroids (not under a trace).
        n_clusters: k, static, 1 <= k <= n.
        init: "k-means++" (greedy, as scikit-learn's), "random" (rows), the first centroids
            [k, d], or a function (key, x, n_clusters, weights) -> [k, d]; its rows are centred
            and scaled to at most 1.
        n_init: restarts; 1 is run where `init` is an array.
        max_iter: Lloyd iterations at most, per restart.
        tol: a run ends when the labels repeat or the squared shift of all centroids together is at
            most `tol` times the mean variance of the features.
        weights: [n], >= 0; None counts every row once.
        n_active: use only the first `n_active` clusters; may be traced, so that a sweep over k can
            be one vmapped program. The centroids left out equal the first one and get no rows.

    A cluster that loses its last row takes the row farthest from its centroid, as in scikit-learn.
    Gradients: `inertia` and `centroids` are differentiable in x with the labels held fixed, which
    is exact wherever no row is about to change its cluster.

    Raises:
        ValueError: wrong shapes, k outside 1..n, NaN or infinite values, bad weights.
    """
    check(x, n_clusters, init, n_init, max_iter, weights, n_active)
    offset = np.mean(x, axis=0, dtype=np.float64) if _is_host(x) else np.float32(0)
    start = None
    if not (isinstance(init, str) or callable(init)):
        if _is_host(x) and not _is_host(init):  # a device array takes the offset in float32
            start = narrow(init, offset) - jnp.asarray(offset, jnp.float32)[None, :]
        else:
            start = narrow(init, offset)
        init, n_init = "given", 1
    result = _fit(
        key, narrow(x, offset), n_clusters, start, max_iter, tol,
        None if weights is None else narrow(weights, np.float32(0)),
        n_active, init=init, n_init=n_init,
    )  # fmt: skip
    if not _is_host(x):
        return result
    is_wide = x.dtype.itemsize >= 4 and x.dtype != np.float32
    if is_wide and not isinstance(result.centroids, jax.core.Tracer):
        return result._replace(centroids=np.asarray(result.centroids, np.float64) + offset)
    offset = jnp.asarray(offset, jnp.float32)[None, :]
    return result._replace(centroids=result.centroids + offset)


@partial(jax.jit, static_argnames=("n_clusters", "init", "n_init"))
def _fit(key, x, n_clusters, start, max_iter, tol, weights, n_active, *, init, n_init) -> KMeans:
    mean = jnp.mean(jax.lax.stop_gradient(x), axis=0, keepdims=True)
    scale = power_of_two(x - mean)
    x = (x - mean) / scale  # of size 1: squares neither overflow nor vanish
    weights = jnp.ones(x.shape[0], x.dtype) if weights is None else weights
    heaviest = jax.lax.stop_gradient(jnp.max(weights))
    weights = weights / heaviest
    fixed, fixed_weights, start = jax.lax.stop_gradient((x, weights, start))
    active = jnp.arange(n_clusters) < (n_clusters if n_active is None else n_active)
    threshold = tol * jnp.mean(jnp.var(fixed, axis=0))
    seed = {"k-means++": seeding.kmeans_plus_plus, "random": seeding.random_rows}.get(init, init)

    def run(key):
        if init == "given":
            first = (start - mean) / scale
        else:
            first = seed(key, fixed, n_clusters, fixed_weights)
        found = _lloyd(fixed, first, fixed_weights, active, max_iter, threshold)
        labels = _labels(fixed, found[0], active)
        inertia = jnp.sum(fixed_weights * _direct(fixed, found[0][labels]))
        return found[0], inertia, *found[1:]

    centroids, inertia, n_iter, converged = jax.lax.map(run, jax.random.split(key, n_init))
    best = jnp.argmin(inertia)
    centroids = jnp.where(active[:, None], centroids[best], centroids[best][:1])
    labels = _labels(fixed, centroids, active)
    return KMeans(
        _through_means(x, centroids, labels, weights) * scale + mean,
        labels,
        heaviest * scale**2 * jnp.sum(weights * _direct(x, centroids[labels])),
        n_iter[best],
        converged[best],
    )


def _lloyd(x, centroids, weights, active, max_iter, threshold):
    """Lloyd's iterations from given centroids. -> centroids [k, d], n_iter [], converged []."""
    blocks = blocked(x, centroids.shape[0])
    block_weights = blocked(weights, None, blocks.shape[:2])

    def iterate(carry):
        old, old_labels, n_iter, _ = carry
        labels, sums, counts = accumulate(blocks, old, block_weights, active)
        empty = active & (counts == 0)
        sums, counts = jax.lax.cond(
            jnp.any(empty), _relocate, lambda *a: (a[4], a[5]), x, old, labels, weights,
            sums, counts, empty,
        )  # fmt: skip
        new = jnp.where(counts[:, None] > 0, sums / jnp.maximum(counts, 1e-30)[:, None], old)
        same = (labels == old_labels).reshape(-1)[: x.shape[0]]  # padding may waver
        done = jnp.all(same) | (jnp.sum((new - old) ** 2) <= threshold)
        return new, labels, n_iter + 1, done

    carry = (centroids, jnp.full(blocks.shape[:2], -1, jnp.int32), jnp.int32(0), jnp.bool_(False))
    carry = jax.lax.while_loop(lambda c: (c[2] < max_iter) & ~c[3], iterate, carry)
    return carry[0], carry[2], carry[3]


def accumulate(blocks, centroids, weights, active):
    """Labels of blocked rows, and weighted sums and counts by cluster, in one pass."""

    def one(totals, block):
        x, w = block
        labels = _nearest(x, centroids, active)
        sums, counts = _sums(x, labels, w, centroids.shape[0])
        return (totals[0] + sums, totals[1] + counts), labels

    zeros = (jnp.zeros_like(centroids), jnp.zeros_like(centroids[:, 0]))
    (sums, counts), labels = jax.lax.scan(one, zeros, (blocks, weights))
    return labels, sums, counts


def _sums(x, labels, weights, n_clusters):
    """Weighted sums of rows and sums of weights by cluster. [b, d], [b], [b] -> [k, d], [k]."""
    if n_clusters < _SCATTER_FROM:
        # `segment_sum` into few segments is a queue of colliding additions on accelerators.
        member = jnp.where(labels[None, :] == jnp.arange(n_clusters)[:, None], weights[None, :], 0)
        return jnp.dot(member, x, precision=_EXACT), jnp.sum(member, axis=1)
    sums = jax.ops.segment_sum(x * weights[:, None], labels, n_clusters)
    return sums, jax.ops.segment_sum(weights, labels, n_clusters)


def _relocate(x, centroids, labels, weights, sums, counts, empty):
    """Give each empty cluster one of the rows farthest from their centroids, as scikit-learn does.

    Rows at distance 0 are not taken: with fewer distinct rows than clusters some stay empty.
    """
    labels = labels.reshape(-1)[: x.shape[0]]
    sqdist = jnp.where(weights > 0, _direct(x, centroids[labels]), 0.0)
    farthest, rows = jax.lax.top_k(sqdist, empty.shape[0])
    rank = jnp.cumsum(empty) - 1  # the i-th empty cluster takes the i-th farthest row
    takes = empty & (farthest[rank] > 0)
    row = rows[rank]
    weight = jnp.where(takes, weights[row], 0.0)
    moved = weight[:, None] * x[row]
    donor = labels[row]
    return sums.at[donor].add(-moved) + moved, counts.at[donor].add(-weight) + weight


def _nearest(x, centroids, active):
    """Index of the nearest active centroid. [b, d], [k, d], [k] -> [b] int32."""
    # [k, b], not [b, k]: reductions over the leading axis vectorise. |x|^2 does not change ranks.
    squares = jnp.where(active, jnp.sum(centroids**2, axis=-1), jnp.inf)
    scores = squares[:, None] - 2.0 * jnp.dot(centroids, x.T, precision=_EXACT)
    return jnp.argmin(scores, axis=0).astype(jnp.int32)


def _labels(x, centroids, active):
    """Nearest active centroid of all rows, block by block. -> [n] int32."""
    blocks = blocked(x, centroids.shape[0])
    labels = jax.lax.map(lambda block: _nearest(block, centroids, active), blocks)
    return labels.reshape(-1)[: x.shape[0]]


@jax.jit
def _assign(x, centroids):
    rows, means = jax.lax.stop_gradient((x, centroids))
    # The median: one centroid far away must not move the origin away from all others.
    centre = jnp.median(means, axis=0, keepdims=True)
    scale = power_of_two(means - centre)
    active = jnp.ones(means.shape[0], bool)
    labels = _labels((rows - centre) / scale, (means - centre) / scale, active)
    return labels, _direct(x, centroids[labels])


def power_of_two(x):
    """The power of two at or above the largest absolute value, 1 for zeros; division is exact."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x)))
    exponent = jnp.frexp(jnp.where(largest > 0, largest, 0.5))[1]
    return jnp.ldexp(jnp.ones((), x.dtype), exponent)


def _direct(x, own):
    """Squared distances by differences: exact near 0, where the expanded form is not. -> [n]."""
    return jnp.sum((x - own) ** 2, axis=-1)


def _through_means(x, centroids, labels, weights):
    """The value of `centroids`, with the gradient of the means of their rows."""
    counts, sums = sums_by_label(x, labels, centroids.shape[0], weights)
    means = sums / jnp.maximum(counts, 1e-30)[:, None]
    return centroids + (means - jax.lax.stop_gradient(means))


def sums_by_label(x, labels, n_clusters, weights=None):
    """Sums of weights and weighted sums of rows by cluster, block by block. -> [k], [k, d]."""
    weights = jnp.ones(x.shape[0], x.dtype) if weights is None else weights
    blocks = blocked(x, n_clusters)
    shape = blocks.shape[:2]
    parts = jax.lax.map(
        lambda block: _sums(*block, n_clusters),
        (blocks, blocked(labels, None, shape), blocked(weights, None, shape)),
    )
    sums, counts = (jnp.sum(part, axis=0) for part in parts)
    return counts, sums


def blocked(x, n_clusters, shape=None):
    """Rows in equal blocks, padded with zeros, small enough for scores [k, block] to be cheap."""
    if shape is None:
        block = min(max(2**20 // max(n_clusters, x.shape[1]), 256), x.shape[0])
        shape = (-(-x.shape[0] // block), block)
    padding = shape[0] * shape[1] - x.shape[0]
    padded = jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1))
    return padded.reshape(*shape, *x.shape[1:])


def _is_host(x) -> bool:
    return isinstance(x, np.ndarray)


def narrow(x, offset) -> Array:
    """`x - offset` as a float array that JAX computes with; host arrays in float64 until then."""
    if _is_host(x):
        return jnp.asarray(np.asarray(x - offset, np.float32))
    return x if x.dtype in (jnp.float32, jnp.float64) else x.astype(jnp.float32)


def check(x, n_clusters, init, n_init, max_iter, weights, n_active) -> None:
    """Raise ValueError for arguments of `fit` that are out of range."""
    if not hasattr(x, "shape"):
        raise ValueError(f"expected rows x as an array [n, d], found a {type(x).__name__}")
    if np.ndim(x) != 2 or 0 in x.shape:
        raise ValueError(f"expected rows x of shape [n, d], found {np.shape(x)}")
    n, d = x.shape
    if not 1 <= n_clusters <= n:
        raise ValueError(f"expected 1 <= n_clusters <= {n} (the rows), found {n_clusters}")
    if isinstance(n_active, int) and not 1 <= n_active <= n_clusters:
        raise ValueError(f"expected 1 <= n_active <= {n_clusters}, found {n_active}")
    if n_init < 1 or (not isinstance(max_iter, jax.core.Tracer) and max_iter < 1):
        raise ValueError(f"expected n_init and max_iter >= 1, found {n_init} and {max_iter}")
    if not (isinstance(init, str) or callable(init) or hasattr(init, "shape")):
        raise ValueError(f"expected first centroids as an array, found a {type(init).__name__}")
    if isinstance(init, str) and init not in ("k-means++", "random"):
        raise ValueError(
            f"expected init 'k-means++', 'random', centroids or function, found {init!r}"
        )
    if hasattr(init, "shape") and init.shape != (n_clusters, d):
        raise ValueError(f"expected first centroids {(n_clusters, d)}, found {init.shape}")
    if weights is not None and (not hasattr(weights, "shape") or weights.shape != (n,)):
        raise ValueError(f"expected weights of shape ({n},), found {np.shape(weights)}")
    for name, values in (("x", x), ("weights", weights)):
        if values is None or isinstance(values, jax.core.Tracer):
            continue
        with np.errstate(over="ignore"):  # too large for float32 is found as infinite
            narrow = np.asarray(values, np.float32) if _is_host(values) else values
        finite = np.isfinite(narrow) if _is_host(values) else jnp.isfinite(narrow)
        if not bool(finite.all()):
            bad = int(finite.size - finite.sum())
            raise ValueError(f"expected finite {name}, found {bad} NaN or infinite values")
    if weights is None or isinstance(weights, jax.core.Tracer):
        return
    if bool((weights < 0).any()) or not bool((weights > 0).any()):
        raise ValueError("expected weights >= 0 and a positive one, found none or negative ones")
