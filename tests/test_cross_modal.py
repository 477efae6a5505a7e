"""Several modalities: the loss by hand, what is shared and what is not, and the data of pairs."""

import dataclasses
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from PIL import Image
from test_scripts import CLUSTER, TRAIN, done, refused, report_of

from deepclust_jax import augment, config, data, phases, run, train
from deepclust_jax.algorithms import cross_modal
from deepclust_jax.data import named, preprocessing
from deepclust_jax.report import pretext, run_directory, tables
from deepclust_jax.types import Batch

KEY = jax.random.key(0)
PARTS = ((4, 4, 1), (6,))
SMALL = cross_modal.Config(3, PARTS, embed_dim=4, hidden=(16,), n_init=2)


def pairs(n=120, seed=0):
    """Two modalities of three things, each with much of its own that says nothing of them."""
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=n)
    own = rng.integers(3, size=(2, n))
    parts = []
    for d, nuisance in zip((16, 6), own, strict=True):
        things, others = rng.normal(size=(2, 3, d))
        x = things[y] + 2.0 * others[nuisance] + 0.1 * rng.normal(size=(n, d))
        parts.append(x)
    return np.float32(np.concatenate(parts, axis=1)), y, own


def test_parts_are_cut_where_their_shapes_say():
    x = jnp.arange(44.0).reshape(2, 22)
    image, table = augment.parts_of(x, PARTS)
    np.testing.assert_array_equal(image, x[:, :16].reshape(2, 4, 4, 1))
    np.testing.assert_array_equal(table, x[:, 16:])


def test_each_modality_is_changed_by_its_own_change_and_draw():
    change = augment.each(PARTS, [augment.noise, None])
    x = jnp.zeros(22)
    found = change(KEY, x)
    assert (found[:16] != 0).all() and (found[16:] == 0).all()
    both = augment.each(((6,), (6,)), [augment.noise, augment.noise])(KEY, jnp.zeros(12))
    assert (both[:6] != both[6:]).all()
    assert phases.change_of((28, 28, 1)) is phases._WIDE
    assert phases.change_of((20, 12, 1)) is augment.speech and phases.change_of((100,)) is None


def test_agreement_is_that_of_both_papers():
    rng = np.random.default_rng(0)
    one, other = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in rng.normal(size=(2, 4, 3)))
    mask, t = np.array([1.0, 1.0, 0.0, 1.0]), 0.3
    found = cross_modal.agreement(*map(jnp.float32, (one, other)), jnp.float32(mask), t)
    for i in (0, 1, 3):
        e = np.exp(one @ other.T / t)
        forth, back = e[i, i] / e[i, mask > 0].sum(), e[i, i] / e[mask > 0, i].sum()
        assert float(found[i]) == pytest.approx(-0.5 * (np.log(forth) + np.log(back)), rel=1e-4)
    assert float(found[2]) == 0.0


def test_loss_is_the_mean_over_pairs_of_modalities():
    parts = ((3,), (4,), (5,))
    own = dataclasses.replace(SMALL, parts=parts)
    nets = cross_modal.build_nets(own, (12,))
    algorithm = cross_modal.build(own, (12,))
    x = jax.random.normal(KEY, (8, 12))
    batch = Batch(x, jnp.arange(8), jnp.ones(8))
    state = algorithm.init(KEY, batch)
    value, metrics = cross_modal.loss(state.params, state, batch, KEY, nets=nets, config=own)
    z = cross_modal.features(state, x, nets, parts)  # by the statistics of this very batch
    costs = [
        cross_modal.agreement(a, b, jnp.ones(8), own.temperature)
        for a, b in itertools.combinations(z, 2)
    ]
    assert float(value) == pytest.approx(float(jnp.mean(jnp.stack(costs))), rel=1e-4)
    assert -1.0 <= float(metrics["alignment"]) <= 1.0


def test_what_both_share_is_found_and_what_one_has_alone_is_not():
    x, y, own = pairs(300)
    algorithm = cross_modal.build(SMALL, (22,))
    fitted = train.fit(
        KEY, algorithm, x, epochs=60, batch_size=60, refresh_every=0, refresh_at_end=True
    )
    z, found = train.embed(algorithm, fitted.state, x)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1.0, atol=1e-5)
    from deepclust_jax import metrics

    assert metrics.accuracy(y, np.asarray(found)) > 0.95
    # Clusters of the rows as they are follow what says nothing.
    from deepclust_jax.clustering import kmeans

    rows = jnp.asarray(x)
    alone = np.asarray(kmeans.assign(rows, kmeans.fit(KEY, rows, 3, n_init=5).centroids)[0])
    assert metrics.accuracy(y, alone) < 0.8
    assert max(metrics.nmi(o, np.asarray(found)) for o in own) < 0.1


