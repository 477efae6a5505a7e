"""From a name or a file to rows ready to train on; labels always apart from the data."""

from deepclust_jax.data import preprocessing
from deepclust_jax.data.clips import Clips
from deepclust_jax.data.dataset import Dataset, load, matched, nuisance, paired, row_files
from deepclust_jax.data.errors import DataError

__all__ = [
    "Clips",
    "DataError",
    "Dataset",
    "load",
    "matched",
    "nuisance",
    "paired",
    "preprocessing",
    "row_files",
]
