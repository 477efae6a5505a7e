"""Gaussian mixtures by expectation and maximisation, equal to scikit-learn's from the same start.

    found = mixture.fit(jax.random.key(0), x, 10, covariance="tied")
    labels = mixture.assign(new_x, found.mixture)

    p(x) = sum_c w_c N(x; m_c, S_c)

(Dempster et al. 1977). With one S for all clusters ("tied") and hard labels this is k-means in the
metric of the scatter within clusters: see adaptive.py.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepclust_jax.clustering import adaptive, kmeans, lloyd
from deepclust_jax.types import Array, Key

_FARTHEST = 1e30  # squared distance in deviations; infinite ones would leave no probability
COVARIANCES = ("full", "tied", "diagonal", "spherical")


class Mixture(NamedTuple):
    """A mixture of k Gaussians; the shape of `covariances` says of which form.

    weights      [k], which sum to 1; 0 for a component that is not used
    means        [k, d]
    covariances  full [k, d, d], tied [1, d, d], diagonal [k, d], spherical [k, 1]
    """

    weights: Array
    means: Array
    covariances: Array


class Fitted(NamedTuple):
    """What `fit` found; `labels` are the most probable components under `mixture`."""

    mixture: Mixture
    labels: Array  # [n] int32
    log_likelihood: Array  # [], mean over the rows of log p(x), nats
    n_iter: Array  # [] int32, of the restart that was kept
    converged: Array  # [] bool, False if max_iter came first


class _Factors(NamedTuple):
    """The inverse square roots of the covariances, by which differences are whitened."""

    whitening: Array  # shaped as the covariances
    log_det: Array  # [k] or [1], of the whitening


def fit(
    key: Key,
    x: Array,
    n_clusters: int,
    *,
    covariance: str = "full",
    init: str | Array = "k-means",
    n_init: int = 10,
    max_iter: int = 100,
    tol: float = 1e-3,
    ridge: float = 1e-6,
    n_active: Array | int | None = None,
) -> Fitted:
    """The best of `n_init` runs by likelihood, each from a k-means of its own. [n, d].

    By turns those are of the rows as they are and of whitened rows: k-means sees no cluster that
    lies across a direction in which all rows differ much.

    Args:
        key: a typed key; the result is a function of it.
        x: rows [n, d]; NumPy arrays of float64 are centred before they become float32, and give
            NumPy float64 means.
        n_clusters: k, static, 1 <= k <= n.
        covariance: "full", "tied" (one for all), "diagonal" or "spherical".
        init: "k-means", or labels [n] of 0..k-1 to start from; with them one run is made.
        n_init: restarts.
        max_iter: iterations at most, per restart.
        tol: a run ends when an iteration raises the mean log-likelihood by less than this.
        ridge: added to variances, as a share of the mean variance of the features in all of x,
            beside a millionth of their mean, below which float32 sees nothing.
        n_active: use only the first components, as in `kmeans.fit`; may be traced.

    A component that loses its rows keeps its mean and covariance, with a weight of 0.

    Raises:
        ValueError: wrong shapes, NaN or infinite values, numbers out of range, an unknown
            covariance, or more entries in it than rows say something about.
    """
    kmeans.check_key(key)
    is_given = not isinstance(init, str)
    kmeans.check(x, n_clusters, "k-means++", n_init, max_iter, None, n_active)
    kmeans.check_finite("x", x)
    if covariance not in COVARIANCES:
        names = ", ".join(map(repr, COVARIANCES))
        raise ValueError(f"expected covariance {names}, found {covariance!r}")
    if not is_given and init != "k-means":
        raise ValueError(f"expected init 'k-means' or labels [n], found {init!r}")
    if is_given:
        check_labels(init, x.shape[0], n_clusters if n_active is None else n_active)
    if not isinstance(ridge, jax.core.Tracer) and not ridge >= 0:
        raise ValueError(f"expected ridge >= 0, found {ridge}")
    start = jnp.asarray(init, jnp.int32) if is_given else None
    offset = kmeans.offset_of(x)
    found = _fit(
        key, kmeans.narrow(x, offset), n_clusters, start, max_iter, tol, ridge, n_active,
        covariance=covariance, n_init=1 if is_given else n_init,
    )  # fmt: skip
    likelihood = found.log_likelihood
    if not isinstance(likelihood, jax.core.Tracer) and not jnp.isfinite(likelihood):
        raise ValueError(
            f"expected covariances that can be inverted, found singular ones for {covariance!r}; "
            "raise ridge or take a simpler covariance"
        )
    means = kmeans.with_offset(found.mixture.means, offset)
    return found._replace(mixture=found.mixture._replace(means=means))


def check_labels(labels, n: int, k: int) -> None:
    """Raise ValueError for what are no labels [n] of 0..k-1."""
    shape, dtype = getattr(labels, "shape", None), getattr(labels, "dtype", None)
    if shape != (n,) or not np.issubdtype(dtype, np.integer):
        raise ValueError(f"expected labels [{n}] as whole numbers, found {dtype} {shape}")
    if any(isinstance(a, jax.core.Tracer) for a in (labels, k)):
        return
    if not 0 <= labels.min() <= labels.max() < k:
        raise ValueError(
            f"expected labels from 0 to {k - 1}, found {labels.min()} to {labels.max()}"
        )


def assign(x: Array, mixture: Mixture) -> Array:
    """Most probable component of each row. [n, d] -> [n] int32."""
    return _rows_and(x, mixture, _labels)


def posterior(x: Array, mixture: Mixture) -> Array:
    """Probability of each component given the row. [n, d] -> [n, k], rows sum to 1.

    Of a row farther from all than float32 can tell, what weights and covariances alone say.
    """
    return _rows_and(x, mixture, _SOFTMAX)


def log_likelihood(x: Array, mixture: Mixture) -> Array:
    """log p(x) of each row, nats. [n, d] -> [n]."""
    return _rows_and(x, mixture, _LOGSUMEXP)


def log_joint(x: Array, mixture: Mixture) -> Array:
    """log p(x, c). [n, d] -> [n, k]. Differentiable in rows and mixture."""
    return _log_joint(x, mixture.weights, mixture.means, factors(mixture.covariances, x.shape[1]))


def n_parameters(mixture: Mixture, covariance: str) -> Array:
    """Free parameters of the components with weight, as the BIC counts them. -> [] int."""
    k, d = jnp.sum(mixture.weights > 0), mixture.means.shape[1]
    entries = {"full": k * d * (d + 1) // 2, "tied": d * (d + 1) // 2, "diagonal": k * d}
    return k * d + k - 1 + entries.get(covariance, k)


def bic(found: Fitted, n: int, covariance: str) -> Array:
    """Bayesian information criterion of a fit on n rows, lower is better (Schwarz 1978).

    -2 n (mean log-likelihood) + (number of parameters) log n
    """
    return -2.0 * n * found.log_likelihood + n_parameters(found.mixture, covariance) * np.log(n)


def factors(covariances: Array, d: int) -> _Factors:
    """Inverse square roots W with W W^T = S^-1, so that |(x - m) W|^2 is the distance under S."""
    if covariances.ndim == 2:
        whitening = jnp.broadcast_to(jax.lax.rsqrt(covariances), (len(covariances), d))
        return _Factors(whitening, jnp.sum(jnp.log(whitening), axis=-1))
    eye = jnp.broadcast_to(jnp.eye(covariances.shape[-1]), covariances.shape)
    lower = jnp.linalg.cholesky(covariances)
    whitening = jax.scipy.linalg.solve_triangular(lower, eye, lower=True)
    log_det = jnp.sum(jnp.log(jnp.diagonal(whitening, axis1=-2, axis2=-1)), axis=-1)
    return _Factors(jnp.swapaxes(whitening, -2, -1), log_det)


def _whiten(differences, whitening):
    if whitening.ndim == 2:
        return jnp.dot(differences, whitening, precision=lloyd.EXACT)
    return differences * whitening[None, :]


def _is_tied(covariances, k) -> bool:
    return covariances.ndim == 3 and covariances.shape[0] < k


def _log_joint(x, weights, means, by):
    """log p(x, c) [n, k], from differences: a large offset of the rows costs no digits."""
    n, d = x.shape
    if _is_tied(by.whitening, len(means)):
        x, means = (_whiten(a, by.whitening[0]) for a in (x, means))  # once, not for each component
        squares = jnp.sum((x[:, None, :] - means[None, :, :]) ** 2, axis=-1)
    else:

        def of_component(mean, whitening):
            return jnp.sum(_whiten(x - mean[None, :], whitening) ** 2, axis=-1)

        by = by._replace(
            whitening=jnp.broadcast_to(by.whitening, (len(means), *by.whitening.shape[1:]))
        )
        squares = jax.vmap(of_component, out_axes=1)(means, by.whitening)
    squares = jnp.minimum(squares, _FARTHEST)
    log_weights = jnp.log(jnp.where(weights > 0, weights, 1.0))
    log_weights = jnp.where(weights > 0, log_weights, -jnp.inf)
    return (log_weights + by.log_det - 0.5 * d * np.log(2 * np.pi))[None, :] - 0.5 * squares


class _Moments(NamedTuple):
    """Sums over rows by their shares in the components, about given means."""

    shares: Array  # [k]
    sums: Array  # [k, d], of differences
    squares: Array  # of their products, shaped as the covariances; spherical as diagonal
    log_likelihood: Array  # []


def _moments(x, is_new, shares, means, form, log_likelihood):
    """Moments of rows [b, d] with shares [b, k]; rows that are not new count nothing."""
    shares = shares * is_new[:, None]
    k = len(means)
    total = jnp.sum(shares, axis=0)
    sums = jnp.dot(shares.T, x, precision=lloyd.EXACT) - total[:, None] * means
    if form == "tied":
        # About the mean of each row's means, and the scatter of those: no product for each k.
        own = x - jnp.dot(shares, means, precision=lloyd.EXACT)
        own = own * is_new[:, None]
        joint = jnp.dot(shares.T, shares, precision=lloyd.EXACT) * (1.0 - jnp.eye(k))
        apart = jnp.diag(jnp.sum(joint, axis=1)) - joint
        between = jnp.dot(
            means.T, jnp.dot(apart, means, precision=lloyd.EXACT), precision=lloyd.EXACT
        )
        squares = jnp.dot(own.T, own, precision=lloyd.EXACT) + between
        return _Moments(total, sums, squares[None], jnp.sum(log_likelihood * is_new))

    def of_component(mean, share):
        difference = x - mean[None, :]
        weighted = share[:, None] * difference
        if form == "full":
            square = jnp.dot(weighted.T, difference, precision=lloyd.EXACT)
        else:
            square = jnp.sum(weighted * difference, axis=0)
        return jnp.sum(weighted, axis=0), square

    sums, squares = jax.vmap(of_component)(means, shares.T)
    return _Moments(total, sums, squares, jnp.sum(log_likelihood * is_new))


def _expect(x, mixture, form) -> _Moments:
    """Moments of all rows by their shares under the mixture, block by block."""
    by = factors(mixture.covariances, x.shape[1])

    def shares_of(rows, start):
        joint = _log_joint(rows, mixture.weights, mixture.means, by)
        likelihood = jax.nn.logsumexp(joint, axis=1)
        return jnp.exp(joint - likelihood[:, None]), likelihood

    return _total(x, mixture, form, shares_of)


def _total(x, mixture, form, shares_of) -> _Moments:
    (n, d), k = x.shape, len(mixture.means)
    block = _block(n, d, k, form)

    def add(start, is_new, carry):
        rows = jax.lax.dynamic_slice_in_dim(x, start, block)
        shares, likelihood = shares_of(rows, start)
        part = _moments(rows, is_new.astype(x.dtype), shares, mixture.means, form, likelihood)
        return jax.tree.map(jnp.add, carry, part)

    shape = {"full": (k, d, d), "tied": (1, d, d)}.get(form, (k, d))
    zeros = _Moments(jnp.zeros(k), jnp.zeros((k, d)), jnp.zeros(shape), jnp.zeros(()))
    return lloyd.over_blocks(n, block, add, zeros)


def _block(n, d, k, form) -> int:
    """Rows at a time: differences of all components, [k, block, d], stay small."""
    return min(max(2**20 // (k if form == "tied" else k * d), 256), n)


def _maximise(moments, old, form, ridge) -> Mixture:
    """The mixture that the moments about the means of the old one make most likely."""
    has = moments.shares > 1e-6  # rows; those of a component without any say nothing
    shares = jnp.where(has, moments.shares, 1.0)
    shift = jnp.where(has[:, None], moments.sums / shares[:, None], 0.0)
    if form == "tied":
        within = jnp.dot(moments.sums.T, shift, precision=lloyd.EXACT)
        covariances = (moments.squares - within[None]) / jnp.sum(moments.shares)
    elif form == "full":
        covariances = moments.squares / shares[:, None, None]
        covariances = covariances - shift[:, :, None] * shift[:, None, :]
    else:
        # Of rows that are alike, rounding leaves less than nothing.
        covariances = jnp.maximum(moments.squares / shares[:, None] - shift**2, 0.0)
    if form in ("tied", "full"):
        variances = jnp.mean(jnp.diagonal(covariances, axis1=1, axis2=2), axis=1)
        floor = ridge + 1e-6 * variances
        covariances = covariances + floor[:, None, None] * jnp.eye(old.means.shape[1])[None]
    else:
        average = jnp.mean(covariances, axis=1, keepdims=True)
        covariances = average if form == "spherical" else covariances
        covariances = covariances + ridge + 1e-6 * average
    if form != "tied":
        covariances = jnp.where(
            has.reshape(-1, *[1] * (covariances.ndim - 1)), covariances, old.covariances
        )
    weights = jnp.where(has, moments.shares, 0.0)
    return Mixture(weights / jnp.sum(weights), old.means + shift, covariances)


@partial(jax.jit, static_argnames=("n_clusters", "covariance", "n_init"))
def _fit(
    key, x, n_clusters, labels, max_iter, tol, ridge, n_active, *, covariance, n_init
) -> Fitted:
    (n, d), k = x.shape, n_clusters
    x, mean, scale = kmeans.normalise(x)
    ridge = ridge * jnp.maximum(jnp.mean(jnp.var(x, axis=0)), 1e-24)  # rows may be the same

    if labels is None and n_init > 1:
        white = jnp.dot(x, adaptive.whitening_of(x), precision=lloyd.EXACT)

    def run(i):
        if labels is not None:
            return descend(first(labels))
        own = jax.random.fold_in(key, i)
        seen = jnp.where(i % 2 == 0, x, white) if n_init > 1 else x
        found = kmeans.fit(own, seen, k, n_init=1, n_active=n_active, sample=None)
        return descend(first(found.labels))

    def first(labels):
        ones = jnp.ones(n, x.dtype)
        means = lloyd.means(
            lloyd.totals(lloyd.plan(n, d, k), x, ones, labels, k), jnp.zeros((k, d), x.dtype)
        )
        ones = jnp.ones((k, {"diagonal": d}.get(covariance, 1)), x.dtype)
        if covariance in ("full", "tied"):
            ones = jnp.tile(jnp.eye(d, dtype=x.dtype), (k if covariance == "full" else 1, 1, 1))
        start = Mixture(jnp.zeros(k, x.dtype), means, ones)  # that of a component without rows

        def shares_of(rows, begin):
            own = jax.lax.dynamic_slice_in_dim(labels, begin, len(rows))
            return jax.nn.one_hot(own, k, dtype=x.dtype), jnp.zeros(len(rows), x.dtype)

        return _maximise(_total(x, start, covariance, shares_of), start, covariance, ridge)

    def descend(start):
        def iterate(carry):
            old, before, n_iter, _ = carry
            moments = _expect(x, old, covariance)
            likelihood = moments.log_likelihood / n
            new = _maximise(moments, old, covariance, ridge)
            # Not below `tol` where it is no number: a broken run ends too.
            done = ~(jnp.abs(likelihood - before) >= tol)
            return new, likelihood, n_iter + 1, done

        carry = start, jnp.full((), -jnp.inf, x.dtype), jnp.int32(0), jnp.bool_(False)
        carry = jax.lax.while_loop(lambda c: (c[2] < max_iter) & ~c[3], iterate, carry)
        likelihood = _expect(x, carry[0], covariance).log_likelihood / n
        return carry[0], likelihood, carry[2], carry[3]

    def better(i, best):
        found = run(i)
        is_better = (i == 0) | (found[1] > best[1]) | ~jnp.isfinite(best[1])
        return jax.tree.map(partial(jnp.where, is_better), found, best)

    # From nothing, not from run(0): written out twice, a run would be compiled twice.
    nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(run, 0))
    best, likelihood, n_iter, converged = jax.lax.fori_loop(0, n_init, better, nothing)
    found = _over_blocks(x, best, _labels)
    best = Mixture(best.weights, best.means * scale + mean, best.covariances * scale**2)
    return Fitted(best, found, likelihood - d * jnp.log(scale), n_iter, converged)


def _labels(joint):
    return jnp.argmax(joint, axis=1).astype(jnp.int32)


_SOFTMAX, _LOGSUMEXP = partial(jax.nn.softmax, axis=1), partial(jax.nn.logsumexp, axis=1)


def _rows_and(x, mixture, of_joint):
    """What a function of the joint log-probabilities gives for rows that the user has."""
    kmeans.check(x, 1, "random", 1, 1, None, None)
    if x.shape[1] != mixture.means.shape[1]:
        raise ValueError(f"expected x [n, {mixture.means.shape[1]}], found {x.shape}")
    offset = np.float32(0)
    if kmeans.is_wide(x) and isinstance(mixture.means, np.ndarray):
        offset = np.median(mixture.means, axis=0)
    means = kmeans.narrow(mixture.means, offset)
    return _over_blocks(kmeans.narrow(x, offset), mixture._replace(means=means), of_joint)


@partial(jax.jit, static_argnames="of_joint")
def _over_blocks(x, mixture, of_joint):
    """A function of the joint log-probabilities [b, k], block by block. -> [n, ...]."""
    (n, d), k = x.shape, len(mixture.means)
    by = factors(mixture.covariances, x.shape[1])
    block = _block(n, d, k, "tied" if _is_tied(mixture.covariances, k) else "")

    def of_block(start):
        rows = jax.lax.dynamic_slice_in_dim(x, start, block)
        return of_joint(_log_joint(rows, mixture.weights, mixture.means, by))

    def put(start, _, found):
        return jax.lax.dynamic_update_slice_in_dim(found, of_block(start), start, axis=0)

    like = jax.eval_shape(of_block, 0)
    return lloyd.over_blocks(n, block, put, jnp.zeros((n, *like.shape[1:]), like.dtype))
