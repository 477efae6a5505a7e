"""Named data sets on the real files, and the wall between rows and labels."""

import dataclasses

import numpy as np
import pytest

from deepclust_jax import data
from deepclust_jax.data import labelling, named, newsgroups

# Rows per class as published; None where no such table was published.
COUNTS = {
    "digits": [178, 182, 177, 183, 181, 182, 181, 179, 174, 180],
    "mnist": [6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958],
    "fashion_mnist": [7000] * 10,
    "usps": [1553, 1269, 929, 824, 852, 716, 834, 792, 708, 821],
    "cifar10": [1000] * 10,
    "pendigits": [1143, 1143, 1144, 1055, 1144, 1055, 1056, 1142, 1055, 1055],
    "stacked_mnist": None,
    "pbmc4k": None,
    "fsdd": [300] * 10,
    "twenty_newsgroups": [799, 973, 985, 982, 963, 988, 975, 990, 996, 994]
    + [999, 991, 984, 990, 987, 997, 910, 940, 775, 628],
    "mnist_of_fsdd": [300] * 10,
    "emoji": None,
    "emoji_names": None,
    "ag_news": [1900] * 4,
    "bbc_news": None,
}
ROWS = {
    "stacked_mnist": 25_600,
    "pbmc4k": 4271,
    "bbc_news": 2225,
    "emoji": 1906,
    "emoji_names": 1906,
}
SHAPES = {
    "digits": (8, 8, 1),
    "mnist": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
    "stacked_mnist": (28, 28, 3),
    "usps": (16, 16, 1),
    "cifar10": (32, 32, 3),
    "pendigits": (16,),
    "pbmc4k": (2000,),
    "mnist_of_fsdd": (28, 28, 1),
    "emoji": (32, 32, 3),
    "emoji_names": (100,),
    "fsdd": (20, 12, 1),
    "twenty_newsgroups": (100,),
    "ag_news": (100,),
    "bbc_news": (100,),
}
REAL = [name for name in SHAPES if named.NAMED[name].file is not None]


def check_counts(name):
    """Full data set: number of rows and of rows per class."""
    raw, labels = named.read(name)
    labels, _ = labelling.number(labels, name)
    counts = np.bincount(labels)
    assert len(raw) == len(labels) == counts.sum()
    assert len(counts) == named.NAMED[name].n_clusters
    assert len(raw) == ROWS.get(name, sum(COUNTS[name] or [0]))
    if COUNTS[name] is not None:
        np.testing.assert_array_equal(counts, COUNTS[name])


def check_rows(name):
    """A part of the data set as it goes into training."""
    n = 3000 if name == "fsdd" else 500  # the number of frames depends on all clips
    dataset, labels = data.load(name, limit=n)
    assert (dataset.name, dataset.kind) == (name, named.NAMED[name].kind)
    assert dataset.n_clusters == named.NAMED[name].n_clusters
    assert dataset.x.shape == (n, *SHAPES[name]) and labels.shape == (n,)
    assert dataset.x.dtype == np.float32 and dataset.x.flags.c_contiguous
    assert labels.dtype == np.int64 and labels.min() >= 0
    assert np.isfinite(dataset.x).all()
    if dataset.kind == "image":
        assert dataset.x.min() == 0.0 and dataset.x.max() == 1.0
    elif dataset.kind == "text":
        squares = (dataset.x.astype(np.float64) ** 2).mean(axis=1)
        np.testing.assert_allclose(squares[squares > 0], 1.0, rtol=1e-5)
    else:
        np.testing.assert_allclose(dataset.x.mean(dtype=np.float64), 0.0, atol=1e-4)
        assert 0.5 < dataset.x.std() <= 1.001


def test_stacked_digits_are_told_by_their_three_places():
    digits = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
    images, y = named._stacked((digits, np.arange(10)))
    assert images.shape == (25_600, 4, 4, 3) and len(np.unique(y)) == 1000
    np.testing.assert_array_equal(images[:, 0, 0] @ np.array([100, 10, 1]), y)


@pytest.mark.parametrize("name, deviation", [("ring_8", 0.02), ("grid_25", 0.05)])
def test_points_lie_about_as_many_centres_as_there_are_classes(name, deviation):
    dataset, labels = data.load(name, scaling="none")
    assert dataset.x.shape == (50_000, 2) and dataset.kind == "tabular"
    centres = np.stack([dataset.x[labels == c].mean(axis=0) for c in range(dataset.n_clusters)])
    gaps = np.linalg.norm(centres[:, None] - centres[None], axis=2)
    assert gaps[gaps > 0].min() > 1.5
    np.testing.assert_allclose((dataset.x - centres[labels]).std(axis=0), deviation, rtol=0.02)
    np.testing.assert_allclose(np.bincount(labels), 50_000 / len(centres), rtol=0.1)


def test_digits():
    check_counts("digits")
    check_rows("digits")
    dataset, _ = data.load("digits")
    np.testing.assert_array_equal(dataset.x, dataset.raw.astype(np.float32) / 16)


@pytest.mark.parametrize("name", REAL)
def test_class_counts(data_dir, name):
    check_counts(name)


@pytest.mark.parametrize("name", REAL)
def test_rows(data_dir, name):
    check_rows(name)


def test_usps_has_the_exact_grey_levels(data_dir):
    dataset, _ = data.load("usps")
    with np.load(data_dir / "usps.npz") as stored:
        expected = stored["X2000"][..., None] / 2000.0
    np.testing.assert_array_equal(dataset.x, expected.astype(np.float32))


