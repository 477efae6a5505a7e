"""Scalings of numbers: fitted in float64 in blocks, so that large offsets and memory maps are safe.

range     one offset and one span for all values, to [0, 1]
standard  each feature minus its mean, over its standard deviation; constant features become 0
codes     each feature minus its mean, all over one number, so that they stay in proportion
counts    gene counts: over the row's total, times the median total, log(1 + x), then standard
none      as they are
"""

from collections.abc import Callable, Iterator

import numpy as np

from deepclust_jax.data import arrays
from deepclust_jax.data.errors import DataError

SCALINGS = ("range", "standard", "codes", "counts", "none")
FEW_LEVELS = 16  # uint8 pictures up to this value are masks or coarse grey levels, not bytes


def fit(x: np.ndarray, scaling: str, *, pictures: bool) -> dict[str, np.ndarray]:
    """Constants of a scaling (float64 arrays) from raw values. x [n, ...]."""
    if scaling == "none":
        return {}
    if scaling == "range":
        return _fit_range(x, pictures)
    if scaling in ("standard", "codes"):
        found = moments(lambda: _blocks(x), len(x))
        if scaling == "codes":
            found["multiplier"] = _one(found["multiplier"])
        return found
    if x.ndim != 2:
        raise DataError(f"scaling 'counts' expects a table, found shape {x.shape}")
    for block in _blocks(x):
        _check_counts(block)
    totals = np.concatenate([block.sum(axis=1) for block in _blocks(x)])
    total = np.median(totals[totals > 0]) if (totals > 0).any() else np.float64(1.0)
    logs = moments(lambda: (_log_counts(block, total) for block in _blocks(x)), len(x))
    return {"total": np.asarray(total), **logs}


def transform(block: np.ndarray, scaling: str, constants: dict[str, np.ndarray]) -> np.ndarray:
    """Scaled rows. raw [b, ...] -> float64 [b, ...]; a row's result depends on that row alone."""
    x = np.ascontiguousarray(block, dtype=np.float64)
    if scaling == "none":
        return x
    if scaling == "range":
        return (x - constants["offset"]) / constants["span"]
    if scaling == "counts":
        _check_counts(x)
        x = _log_counts(x, constants["total"])
    return (x - constants["mean"]) * constants["multiplier"]  # features are the last axes


def moments(blocks: Callable[[], Iterator[np.ndarray]], n: int) -> dict[str, np.ndarray]:
    """Per-feature `mean` and `multiplier` (1 / standard deviation, 0 for a constant feature)."""
    first, total = None, 0.0
    for block in blocks():
        # Relative to the first row: exact for constant features, whatever their value.
        first = block[0] if first is None else first
        total = total + (block - first[None]).sum(axis=0)
    mean = first + total / n
    squares = 0.0
    with np.errstate(over="ignore"):
        for block in blocks():
            squares = squares + ((block - mean[None]) ** 2).sum(axis=0)
    std = np.sqrt(squares / n)
    if not np.isfinite(std).all():
        raise DataError("values too large to be standardised (beyond 1e150); rescale them first")
    return {"mean": mean, "multiplier": 1.0 / np.where(std > 0, std, np.inf)}


def _one(multiplier: np.ndarray) -> np.ndarray:
    """One number in place of a multiplier per feature; the mean variance of those that vary is 1
    then."""
    own = multiplier[multiplier > 0]
    return np.asarray(1.0 / np.sqrt(np.mean(own**-2.0)) if own.size else 0.0)


def _blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    for rows in arrays.row_blocks(x.shape):
        yield np.ascontiguousarray(x[rows], dtype=np.float64)


def _fit_range(x: np.ndarray, pictures: bool) -> dict[str, np.ndarray]:
    low, high = bounds(x)
    if pictures and x.dtype == np.uint8:
        low, high = 0.0, 255.0 if high > FEW_LEVELS else high
    span = high - low
    return {"offset": np.float64(low), "span": np.float64(span if span > 0 else 1.0)}


def bounds(x: np.ndarray) -> tuple[float, float]:
    """The least and the greatest value of rows x [n, ...], read in blocks."""
    blocks = (np.asarray(x[rows]) for rows in arrays.row_blocks(x.shape))
    lows, highs = zip(*((block.min(), block.max()) for block in blocks), strict=True)
    return float(min(lows)), float(max(highs))


def _check_counts(block: np.ndarray) -> None:
    found = "negative values" if (block < 0).any() else "fractions"
    if found == "negative values" or (block != np.floor(block)).any():
        raise DataError(
            f"scaling 'counts' expects a table of counts (0, 1, 2, ...), found {found}; give the "
            "counts as they were measured, or use the scaling standard"
        )


def _log_counts(block: np.ndarray, total: np.ndarray) -> np.ndarray:
    sums = block.sum(axis=1, keepdims=True)
    return np.log1p(block / np.where(sums > 0, sums, 1.0) * total)
