"""From raw rows to what networks train on: fitted once, stored without pickle, applied again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepclust_jax.data import arrays, text, tokens
from deepclust_jax.data import scaling as scalings
from deepclust_jax.data.clips import Clips
from deepclust_jax.data.errors import DataError

KINDS = ("tabular", "image", "text", "audio")
_FORMAT = 2  # of the file: with the type of the numbers
OF = "run"  # of the settings of codes: the folder of the run that they are of
JSON_FILE, ARRAYS_FILE = "preprocessing.json", "preprocessing.npz"


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """A fitted transformation: plain settings (JSON) and arrays, no code."""

    kind: str  # one of KINDS
    settings: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the features, empty where the table had none or the rows are no table."""
        return tuple(self.settings.get("columns", ()))


@dataclass(frozen=True, eq=False)
class Rows:
    """A memory map seen through its preprocessing: `rows[i]` reads and transforms only row i."""

    preprocessing: Preprocessing
    raw: np.ndarray  # [n, ...], on disk
    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, ...) of the transformed rows."""
        return self.raw.shape

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.raw)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Transformed rows of a slice or an integer array. -> float32 [b, ...]."""
        return apply(self.preprocessing, np.asarray(self.raw[rows]))


def fit(
    raw: arrays.Raw, kind: str, scaling: str = "auto", *, columns: Sequence[str] = ()
) -> Preprocessing:
    """Preprocessing fitted to these rows; `columns` are the names of a table's features, if any.

    "auto" scales pictures by "range" and tables by "standard" (see scaling.py). Texts have their
    own features and take only "auto" or "tokens" (tokens.py); so have sounds, which take "standard"
    (audio.py, "auto") or "speech" (speech.py). Raises DataError for an unknown kind or scaling.
    """
    check_options(kind, scaling)
    if kind == "text":
        return Preprocessing(kind, *(tokens if scaling == "tokens" else text).fit(raw))
    if kind == "audio":
        from deepclust_jax.data import audio, speech  # imports jax

        return Preprocessing(kind, *(speech if scaling == "speech" else audio).fit(raw))
    if scaling == "auto":
        scaling = "range" if kind == "image" else "standard"
    settings = {"scaling": scaling, "shape": list(raw.shape[1:]), "type": str(raw.dtype)}
    settings |= {"columns": list(columns)} if kind == "tabular" else {}
    constants = scalings.fit(raw, scaling, pictures=kind == "image")
    return Preprocessing(kind, settings, constants)


def check_options(kind: str | None, scaling: str) -> None:
    """Raise DataError for an unknown kind or scaling, or a scaling that the kind does not take."""
    if kind is not None and kind not in KINDS:
        raise DataError(f"unknown kind {kind!r}; expected one of {', '.join(KINDS)}")
    known = ("auto", *scalings.SCALINGS, "tokens", "speech")
    if scaling not in known:
        raise DataError(f"unknown scaling {scaling!r}; expected {', '.join(known)}")
    if scaling == "tokens" and kind not in (None, "text"):
        raise DataError(
            f"tokens (of --method next_token) are of texts, found {kind} data; give texts as --data"
        )
    if scaling == "speech" and kind not in (None, "audio"):
        raise DataError(f"the scaling speech is of sounds, found {kind} data")
    own = {"text": ("auto", "tokens"), "audio": ("auto", "standard", "speech")}
    takes = own.get(kind, ("auto", *scalings.SCALINGS))
    if kind is not None and scaling not in takes:
        raise DataError(f"{kind} takes only the scaling {', '.join(takes)}, found {scaling!r}")


def apply(p: Preprocessing, raw: arrays.Raw) -> np.ndarray:
    """Rows ready to train on. raw -> float32 [n, ...]; bit-identical for the same rows.

    Raises DataError if the rows do not fit what `p` was fitted on, or leave float32's range.
    """
    check_fits(p, raw)
    if p.settings.get("scaling") == "tokens":
        return tokens.apply(p.settings, raw)
    if p.kind == "text":
        return text.apply(p.settings, p.arrays, raw)
    if p.kind == "audio":
        from deepclust_jax.data import audio, speech  # imports jax

        if p.settings.get("scaling") == "speech":
            return speech.apply(p.settings, raw)
        return audio.apply(p.settings, p.arrays, raw)
    x = np.empty(raw.shape, np.float32)
    with np.errstate(over="ignore"):
        for rows in arrays.row_blocks(raw.shape):
            x[rows] = scalings.transform(raw[rows], p.settings["scaling"], p.arrays)
            if not np.isfinite(x[rows]).all():
                raise DataError(
                    f"scaling {p.settings['scaling']!r} leaves values beyond float32 (3.4e38); "
                    "use the scaling standard"
                )
    return x


def check_fits(p: Preprocessing, raw: arrays.Raw, kind: str | None = None) -> None:
    """Raise DataError unless these rows (of this kind) are like those that `p` was fitted on."""
    kind = kind or infer_kind(raw, p.kind)
    if kind != p.kind:
        raise DataError(f"the stored preprocessing expects {p.kind} data, found {kind} data")
    if kind in ("text", "audio"):
        return
    expected = tuple(p.settings["shape"])
    if p.kind == "image":
        _check_shape(p, raw)
    if raw.shape[1:] != expected:
        raise DataError(
            f"the stored preprocessing expects {p.kind} rows of shape {expected}, "
            f"found {raw.shape[1:]}"
        )
    check_pictures(p, raw)


