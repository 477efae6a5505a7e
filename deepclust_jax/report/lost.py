"""The runs of a population that are lost: how, and from which epoch on their log shows it."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

REASONS = ("diverged", "collapsed", "narrow")  # of several the first counts


class Lost(NamedTuple):
    """Runs that are lost in one way."""

    reason: str  # one of REASONS
    runs: np.ndarray  # [S] bool
    shown: np.ndarray | None = None  # [epochs, S] bool: where their log shows it


def of_any(labels_all: np.ndarray, losses: np.ndarray) -> list[Lost]:
    """By any method: one cluster for all rows [S, n], or a loss [epochs, S] that is not finite."""
    one = np.array([len(np.unique(labels)) == 1 for labels in labels_all])
    wrong = ~np.isfinite(losses)
    return [Lost("diverged", wrong[-1:].any(axis=0), wrong), Lost("collapsed", one)]


def of_classes(used: np.ndarray, logged: np.ndarray) -> list[Lost]:
    """By deep_cluster: less than a tenth of the classes in use. [S], [epochs, S]."""
    return [Lost("collapsed", used < 0.1, logged < 0.1)]


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
    beyond = ~(made["spread"] < 10.0)  # NaN is not < 10 either
    return [
        Lost("diverged", missed | beyond, (taken < 1.0) | (spread >= 10.0)),
        Lost("collapsed", made["spread"] < 0.1, spread < 0.1),
        Lost("narrow", made["occupied"] <= min(n_clusters, played["compared"]) / 2),
    ]


def listed(found: Iterable[Lost]) -> list[dict[str, Any]]:
    """What a report says of lost runs, by their number: `run`, `reason`, and `epoch`, the one,
    counted from 1, from which on to the last their log shows it, None where it does not."""
    by_run: dict[int, dict[str, Any]] = {}
    for reason, runs, shown in sorted(found, key=lambda one: REASONS.index(one.reason)):
        for s in np.flatnonzero(runs).tolist():
            own = by_run.setdefault(s, {"run": s, "reason": reason, "epoch": None})
            if own["reason"] == reason and own["epoch"] is None and shown is not None:
                own["epoch"] = _begin(shown[:, s])
    return [by_run[s] for s in sorted(by_run)]


def _begin(shown: np.ndarray) -> int | None:
    """The first of the epochs at the end that show it, from 1."""
    clear = np.flatnonzero(~shown)
    begin = clear[-1] + 2 if len(clear) else 1
    return int(begin) if begin <= len(shown) else None
