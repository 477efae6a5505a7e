"""How well each front end does with few rows: it learns on 100 rows up to all, and k-means clusters
its features of them.

    python scripts/learning_curve.py --data usps --seeds 5          # trains what results/ lacks
    python scripts/learning_curve.py --data fsdd --front-ends rows contrastive-speech next_frame
    python scripts/learning_curve.py --table                        # rewrites its table

A front end is named as a row of scripts/reproduce.py and has its options; the clusterer is the same
for all, k-means with 10 restarts on the features as they are. Of a data set the same random rows
are taken for all seeds, and the fewer are among the more. One file for each cell, so that a run
that is stopped goes on where it was.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import reproduce
import tyro

RESULTS = reproduce.ROOT / "results" / "learning_curve"
ROWS = "rows"  # the front end that does nothing


@dataclasses.dataclass(frozen=True)
class Options:
    """Train the cells of the learning curves, or write their table."""

    data: tuple[str, ...] = ("usps",)
    """Data sets by name."""

    front_ends: tuple[str, ...] = (ROWS, "autoencoder", "contrastive-affine", "rotation")
    """What learns features: a row of scripts/reproduce.py that trains from nothing, or rows, which
    are taken as they are."""

    sizes: tuple[int, ...] = (100, 300, 1000, 3000, 10_000)
    """Numbers of rows; those beyond the data set, or fewer than its clusters, are left out, and all
    of it comes last."""

    seeds: int = 5
    """Seeds 0 to this number less one."""

    table: bool = False
    """Train nothing; rewrite the table in results/README.md."""


def main(args: list[str] | None = None) -> int:
    """Run the script; 0 if all went well, 1 if a run diverged, else 2 after one line on standard
    error."""
    options = tyro.cli(Options, args=args, config=(tyro.conf.FlagCreatePairsOff,))
    if options.table:
        reproduce.rewrite("learning_curve", table())
        print(f"Table: {reproduce.PAGE}")
        return 0
    from deepclust_jax import config, data

    all_ended = True
    try:
        check(options)
        for name in options.data:
            dataset, _ = data.load(name)
            fit = []
            for front_end in options.front_ends:
                if reason := front_end != ROWS and reproduce.unfit(name, dataset, front_end):
                    print(f"{name} {front_end}: left out, {reason}")
                else:
                    fit.append(front_end)
            least, whole = dataset.n_clusters or 1, len(dataset.x)
            if few := [size for size in options.sizes if size < least]:
                print(f"{name}: {few} rows left out, fewer than its {least} clusters")
            for n in (*sorted(size for size in options.sizes if least <= size < whole), whole):
                for front_end in fit:
                    all_ended &= run_cells(name, n, front_end, options.seeds)
    except (data.DataError, config.ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if all_ended else 1


def check(options: Options) -> None:
    """Raise ConfigError for sizes, seeds or front ends that cannot be."""
    from deepclust_jax import config

    for name in ("data", "front_ends", "sizes"):
        if not getattr(options, name):
            flag = name.replace("_", "-")
            raise config.ConfigError(f"expected one value of --{flag} or more, found none")
    if options.seeds < 1 or min(options.sizes) < 1:
        raise config.ConfigError(
            f"expected --seeds and --sizes >= 1, found {options.seeds} and {options.sizes}"
        )
    for front_end in options.front_ends:
        if front_end == ROWS:
            continue
        known = front_end in reproduce.ROWS and front_end == reproduce.start_row(front_end)
        if not known or front_end.startswith("cross_modal"):
            raise config.ConfigError(
                f"expected as --front-ends {ROWS} or a row of reproduce.py that trains from "
                f"nothing, such as autoencoder, found {front_end}"
            )


def cell_file(data: str, front_end: str, n: int, seed: int) -> Path:
    """The file of one cell."""
    return RESULTS / data / front_end / f"{n}-seed{seed}.json"


def run_cells(name: str, n: int, front_end: str, seeds: int) -> bool:
    """Train a front end on n rows for the seeds whose cells are not there, and write these.
    -> whether none of them diverged; the others are trained all the same."""
    from deepclust_jax import data, train

    scaling = "tokens" if front_end == "next_token" else "auto"
    dataset, labels = data.load(name, scaling=scaling, limit=n)
    reproduce.check_classes(name, dataset, labels)
    wanted = reproduce.recipe(dataset, "kmeans" if front_end == ROWS else front_end)
    all_ended = True
    for seed in range(seeds):
        file = cell_file(name, front_end, n, seed)
        there = file.exists() and json.loads(file.read_text())["recipe"]
        if there and reproduce.is_same(there, wanted):
            continue
        print(f"{name} {front_end} {n} rows seed {seed}: training", flush=True)
        begin = time.perf_counter()
        try:
            score = cluster(dataset, labels, front_end, seed)
        except train.Diverged as error:
            print(f"{name} {front_end} {n} rows seed {seed}: {error}", file=sys.stderr, flush=True)
            all_ended = False
            continue
        seconds = time.perf_counter() - begin
        write(file, {"recipe": wanted, "seed": seed, "n": n, "external": score, "seconds": seconds})
        print(f"{name} {front_end} {n} rows seed {seed}: {score['accuracy']:.4f} ({seconds:.0f} s)")
    return all_ended


def cluster(dataset: Any, labels: np.ndarray, front_end: str, seed: int) -> dict[str, float]:
    """Scores of k-means on the features that a front end learns of the rows."""
    from deepclust_jax import metrics, run, train
    from deepclust_jax.report import baselines

    options = reproduce.cell_options(dataset, "autoencoder" if front_end == ROWS else front_end)
    z = np.asarray(dataset.x)
    if front_end != ROWS:
        trained = run.execute(options, dataset.x, seeds=[seed])
        z = train.embed(trained.algorithm, trained.state, dataset.x)[0][0]
        if not np.isfinite(z).all():
            raise train.Diverged(f"{front_end} of seed {seed} has codes that are not finite")
    keys = run.seed_keys(options, [seed])
    found = baselines.kmeans_of_rows(keys, z, dataset.n_clusters)[0]
    return metrics.external_scores(labels, found)


def write(file: Path, cell: dict[str, Any]) -> None:
    """Write one cell, with what it was made by."""
    from deepclust_jax.report import environment, scores

    file.parent.mkdir(parents=True, exist_ok=True)
    scores.write_report(file, cell | {"environment": environment.environment()})


def curves() -> Iterator[tuple[str, str, dict[int, list[float]]]]:
    """Data set, front end, and accuracies of its seeds by number of rows."""
    for folder in sorted(RESULTS.glob("*/*")):
        cells = [json.loads(file.read_text()) for file in sorted(folder.glob("*-seed*.json"))]
        found: dict[int, list[float]] = {}
        first: dict[int, Any] = {}
        for cell in sorted(cells, key=lambda cell: (cell["n"], cell["seed"])):
            if not reproduce.is_same(cell["recipe"], first.setdefault(cell["n"], cell["recipe"])):
                raise SystemExit(
                    f"error: cells of {cell['n']} rows in {folder} are of other options or rows; "
                    "train them again, or remove some"
                )
            found.setdefault(cell["n"], []).append(100 * cell["external"]["accuracy"])
        yield folder.parent.name, folder.name, found


def table() -> str:
    """The curves in Markdown: accuracy in %, mean ± std over seeds, by number of rows."""
    every = list(curves())
    lines = []
    for data in sorted({name for name, _, _ in every}):
        own = [(front_end, found) for name, front_end, found in every if name == data]
        sizes = sorted({n for _, found in own for n in found})
        lines += [
            f"| {data}, rows | {' | '.join(f'{n:,}' for n in sizes)} | seeds |",
            "|---" * (len(sizes) + 2) + "|",
        ]
        for front_end, found in own:
            shown = [reproduce.mean(np.array(found[n])) if n in found else "–" for n in sizes]
            seeds = sorted({len(values) for values in found.values()})
            counted = "–".join(map(str, seeds[:: max(len(seeds) - 1, 1)]))
            lines.append(f"| {front_end} | {' | '.join(shown)} | {counted} |")
        lines.append("")
    return "\n".join(lines[:-1])


if __name__ == "__main__":
    sys.exit(main())
