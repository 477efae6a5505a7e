"""How good made rows are, and whether they help where rows are few: runs of train_gan.py, and what
front ends learn with and without the rows that they made.

    python scripts/made_rows.py --runs usps usps-few      # trains what results/ lacks
    python scripts/made_rows.py --table                   # rewrites its tables

The results are the reports of these runs, one file each (kept_runs.py).
"""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import kept_runs
import numpy as np
import reproduce
import tyro

RESULTS = reproduce.ROOT / "results" / "made_rows"

Run = Literal[
    "ring_8",
    "grid_25",
    "usps",
    "usps-conv",
    "mnist",
    "fashion_mnist",
    "stacked_mnist",
    "usps-few",
    "fsdd-few",
]
RUNS: dict[str, str] = {
    "ring_8": "train_gan.py --data ring_8 --hidden 128 128 128 --penalty 0.01 "
    "--learning-rate 3e-3 --batch-size 512 --epochs 300",
    "grid_25": "train_gan.py --data grid_25 --hidden 128 128 128 --penalty 0.01 "
    "--learning-rate 3e-3 --batch-size 512 --epochs 300",
    "usps": "train_gan.py --data usps",
    "usps-conv": "train_gan.py --data usps --network conv",
    "mnist": "train_gan.py --data mnist --hidden 512 512 --penalty 3 --epochs 60",
    "fashion_mnist": "train_gan.py --data fashion_mnist --hidden 512 512 --penalty 3 --epochs 60",
    "stacked_mnist": "train_gan.py --data stacked_mnist --hidden 512 512 --penalty 3 --epochs 60",
    "usps-few": "train_gan.py --data usps --limit 1000",
    "fsdd-few": "train_gan.py --data fsdd --limit 1000",
}
# What learns of few rows, and of the same beside rows made by the run of that name.
LEARNERS = {
    "usps-few": ("autoencoder", "contrastive"),
    "fsdd-few": ("autoencoder", "contrastive --augment speech"),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Train the runs of the tables of made rows, or write these."""

    runs: tuple[Run, ...] = get_args(Run)
    """What is trained. few: 1,000 rows, and what learns of them with and without made ones."""

    seeds: int = 5
    """Seeds 0 to this number less one."""

    table: bool = False
    """Train nothing; rewrite the tables in results/README.md."""


def main(args: list[str] | None = None) -> int:
    """Run the script; 0 if all went well, else 2 after one line on standard error."""
    options = tyro.cli(Options, args=args, config=(tyro.conf.FlagCreatePairsOff,))
    return kept_runs.main(options, "made_rows", table, train)


def train(name: str, seeds: int) -> int:
    """Train of a run what results/ lacks: the game, then what learns beside the rows that it made;
    of no fewer seeds than results/ has of one of them. -> exit code of what failed, or 0."""
    cells = [f"{name}-{learner.split()[0]}" for learner in LEARNERS.get(name, ())]
    cells += [name, *(f"{cell}-made" for cell in cells)]
    seeds = kept_runs.no_fewer(map(cell_file, cells), seeds)
    game = f"{RUNS[name]} --seeds {seeds}"
    folder = kept_runs.folder_of(cell_file(name), game)
    learners = {}
    for learner in LEARNERS.get(name, ()):
        own = f"train_deep_kmeans.py {_data(name)} --method {learner} --seeds {seeds}"
        cell = f"{name}-{learner.split()[0]}"
        learners |= {cell: own, f"{cell}-made": f"{own} --made {folder}"}
    due = {cell: own for cell, own in learners.items() if not is_done(cell, own, seeds)}
    uses_game = any(cell.endswith("-made") for cell in due)
    if not is_done(name, game, seeds) or (uses_game and not (folder / "made.npy").exists()):
        beside = {cell: own for cell, own in learners.items() if cell.endswith("-made")}
        for cell in beside:  # what learnt beside other made rows is no longer of these
            cell_file(cell).unlink(missing_ok=True)
        due = {name: game} | due | beside
    for cell, command in due.items():
        if code := kept_runs.run(cell_file(cell), command):
            return code
    return 0


def cell_file(cell: str) -> Path:
    """The file of the report of one run."""
    return RESULTS / f"{cell}.json"


def is_done(cell: str, command: str, seeds: int) -> bool:
    """Whether results/ has the run, of the options of today and of so many seeds or more."""
    return kept_runs.is_done(cell_file(cell), command, seeds)


def _data(name: str) -> str:
    """The options of a run that say which rows: `--data` and `--limit`."""
    words = RUNS[name].split()
    return " ".join(
        f"{word} {words[i + 1]}" for i, word in enumerate(words) if word in ("--data", "--limit")
    )


def table() -> str:
    """Both tables in Markdown, from results/."""
    lines = [
        "| data | classes made | coverage | recall | precision | within 3 deviations | "
        "Fréchet distance, of seed 0 after the first and last epoch | classifier | "
        "ACC of clusters | k-means on rows | seconds a seed | seeds |",
        "|" + "---|" * 12,
        *(_row(name, report) for name, report in reports()),
        "",
        "Measures compare as many made rows as real ones, up to 5,000, by the features of a "
        "classifier that saw labels and is right on that share [%] of rows that it did not see: "
        "where it is poor, so are its features. Those of points are by where they lie; the "
        "distance is of up to "
        "1,000 by the numbers of the rows. A class is made if it has a tenth or more of its share, "
        "of stacked_mnist among 25,600 made rows and by a classifier of single digits. Within 3 "
        "deviations of the centre of a class lie that many made points. Clusters are k-means on "
        "what the discriminator sees. Commands:",
        "",
        *(f"- {name}: `{report['command']}`" for name, report in reports()),
    ]
    learnt = []
    for name, learners in LEARNERS.items():
        for method in (learner.split()[0] for learner in learners):
            pair = [
                kept_runs.read(cell_file(f"{name}-{method}")),
                kept_runs.read(cell_file(f"{name}-{method}-made")),
            ]
            if all(pair) and pair[0]["n_runs"] == pair[1]["n_runs"]:
                own = (kept_runs.percent(report["external"]["accuracy"]) for report in pair)
                data = pair[0]["options"]["data"]
                old = " °" * any(map(kept_runs.is_old, pair))
                seeds = pair[0]["n_runs"]
                learnt.append(f"| {data} | {method} | {' | '.join(own)} | {seeds}{old} |")
    if learnt:
        lines += [
            "",
            "| 1,000 rows of | method | ACC | ACC with made rows beside | seeds |",
            "|---|---|---|---|---|",
            *learnt,
        ]
        if any("°" in line for line in learnt):
            lines += ["", "°: of the code before this one, as in the table of all methods."]
    return "\n".join(lines)


def reports() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and report of every game that results/ has, in the order of RUNS."""
    for name in RUNS:
        if (report := kept_runs.read(cell_file(name))) is not None:
            yield name, report


def _row(name: str, report: Mapping[str, Any]) -> str:
    from deepclust_jax.report import baselines

    found = report["pretext"]
    is_points = "near" in found["made"]
    made = found["made"] if is_points or "judged" not in found else found["judged"]["made"]
    epochs = sorted(found["over_training"], key=int)
    ends = (found["over_training"][epochs[i]]["frechet"] for i in (0, -1))
    frechet = " → ".join("–" if value is None else f"{value:.3g}" for value in ends)
    rows = next(one for one in report["baselines"] if one["name"] == baselines.ROWS)
    stacked = found.get("stacked")
    classes = reproduce.mean(np.array((stacked or made)["classes"]["values"]))
    shown = [
        name,
        f"{classes} of {report['options']['n_clusters']}",
        *(kept_runs.percent(made[measure]) for measure in ("coverage", "recall", "precision")),
        kept_runs.percent(made["near"]) if is_points else "–",
        frechet,
        "–" if made is found["made"] else f"{100 * found['judged']['accuracy']:.1f}",
        kept_runs.percent(report["external"]["accuracy"]),
        kept_runs.percent(rows["external"]["accuracy"]),
        kept_runs.seconds_a_seed(report),
        str(report["n_runs"]),
    ]
    return f"| {' | '.join(shown)} |"


if __name__ == "__main__":
    sys.exit(main())
