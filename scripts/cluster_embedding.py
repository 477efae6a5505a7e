"""Cluster the codes of a trained run, or any data, by a method that trains nothing.

python scripts/cluster_embedding.py runs/demo --clusterer agglomerative
python scripts/cluster_embedding.py runs/demo --clusterer dbscan --eps 1.5
python scripts/cluster_embedding.py table.csv --clusterer kmeans --n-clusters 8 --devices 4
python scripts/cluster_embedding.py rows.npy --clusterer hierarchical --n-clusters 100000
"""

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from deepclust_jax import command

# Rows squared times features, and clusters, up to which scores without labels are: seconds.
SCORED, MOST_CLUSTERS = 10**10, 1000


@dataclasses.dataclass(frozen=True)
class Options:
    """Cluster the codes of a run, or any data, by a method that trains nothing."""

    source: Annotated[str, tyro.conf.Positional]
    """Run directory of train_deep_kmeans.py, or name or path of data. A large .npy stays on disk
    for kmeans."""

    clusterer: Literal[
        "kmeans",
        "balanced",
        "hierarchical",
        "mixture",
        "graph",
        "agglomerative",
        "dbscan",
        "hdbscan",
    ] = "kmeans"
    """Method. balanced: k-means with clusters of one size, or between bounds; hierarchical: k-means
    for very many clusters; mixture: of Gaussians; graph: of Gaussians on points that lie near each
    other where rows are neighbours."""

    n_clusters: int | None = None
    """For all but dbscan and hdbscan. None: that of the run or of a named set."""

    merge: bool = False
    """Find the number of clusters, for graph: start with --n-clusters, or 35, and merge those with
    no valley between them."""

    devices: int | None = None
    """Devices that share the rows, held in memory, for kmeans: cores of a CPU, or accelerators.
    None: one. It pays from some hundred thousand rows on."""

    min_size: int | None = None
    """Rows of the smallest cluster, for balanced. None: 0 beside --max-size, else all are of one
    size."""

    max_size: int | None = None
    """Rows of the largest cluster, for balanced. None: any number beside --min-size."""

    probes: int = 1
    """Parts of the tree in which each row looks for its cluster, for hierarchical."""

    covariance: Literal["full", "tied", "diagonal", "spherical"] = "tied"
    """For mixture. tied: one for all clusters, which suits codes whose scale means nothing."""

    linkage: Literal["ward", "complete", "average", "single"] = "ward"
    """For agglomerative."""

    eps: float | None = None
    """Largest distance of neighbours, in units of the scaled rows, for dbscan."""

    min_samples: int = 5
    """Rows near a row that make it a core row, for dbscan and hdbscan."""

    min_cluster_size: int = 5
    """Rows of the smallest cluster, for hdbscan."""

    labels: str | None = None
    """Labels of data, for scores only: a file, or a column of a table."""

    kind: Literal["auto", "tabular", "image", "text", "audio"] = "auto"
    """What the data are."""

    scaling: Literal["auto", "range", "standard", "codes", "counts", "none"] = "auto"
    """Scaling of data; auto: features of tables have mean 0 and variance 1. The codes of a run are
    taken as they are."""

    seed: int = 0
    """Seed of kmeans, balanced, hierarchical, mixture and graph."""

    labels_out: Path | None = None
    """File for the clusters, int32 [n]; -1 is noise. None: labels-CLUSTERER.npy, or
    labels-graph-merge.npy."""

    centroids_out: Path | None = None
    """File for the centroids, [k, d] on the scale of the scaled rows, of kmeans, balanced,
    hierarchical and mixture: kmeans.assign(rows, centroids) labels new rows, but for mixture."""

    overwrite: bool = False
    """Replace files that are there."""


def main(args: list[str] | None = None) -> int:
    """Run the script; 0 if all went well, else 2 after one line on standard error."""
    options = tyro.cli(Options, args=args, config=(tyro.conf.FlagCreatePairsOff,))
    return command.guard(lambda: cluster(options), expected=(*command.EXPECTED, ValueError))


