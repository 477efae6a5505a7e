"""Scores against labels as pure JAX functions, to be jitted, and vmapped over a leading seed axis.

For agreement between epochs or seeds while training, and for scores after it. The numbers of groups
are static. Rows whose label lies outside 0..k-1 in either array are left out; without any row the
result is nan. `external` has the same scores on the host, for labels of any kind.
"""

import jax
import jax.numpy as jnp
import optax

from deepclust_jax.types import Array


def contingency_jax(y: Array, labels: Array, *, n_classes: int, n_clusters: int) -> Array:
    """Rows of class i in cluster j. [n] int, [n] int -> int32 [n_classes, n_clusters]."""
    y, labels = y.astype(jnp.int32), labels.astype(jnp.int32)  # uint8 codes would overflow
    known = (y >= 0) & (y < n_classes) & (labels >= 0) & (labels < n_clusters)
    cells = jnp.where(known, y * n_clusters + labels, n_classes * n_clusters)
    ones = jnp.ones(y.shape, jnp.int32)  # integers: exact, and in any order
    counts = jax.ops.segment_sum(ones, cells, n_classes * n_clusters)  # drops the last cell
    return counts.reshape(n_classes, n_clusters)


def accuracy_jax(y: Array, labels: Array, *, n_classes: int, n_clusters: int) -> Array:
    """Accuracy under the best one-to-one matching of clusters to classes. [n], [n] -> []."""
    table = contingency_jax(y, labels, n_classes=n_classes, n_clusters=n_clusters)
    rows, columns = optax.assignment.hungarian_algorithm(-table)
    return jnp.sum(table[rows, columns]) / jnp.sum(table)


def nmi_jax(y: Array, labels: Array, *, n_classes: int, n_clusters: int) -> Array:
    """Mutual information over the arithmetic mean of the entropies. [n], [n] -> [] in [0, 1].

    1 if both have a single group, 0 if only one has.
    """
    table = contingency_jax(y, labels, n_classes=n_classes, n_clusters=n_clusters)
    row, column, neither = _margins(table)
    n = jnp.sum(table)
    # log(n * table / (row * column)); its argument less 1, from exact integers, so that float32
    # does not lose what little one large group says.
    share = jnp.where(table > 0, row, 1), jnp.where(table > 0, column, 1)
    excess = table / share[0] * (neither / share[1])
    excess -= (row - table) / share[0] * ((column - table) / share[1])
    information = jnp.sum(jnp.where(table > 0, table / n * jnp.log1p(excess), 0.0))
    total = _entropy(row[:, 0]) + _entropy(column[0])
    score = jnp.where(total > 0, 2.0 * information / jnp.where(total > 0, total, 1.0), 1.0)
    return jnp.where(n > 0, jnp.clip(score, 0.0, 1.0), jnp.nan)


def ari_jax(y: Array, labels: Array, *, n_classes: int, n_clusters: int) -> Array:
    """Rand index adjusted for chance (Hubert & Arabie, 1985). [n], [n] -> [] in [-0.5, 1]."""
    table = contingency_jax(y, labels, n_classes=n_classes, n_clusters=n_clusters)
    row, column, apart = _margins(table)
    n = jnp.sum(table)

    def pairs(partners: Array) -> Array:
        # n^2 / 2 pairs overflow int32 from n = 65,536, and differences of such sums lose float32.
        # So: shares of n^2, every term exact before the division and none of them negative.
        return jnp.sum((table / n) * (partners / n))

    both, neither = pairs(table - 1), pairs(apart)
    only_y, only_labels = pairs(row - table), pairs(column - table)
    numerator = 2.0 * (both * neither - only_y * only_labels)
    denominator = (both + only_y) * (only_y + neither) + (both + only_labels) * (
        only_labels + neither
    )
    equal = (only_y == 0) & (only_labels == 0)
    score = jnp.where(equal, 1.0, numerator / jnp.where(equal, 1.0, denominator))
    return jnp.where(n > 0, score, jnp.nan)


def _margins(table: Array) -> tuple[Array, Array, Array]:
    """Sizes of a cell's class and cluster, and the rows in neither; all of the table's shape."""
    row = jnp.broadcast_to(jnp.sum(table, axis=1)[:, None], table.shape)
    column = jnp.broadcast_to(jnp.sum(table, axis=0)[None, :], table.shape)
    return row, column, jnp.sum(table) - row - column + table


def _entropy(counts: Array) -> Array:
    """Of group sizes. [k] -> []. By log1p of the other groups, as above."""
    n = jnp.sum(counts)
    others = jnp.where(counts > 0, n - counts, 0)
    return -jnp.sum(counts / n * jnp.log1p(-others / n))
