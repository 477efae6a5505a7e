"""Scalings, texts and sounds: worked numbers, second implementations, stored and applied again."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import scipy.signal

from deepclust_jax import data
from deepclust_jax.data import arrays, audio, preprocessing, scaling

RNG = np.random.default_rng(1)


def fitted(raw, kind="tabular", scaling="auto"):
    p = preprocessing.fit(raw, kind, scaling)
    return p, preprocessing.apply(p, raw)


def test_standard_by_hand():
    _, x = fitted(np.array([[1, 5, 0.1], [3, 5, 0.1], [5, 5, 0.1]]))
    root = np.sqrt(1.5)
    np.testing.assert_allclose(x, [[-root, 0, 0], [0, 0, 0], [root, 0, 0]], rtol=1e-6)


def test_range_by_hand():
    _, x = fitted(np.array([[-2, 0], [2, 6]]), scaling="range")
    np.testing.assert_allclose(x, [[0, 0.25], [0.5, 1]])
    picture = np.array([[[[0], [51]]], [[[102], [204]]]], np.uint8)
    _, x = fitted(picture, "image")
    np.testing.assert_allclose(x[..., 0], [[[0, 0.2]], [[0.4, 0.8]]], rtol=1e-6)  # /255, not /204
    _, x = fitted(picture // 51 * 4, "image")  # 0 4 8 16: few levels, not bytes
    np.testing.assert_allclose(x[..., 0], [[[0, 0.25]], [[0.5, 1]]])


def test_counts_by_hand():
    counts = np.array([[1, 3], [4, 4], [0, 0], [0, 12]], np.uint16)  # totals 4, 8, 0, 12
    p, x = fitted(counts, scaling="counts")
    assert p.arrays["total"] == 8  # the median of the rows that have counts
    logs = np.log1p([[2, 6], [4, 4], [0, 0], [0, 8]])
    np.testing.assert_allclose(x, (logs - logs.mean(axis=0)) / logs.std(axis=0), rtol=1e-6)
    with pytest.raises(data.DataError, match="negative values"):
        preprocessing.fit(np.array([[1, -1], [2, 2]]), "tabular", "counts")
    with pytest.raises(data.DataError, match="found fractions"):
        preprocessing.fit(np.array([[1.0, 2.5], [2.0, 2.0]]), "tabular", "counts")
    with pytest.raises(data.DataError, match="negative values"):
        preprocessing.apply(p, np.array([[1, -1]]))
    whole = preprocessing.fit(counts.astype(np.float32), "tabular", "counts")
    np.testing.assert_array_equal(whole.arrays["mean"], p.arrays["mean"])


def test_large_offsets_survive():
    small = RNG.normal(size=(500, 3))
    _, x = fitted(small + [1e6, -1e9, 1e6])
    expected = (small - small.mean(axis=0)) / small.std(axis=0)
    np.testing.assert_allclose(x[:, [0, 2]], expected[:, [0, 2]], atol=1e-6)
    np.testing.assert_allclose(x[:, 1], expected[:, 1], atol=1e-5)
    _, x = fitted(np.array([[2**40], [2**40 + 1], [2**40 + 2]]))
    np.testing.assert_allclose(x[:, 0], [-np.sqrt(1.5), 0, np.sqrt(1.5)], rtol=1e-6)


def test_constant_features_stay_zero_in_new_data():
    rows = np.column_stack([np.arange(7.0), np.full(7, 1e6 + 0.1)])
    p, x = fitted(rows)
    np.testing.assert_array_equal(x[:, 1], 0.0)
    assert preprocessing.apply(p, np.array([[3.0, 5.0]]))[0, 1] == 0.0


def test_codes_keep_their_proportions():
    """Trap: standardised, an axis of noise weighs as much as one that tells the classes apart."""
    raw = RNG.normal([5.0, 1e6, 3.0, -2.0], [3.0, 0.5, 0.0, 1.0], size=(2000, 4))
    p, x = fitted(raw, scaling="codes")
    vary = [0, 1, 3]
    ratio = x[:, vary].std(axis=0) / raw[:, vary].std(axis=0)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)
    np.testing.assert_allclose(x.mean(axis=0), 0.0, atol=1e-5)
    assert np.mean(x[:, vary].var(axis=0)) == pytest.approx(1.0, abs=1e-4)
    np.testing.assert_array_equal(fitted(np.ones((5, 2)), scaling="codes")[1], 0.0)
    new = preprocessing.apply(p, raw[:3] + [[0.0, 0.0, 7.0, 0.0]])
    np.testing.assert_allclose(new[:, 2], 7.0 * ratio[0], rtol=1e-4)


@pytest.mark.parametrize("name", ["standard", "codes", "range", "counts", "none"])
def test_blocks_and_single_rows_give_the_same_bits(monkeypatch, name):
    raw = RNG.integers(0, 50, size=(40, 6)) + (0.0 if name == "counts" else 0.5)
    p, x = fitted(raw, scaling=name)
    for i in (0, 17, 39):
        np.testing.assert_array_equal(preprocessing.apply(p, raw[i : i + 1])[0], x[i])
    np.testing.assert_array_equal(preprocessing.apply(p, np.asfortranarray(raw)), x)
    monkeypatch.setattr(arrays, "BLOCK_VALUES", 20)
    assert len(list(arrays.row_blocks(raw.shape))) == 14
    np.testing.assert_array_equal(preprocessing.apply(p, raw), x)
    np.testing.assert_allclose(fitted(raw, scaling=name)[1], x, rtol=1e-6, atol=1e-6)


def test_errors_in_blocks_name_the_right_row(monkeypatch):
    monkeypatch.setattr(arrays, "BLOCK_VALUES", 20)
    raw = RNG.normal(size=(40, 6))
    raw[23, 4] = np.nan
    raw[31, 0] = -np.inf
    with pytest.raises(data.DataError, match="1 NaN and 1 infinite.* at row 23, column 4 "):
        arrays.check(raw, "x", fitting=True)


def sounds(n=5, rate=8000):
    lengths = RNG.integers(100, 6000, size=n)
    return data.Clips(tuple(RNG.normal(0, 0.1, k).astype(np.float32) for k in lengths), rate)


TEXTS = ["red apples grow on trees", "blue whales swim in seas", "", "apples fall into the sea"]
EXAMPLES = {
    "tabular": lambda: RNG.normal(size=(9, 3)),
    "image": lambda: RNG.integers(0, 255, size=(9, 4, 4, 1), dtype=np.uint8),
    "text": lambda: TEXTS,
    "audio": sounds,
}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_stored_and_applied_again(tmp_path, kind):
    raw = EXAMPLES[kind]()
    p, x = fitted(raw, kind)
    preprocessing.save(p, tmp_path)
    again = preprocessing.load(tmp_path)
    assert (again.kind, again.settings) == (p.kind, p.settings)
    np.testing.assert_array_equal(preprocessing.apply(again, raw), x)
    assert x.dtype == np.float32 and len(x) == len(raw)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["preprocessing.json", "preprocessing.npz"]


def test_damaged_preprocessing(tmp_path):
    with pytest.raises(data.DataError, match="cannot read the preprocessing in"):
        preprocessing.load(tmp_path)
    preprocessing.save(fitted(np.eye(3))[0], tmp_path)
    head = json.loads((tmp_path / "preprocessing.json").read_text())
    (tmp_path / "preprocessing.json").write_text(json.dumps(head | {"format": 1}))
    with pytest.raises(data.DataError, match="not a preprocessing file of format 2"):
        preprocessing.load(tmp_path)


def test_new_data_with_a_stored_preprocessing(tmp_path):
    rows = RNG.normal(3.0, 2.0, size=(20, 4))
    np.save(tmp_path / "old.npy", rows)
    np.save(tmp_path / "new.npy", rows[:1])
    p = data.load(tmp_path / "old.npy")[0].preprocessing
    new, _ = data.load(tmp_path / "new.npy", preprocessing=p)  # a single row is fine here
    np.testing.assert_allclose(new.x[0], (rows[0] - rows.mean(0)) / rows.std(0), rtol=1e-5)
    assert new.preprocessing is p


def test_new_data_that_does_not_fit(tmp_path):
    def fails(p, raw, message, **options):
        np.save(tmp_path / "new.npy", raw)
        with pytest.raises(data.DataError, match=message) as caught:
            data.load(tmp_path / "new.npy", preprocessing=p, **options)
        assert "\n" not in str(caught.value)

    table = preprocessing.fit(RNG.normal(size=(9, 3)), "tabular")
    picture = preprocessing.fit(EXAMPLES["image"](), "image")
    fails(table, np.eye(4), r"expects tabular rows of shape \(3,\), found \(4,\)")
    fails(table, EXAMPLES["image"](), "expects tabular data, found image data")
    wanted = "fitted on uint8 pictures of 4 x 4 x 1 with values of 0 to 255, found "
    fails(picture, np.eye(4), wanted + r"rows of shape \(4,\) and float64; reshape")
    fails(
        picture,
        EXAMPLES["image"]()[:, :3],
        wanted + r"rows of shape \(3, 4, 1\) and uint8; reshape",
    )
    fails(picture, RNG.uniform(size=(2, 4, 4)), wanted + "float64, which would", kind="image")
    fails(preprocessing.fit(TEXTS, "text"), np.eye(4), "expects text data, found tabular")
    fails(preprocessing.fit(TEXTS, "text"), EXAMPLES["image"](), "expects text data, found image")
    p = preprocessing.fit(sounds(), "audio")
    fails(p, EXAMPLES["image"](), "expects audio data, found image data")
    with pytest.raises(data.DataError, match="sample rate of 8000 Hz, found 16000 Hz"):
        preprocessing.apply(p, sounds(rate=16000))
    with pytest.raises(data.DataError, match="expects audio data, found text data"):
        preprocessing.apply(p, TEXTS)


def test_pictures_in_other_units_are_refused(tmp_path):
    """Else they are scaled wrongly, and labelled all the same."""

    def load(raw, p):
        np.save(tmp_path / "new.npy", raw)
        return data.load(tmp_path / "new.npy", preprocessing=p, kind="image")[0].x

    levels = RNG.integers(0, 17, (9, 4, 4)).astype(np.uint8)
    p = preprocessing.fit(levels[..., None], "image")
    other = (levels.astype(int) * 255 // 16).astype(np.uint8)
    with pytest.raises(data.DataError, match="values of 0 to 16, found values of 0 to 255, which"):
        load(other, p)
    bright = preprocessing.fit(other[..., None], "image")
    with pytest.raises(data.DataError, match="values of 0 to 255, found values of 0 to 16, which"):
        load(levels, bright)
    shares = preprocessing.fit(levels[..., None] / 16.0, "image")
    with pytest.raises(data.DataError, match="found values of -1.5 to -?0"):
        load(-1.5 * levels / levels.max(), shares)
    np.testing.assert_array_equal(load(levels.astype(float), p), load(levels, p))  # as scikit-learn
    assert load(np.minimum(levels, 20) + 4, p).max() == 1.25  # somewhat brighter, of the same kind
    with pytest.raises(data.DataError, match="found values of -1 to 1, which"):
        load(2.0 * (levels / levels.max()) - 1.0, shares)
    fractions = preprocessing.fit(255.0 * (levels[..., None] / 16.0), "image")
    with pytest.raises(data.DataError, match="float64 pictures of .* found values of 0 to 1, wh"):
        load(levels / levels.max(), fractions)
    assert load(np.zeros_like(levels), bright).max() == 0.0  # black is black in all units
    dark = (levels + 4).astype(np.uint8)
    np.testing.assert_allclose(load(dark, bright), dark[..., None] / 255.0, rtol=1e-6)


def test_a_spot_far_outside_is_no_other_unit(tmp_path):
    """Trap: of rows trained on, a part without the spot is refused, or all where it was fitted on a
    part."""
    spotted = RNG.uniform(size=(40, 10, 10))
    spotted[7, 3, 3] = 1e4
    for fitted_on, given in ((spotted, spotted[8:]), (spotted[8:], spotted)):
        p = preprocessing.fit(fitted_on[..., None], "image")
        np.save(tmp_path / "new.npy", given)
        found = data.load(tmp_path / "new.npy", preprocessing=p, kind="image")[0].x
        np.testing.assert_array_equal(found, preprocessing.apply(p, given[..., None]))
    np.save(tmp_path / "one.npy", spotted[7:8])  # of a picture alone a spot is a hundredth
    assert data.load(tmp_path / "one.npy", preprocessing=p, kind="image")[0].x.max() > 1e3


def test_texts_against_scikit_learn():
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = [f"word{i}" for i in range(300)]
    texts = [" ".join(RNG.choice(words, 30)) for _ in range(150)] + ["the of and"]
    p, x = fitted(texts, "text")
    tfidf = TfidfVectorizer(sublinear_tf=True, stop_words="english", min_df=2, max_df=0.5)
    z = TruncatedSVD(100, random_state=0).fit_transform(tfidf.fit_transform(texts))
    length = np.linalg.norm(z, axis=1, keepdims=True)
    expected = z[:-1] / length[:-1] * 10.0
    np.testing.assert_allclose(np.abs(x[:-1]), np.abs(expected), atol=2e-3)
    np.testing.assert_array_equal(x[-1], 0.0)  # only stop words
    assert x.shape == (151, 100)
    unknown = preprocessing.apply(p, ["zebra", texts[3]])
    np.testing.assert_array_equal(unknown[0], 0.0)
    np.testing.assert_array_equal(unknown[1], x[3])


def test_power_spectrum_against_scipy():
    sound = RNG.normal(size=4321).astype(np.float32)
    power = audio.power_spectrum(sound, window=256, hop=128)
    _, _, z = scipy.signal.stft(
        sound, nperseg=256, noverlap=128, nfft=512, boundary=None, padded=False, window="hann"
    )
    np.testing.assert_allclose(power, np.abs(z.T) ** 2, rtol=1e-4, atol=1e-9)
    assert power.shape == (audio.frame_count(4321, 256, 128), 257)
    sine = np.sin(2 * np.pi * 1000 * np.arange(1024) / 8000).astype(np.float32)
    power = audio.power_spectrum(sine, window=256, hop=128)
    np.testing.assert_allclose(power[:, 64], 0.25, rtol=1e-4)  # 1000 Hz is bin 64 of 15.625 Hz
    assert (power.argmax(axis=1) == 64).all()


def test_mel_bank_by_hand():
    np.testing.assert_allclose(audio.hertz_to_mel([0, 700, 1000]), [0, 781.17, 999.99], atol=0.01)
    hertz = np.array([0.0, 50.0, 440.0, 4000.0])
    np.testing.assert_allclose(audio.mel_to_hertz(audio.hertz_to_mel(hertz)), hertz, atol=1e-9)
    bank = audio.mel_bank(8000, 512, 40)
    edges = 700 * ((1 + 4000 / 700) ** (np.arange(42) / 41) - 1)  # even steps of log(1 + f / 700)
    bins = np.arange(257) * 15.625
    for band in range(40):
        triangle = np.interp(bins, edges[band : band + 3], [0, 1, 0], left=0, right=0)
        np.testing.assert_allclose(bank[:, band], triangle, atol=1e-4)
    inner = (bins > edges[1]) & (bins < edges[-2])
    np.testing.assert_allclose(bank[inner].sum(axis=1), 1.0, atol=1e-5)  # neighbours share
    assert (bank.sum(axis=0) > 0).all()


def test_log_mel_frames():
    settings = {"sample_rate": 8000, "window": 256, "hop": 128, "frames": 8, "bands": 40}
    settings["floor"] = 1e-8
    long = RNG.normal(0, 0.1, 256 + 128 * 19).astype(np.float32)  # 20 frames
    short = long[: 256 + 128 * 2 + 100]  # 3 frames
    pcm = np.int16(short * 2**15)
    clips = data.Clips((long, short, pcm, short[:40]), 8000)
    logs, there = audio.log_mels(settings, clips)
    np.testing.assert_array_equal(there.sum(axis=1), [8, 3, 3, 1])
    assert there[:, 0].all() and (np.diff(there.astype(int), axis=1) <= 0).all()
    power = np.asarray(audio.power_spectrum(long, window=256, hop=128))
    expected = np.log(1e-8 + power @ audio.mel_bank(8000, 512, 40))
    np.testing.assert_allclose(logs[0], expected[6:14], rtol=1e-4)  # the middle 8 of 20
    np.testing.assert_allclose(logs[1, :3], expected[:3], rtol=1e-4)
    np.testing.assert_allclose(logs[1, 3:], np.log(1e-8), rtol=1e-6)
    np.testing.assert_allclose(logs[2], logs[1], atol=0.05)
    assert logs[3, 0].max() > logs[3, 1].max()  # shorter than a window: one frame
    np.testing.assert_allclose(logs[3, 1:], np.log(1e-8), rtol=1e-6)


def test_sound_features_are_standardised_per_band():
    clips = sounds(n=70)  # more than one batch
    p, x = fitted(clips, "audio")
    assert x.shape == (70, p.settings["frames"], 40, 1) and p.settings["frames"] % 4 == 0
    there = x.any(axis=(2, 3))  # frames behind a short clip are zeros, and count for nothing
    assert 0.3 < there.mean() < 0.9
    np.testing.assert_allclose(x[there].mean(axis=0, dtype=np.float64), 0.0, atol=1e-4)
    np.testing.assert_allclose(x[there].std(axis=0, dtype=np.float64), 1.0, atol=1e-4)
    one = preprocessing.apply(p, data.Clips(clips.samples[66:67], 8000))
    np.testing.assert_array_equal(one[0], x[66])  # whatever the other clips are
    settings = {name: value for name, value in p.settings.items() if name != "fill"}
    before = dataclasses.replace(p, settings=settings)
    with pytest.raises(data.DataError, match="filled short clips with silence"):
        preprocessing.apply(before, clips)


def test_unusable_clips():
    for clips, message in (
        (data.Clips((), 8000), "expected sound clips, found none"),
        (data.Clips((np.ones((3, 2)),), 8000), r"clip 0 has shape \(3, 2\)"),
        (data.Clips((np.ones(3), np.array([1, np.nan])), 8000), "clip 1: found 1 NaN"),
        (data.Clips((np.ones(3), np.ones(3)), 8000), "all 2 clips are equal"),
    ):
        with pytest.raises(data.DataError, match=message):
            arrays.check(clips, "x", fitting=True)


def test_moments_are_those_of_numpy():
    x = RNG.normal(2.0, 3.0, size=(1000, 4))
    found = scaling.moments(lambda: iter([x[:300], x[300:]]), 1000)
    np.testing.assert_allclose(found["mean"], x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(1 / found["multiplier"], x.std(axis=0), rtol=1e-12)


def test_checksum_depends_on_values_type_and_shape_only():
    x = RNG.integers(0, 9, size=(6, 4)).astype(np.float32)
    same = [x, np.asfortranarray(x), x.astype(">f4"), x[::-1][::-1]]
    assert len({arrays.checksum(y) for y in same}) == 1
    other = [x, x.astype(np.float64), x.reshape(4, 6), x + 1, x[::-1]]
    assert len({arrays.checksum(y) for y in other}) == 5
    assert arrays.checksum(["ab", "c"]) != arrays.checksum(["a", "bc"])


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("unknown kind 'picture'", {"kind": "picture"}),
        ("unknown scaling 'minmax'", {"scaling": "minmax"}),
        ("at least 1, found 0", {"limit": 0}),
        ("text takes only the scaling auto", {"kind": "text", "scaling": "none"}),
        ("table of counts", {"scaling": "counts"}),
        ("either scaling or a stored", {"scaling": "none", "preprocessing": fitted(np.eye(3))[0]}),
    ],
)
def test_wrong_arguments(tmp_path, message, options):
    np.save(tmp_path / "x.npy", RNG.normal(size=(9, 3)))
    with pytest.raises(data.DataError, match=message) as caught:
        data.load(tmp_path / "x.npy", **options)
    assert "\n" not in str(caught.value)


def test_arrays_are_not_paths():
    with pytest.raises(data.DataError, match="found ndarray; save arrays with numpy.save"):
        data.load(np.eye(3))


def test_importing_is_light():
    code = "import sys, deepclust_jax.data; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"jax", "sklearn", "scipy", "pyarrow", "PIL", "soundfile", "pooch", "requests"}
    assert not heavy & set(loaded.stdout.split())
