"""Sizes of clusters while a method trains: even ones by Sinkhorn, and sizes as a prior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from deepclust_jax import losses, train
from deepclust_jax.algorithms import dcn, dec, dkm
from deepclust_jax.types import Batch

KEY = jax.random.key(0)
ALIKE = jnp.full(3, 1 / 3)


def uneven(n=300):
    """Three centroids on a line and rows of which 80 % are at the first; and their distances."""
    centroids = jnp.array([[0.0, 0.0], [4.0, 0.0], [8.0, 0.0]])
    own = jax.random.choice(KEY, 3, (n,), p=jnp.array([0.8, 0.15, 0.05]))
    z = centroids[own] + jax.random.normal(jax.random.key(1), (n, 2))
    return z, centroids, losses.squared_distances(z, centroids)


def test_free_sizes_cost_nothing():
    _, _, sqdist = uneven()
    np.testing.assert_array_equal(losses.prices(sqdist, jnp.ones(300), 2, "free", ALIKE), 0.0)


def test_even_shares_have_even_sizes():
    _, _, sqdist = uneven()
    found = losses.even_shares(-sqdist, jnp.ones(300))
    np.testing.assert_allclose(found.sum(0), 100.0, rtol=1e-2)
    np.testing.assert_allclose(found.sum(1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("sharpness", [1.0, 10.0, 100.0])
def test_clusters_far_apart_have_even_sizes_too(sharpness):
    """Trap: from prices of 0 Sinkhorn's iterations move sure rows by the thousand only."""
    centroids = jnp.array([[0.0, 0.0], [4.0, 0.0], [8.0, 0.0]])
    own = jnp.repeat(jnp.arange(3), jnp.array([210, 33, 13]), total_repeat_length=256)
    z = centroids[own] + 0.3 * jax.random.normal(KEY, (256, 2))
    sqdist, mask = losses.squared_distances(z, centroids), jnp.ones(256)
    shares = losses.even_shares(-sharpness * sqdist, mask)
    np.testing.assert_allclose(shares.sum(0), 256 / 3, atol=4)
    price = losses.prices(sqdist, mask, 2, "even", None)
    sizes = np.bincount(jnp.argmin(sqdist + price[None, :], axis=1), minlength=3)
    np.testing.assert_allclose(sizes, 256 / 3, atol=4)


def test_fewer_rows_than_clusters_go_where_they_are_nearest():
    """Trap: the last batch of an epoch may have one row, which has no even sizes."""
    _, _, sqdist = uneven()
    mask = jnp.zeros(300).at[0].set(1.0)
    np.testing.assert_array_equal(losses.prices(sqdist, mask, 2, "even", None), 0.0)
    np.testing.assert_allclose(
        losses.even_shares(-sqdist, mask)[0], jax.nn.softmax(-sqdist[0]), rtol=1e-5
    )


def test_even_shares_by_hand():
    """Two rows that both like the first cluster by log 3: one half each, by symmetry."""
    scores = jnp.log(jnp.array([[3.0, 1.0], [3.0, 1.0]]))
    np.testing.assert_allclose(losses.even_shares(scores, jnp.ones(2)), 0.5, atol=1e-6)


def test_padding_has_no_say_in_sizes():
    _, _, sqdist = uneven()
    mask = jnp.ones(300).at[250:].set(0.0)
    moved = sqdist.at[250:].set(jnp.array([[1e6, 0.0, 1e6]]))
    for sizes in ("even", "prior"):
        a = losses.prices(sqdist, mask, 2, sizes, jnp.array([0.5, 0.25, 0.25]))
        b = losses.prices(moved, mask, 2, sizes, jnp.array([0.5, 0.25, 0.25]))
        np.testing.assert_array_equal(a, b)


def test_sinkhorn_is_finite_at_any_temperature():
    """Trap: exp(score / 0.05) overflows in the plain form (swav#67)."""
    for scale in (1e-6, 1.0, 1e4, 1e8):
        scores = scale * jax.random.normal(KEY, (64, 5))
        found = losses.even_shares(scores, jnp.ones(64))
        assert jnp.isfinite(found).all(), scale


