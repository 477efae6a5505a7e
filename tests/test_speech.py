"""Spoken words: features that depend on what is said, and views as of other voices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.interpolate

from deepclust_jax import augment, config, data, phases
from deepclust_jax.data import audio, preprocessing, speech
from deepclust_jax.types import Batch

RATE = 8000
KEY = jax.random.key(0)


def word(seconds=0.6, *, glide=(300, 2000), silence=(0.1, 0.2), colour=1.0, seed=0):
    """A gliding tone with its overtones and some noise between two silences."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * RATE)) / RATE
    phase = 2 * np.pi * np.cumsum(np.linspace(*glide, len(t))) / RATE
    sound = (np.sin(phase) + 0.5 * np.sin(2 * phase)) * np.hanning(len(t)) ** 0.2
    sound = sound + 0.02 * rng.normal(size=len(t))
    quiet = [np.zeros(int(s * RATE)) for s in silence]
    whole = np.concatenate([quiet[0], sound, quiet[1]]) + 1e-3 * rng.normal(
        size=len(t) + sum(map(len, quiet))
    )
    return np.float32(0.2 * colour * whole)


def clips(*samples):
    return data.Clips(samples, RATE)


@pytest.fixture(scope="module")
def words():
    some = [word(0.3 + 0.05 * i, glide=(200 + 50 * i, 2500 - 100 * i), seed=i) for i in range(9)]
    found = clips(*some)
    return found, preprocessing.fit(found, "audio", "speech")


def test_cosines_are_those_of_scipy():
    x = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
    wanted = scipy.fft.dct(x, norm="ortho")[:, 1:13]
    np.testing.assert_allclose(x @ speech.cosines(40, 12), wanted, atol=1e-5)
    smooth = wanted @ speech.cosines(40, 12).T
    np.testing.assert_allclose(smooth @ speech.cosines(40, 12), wanted, atol=1e-5)


def test_features_are_those_of_numpy(words):
    found, p = words
    settings, clip = p.settings, found.samples[3]
    x = preprocessing.apply(p, found)[3, :, :, 0]
    power = np.asarray(audio.power_spectrum(clip, window=256, hop=128))
    logs = np.log(1e-8 + power @ audio.mel_bank(RATE, 512, 40))
    loudness = logs.mean(axis=1)
    low, high = np.sort(loudness)[int(0.05 * (len(logs) - 1))], loudness.max()
    loud = np.flatnonzero(loudness > low + 0.25 * (high - low))
    assert loud[0] > 0 and loud[-1] < len(logs) - 1  # silence on both sides
    places = np.linspace(loud[0], loud[-1], settings["frames"])
    stretched = scipy.interpolate.interp1d(np.arange(len(logs)), logs, axis=0)(places)
    c = scipy.fft.dct(stretched, norm="ortho")[:, 1:13]
    wanted = (c - c.mean(axis=0)) / (c.std(axis=0) + 0.1)
    np.testing.assert_allclose(x, wanted, atol=2e-3)


def test_frames_are_the_median_of_the_loud_parts(words):
    p = words[1]
    # 0.5 s is 31 hops of 16 ms.
    assert p.settings["frames"] % 4 == 0 and 28 <= p.settings["frames"] <= 36
    assert preprocessing.fit(clips(word(9.0)), "audio", "speech").settings["frames"] == 256
    assert preprocessing.fit(clips(word(0.1)), "audio", "speech").settings["frames"] == 16


def likeness(x, y):
    return np.corrcoef(x.ravel(), y.ravel())[0, 1]


def test_features_say_what_not_how_loud_how_fast_or_when(words):
    p = words[1]
    same = [
        word(),
        word(colour=0.3),
        word(0.9),
        word(silence=(0.4, 0.0)),
        word(seed=9),
    ]
    x = preprocessing.apply(p, clips(*same, word(glide=(2000, 300))))
    for i in range(1, len(same)):
        assert likeness(x[0], x[i]) > 0.85
    assert likeness(x[0], x[-1]) < 0.5  # another word


