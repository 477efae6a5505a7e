"""k-means in the metric of its own clusters, for rows whose scale means nothing, such as codes.

    minimise  log det S(s),   S(s) = (1/n) sum_i (y_i - mean of s_i)(y_i - mean of s_i)^T

over labels s (Friedman & Rubin 1967, the determinant criterion): the scatter within clusters takes
the place of its trace, which is k-means. Labels go to the nearest mean by Mahalanobis distance
under S, then means and S follow the labels; no step raises the criterion. But for the shrinkage and
ridge of `fit` it is classification EM for a Gaussian mixture with one covariance and equal weights
(Celeux & Govaert 1992).

No invertible linear map of the rows changes the criterion, up to rounding: axes whose deviations
differ by a factor over 10,000 count as noise. The loss of an autoencoder is blind to just those
maps: encoder W f and decoder g W^-1 reconstruct alike, so that plain k-means on the code goes by
distances that are an accident of the optimiser.

Before that rows are whitened, y, and drawn into a ball, y / sqrt(1 + |y|^2 / d): rows far out, of
which codes of ReLU networks have many, would pull the means.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepclust_jax.clustering import kmeans, lloyd
from deepclust_jax.types import Array, Key

_RIDGE = 1e-3  # share of the mean variance: directions in which rows hardly differ are not blown up


class View(NamedTuple):
    """How rows are seen: what `assign` needs."""

    mean: Array  # [d], of the rows
    whitening: Array  # [d, d]
    precision: Array  # [d, d], inverse of the scatter within clusters of the rows as seen
    centroids: Array  # [k, d], of the rows as seen


class Adaptive(NamedTuple):
    """What `fit` found; `labels` are `assign(view, x)` of float32 rows.

    Of float64 rows with an offset that float32 cannot hold, `fit` alone gets the labels right:
    centre the rows first to assign more of them.
    """

    view: View
    centroids: Array  # [k, d], means of the rows as they are
    labels: Array  # [n] int32
    criterion: Array  # [], log det of the scatter within clusters, shrunk as `fit` says
    n_iter: Array  # [] int32, of the restart that was kept


def unfitted(centroids: Array) -> View:
    """A view of the right shapes for centroids [k, d], before there is a fitted one."""
    d = centroids.shape[1]
    return View(jnp.zeros(d), jnp.eye(d), jnp.eye(d), centroids)


def fit(key: Key, x: Array, n_clusters: int, *, n_init: int = 10, max_iter: int = 300) -> Adaptive:
    """The best of `n_init` runs by the criterion. [n, d].

    The runs start from a k-means of their own, by turns on the rows as they are and as seen: the
    criterion is blind to the scale of the rows, but where that means something it helps the search.

    Args:
        key: a typed key; the result is a function of it.
        x: rows [n, d]; NumPy arrays are centred in float64 before they become float32.
        n_clusters: k, static, 1 <= k <= n.
        n_init: restarts.
        max_iter: steps at most, per restart; a restart ends when no label changes.

    With few rows the scatter is drawn towards that of all rows, by the share p / (n + p) for its
    p = d (d + 1) / 2 entries: else clusters on parallel planes would always win.

    Raises:
        ValueError: as `kmeans.fit`.
    """
    kmeans.check(x, n_clusters, "k-means++", n_init, max_iter, None, None)
    kmeans.check_finite("x", x)
    if not isinstance(x, np.ndarray):
        return _fit(key, kmeans.narrow(x, np.float32(0)), n_clusters, n_init, max_iter)
    offset = np.mean(x, axis=0, dtype=np.float64)
    found = _fit(key, kmeans.narrow(x, offset), n_clusters, n_init, max_iter)
    offset = jnp.asarray(offset, jnp.float32)
    return found._replace(
        view=found.view._replace(mean=found.view.mean + offset),
        centroids=found.centroids + offset[None, :],
    )


def assign(view: View, x: Array) -> Array:
    """Nearest centroid of each row under the view. [n, d] -> [n] int32."""
    seen = _seen(x, view.mean, view.whitening)
    plan = lloyd.plan(*seen.shape, view.centroids.shape[0])
    return _nearest(plan, lloyd.prepare(plan, seen, seen[:, 0]), view.centroids, view.precision)


def _nearest(plan, rows, centroids, precision):
    """Nearest centroid by Mahalanobis distance, less what all of a row's distances share."""
    directions = jnp.dot(centroids, precision, precision=lloyd.EXACT)
    return lloyd.nearest(plan, rows, directions, jnp.sum(centroids * directions, axis=-1))


def linear(view: View) -> Array:
    """Matrix of determinant 1 or -1: rows times it have the distances of the view. -> [d, d].

    Near the mean of the rows; far from it the view draws them into a ball.
    """
    matrix = jnp.dot(view.whitening, _factor(view.precision), precision=lloyd.EXACT)
    return matrix / jnp.exp(jnp.linalg.slogdet(matrix)[1] / matrix.shape[0])


