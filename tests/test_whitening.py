"""Principal axes with variance 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepclust_jax.clustering import whitening

KEY = jax.random.key(0)


def correlated(n=400, m=6):
    mix = jax.random.normal(KEY, (m, m)) * jnp.array([10.0, 5, 2, 1, 0.5, 0.1])[:m, None]
    return jnp.dot(jax.random.normal(jax.random.key(1), (n, m)), mix) + 3.0


def test_axes_are_uncorrelated_with_variance_one():
    x = correlated()
    view = whitening.fit(x, 4)
    y = jnp.dot(x - view.mean[None, :], view.axes, precision="highest")
    np.testing.assert_allclose(jnp.dot(y.T, y) / len(x), jnp.eye(4), atol=1e-3)
    assert whitening.unfitted(6, 4)._fields == view._fields
    assert jax.tree.map(jnp.shape, whitening.unfitted(6, 4)) == jax.tree.map(jnp.shape, view)


def test_axes_are_those_of_numpy():
    x = np.asarray(correlated(), np.float64)
    centred = x - x.mean(0)
    variances, axes = np.linalg.eigh(centred.T @ centred / len(x))
    wanted = axes[:, ::-1] / np.sqrt(variances[::-1])
    found = np.asarray(whitening.fit(jnp.float32(x), 3).axes)
    signs = np.sign(np.sum(found * wanted[:, :3], axis=0))
    np.testing.assert_allclose(found * signs, wanted[:, :3], rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_a_power_of_the_deviation_is_taken(power):
    x = np.asarray(correlated(), np.float64)
    view = whitening.fit(jnp.float32(x), 4, power=power)
    found = np.std((x - np.asarray(view.mean)) @ np.asarray(view.axes), axis=0)
    deviations = np.sqrt(np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1][:4])
    shares = (deviations / deviations[0]) ** (1 - power)
    np.testing.assert_allclose(found / found[0], shares, rtol=1e-3)


def test_rows_have_unit_length_and_the_mean_has_none():
    x = correlated()
    view = whitening.fit(x, 4)
    np.testing.assert_allclose(jnp.linalg.norm(whitening.apply(view, x), axis=1), 1.0, atol=1e-5)
    np.testing.assert_array_equal(whitening.apply(view, view.mean[None, :]), jnp.zeros((1, 4)))


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_no_scale_and_no_offset_changes_what_is_seen(scale):
    x = correlated()
    wanted = whitening.apply(whitening.fit(x, 3), x)
    found = whitening.apply(whitening.fit(scale * x, 3), scale * x)
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_directions_without_variance_are_not_blown_up():
    x = correlated(m=3)
    x = jnp.concatenate([x, x, jnp.ones((len(x), 2))], axis=1)  # rank 3 of 8
    view = whitening.fit(x, 6)
    assert np.isfinite(view.axes).all()
    y = jnp.dot(x - view.mean[None, :], view.axes, precision="highest")
    np.testing.assert_allclose(jnp.std(y, axis=0), [1, 1, 1, 0, 0, 0], atol=1e-3)
    constant = whitening.apply(whitening.fit(jnp.ones((5, 4)), 2), jnp.ones((5, 4)))
    np.testing.assert_array_equal(constant, jnp.zeros((5, 2)))


@pytest.mark.parametrize("d", [0, 7])
def test_more_axes_than_features_are_refused(d):
    with pytest.raises(ValueError, match="axes for 6 features, found"):
        whitening.fit(correlated(), d)


def test_a_row_at_the_mean_has_a_gradient():
    view = whitening.fit(correlated(), 4)
    found = jax.grad(lambda x: jnp.sum(whitening.apply(view, x)))(view.mean[None, :])
    assert jnp.isfinite(found).all()
