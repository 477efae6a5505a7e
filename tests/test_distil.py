"""A classifier that learns a posterior, and labels new rows by it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepclust_jax import distil, networks

KEY = jax.random.key(0)
NET = networks.mlp((32, 4))


def quadrants(n=500):
    z = jax.random.normal(KEY, (n, 2))
    return z, jax.nn.one_hot((z[:, 0] > 0).astype(int) + 2 * (z[:, 1] > 0), 4)


def test_the_classifier_learns_the_posterior():
    z, posterior = quadrants()
    found = distil.assign(distil.fit(KEY, NET, z, posterior, 800), NET, z)
    assert found.dtype == jnp.int32
    assert float(jnp.mean(found == jnp.argmax(posterior, axis=1))) > 0.97


def test_labels_do_not_depend_on_the_rows_beside():
    z, posterior = quadrants()
    labeller = distil.fit(KEY, NET, z, posterior, 100)
    whole = distil.assign(labeller, NET, z)
    np.testing.assert_array_equal(whole[37:41], distil.assign(labeller, NET, z[37:41]))


def test_codes_of_any_scale_and_place():
    """The classifier sees codes centred and scaled: units must not matter."""
    z, posterior = quadrants()
    far = 1e-4 * z + 1.0
    found = distil.assign(distil.fit(KEY, NET, far, posterior, 800), NET, far)
    assert float(jnp.mean(found == jnp.argmax(posterior, axis=1))) > 0.95


@pytest.mark.parametrize("value", [3.0, 0.1, 1e4])
def test_a_constant_feature_is_harmless(value):
    """Trap: the deviation of a constant is the rounding of its mean, and new rows over it are far
    away."""
    z, posterior = quadrants()
    z = jnp.concatenate([z, jnp.full((len(z), 1), value)], axis=1)
    labeller = distil.fit(KEY, NET, z, posterior, 300)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(labeller))
    new = z.at[:, -1].multiply(1.00001)
    found = distil.assign(labeller, NET, z)
    assert float(jnp.mean(distil.assign(labeller, NET, new) == found)) > 0.97


def test_fewer_rows_than_a_step_takes():
    z, posterior = quadrants(7)
    found = distil.assign(distil.fit(KEY, NET, z, posterior, 300), NET, z)
    np.testing.assert_array_equal(found, jnp.argmax(posterior, axis=1))


def test_several_clusterings_at_once():
    z, posterior = quadrants()
    halves = jnp.pad(posterior[:, ::2] + posterior[:, 1::2], ((0, 0), (0, 2)))
    both = jnp.stack([posterior, halves], axis=1)
    net = networks.mlp((32, 8))
    found = distil.logits(distil.fit(KEY, net, z, both, 800), net, z).reshape(-1, 2, 4)
    for h, wanted in enumerate((posterior, halves)):
        right = jnp.argmax(found[:, h], axis=1) == jnp.argmax(wanted, axis=1)
        assert float(jnp.mean(right)) > 0.97
