"""k-means for very many clusters: a tree of centroids of two levels.

    found = hierarchical.fit(jax.random.key(0), x, 100_000)
    labels, sqdist = hierarchical.assign(new_x, found.tree, probes=4)

k-means with about sqrt(k) centroids parts the rows, and k-means within each part makes the leaves,
as many as its inertia asks for: parts of inertia s in d dimensions get s^(d / (d + 2)), which makes
the whole the least where leaves are many (Gersho 1979). An iteration costs n d sqrt(k), where
Lloyd's costs n d k. A row goes to the nearest leaf of its part, or of the `probes` nearest parts.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepclust_jax.clustering import kmeans, lloyd, seeding
from deepclust_jax.types import Array, Key

_BLOCK = 512  # rows of one part that are taken at a time
_PER_LEAF = 16  # rows of the sample on which the leaves of a part begin
_TRIALS = 2  # rows drawn for each of them


class Tree(NamedTuple):
    """Centroids of two levels; those of part j are leaves[first[j] : first[j + 1]]."""

    parts: Array  # [p, d]
    leaves: Array  # [k, d], the centroids that labels number
    first: np.ndarray  # [p + 1] int


class Hierarchical(NamedTuple):
    """What `fit` found."""

    tree: Tree
    labels: Array  # [n] int32, numbers of leaves
    inertia: Array  # [], sum of squared distances to the own leaf


def fit(
    key: Key,
    x: Array,
    n_clusters: int,
    *,
    n_parts: int | None = None,
    max_iter: int = 10,
    probes: int = 1,
) -> Hierarchical:
    """A tree with `n_clusters` leaves. [n, d] -> Hierarchical.

    Args:
        key: a typed key; the result is a function of it and of the rows.
        x: rows [n, d].
        n_clusters: k, the leaves, 1 <= k <= n.
        n_parts: nodes above them; None: about sqrt(k).
        max_iter: iterations within the parts, over all rows.
        probes: parts that `labels` at the end are sought in.

    What the parts cost: an inertia some per cent above that of `kmeans.fit`, which is the better
    choice up to some hundred clusters.

    A leaf that no row goes to stays where it is. Not to be traced: the host counts the rows.

    Raises:
        ValueError: wrong shapes, NaN or infinite values, numbers out of range.
    """
    kmeans.check_key(key)
    kmeans.check(x, n_clusters, "random", 1, max_iter, None, None)
    kmeans.check_finite("x", x)
    n_parts = max(round(n_clusters**0.5), 1) if n_parts is None else n_parts
    _check_whole("n_parts", n_parts, n_clusters)
    _check_whole("probes", probes, n_parts)
    offset = kmeans.offset_of(x)
    rows, mean, scale = _centred(kmeans.narrow(x, offset))
    part_key, leaf_key = jax.random.split(key)
    parts = kmeans.fit(part_key, rows, n_parts, n_init=3, max_iter=max_iter).centroids
    part_of, sqdist = (np.asarray(a) for a in kmeans.assign(rows, parts))
    sizes = np.bincount(part_of, minlength=n_parts)
    scatter = np.bincount(part_of, sqdist.astype(np.float64), minlength=n_parts)
    shares = _shares(scatter ** (x.shape[1] / (x.shape[1] + 2)), sizes, n_clusters)
    kept = sizes > 0  # with fewer distinct rows than parts some have none
    part_of = (np.cumsum(kept) - 1)[part_of]
    first = np.r_[0, np.cumsum(shares[kept])]
    groups = _Groups.of(part_of, first)
    leaves = _begin(leaf_key, rows, part_of, first)
    for _ in range(max_iter):
        leaves = _iterate(rows, leaves, groups.arrays, width=groups.width)
    parts, leaves = (jnp.asarray(a * scale + mean, jnp.float32) for a in (parts[kept], leaves))
    tree = Tree(*(kmeans.with_offset(a, offset) for a in (parts, leaves)), first)
    labels, sqdist = assign(x, tree, probes=min(probes, len(parts)))
    return Hierarchical(tree, labels, jnp.sum(sqdist))


def assign(x: Array, tree: Tree, *, probes: int = 1) -> tuple[Array, Array]:
    """Nearest leaf among those of the `probes` nearest parts, and squared distance to it.

    [n, d] -> [n] int32, [n]. Ties go to the lowest number. Of all parts it is the nearest leaf of
    all. Not to be traced.

    Raises:
        ValueError: wrong shapes, or probes out of range.
    """
    kmeans.check(x, 1, "random", 1, 1, None, None)
    kmeans.check_finite("x", x)
    if not isinstance(tree, Tree):
        raise ValueError(f"expected a Tree, such as found.tree, found a {type(tree).__name__}")
    _check_whole("probes", probes, len(tree.parts))
    if x.shape[1] != tree.leaves.shape[1]:
        raise ValueError(f"expected x [n, {tree.leaves.shape[1]}], found {x.shape}")
    offset = np.float32(0)
    if kmeans.is_wide(x) and isinstance(tree.leaves, np.ndarray):
        offset = np.median(tree.parts, axis=0)
    rows, parts, leaves = _beside_leaves(*(kmeans.narrow(a, offset) for a in (x, *tree[:2])))
    near = np.asarray(_nearest_parts(rows, parts, probes=probes))
    best = jnp.full(len(rows), jnp.inf, rows.dtype), jnp.zeros(len(rows), jnp.int32)
    for part in near.T:
        groups = _Groups.of(part, tree.first)
        best = _probe(rows, leaves, groups.arrays, *best, width=groups.width)
    labels = best[1]
    narrow = (kmeans.narrow(a, offset) for a in (x, tree.leaves))
    return labels, lloyd.distances(*narrow, labels)


def _check_whole(name, value, largest):
    if not isinstance(value, int | np.integer) or not 1 <= value <= largest:
        raise ValueError(f"expected {name} as a whole number from 1 to {largest}, found {value!r}")


@jax.jit
def _beside_leaves(x, parts, leaves):
    """All of them less a centre of the leaves and over their size: see `kmeans.assign`."""
    centre = jnp.median(parts, axis=0, keepdims=True)
    scale = kmeans.power_of_two(leaves - centre)
    return [jnp.clip((a - centre) / scale, -1e15, 1e15) for a in (x, parts, leaves)]


@jax.jit
def _centred(x):
    return kmeans.normalise(x)


def _shares(weights: np.ndarray, sizes: np.ndarray, k: int) -> np.ndarray:
    """Leaves of parts, k in all: by weight, at least one and at most one for each row of it."""
    weights = weights + 1e-9 * max(weights.max(), 1e-30) * sizes / sizes.max()
    least = np.minimum(sizes, 1)
    shares = np.clip(np.floor(k * weights / weights.sum()), least, sizes).astype(int)
    while shares.sum() != k:  # by one, where the weight of a leaf is most or least
        is_less = shares.sum() < k
        can = shares < sizes if is_less else shares > least
        load = weights / np.maximum(shares, 0.5)
        order = np.argsort(-load if is_less else load, kind="stable")
        order = order[can[order]][: abs(k - shares.sum())]
        shares[order] += 1 if is_less else -1
    return shares


class _Groups(NamedTuple):
    """Blocks of rows of one part each."""

    arrays: tuple[Array, Array, Array]  # rows [b, _BLOCK], n where unused; first leaf, leaves [b]
    width: int  # the most leaves of a part

    @classmethod
    def of(cls, part_of: np.ndarray, first: np.ndarray) -> "_Groups":
        n, sizes = len(part_of), np.bincount(part_of, minlength=len(first) - 1)
        blocks = -(-sizes // _BLOCK)
        # As many as there can be: then no new program is compiled for other rows.
        rows = np.full((n // _BLOCK + len(sizes), _BLOCK), n, np.int32)
        start = np.repeat(np.cumsum(blocks * _BLOCK) - blocks * _BLOCK, sizes)
        within = np.arange(n) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        rows.ravel()[start + within] = np.argsort(part_of, kind="stable")
        part = np.repeat(np.arange(len(sizes)), blocks)
        part = np.pad(part, (0, len(rows) - len(part)))
        arrays = rows, first[part].astype(np.int32), np.diff(first)[part].astype(np.int32)
        return cls(jax.tree.map(jnp.asarray, arrays), int(np.diff(first).max()))


@partial(jax.jit, static_argnames="probes")
def _nearest_parts(x, parts, *, probes):
    """Numbers of the nearest parts, nearest first. -> [n, probes] int32."""
    if probes == 1:
        return kmeans.assign(x, parts)[0][:, None]
    offsets = jnp.sum(parts**2, axis=-1)
    block = max(2**20 // max(parts.shape), 256)

    def find(start, _, found):
        rows = jax.lax.dynamic_slice_in_dim(x, start, min(block, len(x)))
        scores = offsets[None, :] - 2.0 * jnp.dot(rows, parts.T, precision=lloyd.EXACT)
        part = jax.lax.top_k(-scores, probes)[1].astype(jnp.int32)
        return jax.lax.dynamic_update_slice_in_dim(found, part, start, axis=0)

    return lloyd.over_blocks(len(x), block, find, jnp.zeros((len(x), probes), jnp.int32))


def _of_block(x, leaves, squares, block, width):
    """Rows of a block, and their nearest leaves in the part."""
    rows, first, n_leaves = block
    of_block = jnp.take(x, rows, axis=0, mode="fill", fill_value=0)
    start = jnp.minimum(first, len(leaves) - width)
    own = jax.lax.dynamic_slice_in_dim(leaves, start, width)
    number = start + jnp.arange(width)
    is_own = (number >= first) & (number < first + n_leaves)
    offsets = jnp.where(is_own, jax.lax.dynamic_slice_in_dim(squares, start, width), jnp.inf)
    scores = offsets[:, None] - 2.0 * jnp.dot(own, of_block.T, precision=lloyd.EXACT)
    lowest = jnp.min(scores, axis=0)
    found = jnp.min(jnp.where(scores == lowest[None, :], number[:, None], len(leaves)), axis=0)
    return of_block, found.astype(jnp.int32)


@partial(jax.jit, static_argnames="width")
def _probe(x, leaves, groups, best, labels, *, width):
    """The nearer of the best leaf so far and the nearest one of a part, by squared distance."""
    squares = jnp.sum(leaves**2, axis=-1)

    def one(i, carry):
        best, labels = carry
        block = jax.tree.map(lambda a: a[i], groups)
        rows, found = _of_block(x, leaves, squares, block, width)
        sqdist = jnp.sum((rows - leaves[found]) ** 2, axis=-1)  # comparable between parts
        old = jnp.take(best, block[0], mode="fill", fill_value=0)
        old_label = jnp.take(labels, block[0], mode="fill", fill_value=0)
        is_better = (sqdist < old) | ((sqdist == old) & (found < old_label))
        put = lambda a, new, old: a.at[block[0]].set(  # noqa: E731
            jnp.where(is_better, new, old), mode="drop"
        )
        return put(best, sqdist, old), put(labels, found, old_label)

    return jax.lax.fori_loop(0, groups[0].shape[0], one, (best, labels))


@partial(jax.jit, static_argnames="width")
def _iterate(x, leaves, groups, *, width):
    """One iteration of Lloyd's within the parts. -> leaves [k, d]."""
    squares = jnp.sum(leaves**2, axis=-1)

    def one(i, carry):
        sums, counts = carry
        block = jax.tree.map(lambda a: a[i], groups)
        rows, found = _of_block(x, leaves, squares, block, width)
        to = jnp.where(block[0] < len(x), found, len(leaves))
        return sums.at[to].add(rows, mode="drop"), counts.at[to].add(1.0, mode="drop")

    zeros = jnp.zeros_like(leaves), jnp.zeros(len(leaves))
    totals = jax.lax.fori_loop(0, groups[0].shape[0], one, zeros)
    return lloyd.means(lloyd.Totals(*totals), leaves)


