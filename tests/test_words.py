"""The words that tell a cluster of documents."""

import numpy as np

from deepclust_jax.report import words

TEXTS = ["the cat sat", "a cat ran", "cat and dog", "the ship sailed", "a ship sank", "ship, dog"]


def test_words_of_a_cluster_come_before_those_of_all():
    found = words.telling(TEXTS, np.array([0, 0, 0, 1, 1, 1]))
    assert found == [["cat"], ["ship"]]  # dog is in both; the others are in one document


def test_the_gain_is_a_divergence():
    texts = ["red blue"] * 6 + ["red"] * 2 + ["green"] * 8
    labels = np.repeat([0, 1], 8)
    # p(red | 0) = 1, p(red) = 1/2: log 2. blue: 3/4 log 2.
    assert words.telling(texts, labels) == [["red", "blue"], ["green"]]
    assert words.telling(texts, labels, count=1) == [["red"], ["green"]]


def test_clusters_without_documents_or_words_have_none():
    assert words.telling(TEXTS, np.array([0, 0, 0, 2, 2, 2])) == [["cat"], [], ["ship"]]
    assert words.telling(["", "the", "?"], np.array([0, 1, 1])) == [[], []]