def cluster(options: Options) -> int:
    """Load, cluster, score, write. -> exit code."""
    import numpy as np

    from deepclust_jax import config, metrics
    from deepclust_jax.report import run_directory

    check_options(options)
    name = f"{options.clusterer}-merge" if options.merge else options.clusterer
    labels_out = options.labels_out or Path(f"labels-{name}.npy")
    command.check_output(labels_out, ".npy", "--labels-out", overwrite=options.overwrite)
    if (path := options.centroids_out) is not None:
        command.check_output(path, ".npy", "--centroids-out", overwrite=options.overwrite)
    start_devices(options.devices)
    z, truth, k = run_directory.rows_of(
        options.source, options.labels, kind=options.kind, scaling=options.scaling
    )
    k = config.MOST_CLUSTERS if options.merge else k  # never the number of classes
    k = k if options.n_clusters is None else options.n_clusters
    if options.merge and k < 2:
        raise config.ConfigError(f"expected --n-clusters >= 2 to merge, found {k}")
    labels, centroids = cluster_rows(options, z, k)
    np.save(labels_out, labels)  # before the scores, which take their time
    print(f"Labels: {labels_out}")
    if options.centroids_out is not None:
        np.save(options.centroids_out, centroids)
        print(f"Centroids: {options.centroids_out}")
    is_found = labels >= 0
    print(f"{len(z)} rows x {z.shape[1]}; {options.clusterer}: {labels.max() + 1} clusters")
    if not is_found.all():
        print(f"noise: {np.mean(~is_found):.1%} of the rows, a group of its own in the scores")
    if truth is not None:
        scores = metrics.external_scores(truth, labels - labels.min())
        print("  ".join(f"{name} {100 * value:.1f} %" for name, value in scores.items()))
    scored = np.flatnonzero(is_found)
    most = int((SCORED / z.shape[1]) ** 0.5)
    if len(scored) > most:
        scored = np.sort(np.random.default_rng(options.seed).choice(scored, most, replace=False))
        print(f"scores without labels: of {most:,} rows drawn at random")
    if 1 < len(np.unique(labels[scored])) < min(MOST_CLUSTERS + 1, len(scored)):
        scores = metrics.internal_scores(z[scored], labels[scored])
        print("  ".join(f"{name} {value:.4g}" for name, value in scores.items()))
    sizes = np.bincount(labels[is_found]) if is_found.any() else np.zeros(0, int)
    more = f" and {len(sizes) - 30} more" if len(sizes) > 30 else ""
    if len(sizes):
        print(f"Cluster sizes: {' '.join(map(str, sizes[:30]))}{more}")
    return 0


# Options that only some methods have.
OF = {
    "n_clusters": ("kmeans", "balanced", "hierarchical", "mixture", "graph", "agglomerative"),
    "merge": ("graph",),
    "devices": ("kmeans",),
    "min_size": ("balanced",),
    "max_size": ("balanced",),
    "centroids_out": ("kmeans", "balanced", "hierarchical", "mixture"),
    "probes": ("hierarchical",),
    "covariance": ("mixture",),
    "linkage": ("agglomerative",),
    "eps": ("dbscan",),
    "min_samples": ("dbscan", "hdbscan"),
    "min_cluster_size": ("hdbscan",),
}


def check_options(options: Options) -> None:
    """Refuse a seed out of range, and an option that the method has not."""
    from deepclust_jax import config

    command.check_seed(options.seed)
    for field in dataclasses.fields(options):
        methods = OF.get(field.name, (options.clusterer,))
        if options.clusterer not in methods and getattr(options, field.name) != field.default:
            name = field.name.replace("_", "-")
            raise config.ConfigError(
                f"expected --{name} beside --clusterer {' or '.join(methods)} only, found "
                f"{options.clusterer}"
            )


