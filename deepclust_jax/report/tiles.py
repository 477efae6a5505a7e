"""Arrays of images -> square colour tiles and one mosaic; shared by figures and the projector."""

import math

import numpy as np


def rgb(images: np.ndarray) -> np.ndarray:
    """Images ready to be shown. [n, h, w, 1 or 3] -> uint8 [n, h, w, 3].

    uint8 is taken as it is and floats in [0, 1] are scaled by 255; any other range is stretched
    to [0, 255] over the whole array, since standardised images are still worth seeing.
    Raises ValueError for any other shape.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"expected images [n, h, w, 1 or 3], found shape {images.shape}; reshape")
    if images.dtype != np.uint8:
        x = np.nan_to_num(images.astype(np.float32), posinf=0.0, neginf=0.0)
        low, high = (x.min(), x.max()) if x.size else (0.0, 1.0)
        if low < 0.0 or high > 1.0:
            x = (x - low) / max(high - low, 1e-12)
        images = np.rint(x * 255.0).astype(np.uint8)
    return np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images


def square(images: np.ndarray, size: int) -> np.ndarray:
    """Images padded to squares with black and resized. [n, h, w, 1 or 3] -> [n, size, size, 3]."""
    from PIL import Image

    x = rgb(images)
    n, h, w, _ = x.shape
    side = max(h, w)
    top, left = (side - h) // 2, (side - w) // 2
    padded = np.zeros((n, side, side, 3), np.uint8)
    padded[:, top : top + h, left : left + w] = x
    # Enlarged pixels stay sharp (digits of 8x8); smooth filters are for making images smaller.
    how = Image.Resampling.BOX if size < side else Image.Resampling.NEAREST
    out = [np.asarray(Image.fromarray(tile).resize((size, size), how)) for tile in padded]
    return np.stack(out) if out else np.zeros((0, size, size, 3), np.uint8)


def mosaic(tiles: np.ndarray, n_columns: int, fill: int = 0) -> np.ndarray:
    """Tiles row by row, the rest `fill`. uint8 [n, s, s, 3] -> [rows*s, n_columns*s, 3]."""
    n, s = tiles.shape[:2]
    n_rows = max(math.ceil(n / n_columns), 1)
    grid = np.full((n_rows * n_columns, s, s, 3), fill, np.uint8)
    grid[:n] = tiles
    grid = grid.reshape(n_rows, n_columns, s, s, 3).transpose(0, 2, 1, 3, 4)
    return grid.reshape(n_rows * s, n_columns * s, 3)
