"""Scores of clusters against labels, or against other clusters; NumPy on the host, in float64.

Labels are integers or strings, one per row; they may have gaps, and every value is a group of its
own, -1 included. The numbers of classes and clusters may differ. No score depends on how clusters
are numbered. Rows are never left out: report on which split a figure was computed.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

_MAX_CELLS = 10**8  # of the table that the assignment problem needs: 0.8 GB


class _Overlap(NamedTuple):
    """The cells of the contingency table that are not empty, and its margins."""

    row: np.ndarray  # [m] index of the class
    column: np.ndarray  # [m] index of the cluster
    count: np.ndarray  # [m] int64
    row_sums: np.ndarray  # [classes] int64
    column_sums: np.ndarray  # [clusters] int64


def contingency(y: ArrayLike, labels: ArrayLike, n_classes: int, n_clusters: int) -> np.ndarray:
    """Rows of class i in cluster j. [n], [n] -> int64 [n_classes, n_clusters].

    Raises ValueError unless labels are integers in 0..n_classes-1 and 0..n_clusters-1.
    """
    y, labels = _check(y, labels)
    for name, values, k in (("y", y, n_classes), ("labels", labels, n_clusters)):
        if values.dtype.kind not in "iu" or values.min() < 0 or values.max() >= k:
            raise ValueError(
                f"expected {name} as integers in 0..{k - 1}, "
                f"found {values.dtype} from {values.min()} to {values.max()}"
            )
    codes = y.astype(np.int64) * n_clusters + labels.astype(np.int64)
    return np.bincount(codes, minlength=n_classes * n_clusters).reshape(n_classes, n_clusters)


def accuracy(y: ArrayLike, labels: ArrayLike) -> float:
    """Share of rows in the class of their cluster, under the best one-to-one matching. In [0, 1].

    The matching is optimal (Hungarian); with more clusters than classes the rows of clusters
    without a partner count as wrong. That is not `purity`, which lets clusters share a class.
    """
    overlap = _overlap(y, labels)
    rows, columns, table = _match(overlap)
    return float(table[rows, columns].sum() / overlap.count.sum())


def nmi(y: ArrayLike, labels: ArrayLike) -> float:
    """Normalised mutual information, 2 I / (H(y) + H(labels)), in [0, 1].

    The arithmetic mean normalises (scikit-learn's default since 0.22; older papers often use the
    geometric one, which is never smaller). 1 if both have a single group, 0 if only one has.
    """
    overlap = _overlap(y, labels)
    total = _entropy(overlap.row_sums) + _entropy(overlap.column_sums)
    return 1.0 if total == 0 else _clip(2 * _mutual_information(overlap) / total)


def ari(y: ArrayLike, labels: ArrayLike) -> float:
    """Rand index adjusted for chance (Hubert & Arabie, 1985): 1 is equal, 0 is chance, >= -0.5."""
    return _ari(_overlap(y, labels))


def ami(y: ArrayLike, labels: ArrayLike) -> float:
    """Mutual information adjusted for chance, arithmetic mean, by scikit-learn; 0 is chance."""
    from sklearn.metrics import adjusted_mutual_info_score

    return float(adjusted_mutual_info_score(*_check(y, labels)))


def homogeneity(y: ArrayLike, labels: ArrayLike) -> float:
    """I / H(y): 1 if no cluster mixes classes, in [0, 1]; 1 if there is a single class."""
    overlap = _overlap(y, labels)
    entropy = _entropy(overlap.row_sums)
    return 1.0 if entropy == 0 else _clip(_mutual_information(overlap) / entropy)


def completeness(y: ArrayLike, labels: ArrayLike) -> float:
    """I / H(labels): 1 if no class is split, in [0, 1]; 1 if there is a single cluster."""
    return homogeneity(labels, y)


def purity(y: ArrayLike, labels: ArrayLike) -> float:
    """Share of rows in the commonest class of their cluster. In (0, 1]; 1 if all are singletons."""
    overlap = _overlap(y, labels)
    largest = np.zeros(len(overlap.column_sums), np.int64)
    np.maximum.at(largest, overlap.column, overlap.count)
    return float(largest.sum() / overlap.count.sum())


def align(reference: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """`labels` renamed to agree with `reference` in as many rows as possible. int [n], [n] -> [n].

    For consistent numbers (and colours) across epochs and seeds. Clusters without a partner take
    the smallest numbers >= 0 that the reference does not use.
    """
    reference, labels = _check(reference, labels)
    if reference.dtype.kind not in "iu" or labels.dtype.kind not in "iu":
        raise ValueError(f"expected integers, found {reference.dtype} and {labels.dtype}")
    names, values = np.unique(reference), np.unique(labels)
    rows, columns, _ = _match(_overlap(reference, labels))
    free = np.setdiff1d(np.arange(len(names) + len(values)), names)
    renamed = np.empty(len(values), np.result_type(reference, labels))
    alone = np.setdiff1d(np.arange(len(values)), columns)
    renamed[columns] = names[rows]
    renamed[alone] = free[: len(alone)]
    return renamed[np.searchsorted(values, labels)]


def external_scores(y: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """All scores against labels, name -> float. [n], [n] -> dict.

    Raises ValueError for arrays that are empty, not 1-D, of unequal length, or floats.
    """
    scores = (accuracy, nmi, ari, ami, homogeneity, completeness, purity)
    return {score.__name__: score(y, labels) for score in scores}


def stability(labels_all: ArrayLike) -> tuple[float, np.ndarray]:
    """Agreement of S runs: mean ARI over all pairs, and each run's mean ARI to the others [S].

    No labels are needed, so it may choose a run (high is good). One run alone gives nan.
    """
    labels_all = np.asarray(labels_all)
    if labels_all.ndim != 2 or 0 in labels_all.shape:
        raise ValueError(f"expected labels of shape [runs, rows], found {labels_all.shape}")
    n_runs = len(labels_all)
    if n_runs == 1:
        return float("nan"), np.full(1, np.nan)
    agreement = np.zeros((n_runs, n_runs))
    for i in range(n_runs):
        for j in range(i):
            agreement[i, j] = agreement[j, i] = ari(labels_all[i], labels_all[j])
    per_run = agreement.sum(axis=1) / (n_runs - 1)
    return float(per_run.mean()), per_run


def _check(y: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    y, labels = np.asarray(y), np.asarray(labels)
    if y.ndim != 1 or y.shape != labels.shape or y.size == 0:
        raise ValueError(
            f"expected two label arrays of the same shape [n], n > 0, "
            f"found {y.shape} and {labels.shape}"
        )
    for values in (y, labels):
        if values.dtype.kind not in "iubUS":
            raise ValueError(
                f"expected integers or strings, found {values.dtype}; use .astype(int)"
            )
    return y, labels


def _overlap(y: ArrayLike, labels: ArrayLike) -> _Overlap:
    y, labels = _check(y, labels)
    (_, row), (_, column) = (np.unique(v, return_inverse=True) for v in (y, labels))
    # Only cells that are not empty: n singletons against n singletons would be n x n.
    n_columns = int(column.max()) + 1
    codes, count = np.unique(row * n_columns + column, return_counts=True)
    return _Overlap(
        codes // n_columns, codes % n_columns, count, np.bincount(row), np.bincount(column)
    )


def _match(overlap: _Overlap) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Partners (rows, columns) with the largest total overlap, and the dense table."""
    from scipy.optimize import linear_sum_assignment

    shape = len(overlap.row_sums), len(overlap.column_sums)
    if shape[0] * shape[1] > _MAX_CELLS:
        raise ValueError(f"expected at most {_MAX_CELLS} pairs of groups to match, found {shape}")
    table = np.zeros(shape, np.int64)
    table[overlap.row, overlap.column] = overlap.count
    return *linear_sum_assignment(table, maximize=True), table


def _entropy(counts: np.ndarray) -> float:
    p = counts / counts.sum()
    return float(-(p * np.log(p)).sum())


def _mutual_information(overlap: _Overlap) -> float:
    n = overlap.count.sum()
    expected = overlap.row_sums[overlap.row] * (overlap.column_sums[overlap.column] / n)
    return float((overlap.count / n * np.log(overlap.count / expected)).sum())


def _clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _ari(overlap: _Overlap) -> float:
    """Adjusted Rand index from the four kinds of pairs (together, apart) x (together, apart)."""
    count = overlap.count
    row, column = overlap.row_sums[overlap.row], overlap.column_sums[overlap.column]
    both = float((count * (count - 1)).sum())
    only_y = float((count * (row - count)).sum())
    only_labels = float((count * (column - count)).sum())
    neither = float((count * (count.sum() - row - column + count)).sum())
    if only_y == 0 and only_labels == 0:
        return 1.0
    return (
        2.0
        * (both * neither - only_y * only_labels)
        / ((both + only_y) * (only_y + neither) + (both + only_labels) * (only_labels + neither))
    )
