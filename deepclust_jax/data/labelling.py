"""Labels, which are for evaluation only: read from files, numbered from 0, kept apart from rows."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deepclust_jax.data.errors import DataError

LABEL_COLUMNS = ("label", "labels", "class", "target")  # never features of a table
LABEL_FILES = (".npy", ".txt", ".csv")


def resolve(
    found: Sequence | None, file: str | Path | None, n: int, name: str
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels int64 [n] from 0, of the file if one is given, else those found with the rows.

    With the names of the classes by number, as `number` gives them; (None, ()) without labels.
    Raises DataError if they are not one per row.
    """
    if found is None and file is None:
        return None, ()
    values = found if file is None else read(Path(file))
    source = f"{name}: labels" if file is None else f"labels {file}"
    if len(values) != n:
        raise DataError(f"{source}: found {len(values)} labels, but {name} has {n} rows")
    return number(values, source)


def is_file(wanted: str | Path | None) -> bool:
    """Whether `labels=` names an existing file rather than a column."""
    return wanted is not None and os.path.isfile(wanted)


def number(values: Sequence, source: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels numbered from 0 in sorted order. [n] of any type -> int64 [n], names of the classes.

    Raises DataError for missing labels and for numbers that are not whole.
    """
    for i, value in enumerate(values):
        if value is None or (isinstance(value, str) and not value.strip()):
            raise DataError(f"{source}: row {i} (counted from 0) has no label")
    try:
        y = np.asarray(values)
    except ValueError:
        raise DataError(f"{source}: expected one label per row, found lists") from None
    if y.ndim != 1:
        raise DataError(f"{source}: expected one label per row, found shape {y.shape}")
    if y.dtype.kind == "U":
        y = _as_integers(y)
    if y.dtype.kind == "f" and not (y == np.floor(y)).all():
        raise DataError(f"{source}: expected whole numbers or names, found fractions or NaN")
    if y.dtype.kind not in "buifU":
        raise DataError(f"{source}: expected whole numbers or names, found {y.dtype}")
    classes, numbers = np.unique(y, return_inverse=True)
    return numbers.astype(np.int64).reshape(-1), tuple(map(str, classes.tolist()))


def _as_integers(y: np.ndarray) -> np.ndarray:
    """Names as they are; digits as integers, so that "10" sorts after "9"."""
    try:
        return y.astype(np.int64)
    except (ValueError, OverflowError):
        return y


def read(path: Path) -> Sequence:
    """Labels of a file, as written. Raises DataError if it cannot be read."""
    if not os.path.exists(path):
        raise DataError(
            f"no labels {path}: found neither a column nor a file of that name; expected a column "
            f"of the data, or a file ({', '.join(LABEL_FILES)}) with one label per row"
        )
    if path.suffix.lower() not in LABEL_FILES or path.is_dir():
        raise DataError(f"labels {path}: expected a file ending in {', '.join(LABEL_FILES)}")
    try:
        if path.suffix.lower() == ".npy":
            y = np.atleast_1d(np.load(path, allow_pickle=False))
            return y.reshape(len(y)) if y.ndim == 2 and y.shape[1] == 1 else y
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read labels {path}: {error.strerror}") from None
    except (ValueError, EOFError):
        raise DataError(f"labels {path}: not a plain array or text file") from None
    lines = text.splitlines()
    return lines if path.suffix.lower() == ".txt" else _one_column(lines, path)


def _one_column(lines: list[str], path: Path) -> list[str]:
    rows = [row for row in csv.reader(lines) if row]
    wide = next((row for row in rows if len(row) != 1), None)
    if wide is not None:
        raise DataError(f"labels {path}: expected one column, found {len(wide)}")
    values = [row[0] for row in rows]
    header = values and values[0].strip().lower() in (*LABEL_COLUMNS, "y")
    return values[1:] if header else values
