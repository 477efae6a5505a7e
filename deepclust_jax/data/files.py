"""Own files and folders: (raw rows, labels if they come with them, feature names)."""

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deepclust_jax.data import arrays, documents, folders, labelling, tables
from deepclust_jax.data.errors import DataError

MAP_BYTES = 2**30  # larger .npy files stay on disk
EXPECTED = (
    ".npy, .npz, .csv, .tsv, .parquet, .jsonl, .jsonl.gz, .txt, or a folder of pictures or wav"
)


class Found(NamedTuple):
    """What a file holds, taken apart by `load` at once."""

    raw: arrays.Raw
    labels: Sequence | None = None
    names: tuple[str, ...] = ()
    from_column: bool = False  # the labels are those of the column that `labels=` names


def read(path: Path, labels: str | Path | None) -> Found:
    """Content of a file or folder. `labels` may name a column. Raises DataError, one line."""
    if path.is_dir():
        return Found(*folders.read(path))
    ending = "".join(path.suffixes[-2:]).lower()
    ending = ending if ending == ".jsonl.gz" else path.suffix.lower()
    if path.exists() and path.stat().st_size == 0:
        raise DataError(f"{path} is empty (0 bytes); copy or download it again")
    if ending == ".npy":
        return Found(_read_npy(path))
    if ending == ".npz":
        return Found(*_read_npz(path))
    column = None if labels is None or labelling.is_file(labels) else str(labels)
    if ending in (".csv", ".tsv"):
        return Found(*tables.read_csv(path, column), column is not None)
    if ending in (".parquet", ".pq"):
        return Found(*tables.read_parquet(path, column), column is not None)
    if ending in (".jsonl", ".jsonl.gz"):
        texts, y = documents.read_jsonl(path, column or "label")
        if column is not None and y is None:
            raise DataError(
                f"{path}: no field and no file {column!r} for the labels; check the name"
            )
        return Found(texts, y, (), column is not None)
    if ending == ".txt":
        return Found(documents.read_txt(path))
    raise DataError(f"cannot tell what {path} holds by its ending; expected {EXPECTED}")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what NumPy raises for damaged and pickled files into one line."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError):
        raise DataError(f"{path} is damaged or cut short; copy or download it again") from None
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        if "pickle" in str(error):
            raise DataError(
                f"{path} is not a plain array: it holds Python objects (ragged rows or a pickle, "
                "which could run code) or is no NumPy file; expected numbers saved by numpy.save"
            ) from None
        raise DataError(f"{path} is damaged or cut short; copy or download it again") from None


@contextmanager
def open_npz(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """An opened .npz; errors inside the block become DataError."""
    # Opened here, since NumPy leaves the file open when the archive is damaged.
    with explained(path), path.open("rb") as file:
        stored = np.load(file, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: expected an .npz archive, found a single array; name it .npy")
        with stored:
            yield stored


def _read_npy(path: Path) -> np.ndarray:
    with explained(path):
        mapped = "r" if path.stat().st_size > MAP_BYTES else None
        x = np.load(path, mmap_mode=mapped, allow_pickle=False)
    if not isinstance(x, np.ndarray):
        raise DataError(f"{path}: expected a single array, found an archive; name it .npz")
    return x


def _read_npz(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Array X, x or the only one that is not labels; labels y or labels, if there are any."""
    with open_npz(path) as stored:
        names = list(stored.files)
        label_name = next((name for name in ("y", "labels") if name in names), None)
        others = [name for name in names if name not in ("y", "labels")]
        chosen = next((name for name in ("X", "x") if name in names), None)
        if chosen is None and len(others) == 1:
            chosen = others[0]
        if chosen is None:
            raise DataError(
                f"{path}: expected an array X, x or only one, found {names}; rename one"
            )
        return stored[chosen], stored[label_name] if label_name else None
