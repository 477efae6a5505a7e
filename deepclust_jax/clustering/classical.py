"""Classical clustering by scikit-learn, on the host, with the errors and types of this project.

DBSCAN on the device is in dbscan.py.
"""

from typing import Literal, get_args

import numpy as np

from deepclust_jax.clustering import kmeans
from deepclust_jax.types import Array

Linkage = Literal["ward", "complete", "average", "single"]
LINKAGES: tuple[Linkage, ...] = get_args(Linkage)

_MOST = 40_000  # rows: the distances of all pairs take 6.4 GB then


def agglomerative(x: Array, n_clusters: int, *, linkage: Linkage = "ward") -> np.ndarray:
    """Labels from merging the nearest clusters until `n_clusters` are left. [n, d] -> [n] int32.

    Args:
        x: rows [n, d].
        n_clusters: 1 <= k <= n.
        linkage: what is near: "ward" (least rise of the inertia), or the "complete" (largest),
            "average" or "single" (smallest) distance of rows.

    Time and memory go with n^2.

    Raises:
        ValueError: wrong shapes, NaN or infinite values, k outside 1..n, an unknown linkage, or
            over 40,000 rows, whose distances do not fit in memory.
    """
    from sklearn.cluster import AgglomerativeClustering

    if linkage not in LINKAGES:
        raise ValueError(f"expected linkage {', '.join(LINKAGES)}, found {linkage!r}")
    rows = _rows(x, n_clusters)
    if len(rows) > _MOST:
        raise ValueError(
            f"expected at most {_MOST:,} rows, found {len(rows):,}; cluster a sample of them, or "
            "centroids of many clusters by kmeans.fit"
        )
    if n_clusters == 1:
        return np.zeros(len(rows), np.int32)
    model = AgglomerativeClustering(n_clusters, linkage=linkage)
    return model.fit_predict(rows).astype(np.int32)


def hdbscan(x: Array, *, min_cluster_size: int = 5, min_samples: int | None = None) -> np.ndarray:
    """Labels by HDBSCAN (Campello et al. 2013): clusters of any density. [n, d] -> [n] int32.

    Args:
        x: rows [n, d].
        min_cluster_size: rows of the smallest cluster, >= 2.
        min_samples: rows near a row that make it a core row; None: as many as min_cluster_size.

    Noise is -1.

    Raises:
        ValueError: wrong shapes, NaN or infinite values, sizes out of range.
    """
    from sklearn.cluster import HDBSCAN

    rows = _rows(x, 1)
    if not 2 <= min_cluster_size <= len(rows):
        raise ValueError(
            f"expected 2 <= min_cluster_size <= {len(rows)} (the rows), found {min_cluster_size}"
        )
    min_samples = min_cluster_size if min_samples is None else min_samples
    if not 1 <= min_samples <= len(rows):
        raise ValueError(f"expected 1 <= min_samples <= {len(rows)}, found {min_samples}")
    model = HDBSCAN(min_cluster_size=min_cluster_size, min_samples=min_samples, copy=True)
    return model.fit_predict(rows).astype(np.int32)


def _rows(x, n_clusters) -> np.ndarray:
    kmeans.check(x, n_clusters, "random", 1, 1, None, None)
    kmeans.check_finite("x", x)
    return np.asarray(x, np.float64 if kmeans.is_wide(x) else np.float32)
