"""The number of clusters by merging: k-means with too many clusters, of which two are joined as
long as there is no valley between them.

    found = merging.fit(jax.random.key(0), y, 35)     # y: such as points of graph_embedding.py
    found.labels, found.n_clusters

Two clusters a, b are looked at along the line through their centroids, each with half of the
weight, so that a small one counts as much as a large one beside it. The folding test (Siffer et
al. 2018, "Are your data gathered?") folds that line at the point s where the fold leaves the least
variance,

    phi = 4 Var|t - s| / Var t,      s = cov(t, t^2) / (2 Var t)

and compares with the uniform distribution, which has phi = 1: one hill has more, two have less.
Clusters of one Gaussian each, with deviation 1 and centres at a distance of d, have about
4 / (1 + d^2/4): the threshold of 0.7 is d = 4.2, where the valley between them is a fifth as high
as they are. To start with too many clusters and merge is from Leiber et al. 2021, "Dip-based Deep
Embedded Clustering with k-Estimation", whose test is Hartigan's dip, on sorted rows; phi needs
moments only.

It suits data whose clusters stand apart, as points of a neighbour graph do. In raw features, and in
the code of an autoencoder, few are apart by that much along one line, and too few are merged or too
many.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepclust_jax.clustering import kmeans, lloyd
from deepclust_jax.types import Array, Key

THRESHOLD = 0.7
_ROWS = 20  # for each of the clusters at the start: moments of fewer say little
_FEWEST = 5  # rows of a cluster; a smaller one goes to the nearest


class Merged(NamedTuple):
    """What `fit` found. Clusters have the numbers 0 to n_clusters - 1."""

    labels: Array  # [n] int32
    n_clusters: Array  # [] int32


def fit(
    key: Key, x: Array, n_clusters: int = 35, *, threshold: float = THRESHOLD, n_init: int = 10
) -> Merged:
    """As few clusters as there are hills, at most `n_clusters`. [n, d] -> Merged.

    Args:
        key: a typed key; the result is a function of it.
        x: rows [n, d].
        n_clusters: of the k-means at the start, several times the number that is expected; or
            one for each 20 rows, if that is less. Of these, one with fewer than 5 rows is none.
        threshold: the phi from which on two clusters are one, 0 to 4; see above.
        n_init: restarts of the k-means.

    Raises:
        ValueError: as `kmeans.fit`, or a threshold that is not positive.
    """
    if not threshold > 0:
        raise ValueError(f"expected threshold > 0, found {threshold}")
    kmeans.check(x, 1, "random", n_init, 1, None, None)
    check_most(n_clusters)
    n_clusters = min(int(n_clusters), max(x.shape[0] // _ROWS, 1))
    found = kmeans.fit(key, x, n_clusters, n_init=n_init)
    rows = kmeans.narrow(x, kmeans.offset_of(x))
    rows = kmeans.normalise(rows)[0]
    labels = _merge_large(rows, found.labels, n_clusters, threshold)
    has_rows = jnp.zeros(n_clusters, bool).at[labels].set(True)
    number = jnp.cumsum(has_rows) - 1
    return Merged(number[labels].astype(jnp.int32), jnp.sum(has_rows))


def check_most(n_clusters: int) -> None:
    """Raise ValueError for what is no number of clusters to start with; it may exceed the rows."""
    if not isinstance(n_clusters, int | np.integer) or n_clusters < 1:
        raise ValueError(f"expected a whole number n_clusters >= 1, found {n_clusters!r}")


@partial(jax.jit, static_argnames="n_clusters")
def _merge_large(z, labels, n_clusters, threshold):
    """`merge` without the rows of too small clusters, which then go to the nearest centroid: one
    row far out would be most of a variance."""
    sizes = jnp.bincount(labels, length=n_clusters)
    sums = jax.ops.segment_sum(z, labels, n_clusters)
    centroids = sums / jnp.maximum(sizes, 1)[:, None]
    stays = sizes >= jnp.minimum(_FEWEST, jnp.max(sizes))
    nearest = jnp.argmin(jnp.where(stays[None, :], _sqdist(z, centroids), jnp.inf), axis=1)
    merged = merge(z, jnp.where(stays[labels], labels, -1), n_clusters, threshold)
    became = jnp.zeros(n_clusters, merged.dtype).at[labels].max(merged)
    return became[jnp.where(stays[labels], labels, nearest)]


def _sqdist(z, centroids):
    return jax.lax.map(lambda c: jnp.sum((z - c[None, :]) ** 2, axis=-1), centroids).T


@partial(jax.jit, static_argnames="n_clusters")
def merge(z: Array, labels: Array, n_clusters: int, threshold: float | Array) -> Array:
    """Labels after the two clusters with the largest phi have been merged again and again, until
    none have `threshold` or more. [n, d], [n] int -> [n] int, the lower number of those merged.
    Rows with the label -1 are in no cluster."""

    def is_left(carry):
        return jnp.max(carry[1]) >= threshold

    def join(carry):
        labels, phi = carry
        pair = jnp.argmax(phi)
        stays, goes = pair // n_clusters, pair % n_clusters  # the lower one first: ties, symmetry
        labels = jnp.where(labels == goes, stays, labels)
        return labels, folding(z, labels, n_clusters)

    return jax.lax.while_loop(is_left, join, (labels, folding(z, labels, n_clusters)))[0]


def folding(z: Array, labels: Array, n_clusters: int) -> Array:
    """phi of every two clusters along the line through their centroids. [n, d], [n] -> [k, k].

    Symmetric; infinite where all rows of both are at one place; -1 on the diagonal and for clusters
    without rows.
    """
    member = jax.nn.one_hot(labels, n_clusters, dtype=z.dtype)
    sizes = jnp.sum(member, axis=0)

    def mean(values):  # over the rows of each cluster. [n, m] -> [k, m]
        sums = jnp.dot(member.T, values, precision=lloyd.EXACT)
        return sums / jnp.maximum(sizes, 1.0)[:, None]

    centroids = mean(z)
    gaps = jnp.sum((centroids[:, None, :] - centroids[None, :, :]) ** 2, axis=-1)
    distance = jnp.sqrt(jnp.where(gaps > 0, gaps, 1.0))
    # Place of a row of cluster a on the line to b, from the middle between the centroids on. Rows
    # of b have the negative of that on their own line to a.
    own = jnp.sum((z - centroids[labels]) ** 2, axis=-1, keepdims=True)
    along = (own - _sqdist(z, centroids)) / (2.0 * distance[labels])  # [n, k]

    first, second, third = (mean(along**power) for power in (1, 2, 3))
    first, third = (first - first.T) / 2.0, (third - third.T) / 2.0
    second = (second + second.T) / 2.0
    variance = jnp.maximum(second - first**2, 0.0)
    fold = (third - first * second) / jnp.where(variance > 0, 2.0 * variance, 1.0)
    once, twice = (mean(jnp.abs(along - fold[labels]) ** power) for power in (1, 2))
    once, twice = (once + once.T) / 2.0, (twice + twice.T) / 2.0
    phi = 4.0 * (twice - once**2) / jnp.where(variance > 0, variance, 1.0)
    phi = jnp.where(variance > 0, phi, jnp.inf)
    has_rows = sizes > 0
    known = has_rows[:, None] & has_rows[None, :] & ~jnp.eye(n_clusters, dtype=bool)
    return jnp.where(known, phi, -1.0)
