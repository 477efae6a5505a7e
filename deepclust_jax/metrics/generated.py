"""How made rows compare with real ones: whether they look real, and whether all kinds are there.

    fidelity(real, made)     precision, recall, density, coverage: by balls to the k-th neighbour
    frechet(real, made)      distance of the Gaussians that fit both
    memorised(real, made)    whether made rows are copies, and how many

All compare rows of features [n, d] by Euclidean distance, and see no labels. Figures are of the
features they are given and of so many rows: only those of the same features and numbers compare.
"""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from deepclust_jax.clustering import neighbors
from deepclust_jax.types import Array

_BLOCK = 256  # rows whose distances to all others are held at once
_MEASURED = 5000  # real rows at most whose distance to the others is taken
_NEAR = 0.01  # share of real rows as near to another as a copy


def fidelity(real: ArrayLike, made: ArrayLike, *, n_neighbors: int = 5) -> dict[str, float]:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    The ball of a row reaches to its `n_neighbors`-th neighbour among its own kind. precision: share
    of made rows in a ball of a real one; recall: of real rows in a ball of a made one; density:
    real balls that a made row is in, over n_neighbors, mean, which may exceed 1; coverage: share
    of real balls that a made row is in, of which outliers cannot add to either.

    [n, d], [m, d] -> floats >= 0.

    Raises:
        ValueError: rows of different widths, or no more than n_neighbors of them.
    """
    real, made = _checked(real, made, n_neighbors + 1)
    inside, covers = _within(made, real, _radii(real, n_neighbors))
    recalled, _ = _within(real, made, _radii(made, n_neighbors))
    return {
        "precision": float(np.mean(inside > 0)),
        "recall": float(np.mean(recalled > 0)),
        "density": float(np.mean(inside) / n_neighbors),
        "coverage": float(np.mean(covers)),
    }


def frechet(real: ArrayLike, made: ArrayLike) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)), of the means and covariances of both (Heusel et al.
    2017, eq. 6, there of the features of a classifier). [n, d], [m, d] -> >= 0."""
    real, made = (np.asarray(a, np.float64) for a in _checked(real, made, 2))
    gap = np.sum((real.mean(axis=0) - made.mean(axis=0)) ** 2)
    one, other = ((a - a.mean(axis=0, keepdims=True)) / math.sqrt(len(a) - 1) for a in (real, made))
    traces = np.sum(one**2) + np.sum(other**2)
    if real.shape[1] < min(len(real), len(made)):
        # The same singular values, of the factors of the covariances in place of the rows.
        one, other = (np.linalg.qr(a, mode="r") for a in (one, other))
    # Of C = A'A and C' = B'B: the singular values of A B' are the roots of the eigenvalues of C C'.
    both = np.linalg.svd(one @ other.T, compute_uv=False).sum()
    return float(max(gap + traces - 2.0 * both, 0.0))


def memorised(real: ArrayLike, made: ArrayLike) -> dict[str, Any]:
    """Whether made rows are copies, by their distances to the nearest real row.

    copies: their median, over that of real rows to theirs. Near 0 made rows are copies; about 1
    they are as new as another real row would be. copied: the share of made rows that are nearer to
    a real one than 99 of 100 real rows are to theirs, about 0.01 where all are new; some copies
    among new rows show here. Real rows that repeat count once, and the distances of at most 5,000
    are taken, to all the others.

    [n, d], [m, d] -> floats >= 0; where all real rows are equal there is no distance to compare
    with, copies is 0 for copies of them and infinite for others. Rows that several generators made,
    [S, m, d] -> [S] each, share the distances of the real ones, which take most of the time.

    Raises:
        ValueError: rows of different widths, or fewer than two of them.
    """
    made = np.asarray(made)
    if made.ndim != 3:
        return {name: float(value[0]) for name, value in memorised(real, made[None]).items()}
    m, d = made.shape[1:]
    real, every = _checked(real, made.reshape(-1, d), 2)
    distinct = jnp.asarray(np.unique(np.asarray(real), axis=0))
    nearest = neighbors.nearest(distinct, 1, queries=every).sqdist
    new = np.sqrt(np.asarray(nearest).reshape(len(made), m))
    if len(distinct) < 2:
        copies = np.where(np.median(new, axis=1) > 0, math.inf, 0.0)
        return {"copies": copies, "copied": np.mean(new == 0, axis=1)}
    some = distinct[:: -(-len(distinct) // _MEASURED)]
    # The nearest of a row that is there itself is the row.
    apart = np.sqrt(np.asarray(neighbors.nearest(distinct, 2, queries=some).sqdist[:, 1]))
    return {
        "copies": np.median(new, axis=1) / np.median(apart),
        "copied": np.mean(new <= np.quantile(apart, _NEAR), axis=1),
    }


def _checked(real: ArrayLike, made: ArrayLike, fewest: int) -> tuple[Array, Array]:
    """Both as float32 [n, d] about one centre."""
    real, made = np.asarray(real), np.asarray(made)
    if real.ndim != 2 or made.ndim != 2 or real.shape[1] != made.shape[1]:
        raise ValueError(
            f"expected features [n, d] and [m, d], found shapes {real.shape} and {made.shape}"
        )
    if min(len(real), len(made)) < fewest:
        raise ValueError(f"expected {fewest} rows of each, found {len(real)} and {len(made)}")
    centre = real.mean(axis=0, keepdims=True, dtype=np.float64)
    return jnp.asarray(real - centre, jnp.float32), jnp.asarray(made - centre, jnp.float32)


def _radii(x: Array, n_neighbors: int) -> Array:
    """Squared distance of every row to its neighbour of that number. -> [n]."""
    return neighbors.nearest(x, n_neighbors).sqdist[:, -1]


def _within(rows: Array, centres: Array, radii: Array) -> tuple[np.ndarray, np.ndarray]:
    """In how many balls each row is, and whether each ball has a row. -> [n] int, [m] bool.

    In float64 on the host: expanded squares in float32 lose the distances within a tight mode that
    lies far from the others.
    """
    rows, centres, radii = (np.asarray(a, np.float64) for a in (rows, centres, radii))
    squares = np.sum(centres**2, axis=1)
    inside, has_row = np.zeros(len(rows), int), np.zeros(len(centres), bool)
    for start in range(0, len(rows), _BLOCK):
        x = rows[start : start + _BLOCK]
        size = np.sum(x**2, axis=1)[:, None] + squares[None, :]
        # What rounding may add to the distance of a copy, which is 0.
        is_in = size - 2.0 * x @ centres.T <= radii[None, :] * (1.0 + 1e-6) + 1e-14 * size
        inside[start : start + _BLOCK] = is_in.sum(axis=1)
        has_row |= is_in.any(axis=0)
    return inside, has_row
