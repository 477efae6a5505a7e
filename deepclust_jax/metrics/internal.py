"""Scores of clusters without labels; safe for choosing a run or a number of clusters.

Arrays of any kind in, floats out; the work runs in jitted JAX, float32, in blocks of rows, so that
memory grows with n and not with n^2. Embeddings are centred and scaled in float64 first, which no
score here notices and which saves float32 from large offsets. Every label value is a cluster, -1
included.

Not defined, and nan, are scores of fewer than 2 or of n clusters (all singletons), and of
embeddings that hold nan or infinities, as those of a diverged run do.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from deepclust_jax.types import Array

_COMPARED = 2.5e10  # differences of numbers that a score in `internal_scores` may take
_BLOCK = 256  # rows; with 10,000 columns a block of distances is 10 MB, which stays in cache


def silhouette(z: ArrayLike, labels: ArrayLike, *, max_rows: int = 10_000, seed: int = 0) -> float:
    """Mean silhouette (Rousseeuw, 1987), Euclidean, in [-1, 1], high is good. [n, d], [n] -> float.

    A singleton counts 0, as in scikit-learn. Takes O(n^2 d); beyond `max_rows` rows, so many are
    drawn without replacement by `seed`.
    """
    prepared = _prepare(z, labels, max_rows, seed)
    return float("nan") if prepared is None else float(_silhouette(*prepared[:2], k=prepared[2]))


def davies_bouldin(z: ArrayLike, labels: ArrayLike) -> float:
    """Davies-Bouldin index (1979), >= 0, low is good. [n, d], [n] -> float."""
    prepared = _prepare(z, labels)
    return (
        float("nan") if prepared is None else float(_davies_bouldin(*prepared[:2], k=prepared[2]))
    )


def calinski_harabasz(z: ArrayLike, labels: ArrayLike) -> float:
    """Variance between over variance within clusters, >= 0, high is good. [n, d], [n] -> float.

    Calinski & Harabasz (1974); 1 where every cluster is a single point, as in scikit-learn.
    """
    prepared = _prepare(z, labels)
    if prepared is None:
        return float("nan")
    between, within = _variances(*prepared[:2], k=prepared[2])
    n, k = len(prepared[0]), prepared[2]
    return 1.0 if within == 0 else float(between) * (n - k) / (float(within) * (k - 1))


def dunn(z: ArrayLike, labels: ArrayLike, *, max_rows: int = 10_000, seed: int = 0) -> float:
    """Smallest distance between clusters over the largest diameter, high is good. -> float.

    Dunn (1974): both are distances of single points, so one outlier decides, and a sample (drawn
    beyond `max_rows` rows) tends to score higher. Infinite where every cluster is a single point.
    """
    prepared = _prepare(z, labels, max_rows, seed)
    if prepared is None:
        return float("nan")
    gap, diameter = (float(value) for value in _extremes(*prepared[:2]))
    if diameter == 0:
        return float("inf") if gap > 0 else float("nan")
    return gap / diameter


def cluster_sizes(labels: ArrayLike, k: int) -> np.ndarray:
    """Rows in each cluster, empty ones included. [n] int -> int64 [k].

    Raises ValueError unless labels are integers in 0..k-1.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise ValueError(f"expected integer labels [n], found {labels.dtype}{list(labels.shape)}")
    if labels.size and not 0 <= labels.min() <= labels.max() < k:
        raise ValueError(f"expected labels in 0..{k - 1}, found {labels.min()} to {labels.max()}")
    return np.bincount(labels, minlength=k)


