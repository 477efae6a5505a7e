"""Folders of pictures or wav files; sub-folders, if there are any, are the classes."""

from pathlib import Path

import numpy as np

from deepclust_jax.data import clips
from deepclust_jax.data.errors import DataError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
SOUNDS = (".wav",)
GREY_MODES = ("1", "L")
COLOUR_MODES = ("RGB", "RGBA", "P", "LA", "CMYK", "YCbCr")


def paths(folder: Path) -> list[Path]:
    """Pictures and sounds in a folder and its sub-folders, in order; hidden ones do not count."""
    found = (
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in PICTURES + SOUNDS
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    # Of two modalities a.png and a.b.png are in the order of a.wav and a.b.wav.
    return sorted(found, key=lambda path: (path.with_suffix(""), path.suffix))


def read(folder: Path) -> tuple[np.ndarray | clips.Clips, list[str] | None]:
    """Pictures uint8 [n, h, w, 1 or 3] or Clips, in order of path; sub-folder names as labels.

    Raises DataError for an empty or mixed folder, and naming the first file that does not fit.
    """
    found = paths(folder)
    if not found:
        texts = sum(path.suffix.lower() == ".txt" for path in folder.rglob("*"))
        hint = "check the path"
        if texts:
            hint = f"of its {texts} .txt make one file, .txt of a text a line, or .jsonl"
        raise DataError(
            f"folder {folder} holds no pictures ({', '.join(PICTURES)}) and no sounds (.wav); "
            f"{hint}"
        )
    sounds = [path for path in found if path.suffix.lower() in SOUNDS]
    if 0 < len(sounds) < len(found):
        raise DataError(
            f"folder {folder} holds {len(found) - len(sounds)} pictures and {len(sounds)} sounds; "
            "expected one kind: move the others away"
        )
    labels = _classes(found, folder)
    return (clips.read(found) if sounds else _pictures(found)), labels


def _classes(paths: list[Path], folder: Path) -> list[str] | None:
    """First sub-folder of each path; None if all files lie in the folder itself."""
    inside = [path.relative_to(folder).parts for path in paths]
    loose = [i for i, parts in enumerate(inside) if len(parts) == 1]
    if len(loose) == len(paths):
        return None
    if loose:
        raise DataError(
            f"{paths[loose[0]]} lies beside sub-folders; expected all files in sub-folders (the "
            "classes) or none: move it"
        )
    return [parts[0] for parts in inside]


def _pictures(paths: list[Path]) -> np.ndarray:
    from PIL import Image

    heads = [_open(Image, path, lambda picture: (picture.size, picture.mode)) for path in paths]
    size = heads[0][0]
    for path, (found, mode) in zip(paths, heads, strict=True):
        if found != size:
            raise DataError(
                f"{path} is {found[0]} x {found[1]} pixels, but {paths[0].name} is {size[0]} x "
                f"{size[1]}; resize all pictures to one size (width x height)"
            )
        if mode not in GREY_MODES + COLOUR_MODES:
            raise DataError(
                f"{path} has pixels of mode {mode}, which do not fit in bytes; expected 8-bit grey "
                "or colour: convert it, or save the values as .npy and choose the kind image"
            )
    mode = "L" if all(mode in GREY_MODES for _, mode in heads) else "RGB"
    x = np.empty((len(paths), size[1], size[0], 1 if mode == "L" else 3), np.uint8)
    for i, path in enumerate(paths):
        pixels = _open(Image, path, lambda picture: np.asarray(_convert(picture, mode)))
        x[i] = pixels.reshape(x.shape[1:])
    return x


def _convert(picture, mode: str):
    # A palette's transparency has to be resolved before it is dropped.
    return (picture.convert("RGBA") if picture.mode == "P" else picture).convert(mode)


def _open(image_module, path: Path, extract):
    """`extract(picture)` of an opened picture; DataError if the file is damaged."""
    try:
        with image_module.open(path) as picture:
            return extract(picture)
    except PermissionError:
        raise
    except (OSError, SyntaxError, ValueError):  # what pillow raises for damaged files
        raise DataError(f"{path} is not a readable picture; remove or replace it") from None
