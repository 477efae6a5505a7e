"""The script for GANs: what it trains, measures, draws and refuses."""

import functools
import json
import re
import shutil
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_scripts import CLUSTER, ROOT, TRAIN, done, refused, script

from deepclust_jax import checkpoint, config, data, phases, run, train
from deepclust_jax.metrics import classifier
from deepclust_jax.report import film, lost, pretext, run_directory
from deepclust_jax.types import Batch

sys.path.insert(0, str(ROOT / "scripts"))  # as for a script that is run
GAN = script("train_gan")
SMALL = ["--hidden", "16", "8", "--embed-dim", "4", "--seeds", "2", "--epochs", "2"]


@pytest.fixture(scope="module", autouse=True)
def judged_soon():
    """The classifier of scores learns for fewer steps; tests/test_classifier.py has all of them.
    And no figures are drawn that runs of other methods have as well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "_STEPS", 200)
        patch.setattr(run_directory, "_write_figures", lambda *given: None)
        yield


@pytest.fixture(scope="module")
def run_of_digits(tmp_path_factory):
    out = tmp_path_factory.mktemp("gan") / "run"
    return out, done(GAN, *SMALL, "--limit", "200", "--out", out)


@pytest.fixture(scope="module")
def coded_run(tmp_path_factory):
    """Finished runs of the methods with a code, by the method; tests leave them as they are."""

    @functools.cache
    def of(method):
        out = tmp_path_factory.mktemp(method) / "run"
        args = ["--method", method, "--limit", "200", "--prior", *"1111111112"]
        args += ["--augment", "affine"] if method == "info_gan" else []
        done(GAN, *SMALL, *args, "--out", out)
        return out

    return of


def test_made_rows_are_kept_drawn_and_measured(run_of_digits):
    out, printed = run_of_digits
    made = np.load(out / "made.npy")
    assert made.shape == (200, 8, 8, 1) and 0.0 <= made.min() < made.max() <= 1.0
    assert (out / "made.png").stat().st_size > 1000
    report = json.loads((out / "report.json").read_text())
    found = report["pretext"]
    assert found["compared"] == 200
    assert {one["reason"] for one in report["lost"]} <= {"narrow"}  # of two epochs
    assert list(found["made"]) == [
        "classes", "copied", "copies", "coverage", "density", "frechet", "occupied", "precision",
        "recall", "spread",
    ]  # fmt: skip
    assert all(len(score["values"]) == 2 for score in found["made"].values())
    judge = found["judged"]
    assert judge["accuracy"] > 0.8 and 1 <= max(judge["made"]["classes"]["values"]) <= 10
    assert list(found["over_training"]) == ["1", "2"]
    assert found["over_training"]["2"]["frechet"] > 0
    assert "by the features of a classifier that is right on" in printed
    assert "run 0, after epoch 1: frechet" in printed
    assert "200 made rows beside as many real ones:" in printed
    assert f"  coverage [%] {100 * found['made']['coverage']['mean']:.1f} ± " in printed


def test_a_game_without_labels_is_the_same_game(run_of_digits, tmp_path):
    """No label decides what is made, how rows are clustered, or which run is kept."""
    out, _ = run_of_digits
    np.save(tmp_path / "x.npy", np.asarray(data.load("digits", limit=200)[0].raw)[..., 0])
    files = ["--data", tmp_path / "x.npy", "--kind", "image", "--n-clusters", "10"]
    done(GAN, *SMALL, *files, "--limit", "None", "--out", tmp_path / "run")
    for name in ("made.npy", "labels.npy", "labels_all.npy", "embeddings.npy"):
        np.testing.assert_array_equal(np.load(tmp_path / "run" / name), np.load(out / name))
    with_labels, without = (
        json.loads((folder / "report.json").read_text()) for folder in (out, tmp_path / "run")
    )
    assert without["chosen"] == with_labels["chosen"] and not without["external"]
    own = with_labels["pretext"]["made"]
    assert without["pretext"]["made"] == {name: own[name] for name in own if name != "classes"}


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


def reasons(played):
    """Of a game of which no step was missed, why which run is lost."""
    n = len(played["made"]["spread"]["values"])
    gone = lost.of_game(played, 3, np.zeros(n, bool), np.ones((1, n)), np.ones((1, n)))
    return {one["run"]: one["reason"] for one in lost.listed(gone)}


def test_a_generator_that_makes_real_rows_is_measured_as_that(monkeypatch):
    """Worked: run 0 makes the rows themselves, run 1 one row of the first class over and over, run
    2 rows of the first class."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 30)
    x = np.float32(10.0 * labels[:, None] + rng.normal(size=(90, 4)))
    one_class = np.float32(x[:1] + rng.normal(size=(90, 4)))
    made = np.stack([x, np.repeat(x[:1], 90, axis=0), one_class])
    found = pretext.of_game(made, x, 3)
    assert pretext.classes_made(made, x, labels)["values"] == [3.0, 1.0, 1.0]
    assert found["made"]["occupied"]["values"] == [3.0, 1.0, 1.0]
    assert found["made"]["coverage"]["values"][0] == 1.0
    assert found["made"]["coverage"]["values"][1] < 0.2
    assert found["made"]["copies"]["values"][0] == 0.0
    assert found["made"]["copied"]["values"][0] == 1.0
    assert found["made"]["spread"]["values"][:2] == pytest.approx([1.0, 0.0], abs=1e-6)
    assert "frechet" in found["made"]
    assert reasons(found) == {1: "collapsed", 2: "narrow"}
    monkeypatch.setattr(pretext, "WIDEST", 1)
    assert "frechet" not in pretext.of_game(made, x, 3)["made"]


