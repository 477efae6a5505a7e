"""How many clusters? Evidence for every number up to a largest one, in one compiled program.

    evidence = select_k.sweep(jax.random.key(0), x, 20)
    select_k.suggestions(evidence)      # {"silhouette": 7, "gap": 8, ...}: they need not agree
    select_k.distribution([evidence, another])["all"]   # shares of 1 to 20, over several draws

Every number of clusters is a k-means with the largest one and the others masked.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepclust_jax.clustering import kmeans, lloyd, mixture, stability
from deepclust_jax.types import Array, Key

_PAIRS = 2048  # rows of which the silhouette takes all distances
_TIED = 64  # features up to which the mixture of the BIC has a whole covariance, one for all


class Evidence(NamedTuple):
    """Scores of every number of clusters K; nan where a score has no meaning, such as at k = 1."""

    k: np.ndarray  # [K] int
    inertia: np.ndarray  # [K], of the rows used
    silhouette: np.ndarray  # [K], in [-1, 1], higher is better (Rousseeuw 1987)
    calinski_harabasz: np.ndarray  # [K], higher is better
    davies_bouldin: np.ndarray  # [K], lower is better
    gap: np.ndarray  # [K], log inertia under rows without clusters, less the own (Tibshirani 2001)
    gap_error: np.ndarray  # [K], its standard error
    bic: (
        np.ndarray
    )  # [K], of a mixture that starts from the k-means, lower is better (Schwarz 1978)
    stability: np.ndarray  # [K], mean ARI of clusterings of halves of the rows, at most 1
    centroids: np.ndarray  # [K, k_max, d]; of k clusters the first k


def sweep(
    key: Key,
    x: Array,
    k_max: int,
    *,
    k_min: int = 1,
    n_init: int = 10,
    n_references: int = 10,
    n_halves: int = 6,
    max_rows: int = 10_000,
) -> Evidence:
    """Evidence for k_min to k_max clusters. [n, d] -> Evidence.

    Args:
        key: a typed key; the result is a function of it.
        x: rows [n, d].
        k_max: the largest number of clusters, at most half the rows used.
        k_min: the smallest one.
        n_init: restarts of every k-means.
        n_references: sets of rows without clusters for the gap: uniform in the box of the rows
            along their principal axes.
        n_halves: random halves of the rows for the stability; all pairs are compared, on all rows.
        max_rows: of more rows a random part is used.

    Raises:
        ValueError: wrong shapes, NaN or infinite values, numbers out of range.
    """
    kmeans.check_key(key)
    n_used = min(len(x) if hasattr(x, "__len__") else 0, max_rows)
    kmeans.check(x, 1, "random", n_init, 1, None, None)
    if not all(isinstance(k, int | np.integer) for k in (k_min, k_max)):
        raise ValueError(f"expected whole numbers k_min and k_max, found {k_min!r} and {k_max!r}")
    if not 1 <= k_min <= k_max <= n_used // 2:
        raise ValueError(
            f"expected 1 <= k_min <= k_max <= {n_used // 2} (half the rows used), found {k_min} "
            f"and {k_max}"
        )
    if n_references < 2 or n_halves < 2:
        raise ValueError(
            f"expected n_references and n_halves >= 2, found {n_references} and {n_halves}"
        )
    row_key, key = jax.random.split(key)
    chosen = np.sort(np.asarray(kmeans.spread(row_key, x.shape[0], n_used)))
    rows = x[chosen]
    kmeans.check_finite("x", rows)
    offset = kmeans.offset_of(rows)
    rows = kmeans.narrow(rows, offset)
    ks = np.arange(k_min, k_max + 1)
    scores = _sweep(
        key, rows, jnp.asarray(ks), k_max=k_max, n_init=n_init, n_references=n_references,
        n_halves=n_halves,
    )  # fmt: skip
    scores = {name: np.asarray(value) for name, value in scores.items()}
    return Evidence(ks, **scores | {"centroids": kmeans.with_offset(scores["centroids"], offset)})


def suggestions(evidence: Evidence) -> dict[str, int]:
    """The number of clusters that each score speaks for; a score without a best one says none.

    Of the gap the smallest k that is within a standard error of the next one (Tibshirani et al.
    2001), which can not be the last one; of the stability the largest k among the most stable
    ones, up to 0.01.
    """
    k, found = evidence.k, {}
    signs = {"silhouette": 1, "calinski_harabasz": 1, "davies_bouldin": -1, "bic": -1}
    for name, sign in signs.items():
        values = sign * getattr(evidence, name)
        if np.isfinite(values).any():
            found[name] = int(k[np.nanargmax(values)])
    enough = evidence.gap[:-1] >= (evidence.gap - evidence.gap_error)[1:]
    if enough.any():
        found["gap"] = int(k[np.argmax(enough)])
    stable = np.where(k > 1, evidence.stability, np.nan)
    if np.isfinite(stable).any():
        found["stability"] = int(k[np.flatnonzero(stable >= np.nanmax(stable) - 0.01)[-1]])
    return found


def distribution(draws: Sequence[Evidence]) -> dict[str, np.ndarray]:
    """How often each score spoke for each number of clusters. -> shares [K] by score, and "all".

    `draws` are sweeps of the same numbers with keys of their own: other parts of the rows, restarts
    and halves; or of the codes of networks of other seeds. A score that never has a best one is
    left out; "all" is the mean over the others. One number with most of the share is an answer,
    many with a little are none.

    Raises:
        ValueError: no draws, or of different numbers.
    """
    if not draws or any(list(e.k) != list(draws[0].k) for e in draws):
        numbers = [list(map(int, e.k)) for e in draws]
        raise ValueError(f"expected sweeps of the same numbers of clusters, found {numbers}")
    k, found = draws[0].k, {}
    spoken = [suggestions(evidence) for evidence in draws]
    for name in dict.fromkeys(name for each in spoken for name in each):
        votes = [each[name] for each in spoken if name in each]
        found[name] = np.array([votes.count(number) for number in k]) / len(votes)
    return found | {"all": np.mean(list(found.values()), axis=0)} if found else {}


@partial(jax.jit, static_argnames=("k_max", "n_init", "n_references", "n_halves"))
def _sweep(key, x, ks, *, k_max, n_init, n_references, n_halves):
    n, d = x.shape
    mean = jnp.mean(x, axis=0, keepdims=True)
    x = x - mean
    fit_key, reference_key, half_key = jax.random.split(key, 3)
    fit = partial(kmeans.fit, n_clusters=k_max, sample=None)
    total = jnp.sum(x**2)
    some = x[:: -(-n // _PAIRS)]
    apart = jnp.sqrt(jnp.maximum(_squared(some), 0.0))
    references = jax.vmap(lambda key: _without_clusters(key, x))(
        jax.random.split(reference_key, n_references)
    )

    def scores(k):
        found = fit(jax.random.fold_in(fit_key, k), x, n_active=k, n_init=n_init)
        labels = found.labels
        counts = jax.ops.segment_sum(jnp.ones(n), labels, k_max)
        active = counts > 0

        def of_reference(one):
            key, rows = one
            return jnp.log(fit(key, rows, n_active=k, n_init=1).inertia)

        keys = jax.random.split(jax.random.fold_in(reference_key, k), n_references)
        expected = jax.lax.map(of_reference, (keys, references))

        form = "tied" if d <= _TIED else "diagonal"
        gaussians = mixture.fit(fit_key, x, k_max, covariance=form, init=labels, n_active=k)
        return {
            "inertia": found.inertia,
            "silhouette": _silhouette(apart, labels[:: -(-n // _PAIRS)], k_max),
            "calinski_harabasz": (total - found.inertia) / (k - 1) / found.inertia * (n - k),
            "davies_bouldin": _davies_bouldin(x, found.centroids, labels, counts, active),
            "gap": jnp.mean(expected) - jnp.log(found.inertia),
            "gap_error": jnp.std(expected) * jnp.sqrt(1.0 + 1.0 / n_references),
            "bic": mixture.bic(gaussians, n, form),
            "stability": stability.of_halves(
                half_key, x, k_max, n_halves=n_halves, n_init=n_init, n_active=k
            ),
            "centroids": found.centroids + mean,
        }

    found = jax.lax.map(scores, ks)
    # Inertia that is rounding: as many clusters as there are distinct rows, or more.
    is_left = found["inertia"] > 1e-10 * total
    for name in ("silhouette", "calinski_harabasz", "davies_bouldin", "gap", "bic", "stability"):
        has_meaning = is_left if name in ("gap", "bic", "stability") else is_left & (ks > 1)
        found[name] = jnp.where(has_meaning, found[name], jnp.nan)
    return found


def _squared(x):
    squares = jnp.sum(x**2, axis=-1)
    product = jnp.dot(x, x.T, precision=lloyd.EXACT)
    return squares[:, None] + squares[None, :] - 2.0 * product


def _without_clusters(key, x):
    """Rows uniform in the box of x [n, d] along its principal axes; x is centred."""
    axes = jnp.linalg.svd(jnp.dot(x.T, x, precision=lloyd.EXACT))[2]
    turned = jnp.dot(x, axes.T, precision=lloyd.EXACT)
    low, high = jnp.min(turned, axis=0), jnp.max(turned, axis=0)
    drawn = jax.random.uniform(key, x.shape)
    return jnp.dot(low[None, :] + drawn * (high - low)[None, :], axes, precision=lloyd.EXACT)


def _silhouette(apart, labels, k):
    """Mean silhouette of rows with distances [m, m]; clusters may be empty."""
    member = jax.nn.one_hot(labels, k)
    sizes = jnp.sum(member, axis=0)
    sums = jnp.dot(apart, member, precision=lloyd.EXACT)
    is_own = member > 0
    inner = jnp.sum(jnp.where(is_own, sums, 0.0), axis=1) / jnp.maximum(sizes[labels] - 1, 1)
    is_other = ~is_own & (sizes > 0)[None, :]
    outer = jnp.min(jnp.where(is_other, sums / jnp.maximum(sizes, 1)[None, :], jnp.inf), axis=1)
    larger = jnp.maximum(jnp.maximum(inner, outer), 1e-30)
    return jnp.mean(jnp.where(sizes[labels] > 1, (outer - inner) / larger, 0.0))


def _davies_bouldin(x, centroids, labels, counts, active):
    """Mean over clusters of the worst ratio of their spreads to their distance."""
    radius = jnp.sqrt(lloyd.distances(x, centroids, labels))
    spread = jax.ops.segment_sum(radius, labels, counts.shape[0]) / jnp.maximum(counts, 1.0)
    apart = jnp.sqrt(jnp.sum((centroids[:, None, :] - centroids[None, :, :]) ** 2, axis=-1))
    pair = active[:, None] & active[None, :] & (apart > 0)
    ratio = jnp.where(pair, (spread[:, None] + spread[None, :]) / jnp.where(pair, apart, 1.0), 0.0)
    return jnp.sum(jnp.where(active, jnp.max(ratio, axis=1), 0.0)) / jnp.sum(active)
