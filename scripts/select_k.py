"""How many clusters are in the codes of a run, or in any data? Scores for every number, and a plot.

python scripts/select_k.py digits
python scripts/select_k.py runs/demo --k-max 20 --out choice_of_k.png
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from deepclust_jax import command


@dataclasses.dataclass(frozen=True)
class Options:
    """Scores for every number of clusters."""

    source: Annotated[str, tyro.conf.Positional]
    """Run directory of train_deep_kmeans.py, or name or path of data."""

    labels: str | None = None
    """Labels of data, which then are no feature: a file, or a column of a table."""

    kind: Literal["auto", "tabular", "image", "text", "audio"] = "auto"
    """What the data are."""

    scaling: Literal["auto", "range", "standard", "codes", "counts", "none"] = "auto"
    """Scaling of data; auto: features of tables have mean 0 and variance 1. The codes of a run are
    taken as they are."""

    k_max: int = 15
    """Largest number of clusters."""

    k_min: int = 1
    """Smallest number of clusters."""

    max_rows: int = 10_000
    """Of more rows a random part is used."""

    seed: int = 0
    """Seed of all that is drawn."""

    draws: int = 1
    """Draw everything so often anew; with more than one, print how often each score spoke for each
    number. The scores printed and drawn are those of the first."""

    out: Path = Path("choice_of_k.png")
    """File for the plot."""

    overwrite: bool = False
    """Replace the file if it is there."""


def main(args: list[str] | None = None) -> int:
    """Run the script; 0 if all went well, else 2 after one line on standard error."""
    options = tyro.cli(Options, args=args, config=(tyro.conf.FlagCreatePairsOff,))
    return command.guard(lambda: select(options), expected=(*command.EXPECTED, ValueError))


def select(options: Options) -> int:
    """Load, score, print, draw. -> exit code."""
    import jax

    from deepclust_jax.clustering import select_k
    from deepclust_jax.report import figures, run_directory

    command.check_seed(options.seed)
    if options.draws < 1:
        raise ValueError(f"expected --draws >= 1, found {options.draws}")
    command.check_output(options.out, ".png", "--out", overwrite=options.overwrite)
    rows, _, _ = run_directory.rows_of(
        options.source, options.labels, kind=options.kind, scaling=options.scaling
    )
    key = jax.random.key(options.seed)
    keys = [key, *(jax.random.fold_in(key, i) for i in range(1, options.draws))]
    found = [
        select_k.sweep(key, rows, options.k_max, k_min=options.k_min, max_rows=options.max_rows)
        for key in keys
    ]
    evidence = found[0]
    suggested = select_k.suggestions(evidence)
    names = [name for name in evidence._fields if name not in ("k", "gap_error", "centroids")]
    print("  ".join(["  k", *(f"{name:>17}" for name in names)]))
    for i, k in enumerate(evidence.k):
        cells = [getattr(evidence, name)[i] for name in names]
        marks = ["*" if suggested.get(name) == k else " " for name in names]
        line = (f"{c:>16.4g}{mark}" for c, mark in zip(cells, marks, strict=True))
        print("  ".join([f"{k:>3}", *line]))
    print("* what each score speaks for; they need not agree, and some have no best one here: gap")
    print("  for the first within an error of the next, stability for the last of the most stable,")
    print("  davies_bouldin and bic for the lowest, the others for the highest; inertia for none.")
    if edge := [n for n, k in suggested.items() if k == evidence.k[-1]]:
        print(
            f"At the edge of the range: {', '.join(edge)}; raise --k-max to see whether it stays."
        )
    if options.draws > 1:
        shares = select_k.distribution(found)
        print(f"Share of {options.draws} draws in which a score spoke for a number, in %:")
        print("  ".join(["  k", *(f"{name:>17}" for name in shares)]))
        for i, k in enumerate(evidence.k):
            line = (f"{100 * share[i]:>16.0f} " for share in shares.values())
            print("  ".join([f"{k:>3}", *line]))
    figures.choice_of_k(options.out, evidence, suggested)
    print(f"Plot: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(command.to_reader(main))