def start_devices(n: int | None) -> None:
    """Make devices of the cores of a CPU, before JAX begins; refuse what is not there."""
    import jax

    from deepclust_jax import config, run

    if n is None:
        return
    if n < 1:
        raise config.ConfigError(f"expected --devices >= 1, found {n}")
    with contextlib.suppress(RuntimeError):  # where JAX runs already it keeps its devices
        jax.config.update("jax_num_cpu_devices", n)  # other platforms take no notice
    run.platform()
    if jax.device_count() < n:
        raise config.ConfigError(f"expected --devices up to {jax.device_count()}, found {n}")


def cluster_rows(options: Options, z, k):
    """Clusters of rows [n, d] by the chosen method, and centroids. -> NumPy int32 [n], [k, d] or
    None."""
    import jax
    import numpy as np

    from deepclust_jax import config
    from deepclust_jax.clustering import (
        balanced,
        classical,
        dbscan,
        graph_embedding,
        hierarchical,
        mixture,
    )

    key, name = jax.random.key(options.seed), options.clusterer
    if name not in ("dbscan", "hdbscan") and k is None:
        raise config.ConfigError(
            f"--n-clusters is needed for {options.source}; give it, or let --clusterer graph "
            "--merge find it"
        )
    if name == "kmeans":
        found = fit_kmeans(key, z, k, options.devices)
        return np.asarray(found.labels), np.asarray(found.centroids)
    z = np.asarray(z[:])
    if name == "balanced":
        sizes = {"min_size": options.min_size, "max_size": options.max_size}
        found = balanced.fit(key, z, k, **sizes)
        return np.asarray(found.labels), np.asarray(found.centroids)
    if name == "hierarchical":
        found = hierarchical.fit(key, z, k, probes=options.probes)
        return np.asarray(found.labels), np.asarray(found.tree.leaves)
    if name == "mixture":
        found = mixture.fit(key, z, k, covariance=options.covariance)
        return np.asarray(found.labels), np.asarray(found.mixture.means)
    if name == "graph":
        return np.asarray(graph_embedding.cluster(key, z, k, merge=options.merge).labels), None
    if name == "agglomerative":
        return classical.agglomerative(z, k, linkage=options.linkage), None
    if name == "hdbscan":
        size, samples = options.min_cluster_size, options.min_samples
        return classical.hdbscan(z, min_cluster_size=size, min_samples=samples), None
    if not 1 <= options.min_samples <= len(z):
        raise config.ConfigError(
            f"expected --min-samples from 1 to {len(z)} (the rows), found {options.min_samples}"
        )
    if options.eps is None:
        half, most = neighbour_distances(z, options.min_samples)
        raise config.ConfigError(
            f"--eps is needed for dbscan; the neighbour that makes a row a core row "
            f"(--min-samples {options.min_samples}) is within {half:.3g} for half of the rows and "
            f"{most:.3g} for nine of ten"
        )
    return np.asarray(dbscan.fit(z, options.eps, min_samples=options.min_samples).labels), None


def fit_kmeans(key, z, k, n_devices):
    """k-means of rows in memory, over devices, or of rows that stay on disk."""
    import jax
    import numpy as np

    from deepclust_jax.clustering import kmeans, sharded, streaming

    if n_devices is not None:
        return sharded.fit(key, np.asarray(z[:]), k, devices=jax.devices()[:n_devices])
    return (kmeans if isinstance(z, np.ndarray) else streaming).fit(key, z, k)


def neighbour_distances(z, min_samples: int) -> tuple[float, float]:
    """Median and 90 % quantile of the distance to the row that makes a row a core row."""
    import numpy as np
    from sklearn.neighbors import NearestNeighbors

    some = z[np.random.default_rng(0).permutation(len(z))[:1000]]
    count = min(min_samples, len(z))
    distances = NearestNeighbors(n_neighbors=count).fit(z).kneighbors(some)[0][:, -1]
    return float(np.quantile(distances, 0.5)), float(np.quantile(distances, 0.9))


if __name__ == "__main__":
    sys.exit(command.to_reader(main))
