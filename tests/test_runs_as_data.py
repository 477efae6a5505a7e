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
    assert "first: 120 x 3 (tabular, scaling codes, 10 classes for scores)" in printed
    report, labels = report_of(out), data.load("digits", limit=120)[1]
    assert [row["name"] for row in report["baselines"]] == ["k-means on the codes"]
    assert report["data"]["shape"] == [120, 3]
    for s, found in enumerate(np.load(out / "labels_all.npy")):
        expected = metrics.external_scores(labels, found)
        for name, value in expected.items():
            assert report["external"][name]["values"][s] == pytest.approx(float(value))
    z = np.load(first / "embeddings.npy").astype(np.float64)
    given = run_directory.load(config.Data(data=str(first)))
    expected = (z - z.mean(axis=0)) / np.sqrt(z.var(axis=0).mean())
    np.testing.assert_allclose(given.dataset.x, expected, rtol=1e-4, atol=1e-5)
    assert given.dataset.n_clusters == 10
    assert (out / "samples.png").stat().st_size > 1000, "of the digits that the codes are of"


def test_python_is_told_where_the_codes_of_a_run_are(first):
    """Trap: its pictures were taken for data that lie in a wrong place, to be moved."""
    with pytest.raises(data.DataError, match="is the folder of a run; .*embeddings.npy with kind"):
        data.load(first)
    codes = data.load(first / "embeddings.npy", kind="tabular", scaling="none")[0]
    np.testing.assert_array_equal(codes.x, np.load(first / "embeddings.npy"))


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
    """Trap: the last network has no use for rows, which it never saw."""
    labels, codes = tmp_path / "labels.npy", tmp_path / "codes.npy"
    written = ["--labels-out", labels, "--embeddings-out", codes]
    done(script("cluster"), second[0], "digits", "--limit", "120", *written)
    np.testing.assert_array_equal(np.load(labels), np.load(second[0] / "labels.npy"))
    np.testing.assert_allclose(
        np.load(codes), np.load(second[0] / "embeddings.npy"), rtol=1e-5, atol=1e-5
    )
    args = [second[0], first / "embeddings.npy", "--labels-out", tmp_path / "l.npy"]
    assert "found rows of shape (3,)" in refused(script("cluster"), *args)


def test_new_rows_go_through_no_other_run(first, second, tmp_path, monkeypatch):
    """Traps: a run in its place that was trained anew, or none, from another folder or elsewhere,
    whose codes a network takes that never saw them."""
    cluster, labels = script("cluster"), tmp_path / "l.npy"
    for folder in (first, second[0]):
        shutil.copytree(folder, tmp_path / folder.name)
    args = [tmp_path / "second", "digits", "--limit", "120", "--labels-out", labels]
    settings = tmp_path / "second" / "preprocessing.json"
    settings.write_text(settings.read_text().replace(str(first), str(tmp_path / "gone" / "first")))
    monkeypatch.chdir(tmp_path / "second")
    done(cluster, *args)  # beside it
    values = json.loads((tmp_path / "second" / "config.json").read_text())
    values |= {"data": "runs/first"}  # from where it was trained
    (tmp_path / "second" / "config.json").write_text(json.dumps(values))
    found = run_directory.load(config.Data(data=str(tmp_path / "second")))
    np.testing.assert_array_equal(found.labels, data.load("digits", limit=120)[1])
    np.testing.assert_array_equal(np.load(labels), np.load(second[0] / "labels.npy"))
    codes = np.load(tmp_path / "first" / "embeddings.npy")
    np.save(tmp_path / "first" / "embeddings.npy", codes[::-1])
    assert "found others; they have changed since" in refused(cluster, *args, "--overwrite")
    shutil.rmtree(tmp_path / "first")
    assert "whose codes the run in" in refused(cluster, *args, "--overwrite")


