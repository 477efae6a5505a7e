"""Which runs are lost, how, and since when."""

import json

import numpy as np
import pytest
from test_scripts import TRAIN, done

from deepclust_jax.algorithms import deep_cluster
from deepclust_jax.report import logs, lost, tables

LABELS = np.array([[0, 1, 1], [0, 0, 0], [1, 0, 1]])
Z = np.zeros((3, 3, 2))


def told(gone):
    return {one["run"]: (one["reason"], one["phase"], one["epoch"]) for one in lost.listed(gone)}


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
    return {run: (reason, epoch) for run, (reason, _, epoch) in told(gone).items()}


def test_a_loss_that_is_not_finite_is_told_from_its_epoch_on():
    two = np.array([LABELS[0], LABELS[2], LABELS[2]])
    losses = np.array([[1.0, 1.0, np.inf], [np.nan, 1.0, 1.0], [np.inf, 1.0, 1.0]])
    assert told(lost.of_any(Z, two, {"train": losses})) == {0: ("diverged", "train", 2)}
    # It began in the phase before; one that came back from there is not lost.
    phases = {"pretrain": np.array([[1.0, np.inf, 1.0], [np.inf, np.inf, 1.0]]),
              "train": np.array([[np.nan, 2.0, 1.0]])}  # fmt: skip
    assert told(lost.of_any(Z, two, phases)) == {0: ("diverged", "pretrain", 2)}


def test_one_cluster_is_a_collapse_unless_there_may_be_one():
    assert told(lost.of_any(Z, LABELS, {})) == {1: ("one cluster", None, None)}
    assert told(lost.of_any(Z, LABELS, {}, may_be_one=True)) == {}


def test_codes_that_are_not_finite_have_diverged():
    """Trap: the last loss is from before the last step, and all rows of such codes are one
    cluster, which reads as a collapse."""
    z = Z.copy()
    z[1, 0, 0] = np.nan
    gone = lost.of_any(z, LABELS, {"train": np.ones((2, 3))})
    assert told(gone) == {1: ("diverged", None, None)}


def test_few_classes_are_fewer_than_half_of_the_clusters():
    """Of 40 classes and 4 clusters: a tenth in use is a class for each cluster."""
    used, logged = np.array([0.1, 0.049, 0.051]), np.array([[0.5] * 3, [0.1, 0.04, 0.1]])
    assert told(lost.of_classes(used, logged, 40, 4)) == {1: ("few classes", "train", 2)}


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
    """A step that is missed now and then is no end."""
    taken = [[1, 0.9, 1, 0.9], [0.4, 0.9, 1, 0.9], [1, 0.3, 1, 0.9], [0.2, 0, 1, 0.9]]
    spread = [[1, 1, 0.05, 1], [1, 1, 0.5, 1], [1, 1, 0.05, 20], [1, 1, 0.01, np.nan]]
    found = of_game([1, 1, 0.01, np.nan], [9.0] * 4, missed=[0, 1], taken=taken, logged=spread)
    wanted = {0: ("diverged", 4), 1: ("diverged", 3), 2: ("collapsed", 3), 3: ("diverged", 3)}
    assert found == wanted


def test_narrow_runs_are_kept_where_there_is_no_other():
    def aside(*reasons):
        gone = [{"run": s, "reason": reason} for s, reason in enumerate(reasons) if reason]
        return lost.aside(gone, len(reasons)).tolist()

    assert aside("narrow", None, "diverged") == [True, False, True]
    assert aside("narrow", "collapsed", "diverged") == [False, True, True]
    assert aside("collapsed", "diverged") == [True, True]
    assert aside(None, None) == [False, False]


def test_lost_runs_are_named_with_what_to_do():
    found = [
        {"run": 0, "reason": "diverged", "phase": "pretrain", "epoch": 3},
        {"run": 2, "reason": "narrow", "phase": None, "epoch": None},
        {"run": 4, "reason": "diverged", "phase": None, "epoch": None},
    ]
    diverged, narrow = tables._lost(found)
    assert diverged.endswith("that of the pretraining: runs 0 (from epoch 3 of pretrain on), 4")
    assert narrow.startswith("narrow, ") and narrow.endswith("raise --penalty: runs 2")
    assert set(tables.LOST) == set(lost.REASONS)


SMALL = ["--limit", "200", "--n-clusters", "3", "--hidden", "16", "--embed-dim", "4"]


@pytest.mark.parametrize("broken", ["loss", "codes"])
def test_a_run_keeps_a_seed_that_did_not_diverge(tmp_path, monkeypatch, broken):
    """With what the log says of the others."""
    read, of_any = logs.read_metrics, lost.of_any

    def broken_metrics(folder):
        found = read(folder)
        found["train"]["loss"][1:, :2] = np.inf
        return found

    def broken_codes(z_all, *args, **kwargs):
        z_all = z_all.copy()
        z_all[:2] = np.nan
        return of_any(z_all, *args, **kwargs)

    if broken == "loss":
        monkeypatch.setattr(logs, "read_metrics", broken_metrics)
    else:
        monkeypatch.setattr(lost, "of_any", broken_codes)
    args = ["--method", "autoencoder", "--epochs", "2", "--seeds", "3"]
    printed = done(TRAIN, *SMALL, *args, "--out", tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    since = {"phase": "train", "epoch": 2} if broken == "loss" else {"phase": None, "epoch": None}
    assert report["lost"] == [{"run": s, "reason": "diverged", **since} for s in (0, 1)]
    assert report["chosen"] == {"run": 2, "reason": "Run 2 is the only run (2 lost set aside)."}
    assert not (tmp_path / "run" / "labels_vote.npy").exists()
    shown = "runs 0 (from epoch 2 of train on), 1 (" if broken == "loss" else "runs 0, 1\n"
    assert shown in printed


def test_few_classes_in_use_are_a_collapse_that_is_set_aside(tmp_path, monkeypatch):
    """Trap: collapsed runs agree with each other perfectly."""
    read = logs.read_metrics

    def read_metrics(folder):
        found = read(folder)
        found["train"]["used"][:, 0] = [0.5, 0.01]
        return found

    monkeypatch.setattr(logs, "read_metrics", read_metrics)
    used = deep_cluster.used
    monkeypatch.setattr(
        deep_cluster,
        "used",
        lambda sizes: used(sizes) if sizes.ndim == 1 else np.float32([0.01, 0.9]),
    )
    args = ["--method", "deep_cluster", "--epochs", "2", "--seeds", "2"]
    printed = done(TRAIN, *SMALL, *args, "--out", tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["lost"] == [{"run": 0, "reason": "few classes", "phase": "train", "epoch": 2}]
    assert report["chosen"]["run"] == 1 and report["objective"]["values"][0] is not None
    assert "of the clusters, have most rows: runs 0 (from epoch 2 of train on)" in printed
