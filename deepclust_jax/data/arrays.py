"""Blocks of rows, checks and checksums; everything here also works on memory maps."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from deepclust_jax.data.clips import Clips
from deepclust_jax.data.errors import DataError

BLOCK_VALUES = 2**22  # values per block: 32 MiB in float64
CHECKSUM_BLOCKS = 64  # of a memory map, evenly spaced
CHECKSUM_BLOCK_BYTES = 2**20

Raw = np.ndarray | Sequence[str] | Clips


def row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices that cover the rows of an array of this shape, about `BLOCK_VALUES` values each."""
    width = max(1, int(np.prod(shape[1:], dtype=np.int64)))
    step = max(1, BLOCK_VALUES // width)
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def check(raw: Raw, name: str, *, fitting: bool) -> None:
    """Raise DataError if these rows cannot be clustered; `fitting` also forbids equal rows."""
    if isinstance(raw, np.ndarray):
        check_dtype(raw, name)
        if 0 in raw.shape:
            raise DataError(f"{name}: expected at least one row and one column, found {raw.shape}")
        check_finite(raw, name)
        if fitting and _all_equal(raw):
            raise DataError(
                f"{name}: all {len(raw)} rows are equal, so there is nothing to cluster; "
                "check that the right file or array was given"
            )
    elif isinstance(raw, Clips):
        _check_clips(raw, name, fitting)
    else:
        _check_documents(raw, name, fitting)


def check_dtype(x: np.ndarray, name: str) -> None:
    """Raise DataError unless the array holds real numbers."""
    if x.dtype.kind not in "buif":
        kinds = {"c": "complex numbers", "U": "strings", "S": "bytes", "O": "Python objects"}
        found = kinds.get(x.dtype.kind, f"values of type {x.dtype}")
        raise DataError(
            f"{name}: expected real numbers (integers or floats), found {found}; "
            "convert the array before saving it"
        )


def check_finite(x: np.ndarray, name: str) -> None:
    """Raise DataError with the count and the first place of NaN and infinite values."""
    if x.dtype.kind != "f":
        return
    n_nan, n_inf, first = 0, 0, None
    for rows in row_blocks(x.shape):
        block = np.asarray(x[rows])
        bad = ~np.isfinite(block)
        if not bad.any():
            continue
        nan = int(np.isnan(block).sum())
        n_nan, n_inf = n_nan + nan, n_inf + int(bad.sum()) - nan
        if first is None:
            place = np.argwhere(bad)[0]
            first = (int(place[0]) + rows.start, *map(int, place[1:]))
    if first is not None:
        where = ", ".join(map(str, first[1:]))
        column = f", column {where}" if x.ndim > 1 else ""
        raise DataError(
            f"{name}: found {n_nan} NaN and {n_inf} infinite values, the first at row {first[0]}"
            f"{column} (counted from 0); remove these rows or fill the values in"
        )


def _all_equal(x: np.ndarray) -> bool:
    first = np.asarray(x[:1])
    return len(x) > 1 and all((np.asarray(x[rows]) == first).all() for rows in row_blocks(x.shape))


def _check_documents(texts: Sequence[str], name: str, fitting: bool) -> None:
    if len(texts) == 0 or not any(text.strip() for text in texts):
        raise DataError(f"{name}: expected texts, found {len(texts)} documents, all of them empty")
    if fitting and len(texts) > 1 and all(text == texts[0] for text in texts):
        raise DataError(f"{name}: all {len(texts)} documents are equal: nothing to cluster")


def _check_clips(clips: Clips, name: str, fitting: bool) -> None:
    if len(clips) == 0:
        raise DataError(f"{name}: expected sound clips, found none")
    for i, clip in enumerate(clips.samples):
        if clip.ndim != 1 or clip.size == 0:
            raise DataError(
                f"{name}: clip {i} has shape {clip.shape}; expected a mono clip with samples"
            )
        check_finite(clip, f"{name}: clip {i}")
    first = clips.samples[0]
    if fitting and len(clips) > 1 and all(np.array_equal(c, first) for c in clips.samples):
        raise DataError(f"{name}: all {len(clips)} clips are equal: nothing to cluster")


def checksum(raw: Raw) -> str:
    """SHA-256 in hex over the raw values, the same on every platform.

    Arrays: shape, dtype and little-endian values in row order. Texts: each after its length in
    bytes. Clips: sample rate, then each clip as an array. Memory maps: shape, dtype, number of
    bytes and the rows in 64 evenly spaced places, 1 MiB each: a sample of a large file.
    """
    digest = hashlib.sha256()
    if isinstance(raw, np.memmap):
        _add_memory_map(digest, raw)
    elif isinstance(raw, np.ndarray):
        _add_array(digest, raw)
    elif isinstance(raw, Clips):
        digest.update(f"rate {raw.sample_rate};".encode())
        for clip in raw.samples:
            _add_array(digest, clip)
    else:
        for text in raw:
            # surrogatepass: JSON may hold half of a surrogate pair, which UTF-8 refuses
            encoded = text.encode("utf-8", "surrogatepass")
            digest.update(f"{len(encoded)};".encode() + encoded)
    return digest.hexdigest()


def _little_endian(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, dtype=x.dtype.newbyteorder("<"))


def _header(x: np.ndarray) -> bytes:
    return f"{x.dtype.newbyteorder('<').str}{x.shape};".encode()


def _add_array(digest, x: np.ndarray) -> None:
    digest.update(_header(x))
    digest.update(_little_endian(x).data)


def _add_memory_map(digest, x: np.memmap) -> None:
    digest.update(_header(x) + f"{x.nbytes};".encode())
    rows = max(1, CHECKSUM_BLOCK_BYTES // max(1, x.nbytes // len(x)))
    starts = np.linspace(0, max(0, len(x) - rows), CHECKSUM_BLOCKS).astype(np.int64)
    for start in np.unique(starts):
        digest.update(_little_endian(np.asarray(x[start : start + rows])).data)
