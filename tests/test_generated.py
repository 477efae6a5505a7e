"""Measures of made rows, against worked numbers and what is written out in NumPy."""

import numpy as np
import pytest

from deepclust_jax.metrics import generated

RNG = np.random.default_rng(0)


def naive(real, made, k):
    """The definitions, pair by pair."""

    def gaps(a, b):
        return np.linalg.norm(a[:, None] - b[None], axis=2)

    def radii(x):
        return np.sort(gaps(x, x), axis=1)[:, k]  # the nearest is the row itself

    inside = gaps(made, real) <= radii(real)[None]
    return {
        "precision": inside.any(axis=1).mean(),
        "recall": (gaps(real, made) <= radii(made)[None]).any(axis=1).mean(),
        "density": inside.sum(axis=1).mean() / k,
        "coverage": inside.any(axis=0).mean(),
    }


@pytest.mark.parametrize("n, m, d, k", [(40, 30, 3, 3), (300, 520, 5, 5)])
def test_against_the_definitions(n, m, d, k):
    real, made = RNG.normal(size=(n, d)), RNG.normal(0.5, 1.3, size=(m, d))
    found = generated.fidelity(real, made, n_neighbors=k)
    expected = naive(real, made, k)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=2.0 / min(n, m)), name


def test_a_mode_that_is_missing_shows_in_recall_and_coverage():
    centres = 100.0 * np.arange(4)[:, None]
    real = np.concatenate([c + RNG.normal(size=(50, 2)) for c in centres])
    made = np.concatenate([c + RNG.normal(size=(50, 2)) for c in centres[:3]])
    found = generated.fidelity(real, made)
    assert found["precision"] > 0.9 and 0.6 < found["recall"] <= 0.75
    assert 0.6 < found["coverage"] <= 0.75
    far = generated.fidelity(real, real + 1e4)
    assert far == {"precision": 0.0, "recall": 0.0, "density": 0.0, "coverage": 0.0}


def test_values_far_from_zero_are_compared_as_well():
    """Trap: the expanded square of a distance loses all digits there."""
    real, made = RNG.normal(size=(60, 2)), RNG.normal(size=(60, 2))
    near, far = (generated.fidelity(real + c, made + c) for c in (0.0, 1e6))
    assert near == pytest.approx(far, abs=0.05)


def test_tight_modes_that_lie_apart():
    """Trap: in float32 the expanded square loses the distances within a mode of 1e-4."""
    centres = np.array([[1.0, 1.0], [-1.0, -1.0]])[np.arange(400) % 2]
    real, made = (centres + 1e-4 * RNG.normal(size=(400, 2)) for _ in range(2))
    found = generated.fidelity(real, made)
    expected = naive(np.float32(real), np.float32(made), 5)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=0.01), name
    far = generated.fidelity(real, made + 0.01)
    assert far["coverage"] == far["density"] == 0.0


def test_frechet_of_gaussians():
    """Worked: means 3 apart, deviations 1 and 2 in one of two axes: 9 + (1 - 2)^2 = 10."""
    one = RNG.normal(size=(200_000, 2))
    other = RNG.normal(size=(200_000, 2)) * np.array([2.0, 1.0]) + np.array([0.0, 3.0])
    assert generated.frechet(one, other) == pytest.approx(10.0, rel=0.02)
    assert generated.frechet(one, one) == pytest.approx(0.0, abs=1e-6)
    turned = one @ np.array([[0.6, -0.8], [0.8, 0.6]])
    moved = other @ np.array([[0.6, -0.8], [0.8, 0.6]])
    assert generated.frechet(turned, moved) == pytest.approx(10.0, rel=0.02)
    single = generated.frechet(one[:, :1], other[:, :1])
    assert single == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("d", [3, 30, 80])
def test_frechet_by_the_eigenvalues_of_the_product(d):
    """As it is written, with fewer and with more numbers than rows: the root of C C' has the roots
    of its eigenvalues, which are real and not negative."""
    real, made = RNG.normal(size=(50, d)), 0.3 + RNG.normal(size=(60, d)) @ RNG.normal(size=(d, d))
    one, other = np.cov(real, rowvar=False), np.cov(made, rowvar=False)
    roots = np.sqrt(np.maximum(np.real(np.linalg.eigvals(one @ other)), 0.0)).sum()
    gap = np.sum((real.mean(axis=0) - made.mean(axis=0)) ** 2)
    expected = gap + np.trace(one) + np.trace(other) - 2 * roots
    assert generated.frechet(real, made) == pytest.approx(expected, rel=1e-4)


def test_copies_are_told_from_new_rows():
    real = RNG.normal(size=(400, 3))
    assert generated.memorised(real, real[:100]) == {"copies": 0.0, "copied": 1.0}
    new = RNG.normal(size=(400, 3))
    found = generated.memorised(real, new)
    assert found["copies"] == pytest.approx(1.0, abs=0.15) and found["copied"] < 0.03
    some = generated.memorised(real, np.concatenate([new[:320], real[:80]]))
    assert some["copies"] > 0.6 and some["copied"] == pytest.approx(0.2, abs=0.03)
    twice = np.repeat(real, 2, axis=0)
    assert generated.memorised(twice, real)["copies"] == 0.0
    moved = generated.memorised(real, real + 0.1)["copies"]
    assert generated.memorised(twice, real + 0.1)["copies"] == pytest.approx(moved, rel=1e-3)
    assert moved > 0.1
    both = np.stack([real + 0.1, RNG.normal(size=real.shape)])
    alone = [generated.memorised(real, made) for made in both]
    for name, values in generated.memorised(real, both).items():
        np.testing.assert_allclose(values, [one[name] for one in alone], rtol=1e-5)
    same = np.ones((9, 2))
    assert generated.memorised(same, same) == {"copies": 0.0, "copied": 1.0}
    assert generated.memorised(same, same + np.arange(2.0))["copies"] == np.inf


@pytest.mark.parametrize(
    "real, made, message",
    [
        (np.ones((9, 2)), np.ones((9, 3)), "expected features"),
        (np.ones((9, 2, 2)), np.ones((9, 2)), "expected features"),
        (np.ones((5, 2)), np.ones((9, 2)), "expected 6 rows of each, found 5 and 9"),
    ],
)
def test_bad_rows(real, made, message):
    with pytest.raises(ValueError, match=message):
        generated.fidelity(real, made)
