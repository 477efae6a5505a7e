"""Load a named data set or an own file: (rows ready to train on, labels or None)."""

import difflib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from deepclust_jax.data import arrays, files, folders, labelling, named, tables
from deepclust_jax.data import preprocessing as prep
from deepclust_jax.data.clips import Clips
from deepclust_jax.data.errors import DataError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows to train on and where they come from. Labels are never part of it."""

    x: np.ndarray | prep.Rows  # [n, ...] float32; Rows for a large memory-mapped file
    raw: Any  # what was read: numbers [n, ...] (pictures [n, h, w, c]), list of str, or Clips
    kind: str  # "tabular", "image", "text" or "audio"
    name: str
    n_clusters: int | None  # documented number of classes of a named set; None for own files
    names: tuple[str, ...]  # of the features, if the file names them
    classes: tuple[str, ...]  # names of the classes by label, to be shown; () without labels
    preprocessing: prep.Preprocessing
    checksum: str  # of the raw rows, see arrays.checksum
    whole: int  # rows of the source, of which `limit` may have taken a part
    parts: tuple[tuple[int, ...], ...] = ()  # shapes of the modalities of `paired` rows
    partner: prep.Preprocessing | None = None  # of the second modality, which has no raw rows here


def load(
    source: str | Path,
    *,
    labels: str | Path | None = None,
    kind: str | None = None,
    scaling: str = "auto",
    preprocessing: prep.Preprocessing | None = None,
    order: np.ndarray | None = None,
    limit: int | None = None,
) -> tuple[Dataset, np.ndarray | None]:
    """(dataset, labels): rows ready to train on, and labels int64 [n] from 0 or None.

    source         a name (see named.py) or a path: npy, npz, csv, parquet, jsonl, txt, or a folder
                   of pictures or wav files; sub-folders then are the classes
    labels         a file with one label per row (npy, txt, csv), or a column of the table or
                   jsonl; labels are numbered in sorted order
    kind           overrides what the data look like: tabular, image, text, audio
    scaling        auto, range, standard, codes, counts, none (scaling.py), of texts tokens
                   (tokens.py), of sounds standard (audio.py) or speech (speech.py)
    preprocessing  a stored one, applied instead of fitting: to cluster new data with a stored run;
                   columns of a table are then matched by their names
    order          of all rows, by their numbers: for files that are the pair of others (`matched`)
    limit          keep the first `limit` rows of a fixed permutation of the rows

    Raises DataError, one line, for every input that cannot be clustered.
    """
    _check_arguments(kind, scaling, preprocessing, limit)
    entry = _entry(source)
    name = str(source) if entry else Path(source).name
    of_a_run = "config.json", "checkpoint"
    if not entry and all((Path(source) / file).exists() for file in of_a_run):
        raise DataError(
            f"{source} is the folder of a run; expected data, such as its codes: "
            f'{Path(source) / "embeddings.npy"} with kind="tabular" and scaling="codes"'
        )
    found = _read(source, labels, entry)
    if preprocessing is not None and found.names and preprocessing.columns:
        ordered = tables.in_order(found.raw, found.names, preprocessing.columns, name)
        found = found._replace(raw=ordered, names=preprocessing.columns)
    if preprocessing is not None:
        prep.check_pictures(preprocessing, found.raw)  # before a table's rows are flattened
    whole = len(found.raw)
    raw = as_kind(found.raw, kind or (entry.kind if entry else None), name)
    arrays.check(raw, name, fitting=preprocessing is None)
    label_file = None if found.from_column else labels
    y, classes = labelling.resolve(found.labels, label_file, len(raw), name)
    chosen = order
    if limit is not None and limit < len(raw):
        kept = _kept(len(raw), limit)
        chosen = kept if order is None else order[kept]
    if chosen is not None:
        raw, y = _take(raw, chosen), None if y is None else y[chosen]
    kind = kind or prep.infer_kind(raw)
    if preprocessing is None:
        if scaling == "auto" and entry and kind == entry.kind:
            scaling = entry.scaling
        preprocessing = prep.fit(raw, kind, scaling, columns=found.names)
    else:
        prep.check_fits(preprocessing, raw, kind)
        prep.check_range(preprocessing, raw)
    lazy = isinstance(raw, np.memmap)
    x = prep.Rows(preprocessing, raw) if lazy else prep.apply(preprocessing, raw)
    dataset = Dataset(
        x, raw, kind, name, entry.n_clusters if entry else None, found.names, classes,
        preprocessing, arrays.checksum(raw), whole,
    )  # fmt: skip
    return dataset, y


def paired(one: Dataset, other: Dataset) -> Dataset:
    """Rows of two modalities, one behind the other: row i of both is of the same thing.

    x is float32 [n, d + e]; all else is of the first one, but for `parts`, `partner` and checksum.
    Raises DataError if they have not as many rows, or these stay on disk.
    """
    # A limit takes the same rows of both only where there are as many.
    if one.whole != other.whole or len(one.x) != len(other.x):
        raise DataError(
            f"expected as many rows of both modalities, found {one.whole} of {one.name} and "
            f"{other.whole} of {other.name}"
        )
    if isinstance(one.x, prep.Rows) or isinstance(other.x, prep.Rows):
        raise DataError("two modalities must fit in memory; use --limit, or smaller files")
    x = np.concatenate([a.x.reshape(len(a.x), -1) for a in (one, other)], axis=1)
    checksum = hashlib.sha256((one.checksum + other.checksum).encode()).hexdigest()
    parts = tuple(tuple(a.x.shape[1:]) for a in (one, other))
    return replace(one, x=x, checksum=checksum, parts=parts, partner=other.preprocessing)


def matched(files: Sequence[str], others: Sequence[str]) -> np.ndarray | None:
    """Order [n] of the files of a second folder that puts each beside its namesake in the first;
    both are paths as of `row_files`, and either may be empty, not of a folder: then None.

    Namesakes differ in the type alone, and in sub-folders of other kinds, such as classes here and
    speakers there: sub-folders count as long as both folders have one of the same name.

    Raises DataError where a file has no namesake, or several files have one name.
    """
    if not files or not others:
        return None
    paths = [[PurePosixPath(path).with_suffix("").parts for path in own] for own in (files, others)]
    most = max(len(parts) for own in paths for parts in own)
    for depth in range(most, 0, -1):
        one, other = ([parts[-depth:] for parts in own] for own in paths)
        rows = {name: row for row, name in enumerate(other)}
        if len(one) == len(other) == len(rows) and set(one) == set(rows):
            return np.array([rows[name] for name in one])
        above = [{name[0] for name in own if len(name) == depth} for own in (one, other)]
        if above[0] & above[1]:
            break
    found = _without_namesake(files, one, other) or _without_namesake(others, other, one)
    raise DataError(
        "expected two files of each name, one in each folder, which differ in their types alone; "
        f"{found}"
    )


def _without_namesake(
    files: Sequence[str], names: Sequence[tuple], others: Sequence[tuple]
) -> str | None:
    """What is wrong with the first file whose name comes twice, or not among the others."""
    there, seen = set(others), {}
    for file, name in zip(files, names, strict=True):
        if name in seen:
            return f"{seen[name]} and {file} have one name".replace("\n", " ")
        if name not in there:
            return f"{file} has no other of its name".replace("\n", " ")
        seen[name] = file
    return None


def nuisance(
    source: str | Path, whole: int, *, file: str | Path | None = None, limit: int | None = None
) -> np.ndarray | None:
    """Labels that clusters should not follow, int64 in the order of `load`, or None: those of the
    file, which has one for each row of the source, else those that came with a named set.

    `whole` is the number of rows of the source, and `limit` that of `load`. Raises DataError.
    """
    entry = _entry(source)
    if file and not os.path.exists(file):
        raise DataError(f"no file {file} with nuisance labels; check the path")
    values = labelling.read(Path(file)) if file else named.nuisance(str(source)) if entry else None
    if values is None:
        return None
    name = f"nuisance {file or source}"
    if len(values) != whole:
        raise DataError(f"{name}: found {len(values)} labels, but {source} has {whole} rows")
    y = labelling.number(values, name)[0]
    return y if limit is None or limit >= whole else y[_kept(whole, limit)]


def row_files(
    source: str | Path, *, order: np.ndarray | None = None, limit: int | None = None
) -> tuple[str, ...]:
    """Paths inside a folder of its rows, in the order of `load`; () where `source` is no folder.

    Kept out of `Dataset`, since a path may tell the class.
    """
    if _entry(source) or not Path(source).is_dir():
        return ()
    paths = folders.paths(Path(source))
    order = np.arange(len(paths)) if order is None else order
    if limit is not None and limit < len(paths):
        order = order[_kept(len(paths), limit)]
    return tuple(paths[i].relative_to(source).as_posix() for i in order)


def _read(source: str | Path, labels: str | Path | None, entry: named.Named | None) -> files.Found:
    try:
        return files.Found(*named.read(str(source))) if entry else files.read(Path(source), labels)
    except OSError as error:
        reason = error.strerror or str(error).replace("\n", " ")
        raise DataError(f"cannot read {error.filename or source}: {reason}") from None


def _check_arguments(kind, scaling, preprocessing, limit) -> None:
    prep.check_options(kind, scaling)
    if preprocessing is not None and scaling != "auto":
        raise DataError("give either scaling or a stored preprocessing, which has its own scaling")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise DataError(f"limit is the number of rows to keep, at least 1, found {limit!r}")


def _entry(source: str | Path) -> named.Named | None:
    """Table entry of a named set, None for a path; raises DataError if it is neither."""
    if not isinstance(source, str | Path):
        raise DataError(
            f"expected the name of a data set or a path, found {type(source).__name__}; save "
            "arrays with numpy.save first"
        )
    if isinstance(source, str) and source in named.NAMED:
        return named.NAMED[source]
    if os.path.lexists(source):
        return None
    if isinstance(source, Path) or os.sep in source or Path(source).suffix:
        raise DataError(f"no file or folder {source}; check the path")
    near = difflib.get_close_matches(source.lower(), named.NAMED, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise DataError(
        f"unknown data set {source!r}; {hint}expected one of {', '.join(sorted(named.NAMED))}, "
        "or the path of a file or folder"
    )


def as_kind(raw: arrays.Raw, kind: str | None, name: str) -> arrays.Raw:
    """Raw rows in the shape of their kind: pictures [n, h, w, c], tables [n, d].

    Without a kind, two axes are a table and uint8 with three or four axes are pictures. Raises
    DataError where the rows cannot be that kind.
    """
    if not isinstance(raw, np.ndarray):
        found = prep.infer_kind(raw)
        if kind not in (None, found):
            raise DataError(f"{name}: expected {kind} data, found {found} data")
        return raw
    arrays.check_dtype(raw, name)
    if kind in ("text", "audio"):
        raise DataError(f"{name}: expected {kind} data, found an array of shape {raw.shape}")
    if raw.ndim == 2 and kind != "image":
        return raw
    if kind == "tabular" and raw.ndim > 2:
        return raw.reshape(len(raw), -1)
    pictures = raw.ndim in (3, 4) and (raw.dtype == np.uint8 or kind == "image")
    if kind == "image" and not pictures:
        raise DataError(
            f"{name}: found rows of shape {raw.shape[1:]}; expected pictures [n, h, w] or "
            "[n, h, w, c]"
        )
    if not pictures:
        raise DataError(
            f"{name}: found {raw.dtype} values of shape {raw.shape}; expected rows [n, d], or "
            "pictures [n, h, w] or [n, h, w, c] (uint8, or any numbers with --kind "
            "image); --kind tabular flattens rows"
        )
    if raw.ndim == 3:
        return raw[..., None]
    if kind is None and raw.shape[3] > 4:
        raise DataError(
            f"{name}: found pictures of shape {raw.shape[1:]}; expected [h, w, c] with at most 4 "
            "channels, channels last: move the axis with numpy.moveaxis, or give --kind image"
        )
    return raw


def _kept(n: int, limit: int) -> np.ndarray:
    """Indices of the rows kept of n, in their new order."""
    return np.random.default_rng(0).permutation(n)[:limit]


def _take(raw: arrays.Raw, kept: np.ndarray) -> arrays.Raw:
    if isinstance(raw, np.ndarray):
        return np.asarray(raw[kept])
    chosen: Sequence = [raw[i] for i in kept]
    return Clips(tuple(chosen), raw.sample_rate) if isinstance(raw, Clips) else chosen