def check_pictures(p: Preprocessing, raw: arrays.Raw) -> None:
    """Raise DataError for what are no pictures, or of another type of numbers, or where `p` has
    other tables."""
    if not isinstance(raw, np.ndarray):
        return
    if raw.ndim < 3:
        if p.kind == "image":
            _check_shape(p, raw)
        return
    if p.kind in ("text", "audio"):
        raise DataError(f"the stored preprocessing expects {p.kind} data, found image data")
    are_bytes, dtype = raw.dtype == np.uint8, p.settings["type"]
    wants_bytes = dtype == "uint8"
    if p.kind == "image" and wants_bytes and not are_bytes and _are_levels(raw):
        return  # the same numbers, of another type
    if p.kind == "image" and wants_bytes != are_bytes:
        raise DataError(
            f"the stored preprocessing was fitted on {_expected(p)}, found {raw.dtype}, which "
            f"would be scaled wrongly; bring them to that range, then x.astype({dtype!r})"
        )
    if p.kind == "tabular" and are_bytes and not wants_bytes:
        raise DataError(
            "the stored preprocessing expects tabular data, found image data; give rows like those "
            "it was fitted on"
        )


def check_range(p: Preprocessing, raw: arrays.Raw) -> None:
    """Raise DataError for pictures [n, h, w, c] in other units than those that `p` was fitted on:
    they would be labelled all the same, and wrongly.

    That is where more than two values, and a thousandth of all, are half a span outside their
    range; or where there are fractions, or levels of at most 16, for what was whole numbers or
    bytes. A value or two far outside is a spot, and dark pictures are pictures.
    """
    if p.kind != "image" or "span" not in p.arrays:
        return
    low, high = scalings.bounds(raw)
    offset, span = float(p.arrays["offset"]), float(p.arrays["span"])
    most = scalings.FEW_LEVELS if raw.dtype == np.uint8 else 1.0
    was_whole = offset.is_integer() and span.is_integer() and span >= 12.0 * most
    are_smaller = was_whole and -most <= low < high <= most
    outside = _count_outside(raw, offset - 0.5 * span, offset + 1.5 * span)
    if are_smaller or outside > max(2, 1e-3 * raw.size):
        raise DataError(
            f"the stored preprocessing was fitted on {_expected(p)}, found values of {low:g} to "
            f"{high:g}, which would be scaled wrongly; bring them to that range first"
        )


def _are_levels(raw: np.ndarray) -> bool:
    """Whether all values are whole and from 0 to 255."""
    blocks = (raw[b] for b in arrays.row_blocks(raw.shape))
    return all(bool(((x >= 0) & (x <= 255) & (x == np.floor(x))).all()) for x in blocks)


def _count_outside(raw: np.ndarray, low: float, high: float) -> int:
    """How many values are below or above."""
    return sum(int(np.sum((raw[b] < low) | (raw[b] > high))) for b in arrays.row_blocks(raw.shape))


def _check_shape(p: Preprocessing, raw: np.ndarray) -> None:
    """Raise DataError unless these are pictures of the size that `p` was fitted on."""
    if raw.shape[1:] != tuple(p.settings["shape"]):
        raise DataError(
            f"the stored preprocessing was fitted on {_expected(p)}, found rows of shape "
            f"{raw.shape[1:]} and {raw.dtype}; reshape them"
        )


def _expected(p: Preprocessing) -> str:
    """The pictures that `p` was fitted on, in words."""
    shape = " x ".join(map(str, p.settings["shape"]))
    if "span" not in p.arrays:
        return f"{p.settings['type']} pictures of {shape}"
    offset, span = float(p.arrays["offset"]), float(p.arrays["span"])
    return (
        f"{p.settings['type']} pictures of {shape} with values of {offset:g} to {offset + span:g}"
    )


def infer_kind(raw: arrays.Raw, arrays_are: str | None = None) -> str:
    """Kind of raw rows; arrays are `arrays_are` if that is a kind of array, else by their axes."""
    if not isinstance(raw, np.ndarray):
        return "audio" if isinstance(raw, Clips) else "text"
    if arrays_are in ("tabular", "image"):
        return arrays_are
    return "image" if raw.ndim == 4 else "tabular"


def save(p: Preprocessing, folder: str | Path) -> None:
    """Write preprocessing.json and preprocessing.npz into an existing folder."""
    folder = Path(folder)
    np.savez(folder / ARRAYS_FILE, **p.arrays)
    head = {"format": _FORMAT, "kind": p.kind, "settings": p.settings}
    (folder / JSON_FILE).write_text(json.dumps(head, sort_keys=True), encoding="utf-8")


def load(folder: str | Path) -> Preprocessing:
    """What `save` wrote. Raises DataError if a file is missing or damaged."""
    folder = Path(folder)
    try:
        head = json.loads((folder / JSON_FILE).read_text(encoding="utf-8"))
        with np.load(folder / ARRAYS_FILE, allow_pickle=False) as stored:
            constants = {name: stored[name] for name in stored.files}
    except Exception as error:  # zip, JSON, NumPy and the file system each raise their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"cannot read the preprocessing in {folder}: {reason}") from None
    if (
        not isinstance(head, Mapping)
        or head.get("format") != _FORMAT
        or head.get("kind") not in KINDS
    ):
        raise DataError(f"{folder / JSON_FILE} is not a preprocessing file of format {_FORMAT}")
    return Preprocessing(head["kind"], head["settings"], constants)
