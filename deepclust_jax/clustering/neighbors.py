"""Exact nearest neighbours on the device, in blocks: the n x n distances never exist whole.

    found = neighbors.nearest(x, 20)                    # of every row among the others
    found = neighbors.nearest(x, 20, queries=new_x)     # of new rows among all of x

In high dimensions most of the work is not needed. For any orthonormal P [d, p]

    |x - y|^2  >=  |P^T x - P^T y|^2 + (r_x - r_y)^2,     r_x = |x - P P^T x|,

the squared distance of p + 1 numbers a row. With the leading principal directions for P this bound
is close: the rows that it puts first are measured exactly, and where the last neighbour found is
nearer than any bound left out, the neighbours are proven. Rows without that proof are measured
against all others.

Where all are compared it is by products, whose rounding may exceed a distance between rows that are
close and far from the mean. What rounding can do is bounded as well: rows that it could have misled
are measured again, by differences. Either way no row that is left out is nearer than the last one
taken by more than a ten-thousandth of its squared distance, between rows as float32 holds them
after they are centred.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepclust_jax.clustering import kmeans, lloyd
from deepclust_jax.types import Array

_GROUP = 16  # columns of which only the lowest is looked at first
_SCORES = {"cpu": 2**23, "gpu": 2**27, "tpu": 2**26}  # held at a time
_WIDE, _MANY = 512, 20_000  # features and rows from which on the bound is tried
_SHARE = 4  # features for each direction of the bound
_AGAIN = 64  # rows that are measured again together
_PROVEN = 0.8  # share of some rows that the bound must settle to be used for all
_TOLERANCE = 1e-4  # of a squared distance, by which neighbours may be no nearest ones


class Neighbors(NamedTuple):
    """The nearest rows of each row, nearest first."""

    index: Array  # [q, k] int32
    sqdist: Array  # [q, k]


def nearest(x: Array, n_neighbors: int, *, queries: Array | None = None) -> Neighbors:
    """The nearest rows of x [n, d] to each row of x but itself, or to each of the queries [q, d].

    Of rows at the same distance the lower numbers come first, unless rounding tells them apart.
    NumPy arrays of float64 are centred before they become float32. Rows may have any scale, but
    where float32 has no number for a squared distance it is 0 or infinite. Under a trace all
    distances are computed, without the bound.

    Raises:
        ValueError: wrong shapes, NaN or infinite values, more neighbours than rows.
    """
    kmeans.check(x, 1, "random", 1, 1, None, None)
    kmeans.check_finite("x", x)
    rest = x.shape[0] - (queries is None)
    is_whole = isinstance(n_neighbors, int | np.integer)
    if not is_whole or not 1 <= n_neighbors <= rest:
        raise ValueError(f"expected 1 <= n_neighbors <= {rest} (other rows), found {n_neighbors!r}")
    if queries is not None:
        kmeans.check(queries, 1, "random", 1, 1, None, None)
        kmeans.check_finite("queries", queries)
        if queries.shape[1] != x.shape[1]:
            raise ValueError(f"expected queries [q, {x.shape[1]}], found {queries.shape}")
    k, offset = int(n_neighbors), kmeans.offset_of(x)
    rows = kmeans.narrow(x, offset)
    asked = rows if queries is None else kmeans.narrow(queries, offset)
    rows, asked, scale = _scaled(rows, asked)
    own = jnp.arange(len(asked)) if queries is None else jnp.full(len(asked), -1)
    is_traced = isinstance(rows, jax.core.Tracer) or isinstance(asked, jax.core.Tracer)
    is_small = rows.shape[1] < _WIDE or len(asked) < _MANY
    if is_traced or is_small or k >= len(rows) - 1:
        found = _among_all(asked, rows, own, k=k, n_others=rest)
    else:
        found = _bounded(asked, rows, own, k, rest)
    return found._replace(sqdist=found.sqdist * scale**2)


@jax.jit
def _scaled(x, queries):
    """Both less the mean of x and over a power of two: squares neither overflow nor vanish."""
    rows, mean, scale = kmeans.normalise(x)
    return rows, jnp.clip((queries - mean) / scale, -1e15, 1e15), scale


def _bounded(queries, x, own, k, n_others) -> Neighbors:
    """All neighbours, by the bound where it settles most of them."""
    x_low, low, rounding = _reduced(x, queries, n_directions=x.shape[1] // _SHARE)
    first = partial(_by_bound, x=x, x_low=x_low, rounding=rounding, k=k)
    among_all = partial(_among_all, x=x, k=k, n_others=n_others)
    some = np.linspace(0, len(queries) - 1, 512).astype(np.int32)
    proven = first(queries[some], low[some], own[some])[1]
    if float(jnp.mean(proven)) < _PROVEN:
        return among_all(queries, own=own)
    found, proven = first(queries, low, own)
    rest = np.flatnonzero(~np.asarray(proven))
    if not len(rest):
        return found
    size = 1 << (len(rest) - 1).bit_length()  # few different shapes
    padded = np.pad(rest, (0, size - len(rest)), mode="edge")
    others = among_all(queries[padded], own=own[padded])
    return jax.tree.map(lambda all_, few: all_.at[rest].set(few[: len(rest)]), found, others)


@partial(jax.jit, static_argnames="n_directions")
def _reduced(x, queries, *, n_directions):
    """Coordinates along the leading principal directions of some rows, and what they leave out;
    and the most that rounding can raise a squared distance of these."""
    some = x[:: -(-len(x) // 8192)]
    scatter = jnp.dot(some.T, some, precision=lloyd.EXACT)
    directions = jnp.linalg.eigh(scatter)[1][:, ::-1][:, :n_directions]
    directions = jnp.linalg.qr(directions)[0]

    def reduce(rows):
        along = jnp.dot(rows, directions, precision=lloyd.EXACT)
        rest = rows - jnp.dot(along, directions.T, precision=lloyd.EXACT)
        return jnp.concatenate([along, jnp.linalg.norm(rest, axis=1, keepdims=True)], axis=1)

    x_low, low = reduce(x), reduce(queries)
    largest = jnp.max(jnp.sum(x_low**2, axis=1)) + jnp.max(jnp.sum(low**2, axis=1))
    return x_low, low, _rounding(x.shape[1]) * largest


def _rounding(d: int) -> float:
    """Error of a product of d terms as a share of |x||y|: at most d/2^24, and beyond 8 sqrt(d)/2^24
    never but by a chance too small to matter (Higham and Mary 2019, theorem 2.4)."""
    return min(d, 8.0 * d**0.5) * 2.0**-24


@partial(jax.jit, static_argnames="k")
def _by_bound(queries, low, own, *, x, x_low, rounding, k):
    """Neighbours among the rows that the bound puts first, and whether they are proven. -> [q]."""
    n_candidates = min(4 * k + 32, len(x_low) - 1)
    squares = jnp.sum(x_low**2, axis=1)

    def of_block(part):
        rows, low, own = part
        scores, index = _lowest(low, x_low, squares, own, n_candidates + 1)
        last = scores[:, -1] + jnp.sum(low**2, axis=1) - 2.0 * rounding
        found = _measured(rows, x, index[:, :-1], k)
        return found, found.sqdist[:, -1] <= last

    return _in_blocks(of_block, (queries, low, own), len(x_low))


@partial(jax.jit, static_argnames=("k", "n_others"))
def _among_all(queries, x, own, *, k, n_others) -> Neighbors:
    # Of |y|^2 - 2 q . y the sums are rounded, and |q||y| <= (|q|^2 + |y|^2) / 2: scores less that
    # much are bounds.
    rounding = 2.0 * _rounding(x.shape[1])
    low = (1.0 - rounding) * jnp.sum(x**2, axis=1)
    # Some more than asked for: rounding may have put them in another order.
    n_candidates = min(k + 4, n_others)

    def of_block(part):
        rows, own = part
        scores, index = _lowest(rows, x, low, own, n_candidates)
        found = _measured(rows, x, index, k)
        bound = scores[:, -1] + (1.0 - rounding) * jnp.sum(rows**2, axis=1)
        farthest = found.sqdist[:, -1]
        is_sure = (farthest <= 0) | ((1.0 - _TOLERANCE) * farthest <= bound)
        return _remeasured(rows, x, own, found, is_sure | (n_candidates == n_others))

    return _in_blocks(of_block, (queries, own), len(x))


def _remeasured(queries, x, own, found, is_sure) -> Neighbors:
    """`found` [b, k], and by differences from all rows of x where it is not sure [b]."""
    scores = _SCORES.get(jax.default_backend(), 2**26)
    k, size = found.index.shape[1], min(_AGAIN, max(scores // len(x), 1), len(queries))

    def sqdist_of(query, own):
        sqdist = jnp.sum((query[None, :] - x) ** 2, axis=1)
        return jnp.where(jnp.arange(len(x)) == own, jnp.inf, sqdist)

    def measure(carry):
        is_sure, found = carry
        rows = jnp.argsort(is_sure)[:size]  # those that are not sure come first
        sqdist = jax.lax.map(lambda pair: sqdist_of(*pair), (queries[rows], own[rows]))
        lowest, index = _lowest_of(sqdist, k)
        some = Neighbors(index, lowest)
        return is_sure.at[rows].set(True), jax.tree.map(lambda a, b: a.at[rows].set(b), found, some)

    # A few at a time: on most data there are none, and then no work is done.
    return jax.lax.while_loop(lambda c: ~jnp.all(c[0]), measure, (is_sure, found))[1]


def _in_blocks(of_block, arrays, n_columns):
    """`of_block` of parts of arrays [q, ...]; the last part reaches back to fill its size."""
    n = len(arrays[0])
    scores = _SCORES.get(jax.default_backend(), 2**26)
    block = min(max(scores // min(n_columns, _tile()), 16), n)
    starts = np.minimum(np.arange(-(-n // block)) * block, n - block)
    parts = jax.lax.map(
        lambda start: of_block(
            tuple(jax.lax.dynamic_slice_in_dim(a, start, block) for a in arrays)
        ),
        jnp.asarray(starts),
    )
    last = n - (len(starts) - 1) * block  # rows of the last part that no other has

    def joined(a):
        whole = a[:-1].reshape(-1, *a.shape[2:])
        return jnp.concatenate([whole, a[-1][block - last :]])

    return jax.tree.map(joined, parts)


def _tile() -> int:
    return _SCORES.get(jax.default_backend(), 2**26) // 64


def _lowest(queries, x, squares, own, count):
    """The lowest scores |y|^2 - 2 x . y of each query over rows y but its own, in order, and their
    numbers. [b, p], [n, p] -> [b, count] twice."""
    n, tile = len(x), min(_tile(), len(x))

    def merge(start, is_new, best):
        part = jax.lax.dynamic_slice_in_dim(x, start, tile)
        scores = jax.lax.dynamic_slice_in_dim(squares, start, tile)[None, :] - 2.0 * jnp.dot(
            queries, part.T, precision=lloyd.EXACT
        )
        number = start + jnp.arange(tile)
        is_other = is_new[None, :] & (number[None, :] != own[:, None])
        scores, index = _lowest_of(jnp.where(is_other, scores, jnp.inf), count)
        # What was found before has lower numbers, and so comes first in a tie.
        scores = jnp.concatenate([best[0], scores], axis=1)
        index = jnp.concatenate([best[1], start + index], axis=1)
        lowest, place = jax.lax.top_k(-scores, count)
        return -lowest, jnp.take_along_axis(index, place, axis=1)

    none = (
        jnp.full((len(queries), count), jnp.inf, queries.dtype),
        jnp.zeros((len(queries), count), jnp.int32),
    )
    return lloyd.over_blocks(n, tile, merge, none)


def _lowest_of(scores, count):
    """The lowest of scores [b, n] and their columns, lowest first: [b, min(count, n)] twice.

    The lowest ones are in the groups of columns whose lowest is lowest: most are never sorted.
    """
    b, n = scores.shape
    count = min(count, n)
    groups = -(-n // _GROUP)
    if groups <= 2 * count:
        lowest, index = jax.lax.top_k(-scores, count)
        return -lowest, index.astype(jnp.int32)
    scores = jnp.pad(scores, ((0, 0), (0, groups * _GROUP - n)), constant_values=jnp.inf)
    scores = jax.lax.optimization_barrier(scores).reshape(b, groups, _GROUP)
    best = jax.lax.top_k(-jnp.min(scores, axis=2), count)[1]
    best = jnp.sort(best, axis=1)  # columns in order, for ties
    few = jnp.take_along_axis(scores, best[:, :, None], axis=1).reshape(b, -1)
    lowest, place = jax.lax.top_k(-few, count)
    group = jnp.take_along_axis(best, place // _GROUP, axis=1)
    return -lowest, (group * _GROUP + place % _GROUP).astype(jnp.int32)


def _measured(queries, x, index, k) -> Neighbors:
    """The k nearest of candidates [b, m], by differences. -> [b, k]."""
    index = jnp.sort(index, axis=1)  # the lower number first, for ties

    def of_query(args):
        query, own = args
        return jnp.sum((query[None, :] - x[own]) ** 2, axis=-1)

    # One query after another where a core does the work: its candidates stay in the cache.
    in_turn = jax.default_backend() == "cpu"
    over_queries = partial(jax.lax.map, of_query) if in_turn else jax.vmap(of_query)
    sqdist = over_queries((queries, index))
    lowest, place = jax.lax.top_k(-sqdist, k)
    return Neighbors(jnp.take_along_axis(index, place, axis=1), -lowest)
