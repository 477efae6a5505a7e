"""Which runs are lost, how, and since when."""

import json

import numpy as np
from test_scripts import TRAIN, done

from deepclust_jax.algorithms import deep_cluster
from deepclust_jax.report import lost, tables

LABELS = np.array([[0, 1, 1], [0, 0, 0], [1, 0, 1]])


def of_game(spread, occupied, missed=(), taken=None, logged=None, n_clusters=10):
    """Reasons and epochs of runs of a game with these measures, of 4 epochs."""
    n = len(spread)
    played = {"made": {"spread": {"values": spread}, "occupied": {"values": occupied}}}
    gone = lost.of_game(
        played | {"compared": 100},
        n_clusters,
        np.isin(np.arange(n), missed),
        np.ones((4, n)) if taken is None else np.array(taken),
        np.ones((4, n)) if logged is None else np.array(logged),
    )
    return {one["run"]: (one["reason"], one["epoch"]) for one in lost.listed(gone)}


def test_a_loss_that_is_not_finite_is_told_from_its_epoch_on():
    losses = np.array([[1.0, 1.0, np.inf], [np.nan, 1.0, 1.0], [np.inf, 1.0, 1.0]])
    gone = lost.listed(lost.of_any(np.array([LABELS[0], LABELS[2], LABELS[2]]), losses))
    assert gone == [{"run": 0, "reason": "diverged", "epoch": 2}]
    gone = lost.listed(lost.of_any(LABELS, losses[:0]))  # nothing was trained
    assert gone == [{"run": 1, "reason": "collapsed", "epoch": None}]


def test_worked_measures_of_games():
    """Half of the clusters is narrow, one more is not; of two reasons the graver one counts."""
    spread = [1.0, 1.0, 0.09, 10.0, np.nan, 0.11, 1.0, 0.0]
    occupied = [6.0, 5.0, 1.0, 10.0, 0.0, 9.0, 10.0, 1.0]
    assert of_game(spread, occupied, missed=[6, 7]) == {
        1: ("narrow", None), 2: ("collapsed", None), 3: ("diverged", None), 4: ("diverged", None),
        6: ("diverged", None), 7: ("diverged", None),
    }  # fmt: skip
    assert of_game([1.0], [2.0], n_clusters=3) == {}


def test_the_epoch_is_where_the_last_of_it_began():
    taken = [[1, 1, 1], [0.5, 1, 1], [1, 0.9, 1], [0.2, 0, 1]]
    spread = [[1, 1, 0.05], [1, 1, 0.5], [1, 1, 0.05], [1, 1, 0.01]]
    found = of_game([1.0, 1.0, 0.01], [9.0] * 3, missed=[0, 1], taken=taken, logged=spread)
    assert found == {0: ("diverged", 4), 1: ("diverged", 3), 2: ("collapsed", 3)}


def test_lost_runs_are_named_with_what_to_do():
    found = [
        {"run": 0, "reason": "diverged", "epoch": 3},
        {"run": 2, "reason": "narrow", "epoch": None},
        {"run": 4, "reason": "diverged", "epoch": None},
    ]
    diverged, narrow = tables._lost(found)
    assert diverged.endswith("lower --learning-rate: runs 0 (from epoch 3 on), 4")
    assert narrow.startswith("narrow, ") and narrow.endswith("raise --penalty: runs 2")
    assert set(tables.LOST) == set(lost.REASONS)


def test_few_classes_in_use_are_a_collapse_that_is_set_aside(tmp_path, monkeypatch):
    """Trap: collapsed runs agree with each other perfectly."""
    monkeypatch.setattr(
        deep_cluster, "used", lambda sizes: np.float32([0.05, 0.9][: len(sizes)])
        if sizes.ndim == 2 else sizes[0] / sizes[0]
    )  # fmt: skip
    args = ["--method", "deep_cluster", "--limit", "60", "--n-clusters", "3", "--hidden", "8",
            "--embed-dim", "4", "--epochs", "1", "--seeds", "2"]  # fmt: skip
    printed = done(TRAIN, *args, "--out", tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["lost"] == [{"run": 0, "reason": "collapsed", "epoch": None}]
    assert report["chosen"]["run"] == 1 and report["objective"]["values"][0] is None
    assert "one cluster has most rows: runs 0" in printed
