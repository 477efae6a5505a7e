"""Folders of pictures and sounds, and files of texts."""

import gzip
import json

import numpy as np
import pytest

from deepclust_jax import data

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, size=(6, 5, 4, 3), dtype=np.uint8)


def fails(message, *args, **options):
    """Assert that load raises one line that contains `message`."""
    with pytest.raises(data.DataError) as caught:
        data.load(*args, **options)
    line = str(caught.value)
    assert "\n" not in line
    assert message in line, line


def save_picture(path, pixels):
    from PIL import Image

    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(pixels).save(path)


def test_folder_of_pictures(tmp_path):
    for i, pixels in enumerate(PICTURES):
        save_picture(tmp_path / "colour" / ("cat" if i % 2 else "ant") / f"{i}.png", pixels)
        save_picture(tmp_path / "grey" / f"{i}.bmp", pixels[..., 0])
    (tmp_path / "grey" / "notes.md").write_text("not a picture")
    colour, labels = data.load(tmp_path / "colour")
    np.testing.assert_array_equal(colour.raw, PICTURES[[0, 2, 4, 1, 3, 5]])
    np.testing.assert_array_equal(labels, [0, 0, 0, 1, 1, 1])
    assert colour.classes == ("ant", "cat")
    files = [f"{'cat' if i % 2 else 'ant'}/{i}.png" for i in (0, 2, 4, 1, 3, 5)]
    assert data.row_files(tmp_path / "colour") == tuple(files)
    some, _ = data.load(tmp_path / "colour", limit=4)
    of_some = data.row_files(tmp_path / "colour", limit=4)
    assert len(set(of_some)) == 4 and of_some != tuple(files[:4])
    np.testing.assert_array_equal(some.raw, [PICTURES[int(file[4])] for file in of_some])
    assert data.row_files(tmp_path / "colour", limit=6) == tuple(files)  # as `load` keeps them
    assert data.row_files("digits") == ()
    grey, labels = data.load(tmp_path / "grey")
    np.testing.assert_array_equal(grey.raw, PICTURES[..., :1])
    assert labels is None and grey.kind == "image"


def test_pictures_for_a_table_of_other_numbers(tmp_path):
    """Trap: flattened pictures fit a table of as many columns, and are scaled by its means."""
    for i, pixels in enumerate(PICTURES):
        save_picture(tmp_path / "pictures" / f"{i}.png", pixels)
    for name, rows in (("table", RNG.normal(size=(9, 60))), ("bytes", PICTURES.reshape(6, -1))):
        np.save(tmp_path / f"{name}.npy", rows)
    of = {name: data.load(tmp_path / f"{name}.npy")[0].preprocessing for name in ("table", "bytes")}
    pictures = tmp_path / "pictures"
    fails(
        "expects tabular data, found image data",
        pictures,
        kind="tabular",
        preprocessing=of["table"],
    )
    same, _ = data.load(pictures, kind="tabular", preprocessing=of["bytes"])
    assert same.x.shape == (6, 60)


def test_folders_that_do_not_fit(tmp_path):
    folder = tmp_path / "pictures"
    save_picture(folder / "a.png", PICTURES[0])
    save_picture(folder / "b.png", PICTURES[1][:3])
    fails("b.png is 4 x 3 pixels, but a.png is 4 x 5; resize all pictures", folder)
    save_picture(folder / "b.png", np.zeros((5, 4), np.uint16))
    fails("do not fit in bytes", folder)
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:60])
    fails("b.png is not a readable picture", folder)
    (folder / "b.png").unlink()
    save_picture(folder / "class" / "c.png", PICTURES[1])
    fails("lies beside sub-folders", folder)
    (folder / "s.wav").write_bytes(b"")
    fails("holds 2 pictures and 1 sounds", folder)


def test_folder_of_sounds(tmp_path):
    import soundfile

    def write(name, samples, rate=8000):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        soundfile.write(tmp_path / name, samples, rate)

    sounds = [RNG.uniform(-0.5, 0.5, n) for n in (900, 2000, 1500)]
    for i, sound in enumerate(sounds):
        write(f"w/{'no' if i else 'yes'}/{i}.wav", sound)
    write("w/yes/3.wav", np.stack([sounds[0], -sounds[0]], axis=1))  # stereo that cancels
    dataset, labels = data.load(tmp_path / "w")
    np.testing.assert_array_equal(labels, [0, 0, 1, 1])
    assert (dataset.kind, dataset.raw.sample_rate, len(dataset.raw)) == ("audio", 8000, 4)
    np.testing.assert_allclose(dataset.raw[0], sounds[1], atol=1e-4)  # 16 bits
    np.testing.assert_allclose(dataset.raw[3], 0.0, atol=1e-4)
    assert dataset.x.shape == (4, *dataset.x.shape[1:3], 1) and dataset.x.shape[2] == 40
    write("w/yes/4.wav", sounds[0], rate=16000)
    fails("4.wav has a sample rate of 16000 Hz, but 1.wav has 8000 Hz", tmp_path / "w")
    write("w/yes/4.wav", sounds[0][:0])
    fails("4.wav has no samples", tmp_path / "w")
    (tmp_path / "w/yes/4.wav").write_bytes(b"RIFF")
    fails("4.wav is not a readable sound file", tmp_path / "w")


def test_texts(tmp_path):
    texts = ["red apples grow", "blue whales swim", "", "apples swim in red seas"]
    (tmp_path / "t.txt").write_text("\n".join(texts) + "\n")
    rows = [{"text": t, "label": n} for t, n in zip(texts, "baab", strict=True)]
    lines = "\n".join(map(json.dumps, rows))
    (tmp_path / "t.jsonl").write_text(lines)
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for name in ("t.txt", "t.jsonl", "t.jsonl.gz"):
        dataset, labels = data.load(tmp_path / name)
        assert (dataset.kind, dataset.raw) == ("text", texts)
        np.testing.assert_array_equal(dataset.x[2], 0.0)
        assert name == "t.txt" or labels.tolist() == [1, 0, 0, 1]
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(lines.encode())[:40])
    fails("damaged or cut short", tmp_path / "cut.jsonl.gz")
    fails("no field and no file 'topic'", tmp_path / "t.jsonl", labels="topic")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.txt", "\n \n", "0 documents, all of them empty"),
        ("t.txt", "the\nof\n", "no word is left of 2 documents"),
        ("t.txt", "a cat\ncat\n", "expected two words or more in all documents, found one in 2"),
        ("t.txt", "same\nsame\n", "all 2 documents are equal"),
        ("t.jsonl", '{"text": "a"}\n{"text": 3}\n', "line 2: expected an object with a string"),
        ("t.jsonl", '{"text": "a"}\n{"text"\n', "line 2: not JSON"),
        ("t.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}', "document 1 has no field 'label'"),
        ("t.jsonl", "\n", "0 documents"),
    ],
)
def test_texts_that_cannot_be_clustered(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    fails(message, tmp_path / name)