def test_the_run_kept_of_two_is_the_one_that_covers_more(run_of_digits):
    """Trap: the loss of a game does not tell which run is better."""
    report = json.loads((run_of_digits[0] / "report.json").read_text())
    made = report["pretext"]["made"]
    covered = np.min([made[name]["values"] for name in ("coverage", "recall")], axis=0)
    assert report["objective"]["values"] == pytest.approx(list(1.0 - covered))
    assert covered[report["chosen"]["run"]] == max(covered)
    is_tie = covered[0] == covered[1]
    words = "of the same uncovered share" if is_tie else "lowest uncovered share of 2 runs"
    assert words in report["chosen"]["reason"]
    assert "uncovered share" in run_of_digits[1] and "final loss" not in run_of_digits[1]


def test_one_row_in_the_middle_covers_nothing():
    """Trap: of wide rows, many have the mean of all among their neighbours."""
    x = np.random.default_rng(0).normal(size=(300, 200)).astype(np.float32)
    found = pretext.of_game(np.stack([x, np.zeros_like(x)]), x, 3)
    assert found["made"]["coverage"]["values"][1] > 0.1
    assert pretext.uncovered(found).tolist() == [0.0, 1.0]
    assert reasons(found) == {1: "collapsed"}


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e12, 1e30])
def test_made_rows_that_are_no_numbers_are_measured_as_nothing(value):
    """Trap: an eigenvalue that does not converge ends a run after its training."""
    x = np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32)
    made = np.where(x > 0, np.float32(value), x)
    found = pretext.of_game(made[None], x, 3)
    assert reasons(found) == {0: "diverged"}
    assert found["made"]["recall"]["values"] == [0.0]
    assert np.isnan(found["made"]["frechet"]["values"]).all()
    labels = np.arange(90) % 2
    assert pretext.classes_made(made[None], x, labels)["values"] == [0.0]
    assert pretext.judged(made[None], x, labels)["made"]["classes"]["values"] == [0.0]


def test_a_generator_far_beyond_the_rows_has_exploded():
    """Trap: its loss is finite, and it agrees with itself."""
    x = np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32)
    found = pretext.of_game(np.stack([1e5 * x, x]), x, 3)
    assert reasons(found) == {0: "diverged"}


def test_copies_are_looked_for_among_all_rows(monkeypatch):
    """Trap: of many rows some are compared, and a copy is of another one."""
    monkeypatch.setattr(pretext, "_MADE", 90)
    x = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    some = np.delete(x, pretext.compared(200, 90), axis=0)[:90]
    assert pretext.of_game(some[None], x, 3)["made"]["copies"]["values"] == [0.0]


