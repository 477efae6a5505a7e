"""Assign new data to the clusters of a finished run.

    python scripts/cluster.py runs/digits-dcn new_rows.npy
    python scripts/cluster.py runs/mnist-dcn mnist --labels-out labels.npy

The rows get the preprocessing of the run and the network of the run that was kept; a row that was
trained on gets the label it had. For the run of a run they are rows as of the first, which go
through one after the other.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from deepclust_jax import command


@dataclasses.dataclass(frozen=True)
class Options:
    """Assign new data to the clusters of a finished run."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run directory, written by train_deep_kmeans.py."""

    data: Annotated[str, tyro.conf.Positional]
    """Name of a data set, or path of a file or folder of the kind that the run was trained on; of
    the run of a run, the first."""

    partner: str | None = None
    """The same of the second modality, where the run has two; files of two folders are paired by
    their names."""

    labels: str | None = None
    """Column of labels in the new data, which then is no feature. None: that of the run, where the
    new data have it."""

    labels_out: Path = Path("labels.npy")
    """File for the labels, int32 [n]; of a folder also one of that name ending in .csv, which has
    each file and its cluster."""

    embeddings_out: Path | None = None
    """File for the codes, float32 [n, d]. None: not written."""

    limit: int | None = None
    """Use a fixed random part of so many rows. None: all."""

    overwrite: bool = False
    """Replace the files if they are there."""


def main(args: list[str] | None = None) -> int:
    """Run the script; 0 if all went well, else 2 after one line on standard error."""
    options = tyro.cli(Options, args=args, config=(tyro.conf.FlagCreatePairsOff,))
    return command.guard(lambda: cluster(options))


def cluster(options: Options) -> int:
    """Load the run, assign, write. -> exit code."""
    import jax
    import numpy as np

    from deepclust_jax import config, data, run, train
    from deepclust_jax.data import preprocessing
    from deepclust_jax.report import run_directory

    if config.run_of(options.data) is not None:
        raise config.ConfigError(
            f"expected rows to cluster, found the run {options.data}; give rows like those that "
            f"the run {options.run} was trained on"
        )
    flags = {"--labels-out": options.labels_out, "--embeddings-out": options.embeddings_out}
    outputs = [path for path in flags.values() if path is not None]
    for flag, path in flags.items():
        if path is not None:
            command.check_output(path, ".npy", flag, overwrite=options.overwrite)
    sources = [source for source in (options.data, options.partner) if source is not None]
    is_folder = any(data.row_files(source) for source in sources)
    table = options.labels_out.with_suffix(".csv") if is_folder else None
    if table is not None:
        command.check_output(table, ".csv", "--labels-out", overwrite=options.overwrite)
    if len({path.absolute() for path in outputs}) < len(outputs):
        raise config.ConfigError(f"--labels-out and --embeddings-out are both {outputs[0]}")
    run.platform()
    last = run.restore(options.run)
    runs = {options.run: last}
    while (before := run_directory.run_before(next(iter(runs)))) is not None:
        runs = {before: run.restore(before)} | runs
    first, trained = next(iter(runs.items()))
    dataset, files = rows_for(options, first, trained.options.data.labels)
    z = labels = None
    for folder, trained in runs.items():
        codes = z is not None
        rows = preprocessing.apply(preprocessing.load(folder), z[0]) if codes else dataset.x
        if tuple(rows.shape[1:]) != trained.shape:
            raise config.ConfigError(
                f"expected rows of shape {trained.shape} as in {folder}, "
                f"found {tuple(rows.shape[1:])} in {options.data}; give rows of that shape"
            )
        kept = jax.tree.map(lambda leaf, s=trained.chosen: leaf[s][None], trained.state)
        z, labels = train.embed(trained.algorithm, kept, rows)
    for path, found in zip(outputs, (labels[0], z[0]), strict=False):
        np.save(path, found)
    if files:
        run_directory.write_labels_by_file(table, files, labels[0])
    sizes = np.bincount(labels[0], minlength=run_directory.clusters_of(options.run, last.options))
    print(f"{len(labels[0])} rows, cluster sizes: {' '.join(map(str, sizes))}")
    print(f"Labels: {options.labels_out}")
    return 0


def rows_for(options: Options, run: Path, column: str | None):
    """The rows to cluster, prepared as the first run prepared its own, and the files they are of;
    `column` had its labels."""
    from deepclust_jax import config, data
    from deepclust_jax.data import preprocessing
    from deepclust_jax.report import run_directory

    stored, limit = preprocessing.load(run), options.limit

    def load(labels):
        return data.load(
            options.data, labels=labels, kind=stored.kind, preprocessing=stored, limit=limit
        )[0]

    try:
        dataset = load(options.labels)
    except data.DataError as error:
        if options.labels or not column or repr(column) not in str(error):
            raise
        dataset = load(column)  # which the new rows have too
    second = run / run_directory.PARTNER
    if second.is_dir() != (options.partner is not None):
        has, give = ("two", "give") if second.is_dir() else ("no two", "leave out")
        raise config.ConfigError(f"the run {run} has {has} modalities; {give} --partner")
    order = run_directory.pair_order(options.data, options.partner)
    if options.partner is not None:
        own = preprocessing.load(second)
        found = data.load(
            options.partner, kind=own.kind, preprocessing=own, order=order, limit=limit
        )
        dataset = data.paired(dataset, found[0])
    files = run_directory.files_of(
        options.data, options.partner, len(dataset.x), order=order, limit=limit
    )
    return dataset, files


if __name__ == "__main__":
    sys.exit(command.to_reader(main))