def internal_scores(z: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """All scores without labels, name -> float. [n, d], [n] -> dict.

    Those that compare all rows with all take 10,000 of them, and fewer where d is beyond 250.

    Raises ValueError for shapes that do not fit, no rows, or labels that are no integers.
    """
    z = np.asarray(z)
    d = z.shape[1] if z.ndim == 2 else 1
    most = min(10_000, max(2, int((_COMPARED / max(d, 1)) ** 0.5)))
    return {
        "silhouette": silhouette(z, labels, max_rows=most),
        "davies_bouldin": davies_bouldin(z, labels),
        "calinski_harabasz": calinski_harabasz(z, labels),
        "dunn": dunn(z, labels, max_rows=most),
    }


def _prepare(
    z: ArrayLike, labels: ArrayLike, max_rows: int | None = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Centred, scaled float32 z, labels in 0..k-1, and k; None where no score is defined."""
    z, labels = np.asarray(z), np.asarray(labels)
    if z.ndim != 2 or labels.shape != z.shape[:1] or z.size == 0:
        raise ValueError(f"expected z [n, d] and labels [n], found {z.shape} and {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"expected integer labels, found {labels.dtype}; use .astype(int)")
    if max_rows is not None and max_rows < 2:
        raise ValueError(f"expected max_rows >= 2, found {max_rows}")
    if max_rows is not None and len(z) > max_rows:
        kept = np.random.default_rng(seed).choice(len(z), max_rows, replace=False)
        z, labels = z[np.sort(kept)], labels[np.sort(kept)]
    values, labels = np.unique(labels, return_inverse=True)
    z = z.astype(np.float64)
    if not 2 <= len(values) < len(z) or not np.isfinite(z).all():
        return None
    z -= z.mean(axis=0)
    z /= np.abs(z).max() or 1.0
    return z.astype(np.float32), labels.astype(np.int32), len(values)


def _distances(x: Array, y: Array) -> Array:
    """Euclidean distances. [b, d], [n, d] -> [b, n].

    By differences, one feature at a time: two to three times the cost of a matrix product, but near
    points stay exact, and no [b, n, d] array appears.
    """

    def add_feature(f: int, total: Array) -> Array:
        a = jax.lax.dynamic_index_in_dim(x, f, axis=1, keepdims=True)
        b = jax.lax.dynamic_index_in_dim(y, f, axis=1, keepdims=True)
        return total + (a - b.T) ** 2

    zeros = jnp.zeros((x.shape[0], y.shape[0]), x.dtype)
    return jnp.sqrt(jax.lax.fori_loop(0, x.shape[1], add_feature, zeros))


def _in_blocks(*arrays: Array) -> tuple[Array, ...]:
    """[n, ...] -> [blocks, _BLOCK, ...]; padded with 0, and labels (integers) with -1."""
    padded = []
    for a in arrays:
        width = [(0, -a.shape[0] % _BLOCK)] + [(0, 0)] * (a.ndim - 1)
        fill = -1 if jnp.issubdtype(a.dtype, jnp.integer) else 0
        padded.append(jnp.pad(a, width, constant_values=fill).reshape(-1, _BLOCK, *a.shape[1:]))
    return tuple(padded)


def _cluster_sums(values: Array, labels: Array, k: int) -> Array:
    """Sums over the rows of each cluster. [n, m], [n] -> [k, m]."""

    def add_block(total: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        rows, own = block
        weights = jax.nn.one_hot(own, k, dtype=rows.dtype)
        return total + jnp.matmul(weights.T, rows, precision="highest"), None

    zeros = jnp.zeros((k, values.shape[1]), values.dtype)
    return jax.lax.scan(add_block, zeros, _in_blocks(values, labels))[0]


@partial(jax.jit, static_argnames="k")
def _silhouette(z: Array, labels: Array, *, k: int) -> Array:
    member = jax.nn.one_hot(labels, k, dtype=z.dtype)
    sizes = jnp.sum(member, axis=0)

    def block_total(block: tuple[Array, Array]) -> Array:
        rows, own = block
        sums = jnp.matmul(_distances(rows, z), member, precision="highest")  # [b, k]
        is_own = own[:, None] == jnp.arange(k)[None, :]
        size = sizes[own]
        inner = jnp.sum(jnp.where(is_own, sums, 0.0), axis=1) / jnp.maximum(size - 1, 1)
        outer = jnp.min(jnp.where(is_own, jnp.inf, sums / sizes[None, :]), axis=1)
        larger = jnp.maximum(inner, outer)
        scores = (outer - inner) / jnp.where(larger > 0, larger, 1.0)
        return jnp.sum(jnp.where((own >= 0) & (size > 1), scores, 0.0))

    return jnp.sum(jax.lax.map(block_total, _in_blocks(z, labels))) / z.shape[0]


def _centroids(z: Array, labels: Array, k: int) -> tuple[Array, Array]:
    """Means and sizes of the clusters, none of which is empty. -> [k, d], [k]."""
    sizes = _cluster_sums(jnp.ones((z.shape[0], 1), z.dtype), labels, k)
    return _cluster_sums(z, labels, k) / sizes, sizes[:, 0]


@partial(jax.jit, static_argnames="k")
def _davies_bouldin(z: Array, labels: Array, *, k: int) -> Array:
    centroids, sizes = _centroids(z, labels, k)
    radius = jnp.sqrt(jnp.sum((z - centroids[labels]) ** 2, axis=1, keepdims=True))
    spread = _cluster_sums(radius, labels, k)[:, 0] / sizes
    apart = _distances(centroids, centroids)
    ratio = (spread[:, None] + spread[None, :]) / jnp.where(apart > 0, apart, jnp.inf)
    return jnp.mean(jnp.max(ratio, axis=1))


@partial(jax.jit, static_argnames="k")
def _variances(z: Array, labels: Array, *, k: int) -> tuple[Array, Array]:
    """Sums of squares between and within clusters; z is centred. -> [], []."""
    centroids, sizes = _centroids(z, labels, k)
    within = jnp.sum((z - centroids[labels]) ** 2, axis=1, keepdims=True)
    between = jnp.sum(sizes * jnp.sum(centroids**2, axis=1))
    return between, jnp.sum(_cluster_sums(within, labels, k))


@jax.jit
def _extremes(z: Array, labels: Array) -> tuple[Array, Array]:
    """Smallest distance between clusters and largest one within. -> [], []."""

    def block_extremes(block: tuple[Array, Array]) -> tuple[Array, Array]:
        rows, own = block
        distances = _distances(rows, z)
        same, real = own[:, None] == labels[None, :], (own >= 0)[:, None]
        gap = jnp.min(jnp.where(real & ~same, distances, jnp.inf))
        return gap, jnp.max(jnp.where(same, distances, 0.0))

    gaps, diameters = jax.lax.map(block_extremes, _in_blocks(z, labels))
    return jnp.min(gaps), jnp.max(diameters)
