"""What networks learn from labels that they make themselves: runs of train_rotation.py and
train_next_token.py, measured on rows held out of training.

    python scripts/pretext_tasks.py --runs rotation --seeds 3   # trains what results/ lacks
    python scripts/pretext_tasks.py --table                     # rewrites its tables

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

RESULTS = reproduce.ROOT / "results" / "pretext_tasks"

Run = Literal["rotation", "next_token-gru", "next_token-transformer"]
RUNS: dict[str, str] = {
    "rotation": "train_rotation.py --data fashion_mnist --held-out 10000",
    "next_token-gru": "train_next_token.py --data ag_news --held-out 760",
    "next_token-transformer": "train_next_token.py --data ag_news --held-out 760 "
    "--network transformer --hidden 128 128",
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Train the runs of the tables of pretext tasks, or write these."""

    runs: tuple[Run, ...] = get_args(Run)
    """What is trained."""

    seeds: int = 5
    """Seeds 0 to this number less one."""

    table: bool = False
    """Train nothing; rewrite the tables in results/README.md."""


def main(args: list[str] | None = None) -> int:
    """Run the script; 0 if all went well, else 2 after one line on standard error."""
    options = tyro.cli(Options, args=args, config=(tyro.conf.FlagCreatePairsOff,))
    return kept_runs.main(options, "pretext_tasks", table, train)


def train(name: str, seeds: int) -> int:
    """Train a run where results/ lacks it. -> exit code of its script, or 0."""
    seeds = kept_runs.no_fewer([cell_file(name)], seeds)
    command = f"{RUNS[name]} --seeds {seeds}"
    if kept_runs.is_done(cell_file(name), command, seeds):
        return 0
    return kept_runs.run(cell_file(name), command)


def cell_file(name: str) -> Path:
    """The file of the report of one run."""
    return RESULTS / f"{name}.json"


def reports(method: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and report of the runs of a method that results/ has, in the order of RUNS."""
    for name in RUNS:
        report = kept_runs.read(cell_file(name))
        if report is not None and report["options"]["method"] == method:
            yield name, report


def table() -> str:
    """The tables in Markdown, from results/."""
    lines, commands = [], []
    for method, of_method in (("rotation", of_rotation), ("next_token", of_next_token)):
        found = list(reports(method))
        if found:
            lines += [*of_method([report for _, report in found]), ""]
            commands += [f"- {name}: `{report['command']}`" for name, report in found]
    if any("°" in line for line in lines):
        lines += ["°: of the code before this one, as in the table of all methods.", ""]
    return "\n".join([*lines, "Commands:", "", *commands]) if commands else "None is trained yet."


def of_rotation(found: list[dict[str, Any]]) -> list[str]:
    """Rows of the table of turned images."""
    blocks = max(len(report["pretext"]["blocks"]) for report in found)
    titles = [f"ACC of block {b + 1}" for b in range(blocks)]
    head = ["data", "turns found, held out", *titles, "of the block chosen", "k-means on rows"]
    lines = _head([*head, "seconds a seed", "seeds"])
    for report in found:
        pretext = report["pretext"]
        shown = [kept_runs.percent(one["external"]["accuracy"]) for one in pretext["blocks"]]
        shown += ["–"] * (blocks - len(shown))
        lines.append(
            _line(
                report,
                kept_runs.percent(pretext["accuracy"]),
                *shown,
                _clusters(report),
                _k(report),
            )
        )
    return lines


def of_next_token(found: list[dict[str, Any]]) -> list[str]:
    """Rows of the table of language models."""
    head = ["data", "network", "perplexity, held out", "by frequency", "ACC of clusters"]
    lines = _head([*head, "k-means on TF-IDF", "seconds a seed", "seeds"])
    for report in found:
        options, pretext = report["options"], report["pretext"]
        network = f"{options['network']} {' '.join(map(str, options['hidden']))}"
        perplexity = reproduce.mean(np.array(pretext["perplexity"]["values"]))
        frequency = f"{pretext['by_frequency']:,.0f}"
        lines.append(_line(report, network, perplexity, frequency, _clusters(report), _k(report)))
    return lines


def _head(titles: list[str]) -> list[str]:
    return [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]


def _line(report: Mapping[str, Any], *shown: str) -> str:
    seconds = kept_runs.seconds_a_seed(report)
    seeds = f"{report['n_runs']}{' °' if kept_runs.is_old(report) else ''}"
    every = (report["options"]["data"], *shown, seconds, seeds)
    return f"| {' | '.join(every)} |"


def _clusters(report: Mapping[str, Any]) -> str:
    return kept_runs.percent(report["external"]["accuracy"])


def _k(report: Mapping[str, Any]) -> str:
    """Accuracy of k-means on the rows as they come, of texts on their TF-IDF features."""
    rows = next(one for one in report["baselines"] if one["name"].startswith("k-means on"))
    return kept_runs.percent(rows["external"]["accuracy"])


if __name__ == "__main__":
    sys.exit(main())
