"""The judge of made rows: that it learns, and is measured on rows that it did not see."""

import jax
import numpy as np
import pytest

from deepclust_jax.metrics import classifier

RNG = np.random.default_rng(0)


def test_classes_of_blobs_are_learnt():
    labels = RNG.integers(0, 3, 600)
    x = 4.0 * np.eye(3)[labels] + RNG.normal(size=(600, 3))
    judge = classifier.fit(jax.random.key(0), x, labels)
    assert judge.accuracy > 0.95
    np.testing.assert_array_equal(classifier.classes(judge, 4.0 * np.eye(3)), [0, 1, 2])
    z = classifier.features(judge, x.reshape(600, 3, 1))
    assert z.shape == (600, 128) and z.min() >= 0.0 and z.std() > 0.0


def test_accuracy_is_of_rows_that_were_not_trained_on():
    """Trap: noise learnt by heart looks like knowledge."""
    x, labels = RNG.normal(size=(500, 20)), RNG.integers(0, 4, 500)
    judge = classifier.fit(jax.random.key(0), x, labels)
    assert judge.accuracy < 0.45
    assert np.mean(classifier.classes(judge, x) == labels) > 0.8


@pytest.mark.parametrize(
    "x, labels", [(np.eye(6), np.zeros(6, int)), (np.eye(6), np.arange(5)), (np.eye(3), [0, 1, 1])]
)
def test_what_cannot_be_learnt_is_refused(x, labels):
    with pytest.raises(ValueError, match="expected 5 rows or more and a label of 2 classes"):
        classifier.fit(jax.random.key(0), x, labels)
