"""The script for rotation prediction: what it trains on, prints and leaves."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
from test_scripts import CLUSTER, ROOT, TRAIN, done, refused, script

from deepclust_jax import config, data, phases, run, train
from deepclust_jax.algorithms import rotation
from deepclust_jax.data import preprocessing

sys.path.insert(0, str(ROOT / "scripts"))  # as for a script that is run
ROTATION = script("train_rotation")
SMALL = ["--limit", "200", "--hidden", "8", "8", "--embed-dim", "4", "--seeds", "2"]


@pytest.fixture(scope="module")
def run_of_digits(tmp_path_factory):
    out = tmp_path_factory.mktemp("rotation") / "run"
    args = [*SMALL, "--epochs", "3", "--held-out", "50", "--out", out]
    return out, done(ROTATION, *args)


def test_turns_and_blocks_are_reported(run_of_digits):
    out, printed = run_of_digits
    report = json.loads((out / "report.json").read_text())
    found = report["pretext"]
    assert found["rows"] == "rows held out" and len(found["accuracy"]["values"]) == 2
    assert f"turns found [%], rows held out: {100 * found['accuracy']['mean']:.1f} ± " in printed
    assert "(25 by chance)" in printed
    assert set(found["by_class"]) == set("0123456789")
    kept, x = run.restore(out), data.load("digits", limit=200)[0].x[-50:]
    nets = rotation.build_nets(rotation.Config(hidden=(8, 8)), x.shape[1:])
    by_image = jax.vmap(lambda state: rotation.accuracy(state, x, nets))(kept.state)
    assert found["alike"] == pytest.approx((by_image.max(axis=0) <= 0.5).mean()) != 0
    assert sum(block["chosen"] for block in found["blocks"]) == 2
    for i, block in enumerate(found["blocks"], 1):
        mean = block["external"]["accuracy"]["mean"]
        assert (
            f"block {i}: labels {block['chosen']} of 2 runs; accuracy {100 * mean:.1f}" in printed
        )
    chosen = [i for i, block in enumerate(found["blocks"]) if block["chosen"] == 2]
    for i in chosen:  # the block that labels: its clusters are those of the run
        assert found["blocks"][i]["external"] == report["external"]


def test_the_block_may_be_given():
    shape = (60, 8, 8, 1)
    network = ["--hidden", "8", "8", "--embed-dim", "4"]
    images = config.parse(["--method", "rotation", "--block", "2", "--n-clusters", "3", *network])
    algorithm = phases.of(config.resolve(images), shape)[0].algorithm
    x = jax.random.normal(jax.random.key(0), shape)
    state = train.init(jax.random.key(0), algorithm, x)
    assert int(train.refresh(jax.random.key(0), algorithm, state, x).block) == 1
    for block, words in (("4", "--block <= 3, as many as --hidden"), ("0", "--block >= 1")):
        with pytest.raises(config.ConfigError, match=words):
            config.resolve(config.parse(["--method", "rotation", "--block", block]))
    with pytest.raises(config.ConfigError, match="--block 1 is no option of --method mmdc"):
        config.resolve(config.parse(["--method", "mmdc", "--block", "1"]))


def test_rows_held_out_are_labelled_and_scored_but_not_trained_on(run_of_digits, tmp_path):
    out, printed = run_of_digits
    report = json.loads((out / "report.json").read_text())
    assert np.load(out / "labels.npy").shape == (200,)
    assert report["held_out"]["rows"] == 50
    assert "The 50 rows held out of training: accuracy " in printed
    # Other rows in their place change nothing of what was learnt.
    rows = data.load("digits", limit=200)[0].x.copy()
    rows[-50:] = np.random.default_rng(0).random((50, 8, 8, 1))
    np.save(tmp_path / "others.npy", rows)
    args = [
        "--data", tmp_path / "others.npy", "--kind", "image", "--scaling", "none", "--limit",
        "None", "--n-clusters", "10", "--epochs", "3", "--held-out", "50",
    ]  # fmt: skip
    done(ROTATION, *SMALL, *args, "--out", tmp_path / "run")
    kept, other = (run.restore(folder) for folder in (out, tmp_path / "run"))
    for a, b in zip(jax.tree.leaves(kept.state), jax.tree.leaves(other.state), strict=True):
        np.testing.assert_array_equal(a, b)
    found = np.load(tmp_path / "run" / "labels_all.npy")
    np.testing.assert_array_equal(found[:, :-50], np.load(out / "labels_all.npy")[:, :-50])
    assert (found[:, -50:] != np.load(out / "labels_all.npy")[:, -50:]).any()


def test_a_finished_run_labels_new_rows(run_of_digits, tmp_path):
    out, _ = run_of_digits
    done(CLUSTER, out, "digits", "--labels-out", tmp_path / "new.npy")
    assert np.load(tmp_path / "new.npy").shape == (1797,)


@pytest.mark.parametrize(
    "args, words",
    [
        (["--method", "dcn"], "expected no --method, which is rotation here"),
        (["--network", "mlp"], "needs --network conv and --precision float32, found mlp"),
        (["--precision", "bfloat16"], "needs --network conv and --precision float32, found conv"),
        (["--embed-dim", "64"], "expected --embed-dim <= 32, the features of the network"),
        (["--held-out", "-1"], "expected --held-out >= 0, found -1"),
        (["--held-out", "195"], "expected --held-out <= 190, which leaves a row for each cluster"),
        (["--weight", "1"], "--weight 1.0 is no option of --method rotation"),
        (["--merge"], "expected --method dcn, n2d, contrastive beside --merge"),
    ],
)
def test_what_cannot_work_is_refused(args, words, tmp_path):
    given = [a for a in SMALL if args[0] != "--embed-dim" or a not in ("--embed-dim", "4")]
    assert words in refused(ROTATION, *given, *args, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shape", [(30, 8), (30, 8, 6, 1)])
def test_rows_that_do_not_turn_into_themselves_are_refused(shape, tmp_path):
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).random(shape))
    kind = "image" if len(shape) == 4 else "tabular"
    args = ["--data", tmp_path / "rows.npy", "--kind", kind, "--n-clusters", "3"]
    found = refused(TRAIN, "--method", "rotation", *args, "--out", tmp_path / "run")
    wanted = "square images [h, h, c]" if kind == "image" else "images, found tabular data"
    assert f"--method rotation needs {wanted}" in found


def test_rows_that_stay_on_disk_cannot_be_held_out():
    dataset, _ = data.load("digits", limit=40)
    on_disk = dataclasses.replace(dataset, x=preprocessing.Rows(dataset.preprocessing, dataset.raw))
    options = config.Options(data=config.Data(held_out=10))
    assert TRAIN.rows_to_train(options, dataset).shape[0] == 30
    with pytest.raises(config.ConfigError, match="expected rows that fit in memory beside --held"):
        TRAIN.rows_to_train(options, on_disk)
