"""Losses: worked numbers, invariants and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from deepclust_jax import losses

Z = jnp.array([[0.0, 0.0], [3.0, 4.0]])
CENTROIDS = jnp.array([[0.0, 0.0], [3.0, 0.0]])


def test_squared_distances_worked():
    np.testing.assert_allclose(losses.squared_distances(Z, CENTROIDS), [[0, 9], [25, 16]])


def test_reconstruction_sums_over_all_features():
    x = jnp.ones((2, 3, 4))
    np.testing.assert_allclose(losses.reconstruction(x, x + 2.0), [48.0, 48.0])


def test_reconstruction_refuses_silent_broadcasting():
    with pytest.raises(ValueError, match="expected a reconstruction of shape"):
        losses.reconstruction(jnp.ones((2, 3)), jnp.ones((1, 3)))


def test_hard_and_own_centroid():
    nearest = losses.squared_distances(Z, CENTROIDS).min(axis=-1)
    np.testing.assert_allclose(nearest, [0.0, 16.0])
    own = losses.to_own_centroid(Z, CENTROIDS, jnp.array([1, 0]))
    np.testing.assert_allclose(own, [9.0, 25.0])


def test_masked_mean_ignores_padding_even_where_it_overflows():
    values = jnp.array([1.0, 3.0, jnp.inf])
    mask = jnp.array([1.0, 1.0, 0.0])
    assert losses.masked_mean(values, mask) == 2.0
    np.testing.assert_array_equal(jax.grad(losses.masked_mean)(values, mask), [0.5, 0.5, 0.0])
    assert losses.masked_mean(values, jnp.zeros(3)) == 0.0


def test_masked_mean_refuses_what_is_not_summed_over_features():
    """Trap: as many features as rows, and the mask silently falls on the features."""
    with pytest.raises(ValueError, match=r"found shape \[3, 3\]; sum over the features first"):
        losses.masked_mean(jnp.ones((3, 3)), jnp.ones(3))


def test_total_variance_of_the_rows_that_count():
    x = jnp.array([[[0.0], [2.0]], [[4.0], [2.0]], [[9.0], [9.0]]])
    np.testing.assert_allclose(losses.total_variance(x, jnp.array([1.0, 1.0, 0.0])), 4.0)
    alone = losses.total_variance(x, jnp.array([0.0, 1.0, 0.0]))  # mean square, not 0
    np.testing.assert_allclose(alone, 20.0)
    same = jnp.full((7, 5), 0.1)  # equal rows, whose variance is rounding
    np.testing.assert_allclose(losses.total_variance(same, jnp.ones(7)), 0.05, rtol=1e-5)
    assert losses.total_variance(jnp.zeros((3, 2)), jnp.ones(3)) == 1.0
    # Raw data far from 0 have a variance all the same.
    far = 3000.0 + jnp.array([[1.0], [-1.0]])
    np.testing.assert_allclose(losses.total_variance(far, jnp.ones(2)), 1.0)


def test_soft_kmeans_between_its_limits():
    sqdist = np.array([[0.0, 9.0], [25.0, 16.0]])
    np.testing.assert_allclose(losses.soft_kmeans(Z, CENTROIDS, 0.0), sqdist.mean(1), rtol=1e-6)
    hard = losses.soft_kmeans(Z, CENTROIDS, 1000.0)
    np.testing.assert_allclose(hard, sqdist.min(axis=1), rtol=1e-6)
    # Row 2 at alpha = 0.1: weights 1 and e^0.9 over their sum.
    weight = np.exp(0.9) / (1 + np.exp(0.9))
    expected = (1 - weight) * 25 + weight * 16
    np.testing.assert_allclose(losses.soft_kmeans(Z, CENTROIDS, 0.1)[1], expected, rtol=1e-6)


def test_soft_kmeans_weights_of_clean_codes_are_fixed_targets():
    """Trap: a gradient through targets, which midway between clusters is alpha times too large."""
    centroids = jnp.array([[-1.0, 0.0], [1.0, 0.0]])
    clean, z = jnp.array([[0.0, 0.0]]), jnp.array([[0.5, 2.0]])

    def loss(z, centroids, clean):
        return losses.soft_kmeans(z, centroids, 1000.0, clean=clean)[0]

    np.testing.assert_allclose(loss(z, centroids, clean), 0.5 * (1.5**2 + 0.5**2) + 4.0)
    of_z, of_centroids, of_clean = jax.grad(loss, argnums=(0, 1, 2))(z, centroids, clean)
    np.testing.assert_allclose(of_z, [[1.0, 4.0]])  # 2 (z - mean of the centroids)
    np.testing.assert_allclose(of_centroids, [[-1.5, -2.0], [0.5, -2.0]])
    np.testing.assert_array_equal(of_clean, 0.0)


def test_soft_kmeans_renaming_clusters_changes_nothing():
    swapped = losses.soft_kmeans(Z, CENTROIDS[::-1], 0.3)
    np.testing.assert_allclose(swapped, losses.soft_kmeans(Z, CENTROIDS, 0.3), rtol=1e-6)


def test_dkm_exponent_never_overflows():
    """Trap: exp(-1000 * distance) without the row's largest exponent is 0 / 0."""
    far = 1e3 * jnp.ones((1, 4))
    value, grad = jax.value_and_grad(lambda z: losses.soft_kmeans(z, CENTROIDS4, 1000.0)[0])(far)
    assert jnp.isfinite(value) and jnp.isfinite(grad).all()