def test_codes_are_clustered_where_their_data_are_gone(first, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(first, copy)
    values = json.loads((copy / "config.json").read_text()) | {"data": str(tmp_path / "gone.npy")}
    (copy / "config.json").write_text(json.dumps(values))
    rows, truth, k = run_directory.rows_of(str(copy))
    np.testing.assert_array_equal(rows, np.load(first / "embeddings.npy"))
    assert truth is None and k == 10
    assert f"no labels of {copy}: no file or folder" in capsys.readouterr().err
    assert run_directory.rows_of(str(first))[1] is not None
    assert capsys.readouterr().err == ""
    (copy / "config.json").write_text(json.dumps(values | {"data": "digits", "limit": 60}))
    assert run_directory.rows_of(str(copy))[1] is None
    assert "they have changed since" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args, words",
    [
        (["--labels", "y.csv"], "which has its own"),
        (["--limit", "50"], "which has its own"),
        (["--partner", "digits"], "which has its own"),
        (["--kind", "image"], "which has its own"),
        (["--augment", "affine"], "needs images, found tabular data"),
        (["--method", "rotation"], "--method rotation needs images, found tabular data"),
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
    (copy / "report.json").rename(tmp_path / "report.json")  # it was stopped while it was scored
    assert "found no report.json" in refused(TRAIN, "--data", copy, "--out", tmp_path / "no")
    (tmp_path / "report.json").rename(copy / "report.json")
    values = json.loads((copy / "config.json").read_text()) | {"limit": 60, "nuisance": None}
    (copy / "config.json").write_text(json.dumps(values))
    found = refused(TRAIN, "--data", copy, "--out", tmp_path / "no")
    assert "expected the 120 rows that the run" in found and "changed since" in found
    (copy / "config.json").write_text(json.dumps(values | {"no_option": 1}))
    assert "no_option" in refused(TRAIN, "--data", copy, "--out", tmp_path / "no")


def test_other_rows_of_the_same_number_are_refused(tmp_path):
    """Trap: labels and pictures of other rows, where the source was sorted anew."""
    x, order = np.random.default_rng(0).random((120, 3)), np.arange(120)
    np.savez(tmp_path / "d.npz", X=x, y=order % 10)
    given = ["--data", tmp_path / "d.npz", "--n-clusters", "10", "--method", "autoencoder"]
    done(TRAIN, *given, *SHORT, "--out", tmp_path / "run")
    np.savez(tmp_path / "d.npz", X=x[::-1], y=(order % 10)[::-1])
    assert "changed since" in refused(TRAIN, "--data", tmp_path / "run", "--out", tmp_path / "no")


def test_the_name_of_a_data_set_is_never_a_run(first, tmp_path, monkeypatch):
    shutil.copytree(first, tmp_path / "digits")
    shutil.copy(first.parent / "bright.npy", tmp_path)
    monkeypatch.chdir(tmp_path)
    found = run_directory.load(config.Data(data="digits", limit=50))
    assert found.dataset.kind == "image" and len(found.dataset.x) == 50
    assert run_directory.load(config.Data(data="./digits")).dataset.x.shape == (120, 3)


def test_nuisance_labels_that_are_gone_stop_only_who_needs_them(first, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(first, copy)
    values = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(values | {"nuisance": str(tmp_path / "gone")}))
    assert "gone" in refused(TRAIN, "--data", copy, "--out", tmp_path / "no")
    assert run_directory.rows_of(str(copy))[0].shape == (120, 3)
    np.save(tmp_path / "other.npy", np.arange(120) % 2)
    given = config.Data(data=str(copy), nuisance=str(tmp_path / "other.npy"))
    np.testing.assert_array_equal(run_directory.load(given).nuisance, np.arange(120) % 2)


def test_what_the_codes_descend_from_is_not_overwritten(first, second):
    """Trap: the last of a chain written over its first, whose labels it needs."""
    found = refused(TRAIN, "--data", second[0], "--out", first, "--overwrite")
    assert "--overwrite would delete" in found and (first / "embeddings.npy").exists()


def test_nor_is_it_where_it_was_moved(first, second, tmp_path):
    for folder in (first, second[0]):
        shutil.copytree(folder, tmp_path / folder.name)
    for name in ("config.json", "preprocessing.json"):
        file = tmp_path / "second" / name
        file.write_text(file.read_text().replace(str(first), str(tmp_path / "gone" / "first")))
    args = ["--data", tmp_path / "second", "--out", tmp_path / "first", "--overwrite"]
    assert "--overwrite would delete" in refused(TRAIN, *args)
    assert (tmp_path / "first" / "embeddings.npy").exists()


def test_a_run_of_its_own_codes_is_refused(first, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(first, copy)
    values = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(values | {"data": str(copy)}))
    assert "its own codes" in refused(TRAIN, "--data", copy, "--out", tmp_path / "no")


def test_a_run_is_no_partner_and_no_new_rows(first, tmp_path):
    given = ["--data", "digits", "--partner", first, "--method", "cross_modal"]
    assert "give its embeddings.npy" in refused(TRAIN, *given, "--out", tmp_path / "no")
    found = refused(script("cluster"), first, first, "--labels-out", tmp_path / "l.npy")
    assert "give rows like those that the run" in found


def test_the_run_that_is_read_is_not_overwritten(first):
    found = call(TRAIN, "--data", first, "--out", first, "--overwrite")
    assert found.code == 2 and "would delete" in found.err


def test_every_option_of_data_is_a_runs_own_or_can_be_given():
    """A new option has to be thought about where a run is the data."""
    names = {field.name for field in dataclasses.fields(config.Data)}
    own = {"labels", "limit", "partner", "partner_scaling", "kind"}
    given = {"data", "n_clusters", "nuisance", "scaling", "held_out", "parts", "made"}
    assert names - own == given
