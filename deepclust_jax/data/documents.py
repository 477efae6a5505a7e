"""Texts from .txt (one document per line) and .jsonl (one JSON object per line), also gzipped."""

import gzip
import json
import zlib
from pathlib import Path

from deepclust_jax.data.errors import DataError

TEXT_FIELD = "text"


def read_txt(path: Path) -> list[str]:
    """Documents of a text file, one per line; blank lines at the end do not count."""
    texts = _read(path).split("\n")
    while texts and not texts[-1].strip():
        texts.pop()
    return texts


def read_jsonl(path: Path, label_field: str) -> tuple[list[str], list | None]:
    """Texts, and labels if the first object has `label_field`.

    Raises DataError naming the line without a text or label, or that is not a JSON object.
    """
    texts, labels = [], []
    for number, line in enumerate(_read(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not JSON ({error.msg}); mend the line"
            ) from None
        if not isinstance(row, dict) or not isinstance(row.get(TEXT_FIELD), str):
            raise DataError(
                f"{path}, line {number}: expected an object with a string 'text'; mend the line"
            )
        texts.append(row[TEXT_FIELD])
        labels.append(row.get(label_field))
    labelled = [value is not None for value in labels]
    if any(labelled) and not all(labelled):
        raise DataError(
            f"{path}: document {labelled.index(False)} has no field {label_field!r}; give all "
            "documents one, or none"
        )
    return texts, labels if any(labelled) else None


def _read(path: Path) -> str:
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if path.suffix == ".gz" else raw
        return content.decode("utf-8-sig")
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise DataError(f"{path}: the gzip file is damaged or cut short; get it again") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected UTF-8 text, found another byte at {error.start}; save it as UTF-8"
        ) from None
