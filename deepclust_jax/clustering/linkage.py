"""The number of clusters by linkage: small clusters are joined as long as more edges of a graph of
neighbours go between them than chance would have it.

    edges = linkage.edges(z, labels, 35)      # of a k-means with too many clusters
    group = linkage.merge(edges)[labels]      # of the rows: the number of their group

Every row points at its nearest rows. Of the degrees d_a and d_b of two clusters and the sum of all
degrees, 2m, chance gives d_a d_b / 2m edges between them; their linkage is how many times more
there are. The two with the largest are joined, again and again, until none is above the threshold:
this is agglomerative clustering by average linkage in a graph (Bonald et al. 2018, "Hierarchical
Graph Clustering using Node Pair Sampling"), and at the threshold of 1 it ends where joining
would no longer raise the modularity of Newman and Girvan. Edges are between near rows and see a
gap of any shape, where a test along the line between two centroids sees what both clusters leave
on it.

The number found is no evidence that there are clusters. Chance knows no geometry, and where there
are few clusters, or few dimensions, modularity parts what is one: of ten digits in codes of ten
dimensions there are 11 to 14 clusters, but of one Gaussian 8 to 11 (600 rows of 8 features) or 23
(5,000 rows of 2).
"""

import jax
import jax.numpy as jnp

from deepclust_jax.clustering import neighbors
from deepclust_jax.types import Array

THRESHOLD = 1.0
NEIGHBORS = 10  # that a row points at


def edges(z: Array, labels: Array, n_clusters: int) -> Array:
    """How many pairs of a row and one of its nearest are of one cluster and another, either way.

    Args:
        z: rows [n, d].
        labels: clusters of the rows [n], 0 to n_clusters - 1.
        n_clusters: k.

    Returns:
        [k, k], symmetric; within a cluster every edge counts twice.
    """
    n_neighbors = min(NEIGHBORS, len(z) - 1)
    near = labels[neighbors.nearest(z, n_neighbors).index]
    pairs = jnp.zeros((n_clusters, n_clusters)).at[labels[:, None], near].add(1.0)
    return pairs + pairs.T


def of(edges: Array) -> Array:
    """The linkage of every two clusters. [k, k] -> [k, k].

    -1 on the diagonal and for clusters without edges.
    """
    degrees = jnp.sum(edges, axis=1)
    chance = degrees[:, None] * degrees[None, :] / jnp.maximum(jnp.sum(degrees), 1.0)
    is_pair = (chance > 0) & ~jnp.eye(len(edges), dtype=bool)
    return jnp.where(is_pair, edges / jnp.where(is_pair, chance, 1.0), -1.0)


def merge(edges: Array, threshold: float = THRESHOLD) -> Array:
    """Groups of clusters after the two with the largest linkage have been joined again and again,
    until none have more than `threshold`. [k, k] -> [k] int32.

    Groups have the numbers from 0 on, in the order of their first clusters; clusters without edges
    are none, and have that of the group before.
    """
    k = len(edges)

    def is_left(carry):
        return jnp.max(carry[1]) > threshold

    def join(carry):
        first, found = carry
        pair = jnp.argmax(found)
        stays, goes = pair // k, pair % k  # the lower one first: ties, symmetry
        first = jnp.where(first == goes, stays, first)
        joined = jnp.zeros_like(edges).at[first[:, None], first[None, :]].add(edges)
        return first, of(joined)

    alone = jnp.arange(k, dtype=jnp.int32)
    first = jax.lax.while_loop(is_left, join, (alone, of(edges)))[0]
    is_group = (first == alone) & (jnp.sum(edges, axis=1) > 0)
    return jnp.maximum(jnp.cumsum(is_group) - 1, 0).astype(jnp.int32)[first]
