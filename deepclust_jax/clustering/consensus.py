"""One clustering of several: each row has the cluster that most of them give it.

    labels = consensus.vote(labels_all, reference=0)

Clusterings number their clusters as they like. Those of each are matched one to one with the
clusters of a reference, so that as many rows as possible agree, and then vote (Dudoit & Fridlyand
2003, "Bagging to improve the accuracy of a clustering procedure", BagClust1; there of bootstrap
samples, here of the runs of a population). Runs err in different rows where they start from
different weights, and where one joins two clusters and cuts a third the others outvote it.
"""

import numpy as np
from numpy.typing import ArrayLike

from deepclust_jax import metrics


def vote(labels_all: ArrayLike, reference: int = 0) -> np.ndarray:
    """The clusters that most of S clusterings give each row, by the numbers of one of them.

    Args:
        labels_all: int [S, n], numbers >= 0.
        reference: the clustering that has the numbers, and decides where as many speak for one
            cluster as for another. A cluster of another one that is matched with none of its
            clusters has no vote.

    Returns:
        int [n], clusters of the reference.

    Raises:
        ValueError: labels of another shape or type or below 0, or no such reference.
    """
    labels_all = np.asarray(labels_all)
    if labels_all.ndim != 2 or 0 in labels_all.shape or labels_all.dtype.kind not in "iu":
        raise ValueError(
            f"expected integer labels of shape [runs, rows], found {labels_all.dtype} "
            f"{labels_all.shape}"
        )
    if labels_all.min() < 0:
        raise ValueError(f"expected labels >= 0, found {labels_all.min()}")
    if not 0 <= reference < len(labels_all):
        raise ValueError(f"expected 0 <= reference < {len(labels_all)}, found {reference}")
    own = labels_all[reference].astype(np.int64)
    known = np.unique(own)
    renamed = [own]  # first: argmax below takes the first of those with as many votes
    for i, labels in enumerate(labels_all):
        if i != reference:
            named = metrics.align(own, labels.astype(np.int64))
            renamed.append(np.where(np.isin(named, known), named, -1))
    every = np.stack(renamed)
    votes = np.stack([np.sum(every == labels, axis=0) for labels in every])
    winner = np.argmax(np.where(every < 0, 0, votes), axis=0)
    return np.take_along_axis(every, winner[None], axis=0)[0]
