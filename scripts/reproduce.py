"""Every figure of the quality tables: one file per method, data set and seed; then the tables.

    python scripts/reproduce.py --data usps --seeds 10        # trains what results/ lacks
    python scripts/reproduce.py --data usps --together 10     # all seeds at once: for accelerators
    python scripts/reproduce.py --table                       # rewrites the tables

A row such as n2d-of-rotation has the features of another for data. One autoencoder per seed serves
all methods that start from one, and one set of contrastive features
those on pairs; they are kept in runs/reproduce. A run that is stopped goes on where it was: cells
that are there are not trained again, and a start goes on from its last checkpoint. Seeds are 0, 1,
2, …; none is ever left out. The seconds in a cell's file are wall-clock time by phase, of all the
seeds that trained together, whatever else the machine did meanwhile.
"""

import dataclasses
import json
import re
import shutil
import statistics
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import tyro

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "quality"
STARTS = ROOT / "runs" / "reproduce"
README = ROOT / "README.md"
PAGE = ROOT / "results" / "README.md"

# Their network is small, and products are float32.
_ON_PAIRS = ("contrastive", "info_max")
# Networks of their own, from which nothing else starts.
_OWN = (
    "rotation", "mmdc", "deep_cluster", "next_token", "next_frame", "cross_modal", "gan",
    "info_gan", "cluster_gan", "bi_gan",
)  # fmt: skip
# The second modality of the data sets that have one.
PARTNERS = {"mnist_of_fsdd": "fsdd", "emoji": "emoji_names"}
_AUGMENTED = ("affine", "photo", "speech", "each", "noise")
# Trained from nothing, in one phase.
_ALONE = ("autoencoder", "contrastive", *_OWN)

# What may choose a run, a number of codes and clusters alone, and whether more of it is better.
_CRITERIA = {"silhouette": True, "davies_bouldin": False, "calinski_harabasz": True}

# A row of the table: method, then what differs from the practical profile with bfloat16 products.
Row = Literal[
    "kmeans", "autoencoder-paper", "autoencoder-euclidean", "autoencoder", "dcn", "dkm", "dec",
    "idec", "vade", "dcn-affine", "dkm-affine", "dec-affine", "idec-affine", "n2d",
    "autoencoder-float32", "dcn-float32", "n2d-float32", "contrastive", "contrastive-noise",
    "contrastive-affine", "contrastive-speech", "info_max", "info_max-noise", "info_max-affine",
    "info_max-speech", "contrastive-photo", "info_max-photo", "n2d-merge",
    "contrastive-merge", "contrastive-noise-merge", "contrastive-affine-merge", "rotation",
    "mmdc-affine", "mmdc-photo", "deep_cluster", "deep_cluster-affine", "next_token",
    "next_frame", "cross_modal", "cross_modal-each", "gan", "info_gan", "info_gan-affine",
    "cluster_gan", "cluster_gan-affine", "bi_gan", "idec-of-contrastive-speech",
    "n2d-of-contrastive-speech", "idec-of-next_token", "n2d-of-next_token", "idec-of-rotation",
    "n2d-of-rotation", "n2d-of-gan", "dcn-resets", "dcn-even", "dcn-merge", "dcn-affine-merge",
]  # fmt: skip
ROWS: tuple[Row, ...] = (
    "kmeans", "autoencoder-euclidean", "autoencoder", "dcn", "dkm", "dec", "idec", "vade",
    "n2d", "n2d-merge", "dcn-merge", "contrastive", "contrastive-merge", "info_max",
    "contrastive-noise", "contrastive-noise-merge", "info_max-noise", "dcn-affine",
    "dcn-affine-merge", "dkm-affine", "dec-affine", "idec-affine", "contrastive-affine",
    "contrastive-affine-merge", "info_max-affine", "contrastive-speech", "info_max-speech",
    "contrastive-photo", "info_max-photo", "rotation", "mmdc-affine", "mmdc-photo", "deep_cluster",
    "deep_cluster-affine", "next_token", "next_frame", "cross_modal",
    "cross_modal-each", "gan", "info_gan", "info_gan-affine", "cluster_gan", "cluster_gan-affine",
    "bi_gan", "idec-of-contrastive-speech", "n2d-of-contrastive-speech", "idec-of-next_token",
    "n2d-of-next_token", "idec-of-rotation", "n2d-of-rotation", "n2d-of-gan", "dcn-resets",
    "dcn-even", "autoencoder-paper",
)  # fmt: skip
_OF = "-of-"  # a method whose data are the features of another row