CENTROIDS4 = jnp.array([[0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])


def test_gradients():
    key = jax.random.key(0)
    z, centroids = jax.random.normal(key, (5, 3)), jax.random.normal(key, (4, 3))
    for alpha in (0.1, 1.0):
        check_grads(
            lambda z, c, a=alpha: losses.soft_kmeans(z, c, a), (z, centroids), 1, ["rev"],
            atol=1e-2, rtol=1e-2,
        )  # fmt: skip


def test_gradient_at_distance_zero_is_finite():
    """Trap: the gradient of a norm at zero is nan; squared distances have none."""
    grad = jax.grad(lambda z: losses.squared_distances(z, CENTROIDS).min(-1).sum())(CENTROIDS)
    np.testing.assert_array_equal(grad, np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (lambda value: value, "found an array; return both, {} for no metrics"),
        (lambda value: (value, value), r"found \(an array, an array\)"),
        (lambda value: (value, {}, {}), r"found \(an array, a dict, a dict\)"),
        (lambda value: None, "found a NoneType"),
        (lambda value: (jnp.stack([value, value]), {}), r"found value \[2\]; use losses.masked"),
        (lambda value: (value, {"pull": jnp.zeros(3)}), r"found pull \[3\]"),
        (lambda value: (value, {"loss": value}), "found a metric 'loss'"),
        (lambda value: (value, {"pull": None}), "found pull as a NoneType"),
        (lambda value: (value, {"pull": {"a": value}}), "found pull as a dict"),
        (lambda value: (value, {"pull": "high"}), "found pull as a str"),
        (lambda value: (value, {3: value}), "found a metric called 3"),
        (lambda value: (None, {}), "found value as a NoneType"),
    ],
)
def test_a_loss_that_returns_something_else_is_refused_by_name(found, words):
    with pytest.raises(TypeError, match=words):
        losses.value_and_grad(lambda w: found(jnp.sum(w**2)))(jnp.ones(2))


def test_value_and_grad_of_a_loss():
    loss = lambda w, scale, *, power: (scale * jnp.sum(w**power), {"n": 2})  # noqa: E731
    (value, metrics), grad = losses.value_and_grad(loss)(jnp.array([1.0, 2.0]), 3.0, power=2)
    assert value == 15.0 and metrics == {"n": 2}
    np.testing.assert_array_equal(grad, [6.0, 12.0])