@pytest.mark.parametrize(
    "parts, shape",
    [((), (22,)), (((22,),), (22,)), (PARTS, (23,)), (PARTS, (22, 1))],
)
def test_rows_that_are_not_made_up_of_modalities_are_refused(parts, shape):
    with pytest.raises(ValueError, match="expected two modalities or more that make up rows"):
        cross_modal.build(dataclasses.replace(SMALL, parts=parts), shape)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    x, y, _ = pairs()
    np.save(folder / "one.npy", x[:, :16])
    np.save(folder / "other.npy", x[:, 16:])
    np.save(folder / "both.npy", x)
    np.save(folder / "y.npy", y)
    np.save(folder / "few.npy", x[:50, 16:])
    np.save(folder / "twelve.npy", np.arange(120 * 72, dtype=np.uint8).reshape(120, 6, 12))
    return folder


TINY = ["--method", "cross_modal", "--hidden", "16", "--embed-dim", "4", "--n-clusters", "3"]
TINY += ["--epochs", "3", "--seeds", "2"]


@pytest.fixture(scope="module")
def run_of_pairs(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    given = ["--data", files / "one.npy", "--partner", files / "other.npy"]
    return out, done(TRAIN, *given, "--labels", files / "y.npy", *TINY, "--out", out)


def test_a_run_of_two_files(run_of_pairs, files):
    out, printed = run_of_pairs
    report = report_of(out)
    assert report["options"]["parts"] == ["16", "6"] and report["data"]["shape"] == [120, 22]
    assert f"{files / 'one.npy'} and {files / 'other.npy'}: 120 x 22 (tabular, " in printed
    assert "scaling standard and tabular, scaling standard, 3 classes for scores" in printed
    pairs = report["pretext"]["pairs"]
    assert pairs["among"] == 120 and pairs["rows"] == "rows trained on"
    assert f"told from 119 others, rows trained on: {100 * pairs['told']['mean']:.1f}" in printed
    assert "modality 1 (16) alone: accuracy" in printed
    assert "modality 2 (6) alone: accuracy" in printed
    z = np.load(out / "embeddings.npy")
    assert z.shape == (120, 8)
    again = out.parent / "again"
    done(TRAIN, "--config", out / "config.json", "--out", again)
    np.testing.assert_array_equal(
        np.load(again / "labels_all.npy"), np.load(out / "labels_all.npy")
    )


def test_how_well_pairs_are_told():
    """Worked: of three, one own half is the most alike, one the second, one as another."""
    other = np.eye(3)
    one = np.array([[3.0, 1.0, 0.0], [3.0, 2.0, 0.0], [0.0, 1.0, 1.0]])
    found = pretext.pairs_told(np.stack([one, other]), np.stack([other, other]))
    np.testing.assert_allclose(found, [(1.0 + 0.5 + 0.75) / 3, 1.0])
    same = np.ones((1, 4, 2))  # of a run that tells nothing apart
    np.testing.assert_allclose(pretext.pairs_told(same, same), 0.5)
    assert np.isnan(pretext.pairs_told(same[:, :1], same[:, :1])).all()


@pytest.mark.parametrize(
    "told, known, words",
    [
        (0.95, 1.0, None),
        (0.55, 1.0, "known by heart alone; give more pairs"),
        (0.55, 0.58, "nothing is learnt yet"),
        (1.0, None, "--held-out shows"),
        (0.98, None, None),
        (0.5, None, "nothing is learnt yet"),
        (None, None, None),
    ],
)
def test_how_well_pairs_are_told_is_explained(told, known, words):
    """Trap: few pairs that are known by heart, whose loss is as low as can be."""
    found = tables._of_halves(told, known)
    assert found == [] if words is None else len(found) == 1 and words in found[0]


def test_pairs_held_out_are_told_beside_those_trained_on(files, tmp_path):
    given = ["--data", files / "one.npy", "--partner", files / "other.npy", "--held-out", "30"]
    printed = done(TRAIN, *given, *TINY, "--out", tmp_path / "run")  # without labels too
    pairs = report_of(tmp_path / "run")["pretext"]["pairs"]
    assert pairs["among"] == 30 and len(pairs["of_trained_on"]["values"]) == 2
    assert "told from 29 others, rows held out: " in printed and "of as many trained on" in printed
    z = np.load(tmp_path / "run" / "embeddings.npy")[None, -30:]
    run_kept = report_of(tmp_path / "run")["chosen"]["run"]
    wanted = pretext.pairs_told(*np.split(z, 2, axis=2))
    assert pairs["told"]["values"][run_kept] == pytest.approx(float(wanted[0]), abs=1e-3)


def test_a_run_that_diverged_is_set_aside(files, tmp_path, monkeypatch):
    """Trap: its codes were clustered modality by modality, which ended the script."""
    execute = run.execute

    def broken(*args, **options):
        trained = execute(*args, **options)
        params = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), trained.state.params)
        return trained._replace(state=trained.state.replace(params=params))

    monkeypatch.setattr(run, "execute", broken)
    given = ["--data", files / "one.npy", "--partner", files / "other.npy"]
    given += ["--labels", files / "y.npy"]
    printed = done(TRAIN, *given, *TINY, "--seeds", "2", "--out", tmp_path / "run")
    assert "runs 1" in printed
    report = report_of(tmp_path / "run")
    assert [one["run"] for one in report["lost"]] == [1] and report["chosen"]["run"] == 0