# Raised where the code of a method finds something else than before by the same options: its cells
# are then trained again, and marked in the table until they are. By row or part of one; else 1.
VERSIONS = {"n2d-merge": 2, "contrastive-photo": 2, "info_max-photo": 2, "of": 2}

# Accuracy in %, as published for train and test part together; DEC-keras has this network, BRB has
# 1024-512-256-k and starts from a trained autoencoder as here. Never a figure that was only
# recalled: where the source gives none for a data set, the column stays empty.
_AUTOENCODER = {
    "mnist": "87.9 (DEC-keras, mean of 10)",
    "usps": "70.9 (DEC-keras, mean of 10)",
    "fashion_mnist": "60.6 (DEC-keras, mean of 10)",
}
PUBLISHED = {
    (data, row): figure
    for row in ("autoencoder-paper", "autoencoder-euclidean")
    for data, figure in _AUTOENCODER.items()
} | {
    ("mnist", "dcn"): "83 (paper)",
    ("mnist", "dcn-affine"): "89.2 (BRB, pretrained, mean of 10)",
    ("usps", "dcn-affine"): "78.3 (BRB, pretrained, mean of 10)",
    ("fashion_mnist", "dcn-affine"): "49.9 (BRB, pretrained, mean of 10)",
    ("mnist", "dkm"): "84.6 (TF2 re-run by Rufaim)",
    ("mnist", "dec"): "91.2 (DEC-keras, mean of 10)",
    ("usps", "dec"): "76.4 (DEC-keras, mean of 10)",
    ("fashion_mnist", "dec"): "61.8 (DEC-keras, mean of 10)",
    ("mnist", "idec"): "88.1 (paper)",
    ("usps", "idec"): "76.1 (paper)",
    ("mnist", "vade"): "94.5 (best run, authors' code)",
    ("usps", "info_max-affine"): "98.1 (DynAE, by an index)",
    ("mnist", "info_max-affine"): "98.7 (DynAE, by an index; its log has 98.2)",
    ("mnist", "n2d"): "97.9 (paper, by an index)",
    ("fashion_mnist", "n2d"): "67.2 (paper, by an index)",
    ("mnist", "cluster_gan"): "91.0 ± 4.0 (authors' code, convolutions, mean of 10)",
    ("fashion_mnist", "cluster_gan"): "61.2 ± 2.3 (authors' code, convolutions, mean of 10)",
    ("cifar10", "info_max-photo"): "57.6 ± 5.0 (IIC, ResNet-34, all 60,000)",
}

