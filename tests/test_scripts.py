"""The scripts from end to end on tiny runs: what they write, repeat, resume and refuse."""

import ast
import contextlib
import csv
import dataclasses
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
import rich.progress
from sklearn.cluster import KMeans

from deepclust_jax import checkpoint, command, config, data, metrics, phases, profiles, run, train
from deepclust_jax.clustering import consensus, kmeans, streaming
from deepclust_jax.data import arrays
from deepclust_jax.report import baselines, logs, run_directory, tables
from deepclust_jax.types import Batch

ROOT = Path(__file__).parent.parent
SMALL = "--hidden 16 8 --embed-dim 3 --seeds 3 --pretrain-epochs 2 --epochs 2 --limit 200"
TINY = SMALL.split()
AUTOENCODER = ["--method", "autoencoder", *TINY[:7], "--epochs", "2"]  # has no pretraining
RESULTS = ("labels.npy", "labels_all.npy", "embeddings.npy", "centroids.npy")


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # tyro looks up annotations there
    spec.loader.exec_module(module)
    return module


TRAIN, CLUSTER = script("train_deep_kmeans"), script("cluster")


class Called(NamedTuple):
    code: int
    out: str
    err: str


def call(module, *args) -> Called:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = module.main([str(arg) for arg in args])
    return Called(code, out.getvalue(), err.getvalue())


def done(module, *args) -> str:
    """Standard output of a call that must go well, without a word on standard error."""
    called = call(module, *args)
    assert (called.code, called.err) == (0, "")
    return called.out


def refused(module, *args) -> str:
    """The one line on standard error of a call that must be refused."""
    called = call(module, *args)
    assert called.code == 2
    assert called.err.startswith("error: ") and called.err.count("\n") == 1, called.err
    return called.err


def results(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RESULTS}


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


class Run(NamedTuple):
    folder: Path
    out: str


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Run:
    """A finished run of dcn on 200 digits; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("runs") / "base"
    return Run(folder, done(TRAIN, *TINY, "--out", folder))


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [200, 8, 8] and labels [200] of the base run, in its order."""
    dataset, labels = data.load("digits", limit=200)
    return dataset.raw[..., 0], labels


# --- the run directory


def test_arrays_of_the_run_kept(base):
    labels, labels_all, z, centroids = (
        np.load(base.folder / name, allow_pickle=False) for name in RESULTS
    )
    chosen = report_of(base.folder)["chosen"]["run"]
    assert labels.shape == (200,) and labels_all.shape == (3, 200)
    assert z.shape == (200, 3) and z.dtype == np.float32 and centroids.shape == (10, 3)
    np.testing.assert_array_equal(labels, labels_all[chosen])
    assert set(np.unique(labels_all)) <= set(range(10))
    assert (labels_all[0] != labels_all[1]).any()  # seeds are runs of their own
    for k in np.unique(labels):
        np.testing.assert_allclose(centroids[k], z[labels == k].mean(axis=0), rtol=1e-4, atol=1e-5)


def test_the_vote_of_the_runs_is_kept_and_scored(base, digits):
    report, labels_all = report_of(base.folder), np.load(base.folder / "labels_all.npy")
    voted = np.load(base.folder / "labels_vote.npy")
    np.testing.assert_array_equal(voted, consensus.vote(labels_all, report["chosen"]["run"]))
    accuracy = report["vote"]["external"]["accuracy"]["mean"]
    assert accuracy == pytest.approx(metrics.accuracy(digits[1], voted))
    row = next(line for line in base.out.splitlines() if line.startswith("dcn, vote of the runs"))
    assert row.split()[5] == f"{100 * accuracy:.1f}"


def test_scores_of_every_seed_agree_with_the_arrays(base, digits):
    report = report_of(base.folder)
    labels_all = np.load(base.folder / "labels_all.npy")
    for s, labels in enumerate(labels_all):
        for name, value in metrics.external_scores(digits[1], labels).items():
            assert report["external"][name]["values"][s] == pytest.approx(float(value))
    chosen = report["chosen"]["run"]
    z = np.load(base.folder / "embeddings.npy")
    for name, value in metrics.internal_scores(z, labels_all[chosen]).items():
        assert report["internal"][name]["values"][chosen] == pytest.approx(float(value), rel=1e-5)
    assert report["agreement"]["mean"] == pytest.approx(metrics.stability(labels_all)[0])
    assert report["cluster_sizes"] == np.bincount(labels_all[chosen], minlength=10).tolist()
    loss = logs.read_metrics(base.folder)["train"]["loss"]
    assert report["objective"]["values"] == pytest.approx(loss[-1].tolist())
    assert report["oracle"] == int(np.argmax(report["external"]["accuracy"]["values"]))


def test_the_report_shows_simpler_ways_on_the_same_rows_and_seeds(base, digits):
    found = {way["name"]: way["external"] for way in report_of(base.folder)["baselines"]}
    assert set(found) == {baselines.ROWS, baselines.START}
    options = run.read_options(base.folder)
    dataset, _ = data.load("digits", limit=200)
    first = phases.of(options, dataset.x.shape)[0]
    store = base.folder / "checkpoint" / "pretrain"
    state = run.load_state(store, first, run.seed_keys(options), dataset.x.shape[1:])
    labels = train.embed(first.algorithm, state, dataset.x)[1]
    of_rows = baselines.kmeans_of_rows(run.seed_keys(options), dataset.x, 10)
    for s in range(3):
        expected = metrics.accuracy(digits[1], labels[s])
        assert found[baselines.START]["accuracy"]["values"][s] == pytest.approx(float(expected))
        expected = metrics.accuracy(digits[1], of_rows[s])
        assert found[baselines.ROWS]["accuracy"]["values"][s] == pytest.approx(float(expected))
    assert f"{100 * found[baselines.ROWS]['accuracy']['mean']:.1f} ± " in base.out


def test_the_simpler_way_is_kmeans_at_its_best():
    """Trap: a comparison that was not run as well as it can be."""
    dataset, _ = data.load("digits")
    x = dataset.x.reshape(len(dataset.x), -1)
    peer = KMeans(10, n_init=20, random_state=0).fit(x).inertia_
    for labels in baselines.kmeans_of_rows(jax.random.split(jax.random.key(0), 3), dataset.x, 10):
        means = np.stack([x[labels == k].mean(axis=0) for k in range(10)])
        assert np.sum((x - means[labels]) ** 2) < 1.01 * peer


def test_report_says_how_and_on_what_it_was_computed(base, digits):
    report = report_of(base.folder)
    for name in ("seconds", "compile_seconds"):
        assert set(report[name]) == {"pretrain", "train"}
        assert all(value > 0 for value in report[name].values())
    environment = report["environment"]
    assert environment["versions"]["jax"] == jax.__version__
    assert environment["device"]["kind"] == jax.devices()[0].device_kind
    assert {"commit", "dirty"} <= set(environment)
    assert report["data"] == {
        "name": "digits",
        "kind": "image",
        "shape": [200, 8, 8, 1],
        "made": 0,
        "checksum": arrays.checksum(digits[0][..., None]),
        "labelled": True,
    }
    assert report["options"]["n_clusters"] == 10 and report["options"]["weight"] == 2.0
    assert report["peak_memory_bytes"] > 2**20


