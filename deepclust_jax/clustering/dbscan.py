"""DBSCAN on the device (Ester et al. 1996), with the labels of scikit-learn's.

Neighbours are counted tile by tile, so that neither distances nor neighbour lists of all pairs ever
exist; then the smallest row number spreads among core rows that are neighbours, and along the
numbers that it has reached (Shiloach & Vishkin 1982), until nothing changes.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepclust_jax.clustering import kmeans, lloyd
from deepclust_jax.types import Array

_TILE = 1024


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

    A row that is no core row goes to the first cluster with a core row near it, or is noise. Two
    rows whose distance is eps up to the rounding of float32 may be taken for neighbours or not.

    Time goes with n^2 d, a few times; memory with n.

    Raises:
        ValueError: wrong shapes, NaN or infinite values, eps or min_samples out of range.
    """
    kmeans.check(x, 1, "random", 1, 1, None, None)
    kmeans.check_finite("x", x)
    if not eps > 0 or not np.isfinite(eps):
        raise ValueError(f"expected eps > 0, found {eps}")
    if min_samples < 1:
        raise ValueError(f"expected min_samples >= 1, found {min_samples}")
    wide = np.asarray(x, np.float64) if kmeans.is_wide(x) else x
    offset = np.mean(wide, axis=0, dtype=np.float64) if kmeans.is_wide(x) else np.float32(0)
    return _fit(kmeans.narrow(wide, offset), jnp.float32(eps), min_samples)


@partial(jax.jit, static_argnames=("tile",))
def _fit(x, eps, min_samples, tile=_TILE) -> DBSCAN:
    n = x.shape[0]
    tile = min(tile, n)
    mean = jnp.mean(x, axis=0, keepdims=True)
    scale = kmeans.power_of_two(x - mean)
    padding = -n % tile
    rows = jnp.pad((x - mean) / scale, ((0, padding), (0, 0)))
    is_row = jnp.arange(n + padding) < n
    near = partial(_near, rows, jnp.sum(rows**2, axis=-1), (eps / scale) ** 2, is_row, tile)

    def count(first, second, is_near, is_pair, counts):
        counts = _add(counts, first, jnp.sum(is_near, axis=1, dtype=jnp.int32))
        part = jnp.sum(is_near, axis=0, dtype=jnp.int32)
        return _add(counts, second, jnp.where(is_pair, part, 0))

    is_core = near(count, jnp.zeros(n + padding, jnp.int32)) >= min_samples
    row = jnp.arange(n + padding, dtype=jnp.int32)
    none = jnp.int32(n + padding)

    def spread(roots):
        """The smallest root among the core rows near each row."""
        given = jnp.where(is_core, roots, none)

        def take(first, second, is_near, is_pair, lowest):
            of_second = jax.lax.dynamic_slice_in_dim(given, second, tile)
            of_first = jax.lax.dynamic_slice_in_dim(given, first, tile)
            part = jnp.min(jnp.where(is_near, of_second[None, :], none), axis=1)
            lowest = _min(lowest, first, part)
            part = jnp.min(jnp.where(is_near, of_first[:, None], none), axis=0)
            return _min(lowest, second, part)

        return near(take, jnp.full(n + padding, none))

    def step(carry):
        roots, _ = carry
        lowest = jnp.where(is_core, spread(roots), none)
        # The root of each tree takes the smallest one seen from any of its rows.
        hooked = roots.at[jnp.where(is_core, roots, none)].min(lowest, mode="drop")
        hooked = jnp.minimum(hooked, jnp.where(is_core, lowest, hooked))
        jumped = _to_the_roots(hooked)
        return jumped, jnp.any(jumped != roots)

    roots, _ = jax.lax.while_loop(lambda carry: carry[1], step, (row, jnp.bool_(True)))
    number = jnp.cumsum(is_core & (roots == row)) - 1  # clusters by their first core row
    nearest = jnp.where(is_core, roots, spread(roots))  # a border row: the first cluster near it
    labels = jnp.where(nearest < none, number[jnp.minimum(nearest, none - 1)], -1)
    return DBSCAN(labels[:n].astype(jnp.int32), is_core[:n])


def _near(rows, squares, limit, is_row, tile, body, carry):
    """Fold `body(first, second, is_near, is_pair, carry)` over pairs of tiles, each pair once."""
    n_tiles = rows.shape[0] // tile
    first, second = np.triu_indices(n_tiles)
    pairs = jnp.asarray(np.stack([first, second], axis=1) * tile, jnp.int32)

    def one(i, carry):
        a, b = pairs[i, 0], pairs[i, 1]
        cut = lambda v, at: jax.lax.dynamic_slice_in_dim(v, at, tile)  # noqa: E731
        product = jnp.dot(cut(rows, a), cut(rows, b).T, precision=lloyd.EXACT)
        sqdist = cut(squares, a)[:, None] + cut(squares, b)[None, :] - 2.0 * product
        is_self = (a + jnp.arange(tile))[:, None] == (b + jnp.arange(tile))[None, :]
        both = cut(is_row, a)[:, None] & cut(is_row, b)[None, :]
        return body(a, b, ((sqdist <= limit) | is_self) & both, a != b, carry)

    return jax.lax.fori_loop(0, len(pairs), one, carry)


def _add(values, start, part):
    old = jax.lax.dynamic_slice_in_dim(values, start, part.shape[0])
    return jax.lax.dynamic_update_slice_in_dim(values, old + part, start, axis=0)


def _min(values, start, part):
    old = jax.lax.dynamic_slice_in_dim(values, start, part.shape[0])
    return jax.lax.dynamic_update_slice_in_dim(values, jnp.minimum(old, part), start, axis=0)


def _to_the_roots(roots):
    """Follow the numbers until each row has that of its root."""

    def jump(carry):
        roots, _ = carry
        further = roots[roots]
        return further, jnp.any(further != roots)

    return jax.lax.while_loop(lambda carry: carry[1], jump, (roots, jnp.bool_(True)))[0]
