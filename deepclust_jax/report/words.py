"""The words that tell a cluster of documents from the others."""

from collections.abc import Sequence

import numpy as np


def telling(texts: Sequence[str], labels: np.ndarray, *, count: int = 10) -> list[list[str]]:
    """Up to `count` words for each cluster, the most telling first; labels [n] of 0..k-1.

    By what a word adds to the divergence of the cluster from all documents, p(w | c) log(p(w | c) /
    p(w)), where p is the share of documents that have the word. Of words in two documents or more
    that are no stop words; none for a cluster in which no word is more frequent than elsewhere.
    """
    from scipy.sparse import csr_array
    from sklearn.feature_extraction.text import CountVectorizer

    n, k = len(labels), int(np.max(labels)) + 1
    vectoriser = CountVectorizer(binary=True, stop_words="english", min_df=2)
    try:
        has = vectoriser.fit_transform([str(text) for text in texts])
    except ValueError:  # no word is left
        return [[] for _ in range(k)]
    member = csr_array((np.ones(n), (labels, np.arange(n))), shape=(k, n))
    sizes = np.maximum(np.bincount(labels, minlength=k), 1)
    share = (member @ has).toarray() / sizes[:, None]
    gain = share * np.log(np.where(share > 0, share, 1.0) / np.asarray(has.mean(axis=0)))
    words = vectoriser.get_feature_names_out()
    order = np.argsort(-gain, axis=1, kind="stable")[:, :count]
    return [
        [str(words[w]) for w in row if own[w] > 0] for row, own in zip(order, gain, strict=True)
    ]
