"""The runs of a population that are lost: how, and from which epoch on their log shows it."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

# Of several the first counts.
REASONS = ("diverged", "collapsed", "one cluster", "few classes", "narrow")


class Lost(NamedTuple):
    """Runs that are lost in one way."""

    reason: str  # one of REASONS
    runs: np.ndarray  # [S] bool
    shown: np.ndarray | None = None  # [epochs, S] bool: where the log of the phase shows it
    phase: str = "train"


def of_any(
    z_all: np.ndarray,
    labels_all: np.ndarray,
    losses: Mapping[str, np.ndarray],
    *,
    may_be_one: bool = False,
) -> list[Lost]:
    """By any method: codes [S, n, d] or a last loss that are not finite; one cluster for all rows
    [S, n], unless there may be.

    `losses` are those of the phases, in their order, [epochs, S] each.
    """
    phases = {phase: ~np.isfinite(own) for phase, own in losses.items() if len(own)}
    diverged = ~np.isfinite(z_all).all(axis=(1, 2))  # by its last step, after its last loss
    if phases:
        diverged |= list(phases.values())[-1][-1]
    found = [Lost("diverged", diverged & own[-1], own, phase) for phase, own in phases.items()]
    found.append(Lost("diverged", diverged))
    if not may_be_one:
        one = np.array([len(np.unique(labels)) == 1 for labels in labels_all])
        found.append(Lost("one cluster", one))
    return found


def of_classes(used: np.ndarray, logged: np.ndarray, n_classes: int, n_clusters: int) -> list[Lost]:
    """By deep_cluster: fewer classes in use than half of the clusters. Shares [S], [epochs, S]."""
    least = 0.5 * n_clusters / n_classes
    return [Lost("few classes", used < least, logged < least)]


def of_game(
    played: Mapping[str, Any],
    n_clusters: int,
    missed: np.ndarray,
    taken: np.ndarray,
    spread: np.ndarray,
) -> list[Lost]:
    """By a game, of the report of `pretext.of_game`: made rows with ten times the deviation of real
    ones or more, or not finite; with less than a tenth of it; in half of the clusters of the real
    rows or fewer.

    Args:
        missed: [S] bool, the runs that ended with steps not taken: `game.diverged`.
        taken, spread: [epochs, S], the metrics of that name.
    """
    made = {name: np.asarray(played["made"][name]["values"]) for name in ("spread", "occupied")}
    return [
        Lost("diverged", missed, taken < 0.5),
        Lost("diverged", ~(made["spread"] < 10.0), ~(spread < 10.0)),  # NaN is not < 10 either
        Lost("collapsed", made["spread"] < 0.1, spread < 0.1),
        Lost("narrow", made["occupied"] <= min(n_clusters, played["compared"]) / 2),
    ]


def listed(found: Iterable[Lost]) -> list[dict[str, Any]]:
    """What a report says of lost runs, by their number: `run`; `reason`; `phase` and `epoch`, the
    one, counted from 1, from which on to the last their log shows it, or None."""
    by_run: dict[int, dict[str, Any]] = {}
    for reason, runs, shown, phase in sorted(found, key=lambda one: REASONS.index(one.reason)):
        for s in np.flatnonzero(runs).tolist():
            own = by_run.setdefault(s, {"run": s, "reason": reason, "phase": None, "epoch": None})
            epoch = None if shown is None else _begin(shown[:, s])
            if own["reason"] == reason and own["epoch"] is None and epoch is not None:
                own |= {"phase": phase, "epoch": epoch}
    return [by_run[s] for s in sorted(by_run)]


def aside(gone: Iterable[Mapping[str, Any]], n_runs: int) -> np.ndarray:
    """Which runs are not kept and have no vote, of what `listed` says: those that are lost, but
    narrow ones only where there is another run. -> [S] bool."""
    lost = np.zeros(n_runs, bool)
    lost[[one["run"] for one in gone]] = True
    if lost.all():
        lost[[one["run"] for one in gone if one["reason"] == "narrow"]] = False
    return lost


def _begin(shown: np.ndarray) -> int | None:
    """The first of the epochs at the end that show it, from 1."""
    clear = np.flatnonzero(~shown)
    begin = clear[-1] + 2 if len(clear) else 1
    return int(begin) if begin <= len(shown) else None
