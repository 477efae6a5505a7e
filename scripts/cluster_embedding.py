"""Cluster the codes of a trained run, or any data, by a classical method.

python scripts/cluster_embedding.py runs/demo --clusterer agglomerative
python scripts/cluster_embedding.py runs/demo --clusterer dbscan --eps 1.5
python scripts/cluster_embedding.py table.csv --clusterer kmeans --n-clusters 8
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclasses.dataclass(frozen=True)
class Options:
    """Cluster the codes of a run, or any data, by a classical method."""

    source: Annotated[str, tyro.conf.Positional]
    """Run directory of train_deep_kmeans.py, or name or path of data."""

    clusterer: Literal["kmeans", "agglomerative", "dbscan", "hdbscan"] = "kmeans"
    """Method."""

    n_clusters: int | None = None
    """For kmeans and agglomerative. None: that of the run or of a named set."""

    linkage: Literal["ward", "complete", "average", "single"] = "ward"
    """For agglomerative."""

    eps: float | None = None
    """Largest distance of neighbours, for dbscan."""

    min_samples: int = 5
    """Rows near a row that make it a core row, for dbscan and hdbscan."""

    min_cluster_size: int = 5
    """Rows of the smallest cluster, for hdbscan."""

    labels: str | None = None
    """Labels of data, for scores only: a file, or a column of a table."""

    seed: int = 0
    """Seed of kmeans."""

    labels_out: Path = Path("labels.npy")
    """File for the clusters, int32 [n]; -1 is noise."""

    overwrite: bool = False
    """Replace the file if it is there."""


def main(args: list[str] | None = None) -> int:
    """Run the script; 0 if all went well, else 2 after one line on standard error."""
    options = tyro.cli(Options, args=args, config=(tyro.conf.FlagCreatePairsOff,))
    try:
        return cluster(options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        named = type(error).__name__ in ("ConfigError", "DataError")
        if not named and not isinstance(error, ValueError):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


def cluster(options: Options) -> int:
    """Load, cluster, score, write. -> exit code."""
    import numpy as np

    from deepclust_jax import config, metrics

    out = options.labels_out
    if out.suffix != ".npy":
        raise config.ConfigError(f"expected a file ending in .npy, found {out}; rename it")
    if os.path.exists(out) and not options.overwrite:
        raise config.ConfigError(f"{out} is there already; add --overwrite or choose another")
    folder = out.absolute().parent
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise config.ConfigError(f"cannot write {out}; choose a folder that is there")
    z, truth, k = rows_of(options)
    labels = cluster_rows(options, z, k)
    is_found = labels >= 0
    print(f"{len(z)} rows x {z.shape[1]}; {options.clusterer}: {labels.max() + 1} clusters")
    if not is_found.all():
        print(f"noise: {np.mean(~is_found):.1%} of the rows, a group of its own in the scores")
    if truth is not None:
        scores = metrics.external_scores(truth, labels - labels.min())
        print("  ".join(f"{name} {100 * value:.1f} %" for name, value in scores.items()))
    if len(set(labels[is_found].tolist())) > 1:
        scores = metrics.internal_scores(z[is_found], labels[is_found])
        print("  ".join(f"{name} {value:.4g}" for name, value in scores.items()))
    sizes = np.bincount(labels[is_found]) if is_found.any() else np.zeros(0, int)
    more = f" and {len(sizes) - 30} more" if len(sizes) > 30 else ""
    print(f"Cluster sizes: {' '.join(map(str, sizes[:30]))}{more}")
    np.save(out, labels)
    print(f"Labels: {out}")
    return 0


def rows_of(options: Options):
    """Rows [n, d], true labels or None, and the number of clusters if it is known."""
    import numpy as np

    from deepclust_jax import config, data, run
    from deepclust_jax.report import run_directory

    folder = Path(options.source)
    if (folder / config.FILE).is_file():
        if options.labels is not None:
            raise config.ConfigError("expected --labels beside data only; a run has its own")
        z, truth = run_directory.read_embeddings(folder)
        known = run.read_options(folder).data.n_clusters
        return z, truth, known if options.n_clusters is None else options.n_clusters
    dataset, truth = data.load(options.source, labels=options.labels)
    rows = np.asarray(dataset.x[:]).reshape(len(dataset.x), -1)
    return rows, truth, dataset.n_clusters if options.n_clusters is None else options.n_clusters


def cluster_rows(options: Options, z, k):
    """Clusters of rows [n, d] by the chosen method. -> NumPy int32 [n]."""
    import jax
    import numpy as np

    from deepclust_jax import config
    from deepclust_jax.clustering import classical, dbscan, kmeans

    if options.clusterer in ("kmeans", "agglomerative") and k is None:
        raise config.ConfigError(f"--n-clusters is needed for {options.source}; give it")
    if options.clusterer == "kmeans":
        return np.asarray(kmeans.fit(jax.random.key(options.seed), z, k).labels)
    if options.clusterer == "agglomerative":
        return classical.agglomerative(z, k, linkage=options.linkage)
    if options.clusterer == "hdbscan":
        return classical.hdbscan(
            z, min_cluster_size=options.min_cluster_size, min_samples=options.min_samples
        )
    if options.min_samples < 1:
        raise config.ConfigError(f"expected --min-samples >= 1, found {options.min_samples}")
    if options.eps is None:
        half, most = neighbour_distances(z, options.min_samples)
        raise config.ConfigError(
            f"--eps is needed for dbscan; the neighbour that makes a row a core row "
            f"(--min-samples {options.min_samples}) is within {half:.3g} for half of the rows and "
            f"{most:.3g} for nine of ten"
        )
    return np.asarray(dbscan.fit(z, options.eps, min_samples=options.min_samples).labels)


def neighbour_distances(z, min_samples: int) -> tuple[float, float]:
    """Median and 90 % quantile of the distance to the row that makes a row a core row."""
    import numpy as np
    from sklearn.neighbors import NearestNeighbors

    some = z[np.random.default_rng(0).permutation(len(z))[:1000]]
    count = min(min_samples, len(z))
    distances = NearestNeighbors(n_neighbors=count).fit(z).kneighbors(some)[0][:, -1]
    return float(np.quantile(distances, 0.5)), float(np.quantile(distances, 0.9))


if __name__ == "__main__":
    sys.exit(main())