def test_a_constant_colour_is_gone():
    logs = np.random.default_rng(0).normal(size=(1, 30, 40)).astype(np.float32)
    colour = np.linspace(-3, 2, 40, dtype=np.float32)[None, None]
    transform, counts = speech.cosines(40, 12), jnp.array([30])
    one = speech._cepstra(logs, counts, transform, frames=16)
    other = speech._cepstra(logs + colour, counts, transform, frames=16)
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_clip_depends_on_itself_alone(words):
    found, p = words
    x = preprocessing.apply(p, found)
    long = word(3.0)
    for i in (0, 8):
        alone = preprocessing.apply(p, clips(found.samples[i], long))
        np.testing.assert_array_equal(alone[0], x[i])


def test_clips_of_any_kind_are_finite(words):
    p = words[1]
    odd = [np.zeros(4000), np.ones(1), np.zeros(100), np.ones(3000), word(70.0)]
    odd += [np.int16(2**15 * word(colour=0.1))]
    x = preprocessing.apply(
        p, clips(*(s.astype(np.float32) if s.dtype != np.int16 else s for s in odd))
    )
    assert x.shape == (6, p.settings["frames"], 12, 1) and np.isfinite(x).all()
    np.testing.assert_allclose(x[[0, 1, 2]], 0.0, atol=1e-4)  # nothing moves


def test_what_does_not_fit_is_refused(words, tmp_path):
    found, p = words
    with pytest.raises(data.DataError, match="expects a sample rate of 8000 Hz, found 16000 Hz"):
        preprocessing.apply(p, data.Clips(found.samples, 16000))
    with pytest.raises(data.DataError, match="the scaling speech is of sounds, found image data"):
        data.load("digits", scaling="speech")
    with pytest.raises(data.DataError, match="audio takes only the scaling auto, standard, speech"):
        preprocessing.fit(found, "audio", "range")
    preprocessing.save(p, tmp_path)
    x = preprocessing.apply(preprocessing.load(tmp_path), found)
    np.testing.assert_array_equal(x, preprocessing.apply(p, found))


def test_standard_is_what_auto_is_for_sounds(words):
    found = words[0]
    auto, standard = (preprocessing.fit(found, "audio", s) for s in ("auto", "standard"))
    assert auto.settings == standard.settings and "scaling" not in auto.settings


@pytest.fixture(scope="module")
def features(words):
    return preprocessing.apply(words[1], words[0])


STILL = {"tempo": 0.0, "ends": 0.0, "tract": 0.0, "hidden": 0.0, "noise": 0.0}


def test_a_view_without_changes_is_the_word_normalised(features):
    x = features[0]
    found = augment.speech(KEY, x, **STILL)
    np.testing.assert_allclose(found[:, :, 0], speech.normalised(x[:, :, 0]), atol=1e-4)


def test_views_are_like_their_word_and_differ(features):
    change = {"noise": 0.0, "tract": 0.0}  # which moves pure tones from band to band
    views = jax.vmap(lambda key: augment.speech(key, features[0], **change))(
        jax.random.split(KEY, 20)
    )
    alike = [likeness(view, features[0]) for view in views]
    assert np.mean(alike) > 0.4
    others = [likeness(view, features[8]) for view in views]
    assert np.mean(alike) > np.mean(others) + 0.2
    assert len({view.tobytes() for view in np.asarray(views)}) == 20


def test_a_longer_tract_has_lower_frequencies():
    x = np.zeros((16, 12), np.float32)
    bump = np.exp(-(((np.arange(40) - 20) / 4.0) ** 2))
    x[:] = np.sin(np.arange(16))[:, None] * (bump @ speech.cosines(40, 12))[None]
    x = np.asarray(speech.normalised(x))[:, :, None]
    for key in jax.random.split(KEY, 8):
        factor = (
            1.0
            + 0.15
            * jax.random.uniform(jax.random.split(key, 4)[0], (4,), minval=-1.0, maxval=1.0)[3]
        )
        view = augment.speech(key, x, **(STILL | {"tract": 0.15}))
        bands = np.abs(np.asarray(view)[:, :, 0] @ speech.cosines(40, 12).T).mean(axis=0)
        before = np.abs(x[:, :, 0] @ speech.cosines(40, 12).T).mean(axis=0)
        assert abs(bands.argmax() * float(factor) - before.argmax()) < 3.0


