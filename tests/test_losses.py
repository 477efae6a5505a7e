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


def test_contrast_by_hand():
    """Two rows, orthogonal views: each view has one partner at 1 and two others at 0."""
    one = jnp.array([[2.0, 0.0], [0.0, 3.0]])
    found = losses.contrast(one, one, jnp.ones(2), 0.5)
    expected = np.log(np.exp(2.0) + 2 * np.exp(0.0)) - 2.0
    np.testing.assert_allclose(found, [expected, expected], rtol=1e-5)
    # Of views that say nothing each other one is as near: log(2 b - 1).
    alike = losses.contrast(jnp.ones((4, 3)), jnp.ones((4, 3)), jnp.ones(4), 0.5)
    np.testing.assert_allclose(alike, np.log(7.0), rtol=1e-5)


def test_contrast_by_numpy():
    key = jax.random.key(0)
    one, other = jax.random.normal(key, (6, 4)), jax.random.normal(jax.random.key(1), (6, 4))
    views = np.concatenate([one, other]).astype(np.float64)
    views /= np.linalg.norm(views, axis=1, keepdims=True)
    scores = views @ views.T / 0.2
    np.fill_diagonal(scores, -np.inf)
    partner = np.r_[np.arange(6, 12), np.arange(6)]
    cost = np.log(np.exp(scores).sum(1)) - scores[np.arange(12), partner]
    found = losses.contrast(one, other, jnp.ones(6), 0.2)
    np.testing.assert_allclose(found, (cost[:6] + cost[6:]) / 2, rtol=1e-4)


def test_contrast_leaves_padding_out():
    key = jax.random.key(0)
    one, other = jax.random.normal(key, (6, 4)), jax.random.normal(jax.random.key(1), (6, 4))
    mask = jnp.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    whole = losses.contrast(one[:4], other[:4], jnp.ones(4), 0.5)
    padded = losses.contrast(one.at[4:].set(1e6), other, mask, 0.5)
    np.testing.assert_allclose(padded[:4], whole, rtol=1e-5)
    grad = jax.grad(lambda z: losses.masked_mean(losses.contrast(z, other, mask, 0.5), mask))(one)
    np.testing.assert_array_equal(grad[4:], 0.0)
    alone = losses.contrast(jnp.zeros((1, 4)), jnp.zeros((1, 4)), jnp.ones(1), 0.5)
    np.testing.assert_allclose(alone, [0.0], atol=1e-6)
    flat = jax.grad(lambda z: losses.contrast(z, z, jnp.ones(2), 0.5).sum())(jnp.zeros((2, 4)))
    assert jnp.isfinite(flat).all()


def test_mutual_information_at_its_ends():
    sure = jnp.eye(4)[jnp.array([0, 1, 2, 3, 0, 1, 2, 3])]
    np.testing.assert_allclose(
        losses.mutual_information(sure, sure, jnp.ones(8)), np.log(4.0), rtol=1e-5
    )
    unsure = jnp.full((8, 4), 0.25)
    np.testing.assert_allclose(
        losses.mutual_information(unsure, unsure, jnp.ones(8)), 0.0, atol=1e-5
    )
    one_cluster = jnp.eye(4)[jnp.zeros(8, int)]
    np.testing.assert_allclose(
        losses.mutual_information(one_cluster, one_cluster, jnp.ones(8)), 0.0, atol=1e-5
    )
    mask = jnp.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    changed = sure.at[4:].set(0.5)
    np.testing.assert_allclose(
        losses.mutual_information(changed, sure, mask), np.log(4.0), rtol=1e-5
    )


def test_mutual_information_by_definition():
    key = jax.random.key(0)
    one, other = (jax.nn.softmax(2 * jax.random.normal(k, (50, 3))) for k in jax.random.split(key))
    joint = np.asarray(one).T @ np.asarray(other) / 50
    joint = (joint + joint.T) / 2
    own = joint.sum(1)
    expected = (joint * np.log(joint / np.outer(own, own))).sum()
    found = losses.mutual_information(one, other, jnp.ones(50))
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    np.testing.assert_allclose(
        losses.mutual_information(other, one, jnp.ones(50)), found, rtol=1e-4
    )


def test_agreement_and_entropy():
    one, other = jnp.array([[0.5, 0.5], [1.0, 0.0]]), jnp.array([[0.25, 0.75], [0.0, 1.0]])
    found = losses.agreement(one, other)
    np.testing.assert_allclose(found, [np.log(2.0), 7 * np.log(10.0)], rtol=1e-4)
    grad = jax.grad(lambda p: losses.agreement(p, other).sum())(one)  # trap: log of 0
    assert jnp.isfinite(grad).all()
    np.testing.assert_allclose(losses.entropy(one), [np.log(2.0), 0.0], rtol=1e-6)
    assert jnp.isfinite(jax.grad(lambda p: losses.entropy(p).sum())(one)).all()
