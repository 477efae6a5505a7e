"""k-means by Lloyd's iterations, equal to scikit-learn's from the same first centroids.

    result = kmeans.fit(jax.random.key(0), x, n_clusters=10)
    labels, sqdist = kmeans.assign(new_x, result.centroids)

Rows with a large offset are centred first, so that it costs no digits; for many clusters rows are
taken in blocks, so that the n x k matrix of distances never exists whole (see `lloyd.plan`).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepclust_jax.clustering import lloyd, local_search, seeding
from deepclust_jax.types import Array, Key

SEEDINGS = {
    "k-means++": seeding.kmeans_plus_plus,
    "k-means||": seeding.kmeans_parallel,
    "random": seeding.random_rows,
}

_MANY = 32  # clusters from which on restarts alone leave some without a centroid
_SWAPS = 100


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
    empty = 0 in shapes[0] or 0 in shapes[1]
    if not len(shapes[0]) == len(shapes[1]) == 2 or empty or shapes[0][1] != shapes[1][1]:
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
    sample: int | str | None = "auto",
    metric: str = "euclidean",
) -> KMeans:
    """The best of `n_init` runs of Lloyd's algorithm, by inertia. [n, d] -> KMeans.

    Of many rows a sample makes the choice: the best run on it goes on with all rows until it
    converges there. That takes a tenth of the time or less, and finds as low an inertia; for many
    clusters a lower one, as swaps are tried on the sample (local_search.py).

    Args:
        key: a typed key; the result is a function of it.
        x: rows [n, d]; float32, or what can be cast to it. NumPy arrays of float64 or wide integers
            are centred before the cast and give NumPy float64 centroids (not under a trace).
        n_clusters: k, static, 1 <= k <= n.
        init: "k-means++" (greedy, as scikit-learn's), "k-means||" (faster for hundreds of
            clusters), "random" (rows), the first centroids [k, d], or a function (key, x,
            n_clusters, weights) -> [k, d]; its rows may have been centred and scaled as a whole.
        n_init: restarts; 1 is run where `init` is an array.
        max_iter: Lloyd iterations at most, per restart.
        tol: a run ends when the labels repeat or the squared shift of all centroids together is at
            most `tol` times the mean variance of the features.
        weights: [n], >= 0; None counts every row once.
        n_active: use only the first `n_active` clusters; may be traced, so that a sweep over k can
            be one vmapped program. The centroids left out equal the first one and get no rows.
        sample: rows of which restarts are made; None: all of them. "auto": some thousands, and at
            least 32 for each cluster, where there are four times as many, several restarts and no
            weights.
        metric: "euclidean", or "cosine": rows and centroids are brought to unit length, and the
            inertia is the sum of 2 - 2 cosine (spherical k-means). New rows are assigned by
            `assign(unit(x), centroids)`.

    A cluster that loses its last row takes the row farthest from its centroid, as in scikit-learn.
    Gradients: `inertia` and `centroids` are differentiable in x with the labels held fixed, which
    is exact wherever no row is about to change its cluster.

    Raises:
        ValueError: wrong shapes, k outside 1..n, NaN or infinite values, bad weights.
    """
    check_key(key)
    check(x, n_clusters, init, n_init, max_iter, weights, n_active)
    sample = _sample(sample, *x.shape, n_clusters, n_init, init, weights)
    is_cosine = check_metric(metric)
    offset = np.float32(0) if is_cosine else offset_of(x)
    start = None
    if not (isinstance(init, str) or callable(init)):
        start, init, n_init = narrow(init, offset), "given", 1
    rows, variance, is_tame = unit(x) if is_cosine else narrow(x, offset), None, False
    if is_cosine and not isinstance(rows, jax.core.Tracer):
        check_apart(rows)
    plan = lloyd.plan(*rows.shape, n_clusters, weighted=weights is not None)
    if not isinstance(rows, jax.core.Tracer):
        variance, is_finite, is_tame = survey(rows, rows.shape[0])
        if not is_finite:
            check_finite("x", x)
    found = _fit(
        key, rows, n_clusters, start, max_iter, tol,
        None if weights is None else narrow(weights, np.float32(0)),
        n_active, variance, init=init, n_init=n_init, plan=plan, sample=sample,
        as_it_is=is_cosine or bool(is_tame), spherical=is_cosine,
    )  # fmt: skip
    return found._replace(centroids=with_offset(found.centroids, offset))


_STATIC = ("n_clusters", "init", "n_init", "plan", "as_it_is", "sample", "spherical")


@partial(jax.jit, static_argnames=_STATIC)
def _fit(
    key, x, n_clusters, start, max_iter, tol, weights, n_active, variance,
    *, init, n_init, plan, as_it_is, sample=None, spherical=False,
) -> KMeans:  # fmt: skip
    n, d = x.shape
    mean, scale = jnp.zeros((1, d), x.dtype), jnp.ones((), x.dtype)
    weights = jnp.ones(n, x.dtype) if weights is None else weights
    heaviest = jax.lax.stop_gradient(jnp.max(weights))
    weights = weights / heaviest
    share = jax.lax.stop_gradient(weights / jnp.sum(weights))[:, None]  # 0: the row does not count
    if not as_it_is:
        x, mean, scale = normalise(x, share)
    fixed, fixed_weights, start = jax.lax.stop_gradient((x, weights, start))
    active = jnp.arange(n_clusters) < (n_clusters if n_active is None else n_active)
    if variance is None or not as_it_is:
        average = jnp.sum(share * fixed, axis=0, keepdims=True)
        variance = jnp.sum(jnp.mean(share * (fixed - average) ** 2, axis=1))
    threshold = tol * variance
    rows = lloyd.prepare(plan, fixed, fixed_weights)
    descend = partial(
        lloyd.descend, active=active, max_iter=max_iter, threshold=threshold, spherical=spherical
    )
    if init == "given":
        first = (start - mean) / scale
        first = lloyd.to_unit_length(first, first) if spherical else first
        best = descend(plan, rows, first)
    else:
        seed = SEEDINGS.get(init, init)
        search = partial(_search, key, descend, seed=seed, n_clusters=n_clusters, n_init=n_init)
        if sample is None:
            best = search(plan, rows)
        else:
            few_key, more_key = jax.random.split(jax.random.fold_in(key, n_init))
            few = fixed[spread(few_key, n, sample)]
            small = lloyd.plan(sample, d, n_clusters)
            few = lloyd.prepare(small, few, jnp.ones(sample, x.dtype))
            more = fixed[spread(more_key, n, min(4 * sample, n))]  # other rows are the fairer judge

            def judge(centroids):
                return jnp.sum(
                    lloyd.distances(more, centroids, _labels_of(more, centroids, active))
                )

            centroids = search(small, few, judge=judge).centroids
            if n_clusters >= _MANY:
                centroids = local_search.improve(
                    key, small, few, centroids, active, _SWAPS, spherical=spherical
                )
            best = descend(plan, rows, centroids)
    # Anew from the labels: free of what rounding piled up, and with the gradient of means.
    totals = lloyd.totals(plan, x, weights, best.labels, n_clusters)
    centroids = lloyd.means(totals, best.centroids)
    centroids = lloyd.to_unit_length(centroids, best.centroids) if spherical else centroids
    centroids = jnp.where(active[:, None], centroids, centroids[:1])
    labels = _labels(plan, rows, jax.lax.stop_gradient(centroids), active)
    inertia = jnp.sum(weights * lloyd.distances(x, centroids, labels))
    return KMeans(
        centroids * scale + mean, labels, heaviest * scale**2 * inertia, best.n_iter, best.converged
    )


def _search(key, descend, plan, rows, *, seed, n_clusters, n_init, judge=None) -> lloyd.Found:
    """The best of `n_init` runs of Lloyd's algorithm, by inertia or another judge of centroids."""

    def run(i):
        first = seed(jax.random.split(key, n_init)[i], rows.x, n_clusters, rows.weights)
        if first.shape != (n_clusters, rows.x.shape[1]):
            raise ValueError(
                f"expected first centroids {(n_clusters, rows.x.shape[1])} from the function init, "
                f"found {first.shape}"
            )
        found = descend(plan, rows, first)
        if judge is not None:
            return found, judge(found.centroids)
        sqdist = lloyd.distances(rows.x, found.centroids, found.labels)
        return found, jnp.sum(rows.weights * sqdist)

    def better(i, best):
        found = run(i)
        return jax.tree.map(partial(jnp.where, (i == 0) | (found[1] < best[1])), found, best)

    # From nothing, not from run(0): written out twice, a run would be compiled twice.
    nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(run, 0))
    return jax.lax.fori_loop(0, n_init, better, nothing)[0]


