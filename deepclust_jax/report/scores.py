"""Scores of a population of runs, the run kept, and report.json."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deepclust_jax import metrics
from deepclust_jax.clustering import consensus

ORACLE_SCORE = "accuracy"  # what "best by labels" means


def score_population(
    labels_all: np.ndarray,
    z_all: Iterable[np.ndarray],
    objectives: np.ndarray,
    y: np.ndarray | None = None,
    *,
    n_clusters: int | None = None,
    chosen_by: str = "final loss",
    aside: np.ndarray | None = None,
) -> dict[str, Any]:
    """The scores of S runs, the run chosen without labels and, if `y` is given, the oracle.

    Args:
      labels_all: int [S, n], the clusters of each run.
      z_all: one embedding [n, d] per run; an iterator keeps one of them in memory at a time.
      objectives: [S], final training loss of each run, or what else is better the lower it is.
      y: true classes [n]; used to score only, after the run kept has been chosen.
      n_clusters: how many sizes are listed; None: up to the last cluster that has rows.
      chosen_by: what the objectives are, in words.
      aside: [S] bool, runs that are lost, of which none is kept where there is another one.

    Returns a dict with `n_runs`, `internal`, `external` ({} without y) and `objective`, where a
    score is {"values": [S], "mean", "std"} (std with ddof=1, nan for one run; a run with a nan
    score makes mean and std nan); `agreement` (mean pairwise ARI between runs, and per run),
    `chosen` {"run", "reason"}, `oracle` (a run or None) and `cluster_sizes` of the run chosen.
    """
    labels_all, objectives = _check(labels_all, objectives)
    internal = _internal(labels_all, z_all)
    chosen, reason = choose(labels_all, objectives, chosen_by, aside)
    agreement, per_run = np.nan, [np.nan]
    if len(labels_all) > 1:
        agreement, per_run = metrics.stability(labels_all)
    kept = labels_all[chosen]
    k = n_clusters or int(kept.max(initial=-1)) + 1
    scores = {
        "n_runs": len(labels_all),
        "objective": summary(objectives) | {"name": chosen_by},
        "internal": _columns(internal),
        "external": {},
        "agreement": {"mean": float(agreement), "values": np.asarray(per_run, float).tolist()},
        "chosen": {"run": chosen, "reason": reason},
        "cluster_sizes": np.bincount(kept[kept >= 0], minlength=k).tolist(),
    }
    if y is not None:
        scores["external"] = external(labels_all, y)
    return scores | {"oracle": oracle(scores)}


def external(labels_all: np.ndarray, y: np.ndarray) -> dict[str, dict[str, Any]]:
    """Scores of S runs against true classes, as in `score_population`. [S, n], [n]."""
    return _columns([_floats(metrics.external_scores(y, labels)) for labels in labels_all])


def choose(
    labels_all: np.ndarray,
    objectives: np.ndarray,
    chosen_by: str = "final loss",
    aside: np.ndarray | None = None,
) -> tuple[int, str]:
    """The run to keep, chosen without labels, and a sentence that says why. [S, n], [S] -> run.

    The medoid: highest mean ARI to the other runs, ties by the lowest objective; with fewer than
    three runs the lowest objective. Runs whose objective is not finite, that hold a single cluster
    or are told to be lost, `aside` [S], are set aside first, as collapsed runs agree with each
    other perfectly.
    """
    labels_all, objectives = _check(labels_all, objectives)
    sound = _sound(labels_all, objectives, aside)
    runs = np.flatnonzero(sound) if sound.any() else np.arange(len(labels_all))
    lost = len(labels_all) - len(runs)
    note = f" ({lost} lost set aside)" if lost else ""
    loss = np.where(np.isfinite(objectives), objectives, np.inf)
    if not sound.any():
        best = int(np.argmin(loss))
        if len(runs) == 1:
            return best, "The only run is lost."
        return best, f"All {len(runs)} runs are lost; run {best} is one of them."
    if len(runs) < 3:
        best = int(runs[np.argmin(loss[runs])])
        if len(runs) == 1:
            return best, f"Run {best} is the only run{note}."
        if loss[runs[0]] == loss[runs[1]]:
            return best, f"Run {best} is the first of 2 runs of the same {chosen_by}{note}."
        return best, f"Run {best} has the lowest {chosen_by} of {len(runs)} runs{note}."
    agreement = np.asarray(metrics.stability(labels_all[runs])[1], np.float64)
    tied = runs[agreement >= agreement.max() - 1e-9]
    best = int(tied[np.argmin(loss[tied])])
    ties = f", and the lowest {chosen_by} of the {len(tied)} that tie" if len(tied) > 1 else ""
    return best, (
        f"Run {best} agrees best with the others (mean ARI {agreement.max():.3f}) "
        f"among {len(runs)} runs{note}{ties}."
    )


def voted(
    labels_all: np.ndarray,
    objectives: np.ndarray,
    chosen: int,
    aside: np.ndarray | None = None,
) -> np.ndarray | None:
    """What most of the runs say of each row, by the numbers of the one chosen; those that `choose`
    sets aside have no vote. [S, n], [S] -> int [n], or None where fewer than three have one.
    """
    labels_all, objectives = _check(labels_all, objectives)
    runs = np.flatnonzero(_sound(labels_all, objectives, aside))
    if len(runs) < 3:
        return None
    return consensus.vote(labels_all[runs], int(np.flatnonzero(runs == chosen)[0]))


def counted(labels_all: np.ndarray) -> dict[str, Any]:
    """How many clusters each of S runs found, as a score of `score_population`. [S, n]."""
    return summary(np.array([len(np.unique(labels)) for labels in labels_all]))


def oracle(scores: Mapping[str, Any]) -> int | None:
    """The run with the highest accuracy by labels, or None without labels; for printing only."""
    if ORACLE_SCORE not in scores["external"]:
        return None
    values = np.asarray(scores["external"][ORACLE_SCORE]["values"], float)
    return int(np.argmax(np.where(np.isnan(values), -np.inf, values)))


def write_report(path: str | os.PathLike, report: Mapping[str, Any]) -> None:
    """Write a report as JSON: keys sorted, nan and infinities as null, atomically.

    Raises TypeError for a value that is no number, text, list, dict or array.
    """
    path = Path(path)
    text = json.dumps(_plain(report), indent=2, sort_keys=True, allow_nan=False)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _sound(labels_all: np.ndarray, objectives: np.ndarray, aside: np.ndarray | None) -> np.ndarray:
    """Which runs are not lost: by their objective, a single cluster, or as told. -> [S] bool."""
    several = np.array([len(np.unique(labels)) > 1 for labels in labels_all])
    return np.isfinite(objectives) & several & ~np.asarray(False if aside is None else aside)


def _check(labels_all: np.ndarray, objectives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels_all, objectives = np.asarray(labels_all), np.asarray(objectives, np.float64)
    if labels_all.ndim != 2 or 0 in labels_all.shape or objectives.shape != labels_all.shape[:1]:
        raise ValueError(
            "expected labels_all [S, n] and objectives [S], "
            f"found {labels_all.shape} and {objectives.shape}"
        )
    return labels_all, objectives


def _internal(labels_all: np.ndarray, z_all: Iterable[np.ndarray]) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    for n_seen, z in enumerate(z_all):
        if n_seen == len(labels_all):
            raise ValueError(f"expected {n_seen} embeddings, one per run, found more")
        rows.append(_floats(metrics.internal_scores(z, labels_all[n_seen])))
    if len(rows) != len(labels_all):
        raise ValueError(f"expected {len(labels_all)} embeddings, one per run, found {len(rows)}")
    return rows


def _floats(scores: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in scores.items()}


def _columns(rows: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    return {name: summary(np.array([row[name] for row in rows])) for name in rows[0]}


def summary(values: np.ndarray) -> dict[str, Any]:
    """One score of S runs as reports hold it; the deviation of one run is NaN. [S] floats."""
    std = np.std(values, ddof=1) if len(values) > 1 and np.isfinite(values).all() else np.nan
    return {"values": values.tolist(), "mean": float(np.mean(values)), "std": float(std)}


def _plain(x: Any) -> Any:
    if isinstance(x, Mapping):
        return {str(key): _plain(value) for key, value in x.items()}
    if isinstance(x, list | tuple):
        return [_plain(value) for value in x]
    if x is None or isinstance(x, str | bool | int):
        return x
    if isinstance(x, float):
        return x if math.isfinite(x) else None
    if not hasattr(x, "tolist"):
        raise TypeError(f"expected numbers, text, lists, dicts or arrays, found {type(x).__name__}")
    return _plain(np.asarray(x).tolist())  # NumPy and JAX arrays and scalars
