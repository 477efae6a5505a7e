"""The named data sets: one plain table, and how to read each file of the data folder.

Files are read from the folder DEEPCLUST_DATA_DIR; those with a stable public source are otherwise
downloaded once (download.py) into the user's cache.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepclust_jax.data import arrays, documents, files, newsgroups, sources
from deepclust_jax.data.clips import Clips
from deepclust_jax.data.errors import DataError

Content = tuple[arrays.Raw, np.ndarray]  # raw rows; labels


@dataclass(frozen=True)
class Named:
    """One data set: its file, what it holds, how to read and where to get it."""

    file: str | None  # in DEEPCLUST_DATA_DIR; None: needs none
    kind: str
    n_clusters: int
    read: Callable[[Path | None], Content]
    download: Callable[[], Content] | None = None
    scaling: str = "auto"
    origin: str = ""  # where to get the file, if it cannot be downloaded
    nuisance: str | None = None  # array of the file with labels that clusters should not follow


def read(name: str) -> Content:
    """(raw rows, labels) of a named set. Raises DataError if its file is neither found nor had."""
    entry = NAMED[name]
    if entry.file is None:
        return entry.read(None)
    folder = os.environ.get("DEEPCLUST_DATA_DIR")
    if folder and not os.path.isdir(folder):
        raise DataError(f"no folder {folder}, which DEEPCLUST_DATA_DIR names; correct or unset it")
    path = Path(folder) / entry.file if folder else None
    if path is not None and path.exists():
        return entry.read(path)
    where = f"found no {path}" if path else "DEEPCLUST_DATA_DIR is not set"
    needs = f"the file {entry.file} in the folder DEEPCLUST_DATA_DIR: {where}"
    if entry.download is None:
        raise DataError(f"{name} needs {needs}; it is made from {entry.origin}")
    try:
        return entry.download()
    except DataError as error:
        raise DataError(f"{error}; {name} also takes {needs}") from None


def _digits(_: None) -> Content:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images.astype(np.uint8)[..., None], digits.target


def _gaussians(centres: np.ndarray, deviation: float) -> Content:
    """50,000 points about the centres [k, 2], as trainers of GANs are shown them."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, len(centres), 50_000)
    return centres[y] + deviation * rng.normal(size=(len(y), 2)), y


def _ring_8(_: None) -> Content:
    angle = np.arange(8) * np.pi / 4
    return _gaussians(2.0 * np.stack([np.cos(angle), np.sin(angle)], axis=1), 0.02)


def _grid_25(_: None) -> Content:
    steps = 2.0 * np.arange(-2, 3)
    return _gaussians(np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2), 0.05)


def _arrays(*wanted: str) -> Callable[[Path], list[np.ndarray]]:
    def read_file(path: Path) -> list[np.ndarray]:
        with files.open_npz(path) as stored:
            missing = [key for key in wanted if key not in stored.files]
            if missing:
                raise DataError(f"{path}: expected the arrays {wanted}, {missing[0]} is missing")
            return [stored[key] for key in wanted]

    return read_file


def _grey(path: Path) -> Content:
    x, y = _arrays("X", "y")(path)
    return x[..., None], y


_STACKED = 25_600  # pictures of stacked_mnist, as many as Metz et al. 2017 count modes of


def _stacked(content: Content) -> Content:
    """Three digits drawn at random, one in each colour, and their number of three places."""
    x, y = content
    drawn = np.random.default_rng(0).integers(0, len(x), (3, _STACKED))
    images = np.concatenate([x[one] for one in drawn], axis=-1)
    return images, sum(
        place * y[one].astype(np.int64) for place, one in zip((100, 10, 1), drawn, strict=True)
    )


def _usps(path: Path) -> Content:
    # The published grey levels are multiples of 1/2000 in [0, 1]; bytes would round them.
    x, y = _arrays("X2000", "y")(path)
    return x[..., None], y


def _plain(path: Path) -> Content:
    x, y = _arrays("X", "y")(path)
    return x, y


