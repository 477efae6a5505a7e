"""Data sets from their public sources, in the same order as the files of the data folder.

Checksums: MNIST and Fashion-MNIST as published by their mirrors and torchvision; CIFAR-10 as on its
author's page; 20 Newsgroups as in scikit-learn.
"""

import gzip
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deepclust_jax.data import download, newsgroups
from deepclust_jax.data.errors import DataError

MNIST_MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)
FASHION_MIRRORS = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)
IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
MNIST_MD5 = (
    "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "9fb629c4189551a2d022fa330f9573f3",
    "d53e105ee54ea40749a09fcbcd1e9432",
    "ec29112dd5afa0611ce80d1b7f02629c",
)
FASHION_MD5 = (
    "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "bef4ecab320f06d8554ea6380940ec79",
    "25c81989df183df01b3e8a0aad5dffbe",
    "bb300cfdad3c16e7a12a480ee83cd310",
)
CIFAR10 = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
NEWSGROUPS = "https://ndownloader.figshare.com/files/5975967"
NEWSGROUPS_SHA256 = "8f1b2514ca22a5ade8fbb9cfa5727df95fa587f4c87b786e15c759fa66d95610"


def mnist() -> tuple[np.ndarray, np.ndarray]:
    """MNIST, train then test. -> uint8 [70000, 28, 28, 1], labels [70000]."""
    return idx_set("mnist", MNIST_MIRRORS, MNIST_MD5)


def fashion_mnist() -> tuple[np.ndarray, np.ndarray]:
    """Fashion-MNIST, train then test. -> uint8 [70000, 28, 28, 1], labels [70000]."""
    return idx_set("fashion_mnist", FASHION_MIRRORS, FASHION_MD5)


def idx_set(
    name: str, mirrors: tuple[str, ...], md5: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [n, h, w, 1] and labels [n] of the four IDX files, train then test."""
    paths = [
        download.fetch([mirror + file for mirror in mirrors], f"md5:{known}", f"{name}-{file}")
        for file, known in zip(IDX_FILES, md5, strict=True)
    ]
    train, test, train_labels, test_labels = map(read_idx, paths)
    return np.concatenate([train, test])[..., None], np.concatenate([train_labels, test_labels])


def read_idx(path: Path) -> np.ndarray:
    """Array of a gzipped IDX file of bytes (format: two zeros, type 8, rank, sizes, values)."""
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\x00\x00\x08":
        raise DataError(f"{path}: expected an IDX file of unsigned bytes")
    rank = content[3]
    shape = np.frombuffer(content, ">u4", rank, offset=4).astype(int)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def cifar10_test() -> tuple[np.ndarray, np.ndarray]:
    """The test pictures of CIFAR-10 in their order. -> uint8 [10000, 32, 32, 3], labels."""
    return read_cifar(_cifar10(), ("test_batch.bin",))


def cifar10() -> tuple[np.ndarray, np.ndarray]:
    """CIFAR-10, train then test. -> uint8 [60000, 32, 32, 3], labels."""
    batches = [f"data_batch_{i}.bin" for i in range(1, 6)]
    return read_cifar(_cifar10(), (*batches, "test_batch.bin"))


def _cifar10() -> Path:
    return download.fetch([CIFAR10], f"md5:{CIFAR10_MD5}", "cifar-10-binary.tar.gz")


def read_cifar(path: Path, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [n, 32, 32, 3] and labels [n] of some batches (rows: label byte, then 3 planes)."""
    with tarfile.open(path) as archive:
        files = {Path(member.name).name: member for member in archive}
        parts = [archive.extractfile(files[name]).read() for name in names]
    rows = np.frombuffer(b"".join(parts), np.uint8).reshape(-1, 3073)
    pictures = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pictures), rows[:, 0]


def twenty_newsgroups() -> tuple[list[str], np.ndarray]:
    """Stripped messages of 20 Newsgroups by date, train then test, and labels."""
    path = download.fetch([NEWSGROUPS], f"sha256:{NEWSGROUPS_SHA256}", "20news-bydate.tar.gz")
    return read_newsgroups(path)


def read_newsgroups(path: Path) -> tuple[list[str], np.ndarray]:
    """Stripped messages and labels; order: train, test; then by group, then by file name."""
    messages = []
    with tarfile.open(path) as archive:
        for member in archive:
            parts = Path(member.name).parts[-3:]
            if member.isfile() and len(parts) == 3:
                part, group, number = parts
                text = archive.extractfile(member).read().decode("latin1")
                messages.append((not part.endswith("-train"), group, number, text))
    messages.sort(key=lambda message: message[:3])
    groups = sorted({group for _, group, _, _ in messages})
    y = np.array([groups.index(group) for _, group, _, _ in messages])
    return [newsgroups.body(text) for *_, text in messages], y