def test_counts_of_genes_are_scaled_as_published(data_dir):
    dataset, _ = data.load("pbmc4k", limit=300)
    counts = dataset.raw.astype(np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    logs = np.log(1 + counts * np.median(totals) / totals)
    std = logs.std(axis=0)
    expected = np.where(std > 0, (logs - logs.mean(axis=0)) / np.where(std > 0, std, 1), 0)
    np.testing.assert_allclose(dataset.x, expected, rtol=1e-4, atol=1e-5)


def test_limit_keeps_the_first_rows_of_one_permutation():
    whole, labels = data.load("digits")
    part, part_labels = data.load("digits", limit=100)
    kept = np.random.default_rng(0).permutation(1797)[:100]
    np.testing.assert_array_equal(part.x, whole.x[kept])
    np.testing.assert_array_equal(part_labels, labels[kept])
    assert part.checksum != whole.checksum
    smaller, _ = data.load("digits", limit=40)
    np.testing.assert_array_equal(smaller.x, part.x[:40])


def test_checksum_of_digits_is_the_same_everywhere():
    dataset, _ = data.load("digits")
    assert dataset.checksum == data.load("digits", kind="image", scaling="none")[0].checksum
    assert dataset.checksum[:16] == "5226652361a63fc8"


def test_kind_and_scaling_can_be_chosen():
    flat, _ = data.load("digits", kind="tabular", limit=50)
    assert (flat.kind, flat.x.shape) == ("tabular", (50, 64))
    np.testing.assert_allclose(flat.x.mean(axis=0), 0.0, atol=1e-6)
    plain, _ = data.load("digits", scaling="none", limit=50)
    np.testing.assert_array_equal(plain.x, plain.raw.astype(np.float32))


def test_own_labels_for_a_named_set(tmp_path):
    np.save(tmp_path / "l.npy", np.arange(1797) % 7)
    _, labels = data.load("digits", labels=tmp_path / "l.npy")
    np.testing.assert_array_equal(labels, np.arange(1797) % 7)


def test_unknown_names_and_missing_files(tmp_path, monkeypatch):
    with pytest.raises(data.DataError, match=r"unknown data set 'mnits'; did you mean mnist") as e:
        data.load("mnits")
    assert "fashion_mnist" in str(e.value) and "path of a file or folder" in str(e.value)
    monkeypatch.setenv("DEEPCLUST_DATA_DIR", str(tmp_path))
    with pytest.raises(data.DataError, match=r"usps needs the file usps.npz .*found no"):
        data.load("usps")
    np.savez(tmp_path / "usps.npz", X=np.eye(3))
    with pytest.raises(data.DataError, match="X2000 is missing"):
        data.load("usps")
    monkeypatch.delenv("DEEPCLUST_DATA_DIR")
    with pytest.raises(data.DataError, match="DEEPCLUST_DATA_DIR is not set") as e:
        data.load("pendigits")
    assert "\n" not in str(e.value) and "UCI" in str(e.value)


def reachable_arrays(value, seen):
    """Every array and sequence of numbers that can be reached from `value`."""
    if id(value) in seen or isinstance(value, str | bytes | int | float | np.dtype | type):
        return
    seen.add(id(value))
    if isinstance(value, np.ndarray):
        yield value
        yield from reachable_arrays(value.base, seen)  # a view can lead to its parent
        return
    if isinstance(value, list | tuple):
        if value and all(isinstance(v, int | float | np.number) for v in value):
            yield np.asarray(value)
        children = value
    elif isinstance(value, dict):
        children = value.values()
    elif dataclasses.is_dataclass(value):
        children = [getattr(value, field.name) for field in dataclasses.fields(value)]
    else:
        children = list(vars(value).values()) if hasattr(value, "__dict__") else []
    for child in children:
        yield from reachable_arrays(child, seen)


def assert_no_labels(dataset, labels):
    found = list(reachable_arrays(dataset, set()))
    assert any(array is dataset.x for array in found)
    for array in found:
        if array.size == labels.size:
            other, _ = labelling.number(array.reshape(-1), "any")
            # Equal up to renaming the classes would be a leak as well.
            pairs = len(np.unique(np.stack([other, labels]), axis=1).T)
            assert pairs > len(np.unique(labels))
        if array.ndim == 2 and len(array) == len(labels):
            assert not any(np.array_equal(column, labels) for column in array.T)


def test_labels_cannot_be_reached_from_a_dataset(tmp_path):
    dataset, labels = data.load("digits")
    assert_no_labels(dataset, labels)
    rows = np.random.default_rng(0).normal(size=(30, 4))
    expected = np.arange(30) % 3
    table = np.column_stack([rows, expected])
    np.savez(tmp_path / "t.npz", X=rows, y=expected)
    lines = [",".join(map(repr, row)) for row in table.tolist()]
    (tmp_path / "t.csv").write_text("\n".join(["a,b,c,d,group", *lines]))
    for path, column in ((tmp_path / "t.npz", None), (tmp_path / "t.csv", "group")):
        dataset, labels = data.load(path, labels=column)
        np.testing.assert_array_equal(labels, expected)
        assert_no_labels(dataset, labels)
    leaky = dataclasses.replace(dataset, raw=table)
    with pytest.raises(AssertionError):
        assert_no_labels(leaky, labels)
    assert not any("label" in field.name for field in dataclasses.fields(dataset))


def test_newsgroups_are_stripped_as_in_scikit_learn(data_dir):
    from sklearn.datasets import _twenty_newsgroups as reference

    from deepclust_jax.data import documents

    messages, _ = documents.read_jsonl(data_dir / "twenty_newsgroups.jsonl.gz", "label")
    messages = [*messages[::10], "a: b\n\nbody\n--\nname", "a: b", "a: b\n\n\n\n", ""]
    for message in messages:
        body = reference.strip_newsgroup_header(message)
        body = reference.strip_newsgroup_footer(body)
        assert newsgroups.body(message) == reference.strip_newsgroup_quoting(body)
