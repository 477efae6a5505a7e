"""DBSCAN on the device (Ester et al. 1996), with the labels of scikit-learn's.

Distances are computed tile by tile, so that neither they nor neighbour lists of all pairs ever
exist. Rows are sorted along their widest axis first, and tiles farther apart than eps on it are
left out. Of core rows the smallest number spreads among neighbours and along the numbers that it
has reached (Shiloach & Vishkin 1982), until nothing changes.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepclust_jax.clustering import kmeans, lloyd
from deepclust_jax.types import Array

_TILE = 1024
_FEW = 16  # rows whose distances are taken by differences at once
_ROUNDING = 8 * 2.0**-23  # of a squared distance from a product, as a share of the squares


class DBSCAN(NamedTuple):
    """What `fit` found. Clusters are numbered by their first core row, as in scikit-learn."""

    labels: Array  # [n] int32, -1 for noise
    is_core: Array  # [n] bool: at least min_samples rows within eps, itself among them


def fit(x: Array, eps: float, *, min_samples: int = 5) -> DBSCAN:
    """Clusters of rows that are dense and connected. [n, d].

    Args:
        x: rows [n, d].
        eps: two rows are neighbours up to this Euclidean distance, > 0.
        min_samples: rows within eps, itself among them, that make a row a core row, >= 1.

    A row that is no core row goes to the first cluster with a core row near it, or is noise.
    Distances near eps are taken by differences: two rows whose distance is eps up to the rounding
    of float32 may be taken for neighbours or not.

    Time goes with n^2 d at most, memory with n. Not to be traced: the host chooses the tiles.

    Raises:
        ValueError: wrong shapes, NaN or infinite values, eps or min_samples out of range.
    """
    kmeans.check(x, 1, "random", 1, 1, None, None)
    kmeans.check_finite("x", x)
    if not isinstance(eps, int | float | np.number) or not 0 < eps < np.inf:
        raise ValueError(f"expected eps > 0, found {eps!r}")
    if min_samples < 1 or int(min_samples) != min_samples:
        raise ValueError(f"expected a whole number min_samples >= 1, found {min_samples}")
    offset = kmeans.offset_of(x)
    eps = min(float(eps), 1e38)
    rows, limit, keys = _scaled(kmeans.narrow(x, offset), jnp.float32(eps))
    rows, keys = np.asarray(rows), np.asarray(keys)
    order = np.argsort(keys, kind="stable")
    reach = 1.0001 * float(limit) ** 0.5  # rounding must not leave a neighbour out
    fold = partial(_fold, limit=limit, reach=reach)

    every = _Tiles.of(rows, keys, order)
    counts = fold(_count, every, every, jnp.zeros(every.n_padded, jnp.int32))
    is_core = np.zeros(len(rows), bool)
    is_core[order] = np.asarray(counts)[: len(rows)] >= min_samples
    labels = np.full(len(rows), -1, np.int32)
    if is_core.any():
        core = _Tiles.of(rows, keys, order[is_core[order]])
        labels[core.rows_of] = _number(_components(fold, core), core.rows_of)
        border = _Tiles.of(rows, keys, order[~is_core[order]])
        if len(border.rows_of):
            none = np.int32(np.iinfo(np.int32).max)
            clusters = np.full(core.n_padded, none, np.int32)
            clusters[: len(core.rows_of)] = labels[core.rows_of]
            first = jnp.full(border.n_padded, none, jnp.int32)
            first = fold(_lowest, border, core, first, jnp.asarray(clusters))
            first = np.asarray(first)[: len(border.rows_of)]
            labels[border.rows_of] = np.where(first == none, -1, first)
    return DBSCAN(jnp.asarray(labels), jnp.asarray(is_core))


@jax.jit
def _scaled(x, eps):
    """Rows of size 1, the square of eps on that scale, and the widest feature."""
    scale = kmeans.power_of_two(x)  # no centring: differences of the rows stay exact
    rows = x / scale
    limit = jnp.minimum((eps / scale) ** 2, 1e30)  # below the infinity of the padding
    return rows, limit, rows[:, jnp.argmax(jnp.var(rows, axis=0))]


class _Tiles(NamedTuple):
    """Some of the rows in order of their keys, padded to whole tiles by rows far from all."""

    x: Array  # [m, d]
    padding: Array  # [m], infinite where padded, else 0
    rows_of: np.ndarray  # numbers of the rows, without the padding
    low: np.ndarray  # [m / tile], the smallest key of each tile
    high: np.ndarray  # [m / tile]
    tile: int

    @property
    def n_padded(self) -> int:
        return self.x.shape[0]

    @classmethod
    def of(cls, rows, keys, chosen):
        tile = min(_TILE, max(len(rows), 1))
        n_tiles = 1 << max(-(-len(chosen) // tile) - 1, 0).bit_length()  # few different shapes
        padding = n_tiles * tile - len(chosen)
        x = np.pad(rows[chosen], ((0, padding), (0, 0)), mode="edge" if len(chosen) else "constant")
        far = np.repeat(np.float32([0, np.inf]), [len(chosen), padding])
        low = np.pad(keys[chosen], (0, padding), constant_values=np.inf).reshape(n_tiles, tile)
        high = np.pad(keys[chosen], (0, padding), constant_values=-np.inf).reshape(n_tiles, tile)
        return cls(
            jnp.asarray(x), jnp.asarray(far), chosen, low.min(axis=1), high.max(axis=1), tile
        )


def _fold(body, first: _Tiles, second: _Tiles, carry, *args, limit, reach):
    """Fold a body over pairs of tiles that may hold neighbours; within one set each pair once."""
    is_near = (first.low[:, None] - second.high[None, :] <= reach) & (
        second.low[None, :] - first.high[:, None] <= reach
    )
    is_same = first is second
    pairs = np.argwhere(np.triu(is_near) if is_same else is_near).astype(np.int32) * first.tile
    padded = np.zeros((1 << max(len(pairs) - 1, 0).bit_length(), 2), np.int32)
    padded[: len(pairs)] = pairs
    return _fold_pairs(
        body, first[:2], second[:2], jnp.asarray(padded), len(pairs), limit, carry, args,
        tile=first.tile, is_same=is_same,
    )  # fmt: skip


@partial(jax.jit, static_argnames=("body", "tile", "is_same"))
def _fold_pairs(body, first, second, pairs, n_pairs, limit, carry, args, *, tile, is_same):
    def cut(values, start):
        return jax.lax.dynamic_slice_in_dim(values, start, tile)

    def one(i, carry):
        a, b = pairs[i, 0], pairs[i, 1]
        rows = cut(first[0], a), cut(second[0], b)
        far = cut(first[1], a)[:, None] + cut(second[1], b)[None, :]
        is_near = _is_near(*rows, limit) & (far == 0)
        if is_same:  # a row is near itself, whatever rounding says
            is_near = is_near | (jnp.eye(tile, dtype=bool) & (a == b))
        return body(is_near, a, b, carry, *args)

    return jax.lax.fori_loop(0, n_pairs, one, carry)


def _is_near(a, b, limit):
    """Whether squared distances are at most the limit. [t, d], [t, d] -> bool [t, t].

    By a product; of the rows where its rounding leaves a distance in doubt, by differences.
    """
    origin = jnp.mean(a, axis=0, keepdims=True)
    p, q = a - origin, b - origin
    squares = jnp.sum(p**2, axis=1)[:, None] + jnp.sum(q**2, axis=1)[None, :]
    sqdist = squares - 2.0 * jnp.dot(p, q.T, precision=lloyd.EXACT)
    in_doubt = jnp.any(jnp.abs(sqdist - limit) <= _ROUNDING * squares, axis=1)
    order = jnp.argsort(~in_doubt)  # those in doubt first
    few = min(_FEW, len(order))

    def check(i, sqdist):
        rows = jax.lax.dynamic_slice_in_dim(order, i * few, few)
        exact = jnp.sum((a[rows][:, None, :] - b[None, :, :]) ** 2, axis=-1)
        return sqdist.at[rows].set(exact)

    return jax.lax.fori_loop(0, -(-jnp.sum(in_doubt) // few), check, sqdist) <= limit


def _count(is_near, a, b, counts):
    """Neighbours of each row."""
    tile = is_near.shape[0]
    of_first = jnp.sum(is_near, axis=1, dtype=jnp.int32)
    of_second = jnp.where(a == b, 0, jnp.sum(is_near, axis=0, dtype=jnp.int32))
    for start, part in ((a, of_first), (b, of_second)):
        old = jax.lax.dynamic_slice_in_dim(counts, start, tile)
        counts = jax.lax.dynamic_update_slice_in_dim(counts, old + part, start, axis=0)
    return counts


def _lowest(is_near, a, b, lowest, numbers):
    """The lowest of the numbers of the second rows near each first one."""
    tile = is_near.shape[0]
    of_second = jax.lax.dynamic_slice_in_dim(numbers, b, tile)
    old = jax.lax.dynamic_slice_in_dim(lowest, a, tile)
    part = jnp.min(jnp.where(is_near, of_second[None, :], old[:, None]), axis=1)
    return jax.lax.dynamic_update_slice_in_dim(lowest, jnp.minimum(old, part), a, axis=0)


def _spread(is_near, a, b, roots):
    """The lowest of the roots near each row, both ways, at once seen by the pairs to come."""
    roots = _lowest(is_near, a, b, roots, roots)
    return _lowest(is_near.T, b, a, roots, roots)


def _components(fold, core: _Tiles) -> np.ndarray:
    """A number for each core row, the same where a chain of neighbours joins them."""
    roots = jnp.arange(core.n_padded, dtype=jnp.int32)
    while True:
        spread = _to_the_roots(roots, fold(_spread, core, core, roots))
        if np.array_equal(spread, roots):
            return np.asarray(roots)[: len(core.rows_of)]
        roots = spread


@jax.jit
def _to_the_roots(before, lower):
    """The root of each tree takes the lowest number that any of its rows has seen; then all rows
    take that of their root."""
    hooked = lower.at[before].min(lower)

    def jump(carry):
        roots, _ = carry
        further = roots[roots]
        return further, jnp.any(further != roots)

    return jax.lax.while_loop(lambda carry: carry[1], jump, (hooked, jnp.bool_(True)))[0]


def _number(roots: np.ndarray, rows_of: np.ndarray) -> np.ndarray:
    """Clusters from 0, in the order of their first rows."""
    _, which = np.unique(roots, return_inverse=True)
    first = np.full(which.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, which, rows_of)
    return np.argsort(np.argsort(first))[which].astype(np.int32)
