"""Rows as points in a few dimensions, near where the rows are neighbours: UMAP's objective
(McInnes et al. 2018), for clustering rather than for pictures.

    found = graph_embedding.cluster(jax.random.key(0), x, 10)     # a mixture on the points

    near = neighbors.nearest(x, 20)                               # or the points alone
    y = graph_embedding.fit(jax.random.key(0), near, graph_embedding.principal(x, 10))

    minimise  sum_ij  w_ij log(1 / s_ij)  +  sum_i e_i mean_j log(1 / (1 - s_ij))
    s_ij = 1 / (1 + a |y_i - y_j|^2b)

The first sum is over neighbours, with the weights w of the fuzzy graph; the second over rows j
drawn at random, with e_i `negatives` times the weights of row i, as in the authors' code. The curve
s has no flat top (`min_dist` 0): clusters become dense. Deviations: all rows move at once, by Adam
with a falling rate, and not one edge after another by SGD, so that an epoch is a few large
operations on the device and the result a function of the key; a pair of neighbours pulls each of
them once, as the sum says, and not from either end, which in the authors' loop is twice as much
against the same push; and points start on the principal axes of the rows and not on those of the
graph, so that clusters around one centre may stay there.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepclust_jax.clustering import kmeans, lloyd, merging, mixture, neighbors, whitening
from deepclust_jax.clustering.neighbors import Neighbors
from deepclust_jax.metrics.jittable import ari_jax
from deepclust_jax.types import Array, Key

# a and b for which 1 / (1 + a t^2b) is nearest to exp(-t) for t in 0..3 (a test fits them).
A, B = 1.9328, 0.7904
_EPS = 1e-3  # added to the squared distance of rows that push each other, as in the authors' code
_SIZE = 3.0  # deviation of the points at the start: the scale on which s falls is 1


class Clustered(NamedTuple):
    """What `cluster` found."""

    labels: Array  # [n] int32
    posterior: Array  # [n, k], probability of each cluster given the point of the row
    points: Array  # [n, dim]
    information: Array  # [], nats, of the clusters along the edges of the graph; <= log k
    agreement: Array  # [], mean adjusted Rand index with the clusters of the other layouts


def cluster(
    key: Key,
    x: Array,
    n_clusters: int,
    *,
    dim: int = 10,
    n_neighbors: int = 20,
    n_layouts: int = 5,
    epochs: int = 300,
    merge: bool = False,
) -> Clustered:
    """A Gaussian mixture with full covariances on points for the rows. [n, d] -> Clustered.

    Points differ from key to key, and some layouts join two clusters and cut another: of several
    the one is kept whose clusters say most of those of the neighbours (`information`), in the space
    of the rows. The likelihood of the mixture says less: it is of other points each time.

    Where the number of clusters is not known, `merge` them: there is no mixture then, but k-means
    with `n_clusters`, joined where no valley is between them (merging.py). Clusters have the
    numbers 0 to as many as are left. More of them say more of the neighbours, so the layout is kept
    whose clusters agree best with those of the others.

    Args:
        key: a typed key; the result is a function of it.
        x: rows [n, d].
        n_clusters: k; with `merge` several times the number that is expected.
        dim: of the points; at most d.
        n_neighbors: of each row; at most n - 1.
        n_layouts: how many are made.
        epochs: of each, as in `fit`.
        merge: whether to merge clusters.

    Raises:
        ValueError: as `mixture.fit` and `fit`.
    """
    found = candidates(
        key, x, n_clusters, dim=dim, n_neighbors=n_neighbors, n_layouts=n_layouts, epochs=epochs,
        merge=merge,
    )  # fmt: skip
    return jax.tree.map(lambda a: a[best(found, merge)], found)


def best(found: Clustered, merge: bool) -> Array:
    """Which of the layouts of `candidates` the function `cluster` keeps. -> [] int."""
    return jnp.argmax(found.agreement if merge else found.information)


def candidates(
    key: Key,
    x: Array,
    n_clusters: int,
    *,
    dim: int = 10,
    n_neighbors: int = 20,
    n_layouts: int = 5,
    epochs: int = 300,
    merge: bool = False,
) -> Clustered:
    """What `cluster` chooses from: all its layouts, on a leading axis [n_layouts]."""
    kmeans.check_key(key)
    kmeans.check(x, 1 if merge else n_clusters, "random", n_layouts, 1, None, None)
    if merge:
        merging.check_most(n_clusters)
    kmeans.check_finite("x", x)
    whole = all(isinstance(number, int | np.integer) for number in (dim, n_neighbors))
    if not whole or min(dim, n_neighbors) < 1:
        raise ValueError(
            f"expected whole numbers dim and n_neighbors >= 1, found {dim} and {n_neighbors}"
        )
    if x.shape[0] < 2:
        raise ValueError("expected 2 rows or more, found one, which has no neighbours")
    rows = kmeans.narrow(x, kmeans.offset_of(x))
    rows = kmeans.normalise(rows)[0]
    near = neighbors.nearest(rows, min(n_neighbors, len(rows) - 1))
    start = principal(rows, min(dim, rows.shape[1]))
    weights = graph(near)

    def one(key):
        y = fit(key, near, start, epochs=epochs)
        cluster_key = jax.random.fold_in(key, epochs)
        if merge:
            labels = merging.fit(cluster_key, y, n_clusters).labels
            own = jax.nn.one_hot(labels, n_clusters)
        else:
            found = mixture.fit(cluster_key, y, n_clusters)
            labels, own = found.labels, mixture.posterior(y, found.mixture)
        # Of a mixture that failed: one classifier may learn the posteriors of all layouts at once.
        own = jnp.where(jnp.isfinite(own), own, 0.0)
        edges = information(labels, near.index, weights, n_clusters)
        return Clustered(labels, own, y, edges, jnp.float32(0))

    found = jax.lax.map(one, jax.random.split(key, n_layouts))
    return found._replace(agreement=_agreement(found.labels, n_clusters))


def _agreement(labels: Array, k: int) -> Array:
    """Mean adjusted Rand index of each clustering with the others. [m, n] -> [m]; 1 if alone."""
    index = partial(ari_jax, n_classes=k, n_clusters=k)
    every = jax.lax.map(lambda one: jax.vmap(index, (None, 0))(one, labels), labels)
    if len(labels) == 1:
        return jnp.ones(1)
    return (jnp.sum(every, axis=1) - 1.0) / (len(labels) - 1)  # less its own index with itself


@partial(jax.jit, static_argnames="n_clusters")
def information(labels: Array, index: Array, weights: Array, n_clusters: int) -> Array:
    """Mutual information of the clusters at the ends of an edge of a graph. -> [], nats.

    Row i has the cluster labels[i] and edges to index[i], with weights[i]. [n] int, [n, k] int,
    [n, k] -> 0 where one cluster has all rows, and at most the entropy of the sizes, where no edge
    leads from one cluster to another. Cuts through dense places lower it, and so does joining.
    """

    def of_column(column):  # apart: long sums of float32 lose their last terms
        other, weight = column
        return jnp.bincount(labels * n_clusters + labels[other], weight, length=n_clusters**2)

    joint = jnp.sum(jax.lax.map(of_column, (index.T, weights.T)), axis=0)
    joint = joint.reshape(n_clusters, n_clusters) / jnp.sum(joint)
    joint = (joint + joint.T) / 2.0
    own = jnp.sum(joint, axis=1)
    return jnp.sum(
        joint * jnp.log(jnp.where(joint > 0, joint / (own[:, None] * own[None, :]), 1.0))
    )


def fit(
    key: Key,
    near: Neighbors,
    start: Array,
    *,
    epochs: int = 300,
    negatives: int = 5,
    learning_rate: float = 0.2,
) -> Array:
    """Points for rows with the given neighbours. -> [n, d].

    Args:
        key: a typed key; the result is a function of it.
        near: the nearest others of each row, [n, k], from `neighbors.nearest`.
        start: points [n, d] to start from, of any scale, such as `principal(x, d)`.
        epochs: steps of Adam.
        negatives: rows drawn at random for each row and epoch, which push it away.
        learning_rate: of the first step, on a scale where neighbours are at a distance of about 1;
            it falls to 0 in a line.

    Raises:
        ValueError: wrong shapes, NaN or infinite values, numbers out of range.
    """
    kmeans.check_key(key)
    kmeans.check(start, 1, "random", 1, 1, None, None)
    kmeans.check_finite("start", start)
    n, shapes = start.shape[0], (near.index.shape, near.sqdist.shape)
    if len(shapes[0]) != 2 or shapes[0] != shapes[1] or shapes[0][0] != n:
        raise ValueError(f"expected neighbours [{n}, k], found {shapes[0]} and {shapes[1]}")
    kmeans.check_finite("squared distances of near", near.sqdist)
    if min(epochs, negatives) < 1 or not learning_rate > 0:
        raise ValueError(
            f"expected epochs and negatives >= 1 and learning_rate > 0, found {epochs}, "
            f"{negatives} and {learning_rate}"
        )
    start = kmeans.narrow(start, kmeans.offset_of(start))
    return _fit(key, near, start, learning_rate, epochs=epochs, negatives=negatives)


@partial(jax.jit, static_argnames="d")
def principal(x: Array, d: int) -> Array:
    """Coordinates of the rows along their d leading principal axes. [n, D] -> [n, d]."""
    rows, _, scale = kmeans.normalise(x)
    scatter = jnp.dot(rows.T, rows, precision=lloyd.EXACT)
    axes = whitening.principal_axes(scatter)[1][:, :d]
    return jnp.dot(rows, axes, precision=lloyd.EXACT) * scale


@jax.jit
def graph(near: Neighbors) -> Array:
    """Weights of the fuzzy graph, [n, k]: for each row those of its neighbours.

    A weight falls with the distance beyond that of the nearest neighbour, on a scale for which the
    weights of a row sum to log2(k); a pair then has a + b - a b of its weights a and b from both
    ends. Of a pair that are each other's neighbours each row holds half.
    """
    distance = jnp.sqrt(near.sqdist)
    n, k = distance.shape
    nearest = jnp.min(jnp.where(distance > 0, distance, jnp.inf), axis=1, keepdims=True)
    apart = jnp.maximum(distance - jnp.where(jnp.isfinite(nearest), nearest, 0.0), 0.0)
    average = jnp.mean(distance, axis=1, keepdims=True)

    def halve(_, bounds):
        low, high = bounds
        middle = jnp.where(jnp.isinf(high), 2.0 * low, (low + high) / 2.0)
        is_wide = jnp.sum(jnp.exp(-apart / middle), axis=1, keepdims=True) > np.log2(k)
        return jnp.where(is_wide, low, middle), jnp.where(is_wide, middle, high)

    # Not below a thousandth of the mean distance, as in the authors' code: twins have no scale.
    bounds = jnp.maximum(1e-3 * average, 1e-30), jnp.full_like(average, jnp.inf)
    low, high = jax.lax.fori_loop(0, 64, halve, bounds)
    own = jnp.exp(-apart / jnp.where(jnp.isinf(high), low, (low + high) / 2.0))

    def seen_from_there(row, index):  # weights of the same pairs as the neighbours have them
        return jnp.sum(jnp.where(near.index[index] == row, own[index], 0.0), axis=-1)

    rows = jnp.arange(n, dtype=near.index.dtype)
    block = max(2**20 // k**2, 1)
    other = jax.lax.map(lambda pair: seen_from_there(*pair), (rows, near.index), batch_size=block)
    both = own + other - own * other
    return jnp.where(other > 0, both / 2.0, both)


@partial(jax.jit, static_argnames=("epochs", "negatives"))
def _fit(key, near, start, learning_rate, *, epochs, negatives):
    n, _ = start.shape
    weights = graph(near)
    start = start - jnp.mean(start, axis=0, keepdims=True)
    size = jnp.max(jnp.std(start, axis=0))
    y = _SIZE * start / jnp.where(size > 0, size, 1.0)
    # Rows that begin at one point have no direction to leave it.
    y = y + 1e-3 * jax.random.normal(jax.random.fold_in(key, epochs), y.shape)
    of_others = jax.ops.segment_sum(weights.reshape(-1), near.index.reshape(-1), n)
    total = jnp.sum(weights, axis=1) + of_others
    tx = optax.adam(optax.linear_schedule(learning_rate, 0.0, epochs))

    def cost(y, others):
        return jnp.sum(weights * pull(y, near.index)) + negatives * jnp.sum(total * push(y, others))

    def epoch(i, carry):
        y, state = carry
        others = jax.random.randint(jax.random.fold_in(key, i), (n, negatives), 0, n)
        updates, state = tx.update(jax.grad(cost)(y, others), state)
        return y + updates, state

    return jax.lax.fori_loop(0, epochs, epoch, (y, tx.init(y)))[0]


def pull(y: Array, index: Array) -> Array:
    """log(1 / s) of each row and its neighbours. [n, d], [n, k] -> [n, k]."""
    sqdist = jnp.sum((y[:, None, :] - y[index]) ** 2, axis=-1)
    return jnp.log1p(A * (sqdist + 1e-12) ** B)  # 0 has no derivative of a power below 1


def push(y: Array, others: Array) -> Array:
    """Mean of log(1 / (1 - s)) of each row and others, which stay where they are. [n, d], [n, m]
    -> [n]."""
    apart = y[:, None, :] - jax.lax.stop_gradient(y)[others]
    sqdist = jnp.sum(apart**2, axis=-1) + _EPS
    return jnp.mean(jnp.log1p(1.0 / (A * sqdist**B)), axis=1)