def test_checkpoints_logs_and_figures(base):
    assert checkpoint.latest(base.folder / "checkpoint" / "train") == 2  # steps: one per epoch
    assert checkpoint.latest(base.folder / "checkpoint" / "pretrain") == 2
    logged = logs.read_metrics(base.folder)
    assert logged["pretrain"]["loss"].shape == logged["train"]["loss"].shape == (2, 3)
    events = list((base.folder / "tensorboard").glob("events.out.tfevents.*"))
    assert any(b"train/loss" in event.read_bytes() for event in events)
    for name in ("embedding_map", "cluster_sizes", "confusion", "samples", "training"):
        assert (base.folder / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_table_is_all_that_is_printed_where_there_is_no_terminal(base):
    lines = [line for line in base.out.splitlines() if ": epoch " not in line]  # of slow machines
    first, *table, last = lines
    assert first.startswith("digits: 200 x 8 x 8 x 1 (image, scaling range, 10 classes for scores)")
    assert f"dcn, k = 10, 3 seeds; jax {jax.__version__}" in first
    assert "\n".join(table) == tables.score_table(report_of(base.folder))
    assert last == f"Run directory: {base.folder}"


def test_progress_is_shown_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    shown = {}
    for kind in (Terminal, io.StringIO):
        monkeypatch.setattr(sys, "stdout", kind())
        with TRAIN.progress() as report_epoch:
            report_epoch("pretrain", 1, 4, {"loss": np.array([1.0, np.nan, 2.0])})  # one diverged
        shown[kind] = sys.stdout.getvalue()
    assert "pretrain" in shown[Terminal] and "1.5" in shown[Terminal]
    assert shown[io.StringIO] == ""


def test_a_terminal_shows_life_while_no_epoch_ends(monkeypatch):
    """Programs compile, rows are clustered: a minute and more without an epoch."""
    display = []

    class Progress(rich.progress.Progress):
        def __init__(self, *columns, **more):
            display.append(self)
            super().__init__(*columns, **more)

    def shown():
        return [task.description for task in display[0].tasks if task.visible]

    monkeypatch.setattr(rich.progress, "Progress", Progress)
    with pytest.raises(KeyboardInterrupt), TRAIN.progress() as report_epoch:
        assert shown() == ["compiling"]
        report_epoch("pretrain", 1, 2, {"loss": np.array([1.0])})
        assert shown() == ["pretrain"]
        report_epoch("pretrain", 2, 2, {"loss": np.array([1.0])})
        assert shown() == ["clustering, compiling", "pretrain"]
        raise KeyboardInterrupt
    assert shown() == ["pretrain"]


def test_a_line_every_minute_tells_a_log_how_far_a_run_is(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(TRAIN.time, "monotonic", lambda: now[0])
    with TRAIN.progress() as report_epoch:
        for epoch in range(1, 5):
            now[0] += 40.0
            report_epoch("joint", epoch, 4, {"loss": np.array([1.0, epoch])})
        now[0] += 60.0
        report_epoch("refresh", 1, 1, {})
    assert capsys.readouterr().out.splitlines() == [
        "joint: epoch 2 of 4, loss 1.5",
        "joint: epoch 4 of 4, loss 2.5",
        "refresh: epoch 1 of 1",
    ]


# --- again, and over another run


def test_its_config_repeats_a_run_bit_for_bit_and_overwrite_replaces_one(base, tmp_path):
    out = tmp_path / "again"
    out.mkdir()
    shutil.copy(base.folder / "config.json", out)
    (out / "labels.csv").write_text("of the run that was here")
    done(TRAIN, "--config", base.folder / "config.json", "--out", out, "--overwrite")
    assert results(out) == results(base.folder)
    assert (out / "config.json").read_text() == (base.folder / "config.json").read_text()
    assert not (out / "labels.csv").exists()


def test_overwrite_deletes_no_file_of_the_user(base, tmp_path):
    assert {path.name for path in base.folder.iterdir()} <= TRAIN.OF_A_RUN
    shutil.copytree(base.folder, tmp_path / "run")
    (tmp_path / "run" / "notes.md").write_text("mine")
    before = contents(tmp_path)
    assert "notes.md" in refused(TRAIN, *TINY, "--out", tmp_path / "run", "--overwrite")
    assert contents(tmp_path) == before


def test_another_run_is_left_alone_without_resume_or_overwrite(base):
    before = contents(base.folder)
    message = refused(TRAIN, *TINY, "--out", base.folder)
    assert "--resume" in message and "--overwrite" in message
    assert contents(base.folder) == before


@pytest.mark.parametrize("more", [[], ["--overwrite"], ["--resume"]])
@pytest.mark.parametrize("name, text", [("a.txt", "mine"), ("config.json", '{"data": "mine"}')])
def test_a_folder_with_other_files_is_left_alone(tmp_path, more, name, text):
    (tmp_path / name).write_text(text)
    before = contents(tmp_path)
    assert str(tmp_path) in refused(TRAIN, *TINY, "--out", tmp_path, *more)
    assert contents(tmp_path) == before


def test_a_file_is_no_folder_for_a_run(tmp_path):
    (tmp_path / "a").write_text("mine")
    for out in (tmp_path / "a", tmp_path / "a" / "run"):
        assert "--out" in refused(TRAIN, *TINY, "--out", out, "--overwrite")
    assert (tmp_path / "a").read_text() == "mine"


def test_overwrite_does_not_follow_a_link(base, tmp_path):
    (tmp_path / "link").symlink_to(base.folder)
    assert "link" in refused(TRAIN, *TINY, "--out", tmp_path / "link", "--overwrite")
    assert (base.folder / "report.json").exists()


# --- resume


def interrupt(monkeypatch, phase: str, epoch: int) -> None:
    """Save after every epoch and stop when `epoch` is logged but not saved."""

    @contextlib.contextmanager
    def progress():
        def report_epoch(*now):
            if now[:2] == (phase, epoch):
                raise KeyboardInterrupt

        yield report_epoch

    monkeypatch.setattr(run, "_SAVE_EVERY", -1.0)
    monkeypatch.setattr(TRAIN, "progress", progress)


@pytest.mark.parametrize("phase", ["pretrain", "train"])
def test_an_interrupted_run_goes_on_to_the_same_result(base, tmp_path, monkeypatch, phase):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt(patch, phase, 2)
        stopped = call(TRAIN, *TINY, "--out", out)
    assert stopped.code == 130 and f"--resume --out {out}" in stopped.err
    assert checkpoint.latest(out / "checkpoint" / phase) == 1
    assert len(logs.read_metrics(out)[phase]["loss"]) == 2  # one more than was saved
    assert "not finished" in refused(CLUSTER, out, "digits", "--labels-out", tmp_path / "l.npy")

    done(TRAIN, "--out", out, "--resume")  # the folder knows the options
    assert results(out) == results(base.folder)
    assert report_of(out)["external"] == report_of(base.folder)["external"]
    with (out / "metrics.csv").open(newline="") as file:
        lines = [tuple(row[:4]) for row in csv.reader(file)]
    assert len(set(lines)) == len(lines)
    assert (out / "metrics.csv").read_text() == (base.folder / "metrics.csv").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_is_lost_on_its_way_stops_the_run_all_the_same(
    tmp_path, monkeypatch, number
):
    """Trap: Ctrl-C within the garbage collection of JAX, which swallows it. A scheduler's SIGTERM
    is told how to go on as well."""
    seen = []

    @contextlib.contextmanager
    def progress():
        def report_epoch(*now):
            seen.append(now[:2])
            with contextlib.suppress(KeyboardInterrupt):
                os.kill(os.getpid(), number)

        yield report_epoch

    monkeypatch.setattr(TRAIN, "progress", progress)
    before = signal.getsignal(number)
    stopped = call(TRAIN, *TINY, "--out", tmp_path / "out")
    assert stopped.code == 130 and "go on with --resume --out" in stopped.err
    assert seen == [("pretrain", 1)]
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("flag", ["--overwrite", "--resume"])
def test_a_run_that_another_process_trains_is_left_alone(base, tmp_path, flag):
    """Trap: of two runs in one folder the first ended with options and log of the second."""
    out = tmp_path / "run"
    shutil.copytree(base.folder, out)
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    with TRAIN.held(out):
        args = TINY if flag == "--overwrite" else []
        assert "another process trains the run in" in refused(TRAIN, *args, "--out", out, flag)
    assert before.items() <= {f: f.stat().st_mtime_ns for f in out.rglob("*")}.items()
    with TRAIN.held(out):
        pass  # it is free again


def test_a_stop_while_the_report_is_written_says_how_to_go_on(tmp_path, monkeypatch):
    """Trap: a scheduler's SIGTERM then ended the script without a word."""
    monkeypatch.setattr(run_directory, "write", lambda *args: os.kill(os.getpid(), signal.SIGTERM))
    stopped = call(TRAIN, *TINY, "--out", tmp_path / "out")
    assert stopped.code == 130 and "go on with --resume --out" in stopped.err


def test_resume_goes_on_from_the_checkpoint_before_a_damaged_one(base, tmp_path, monkeypatch):
    out = tmp_path / "run"

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "_SAVE_EVERY", -1.0)
        patch.setattr(run_directory, "write", stop)  # trained to the end, without a report
        assert call(TRAIN, *TINY, "--out", out).code == 130
    assert checkpoint.latest(out / "checkpoint" / "train") == 2
    damage(out / "checkpoint" / "train" / "2")
    epochs, fit = [], train.fit

    def counted(*args, **kwargs):
        found = fit(*args, **kwargs)
        epochs.append(len(found.metrics["loss"]))
        return found

    monkeypatch.setattr(train, "fit", counted)
    said = done(TRAIN, *TINY, "--out", out, "--resume")
    assert "damaged checkpoint removed: step 2 of train" in said
    assert epochs == [1]  # the second one: it went on from the checkpoint of the first
    assert results(out) == results(base.folder)
    seconds = report_of(out)["seconds"]
    assert set(seconds) == {"pretrain", "train"} and min(seconds.values()) > 0


def damage(folder: Path) -> None:
    """Cut ten bytes off the largest file of a checkpoint."""
    file = max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    file.write_bytes(file.read_bytes()[:-10])


@pytest.mark.parametrize("phase", ["pretrain", "train"])
def test_one_sound_phase_is_enough_to_go_on_from(base, tmp_path, phase):
    """Trap: a damaged checkpoint that a run does not need, or can make again, stops it."""
    out = shutil.copytree(base.folder, tmp_path / "run")
    for step in (out / "checkpoint" / phase).iterdir():
        damage(step)
    said = done(TRAIN, "--out", out, "--resume")
    assert ("damaged checkpoint removed" in said) == (phase == "train")
    assert results(out) == results(base.folder)
    if phase == "pretrain":  # nothing of it is lost but its state
        assert report_of(out)["seconds"] == report_of(base.folder)["seconds"]
    assert (out / "metrics.csv").read_text() == (base.folder / "metrics.csv").read_text()
    ways = [way["name"] for way in report_of(out)["baselines"]]
    assert (baselines.START in ways) == (phase == "train")


@pytest.mark.parametrize("how", ["damaged", "lost"])
def test_pairs_by_features_go_on_where_their_start_is_damaged_or_lost(tmp_path, monkeypatch, how):
    """What they need of it is made again; a finished run needs nothing."""
    args = [*TINY, "--method", "info_max", "--seeds", "1", "--epochs", "3"]
    whole = tmp_path / "whole"
    done(TRAIN, *args, "--out", whole)

    def broken(name):
        out = shutil.copytree(whole, tmp_path / name)
        if how == "lost":
            shutil.rmtree(out / "checkpoint" / "pretrain")
        else:
            for step in (out / "checkpoint" / "pretrain").iterdir():
                damage(step)
        return out

    unfinished = broken("unfinished")
    store = unfinished / "checkpoint" / "train"
    noted = checkpoint.metadata(store)
    monkeypatch.setattr(checkpoint, "metadata", lambda folder, step=None: (
        noted | {"finished_epochs": None} if Path(folder) == store else REAL(folder, step)
    ))  # fmt: skip
    done(TRAIN, "--resume", "--out", unfinished)
    assert results(unfinished) == results(whole)
    monkeypatch.undo()
    finished = broken("finished")
    fit = train.fit
    monkeypatch.setattr(train, "fit", None)
    done(TRAIN, "--resume", "--out", finished)
    monkeypatch.setattr(train, "fit", fit)
    np.testing.assert_array_equal(
        np.load(finished / "labels_all.npy"), np.load(whole / "labels_all.npy")
    )


REAL = checkpoint.metadata


def test_resuming_a_finished_run_trains_and_counts_nothing_again(base, tmp_path, monkeypatch):
    out = shutil.copytree(base.folder, tmp_path / "run")
    monkeypatch.setattr(train, "fit", None)
    done(TRAIN, "--out", out, "--resume")
    assert report_of(out)["seconds"] == report_of(base.folder)["seconds"]
    assert results(out) == results(base.folder)


@pytest.mark.parametrize("phase", ["pretrain", "train"])
def test_a_diverged_run_says_what_to_change_and_how_to_try_again(tmp_path, phase):
    flag = "--pretrain-learning-rate" if phase == "pretrain" else "--learning-rate"
    message = refused(TRAIN, *TINY, "--out", tmp_path / "run", flag, "1e18")
    assert f"of phase {phase}; lower {flag} (now 1e+18)" in message
    assert f"--overwrite replaces the run in {tmp_path / 'run'}" in message


def test_interrupted_before_there_is_a_run_promises_no_resume(base, tmp_path, monkeypatch):
    def load(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "load", load)
    for out in (tmp_path / "run", base.folder):  # the run in the second is another one
        stopped = call(TRAIN, *TINY, "--out", out, "--overwrite")
        assert (stopped.code, stopped.err) == (130, "interrupted\n")


def test_checkpoints_of_other_seeds_or_fewer_epochs_are_not_taken_for_finished(tmp_path):
    def options(epochs):
        args = ["--n-clusters", "10", *AUTOENCODER, "--epochs", str(epochs)]
        return config.resolve(config.parse(args))

    x, seeds = data.load("digits", limit=200)[0].x, [0, 1, 2]
    run.execute(options(1), x, folder=tmp_path / "a", seeds=seeds)
    more = run.execute(options(2), x, folder=tmp_path / "a", seeds=seeds)
    whole = run.execute(options(2), x, seeds=seeds)
    for a, b in zip(jax.tree.leaves(more.state), jax.tree.leaves(whole.state), strict=True):
        assert a.shape == b.shape
    assert int(more.state.step[0]) == int(whole.state.step[0])
    with pytest.raises(checkpoint.CheckpointError, match=r"expected seeds \[5, 6, 7\]"):
        run.execute(options(2), x, folder=tmp_path / "a", seeds=[5, 6, 7])
    with pytest.raises(config.ConfigError, match="a method that pretrains"):
        run.execute(options(2), x, pretrained=whole.state)


def test_resume_with_other_options_names_the_difference(base):
    before = contents(base.folder)
    message = refused(TRAIN, *TINY, "--out", base.folder, "--resume", "--weight", "0.5")
    assert "--weight 2.0" in message and "0.5" in message
    assert contents(base.folder) == before


def test_overwrite_reads_the_config_of_the_run_it_replaces(base, tmp_path):
    """Trap: the file that `--config` names was removed before it was read once more."""
    shutil.copytree(base.folder, tmp_path / "run")
    args = ["--config", tmp_path / "run" / "config.json", "--out", tmp_path / "run"]
    done(TRAIN, *args, "--overwrite")
    assert (tmp_path / "run" / "report.json").is_file()


def test_overwrite_does_not_delete_the_data(base, tmp_path):
    shutil.copytree(base.folder, tmp_path / "run")
    rows = tmp_path / "run" / "embeddings.npy"
    args = ["--data", rows, "--n-clusters", "3", "--out", tmp_path / "run", "--overwrite"]
    assert "would delete" in refused(TRAIN, *args)
    assert rows.is_file()


def test_two_runs_do_not_share_a_folder(base, tmp_path, monkeypatch):
    """Another run begins there after the folder was checked."""
    monkeypatch.setattr(TRAIN, "check_folder", lambda options: None)
    shutil.copytree(base.folder, tmp_path / "run")
    before = contents(tmp_path / "run")
    assert "another run began" in refused(TRAIN, *TINY, "--out", tmp_path / "run")
    assert contents(tmp_path / "run") == before


def test_resume_with_other_rows_is_refused(base, tmp_path):
    shutil.copytree(base.folder, tmp_path / "run")
    (tmp_path / "run" / "data.sha256").write_text("of other rows")
    message = refused(TRAIN, *TINY, "--out", tmp_path / "run", "--resume")
    assert "are not those the run" in message


def test_resume_without_a_run_is_refused(tmp_path):
    assert "no run" in refused(TRAIN, *TINY, "--out", tmp_path / "none", "--resume")
    assert not (tmp_path / "none").exists()


# --- bad data


def save(name: str, value, **kwargs):
    def make(folder: Path) -> Path:
        np.save(folder / name, value, **kwargs)
        return folder / name

    return make


def write(name: str, text: str):
    def make(folder: Path) -> Path:
        (folder / name).write_text(text)
        return folder / name

    return make


def truncated(folder: Path) -> Path:
    np.savez(folder / "a.npz", x=np.arange(400.0).reshape(100, 4))
    content = (folder / "a.npz").read_bytes()
    (folder / "a.npz").write_bytes(content[: len(content) // 2])
    return folder / "a.npz"


def with_value(value: float) -> np.ndarray:
    x = np.arange(40.0).reshape(10, 4)
    x[7, 2] = value
    return x


ROWS = np.random.default_rng(0).normal(size=(10, 4))
RAGGED = np.array([np.zeros(2), np.zeros(3)], dtype=object)
BAD = {
    "missing file": (lambda folder: folder / "none.npy", "none.npy"),
    "truncated": (truncated, "damaged or cut short"),
    "pickled": (save("a.npy", np.array([{"a": 1}] * 9), allow_pickle=True), "pickle"),
    "ragged npy": (save("a.npy", RAGGED, allow_pickle=True), "ragged"),
    "ragged csv": (write("a.csv", "1,2\n3,4\n5\n6,7\n"), "has 1 cells, expected 2"),
    "nan": (save("a.npy", with_value(np.nan)), "1 NaN and 0 infinite values"),
    "inf": (save("a.npy", with_value(np.inf)), "row 7, column 2"),
    "too few rows": (save("a.npy", ROWS[:2]), "--n-clusters <= 2"),
    "equal rows": (save("a.npy", np.ones((10, 4))), "all 10 rows are equal"),
    "few distinct rows": (save("a.npy", ROWS[[0, 1, 0, 1, 1]]), "<= 2 (the distinct rows)"),
    "no rows": (save("a.npy", np.zeros((0, 4))), "at least one row"),
    "one row": (save("a.npy", np.ones((1, 4))), "expected 2 rows or more, found 1"),
    "empty file": (write("a.csv", ""), "0 bytes"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_are_refused_before_anything_is_written(tmp_path, case):
    make, words = BAD[case]
    out = tmp_path / "out"
    message = refused(TRAIN, *TINY, "--n-clusters", "3", "--data", make(tmp_path), "--out", out)
    assert words in message
    assert not out.exists()


@pytest.mark.parametrize(
    "args, words",
    [
        (["--n-clusters", "3", "--labels", "y.npy"], "9 labels, but rows.npy has 10 rows"),
        (["--n-clusters", "3", "--labels", "none.npy"], "none.npy"),
        (["--n-clusters", "1"], "--n-clusters >= 2"),
        ([], "--n-clusters is needed"),
        (["--n-clusters", "3", "--augment", "affine"], "--augment affine needs images"),
        (["--n-clusters", "3", "--network", "conv"], "--network conv needs images"),
        (["--n-clusters", "3", "--kind", "text"], "expected text data"),
        (["--data", "digit"], "did you mean digits"),
        (["--epochs", "-1"], "--epochs"),
        (["--config", "none.toml"], "none.toml"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    np.save("rows.npy", ROWS)
    np.save("y.npy", np.zeros(9, int))
    assert words in refused(TRAIN, *TINY, "--data", "rows.npy", "--out", "out", *args)
    assert not Path("out").exists()


def test_the_number_of_clusters_is_asked_for_before_rows_are_read(tmp_path):
    """Trap: minutes of reading sounds, and then a question that their names could have raised."""
    (tmp_path / "broken.npy").write_text("no rows at all")
    args = [*TINY, "--data", tmp_path / "broken.npy", "--out", tmp_path / "out"]
    assert "--n-clusters is needed" in refused(TRAIN, *args)
    assert "broken.npy" in refused(TRAIN, *args, "--n-clusters", "3")


def test_no_space_is_found_before_training(tmp_path, monkeypatch):
    """Trap: a run that fails for want of space at its first checkpoint, after an hour."""
    usage = shutil.disk_usage(tmp_path)._replace(free=2**27)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    # 10 seeds of 3.3 million weights, with momentum and then Adam's two moments, three times
    wide = ["--seeds", "10", "--hidden", "500", "500", "2000"]
    message = refused(TRAIN, *TINY, *wide, "--out", tmp_path / "a" / "b")
    assert "found 128 MiB; make room" in message
    need = float(message.split("expected ")[1].split(" MiB")[0].replace(",", ""))
    weights = 2 * (64 * 500 + 500 * 500 + 500 * 2000 + 2000 * 10)
    assert need == pytest.approx(3 * 10 * weights * 4 * (2 + 3) / 2**20 + 64, rel=0.01)
    assert not (tmp_path / "a").exists()


def test_a_place_without_room_for_files_is_not_called_full(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(total=0, free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert "no files can be written" in refused(TRAIN, *TINY, "--out", tmp_path / "a")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_place_is_found_before_training(tmp_path):
    tmp_path.chmod(0o500)
    assert "no permission" in refused(TRAIN, *TINY, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- own files


def test_own_table_with_and_without_a_label_column(tmp_path):
    x = np.concatenate([ROWS, ROWS + 9, ROWS - 9])
    y = np.repeat(["b", "a", "c"], 10)
    cells = [[*map(repr, row.tolist()), label] for row, label in zip(x, y, strict=True)]
    lines = [",".join(row) for row in [["f0", "f1", "f2", "f3", "group"], *cells]]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    np.save(tmp_path / "t.npy", x)
    common = [*AUTOENCODER, "--n-clusters", "3"]
    named = ["--data", tmp_path / "t.csv", "--labels", "group", "--out", tmp_path / "named"]
    assert "accuracy [%]" in done(TRAIN, *common, *named)
    bare = ["--data", tmp_path / "t.npy", "--out", tmp_path / "bare"]
    table = done(TRAIN, *common, *bare)
    assert "accuracy" not in table and "oracle" not in table and "silhouette" in table

    with_labels, without = report_of(tmp_path / "named"), report_of(tmp_path / "bare")
    assert with_labels["data"]["labelled"] and not without["data"]["labelled"]
    assert without["external"] == {} and without["oracle"] is None
    assert without["internal"] == with_labels["internal"]
    assert results(tmp_path / "bare") == results(tmp_path / "named")
    assert not (tmp_path / "bare" / "confusion.png").exists()
    found = np.load(tmp_path / "named" / "labels_all.npy")[0]
    expected = float(metrics.external_scores(np.unique(y, return_inverse=True)[1], found)["ari"])
    assert with_labels["external"]["ari"]["values"][0] == pytest.approx(expected)
    new = tmp_path / "l.npy"
    labelled = (CLUSTER, tmp_path / "named")
    done(*labelled, tmp_path / "t.csv", "--labels-out", new)  # which has the column of the run
    np.testing.assert_array_equal(np.load(new), found)
    (tmp_path / "bad.csv").write_text("f0,f1,f2,f3\n1,2,3,n/a\n")
    other = refused(*labelled, tmp_path / "bad.csv", "--labels-out", new, "--overwrite")
    assert "column 'f3'" in other and "group" not in other


def test_ctrl_c_while_programs_are_compiled_ends_as_it_should(tmp_path):
    """Trap: JAX goes on in its threads while Python ends: a segmentation fault with JAX 0.10."""
    args = [sys.executable, "-u", ROOT / "scripts" / "train_deep_kmeans.py", *TINY]
    args += ["--seeds", "2", "--epochs", "1000", "--out", tmp_path / "run"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(list(map(str, args)), **pipes) as process:
        assert "digits" in process.stdout.readline()  # training begins
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert f"interrupted; go on with --resume --out {tmp_path / 'run'}\n" in said


@pytest.mark.parametrize("script", ["train_deep_kmeans", "train_gan", "cluster", "select_k"])
def test_a_reader_that_leaves_is_no_error(script):
    """As `--help | head` does."""
    args = [sys.executable, ROOT / "scripts" / f"{script}.py", "--help"]
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_what_goes_wrong_is_told_even_if_the_reader_left(monkeypatch):
    def broken():
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        command.to_reader(broken)
    assert command.to_reader(lambda: 2) == 2
    monkeypatch.setattr(sys, "stdout", None)  # as of `>&-`
    assert command.to_reader(lambda: 0) == 0


def test_clusters_of_a_folder_stand_beside_its_files(tmp_path, digits):
    from PIL import Image

    for i, picture in enumerate(np.resize(digits[0], (210, 8, 8))):
        path = tmp_path / "pictures" / f"{'ab'[i % 2]}" / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture * 15).save(path)
    out = tmp_path / "out"
    args = ["--data", tmp_path / "pictures", "--n-clusters", "10", "--limit", "200"]
    done(TRAIN, *AUTOENCODER, *args, "--out", out)
    with (out / "labels.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    expected = data.row_files(tmp_path / "pictures", limit=200)
    assert tuple(row["file"] for row in table) == expected
    assert {path.name for path in out.iterdir()} <= TRAIN.OF_A_RUN
    assert [int(row["cluster"]) for row in table] == np.load(out / "labels.npy").tolist()
    new = tmp_path / "new.npy"
    done(CLUSTER, out, tmp_path / "pictures", "--limit", "200", "--labels-out", new)
    assert (tmp_path / "new.csv").read_text() == (out / "labels.csv").read_text()


def test_labels_change_nothing_but_the_external_scores(base, digits, tmp_path):
    pictures, labels = digits
    permuted = np.random.default_rng(1).permutation(labels)
    np.save(tmp_path / "x.npy", pictures)
    np.save(tmp_path / "y.npy", permuted)
    files = ["--data", tmp_path / "x.npy", "--labels", tmp_path / "y.npy", "--kind", "image"]
    out = tmp_path / "out"
    done(TRAIN, *TINY, *files, "--n-clusters", "10", "--limit", "None", "--out", out)
    assert results(out) == results(base.folder)  # the same rows with their own labels
    before, after = report_of(base.folder), report_of(out)
    for name in ("chosen", "internal", "objective", "agreement", "cluster_sizes"):
        assert after[name] == before[name]
    found = np.load(out / "labels_all.npy")
    scores = [float(metrics.external_scores(permuted, row)["nmi"]) for row in found]
    assert after["external"]["nmi"]["values"] == pytest.approx(scores)
    assert after["external"] != before["external"]


# --- methods and networks


@pytest.mark.parametrize(
    "args, phases, shape",
    [
        (["--method", "dkm", "--pretrain-epochs", "0"], {"train"}, (3, 200)),
        (["--method", "idec", "--profile", "paper"], {"pretrain", "train"}, (3, 200)),
        (["--method", "vade", "--profile", "paper"], {"pretrain", "train"}, (3, 200)),
        (["--method", "dcn", "--seeds", "1", "--merge"], {"pretrain", "train"}, (1, 200)),
        (
            ["--method", "dcn", "--seeds", "1", "--merge", "--pretrain-epochs", "0"]
            + ["--learning-rate", "0.01", "--epochs", "2"],  # groups of before would have no rows
            {"train"},
            (1, 200),
        ),
        (
            ["--method", "dcn", "--resets", "1", "--sizes", "even", "--epochs", "3"],
            {"pretrain", "train"},
            (3, 200),
        ),
    ],
)
def test_methods_run(tmp_path, args, phases, shape, monkeypatch):
    out, compared, labels_of = tmp_path / "out", {}, baselines.labels_of

    def noted(*given):
        compared.update(labels_of(*given))
        return compared

    monkeypatch.setattr(baselines, "labels_of", noted)
    done(TRAIN, *TINY, *args, "--out", out)
    assert set(report_of(out)["seconds"]) == phases
    labels = np.load(out / "labels_all.npy")
    assert labels.shape == shape
    assert ("clusters" in report_of(out)) == ("--merge" in args)
    if "--merge" in args:
        assert report_of(out)["clusters"]["values"] == [len(np.unique(labels))]
        ways = [way["name"] for way in report_of(out)["baselines"]]
        found = labels.max() + 1
        assert found == len(np.unique(labels))
        start = [baselines.START] if "pretrain" in phases and found > 1 else []
        assert ways == [f"{name}, k = {found}" for name in (baselines.ROWS, *start)]
        assert [own.max() + 1 for own in compared.values()] == [found] * len(ways)
        assert len(np.load(out / "centroids.npy")) == labels.max() + 1
        assert run_directory.rows_of(str(out))[2] == len(np.unique(labels))  # not the 35 of before
    z = np.load(out / "embeddings.npy")
    assert z.shape == (shape[1], 3) and np.isfinite(z).all()


NETWORKS = dict.fromkeys(profiles.PROFILES["practical"], ("mlp", "conv")) | {
    "contrastive": ("mlp", "conv", "resnet"),
    "info_max": ("mlp", "conv", "resnet"),
    "rotation": ("conv",),
    "mmdc": ("conv",),
    "deep_cluster": ("conv",),
    "next_token": ("gru", "transformer"),
    "next_frame": ("gru", "transformer"),
}


def options_of(method, network, **more):
    parts = ("8x8x1", "8x8x1") if method == "cross_modal" else None
    given = config.Options(
        config.Data(data="digits", n_clusters=3, partner=parts and "digits", parts=parts),
        config.Method(method=method, **more),
        config.Network(network=network),
    )
    return config.resolve(given, 40)


@pytest.mark.parametrize("network", ["mlp", "conv", "resnet", "gru", "transformer"])
@pytest.mark.parametrize("method", NETWORKS)
def test_methods_have_phases_of_their_networks(method, network):
    """Traced and not compiled, which tests/test_contract.py does for each algorithm."""
    key, own = jax.random.key(0), {"next_token": (40, 12), "cross_modal": (40, 128)}
    shape = own.get(method, (40, 8, 8, 1))
    given = options_of(method, network)
    if network not in NETWORKS[method]:
        with pytest.raises(config.ConfigError, match=f"--network .*found {network}"):
            phases.of(given, shape)
        return
    x = jax.ShapeDtypeStruct((8, *shape[1:]), np.float32)
    for phase in phases.of(given, shape):
        batch = Batch(x, *(jax.ShapeDtypeStruct((8,), kind) for kind in (np.int32, np.float32)))
        batch = batch._replace(partner=x if phase.pairs else None)
        state = jax.eval_shape(phase.algorithm.init, key, batch)
        after, found = jax.eval_shape(phase.algorithm.step, key, state, batch)
        assert jax.tree.map(np.shape, after) == jax.tree.map(np.shape, state)
        assert found["loss"].shape == ()
        z = jax.eval_shape(phase.algorithm.embed, after, x)
        assert jax.eval_shape(phase.algorithm.assign, after, z).shape == (8,)


def test_the_same_options_are_compiled_once():
    """Also of another folder and other rows, and where numbers come as lists."""
    shape = (40, 8)
    (one,) = phases.of(options_of("cluster_gan", "mlp", prior=(1, 1, 2)), shape)
    same = dataclasses.replace(
        options_of("cluster_gan", "mlp", prior=[1, 1, 2]),
        data=config.Data(data="usps", n_clusters=3),
        network=dataclasses.replace(options_of("cluster_gan", "mlp").network, hidden=[256, 256]),
        run=config.Run(out=Path("runs/other"), seeds=3),
    )
    assert phases.of(same, shape)[0].algorithm is one.algorithm
    arrays = dataclasses.replace(
        same, training=dataclasses.replace(same.training, batch_size=np.array(256))
    )
    assert phases.of(arrays, shape)[0].algorithm is one.algorithm
    given = options_of("autoencoder", "mlp")
    wrong, right = (
        phases.of(dataclasses.replace(given, network=network), shape)[0].algorithm
        for network in (dataclasses.replace(given.network, embed_dim=d) for d in (3.0, 3))
    )
    assert wrong is not right  # though 3.0 == 3
    even = options_of("cluster_gan", "mlp")
    for other, rows in ((even, shape), (same, (80, 8)), (same, (40, 9))):
        assert phases.of(other, rows)[0].algorithm is not one.algorithm
    assert phases.of(same, shape, is_bounded=True)[0].algorithm is not one.algorithm


def test_a_run_of_before_an_option_came_is_one(base, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(base.folder, out)
    values = json.loads((out / "config.json").read_text())
    for name in ("partner", "parts", "nuisance"):
        del values[name]
    (out / "config.json").write_text(json.dumps(values))
    assert config.is_run(out)
    (out / "config.json").write_text('{"data": "of another project"}')
    assert not config.is_run(out)


@pytest.mark.parametrize("held_out, k", [(0, 12), (5, 9)])
def test_merging_begins_with_no_more_clusters_than_distinct_rows(held_out, k):
    """Trap: 35 clusters of 20 rows were refused, a number that nobody gave."""
    rows = np.repeat(np.arange(12, dtype=np.float32), 2)[:, None][:20]  # 10 distinct
    rows = np.concatenate([rows, [[20.0], [21.0]]], dtype=np.float32)
    dataset, _ = data.load("digits", limit=len(rows))
    dataset = dataclasses.replace(dataset, x=rows)
    options = config.resolve(
        config.Options(
            data=config.Data(held_out=held_out), method=config.Method(method="n2d", merge=True)
        )
    )
    assert options.data.n_clusters == config.MOST_CLUSTERS
    trained_on = TRAIN.rows_to_train(options, dataset)
    assert len(trained_on) == len(rows) - held_out
    found = TRAIN.with_clusters(options, dataset, trained_on).data.n_clusters
    assert found == k == len(np.unique(rows[: len(rows) - held_out]))


@pytest.mark.parametrize("scale", [1e-2, 1e3])
def test_rows_of_another_scale_than_the_learning_rates_are_refused(scale):
    """Trap: digits times 0.01 leave an autoencoder worse than the mean of the rows."""
    x = np.asarray(data.load("digits", limit=50)[0].x) * np.float32(scale)
    options = config.resolve(
        config.parse(["--method", "autoencoder", "--n-clusters", "3", "--scaling", "none"])
    )
    with pytest.raises(config.ConfigError, match="take --scaling auto or standard"):
        run.execute(options, x)


def test_a_run_that_is_refused_for_its_rows_leaves_nothing(tmp_path):
    x, file, out = np.random.default_rng(0).normal(size=(50, 3)), tmp_path / "x.npy", tmp_path / "o"
    np.save(file, (1e3 * x).astype(np.float32))
    given = ["--data", file, "--n-clusters", "3", "--seeds", "1", "--out", out]
    assert "take --scaling" in refused(TRAIN, *given, "--scaling", "none")
    assert "0..1" in refused(TRAIN, *given, "--method", "vade", "--likelihood", "bernoulli")
    assert not out.exists()


def test_features_that_are_constant_say_nothing_of_the_scale(tmp_path, monkeypatch):
    x = np.zeros((50, 2000), np.float32)
    x[:, :3] = np.random.default_rng(0).normal(size=(50, 3))
    phases._check_deviation(x)
    with pytest.raises(config.ConfigError, match="take --scaling auto or standard"):
        phases._check_deviation(100 * x)
    # What has begun goes on, whatever was checked when it did.
    args = [*AUTOENCODER, "--n-clusters", "10", "--scaling", "none"]
    x = data.load("digits", limit=200)[0].x
    options, seen = config.resolve(config.parse(args)), []
    monkeypatch.setattr(phases, "_check_deviation", seen.append)
    for times in (1, 1):
        run.execute(options, x, folder=tmp_path)
        assert len(seen) == times


def test_autoencoder_is_the_warm_start_of_the_others_and_resumes_when_finished(base, tmp_path):
    args = [*AUTOENCODER, "--limit", "200", "--out", tmp_path / "out"]
    done(TRAIN, *args)
    found = results(tmp_path / "out")
    alone = logs.read_metrics(tmp_path / "out")["train"]["loss"]
    np.testing.assert_array_equal(alone, logs.read_metrics(base.folder)["pretrain"]["loss"])
    done(TRAIN, *args, "--resume")
    assert results(tmp_path / "out") == found  # its k-means is not refined a second time


def test_compilation_cache_lies_in_the_home_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    try:
        for chosen, choice, wanted in (
            (None, "off", None),
            (None, "on", str(tmp_path / ".cache" / "deepclust_jax" / "xla")),
            ("/of/the/user", "on", "/of/the/user"),
        ):
            jax.config.update("jax_compilation_cache_dir", chosen)
            TRAIN.start_jax(config.parse(["--compilation-cache", choice]))
            assert jax.config.jax_compilation_cache_dir == wanted
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


# --- cluster.py


def test_a_fresh_process_gives_the_rows_of_the_run_their_labels(base, tmp_path):
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, ROOT / "scripts" / "cluster.py", base.folder, "digits"]
    outputs = ["--labels-out", "labels.npy", "--embeddings-out", "z.npy"]
    found = subprocess.run(
        [*command, "--limit", "200", *outputs],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    labels = np.load(base.folder / "labels.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), labels)
    assert (tmp_path / "z.npy").read_bytes() == (base.folder / "embeddings.npy").read_bytes()
    sizes = " ".join(map(str, np.bincount(labels, minlength=10)))
    assert f"200 rows, cluster sizes: {sizes}\n" in found.stdout


def test_a_row_gets_the_same_label_in_any_order_and_company(base, digits, tmp_path):
    labels = np.load(base.folder / "labels.npy")
    orders = (np.arange(200)[::-1], np.array([7, 190, 31]), np.array([5]))
    for order in orders:
        np.save(tmp_path / "rows.npy", digits[0][order])
        done(
            CLUSTER,
            *(base.folder, tmp_path / "rows.npy", "--labels-out", tmp_path / "labels.npy"),
            "--overwrite",
        )
        np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), labels[order])


@pytest.mark.parametrize(
    "make, words",
    [
        (save("a.npy", np.zeros((5, 7, 7), np.uint8)), "8 x 8 x 1 with values of 0 to 16"),
        (save("a.npy", np.full((5, 8, 8), 0.5)), "range, then x.astype('uint8')"),
        (
            save("a.npy", np.zeros((5, 64), np.uint8)),
            "found rows of shape (64,) and uint8; reshape",
        ),
        (save("a.npy", np.full((5, 8, 8), 255, np.uint8)), "values of 255 to 255, which would"),
        (write("a.txt", "one document\nanother\n"), "expected image data, found text"),
        (lambda folder: folder / "none.npy", "no file or folder"),
    ],
)
def test_rows_of_another_shape_or_kind_are_refused(base, tmp_path, make, words):
    out = tmp_path / "labels.npy"
    assert words in refused(CLUSTER, base.folder, make(tmp_path), "--labels-out", out)
    assert not out.exists()


def test_outputs_are_not_replaced_unless_asked_and_must_be_arrays(base, tmp_path):
    out = tmp_path / "labels.npy"
    out.write_text("mine")
    args = (base.folder, "digits", "--limit", "20")
    assert "another --labels-out" in refused(CLUSTER, *args, "--labels-out", out)
    # Before data are read.
    assert "another --labels-out" in refused(CLUSTER, base.folder, "digitz", "--labels-out", out)
    free = ("--labels-out", tmp_path / "other.npy", "--embeddings-out", out)
    assert "another --embeddings-out" in refused(CLUSTER, *args, *free)
    assert ".npy" in refused(CLUSTER, *args, "--labels-out", tmp_path / "labels.txt")
    twice = ("--labels-out", tmp_path / "same.npy", "--embeddings-out", tmp_path / "same.npy")
    assert "are both" in refused(CLUSTER, *args, *twice)
    assert "no folder" in refused(CLUSTER, *args, "--labels-out", tmp_path / "a" / "labels.npy")
    assert [path.name for path in tmp_path.iterdir()] == ["labels.npy"]
    assert out.read_text() == "mine"
    done(CLUSTER, *args, "--labels-out", out, "--overwrite")
    assert np.load(out).shape == (20,)


def test_a_folder_without_a_run_cannot_cluster(tmp_path):
    message = refused(CLUSTER, tmp_path, "digits", "--labels-out", tmp_path / "labels.npy")
    assert str(tmp_path) in message


# --- classical clustering and the number of clusters


EMBEDDING, SELECT_K = script("cluster_embedding"), script("select_k")


@pytest.mark.parametrize(
    "args",
    [
        ["--clusterer", "kmeans"],
        ["--clusterer", "kmeans", "--devices", "2"],
        ["--clusterer", "balanced"],
        ["--clusterer", "hierarchical"],
        ["--clusterer", "mixture"],
        ["--clusterer", "mixture", "--covariance", "diagonal"],
        ["--clusterer", "graph"],
        ["--clusterer", "graph", "--merge", "--n-clusters", "6"],
        ["--clusterer", "agglomerative", "--linkage", "average"],
        ["--clusterer", "hdbscan", "--min-cluster-size", "10"],
        ["--clusterer", "dbscan", "--eps", "0.5", "--min-samples", "4"],
    ],
)
def test_classical_clusterers_on_the_codes_of_a_run(base, digits, tmp_path, args):
    out = done(EMBEDDING, base.folder, *args, "--labels-out", tmp_path / "labels.npy")
    labels = np.load(tmp_path / "labels.npy", allow_pickle=False)
    assert labels.shape == (200,) and labels.dtype == np.int32
    score = metrics.nmi(digits[1], labels - labels.min())
    assert f"nmi {100 * score:.1f} %" in out
    if args[1] in ("kmeans", "balanced", "hierarchical"):
        assert labels.max() == 9
    if args[1] == "balanced":
        assert np.bincount(labels).tolist() == [20] * 10


@pytest.mark.parametrize("clusterer", ["kmeans", "hierarchical"])
def test_centroids_label_the_rows_again(tmp_path, clusterer):
    np.save(tmp_path / "x.npy", np.concatenate([ROWS, ROWS + 90, ROWS - 90]))
    outs = ["--labels-out", tmp_path / "labels.npy", "--centroids-out", tmp_path / "centroids.npy"]
    done(EMBEDDING, tmp_path / "x.npy", "--clusterer", clusterer, "--n-clusters", "3", *outs)
    labels, centroids = (np.load(path, allow_pickle=False) for path in outs[1::2])
    rows, _, _ = run_directory.rows_of(str(tmp_path / "x.npy"))
    assert np.array_equal(kmeans.assign(rows, centroids)[0], labels)


def test_rows_on_disk_are_clustered_from_there(monkeypatch, tmp_path):
    np.save(tmp_path / "x.npy", np.concatenate([ROWS, ROWS + 90, ROWS - 90]))
    monkeypatch.setattr("deepclust_jax.data.files.MAP_BYTES", 1)
    monkeypatch.setattr(EMBEDDING, "SCORED", 20**2 * ROWS.shape[1])
    args = [tmp_path / "x.npy", "--n-clusters", "3", "--labels-out", tmp_path / "labels.npy"]
    called = []
    fit = streaming.fit
    monkeypatch.setattr(streaming, "fit", lambda *args: called.append(args[1]) or fit(*args))
    out = done(EMBEDDING, *args)
    assert "Cluster sizes: 10 10 10" in out and "of 20 rows drawn at random" in out
    assert len(called) == 1 and not isinstance(called[0], np.ndarray)
    done(EMBEDDING, *args, "--clusterer", "hierarchical", "--overwrite")
    assert len(called) == 1


def test_classical_clusterers_on_data(tmp_path):
    np.save(tmp_path / "x.npy", np.concatenate([ROWS, ROWS + 90, ROWS - 90]))
    file = tmp_path / "labels.npy"
    args = [tmp_path / "x.npy", "--clusterer", "agglomerative", "--labels-out", file]
    assert "--n-clusters" in refused(EMBEDDING, *args)
    out = done(EMBEDDING, *args, "--n-clusters", "3")
    assert "Cluster sizes: 10 10 10" in out and "nmi" not in out
    assert "--overwrite" in refused(EMBEDDING, *args, "--n-clusters", "3")


@pytest.mark.parametrize(
    "args, message",
    [
        (["--clusterer", "dbscan"], "--eps is needed for dbscan; the neighbour that makes"),
        (["--clusterer", "dbscan", "--eps", "-1"], "expected eps > 0"),
        (["--clusterer", "hdbscan", "--min-cluster-size", "1"], "2 <= min_cluster_size"),
        (["--labels", "group"], "a run has its own"),
        (["--clusterer", "balanced", "--max-size", "5"], "max_size * 10, found"),
        (["--clusterer", "hierarchical", "--probes", "9"], "probes as a whole number from 1 to 3"),
        (["--clusterer", "hdbscan", "--devices", "2"], "--devices beside --clusterer kmeans only"),
        (["--clusterer", "hdbscan", "--centroids-out", "c.npy"], "--centroids-out beside"),
        (["--covariance", "full"], "--covariance beside --clusterer mixture only, found kmeans"),
        (["--min-size", "3"], "--min-size beside --clusterer balanced only, found kmeans"),
        (["--clusterer", "dbscan", "--n-clusters", "3"], "--n-clusters beside"),
        (["--clusterer", "dbscan", "--min-samples", "900"], "--min-samples from 1 to 200"),
        (["--devices", "0"], "--devices >= 1"),
        (["--seed", "99999999999999999999"], "--seed from 0 to"),
        (["--n-clusters", "300"], "expected 1 <= n_clusters <= 200"),
    ],
)
def test_clusterers_refuse(base, tmp_path, args, message):
    file = tmp_path / "labels.npy"
    assert message in refused(EMBEDDING, base.folder, *args, "--labels-out", file)
    assert not file.exists()


def test_evidence_for_the_number_of_clusters(base, tmp_path):
    plot = tmp_path / "k.png"
    out = done(SELECT_K, base.folder, "--k-max", "4", "--out", plot)
    assert plot.read_bytes()[:4] == b"\x89PNG" and "silhouette" in out
    assert [line.split()[0] for line in out.splitlines()[1:5]] == ["1", "2", "3", "4"]
    assert "--overwrite" in refused(SELECT_K, base.folder, "--out", plot)
    assert "--overwrite" in refused(SELECT_K, "digitz", "--out", plot)  # before data are read
    assert "half the rows" in refused(SELECT_K, base.folder, "--k-max", "150", "--out", "a.png")
    assert "--draws >= 1" in refused(SELECT_K, base.folder, "--draws", "0", "--out", "a.png")
    out = done(SELECT_K, base.folder, "--k-max", "4", "--draws", "2", "--out", plot, "--overwrite")
    shares = out[out.index("Share of 2 draws") :].splitlines()
    assert shares[1].split()[-1] == "all" and len(shares) == 7
    assert sum(float(line.split()[-1]) for line in shares[2:6]) == pytest.approx(100, abs=2)
    assert "unknown data set" in refused(SELECT_K, "digitz", "--out", tmp_path / "b.png")


def test_evidence_of_rows_on_disk(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)) + 90.0 * (np.arange(200) % 3 - 1)[:, None]
    np.save(tmp_path / "x.npy", x)  # of the shape of the codes of the base run
    monkeypatch.setattr("deepclust_jax.data.files.MAP_BYTES", 1)
    out = done(SELECT_K, tmp_path / "x.npy", "--k-max", "4", "--out", tmp_path / "k.png")
    assert re.search(r"^ *3 .*\*", out, re.MULTILINE)  # some score speaks for 3


def test_outputs_that_cannot_be_written(monkeypatch, base, tmp_path):
    (tmp_path / "a.npy").mkdir()
    args = [base.folder, "--labels-out"]
    assert "is a folder" in refused(EMBEDDING, *args, tmp_path / "a.npy", "--overwrite")

    def full(*_):
        raise OSError(28, "No space left on device", "labels.npy")

    monkeypatch.setattr(np, "save", full)
    assert "labels.npy: No space left" in refused(EMBEDDING, *args, tmp_path / "b.npy")


def test_scaling_of_data(tmp_path):
    """The feature that tells the groups is wide; as narrow as the noise it tells less."""
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1, 2], 100)
    np.save(tmp_path / "y.npy", group)
    np.save(tmp_path / "x.npy", np.c_[10 * group, rng.normal(size=(300, 3)) * 0.01])
    args = [tmp_path / "x.npy", "--labels", tmp_path / "y.npy", "--n-clusters", "3"]
    args += ["--labels-out", tmp_path / "labels.npy", "--overwrite"]
    assert "accuracy 100.0 %" in done(EMBEDDING, *args, "--scaling", "none")
    assert "accuracy 100.0 %" not in done(EMBEDDING, *args)


@pytest.mark.parametrize("content", [b"no array", b""])
def test_damaged_arrays_are_named(base, tmp_path, content):
    shutil.copytree(base.folder, tmp_path / "run")
    (tmp_path / "run" / "embeddings.npy").write_bytes(content)
    assert "embeddings.npy is damaged" in refused(SELECT_K, tmp_path / "run", "--out", "a.png")
    labels = tmp_path / "run" / "labels.npy"
    labels.write_bytes(content)
    with pytest.raises(config.ConfigError, match="labels.npy is damaged; .* --labels-out"):
        run_directory._read_array(labels)
    labels.unlink()
    with pytest.raises(
        config.ConfigError, match="found no labels.npy; train it to the end, by --r"
    ):
        run_directory._read_array(labels)


def test_what_the_autoencoder_leaves_is_reported(base):
    left = logs.read_metrics(base.folder)["pretrain"]["loss"][-1]
    np.testing.assert_allclose(report_of(base.folder)["unexplained"]["values"], left)


def test_an_unfinished_run_has_no_codes(base, tmp_path):
    shutil.copytree(base.folder, tmp_path / "run")
    (tmp_path / "run" / "embeddings.npy").unlink()
    assert "expected a finished run" in refused(SELECT_K, tmp_path / "run", "--out", "a.png")


# --- the benchmark of k-means


def test_the_benchmark_of_kmeans_runs(monkeypatch, tmp_path):
    """Without its peers but scikit-learn, on small rows; no time is asserted."""
    module = script("benchmark_kmeans")
    monkeypatch.setattr(module, "FILES", {"cpu": tmp_path / "none.json"})
    nearest = dataclasses.replace(module.WORKLOADS["codes, neighbours"], rows="blobs")
    monkeypatch.setitem(module.WORKLOADS, "codes, neighbours", nearest)
    called = call(module, "--quick", "--workloads", "b", "b, seeding", "codes, neighbours")
    assert called.code == 0 and not (tmp_path / "none.json").exists()
    lines = [line for line in called.out.splitlines() if line.startswith("|")]
    assert lines[0].startswith("| workload | jax | jax, 2 devices | scikit-learn | extra MiB")
    assert lines[2].startswith("| b: blobs") and lines[2].count(" | ") == lines[0].count(" | ")
    assert lines[3].startswith("| workload | jax | scikit-learn | jax, k-means parallel |")
    assert lines[5].startswith("| b, seeding") and lines[5].count(" | ") == lines[3].count(" | ")
    assert module.roofline()[0].startswith("| on paper")
    for name in ("b", "codes, neighbours"):
        inertia = [
            ast.literal_eval(line[line.index("{") :])["inertia"]
            for line in called.out.splitlines()
            if re.match(f"{name}, round 1: (jax|scikit-learn) {{", line)
        ]
        assert len(inertia) == 2 and inertia[0] == pytest.approx(inertia[1]), name
    assert "expected workloads of 'a', 'usps'" in refused(module, "--workloads", "z")
    assert "--rounds >= 1" in refused(module, "--rounds", "0")
    assert "found 1 and no_python" in refused(module, "--rounds", "1", "--peer-python", "no_python")