def test_a_prior_gives_the_posterior_of_a_mixture_of_equal_spheres():
    z, centroids, sqdist = uneven()
    shares = np.array([0.7, 0.2, 0.1])
    variance = float(jnp.mean(sqdist.min(1))) / 2
    density = [multivariate_normal(c, variance * np.eye(2)).pdf(z) for c in np.asarray(centroids)]
    price = losses.prices(sqdist, jnp.ones(300), 2, "prior", jnp.asarray(shares))
    found = jnp.argmin(sqdist + price[None, :], axis=1)
    np.testing.assert_array_equal(found, (shares[:, None] * np.stack(density)).argmax(0))


def test_prices_have_no_gradient():
    z, centroids, _ = uneven()

    def total(z, sizes):
        sqdist = losses.squared_distances(z, centroids)
        return losses.prices(sqdist, jnp.ones(300), 2, sizes, ALIKE).sum()

    for sizes in ("even", "prior"):
        np.testing.assert_array_equal(jax.grad(total)(z, sizes), 0.0)


def test_a_cluster_without_rows_is_not_lost_for_ever():
    """A prior of 0 is floored: log 0 would keep the cluster empty."""
    _, _, sqdist = uneven()
    price = losses.prices(sqdist, jnp.ones(300), 2, "prior", jnp.array([0.5, 0.5, 0.0]))
    assert jnp.isfinite(price).all() and price[2] > price[0]


@pytest.mark.parametrize("module", [dcn, dkm, dec])
@pytest.mark.parametrize("sizes", ["even", "prior"])
def test_every_centroid_method_trains_with_sizes(module, sizes):
    x = np.asarray(uneven()[0])
    config = module.Config(n_clusters=3, embed_dim=2, hidden=(16,), sizes=sizes)
    algorithm = module.build(config, (2,))
    found = train.fit(KEY, algorithm, x, epochs=4, batch_size=64)
    assert np.isfinite(found.metrics["loss"]).all()
    free = module.build(module.Config(n_clusters=3, embed_dim=2, hidden=(16,)), (2,))
    other = train.fit(KEY, free, x, epochs=4, batch_size=64)
    pairs = zip(
        jax.tree.leaves(found.state.params["encoder"]),
        jax.tree.leaves(other.state.params["encoder"]),
        strict=True,
    )
    assert any((a != b).any() for a, b in pairs), "the option does something"


def test_dcn_fills_its_clusters_where_sizes_are_even():
    z, centroids, _ = uneven()
    config = dcn.Config(n_clusters=3, embed_dim=2, hidden=(4,), sizes="even")
    batch = Batch(z, jnp.arange(300), jnp.ones(300))
    state = dcn.build(config, (2,)).init(KEY, batch).replace(centroids=centroids)
    sizes = np.bincount(dcn.nearest(z, state, batch.mask, config), minlength=3)
    free = np.bincount(jnp.argmin(losses.squared_distances(z, centroids), axis=1), minlength=3)
    assert sizes.max() < 150 and free.max() > 200


def test_dkm_counts_its_clusters_for_the_prior():
    x = np.asarray(uneven()[0])
    config = dkm.Config(n_clusters=3, embed_dim=2, hidden=(4,), sizes="prior")
    algorithm = dkm.build(config, (2,))
    state = algorithm.refresh(KEY, train.init(KEY, algorithm, x), jnp.asarray(x))
    labels = algorithm.assign(state, algorithm.embed(state, jnp.asarray(x)))
    np.testing.assert_allclose(state.frequency, np.bincount(labels, minlength=3) / 300, rtol=1e-6)


@pytest.mark.parametrize("module", [dcn, dkm, dec])
def test_unknown_sizes_are_refused(module):
    with pytest.raises(ValueError, match="expected sizes free, even, prior, found 'equal'"):
        module.build(module.Config(sizes="equal"), (2,))