def test_one_file_with_the_shapes_of_its_modalities_is_the_same(run_of_pairs, files, tmp_path):
    out = tmp_path / "run"
    given = ["--data", files / "both.npy", "--parts", "16", "6"]
    done(TRAIN, *given, *TINY, "--out", out)
    np.testing.assert_array_equal(
        np.load(out / "labels_all.npy"), np.load(run_of_pairs[0] / "labels_all.npy")
    )


def test_new_pairs_are_assigned_to_the_clusters_of_a_run(run_of_pairs, files, tmp_path):
    out, file = run_of_pairs[0], tmp_path / "labels.npy"
    given = [out, files / "one.npy", "--labels-out", file]
    done(CLUSTER, *given, "--partner", files / "other.npy")
    np.testing.assert_array_equal(np.load(file), np.load(out / "labels.npy"))
    again = [*given, "--overwrite"]
    assert "has two modalities; give --partner" in refused(CLUSTER, *again)
    few = refused(CLUSTER, *again, "--partner", files / "few.npy")
    assert "expected as many rows of both modalities, found 120 of one.npy and 50 of few.npy" in few
    few = refused(CLUSTER, *again, "--partner", files / "few.npy", "--limit", "20")
    assert "found 120 of one.npy and 50 of few.npy" in few


@pytest.mark.parametrize(
    "args, words",
    [
        (["--partner", "few.npy"], "expected as many rows of both modalities, found 120"),
        # Trap: a limit that both have takes rows of each that do not belong together.
        (["--partner", "few.npy", "--limit", "20"], "of both modalities, found 120 of one.npy"),
        (["--partner", "other.npy", "--augment", "each"], "--augment each needs a modality of"),
        (["--partner", "other.npy", "--batch-size", "1"], "expected --batch-size >= 2 beside"),
        (["--partner", "twelve.npy", "--augment", "each"], "takes image rows of shape (6, 12, 1)"),
        (["--method", "dcn", "--parts", "8", "8"], "--parts is no option of --method dcn"),
        ([], "--method cross_modal needs rows of two modalities or more; give the second as"),
        (["--parts", "10", "7"], "expected rows of 17 numbers, which --parts 10 7 make up"),
        (["--parts", "4xa", "7"], "expected --parts as 28x28x1 or 100, found '4xa'"),
        (["--partner", "other.npy", "--parts", "8", "14"], "expected no --parts beside --partner"),
        (["--partner", "other.npy", "--network", "conv"], "--network conv needs a modality of"),
        (["--partner", "no.npy"], "no file or folder"),
        (["--partner-scaling", "none"], "--partner-scaling is of a second modality; give it as"),
        (["--partner", "other.npy", "--partner-scaling", "speech"], "the scaling speech is of so"),
    ],
)
def test_pairs_that_cannot_work_are_refused(files, tmp_path, args, words):
    args = [files / a if a in ("few.npy", "other.npy", "twelve.npy") else a for a in args]
    out = tmp_path / "run"
    assert words in refused(TRAIN, "--data", files / "one.npy", *TINY, *args, "--out", out)
    assert not out.exists()


