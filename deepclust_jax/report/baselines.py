"""What a method has to beat on the same rows and seeds: k-means on the rows as they are, which may
be the codes of a run, where these are tokens on the TF-IDF features of the texts, and the
autoencoder or contrastive features that it started from."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from deepclust_jax import run, stream, train
from deepclust_jax.clustering import kmeans
from deepclust_jax.data import DataError, Dataset, preprocessing
from deepclust_jax.types import Key

ROWS = "k-means on the rows"
CODES = "k-means on the codes"
TEXTS = "k-means on TF-IDF and SVD"
START = "what it started from"

_STREAM = 2  # of the draws; 0 and 1 are those of the phases
_BLOCK = 4096


def labels_of(
    keys: Key, dataset: Dataset, n_clusters: int, trained: run.Trained
) -> dict[str, np.ndarray]:
    """Clusters under every baseline for keys [S], by its name. -> int [S, n] each."""
    x = dataset.x
    found = {}
    settings = dataset.preprocessing.settings
    if settings.get("scaling") != "tokens":
        found[CODES if preprocessing.OF in settings else ROWS] = kmeans_of_rows(keys, x, n_clusters)
    else:
        with contextlib.suppress(DataError):  # tokens may be all that these texts have
            features = preprocessing.apply(preprocessing.fit(dataset.raw, "text"), dataset.raw)
            found[TEXTS] = kmeans_of_rows(keys, features, n_clusters)
    if trained.start is not None:
        found[START] = train.embed(*trained.start, x)[1]
    return found


def kmeans_of_rows(keys: Key, x: np.ndarray, n_clusters: int) -> np.ndarray:
    """k-means on flattened rows x [n, ...], for keys [S]. -> int32 [S, n].

    Of rows that do not fit on the device a sample is clustered, to which the others are assigned.
    """
    rows = stream.sample(x)
    rows = rows.reshape(rows.shape[0], -1)
    found = []
    for key in keys:
        centroids = kmeans.fit(jax.random.fold_in(key, _STREAM), rows, n_clusters).centroids
        blocks = (x[start : start + _BLOCK] for start in range(0, x.shape[0], _BLOCK))
        labels = [
            kmeans.assign(jnp.asarray(block).reshape(len(block), -1), centroids)[0]
            for block in blocks
        ]
        found.append(np.concatenate(jax.device_get(labels)))
    return np.stack(found)