def test_a_class_that_the_classifier_did_not_see(monkeypatch):
    """Trap: of very many rows it learns some, which may lack the rarest class."""
    monkeypatch.setattr(pretext, "_LEARNT", 50)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 100)
    labels[51] = 2
    x = np.float32(labels[:, None] + 0.1 * rng.normal(size=(100, 3)))
    made = x[None]
    assert pretext.judged(made, x, labels)["made"]["classes"]["values"][0] in (2.0, 3.0)
    rare = np.zeros(100, int)
    rare[51] = 1
    assert pretext.judged(made, x, rare) is None


def test_stacks_of_digits_are_counted_by_the_digit_in_each_colour(monkeypatch):
    """Run 0 makes all stacks of 0, 1 and 2, run 1 nothing but one; labels are numbers of those that
    are there, as of few rows not all are."""
    rng = np.random.default_rng(0)
    patterns = rng.normal(size=(10, 4, 4)).astype(np.float32)
    digits = rng.integers(0, 10, (400, 3))
    x = np.moveaxis(patterns[digits], 1, 3) + np.float32(0.1 * rng.normal(size=(400, 4, 4, 3)))
    names, labels = np.unique(digits @ [100, 10, 1], return_inverse=True)
    dataset = SimpleNamespace(x=x, classes=tuple(map(str, names)))
    made = np.stack(np.meshgrid([0, 1, 2], [0, 1, 2], [0, 1, 2]), axis=-1).reshape(-1, 3)

    def makers(options, x):
        return lambda state: pretext.Maker(
            lambda key, n: np.arange(n) % 27 if state["run"] == 0 else np.zeros(n, int),
            lambda z: np.moveaxis(patterns[made[z]], 1, 3),
        )

    monkeypatch.setattr(pretext, "makers", makers)
    monkeypatch.setattr(pretext, "_AT_ONCE", 27 * 100)
    monkeypatch.setattr(pretext, "_STACKS", 27 * 100)
    trained = SimpleNamespace(state={"run": np.arange(2)})
    options = config.Options(run=config.Run(seeds=2))
    found = pretext.of_stacked(options, dataset, labels.reshape(-1), trained)
    assert found["accuracy"] == 1.0
    assert found["modes"]["values"] == found["classes"]["values"] == [27, 1]
    wanted = [np.log(1000 / 27), np.log(1000)]
    assert found["divergence"]["values"] == pytest.approx(wanted)


def test_a_run_that_diverges_is_named_and_keeps_its_weights(tmp_path):
    """Trap: a game that is lost ends in NaN, and so does the run; of a table, whose made rows have
    no bounds, in those too."""
    np.save(tmp_path / "t.npy", np.random.default_rng(0).normal(size=(60, 5)))
    np.save(tmp_path / "labels.npy", np.arange(60) % 3)
    args = ["--data", tmp_path / "t.npy", "--n-clusters", "3", "--scaling", "none", "--seeds", "1",
            "--learning-rate", "1e30", "--hidden", "8", "--embed-dim", "2",
            "--labels", tmp_path / "labels.npy"]  # fmt: skip
    printed = done(GAN, *args, "--epochs", "30", "--out", tmp_path / "run")
    assert "that of the pretraining: runs 0 (from epoch 2 of train on)" in printed
    assert np.isfinite(np.load(tmp_path / "run" / "embeddings.npy")).all()
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    # A step an epoch.
    assert report["lost"] == [{"run": 0, "reason": "diverged", "phase": "train", "epoch": 2}]
    assert report["chosen"]["reason"] == "The only run is lost."


def test_a_run_goes_on_and_is_repeated_as_the_method_it_is_of(coded_run, tmp_path):
    """Trap: the script's own method in place of that of the file."""
    out = shutil.copytree(coded_run("info_gan"), tmp_path / "run")
    done(GAN, "--resume", "--out", out)
    done(GAN, "--config", out / "config.json", "--out", tmp_path / "again")
    kept = json.loads((tmp_path / "again" / "config.json").read_text())
    assert kept["method"] == "info_gan"