def test_the_second_modality_has_a_scaling_of_its_own(files):
    given = {"data": str(files / "one.npy"), "partner": str(files / "other.npy")}
    found = run_directory.load(config.Data(**given, partner_scaling="none"))
    assert found.dataset.partner.settings["scaling"] == "none"
    assert found.dataset.preprocessing.settings["scaling"] == "standard"
    np.testing.assert_allclose(found.dataset.x[:, 16:], np.load(files / "other.npy"))


def test_labels_are_no_features_of_the_partner(tmp_path):
    """Label firewall: a column of labels in the one table may be one of the other too."""
    for name in ("one", "other"):
        lines = [f"{i},{i % 7},{i % 3}" for i in range(60)]
        (tmp_path / f"{name}.csv").write_text("\n".join([f"u{name},v{name},digit", *lines]))
    args = ["--data", tmp_path / "one.csv", "--partner", tmp_path / "other.csv", *TINY]
    words = refused(TRAIN, *args, "--labels", "digit", "--out", tmp_path / "run")
    assert "expected no column digit of --labels among the features of --partner" in words


def test_parts_are_those_of_the_kind_that_is_given(run_of_pairs):
    file = str(run_of_pairs[0] / "config.json")
    assert config.parse(["--config", file]).data.parts == ("16", "6")
    for change in (["--kind", "image"], ["--scaling", "none"], ["--partner", "x.npy"]):
        assert config.parse(["--config", file, *change]).data.parts is None


def test_changes_of_modalities_are_of_this_method_alone():
    options = config.Options(method=config.Method(method="dcn", augment="each"))
    with pytest.raises(config.ConfigError, match="--augment each beside --method cross_modal"):
        config.resolve(options)
    args = [*TINY, "--parts", "4x4x1", "6", "--augment", "affine"]
    with pytest.raises(config.ConfigError, match=r"found rows \(22,\); of pairs take each"):
        phases.of(config.resolve(config.parse(args)), (120, 22))


def test_files_are_paired_by_name(tmp_path):
    """Trap: folders paired by the order of their files, where one has a file more in the beginning
    and one less in the end, or types or sub-folders decide the order."""
    names = {"pictures": ("cat/2.png", "cat/b.png", "dog/1.png", "dog/b.q.png")}
    names["sounds"] = ("1.wav", "2.wav", "b.wav", "b.q.wav")
    for folder, files in names.items():
        for number, file in enumerate(files):
            (tmp_path / folder / file).parent.mkdir(parents=True, exist_ok=True)
            if folder == "pictures":
                pixels = np.full((2, 2), 40 * number, np.uint8)
                Image.fromarray(pixels).save(tmp_path / folder / file)
            else:
                tone = np.sin(0.1 * (1 + number) * np.arange(4000))
                soundfile.write(tmp_path / folder / file, tone, 8000)
    pictures, sounds = str(tmp_path / "pictures"), str(tmp_path / "sounds")
    order = run_directory.pair_order(pictures, sounds)
    found = run_directory.files_of(pictures, sounds, 4, order=order)
    assert found == {
        "file": names["pictures"],
        "partner": ("2.wav", "b.wav", "1.wav", "b.q.wav"),
    }
    run_directory.write_labels_by_file(tmp_path / "l.csv", found, np.array([0, 1, 0, 1]))
    lines = (tmp_path / "l.csv").read_text().splitlines()
    assert lines[:2] == ["file,partner,cluster", "cat/2.png,2.wav,0"]
    assert run_directory.files_of("digits", sounds, 4).keys() == {"partner"}
    assert run_directory.pair_order("digits", sounds) is None
    alone = data.load(sounds)[0]
    for limit in (None, 3):
        both = run_directory.load(config.Data(data=pictures, partner=sounds, limit=limit))
        clips = data.load(sounds, order=order, limit=limit)[0].raw
        for row, (file, other) in enumerate(zip(*both.files.values(), strict=True)):
            assert Path(file).stem == Path(other).stem
            assert both.dataset.raw[row, 0, 0, 0] == 40 * names["pictures"].index(file)
            number = names["sounds"].index(other)
            np.testing.assert_array_equal(clips[row], alone.raw[number])
            if limit is None:
                heard = alone.x[number].ravel()
                np.testing.assert_allclose(both.dataset.x[row, 4:], heard, rtol=1e-4, atol=1e-4)
    (tmp_path / "sounds" / "2.wav").rename(tmp_path / "sounds" / "3.wav")
    args = ["--data", pictures, "--partner", sounds, *TINY, "--out", tmp_path / "run"]
    assert "cat/2.png has no other of its name" in refused(TRAIN, *args)
    with pytest.raises(data.DataError, match="changed while it was read"):
        run_directory.files_of("digits", sounds, 5)