@pytest.mark.parametrize("name, amount", [("tempo", 0.2), ("ends", 0.1), ("tract", 0.15)])
def test_every_amount_changes_a_view(features, name, amount):
    still = augment.speech(KEY, features[0], **STILL)
    moved = augment.speech(KEY, features[0], **(STILL | {name: amount}))
    assert np.abs(moved - still).max() > 0.05
    np.testing.assert_allclose(jnp.mean(moved, axis=0), 0.0, atol=1e-4)  # normalised after it


def test_noise_and_hidden_frames_are_as_large_as_they_say(features):
    still = augment.speech(KEY, features[0], **STILL)
    keys = jax.random.split(KEY, 200)
    noisy = jax.vmap(lambda key: augment.speech(key, features[0], **(STILL | {"noise": 0.5})))(keys)
    assert float(jnp.std(noisy - still[None])) == pytest.approx(0.5, rel=0.02)
    hidden = jax.vmap(lambda key: augment.speech(key, features[0], **(STILL | {"hidden": 0.4})))(
        keys
    )
    gone = np.asarray((hidden == 0).all(axis=(2, 3)))
    assert gone.mean() == pytest.approx(0.2, abs=0.03)  # from none to 0.4
    for row in gone[:50]:  # side by side
        assert np.count_nonzero(np.diff(np.flatnonzero(row)) > 1) == 0


def test_a_view_of_no_word_is_refused():
    with pytest.raises(ValueError, match=r"expected a word \[t, c, 1\] of coefficients"):
        augment.speech(KEY, jnp.zeros((20, 12)))


def test_hidden_time_and_bands_are_as_large_as_they_say():
    x = jnp.ones((40, 20, 1))
    keys = jax.random.split(KEY, 2000)
    views = np.asarray(jax.vmap(lambda key: augment.masks(key, x, time=0.4, bands=0.2))(keys))
    assert set(np.unique(views)) == {0.0, 1.0}
    whole = views[..., 0] == 0
    frames, bands = whole.all(axis=2), whole.all(axis=1)
    np.testing.assert_array_equal(whole, frames[:, :, None] | bands[:, None, :])
    for gone, most in ((frames, 0.4), (bands, 0.2)):
        assert gone.mean() == pytest.approx(most / 2, abs=0.02)  # from none to the most
        assert gone.mean(axis=1).max() == pytest.approx(most)
        assert gone[:, [0, -1]].any(axis=0).all()  # the ends too
        for row in gone[:50]:  # side by side
            assert np.count_nonzero(np.diff(np.flatnonzero(row)) > 1) == 0
    with pytest.raises(ValueError, match=r"expected a spectrogram \[t, bands, 1\]"):
        augment.masks(KEY, x[..., 0])


def test_sounds_that_are_no_words_have_time_and_bands_hidden(monkeypatch, phases_anew):
    """By --augment speech: words are said by another voice, what are none has parts hidden."""
    seen = []
    for name in ("speech", "masks"):
        own = getattr(augment, name)
        monkeypatch.setattr(
            augment, name, lambda key, x, own=own, name=name: seen.append(name) or own(key, x)
        )
    method = config.Method(method="contrastive", augment="speech")
    options = config.resolve(config.Options(data=config.Data(n_clusters=2), method=method))
    for bands, wanted in ((speech.COEFFICIENTS, "speech"), (40, "masks")):
        seen.clear()
        x = jnp.ones((4, 20, bands, 1))
        algorithm = phases.of(options, x.shape)[0].algorithm
        rows = Batch(x, jnp.arange(4), jnp.ones(4), partner=x)
        state = jax.eval_shape(algorithm.init, KEY, rows)
        jax.eval_shape(algorithm.step, KEY, state, rows)
        assert set(seen) == {wanted}
