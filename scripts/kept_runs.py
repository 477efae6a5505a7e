"""Runs of the training scripts whose reports are kept in results/, for made_rows.py and
pretext_tasks.py.

A run that is stopped goes on where it was (runs/), one whose options have changed since is trained
again, and a finished one is read. A report is kept in a file of its own, under the name of the run.
"""

import json
import shlex
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import reproduce

# The method of a script that has only one, or another than train_deep_kmeans.py by default.
_METHODS = {
    "train_gan.py": "gan", "train_rotation.py": "rotation", "train_next_token.py": "next_token",
}  # fmt: skip


def main(
    options: Any, name: str, table: Callable[[], str], train: Callable[[str, int], int]
) -> int:
    """What a script of kept runs does by its options `runs`, `seeds` and `table`: write the table
    of that name, or train every run. -> exit code."""
    if options.table:
        reproduce.rewrite(name, table())
        print(f"Tables: {reproduce.PAGE}")
        return 0
    if not options.runs:
        print("error: expected one of --runs or more, found none", file=sys.stderr)
        return 2
    if options.seeds < 1:
        print(f"error: expected --seeds >= 1, found {options.seeds}", file=sys.stderr)
        return 2
    for run_name in options.runs:
        if code := train(run_name, options.seeds):
            return code
    return 0


def percent(score: Mapping[str, Any]) -> str:
    """A share of a report in %, mean ± std over its runs."""
    return reproduce.mean(100 * np.array(score["values"]))


def seconds_a_seed(report: Mapping[str, Any]) -> str:
    """What a run of a report took to train."""
    return f"{sum(report['seconds'].values()) / report['n_runs']:,.0f}"


def is_done(file: Path, command: str, seeds: int) -> bool:
    """Whether the report is there, of the options of today and of so many seeds or more."""
    report = read(file)
    if report is None or report["n_runs"] < seeds or is_old(report):
        return False
    data, held_out = report["data"], report["options"]["held_out"]
    trained_on = data["shape"][0] - held_out + data.get("made", 0)
    wanted = _options(command, trained_on)
    return all(report["options"].get(name) == value for name, value in wanted.items())


def is_old(report: Mapping[str, Any]) -> bool:
    """Whether the code of the method finds something else now, by the same options."""
    return report.get("version", 1) < reproduce.version_of(report["options"]["method"])


def no_fewer(files: Iterable[Path], seeds: int) -> int:
    """So many seeds, or as many as the reports have that are there."""
    return max([seeds, *(report["n_runs"] for report in map(read, files) if report is not None)])


def read(file: Path) -> dict[str, Any] | None:
    """The report of a run, or None where it is not there."""
    return json.loads(file.read_text()) if file.exists() else None


def folder_of(file: Path, command: str) -> Path:
    """The directory of a run, another for another command or other defaults."""
    options = _options(command)
    made_by = json.dumps([command, options, reproduce.version_of(options["method"])])
    name = f"{file.stem}-{zlib.crc32(made_by.encode()):08x}"
    return reproduce.ROOT / "runs" / file.parent.name / name


def run(file: Path, command: str) -> int:
    """Train a run, or go on with it, and keep its report. -> exit code of its script."""
    import train_deep_kmeans

    from deepclust_jax.report import scores

    folder = folder_of(file, command)
    if not (folder / "report.json").exists():
        args = ["--resume"] if (folder / "config.json").exists() else _args(command)
        print(f"{_told(command)} --out {_told(str(folder))}", flush=True)
        if code := train_deep_kmeans.main([*args, "--out", str(folder)]):
            return code
    report = json.loads(_told((folder / "report.json").read_text()))
    file.parent.mkdir(parents=True, exist_ok=True)
    version = reproduce.version_of(report["options"]["method"])
    scores.write_report(file, {"command": _told(command), "version": version, **report})
    for left in ("checkpoint", "tensorboard"):  # large; the rows that were made stay
        shutil.rmtree(folder / left, ignore_errors=True)
    return 0


def _args(command: str) -> list[str]:
    """Of a command, for train_deep_kmeans.py."""
    script, *args = shlex.split(command)
    return ["--method", _METHODS[script], *args] if script in _METHODS else args


def _options(command: str, rows: int | None = None) -> dict[str, Any]:
    """What a command comes to, as the report of its run has it, but for what the data decide, such
    as the number of clusters."""
    from deepclust_jax import config
    from deepclust_jax import run as runs

    found = config.flatten(config.resolve(config.parse(_args(command)), rows))
    left = (*runs.FREE, "seeds", "made")
    of_data = [name for name in ("n_clusters", "parts") if found[name] is None]
    kept = {k: v for k, v in found.items() if k not in (*left, *of_data)}
    return json.loads(_told(json.dumps(kept, default=str)))


def _told(text: str) -> str:
    """With paths as of this repository, wherever it lies."""
    return text.replace(f"{reproduce.ROOT}/", "")
