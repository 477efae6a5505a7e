"""Tables of numbers from csv and parquet; the label column never becomes a feature.

Where a column called text holds no numbers, the rows are its texts, and other columns do not count.
Columns called label, labels, class or target (in any case) are never features: one of them, or the
column that `labels` names, becomes the labels. An index that was written with the table is refused.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from deepclust_jax.data import documents, labelling
from deepclust_jax.data.errors import DataError

# Values [n, d] or texts, labels, names of the columns of numbers.
Table = tuple[np.ndarray | list[str], Sequence | None, tuple[str, ...]]

# How pandas calls the index of a table where it writes or reads it as a column.
_INDEX_NAMES = ("", "Unnamed: 0", "__index_level_0__")


def read_csv(path: Path, labels: str | None) -> Table:
    """Values float64 [n, d] or texts, labels or None, feature names (empty without a header line,
    and of texts).

    Separators are comma, semicolon or tab. The first line is a header if none of its cells is a
    number, if one stands above a number, or if the numbers are 0, 1, 2, ... of at least 4 columns.
    Raises DataError naming the row and column of a cell that is not a number.
    """
    try:
        return _read_csv(path, labels)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a csv file in UTF-8 ({error}); save it as one") from None


def _read_csv(path: Path, labels: str | None) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        head = next((line for line in file if line.strip()), "")
        separator = max(",;\t", key=head.count)
        file.seek(0)
        rows = (row for row in csv.reader(file, delimiter=separator) if row)
        first, second = next(rows, []), next(rows, [])
    header = _is_header(first, second, labels)
    if not second and header:
        raise DataError(f"{path}: found a header line but no rows; check the file")
    names = [cell.strip() for cell in first] if header else None
    columns = names or [str(i) for i in range(len(first))]
    label, features = split_columns(names, len(first), labels, path)
    text = _text_column(columns, features)
    if text is not None and len(second) == len(first) and not _is_number(second[text]):
        found = _csv_column(path, separator, text, columns)
        return found, _csv_column(path, separator, label, columns), ()
    values = _csv_values(path, separator, header, features, columns)
    if names:
        _refuse_index(path, names, features, values)
    # NumPy does not look at the length of rows when it skips columns.
    y = None
    if len(features) < len(columns):
        y = _csv_column(path, separator, label, columns)
    return values, y, tuple(names[i] for i in features) if names else ()


def split_columns(
    names: Sequence[str] | None, width: int, labels: str | None, path: Path
) -> tuple[int | None, list[int]]:
    """Indices of the label column (or None) and of the features."""
    if labels is not None and labels not in (names or ()):
        found = f"columns {', '.join(names)}" if names else "no header line: add one"
        raise DataError(
            f"{path}: no column and no file {labels!r} for the labels; found {_short(found)}"
        )
    reserved = [i for i, n in enumerate(names or ()) if n.lower() in labelling.LABEL_COLUMNS]
    if labels is not None and list(names).count(labels) > 1:
        raise DataError(f"{path}: found two columns {labels!r}; rename or drop one")
    label = names.index(labels) if labels is not None else None
    if label is None and reserved:
        if len(reserved) > 1:
            both = " and ".join(names[i] for i in reserved)
            raise DataError(f"{path}: found {both}; say by --labels which are the labels")
        label = reserved[0]
    features = [i for i in range(width) if i != label and i not in reserved]
    if not features:
        raise DataError(f"{path}: expected at least one column of numbers beside the labels")
    return label, features


def _text_column(names: Sequence[str], features: Sequence[int]) -> int | None:
    return next((i for i in features if names[i].lower() == documents.TEXT_FIELD), None)


def in_order(
    values: np.ndarray, names: Sequence[str], expected: Sequence[str], source: str
) -> np.ndarray:
    """The columns of a table by the names that a stored run expects, in its order. -> [n, d].

    Raises DataError unless both have the same names, each of them once.
    """
    if list(names) == list(expected):
        return values
    missing = [name for name in expected if name not in names]
    more = [name for name in names if name not in expected]
    if missing or more or len(set(names)) < len(names) or len(names) != len(expected):
        found = "; ".join(
            f"{what} {_short(', '.join(map(repr, which)))}"
            for what, which in (("missing", missing), ("unexpected", more))
            if which
        )
        raise DataError(
            f"{source}: expected the columns that the run was trained on, found others "
            f"({found or 'a name twice'}); rename, add or drop columns"
        )
    return values[:, [list(names).index(name) for name in expected]]


def _refuse_index(path: Path, names: Sequence[str], features: list[int], values) -> None:
    """Raise DataError for a nameless column of distinct whole numbers: it would be a feature."""
    for place, column in enumerate(features):
        if names[column] not in _INDEX_NAMES or len(values) < 2:
            continue
        found = values[:, place]
        if (found == np.floor(found)).all() and len(np.unique(found)) == len(found):
            raise DataError(
                f"{path}: column {column} has no name and numbers the rows, as an index that "
                "pandas or R wrote; write the table without it, or name the column"
            )


def _short(text: str, length: int = 200) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_header(first: list[str], second: list[str], labels: str | None) -> bool:
    numeric = [_is_number(cell) for cell in first]
    if not any(numeric) or labels in [cell.strip() for cell in first]:
        return True
    pairs = zip(numeric, second, strict=False)
    if any(not above and _is_number(below) for above, below in pairs):
        return True
    # What pandas writes for columns without names.
    numbers = [cell.strip() for cell, is_one in zip(first, numeric, strict=True) if is_one]
    return len(first) >= 4 and numbers == [str(i) for i in range(len(numbers))]


def _csv_values(
    path: Path, separator: str, header: bool, features: list[int], columns: list[str]
) -> np.ndarray:
    try:
        values = np.loadtxt(
            path,
            dtype=np.float64,
            delimiter=separator,
            comments=None,
            quotechar='"',
            skiprows=_blank_lines(path) + 1 if header else 0,  # blank ones count there
            usecols=features if len(features) < len(columns) else None,
            encoding="utf-8-sig",
            ndmin=2,
        )
        if values.shape[1] != len(features):
            raise ValueError(f"{len(features)} names above {values.shape[1]} columns")
        return values
    except ValueError as error:
        _explain_cell(path, separator, header, features, columns)
        raise DataError(f"{path}: not a table of numbers ({str(error).splitlines()[0]})") from None


def _blank_lines(path: Path) -> int:
    """Blank lines at the beginning of a file."""
    with path.open(encoding="utf-8-sig") as file:
        return next((i for i, line in enumerate(file) if line.strip()), 0)


def _explain_cell(path, separator, header, features, columns) -> None:
    """Raise DataError for the first cell that is not a number, with the number and the columns of
    all, or for a row of another length."""
    told, bad = "", dict.fromkeys(features, 0)
    for i, (line, row) in enumerate(_csv_rows(path, separator, columns, header)):
        for j in features if i >= header else []:
            if _is_number(row[j]):
                continue
            bad[j] += 1
            if told:
                continue
            found, advice = "an empty cell", "fill it, or drop the row or the column"
            if row[j].strip():
                found = repr(_short(row[j], 40))
                if i == header:  # below a number it is no column of names
                    advice = (
                        "drop the column, name it by --labels, or call it text to cluster its texts"
                    )
            told = (
                f"{path}, line {line}: column {columns[j]!r}, row {i - header} (counted from "
                f"0): expected a number, found {found}; {advice}"
            )
    count = sum(bad.values())
    if count > 1:
        own = ", ".join(repr(columns[j]) for j in features if bad[j])
        told += f" ({count} such cells in all, in {_short(own)})"
    if told:
        raise DataError(told)


def _csv_rows(
    path: Path, separator: str, columns: list[str], header: bool
) -> Iterator[tuple[int, list[str]]]:
    """All rows that are not blank, and the lines on which they end; DataError for one of another
    length than `columns`."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator)
        for i, row in enumerate(row for row in reader if row):
            if len(row) != len(columns):
                raise DataError(
                    f"{path}, line {reader.line_num}: row {i - header} (counted from 0) has "
                    f"{len(row)} cells, expected {len(columns)}; mend the row"
                )
            yield reader.line_num, row