def test_new_pairs_of_folders_are_assigned_by_name(tmp_path):
    """Trap: the second folder in its own order, which gives a row the other half of another."""
    rng = np.random.default_rng(0)
    for i in range(24):
        kind = i % 3
        for folder, file in (("one", f"{'cab'[kind]}/{i}.png"), ("other", f"{i}.png")):
            (tmp_path / folder / file).parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 60, (4, 4)) + 60 * kind
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / folder / file)
    one, other, out = tmp_path / "one", tmp_path / "other", tmp_path / "run"
    done(TRAIN, "--data", one, "--partner", other, *TINY, "--out", out)
    written = (out / "labels.csv").read_text()
    assert written.splitlines()[1].startswith("a/1.png,1.png,")
    done(CLUSTER, out, one, "--partner", other, "--labels-out", tmp_path / "labels.npy")
    assert (tmp_path / "labels.csv").read_text() == written
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), np.load(out / "labels.npy"))
    given = [CLUSTER, out, one, "--partner", out, "--labels-out", tmp_path / "l.npy"]
    assert "expected data as --partner, found the run" in refused(*given)


@pytest.mark.parametrize(
    "files, others, order",
    [
        (["a/1.png", "b/1.png"], ["b/1.wav", "a/1.wav"], [1, 0]),  # 1 twice, but for what is above
        (["a/x/1.png", "b/x/1.png", "c/2.png"], ["c/2.x", "b/x/1.x", "a/x/1.x"], [2, 1, 0]),
        (["cat/1.png", "dog/2.png"], ["spk/2.wav", "spk/1.wav"], [1, 0]),  # classes and speakers
        (["cat/2.png", "dog/1.png"], ["1.wav", "2.wav"], [1, 0]),
        (["1.png", "2.png"], (), None),
    ],
)
def test_files_of_one_name_are_a_pair(files, others, order):
    np.testing.assert_array_equal(data.matched(files, others), order)


@pytest.mark.parametrize(
    "files, others, found",
    [
        (["a/1.png", "b/1.png"], ["1.wav", "2.wav"], "a/1.png and b/1.png have one name"),
        (["1.png", "2.png"], ["1.wav", "3.wav"], "2.png has no other of its name"),
        (["1.png"], ["1.wav", "3\n.wav"], "3 .wav has no other of its name"),
        # The same sub-folders say other things of the files.
        (["cat/1.png", "dog/2.png"], ["cat/2.wav", "dog/1.wav"], "cat/1.png has no other"),
    ],
)
def test_files_without_a_pair_are_named(files, others, found):
    with pytest.raises(data.DataError, match=f"expected two files of each name.*{found}"):
        data.matched(files, others)


def test_paired_rows_are_those_of_both(files):
    one, other = (data.load(files / f"{name}.npy")[0] for name in ("one", "other"))
    both = data.paired(one, other)
    np.testing.assert_array_equal(both.x, np.concatenate([one.x, other.x], axis=1))
    assert both.parts == ((16,), (6,)) and both.partner is other.preprocessing
    assert both.checksum not in (one.checksum, other.checksum)
    assert both.checksum != data.paired(other, one).checksum
    big = dataclasses.replace(other, x=preprocessing.Rows(other.preprocessing, other.raw))
    with pytest.raises(data.DataError, match="two modalities must fit in memory"):
        data.paired(one, big)


def test_images_of_clips_are_of_the_same_digit(data_dir):
    images, y = named.read("mnist_of_fsdd")
    clips, digits = named.read("fsdd")
    np.testing.assert_array_equal(y, digits)
    assert len(images) == len(clips) == 3000
    assert len(np.unique(images.reshape(3000, -1), axis=0)) == 3000  # none twice
    whole, all_digits = named.read("mnist")
    known = {image.tobytes(): digit for image, digit in zip(whole, all_digits, strict=True)}
    assert all(known[image.tobytes()] == digit for image, digit in zip(images, y, strict=True))


def test_emoji_have_pictures_and_names(data_dir):
    images, y = named.read("emoji")
    names, same = named.read("emoji_names")
    np.testing.assert_array_equal(y, same)
    assert images.shape == (1906, 32, 32, 3) and names[0] == "grinning face grinning"
