"""The vote of several clusterings."""

import numpy as np
import pytest

from deepclust_jax import metrics
from deepclust_jax.clustering import consensus


def test_numbers_do_not_matter_and_most_win():
    """Worked: the second has other numbers, the third is wrong in one row, no two in the same."""
    a = [0, 0, 0, 1, 1, 1, 2, 2, 2]
    b = [2, 2, 2, 0, 0, 1, 1, 1, 1]  # the clusters 2 0 1, and row 5 with those of the third
    c = [1, 2, 1, 2, 2, 2, 0, 0, 0]  # 1 2 0, and row 1 with those of the second
    for reference, numbers in ((0, [0, 1, 2]), (1, [2, 0, 1]), (2, [1, 2, 0])):
        found = consensus.vote([a, b, c], reference)
        np.testing.assert_array_equal(found, np.repeat(numbers, 3))


def test_where_as_many_say_one_thing_as_another_the_reference_decides():
    a, b = [0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1]
    np.testing.assert_array_equal(consensus.vote([a, b], 0), a)
    np.testing.assert_array_equal(consensus.vote([a, b], 1), b)
    np.testing.assert_array_equal(consensus.vote([a]), a)


def test_two_clusters_that_one_run_joins_are_apart():
    """Trap: the best run by its loss may join two clusters and cut a third."""
    true = np.repeat(np.arange(4), 50)
    joins = np.where(true == 1, 0, np.where(true == 3, 3 - 2 * (np.arange(200) % 2), true))
    found = consensus.vote([joins, true, (true + 1) % 4, (true + 2) % 4], reference=0)
    assert metrics.accuracy(true, joins) < 0.8
    assert metrics.accuracy(true, found) == 1.0


def test_clusters_without_a_partner_have_no_vote():
    """Trap: the third clusters of two runs, which the first lacks, count as one."""
    a = [0, 0, 0, 1, 1, 1, 1]
    b = [0, 0, 0, 1, 1, 2, 2]
    c = [1, 1, 1, 0, 0, 2, 2]
    np.testing.assert_array_equal(consensus.vote([a, b, c], 0), a)


def test_noise_averages_out():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 5, 2000)
    runs = []
    for _ in range(9):
        wrong = rng.random(2000) < 0.3
        numbers = rng.permutation(5)
        runs.append(numbers[np.where(wrong, rng.integers(0, 5, 2000), true)])
    assert max(metrics.accuracy(true, run) for run in runs) < 0.8
    assert metrics.accuracy(true, consensus.vote(runs)) > 0.98


@pytest.mark.parametrize(
    "labels, reference, words",
    [
        ([0, 1], 0, r"expected integer labels of shape \[runs, rows\], found int64 \(2,\)"),
        ([[0.0, 1.0]], 0, "expected integer labels"),
        ([[0, -1]], 0, "expected labels >= 0, found -1"),
        ([[0, 1]], 1, "expected 0 <= reference < 1, found 1"),
    ],
)
def test_what_cannot_vote_is_refused(labels, reference, words):
    with pytest.raises(ValueError, match=words):
        consensus.vote(labels, reference)