def _csv_column(path, separator, column: int | None, columns) -> list[str] | None:
    """One column below the header, or None; either way every row has the right length."""
    cells = [
        column is not None and row[column].strip()
        for _, row in _csv_rows(path, separator, columns, True)
    ]
    return None if column is None else cells[1:]


def read_parquet(path: Path, labels: str | None) -> Table:
    """Values [n, d] in the columns' common type or texts, labels or None, feature names."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"reading {path} needs pyarrow; install deepclust_jax[data], or save it as .npy or .csv"
        ) from None
    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is not a readable parquet file: {reason}") from None
    names = table.column_names
    label, features = split_columns(names, len(names), labels, path)
    y = None if label is None else table.column(label).to_pylist()
    text, types = _text_column(names, features), pyarrow.types
    is_text = (types.is_string, types.is_large_string)
    if text is not None and any(own(table.schema.types[text]) for own in is_text):
        if count := table.column(text).null_count:
            raise DataError(f"{path}: {count} rows have no text; remove them")
        return table.column(text).to_pylist(), y, ()
    for i in features:
        kind = table.schema.types[i]
        if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
            raise DataError(
                f"{path}: column {names[i]!r} holds {kind}, expected numbers; drop the column, or "
                "name it by --labels"
            )
        if table.column(i).null_count:
            raise DataError(
                f"{path}: column {names[i]!r} has {table.column(i).null_count} missing values; "
                "remove these rows or fill the values in"
            )
    values = np.column_stack([table.column(i).to_numpy() for i in features])
    _refuse_index(path, names, features, values)
    return values, y, tuple(names[i] for i in features)