@partial(jax.jit, static_argnames=("n_clusters", "n_init"))
def _fit(key, x, n_clusters, n_init, max_iter) -> Adaptive:
    x = jax.lax.stop_gradient(x)
    n, d = x.shape
    mean = jnp.mean(x, axis=0)
    whitening = whitening_of(x - mean[None, :])
    seen = _seen(x, mean, whitening)
    offset = jnp.mean(seen, axis=0)
    rows = seen - offset[None, :]
    total = jnp.dot(rows.T, rows, precision=lloyd.EXACT) / n
    ridge = jnp.eye(d) * (_RIDGE * jnp.trace(total) / d + 1e-12)
    entries = d * (d + 1) / 2
    shrinkage = entries / (n + entries)
    plan = lloyd.plan(n, d, n_clusters)
    ready = lloyd.prepare(plan, rows, jnp.ones(n))

    def step(carry):
        old_labels, old, precision, n_iter, _, _ = carry
        labels = _nearest(plan, ready, old, precision)
        sums, counts = lloyd.all_totals(plan, ready, labels, n_clusters)
        means = sums / jnp.maximum(counts, 1.0)[:, None]
        means = jnp.where(counts[:, None] > 0, means, old)  # without rows it stays
        between = jnp.dot(means.T * counts[None, :], means, precision=lloyd.EXACT) / n
        scatter = (1.0 - shrinkage) * (total - between) + shrinkage * total + ridge
        same = jnp.all(labels == old_labels)
        return labels, means, _inverse(scatter), n_iter + 1, same, scatter

    def run(one):
        key, turn = one
        begin = jnp.where(turn == 0, x - mean[None, :], rows)
        labels = kmeans.fit(key, begin, n_clusters, n_init=1, max_iter=30).labels
        sums, counts = lloyd.all_totals(plan, ready, labels, n_clusters)
        start = sums / jnp.maximum(counts, 1.0)[:, None]
        none = jnp.full(n, -1, jnp.int32)
        carry = (none, start, jnp.eye(d), jnp.int32(0), jnp.bool_(False), total + ridge)
        carry = jax.lax.while_loop(lambda c: ~c[4] & (c[3] < max_iter), step, carry)
        _, means, precision, n_iter, _, scatter = carry
        criterion = 2.0 * jnp.sum(jnp.log(jnp.diagonal(jnp.linalg.cholesky(scatter))))
        return means, precision, criterion, n_iter

    means, precision, criterion, n_iter = jax.lax.map(
        run, (jax.random.split(key, n_init), jnp.arange(n_init) % 2)
    )
    best = jnp.argmin(jnp.where(jnp.isnan(criterion), jnp.inf, criterion))
    view = View(mean, whitening, precision[best], means[best] + offset[None, :])
    labels = assign(view, x)
    sums, counts = lloyd.totals(plan, x - mean[None, :], jnp.ones(n), labels, n_clusters)
    # A cluster without rows has no mean; that of all rows stands in for it.
    centroids = sums / jnp.maximum(counts, 1.0)[:, None] + mean[None, :]
    return Adaptive(view, centroids, labels, criterion[best], n_iter[best])


def _seen(x, mean, whitening):
    """Whitened rows, drawn into a ball."""
    y = jnp.dot(x - mean[None, :], whitening, precision=lloyd.EXACT)
    return y / jnp.sqrt(1.0 + jnp.mean(y**2, axis=-1, keepdims=True))


def whitening_of(centred):
    """Matrix that gives rows unit variance in every direction that is more than rounding.

    Symmetric steps (ZCA): turned to the principal axes, which rounding turns, it would not be a
    continuous function of the rows.
    """
    scale = kmeans.power_of_two(centred)  # squares neither overflow nor vanish
    y, whole = centred / scale, jnp.eye(centred.shape[1])
    # The first step multiplies no direction by over 1000, so that what float32 lost beside a large
    # variance is exact in the second. A deviation of 1e-5 of the largest is whitened; the gain of
    # smaller ones falls to that of the largest, or else rounding would be larger than all else in
    # `linear` where the code has dead directions.
    for floor, least in ((1e-6, 1.0), (1e-4, 1e-5)):
        covariance = jnp.dot(y.T, y, precision=lloyd.EXACT) / y.shape[0]
        variances, axes = jnp.linalg.eigh(covariance)
        floor = jnp.maximum(floor * variances[-1], jnp.finfo(y.dtype).tiny)
        falling = jnp.clip((variances / floor) ** 3, least, 1.0)
        spread = jnp.sqrt(jnp.maximum(variances, floor))[None, :] / falling[None, :]
        part = jnp.dot(axes / spread, axes.T, precision=lloyd.EXACT)
        y, whole = (
            jnp.dot(y, part, precision=lloyd.EXACT),
            jnp.dot(whole, part, precision=lloyd.EXACT),
        )
    return whole / scale


def _inverse(scatter):
    """Inverse of a positive definite matrix, symmetric."""
    factor = jax.scipy.linalg.cho_factor(scatter)
    inverse = jax.scipy.linalg.cho_solve(factor, jnp.eye(scatter.shape[0]))
    return (inverse + inverse.T) / 2


def _factor(precision):
    """Lower F with F F^T the precision: rows times F have Mahalanobis distances."""
    return jnp.linalg.cholesky(precision)
