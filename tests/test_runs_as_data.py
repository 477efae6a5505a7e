"""A finished run as data: its codes are the rows of another method, with labels and pictures."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from test_scripts import TRAIN, call, done, refused, report_of, script

from deepclust_jax import config, data, metrics
from deepclust_jax.report import run_directory

SHORT = ["--hidden", "8", "--embed-dim", "3", "--seeds", "2", "--epochs", "1"]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run on 120 digits whose nuisance labels are whether a picture is bright."""
    folder = tmp_path_factory.mktemp("runs")
    x = data.load("digits")[0].x
    bright = (x.mean(axis=(1, 2, 3)) > x.mean()).astype(int)
    np.save(folder / "bright.npy", bright)
    given = ["--data", "digits", "--limit", "120", "--nuisance", folder / "bright.npy"]
    done(TRAIN, *given, "--method", "autoencoder", *SHORT, "--out", folder / "first")
    return folder / "first"


@pytest.fixture(scope="module")
def second(first):
    out = first.parent / "second"
    return out, done(TRAIN, "--data", first, "--method", "autoencoder", *SHORT, "--out", out)


def test_the_codes_are_the_rows_and_the_labels_are_those_of_the_first(first, second):
    out, printed = second
    assert "first: 120 x 3 (tabular, scaling standard, 10 classes for scores)" in printed
    report, labels = report_of(out), data.load("digits", limit=120)[1]
    assert report["data"]["shape"] == [120, 3]
    for s, found in enumerate(np.load(out / "labels_all.npy")):
        expected = metrics.external_scores(labels, found)
        for name, value in expected.items():
            assert report["external"][name]["values"][s] == pytest.approx(float(value))
    z = np.load(first / "embeddings.npy").astype(np.float64)
    given = run_directory.load(config.Data(data=str(first)))
    np.testing.assert_allclose(
        given.dataset.x, (z - z.mean(axis=0)) / z.std(axis=0), rtol=1e-4, atol=1e-5
    )
    assert given.dataset.n_clusters == 10
    assert (out / "samples.png").stat().st_size > 1000, "of the digits that the codes are of"


def test_nuisance_labels_come_with_the_run_unless_others_are_given(first, second):
    bright = np.load(first.parent / "bright.npy")
    kept = np.random.default_rng(0).permutation(len(bright))[:120]
    given = run_directory.load(config.Data(data=str(first)))
    np.testing.assert_array_equal(given.nuisance, bright[kept])
    assert "nuisance" in report_of(second[0])
    np.save(first.parent / "other.npy", np.arange(120) % 3)
    other = config.Data(data=str(first), nuisance=str(first.parent / "other.npy"))
    np.testing.assert_array_equal(run_directory.load(other).nuisance, np.arange(120) % 3)


def test_a_run_of_a_run_has_the_labels_of_the_first(first, second):
    one, two = (run_directory.load(config.Data(data=str(run))) for run in (first, second[0]))
    np.testing.assert_array_equal(one.labels, two.labels)
    np.testing.assert_array_equal(two.shown.raw, one.shown.raw)
    np.testing.assert_array_equal(
        run_directory.rows_of(str(second[0]))[0], np.load(second[0] / "embeddings.npy")
    )


def test_new_rows_go_through_both_runs(first, second, tmp_path):
    cluster = script("cluster")
    codes, labels = tmp_path / "codes.npy", tmp_path / "labels.npy"
    done(cluster, first, "digits", "--limit", "120", "--embeddings-out", codes,
         "--labels-out", tmp_path / "of_first.npy")  # fmt: skip
    done(cluster, second[0], codes, "--labels-out", labels)
    np.testing.assert_array_equal(np.load(labels), np.load(second[0] / "labels.npy"))


@pytest.mark.parametrize(
    "args, words",
    [
        (["--labels", "y.csv"], "which has its own"),
        (["--limit", "50"], "which has its own"),
        (["--partner", "digits"], "which has its own"),
        (["--kind", "image"], "which has its own"),
        (["--augment", "affine"], "needs images, found tabular data"),
        (["--method", "rotation"], "needs square images"),
    ],
)
def test_what_a_run_cannot_be_given_is_refused(first, tmp_path, args, words):
    method = [] if "--method" in args else ["--method", "autoencoder"]
    assert words in refused(TRAIN, "--data", first, *method, *args, "--out", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_run_that_is_not_finished_or_whose_data_changed_is_refused(first, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(first, copy)
    (copy / "embeddings.npy").unlink()
    assert "expected a finished run" in refused(TRAIN, "--data", copy, "--out", tmp_path / "no")
    shutil.copy(first / "embeddings.npy", copy)
    values = json.loads((copy / "config.json").read_text()) | {"limit": 60, "nuisance": None}
    (copy / "config.json").write_text(json.dumps(values))
    found = refused(TRAIN, "--data", copy, "--out", tmp_path / "no")
    assert "expected the 120 rows of the run" in found and "found 60" in found


def test_the_run_that_is_read_is_not_overwritten(first):
    found = call(TRAIN, "--data", first, "--out", first, "--overwrite")
    assert found.code == 2 and "would delete" in found.err


def test_every_option_of_data_is_a_runs_own_or_can_be_given():
    """A new option has to be thought about where a run is the data."""
    names = {field.name for field in dataclasses.fields(config.Data)}
    own = {"labels", "limit", "partner", "kind"}
    assert names - own == {"data", "n_clusters", "nuisance", "scaling", "held_out", "parts"}