def spread(key: Key, n: int, size: int) -> Array:
    """Row numbers [size], one at random in each stretch of the n rows, all equally likely."""
    start, within = jax.random.split(key)
    edges = (np.arange(size + 1, dtype=np.int64) * n // size).astype(np.int32)
    rows = jax.random.randint(within, (size,), edges[:-1], edges[1:])
    return (rows + jax.random.randint(start, (), 0, n)) % n


def _labels_of(x, centroids, active):
    """Nearest active centroid of other rows. -> [n] int32."""
    plan = lloyd.plan(*x.shape, centroids.shape[0])
    return _labels(plan, lloyd.prepare(plan, x, jnp.ones(x.shape[0], x.dtype)), centroids, active)


def _labels(plan, rows, centroids, active):
    """Nearest active centroid of all rows. -> [n] int32."""
    offsets = jnp.where(active, jnp.sum(centroids**2, axis=-1), jnp.inf)
    return lloyd.nearest(plan, rows, centroids, offsets)


@jax.jit
def _assign(x, centroids):
    rows, means = jax.lax.stop_gradient((x, centroids))
    # The median: one centroid far away must not move the origin away from all others.
    centre = jnp.median(means, axis=0, keepdims=True)
    scale = power_of_two(means - centre)
    means = (means - centre) / scale
    plan = lloyd.plan(*x.shape, means.shape[0])
    offsets = jnp.sum(means**2, axis=-1)
    n, d = x.shape
    copied = 2**20 if plan.sums == "scatter" else 2**24  # small steps are for small caches
    block = min(plan.block, max(copied // d, 256))
    plan = plan._replace(block=block)

    def label(start, _, labels):
        part = (jax.lax.dynamic_slice_in_dim(rows, start, block) - centre) / scale
        found = lloyd.nearest(plan, lloyd.prepare(plan, part, part[:, 0]), means, offsets)
        return jax.lax.dynamic_update_slice_in_dim(labels, found, start, axis=0)

    labels = lloyd.over_blocks(n, block, label, jnp.zeros(n, jnp.int32))
    return labels, lloyd.distances(x, centroids, labels)


def normalise(x: Array, share: Array | None = None) -> tuple[Array, Array, Array]:
    """Rows less their mean and over a power of two, so that squares neither overflow nor vanish;
    the mean and that power. `share` [n, 1] of each row sums to 1, None: the same for each; with 0 a
    row does not count."""
    if share is None:
        share = jnp.full((len(x), 1), 1 / len(x), x.dtype)
    fixed = jax.lax.stop_gradient(x)
    mean = jnp.sum(share * jnp.where(share > 0, fixed, 0.0), axis=0, keepdims=True)
    scale = power_of_two(jnp.where(share > 0, x - mean, 0.0))
    return jnp.clip((x - mean) / scale, -1e15, 1e15), mean, scale


def power_of_two(x):
    """The power of two at or above the largest absolute value, 1 for zeros; division is exact."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(x)))
    exponent = jnp.frexp(jnp.where(largest > 0, largest, 0.5))[1]
    return jnp.ldexp(jnp.ones((), x.dtype), exponent)


@jax.jit
def survey(x, n):
    """Mean variance of the features; whether all is finite; and whether rows may be taken as they
    are, since the copy that centres and scales them costs more time than many iterations. The
    offset may cost at most the last digit of a distance. Rows beyond the n-th are zeros."""
    squares = jnp.sum(x**2, axis=0) / n
    offset = jnp.sum((jnp.sum(x, axis=0) / n) ** 2)
    spread = jnp.sum(squares) - offset
    is_tame = (offset <= 4 * spread) & (spread > 2.0**-40) & (jnp.max(squares) < 2.0**40)
    return spread / x.shape[1], jnp.isfinite(jnp.sum(squares)), is_tame


def unit(x: Array) -> Array:
    """Rows brought to unit length, for the cosine. [n, d] -> [n, d] float32.

    Raises:
        ValueError: a row of zeros, which has no direction. Not under a trace.
    """
    if _is_host(x):  # float64 has directions that float32 has not
        lengths = np.max(np.abs(x), axis=1, keepdims=True).astype(np.float64)
        x = x / np.where(lengths > 0, lengths, 1.0)
    rows = narrow(x, np.float32(0))
    largest = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
    zeros = 0 if isinstance(rows, jax.core.Tracer) else int(jnp.sum(largest == 0))
    if zeros:
        raise ValueError(f"expected rows with a direction, found {zeros} of zeros; leave them out")
    rows = rows / jnp.where(largest > 0, largest, 1.0)  # squares neither overflow nor vanish
    return lloyd.to_unit_length(rows, rows)


def check_apart(directions: Array) -> None:
    """Raise ValueError for directions [n, d] that differ by less than float32 resolves."""
    apart, is_one = _apart(directions)
    if apart < 1e-7 and not is_one:
        raise ValueError(
            f"expected directions that differ, found a mean squared distance of {float(apart):.1e} "
            "from the mean one, too little for float32; take an offset from the rows first"
        )


@jax.jit
def _apart(x):
    deviation = x - jnp.mean(x, axis=0, keepdims=True)
    return jnp.mean(jnp.sum(deviation**2, axis=1)), jnp.all(x == x[:1])


def check_metric(metric: str) -> bool:
    """Whether the metric is the cosine. Raises ValueError if it is unknown."""
    if metric not in ("euclidean", "cosine"):
        raise ValueError(f"expected metric 'euclidean' or 'cosine', found {metric!r}")
    return metric == "cosine"


def _sample(sample, n, d, n_clusters, n_init, init, weights) -> int | None:
    """The size of the sample, None for all rows. Raises ValueError if it cannot be one."""
    if sample == "auto":
        size = max(32 * n_clusters, min(2**13, max(2**22 // d, 2**10)))  # stays in the cache
        is_worth_it = n >= 4 * size and n_init > 1 and weights is None
        return size if is_worth_it and not hasattr(init, "shape") else None
    if sample is None:
        return None
    is_number = isinstance(sample, int | np.integer)
    if not is_number or not n_clusters <= sample <= n:
        raise ValueError(
            f"expected sample as 'auto', None or rows from {n_clusters} to {n}, found {sample!r}"
        )
    if weights is not None or hasattr(init, "shape"):
        raise ValueError("expected sample None beside weights or first centroids, found a sample")
    return int(sample)


def sample_size(sample: int | None, n_clusters: int) -> int:
    """Rows that restarts are made on where not all are at hand: those given, or 65,536, or 8 for
    each cluster where that is more. Raises ValueError if they are fewer than the clusters."""
    size = max(65_536, 8 * n_clusters) if sample is None else sample
    if size < n_clusters:
        raise ValueError(f"expected sample >= {n_clusters} (the clusters), found {size}")
    return size


def _is_host(x) -> bool:
    return isinstance(x, np.ndarray)


def is_wide(x) -> bool:
    """Whether an array of the host has digits that float32 has not."""
    return _is_host(x) and x.dtype.itemsize >= 4 and x.dtype != np.float32


def offset_of(x) -> np.ndarray:
    """What to take from rows before they become float32, which would lose digits beside a large
    offset: their mean [d] where they are wide, else 0."""
    return np.mean(x, axis=0, dtype=np.float64) if is_wide(x) else np.float32(0)


def with_offset(centroids, offset) -> Array:
    """Centroids of the rows before their offset was taken: float64 where the rows were wide."""
    if np.ndim(offset) == 0:
        return centroids
    if isinstance(centroids, jax.core.Tracer):
        return centroids + jnp.asarray(offset, jnp.float32)[None, :]
    return np.asarray(centroids, np.float64) + offset


def narrow(x, offset) -> Array:
    """`x - offset` as a float array that JAX computes with; host arrays in float64 until then."""
    if _is_host(x):
        with np.errstate(over="ignore"):  # too large for float32 becomes infinite, and is found
            return jnp.asarray(np.asarray(x - offset if np.any(offset) else x, np.float32))
    x = x if x.dtype in (jnp.float32, jnp.float64) else x.astype(jnp.float32)
    return x - jnp.asarray(offset, x.dtype)[None, :] if np.any(offset) else x


def check_key(key: Key) -> None:
    """Raise ValueError for what is no single key of JAX."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
    is_typed = dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
    if not (shape == () if is_typed else dtype == jnp.uint32 and len(shape) == 1):
        raise ValueError(f"expected one key, such as jax.random.key(0), found {key!r}")


def check(x, n_clusters, init, n_init, max_iter, weights, n_active) -> None:
    """Raise ValueError for arguments of `fit` out of range; of x only the shape is looked at."""
    if not hasattr(x, "shape"):
        raise ValueError(f"expected rows x as an array [n, d], found a {type(x).__name__}")
    if len(x.shape) != 2 or 0 in x.shape:
        raise ValueError(f"expected rows x of shape [n, d], none of them 0, found {x.shape}")
    if np.dtype(x.dtype).kind in "OSUc":
        raise ValueError(f"expected real numbers in x, found values of type {x.dtype}")
    n, d = x.shape
    if not isinstance(n_clusters, int | np.integer):
        raise ValueError(f"expected a whole number n_clusters, found {n_clusters!r}")
    if not 1 <= n_clusters <= n:
        raise ValueError(f"expected 1 <= n_clusters <= {n} (the rows), found {n_clusters}")
    if isinstance(n_active, int | np.integer) and not 1 <= n_active <= n_clusters:
        raise ValueError(f"expected 1 <= n_active <= {n_clusters}, found {n_active}")
    if n_init < 1 or (not isinstance(max_iter, jax.core.Tracer) and max_iter < 1):
        raise ValueError(f"expected n_init and max_iter >= 1, found {n_init} and {max_iter}")
    if not (isinstance(init, str) or callable(init) or hasattr(init, "shape")):
        raise ValueError(f"expected first centroids as an array, found a {type(init).__name__}")
    if isinstance(init, str) and init not in SEEDINGS:
        names = ", ".join(map(repr, SEEDINGS))
        raise ValueError(f"expected init {names}, centroids or a function, found {init!r}")
    if hasattr(init, "shape") and init.shape != (n_clusters, d):
        raise ValueError(f"expected first centroids {(n_clusters, d)}, found {init.shape}")
    if hasattr(init, "shape"):
        check_finite("init", init)
    if weights is not None and not hasattr(weights, "shape"):
        raise ValueError(f"expected weights as an array [n], found a {type(weights).__name__}")
    if weights is not None and weights.shape != (n,):
        raise ValueError(f"expected weights of shape ({n},), found {weights.shape}")
    if weights is None or isinstance(weights, jax.core.Tracer):
        return
    check_finite("weights", weights)
    if bool((weights < 0).any()) or not bool((weights > 0).any()):
        raise ValueError("expected weights >= 0 and a positive one, found none or negative ones")


def check_finite(name: str, values: Array) -> None:
    """Raise ValueError if a value is NaN, infinite or too large for float32. Traced ones pass."""
    if isinstance(values, jax.core.Tracer):
        return
    bad, rows = 0, max(2**22 // max(values[0].size, 1), 1)
    with np.errstate(over="ignore"):  # too large for float32 is found as infinite
        for start in range(0, len(values), rows):
            part = np.asarray(values[start : start + rows], np.float32)
            bad += part.size - np.count_nonzero(np.isfinite(part))
    if bad:
        raise ValueError(f"expected finite {name}, found {bad} NaN or infinite values")