def _begin(key, x, part_of, first):
    """First leaves [k, d]: greedy k-means++ on a sample of each part."""
    sizes, n_leaves = np.bincount(part_of, minlength=len(first) - 1), np.diff(first)
    width = int(n_leaves.max())
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel().tolist())
    by_part = rng.permutation(len(x)).astype(np.int32)
    by_part = by_part[np.argsort(part_of[by_part], kind="stable")]
    # Of a part with fewer rows some come twice.
    within = np.arange(min(_PER_LEAF * width, sizes.max()))[None, :] % np.maximum(sizes, 1)[:, None]
    start = np.cumsum(sizes) - sizes
    sample = by_part[np.minimum(start[:, None] + within, len(x) - 1)]
    seeds = _seed(jax.random.split(key, len(sizes)), x, sample, width=width)
    part = np.repeat(np.arange(len(sizes)), n_leaves)
    return seeds[part, np.arange(first[-1]) - first[part]]


@partial(jax.jit, static_argnames="width")
def _seed(keys, x, sample, *, width):
    """Of a longer sequence of seeds the first ones are a seeding with fewer. -> [p, width, d]."""
    ones = jnp.ones(sample.shape[1])

    def seed(of_part):
        key, rows = of_part
        return seeding.kmeans_plus_plus(key, x[rows], width, ones, n_trials=_TRIALS)

    return jax.lax.map(seed, (keys, sample))
