"""The script for sounds: its defaults, the labels that clusters should not follow, refusals."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from test_scripts import ROOT, TRAIN, call, done, refused, report_of, script
from test_speech import RATE, word

from deepclust_jax import config, data, metrics, phases, run, train
from deepclust_jax.algorithms import next_frame
from deepclust_jax.report import pretext, run_directory, tables
from deepclust_jax.types import Batch

sys.path.insert(0, str(ROOT / "scripts"))  # as for a script that is run
AUDIO = script("train_audio")
FRAMES = ["--method", "next_frame", "--hidden", "8", "--embed-dim", "4", "--epochs", "2"]
SMALL = [*FRAMES, "--n-clusters", "2", "--seeds", "2"]


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """A folder of two words by three speakers, and the file of the speakers."""
    folder = tmp_path_factory.mktemp("sounds")
    speakers = []
    for name, glide in (("down", (2000, 300)), ("up", (300, 2000))):
        (folder / "words" / name).mkdir(parents=True)
        for i in range(12):
            pitch = 1.0 + 0.1 * (i % 3)
            sound = word(0.3, glide=(pitch * glide[0], pitch * glide[1]), seed=i)
            soundfile.write(folder / "words" / name / f"{i:02}.wav", sound, RATE)
            speakers.append(("ann", "bob", "eve")[i % 3])
    (folder / "speakers.txt").write_text("\n".join(speakers))
    return folder / "words", folder / "speakers.txt"


@pytest.fixture(scope="module")
def run_of_sounds(sounds, tmp_path_factory):
    out = tmp_path_factory.mktemp("audio") / "run"
    given = ["--data", sounds[0], "--nuisance", sounds[1], *SMALL, "--out", out]
    return out, done(AUDIO, *given)


def test_clusters_are_scored_against_words_and_against_speakers(run_of_sounds, sounds):
    out, printed = run_of_sounds
    report, labels = report_of(out), np.load(out / "labels_all.npy")
    speakers = np.unique(sounds[1].read_text().split(), return_inverse=True)[1]
    words = np.repeat([0, 1], 12)
    for name, truth in (("external", words), ("nuisance", speakers)):
        wanted = [metrics.accuracy(truth, own) for own in labels]
        assert report[name]["accuracy"]["values"] == pytest.approx(wanted)
    mean = 100 * report["nuisance"]["accuracy"]["mean"]
    assert (
        f"Against the nuisance labels, of which the less the better: accuracy {mean:.1f}" in printed
    )
    assert report["data"]["shape"] == [24, 20, 12, 1]
    assert report["options"]["scaling"] == "speech"


def test_what_is_told_of_sounds_is_reported_beside_what_needs_no_learning(run_of_sounds, sounds):
    out, printed = run_of_sounds
    found, x = report_of(out)["pretext"], data.load(sounds[0], scaling="speech")[0].x[..., 0]
    assert found["rows"] == "rows trained on" and len(found["distance"]["values"]) == 2
    clips = [clip[: np.flatnonzero(clip.any(axis=1))[-1] + 1] for clip in x]
    same = [np.abs(clip[5:] - clip[:-5]).mean() for clip in clips]
    assert found["same"] == pytest.approx(np.mean(same), rel=1e-5)
    assert found["mean"] == pytest.approx(np.mean([np.abs(c[5:]).mean() for c in clips]), rel=1e-5)
    kept = run.restore(out)
    own = next_frame.Config(hidden=(8,), embed_dim=4)
    nets = next_frame.build_nets(own, kept.shape)
    for s, value in enumerate(found["distance"]["values"]):
        state = jax.tree.map(lambda leaf, s=s: leaf[s], kept.state)
        batch = Batch(jnp.asarray(x[..., None]), jnp.arange(24), jnp.ones(24))
        loss = next_frame.loss(state.params, state, batch, jax.random.key(0), nets=nets, config=own)
        assert value == pytest.approx(float(loss[0]), rel=1e-4)
    shown = f"distance from frames told 5 ahead, rows trained on: {found['distance']['mean']:#.4g}"
    assert shown in printed and "nothing is learnt yet" in printed


def test_clips_of_each_cluster_can_be_heard(run_of_sounds, sounds):
    out, labels = run_of_sounds[0], np.load(run_of_sounds[0] / "labels.npy")
    page = (out / "samples.html").read_text()
    raw, files = data.load(sounds[0])[0].raw, data.row_files(sounds[0])
    z, centroids = np.load(out / "embeddings.npy"), np.load(out / "centroids.npy")
    for cluster, size in enumerate(np.bincount(labels, minlength=2)):
        assert f"Cluster {cluster}, of size {size}<" in page
        distances = np.where(labels == cluster, ((z - centroids[cluster]) ** 2).sum(axis=1), np.inf)
        nearest = np.argsort(distances, kind="stable")[: min(size, 5)]
        for place, row in enumerate(nearest):
            heard, rate = soundfile.read(out / "samples" / f"{cluster}-{place}.wav")
            assert rate == RATE
            np.testing.assert_allclose(heard, raw[row], atol=1e-4)
            assert f'src="samples/{cluster}-{place}.wav"></audio> {files[row]}<' in page
    assert len(list((out / "samples").iterdir())) == page.count("<audio")
    few = np.arange(24) % 3 == 0  # those of a report before are gone
    again, one = run_directory.sounds.write_samples, np.zeros(24, int)
    again(out, raw, one, np.where(few, 0.0, 1.0), n_clusters=1, per_cluster=2)
    assert sorted(f.name for f in (out / "samples").iterdir()) == ["0-0.wav", "0-1.wav"]
    assert "</audio> row 3<" in (out / "samples.html").read_text()


def test_nuisance_labels_are_for_scores_alone(run_of_sounds, sounds, tmp_path):
    """Label firewall: what is scored only must change nothing."""
    out = tmp_path / "run"
    printed = done(AUDIO, "--data", sounds[0], *SMALL, "--out", out)
    assert "nuisance labels" not in printed and "nuisance" not in report_of(out)
    for name in ("labels_all.npy", "embeddings.npy"):
        np.testing.assert_array_equal(np.load(out / name), np.load(run_of_sounds[0] / name))


def test_nuisance_labels_are_in_the_order_of_the_rows(sounds, tmp_path):
    folder, file = sounds
    paths = data.row_files(folder, limit=10)
    found = data.nuisance(folder, 24, file=file, limit=10)
    wanted = [int(path.split("/")[1].removesuffix(".wav")) % 3 for path in paths]
    np.testing.assert_array_equal(found, wanted)
    assert data.nuisance(folder, 24) is None and data.nuisance("digits", 1797) is None
    for limit in (None, 10, 24):  # checked before anything is left out
        with pytest.raises(data.DataError, match="found 24 labels, but .* has 23 rows"):
            data.nuisance(folder, 23, file=file, limit=limit)


def test_speakers_come_with_fsdd(data_dir):
    found = data.nuisance("fsdd", 3000)
    np.testing.assert_array_equal(np.bincount(found), [500] * 6)
    dataset, labels = data.load("fsdd", limit=40)
    some = data.nuisance("fsdd", dataset.whole, limit=40)
    assert not np.array_equal(some, labels) and len(some) == len(dataset.x) == 40


@pytest.mark.parametrize(
    "args, wanted",
    [
        (
            [],
            ["--data", "fsdd", "--scaling", "speech", "--method", "contrastive"]
            + ["--augment", "speech"],
        ),
        (
            ["--method", "dcn"],
            ["--data", "fsdd", "--scaling", "speech", "--method", "dcn"],
        ),
        (
            ["--data=w", "--augment", "none"],
            ["--scaling", "speech", "--method", "contrastive", "--data=w", "--augment", "none"],
        ),
        (["--resume", "--out", "r"], ["--resume", "--out", "r"]),
        (["--config=no.toml"], ["--config=no.toml"]),
    ],
)
def test_defaults_are_of_words_where_nothing_else_is_given(monkeypatch, args, wanted):
    import train_deep_kmeans

    seen = []
    monkeypatch.setattr(train_deep_kmeans, "main", lambda args: seen.append(args) or 0)
    assert AUDIO.main(args) == 0
    assert seen == [wanted]


def test_a_file_of_options_is_filled_up(monkeypatch, tmp_path):
    import train_deep_kmeans

    seen, file = [], tmp_path / "c.toml"
    monkeypatch.setattr(train_deep_kmeans, "main", lambda args: seen.append(args) or 0)
    file.write_text('data = "w"\nepochs = 3\n')
    assert AUDIO.main(["--config", str(file)]) == 0
    file.write_text('method = "dcn"\nscaling = "standard"\n')
    assert AUDIO.main([f"--config={file}"]) == 0
    assert seen == [
        ["--scaling", "speech", "--method", "contrastive", "--augment", "speech"]
        + ["--config", str(file)],
        ["--data", "fsdd", f"--config={file}"],
    ]


@pytest.mark.parametrize(
    "args, words",
    [
        (["--network", "mlp"], "expected --network gru or transformer beside --method"),
        (["--precision", "bfloat16"], "--method next_frame needs --precision float32"),
        (["--embed-dim", "99"], "expected embed_dim <= 32, the means of states, found 99"),
        (["--augment", "affine"], "--augment affine needs images, found audio data"),
        (["--nuisance", "no.txt"], "no file no.txt with nuisance labels"),
    ],
)
def test_what_cannot_work_is_refused_before_it_begins(sounds, tmp_path, args, words):
    out = tmp_path / "run"
    assert words in refused(AUDIO, "--data", sounds[0], *SMALL, "--out", out, *args)
    assert not out.exists()


def test_speech_views_are_refused_for_what_is_no_sound(tmp_path):
    args = ["--augment", "speech", "--method", "contrastive", "--out", tmp_path / "run"]
    assert "--augment speech needs sounds, found image data" in refused(TRAIN, *args)


def test_sounds_that_are_no_words_have_views_too(sounds, tmp_path):
    out = tmp_path / "run"
    done(AUDIO, "--data", sounds[0], *SMALL, "--out", out, "--augment", "speech", "--scaling",
         "standard")  # fmt: skip
    assert np.isfinite(np.load(out / "embeddings.npy")).all()


def test_codes_of_a_run_have_no_options_of_sounds(run_of_sounds, monkeypatch, tmp_path):
    """Trap: the scaling that this script adds is not that of a table."""

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "execute", stop)  # the options are settled, and written, before
    args = ["--data", run_of_sounds[0], "--method", "autoencoder", "--hidden", "4", "--epochs", "1"]
    args += ["--embed-dim", "2", "--seeds", "1", "--out", tmp_path / "run"]
    assert call(AUDIO, *args).code == 130
    assert run.read_options(tmp_path / "run").data.scaling == "auto"


def test_what_is_told_without_learning_needs_no_network(sounds):
    """Trap: of a run that diverged the mean of all was no number either."""
    x = data.load(sounds[0], scaling="speech")[0].x
    options = config.resolve(config.parse(SMALL), len(x))
    algorithm = phases.of(options, x.shape)[-1].algorithm
    state = train.init(run.seed_keys(options), algorithm, x)
    params = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), state.params)
    trained = types.SimpleNamespace(state=state.replace(params=params))
    found = pretext.of_next_frame(options, x, trained)
    assert np.isnan(found["distance"]["values"][0]) and found["distance"]["values"][1] > 0
    assert 0 < found["mean"] < np.inf and 0 < found["same"] < np.inf
    found["distance"]["values"][1] = 0.5 * found["mean"]
    assert len(tables._pretext(found)) == 1, "the run that learnt did"


def test_sounds_too_short_to_be_told_are_refused():
    """Trap: with nothing to tell the loss is 0, and the clusters are of random weights."""
    options = config.Options(
        data=config.Data(n_clusters=2), method=config.Method("next_frame"), run=config.Run(seeds=1)
    )
    x = np.zeros((12, 8, 40, 1), np.float32)
    x[:, :5] = 1.0
    with pytest.raises(config.ConfigError, match="needs sounds of more than 5 frames"):
        run.execute(config.resolve(options, len(x)), x)