# What the short table shows: data sets, and methods by the first row that a data set has, which is
# with the change that goes with its kind of rows.
COLUMNS = (
    "mnist", "fashion_mnist", "usps", "pendigits", "pbmc4k", "fsdd", "ag_news", "bbc_news",
    "twenty_newsgroups", "cifar10",
)  # fmt: skip
LINES: dict[str, tuple[Row, ...]] = {
    "k-means on rows": ("kmeans",),
    "autoencoder": ("autoencoder",),
    "dcn": ("dcn",),
    "dkm": ("dkm",),
    "dec": ("dec",),
    "idec": ("idec",),
    "vade": ("vade",),
    "n2d": ("n2d",),
    "contrastive": (
        "contrastive-speech", "contrastive-photo", "contrastive-affine", "contrastive-noise",
    ),
    "info_max": ("info_max-speech", "info_max-photo", "info_max-affine", "info_max-noise"),
    "rotation": ("rotation",),
    "next_token, next_frame": ("next_token", "next_frame"),
    "gan": ("gan",),
    "n2d on features of gan": ("n2d-of-gan",),
    "info_gan": ("info_gan-affine", "info_gan"),
    "cluster_gan": ("cluster_gan",),
}  # fmt: skip
# The highest that was found published of networks trained from scratch. SPC and ConvDEC-DA are
# convolutional, and SPC is an ensemble of 15.
HIGHEST = {
    "mnist": "99.2 (SPC)", "fashion_mnist": "67.9 (SPC)", "usps": "98.7 (ConvDEC-DA)",
    "twenty_newsgroups": "51.2 (DKM)",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """Train the cells of the quality table, or write it."""

    data: tuple[str, ...] = ("usps", "mnist", "fashion_mnist")
    """Data sets by name."""

    rows: tuple[Row, ...] = ROWS
    """Rows of the table. kmeans is on the rows as they are; dcn, dkm, dec, idec, vade, n2d and
    info_max start from an autoencoder or contrastive features of the same seed. affine turns and
    shifts images at random while they train; merge finds the number of clusters; resets are three;
    even shares out batches evenly among clusters. affine and deep_cluster are left out where there
    are no images, rotation and mmdc where none are square,
    photo where there are no colours, next_token where there are no texts, next_frame and speech
    where there are no sounds, cross_modal where there is no second modality."""

    seeds: int = 10
    """Seeds 0 to this number less one."""

    first: int = 0
    """The first seed, where several machines share the work."""

    together: int = 1
    """Seeds that train in one program; many keep an accelerator busy."""

    table: bool = False
    """Train nothing; rewrite the tables in README.md and results/README.md from results/."""


def main(args: list[str] | None = None) -> int:
    """Run the script."""
    options = tyro.cli(Options, args=args, config=(tyro.conf.FlagCreatePairsOff,))
    if options.table:
        rewrite("quality", quality_table())
        rewrite("nuisance", nuisance_table())
        rewrite("overview", overview(), README)
        print(f"Tables: {PAGE} and {README}")
        return 0
    from deepclust_jax import data, train

    if options.first >= options.seeds or options.together < 1:
        found = f"{options.first}, {options.seeds} and {options.together}"
        print(
            f"error: expected --first < --seeds and --together >= 1, found {found}", file=sys.stderr
        )
        return 2
    failed, every = [], range(options.first, options.seeds)
    for name in options.data:
        try:
            dataset, labels = data.load(name)
            if name in PARTNERS and any(row.startswith("cross_modal") for row in options.rows):
                paired = data.paired(dataset, data.load(PARTNERS[name])[0])
            check_classes(name, dataset, labels)
        except data.DataError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        reading = [row for row in options.rows if front_of(row) == "next_token"]
        read, reads, why_not = None, dataset.kind == "text" and reading, ""
        if reads and not all(is_done(dataset, row, seed) for row in reading for seed in every):
            try:
                read = data.load(name, scaling="tokens")[0]
            except data.DataError as error:  # the library is an extra
                why_not = str(error)
        rows = []
        for row in options.rows:
            of_tokens = "next_token" in row.split("-")
            if reason := unfit(name, dataset, row) or (why_not if of_tokens else ""):
                print(f"{name} {row}: left out, {reason}")
            else:
                rows.append(row)
        used = {row: paired if row.startswith("cross_modal") else dataset for row in rows}
        due = {row: [s for s in every if not is_done(used[row], row, s)] for row in rows}
        for row in rows:
            if not due[row]:
                folder = cell_file(name, row, 0).parent
                print(f"{name} {row}: all seeds are in {folder}; to train them again, remove it")
        for start in every[:: options.together]:
            group = range(start, min(start + options.together, options.seeds))
            for row in rows:
                seeds = [seed for seed in group if seed in due[row]]
                try:
                    if seeds:
                        print(f"{name} {row} seeds {seeds}: training", flush=True)
                        of_tokens = front_of(row) == "next_token"
                        train_cells(read if of_tokens else used[row], labels, row, seeds)
                except train.Diverged as error:  # the other cells are trained all the same
                    failed.append(f"{name} {row} seeds {seeds}: {error}")
                    print(failed[-1], file=sys.stderr, flush=True)
        nuisance = data.nuisance(name, dataset.whole, limit=len(labels))
        for row in rows:
            write_vote(name, row, labels)
            if nuisance is not None:
                write_nuisance(name, row, nuisance)
    return 1 if failed else 0


def unfit(name: str, dataset: Any, row: str) -> str:
    """Why a row is nothing for a data set, or ""."""
    kind, shape, parts = dataset.kind, tuple(dataset.x.shape[1:]), set(row.split("-"))
    if parts & {"affine", "rotation", "mmdc", "deep_cluster"} and kind != "image":
        return f"{kind} rows are no images"
    if "next_token" in parts and kind != "text":
        return f"{kind} rows are no texts"
    if parts & {"speech", "next_frame"} and kind != "audio":
        return f"{kind} rows are no sounds"
    if "cross_modal" in parts and name not in PARTNERS:
        return "it has no second modality"
    if "photo" in parts and (kind != "image" or shape[2] != 3):
        return f"{kind} rows {shape} have no colours"
    if parts & {"rotation", "mmdc"} and shape[0] != shape[1]:
        return f"images {shape} are not square"
    return ""


def check_classes(name: str, dataset: Any, labels: Any) -> None:
    """Raise DataError for data without classes, which nothing here can score."""
    from deepclust_jax import data

    if labels is None or dataset.n_clusters is None:
        raise data.DataError(
            f"expected as --data the name of a data set with classes, found {name}; of own files "
            "train_deep_kmeans.py tells more"
        )


def cell_file(data: str, row: str, seed: int) -> Path:
    """The file of one cell."""
    return RESULTS / data / row / f"seed{seed}.json"


def cell_options(dataset: Any, row: str) -> Any:
    """The options that a row stands for; not of kmeans, which trains nothing."""
    from deepclust_jax import config

    method, *changes = row.split("-")
    is_float32 = "float32" in changes or method in (*_ON_PAIRS, *_OWN)
    k = None if "merge" in changes else dataset.n_clusters
    parts = config.written(dataset.parts) or None
    partner = PARTNERS[dataset.name] if parts else None
    options = config.resolve(
        config.Options(
            data=config.Data(data=dataset.name, partner=partner, parts=parts, n_clusters=k),
            method=config.Method(
                method=method,
                profile="paper" if "paper" in changes else "practical",
                augment=next((a for a in _AUGMENTED if a in changes), "none"),
                metric="euclidean" if "euclidean" in changes else None,
                merge="merge" in changes,
                sizes="even" if "even" in changes else None,
            ),
            network=config.Network(
                precision="float32" if is_float32 else "bfloat16",
            ),
            run=config.Run(seeds=1),
        ),
        dataset.x.shape[0],
    )
    if "resets" not in changes:
        return options
    method = dataclasses.replace(options.method, resets=options.training.epochs // 4)
    return dataclasses.replace(options, method=method)


def front_of(row: str) -> str:
    """The row whose features are the data of another one; that row itself where there is none."""
    return row.split(_OF)[-1]


def start_row(row: str) -> str:
    """The row that a row starts from: an autoencoder or contrastive features; its own where it is
    one of these or has a network of its own."""
    method, *changes = row.split("-")
    if method in _OWN:
        return row
    if method in _ON_PAIRS:
        return "-".join(["contrastive", *(c for c in changes if c != "merge")])
    return "-".join(["autoencoder", *(c for c in ("paper", "float32") if c in changes)])


def version_of(row: str) -> int:
    """The version of the code that clusters a row."""
    return max(VERSIONS.get(name, 1) for name in (row, *row.split("-")))


def recipe(dataset: Any, row: str) -> dict[str, Any]:
    """All that a cell depends on, but for the seed: options, also of its start, rows, and the
    version of the code."""
    from deepclust_jax import config, run

    def shown(row: str) -> dict[str, Any]:
        options = config.flatten(cell_options(dataset, row))
        return {k: v for k, v in options.items() if k not in (*run.FREE, "seeds")}

    if row == "kmeans":
        found = {"options": {"method": row, "n_clusters": dataset.n_clusters}, "start": {}}
    else:
        own = row.split(_OF)[0]
        found = {"options": shown(own), "start": shown(start_row(own))}
    if _OF in row:
        found["front"] = shown(front_of(row))
    found |= {"checksum": dataset.checksum, "version": version_of(row)}
    return json.loads(json.dumps(found))  # as it comes back from a file


def is_done(dataset: Any, row: str, seed: int) -> bool:
    """Whether the cell is there and was trained by the recipe of today."""
    file = cell_file(dataset.name, row, seed)
    return file.exists() and is_same(json.loads(file.read_text())["recipe"], recipe(dataset, row))


def is_same(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two recipes are; an option that one does not know yet had its default there, and code
    without a version is of the first."""
    from deepclust_jax import config

    defaults = json.loads(json.dumps(config.flatten(config.Options())))

    def complete(recipe: dict[str, Any]) -> dict[str, Any]:
        return {"version": 1} | {
            name: defaults | part if isinstance(part, dict) else part
            for name, part in recipe.items()
        }

    return complete(before) == complete(now)


def train_cells(dataset: Any, labels: Any, row: str, seeds: Sequence[int]) -> None:
    """Train cells of a row in one program and write them; what they start from first, where that
    is not kept.

    Raises:
        Diverged: one of them did; the others are written.
    """
    from deepclust_jax import train

    if row == "kmeans":
        return cluster_rows(dataset, labels, seeds)
    if _OF not in row:
        trained, commit = trained_of(dataset, row, seeds)
        commits = {"start_commit": commit}
        return write_cells(dataset, labels, row, seeds, dataset.x, trained, commits)
    own, diverged = row.split(_OF)[0], []
    front, front_commit = start_of(dataset, front_of(row), seeds)
    for i, seed in enumerate(seeds):
        try:
            codes = codes_of(dataset, front_of(row), front, i, seed)
            trained, commit = trained_of(codes, own, [seed])
            share = front.seconds["train"] / len(seeds)
            trained = trained._replace(seconds={"front": share, **trained.seconds})
            commits = {"start_commit": commit, "front_commit": front_commit}
            write_cells(dataset, labels, row, [seed], codes.x, trained, commits)
        except train.Diverged:
            diverged.append(seed)
    if diverged:
        raise train.Diverged(f"expected finite steps and codes, found others for seeds {diverged}")


def trained_of(dataset: Any, row: str, seeds: Sequence[int]) -> tuple[Any, str | None]:
    """The trained cells of a row, and the commit of what they started from."""
    from deepclust_jax import run

    trained, commit = start_of(dataset, start_row(row), seeds)
    start, cell = trained, cell_options(dataset, row)
    one_phase = cell.method.method in _ALONE
    if one_phase and row != start_row(row):
        trained = clustered_again(dataset, cell, seeds, start)
    elif not one_phase:
        if cell.method.merge:  # the metric of the code must not know the number of classes
            start = clustered_again(dataset, cell, seeds, start)
        trained = run.execute(cell, dataset.x, seeds=seeds, pretrained=start.state)
        seconds = {"pretrain": start.seconds["train"], **trained.seconds}
        trained = trained._replace(seconds=seconds)
    return trained, commit


def codes_of(dataset: Any, row: str, front: Any, i: int, seed: int) -> Any:
    """The features of a row's i-th trained run, of a seed, as data, as of a finished run by
    `--data RUN`."""
    import jax

    from deepclust_jax import data, train

    if games_lost(row, front.state)[i]:
        raise train.Diverged(f"expected finite steps of {row}, found others for seed {seed}")
    state = jax.tree.map(lambda leaf: leaf[i], front.state)
    z = train.embed(front.algorithm, state, dataset.x)[0]
    if not np.isfinite(z).all():
        raise train.Diverged(f"expected finite codes of {row}, found others for seed {seed}")
    folder = STARTS / dataset.name / f"codes-{row}-seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "codes.npy", z)
    codes = data.load(folder / "codes.npy", kind="tabular", scaling="codes")[0]
    name = f"{dataset.name}-{row}-seed{seed}"
    return dataclasses.replace(codes, name=name, n_clusters=dataset.n_clusters)


def games_lost(row: str, state: Any) -> np.ndarray:
    """Which runs [S] of a row are games that were lost, whose weights stay finite. -> [S] bool."""
    from deepclust_jax import game, profiles

    is_game = row.split("-")[0] in profiles.GAMES
    return game.diverged(state) if is_game else np.zeros(len(state.step), bool)


def write_cells(
    dataset: Any,
    labels: Any,
    row: str,
    seeds: Sequence[int],
    x: Any,
    trained: Any,
    commits: Mapping[str, str | None],
) -> None:
    """Write the cells of what was trained on rows x; raises Diverged after those that did not."""
    from deepclust_jax import train

    z, found = train.embed(trained.algorithm, trained.state, x)
    diverged, lost = [], games_lost(row, trained.state)
    for seed, codes, assigned, is_lost in zip(seeds, z, found, lost, strict=True):
        if is_lost or not np.isfinite(codes).all():
            diverged.append(seed)
            continue
        report = {"together": len(seeds), "seconds": trained.seconds, **commits}
        scores = write_cell(dataset, row, seed, codes, assigned, labels, report)
        took = sum(trained.seconds.values())
        print(
            f"{dataset.name} {row} seed {seed}: {scores['accuracy']:.4f} ({took:.0f} s)", flush=True
        )
    if diverged:
        raise train.Diverged(f"expected finite steps and codes, found others for seeds {diverged}")


def cluster_rows(dataset: Any, labels: Any, seeds: Sequence[int]) -> None:
    """k-means on the rows as they are, flattened; write its cells."""
    from deepclust_jax import run
    from deepclust_jax.report import baselines

    rows = np.asarray(dataset.x).reshape(len(labels), -1)
    for seed in seeds:
        begin = time.perf_counter()
        keys = run.seed_keys(cell_options(dataset, "autoencoder"), [seed])
        found = baselines.kmeans_of_rows(keys, rows, dataset.n_clusters)[0]
        seconds = {"train": time.perf_counter() - begin}
        scores = write_cell(dataset, "kmeans", seed, rows, found, labels, {"seconds": seconds})
        print(f"{dataset.name} kmeans seed {seed}: {scores['accuracy']:.4f}", flush=True)


def start_of(dataset: Any, row: str, seeds: Sequence[int]) -> tuple[Any, str | None]:
    """What the rows of some seeds start from, trained, and the commit it is of; kept in
    runs/reproduce."""
    from deepclust_jax import checkpoint, run
    from deepclust_jax.report import environment

    folder = STARTS / dataset.name / f"{row}-seed{'-'.join(map(str, seeds))}"
    note = folder / "made.json"
    wanted = recipe(dataset, row)
    made = json.loads(note.read_text()) if note.exists() else {}
    if not is_same(made.get("recipe", {}), wanted):
        shutil.rmtree(folder, ignore_errors=True)  # of other options, or none
        folder.mkdir(parents=True)
        made = {"recipe": wanted, "commit": environment.environment()["commit"]}
        note.write_text(json.dumps(made, indent=1) + "\n")
    checkpoint.drop_damaged(folder / "train", spare=True)
    options = cell_options(dataset, row)
    try:
        return run.execute(options, dataset.x, folder=folder, seeds=seeds), made["commit"]
    except checkpoint.Mismatch:  # of other networks than those of today
        shutil.rmtree(folder)
        return start_of(dataset, row, seeds)


def clustered_again(dataset: Any, cell: Any, seeds: Sequence[int], start: Any) -> Any:
    """The trained autoencoder, or the contrastive features, under the clustering of other
    options."""
    from deepclust_jax import run

    state = start.state
    if cell.method.method == "autoencoder":
        state = state.replace(view=None)  # of the adaptive metric
    algorithm, state = run.clustered_again(cell, dataset.x, state, seeds)
    return start._replace(algorithm=algorithm, state=state)


def write_cell(dataset, row, seed, z, found, labels, report) -> dict[str, float]:
    """Write the JSON and the labels of one cell. -> its scores by labels."""
    from deepclust_jax import metrics
    from deepclust_jax.report import environment, scores

    external = metrics.external_scores(labels, found)
    file = cell_file(dataset.name, row, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        file.with_suffix(".npz"), labels=found.astype(np.min_scalar_type(found.max()))
    )
    report = {
        "seed": seed,
        "recipe": recipe(dataset, row),
        "rows": len(labels),
        "external": external,
        "internal": metrics.internal_scores(z, found),
        **report,
        "environment": environment.environment(),
    }
    scores.write_report(file, report)
    return external


def write_vote(data: str, row: str, labels: Any) -> None:
    """Write how the vote of all runs of a row scores, where there are three or more of one recipe
    and it is not there."""
    from deepclust_jax import metrics
    from deepclust_jax.report import scores

    files = cell_files(data, row)
    reports = [json.loads(file.read_text()) for file in files]
    same = [is_same(report["recipe"], reports[0]["recipe"]) for report in reports]
    if len(files) < 3 or not all(same):
        return
    labels_all, objective = population(files, reports)
    if vote_of(data, row, labels_all) is None:
        chosen, _ = scores.choose(labels_all, objective)
        voted = scores.voted(labels_all, objective, chosen)
        if voted is not None:
            found = {"runs": _checksum(labels_all), "seeds": len(files)}
            found["external"] = metrics.external_scores(labels, voted)
            scores.write_report(RESULTS / data / row / "vote.json", found)


def write_nuisance(data: str, row: str, nuisance: np.ndarray) -> None:
    """Add to the cells of a row, where it is not there, how they score against labels [n] that
    clusters should not follow."""
    from deepclust_jax import metrics
    from deepclust_jax.report import scores

    for file in cell_files(data, row):
        report = json.loads(file.read_text())
        if "nuisance" not in report:
            found = np.load(file.with_suffix(".npz"))["labels"].astype(np.int64)
            scores.write_report(
                file, report | {"nuisance": metrics.external_scores(nuisance, found)}
            )


def vote_of(data: str, row: str, labels_all: np.ndarray) -> dict[str, float] | None:
    """The scores by labels of the vote of these runs of a row; None where they are not known."""
    file = RESULTS / data / row / "vote.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    return found["external"] if found.get("runs") == _checksum(labels_all) else None


def population(
    files: Sequence[Path], reports: Sequence[Mapping[str, Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of the cells of a row, and what decides where they tie. -> [S, n], [S]."""
    labels = np.stack([np.load(file.with_suffix(".npz"))["labels"] for file in files])
    # Cells hold no training loss: the lowest Davies-Bouldin index decides.
    objective = np.array([r["internal"]["davies_bouldin"] for r in reports], float)
    return labels.astype(np.int64), objective


def _checksum(labels_all: np.ndarray) -> int:
    return zlib.crc32(labels_all.astype(np.int32).tobytes())


def cell_files(data: str, row: str) -> list[Path]:
    """The files of the cells of a row, by seed."""
    return sorted((RESULTS / data / row).glob("seed*.json"), key=_seed)


def cells() -> Iterator[tuple[str, str, list[Path]]]:
    """Data set, method and files of every row of the table."""
    for data in sorted(p.name for p in RESULTS.glob("*")):
        for row in get_args(Row):
            if files := cell_files(data, row):
                yield data, row, files


def quality_table() -> str:
    """The table in Markdown: mean ± std, the choice without labels, the vote of the runs, the
    oracle, published."""
    from deepclust_jax.report import scores

    lines = [
        "| data | method | ACC | NMI | ARI | chosen without labels | vote of the runs | "
        "best by labels (oracle) | published ACC | seeds | seconds a seed |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    every, choices, criteria = [], [], []
    for data, row, files in cells():
        reports = [json.loads(file.read_text()) for file in files]
        old = mark_of(reports, row)
        for report in reports:  # cells of two versions are one row, which is told
            report["recipe"].pop("version", None)
        for file, report in zip(files, reports, strict=True):
            if not is_same(report["recipe"], reports[0]["recipe"]):
                raise SystemExit(
                    f"error: {file} and {files[0].name} are of other options or rows; train the "
                    f"row {row} of {data} again, or remove one of them"
                )
        every += reports
        values = {
            name: 100 * np.array([r["external"][name] for r in reports])
            for name in ("accuracy", "nmi", "ari")
        }
        labels, objective = population(files, reports)
        chosen, _ = scores.choose(labels, objective)
        own, vote = values["accuracy"], vote_of(data, row, labels)
        if vote is not None:
            voted = 100 * vote["accuracy"]
            choices.append((own[chosen] - own.mean(), voted - own.mean(), own.max() - own.mean()))
            criteria.append([own[i] - own.mean() for i in by_criteria(reports)])
        spread = [mean(v) for v in values.values()]
        published = PUBLISHED.get((data, row.removesuffix("-float32")), "–")
        lines.append(
            f"| {data} | {name_of(row, labels)} | {' | '.join(spread)} | {own[chosen]:.1f} | "
            f"{'–' if vote is None else format(voted, '.1f')} | {own.max():.1f} | {published} | "
            f"{len(files)}{old} | {_seconds(reports)} |"
        )
    made = sorted({report["environment"]["versions"]["jax"] for report in every})
    if choices:
        by_choice, by_vote, by_labels = np.mean(choices, axis=0)
        gains = zip(_CRITERIA, np.mean(criteria, axis=0), strict=True)
        others = ", ".join(f"{name.replace('_', '-')} {gain:+.1f}" for name, gain in gains)
        lines += [
            "",
            f"Over the {len(choices)} rows with three seeds or more, beside the mean of the row in "
            f"accuracy: the run chosen without labels on average {by_choice:+.1f} points, the vote "
            f"of the runs {by_vote:+.1f}, the best by labels {by_labels:+.1f}. One number of "
            f"codes and clusters would choose so: {others}.",
        ]
    lines += ["", f"jax {', '.join(made)}."]
    return "\n".join(lines)


def nuisance_table() -> str:
    """The table in Markdown of data with labels that clusters should not follow."""
    lines = ["| data | method | ACC | NMI | ACC by nuisance | NMI by nuisance | seeds |"]
    lines.append("|---|---|---|---|---|---|---|")
    for data, row, files in cells():
        reports = [json.loads(file.read_text()) for file in files]
        if all("nuisance" in report for report in reports):
            values = [
                mean(100 * np.array([report[group][name] for report in reports]))
                for group in ("external", "nuisance")
                for name in ("accuracy", "nmi")
            ]
            name = name_of(row, population(files, reports)[0])
            seeds = f"{len(files)}{mark_of(reports, row)}"
            lines.append(f"| {data} | {name} | {' | '.join(values)} | {seeds} |")
    return "\n".join(lines)


def by_criteria(reports: Sequence[Mapping[str, Any]]) -> list[int]:
    """Which run each of _CRITERIA would choose; one that has no such number comes last."""
    chosen = []
    for name, is_more in _CRITERIA.items():
        values = np.array([report["internal"][name] for report in reports], float)
        chosen.append(int(np.argmax(np.nan_to_num(values if is_more else -values, nan=-np.inf))))
    return chosen


def overview() -> str:
    """The short table in Markdown: accuracy by method and data set."""
    every = {(data, row): files for data, row, files in cells()}

    def shown(data: str, rows: Sequence[str]) -> tuple[str, str]:
        """Of the first row that is there: mean ± std, and the vote of its runs."""
        row = next((row for row in rows if (data, row) in every), None)
        if row is None:
            return "–", "–"
        files = every[data, row]
        reports = [json.loads(file.read_text()) for file in files]
        values = 100 * np.array([report["external"]["accuracy"] for report in reports])
        vote = vote_of(data, row, population(files, reports)[0])
        voted = "–" if vote is None else f"{100 * vote['accuracy']:.1f}"
        return f"{mean(values)} ({len(reports)}{mark_of(reports, row)})", voted

    head = " | ".join(name.replace("_", " ") for name in COLUMNS)
    lines = [f"| ACC in % | {head} |", "|---|" + "---|" * len(COLUMNS)]
    for method, rows in LINES.items():
        means, votes = zip(*(shown(data, rows) for data in COLUMNS), strict=True)
        lines.append(f"| {method} | {' | '.join(means)} |")
        if method == "info_max":
            lines.append(f"| vote of its runs | {' | '.join(votes)} |")
    lines += [
        f"| published, from scratch | {' | '.join(HIGHEST.get(n, '–') for n in COLUMNS)} |",
        "",
        "Mean ± std over seeds, so many in brackets; °: of the code before this one. contrastive "
        "and info_max with the changes that go with the rows: of images affine, of photographs "
        "photo, of sounds speech, of others noise; info_gan with affine. "
        "`python scripts/reproduce.py --table`",
    ]
    return "\n".join(lines)


def name_of(row: str, labels_all: np.ndarray) -> str:
    """The row as tables show it; where it was found, with the number of clusters of runs [S, n]."""
    if "merge" not in row.split("-"):
        return row
    return f"{row}, {mean(np.array([len(np.unique(own)) for own in labels_all], float))} clusters"


def mark_of(reports: Sequence[Mapping[str, Any]], row: str) -> str:
    """What marks a row of which some cells are of the code before this one."""
    return " °" * any(r["recipe"].get("version", 1) < version_of(row) for r in reports)


def mean(values: np.ndarray) -> str:
    """Mean ± std over seeds, or the mean alone for one."""
    mean = f"{values.mean():.1f}"
    return f"{mean} ± {values.std(ddof=1):.1f}" if len(values) > 1 else mean


def _seconds(reports: list[dict[str, Any]]) -> str:
    """Median seconds that a seed took, by device; its share where several trained together."""
    times: dict[str, list[float]] = {}
    for report in reports:
        kind = report["environment"]["device"]["kind"]
        own = sum(report["seconds"].values()) / report.get("together", 1)
        times.setdefault(kind, []).append(own)
    medians = [f"{statistics.median(own):,.0f} ({kind})" for kind, own in sorted(times.items())]
    return ", ".join(medians)


def rewrite(name: str, text: str, page: Path | None = None) -> None:
    """Replace what stands between the markers of that name in a page, or in results/README.md."""
    page = page or PAGE
    start, end = f"<!-- {name}: written by a script -->", f"<!-- end of {name} -->"
    before = page.read_text()
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(before):
        raise SystemExit(f"error: expected the markers {start} … {end} in {page}")
    page.write_text(pattern.sub(lambda _: f"{start}\n{text}\n{end}", before))


def _seed(file: Path) -> int:
    return int(file.stem.removeprefix("seed"))


if __name__ == "__main__":
    sys.exit(main())