def _fsdd(path: Path) -> Content:
    audio, ends, y, rate = _arrays("audio", "offsets", "y", "sample_rate")(path)
    clips = [audio[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]
    return Clips(tuple(clips), int(rate)), y


def _images_of_clips(path: Path) -> Content:
    """An image of MNIST for each clip of fsdd, of the same digit, none twice."""
    images, digits = read("mnist")
    y = _fsdd(path)[1]
    order = np.random.default_rng(0).permutation(len(images))
    chosen = np.empty(len(y), np.int64)
    for digit in np.unique(y):
        rows = np.flatnonzero(y == digit)
        chosen[rows] = order[digits[order] == digit][: len(rows)]
    return images[chosen], y


def _emoji_names(path: Path) -> Content:
    texts, y = _arrays("text", "y")(path)
    return [str(text) for text in texts], y


def _texts(path: Path) -> Content:
    texts, y = documents.read_jsonl(path, "label")
    if y is None:
        raise DataError(f"{path}: expected a field 'label' in every document; copy it again")
    return texts, np.asarray(y)


def _newsgroups(path: Path) -> Content:
    texts, y = _texts(path)
    return [newsgroups.body(text) for text in texts], y


def nuisance(name: str) -> np.ndarray | None:
    """The labels of a named set that clusters should not follow, or None where it has none."""
    entry, folder = NAMED[name], os.environ.get("DEEPCLUST_DATA_DIR")
    if entry.nuisance is None or not folder:
        return None
    with files.open_npz(Path(folder) / entry.file) as stored:
        return stored[entry.nuisance] if entry.nuisance in stored.files else None


NAMED = {
    "digits": Named(None, "image", 10, _digits),
    "ring_8": Named(None, "tabular", 8, _ring_8),
    "grid_25": Named(None, "tabular", 25, _grid_25),
    "mnist": Named("mnist.npz", "image", 10, _grey, download=sources.mnist),
    "stacked_mnist": Named(
        "mnist.npz",
        "image",
        1000,
        lambda path: _stacked(_grey(path)),
        download=lambda: _stacked(sources.mnist()),
    ),
    "fashion_mnist": Named("fashion_mnist.npz", "image", 10, _grey, download=sources.fashion_mnist),
    "usps": Named(
        "usps.npz",
        "image",
        10,
        _usps,
        origin="the USPS digits of 'The Elements of Statistical Learning' (zip.train, zip.test): "
        "X2000 uint16 [9298, 16, 16] = 1000 (value + 1), y",
    ),
    # The 10,000 test pictures, from either source.
    "cifar10": Named("cifar10_10k.npz", "image", 10, _plain, download=sources.cifar10_test),
    "cifar10_60k": Named("cifar10_60k.npz", "image", 10, _plain, download=sources.cifar10),
    "pendigits": Named(
        "pendigits.npz",
        "tabular",
        10,
        _plain,
        origin="UCI 'Pen-Based Recognition of Handwritten Digits' (pendigits.tra, then "
        "pendigits.tes): X [10992, 16], y",
    ),
    "pbmc4k": Named(
        "pbmc4k_10x.npz",
        "tabular",
        8,
        _plain,
        scaling="counts",
        origin="the 10x PBMC 4k counts of the scDCC repository: X [4271, 2000], y",
    ),
    "fsdd": Named(
        "fsdd.npz",
        "audio",
        10,
        _fsdd,
        scaling="speech",
        nuisance="speaker",
        origin="the Free Spoken Digit Dataset: audio int16, offsets [3001], y, sample_rate, and if "
        "wanted speaker; or give its wav files as a folder with one sub-folder per digit",
    ),
    # Row i is of the thing of which row i of fsdd is, or of emoji.
    "mnist_of_fsdd": Named(
        "fsdd.npz",
        "image",
        10,
        _images_of_clips,
        origin="the Free Spoken Digit Dataset, see fsdd",
    ),
    "emoji": Named(
        "emoji_image_text.npz",
        "image",
        9,
        _plain,
        origin="the npm package emoji-datasource-twitter 16.0.0: X uint8 [1906, 32, 32, 3], text, "
        "y (the Unicode category)",
    ),
    "emoji_names": Named(
        "emoji_image_text.npz", "text", 9, _emoji_names, origin="the same package, see emoji"
    ),
    "twenty_newsgroups": Named(
        "twenty_newsgroups.jsonl.gz", "text", 20, _newsgroups, download=sources.twenty_newsgroups
    ),
    "ag_news": Named(
        "ag_news_test.jsonl.gz",
        "text",
        4,
        _texts,
        origin="the test part of AG News: one JSON object per line with text and label",
    ),
    "bbc_news": Named(
        "bbc_news.jsonl.gz",
        "text",
        5,
        _texts,
        origin="BBC News (2225 articles): one JSON object per line with text and label",
    ),
}
