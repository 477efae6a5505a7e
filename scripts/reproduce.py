"""Every figure of the quality table: one file per method, data set and seed; then the table.

    python scripts/reproduce.py --data usps --seeds 10        # trains what results/ lacks
    python scripts/reproduce.py --table                       # rewrites the table in README.md

One autoencoder per seed serves all methods. A run that is stopped goes on where it was: cells that
are there are not trained again. Seeds are 0, 1, 2, …; none is ever left out. On 2 CPU cores a seed
takes about 4 minutes on USPS for all three methods; the seconds of each cell are in its file.
"""

import dataclasses
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import tyro

RESULTS = Path(__file__).parent.parent / "results" / "quality"
README = Path(__file__).parent.parent / "README.md"
METHODS = ("autoencoder", "dcn", "dkm")

# Accuracy in %, as published for this network on train and test part together. Never a figure that
# was only recalled: where the source gives none for a data set, the column stays empty.
PUBLISHED = {
    ("mnist", "autoencoder"): "87.9 (DEC-keras, mean of 10)",
    ("usps", "autoencoder"): "70.9 (DEC-keras, mean of 10)",
    ("fashion_mnist", "autoencoder"): "60.6 (DEC-keras, mean of 10)",
    ("mnist", "dcn"): "83 (paper); 90.7 (BRB, mean of 10, affine)",
    ("usps", "dcn"): "75.5 (BRB, mean of 10, affine)",
    ("fashion_mnist", "dcn"): "54.6 (BRB, mean of 10, affine)",
    ("mnist", "dkm"): "84.6 (TF2 re-run by Rufaim)",
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Train the cells of the quality table, or write it."""

    data: tuple[str, ...] = ("digits", "usps", "mnist", "fashion_mnist")
    """Data sets by name."""

    methods: tuple[Literal["autoencoder", "dcn", "dkm"], ...] = METHODS
    """Methods; dcn and dkm start from the autoencoder of the same seed."""

    seeds: int = 10
    """Seeds 0 to this number less one."""

    augment: Literal["none", "affine"] = "none"
    """Random rotation and shift of images in every phase; marked in the table."""

    table: bool = False
    """Train nothing; rewrite the table in README.md from results/."""


def main(args: list[str] | None = None) -> int:
    """Run the script."""
    options = tyro.cli(Options, args=args, config=(tyro.conf.FlagCreatePairsOff,))
    if options.table:
        rewrite("quality", quality_table())
        return 0
    for name in options.data:
        for seed in range(options.seeds):
            train_seed(name, seed, options)
    return 0


def cell_file(data: str, method: str, augment: str, seed: int) -> Path:
    """The file of one cell."""
    suffix = "" if augment == "none" else f"-{augment}"
    return RESULTS / data / f"{method}{suffix}" / f"seed{seed}.json"


def train_seed(name: str, seed: int, options: Options) -> None:
    """Train the cells of one data set and seed that are not there yet."""
    missing = [
        method
        for method in options.methods
        if not cell_file(name, method, options.augment, seed).exists()
    ]
    if not missing:
        return
    from deepclust_jax import config, data, run

    dataset, labels = data.load(name)
    pretrained = None
    for method in METHODS:
        if method != "autoencoder" and method not in missing:
            continue
        cell = config.Options(
            data=config.Data(data=name, n_clusters=dataset.n_clusters),
            method=config.Method(method=method, augment=options.augment),
            run=config.Run(seeds=1),
        )
        cell = config.resolve(cell)
        start = time.perf_counter()
        trained = run.execute(cell, dataset.x, seeds=[seed], pretrained=pretrained)
        if method == "autoencoder":
            pretrained = trained.state
        if method in missing:
            scores = write_cell(cell, seed, dataset, trained, labels)
            took = time.perf_counter() - start
            print(
                f"{name} {method} seed {seed}: {scores['accuracy']:.4f} ({took:.0f} s)", flush=True
            )


def write_cell(cell, seed, dataset, trained, labels) -> dict[str, float]:
    """Write the JSON and the labels of one cell. -> its scores by labels."""
    import numpy as np

    from deepclust_jax import config, metrics, train
    from deepclust_jax.report import environment, scores

    z, found = train.embed(trained.algorithm, trained.state, dataset.x)
    external = metrics.external_scores(labels, found[0])
    file = cell_file(cell.data.data, cell.method.method, cell.method.augment, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file.with_suffix(".npz"), labels=found[0].astype(np.uint8))
    options = config.flatten(cell)
    report = {
        "seed": seed,
        "options": {k: v for k, v in options.items() if k not in ("out", "seeds")},
        "rows": len(labels),
        "checksum": dataset.checksum,
        "external": external,
        "internal": metrics.internal_scores(z[0], found[0]),
        "seconds": trained.seconds,
        "compile_seconds": trained.compile_seconds,
        "environment": environment.environment(),
    }
    scores.write_report(file, report)
    return external


def cells() -> Iterator[tuple[str, str, list[Path]]]:
    """Data set, method and files of every row of the table."""
    for data in sorted(p.name for p in RESULTS.iterdir()):
        for row in sorted(p.name for p in (RESULTS / data).iterdir()):
            files = sorted((RESULTS / data / row).glob("seed*.json"), key=_seed)
            if files:
                yield data, row, files


def quality_table() -> str:
    """The table in Markdown: mean ± std, the choice without labels, the oracle, published."""
    import numpy as np

    from deepclust_jax.report import scores

    lines = [
        "| data | method | ACC | NMI | ARI | chosen without labels | best by labels (oracle) | "
        "published ACC | seeds | seconds per seed |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for data, row, files in cells():
        reports = [json.loads(file.read_text()) for file in files]
        values = {
            name: 100 * np.array([r["external"][name] for r in reports])
            for name in ("accuracy", "nmi", "ari")
        }
        labels = np.stack([np.load(file.with_suffix(".npz"))["labels"] for file in files])
        # Davies-Bouldin stands in for the loss, which is not comparable between phases.
        objective = np.array([r["internal"]["davies_bouldin"] for r in reports], float)
        chosen, _ = scores.choose(labels.astype(np.int64), objective)
        spread = [
            f"{v.mean():.1f} ± {v.std(ddof=1):.1f}" if len(v) > 1 else f"{v.mean():.1f}"
            for v in values.values()
        ]
        seconds = np.mean([sum(r["seconds"].values()) for r in reports])
        published = PUBLISHED.get((data, row.removesuffix("-affine")), "–")
        lines.append(
            f"| {data} | {row} | {' | '.join(spread)} | {values['accuracy'][chosen]:.1f} | "
            f"{values['accuracy'].max():.1f} | {published} | {len(files)} | {seconds:.0f} |"
        )
    return "\n".join(lines)


def rewrite(name: str, text: str) -> None:
    """Replace what stands between the markers of that name in README.md."""
    start, end = f"<!-- {name}: written by a script -->", f"<!-- end of {name} -->"
    before = README.read_text()
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(before):
        raise SystemExit(f"error: expected the markers {start} … {end} in {README.name}")
    README.write_text(pattern.sub(lambda _: f"{start}\n{text}\n{end}", before))


def _seed(file: Path) -> int:
    return int(file.stem.removeprefix("seed"))


if __name__ == "__main__":
    sys.exit(main())