def test_held_out_rows_do_not_decide_which_run_is_kept(monkeypatch, tmp_path):
    """Trap: what is held out of training is not held out of the choice."""
    compared, of_game = [], pretext.of_game
    monkeypatch.setattr(
        pretext, "of_game", lambda made, x, k: compared.append(x) or of_game(made, x, k)
    )
    for name in ("judged", "classes_made"):
        own = getattr(pretext, name)
        monkeypatch.setattr(
            pretext, name, lambda made, x, y, own=own: compared.append(x) or own(made, x, y)
        )
    done(GAN, *SMALL, "--limit", "220", "--held-out", "20", "--out", tmp_path / "run")
    x = data.load("digits", limit=220)[0].x
    assert len(compared) == 3
    for rows in compared:
        np.testing.assert_array_equal(rows, x[:200])
    assert np.load(tmp_path / "run" / "made.npy").shape == (200, 8, 8, 1)


def test_frames_of_a_film_are_of_the_same_latents(coded_run, monkeypatch, tmp_path):
    drawn, makers = [], pretext.makers

    def watched(options, x):
        maker_of = makers(options, x)

        def of_state(state):
            own = maker_of(state)
            return own._replace(make=lambda z: drawn.append(np.asarray(z)) or own.make(z))

        return of_state

    monkeypatch.setattr(pretext, "makers", watched)
    options = run.read_options(coded_run("info_gan"))
    x = data.load("digits", limit=200)[0].x
    (phase,) = phases.of(options, x.shape, is_bounded=True)
    state = train.init(run.seed_keys(options), phase.algorithm, x)
    watch = film.watcher(tmp_path, options, x, "image")
    for epoch in (1, 2):
        watch(epoch, 2, state)
    first, second = drawn[:2], drawn[2:]  # those measured, and those of the picture
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("worse", ["collapsed", "narrow"])
def test_a_run_that_makes_one_kind_of_rows_is_set_aside(monkeypatch, tmp_path, worse):
    """Of the second one 0 is made of real rows of one class, which have a spread of their own."""
    found = pretext.of_game

    def of_game(made, x, k):
        labels = data.load("digits", limit=200)[1]
        some = np.resize(x[labels == 3], made[0].shape)
        first = 0.0 * made[0] if worse == "collapsed" else some
        return found(np.stack([first, x]), x, k)

    monkeypatch.setattr(pretext, "of_game", of_game)
    done(GAN, *SMALL, "--limit", "200", "--out", tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["lost"] == [{"run": 0, "reason": worse, "phase": None, "epoch": None}]
    assert report["chosen"]["run"] == 1
    assert "1 lost set aside" in report["chosen"]["reason"]


def test_held_out_rows_do_not_decide_the_range(tmp_path):
    """Trap: a sigmoid at the end is dropped where rows held out leave 0..1."""
    rows = data.load("digits", limit=220)[0].x.copy()
    rows[-20:] += 2.0
    np.save(tmp_path / "rows.npy", rows)
    args = ["--data", tmp_path / "rows.npy", "--kind", "image", "--scaling", "none"]
    args += ["--n-clusters", "10", "--held-out", "20"]
    done(GAN, *SMALL, *args, "--out", tmp_path / "run")
    made = np.load(tmp_path / "run" / "made.npy")
    assert made.min() >= 0.0 and made.max() <= 1.0


def test_the_generators_rate_falls_with_the_steps_of_the_game():
    """Trap: a schedule that counts every fifth step never comes to its end."""
    given = options("--objective", "wasserstein", "--epochs", "4", "--batch-size", "10",
                    "--hidden", "8", "--embed-dim", "2")  # fmt: skip
    algorithm = phases.of(given, (50, 3))[0].algorithm
    rows = jax.random.normal(jax.random.key(0), (10, 3))
    batch = Batch(rows, jnp.arange(10), jnp.ones(10))
    state = algorithm.init(jax.random.key(0), batch)
    step, moved = jax.jit(algorithm.step), []
    for _ in range(25):  # 4 epochs of 5 steps; the last ones are past the end
        new, _ = step(jax.random.key(1), state, batch)
        pairs = zip(*(jax.tree.leaves(s.params["generator"]) for s in (new, state)), strict=True)
        moved.append(max(float(jnp.abs(a - b).max()) for a, b in pairs))
        state = new
    assert 0.0 < moved[19] < 0.5 * moved[4] and moved[24] == 0.0  # rates 1 and 1/4


def test_wasserstein_has_its_penalty_in_every_profile():
    for profile in ("practical", "paper"):
        given = options("--profile", profile, "--objective", "wasserstein")
        assert given.method.penalty == 10.0
    assert options("--profile", "paper").method.penalty == 0.0


def options(*args):
    args = ["--n-clusters", "3", "--method", "gan", *args]
    return config.resolve(config.parse(args))


def test_options_reach_the_algorithm():
    given = options("--objective", "wasserstein", "--penalty", "3", "--hidden", "9", "7",
                    "--embed-dim", "5", "--learning-rate", "0.5")  # fmt: skip
    own = phases.game_config(given, is_bounded=True)
    assert (own.objective, own.penalty, own.ratio, own.hidden) == ("wasserstein", 3.0, 5, (9, 7))
    assert (own.n_clusters, own.embed_dim, own.learning_rate) == (3, 5, 0.5) and own.is_bounded
    plain = phases.game_config(options(), is_bounded=False)
    assert (plain.objective, plain.penalty, plain.ratio) == ("logistic", 10.0, 1)


def test_rows_in_0_to_1_are_told_from_others():
    assert phases.is_bounded(np.array([[0.0, 1.0]])) and not phases.is_bounded(
        np.array([[0.0, 1.1]])
    )
    assert not phases.is_bounded(np.array([[-0.1, 1.0]]))


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
        phases.of(options(*args), shape)


def test_objectives_of_gan_are_none_of_info_max():
    with pytest.raises(config.ConfigError, match="expected --objective information, agreement, in"):
        options("--method", "info_max", "--objective", "hinge")
    with pytest.raises(config.ConfigError, match="--penalty 2.0 is no option of --method dcn"):
        options("--method", "dcn", "--penalty", "2")


def test_another_method_is_refused(tmp_path):
    printed = refused(GAN, "--method", "dcn")
    assert "expected --method gan, info_gan, cluster_gan, bi_gan, found dcn; use" in printed


@pytest.mark.parametrize("method", ["info_gan", "cluster_gan", "bi_gan"])
def test_methods_with_a_code(coded_run, method, tmp_path):
    """From the command line: rows of each cluster are drawn, and new rows labelled by the code."""
    out = coded_run(method)
    found = json.loads((out / "report.json").read_text())
    assert "coverage" in found["pretext"]["made"]
    for name in ("made.png", "walk.png", "film.gif"):
        assert (out / name).stat().st_size > 500, name
    assert sorted(f.name for f in (out / "frames").iterdir()) == ["000001.png", "000002.png"]
    done(CLUSTER, out, "digits", "--limit", "200", "--labels-out", tmp_path / "l.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "l.npy"), np.load(out / "labels.npy"))
    if method == "info_gan":
        rows_of_a_cluster_as_in_the_readme(out)


def rows_of_a_cluster_as_in_the_readme(folder):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```py\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert code.count('"runs/digits-info_gan"') == 1
    code = code.replace('"runs/digits-info_gan"', repr(str(folder)))
    names = {"dataset": data.load("digits", limit=200)[0], "jax": jax, "run": run}
    exec(compile(code, "README.md", "exec"), names)
    assert names["rows"].shape == (8, 8, 8, 1) and np.isfinite(names["rows"]).all()
    np.testing.assert_allclose(names["way"][0], names["rows"], atol=1e-6)
    np.testing.assert_allclose(names["way"][-1], names["maker"].make(names["five"]), atol=1e-6)
    assert np.abs(names["way"][-1] - names["rows"]).max() > 0
    for clusters in (jnp.full(8, 10), jnp.full(8, -1), jnp.full(8, 0.5), jnp.zeros(7, int)):
        with pytest.raises(ValueError, match=r"expected clusters \[8\] of 0 to 9, found"):
            names["maker"].latents(names["key"], 8, clusters)


def test_a_film_has_the_frames_of_the_same_latents(run_of_digits):
    from PIL import Image

    out, _ = run_of_digits
    frames = sorted((out / "frames").iterdir())
    with Image.open(out / "film.gif") as film:
        assert film.n_frames == len(frames) == 2
    board = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = board.EventAccumulator(str(out / "tensorboard" / "film")).Reload()
    measured = json.loads((out / "report.json").read_text())["pretext"]["over_training"]
    for name in ("frechet", "coverage"):
        found = {str(event.step): event.value for event in events.Scalars(f"made/{name}")}
        assert found == pytest.approx({epoch: own[name] for epoch, own in measured.items()})
    first, last = (np.asarray(Image.open(frame)) for frame in frames)
    assert first.shape == last.shape and (first != last).any()
    with Image.open(out / "walk.png") as walk:
        assert walk.size[0] == walk.size[1]  # ten steps from each of ten


def test_a_walk_begins_and_ends_at_its_latents():
    """Of gan on a circle, so that all on the way is as long as the ends; of codes in a line."""
    given = options("--method", "info_gan")
    z = np.zeros((1, 64 + 3), np.float32)
    z[0, :64] = np.arange(64)
    seen = []
    maker = pretext.Maker(lambda key, n, *clusters: jnp.asarray(z), lambda z: seen.append(z) or z)
    film.walks(maker, jax.random.key(0), given)
    way = np.asarray(seen[0]).reshape(3, 10, 67)
    np.testing.assert_allclose(way[:, :, :64], np.broadcast_to(z[0, :64], (3, 10, 64)))
    np.testing.assert_allclose(way[:, 0, 64:], np.eye(3))
    np.testing.assert_allclose(way[:, -1, 64:], np.roll(np.eye(3), -1, axis=0))
    ends = jax.random.normal(jax.random.key(0), (10, 5))
    maker = maker._replace(latents=lambda key, n: ends)
    film.walks(maker, jax.random.key(0), options())
    way = np.asarray(seen[1]).reshape(10, 10, 5)
    np.testing.assert_allclose(way[:, 0], ends, atol=1e-6)
    np.testing.assert_allclose(way[:, -1], np.roll(ends, -1, axis=0), atol=1e-6)


@pytest.mark.parametrize(
    "args, words",
    [
        (["--prior", "1", "2"], "--prior: expected a prior of 3 sizes > 0, one for each cluster"),
        (["--prior", "1", "2", "0"], "--prior: expected a prior of 3 sizes > 0"),
    ],
)
def test_a_prior_that_does_not_fit_is_refused(args, words):
    with pytest.raises(config.ConfigError, match=words):
        phases.of(options("--method", "cluster_gan", *args), (50, 8))
    with pytest.raises(config.ConfigError, match="is no option of --method gan"):
        options("--prior", "1", "1", "1")


def test_made_rows_are_trained_on_beside_the_real_ones(run_of_digits, tmp_path):
    """For few samples: twice as many rows, of which the real ones are labelled."""
    out, _ = run_of_digits
    args = ["--method", "autoencoder", "--epochs", "1", "--hidden", "8", "--seeds", "1"]
    args += ["--limit", "200"]
    done(TRAIN, *args, "--made", out, "--out", tmp_path / "more")
    # Of one epoch: 400 rows are two batches, where 200 are one.
    assert checkpoint.latest(tmp_path / "more" / "checkpoint" / "train") == 2
    report = json.loads((tmp_path / "more" / "report.json").read_text())
    assert report["data"]["made"] == 200 and report["data"]["shape"][0] == 200
    assert np.load(tmp_path / "more" / "labels.npy").shape == (200,)
    done(CLUSTER, tmp_path / "more", "digits", "--limit", "200", "--labels-out", tmp_path / "l.npy")
    np.testing.assert_array_equal(
        np.load(tmp_path / "l.npy"), np.load(tmp_path / "more" / "labels.npy")
    )
    wanted = "expected --made as a run on the same rows of digits"
    assert wanted in refused(TRAIN, *args[:-1], "100", "--made", out)
    assert wanted in refused(TRAIN, *args, "--scaling", "standard", "--made", out)
    assert "expected --made as a run of gan, info_gan" in refused(
        TRAIN, *args, "--made", tmp_path / "more"
    )
    assert "--overwrite would delete" in refused(
        TRAIN, *args, "--made", out, "--out", out, "--overwrite"
    )
    (tmp_path / "more" / "made.sha256").write_text("200 0")
    assert f"the rows of {out} are not those" in refused(
        TRAIN, "--resume", "--out", tmp_path / "more"
    )
