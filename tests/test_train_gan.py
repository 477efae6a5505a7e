"""The script for GANs: what it trains, measures, draws and refuses."""

import json
import sys

import numpy as np
import pytest
from test_scripts import CLUSTER, ROOT, done, refused, script

from deepclust_jax import config, run
from deepclust_jax.report import pretext, tables

sys.path.insert(0, str(ROOT / "scripts"))  # as for a script that is run
GAN = script("train_gan")
SMALL = ["--hidden", "16", "8", "--embed-dim", "4", "--seeds", "2", "--epochs", "2"]


@pytest.fixture(scope="module")
def run_of_digits(tmp_path_factory):
    out = tmp_path_factory.mktemp("gan") / "run"
    return out, done(GAN, *SMALL, "--limit", "200", "--out", out)


def test_made_rows_are_kept_drawn_and_measured(run_of_digits):
    out, printed = run_of_digits
    made = np.load(out / "made.npy")
    assert made.shape == (200, 8, 8, 1) and 0.0 <= made.min() < made.max() <= 1.0
    assert (out / "made.png").stat().st_size > 1000
    found = json.loads((out / "report.json").read_text())["pretext"]
    assert found["compared"] == 200
    assert list(found["made"]) == [
        "classes", "copies", "coverage", "density", "frechet", "precision", "recall", "spread"
    ]  # fmt: skip
    assert all(len(score["values"]) == 2 for score in found["made"].values())
    assert "200 made rows beside as many real ones:" in printed
    assert f"  coverage [%] {100 * found['made']['coverage']['mean']:.1f} ± " in printed


def test_new_rows_are_clustered_by_what_was_learnt(run_of_digits, tmp_path):
    out, _ = run_of_digits
    done(CLUSTER, out, "digits", "--limit", "200", "--labels-out", tmp_path / "l.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "l.npy"), np.load(out / "labels.npy"))


def test_points_without_labels_are_drawn(tmp_path):
    rows = np.random.default_rng(0).normal(size=(60, 2))
    np.save(tmp_path / "rows.npy", rows)
    args = ["--data", tmp_path / "rows.npy", "--n-clusters", "3", "--objective", "wasserstein"]
    printed = done(GAN, *SMALL, *args, "--out", tmp_path / "run")
    assert np.load(tmp_path / "run" / "made.npy").shape == (60, 2)
    assert (tmp_path / "run" / "made.png").stat().st_size > 1000
    found = json.loads((tmp_path / "run" / "report.json").read_text())["pretext"]["made"]
    assert "classes" not in found and "classes" not in printed.split("made rows")[1]


def test_a_generator_that_makes_real_rows_is_measured_as_that(monkeypatch):
    """Worked: run 0 makes the rows themselves, run 1 one row of the first class over and over."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 30)
    x = np.float32(10.0 * labels[:, None] + rng.normal(size=(90, 2)))
    made = np.stack([x, np.repeat(x[:1], 90, axis=0)])
    found = pretext.of_gan(made, x, labels)
    assert found["made"]["classes"]["values"] == [3.0, 1.0]
    assert found["made"]["coverage"]["values"][0] == 1.0
    assert found["made"]["coverage"]["values"][1] < 0.2
    assert found["made"]["copies"]["values"][0] == 0.0
    assert found["made"]["spread"]["values"] == pytest.approx([1.0, 0.0], abs=1e-6)
    assert found["collapsed"] == [1]
    assert "collapsed, made rows are all alike: runs [1]" in tables._pretext(found)
    assert "frechet" in found["made"]
    monkeypatch.setattr(pretext, "_WIDEST", 1)
    assert "frechet" not in pretext.of_gan(made, x, labels)["made"]


def options(*args):
    args = ["--n-clusters", "3", "--method", "gan", *args]
    return config.resolve(config.parse(args))


def test_options_reach_the_algorithm():
    given = options("--objective", "wasserstein", "--penalty", "3", "--hidden", "9", "7",
                    "--embed-dim", "5", "--learning-rate", "0.5")  # fmt: skip
    own = run.gan_config(given, is_bounded=True)
    assert (own.objective, own.penalty, own.ratio, own.hidden) == ("wasserstein", 3.0, 5, (9, 7))
    assert (own.n_clusters, own.embed_dim, own.learning_rate) == (3, 5, 0.5) and own.is_bounded
    plain = run.gan_config(options(), is_bounded=False)
    assert (plain.objective, plain.penalty, plain.ratio) == ("logistic", 10.0, 1)


def test_rows_in_0_to_1_are_told_from_others():
    assert run.is_bounded(np.array([[0.0, 1.0]])) and not run.is_bounded(np.array([[0.0, 1.1]]))
    assert not run.is_bounded(np.array([[-0.1, 1.0]]))


@pytest.mark.parametrize(
    "args, words",
    [
        (["--objective", "agreement"], "expected --objective logistic, hinge, wasserstein beside"),
        (["--penalty", "-1"], "expected 0 <= --penalty < inf"),
        (["--network", "conv", "--data", "pendigits"], "needs images"),
        (["--precision", "bfloat16"], "--method gan needs --precision float32"),
        (["--embed-dim", "300"], "expected --embed-dim <= 256, the last of --hidden"),
        (["--weight", "1"], "--weight 1.0 is no option of --method gan"),
    ],
)
def test_what_does_not_fit_is_refused(args, words):
    with pytest.raises(config.ConfigError, match=words):
        shape = (50, 16) if "pendigits" in args else (50, 8, 8, 1)
        run.phases(options(*args), shape)


def test_objectives_of_gan_are_none_of_info_max():
    with pytest.raises(config.ConfigError, match="expected --objective information, agreement, in"):
        options("--method", "info_max", "--objective", "hinge")
    with pytest.raises(config.ConfigError, match="--penalty 2.0 is no option of --method dcn"):
        options("--method", "dcn", "--penalty", "2")


def test_another_method_is_refused(tmp_path):
    assert "expected no --method, which is gan here" in refused(GAN, "--method", "dcn")
