"""InfoGAN, ClusterGAN and BiGAN: their terms, whose gradient goes where, and what codes find."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepclust_jax import game, metrics, train
from deepclust_jax.algorithms import bi_gan, cluster_gan, gan, info_gan
from deepclust_jax.types import Batch

KEY = jax.random.key(0)
MODULES = {"info_gan": info_gan, "cluster_gan": cluster_gan, "bi_gan": bi_gan}
SMALL = {"n_clusters": 3, "embed_dim": 4, "hidden": (8,), "latent_dim": 5, "n_init": 2}


@pytest.fixture(params=MODULES)
def module(request):
    return MODULES[request.param]


def rows(n=24, d=6):
    return 1.0 + 2.0 * jax.random.normal(KEY, (n, d))


def batch(x):
    return Batch(x, jnp.arange(len(x)), jnp.ones(len(x)))


@functools.cache
def parts(module, **more):
    config = module.Config(**SMALL | more)
    algorithm = module.build(config, (6,))
    state = jax.jit(algorithm.init)(KEY, batch(rows()))
    return config, algorithm, state, module.build_nets(config, (6,))


@functools.cache
def loss_of(module, config, nets):
    return jax.jit(functools.partial(module.loss, nets=nets, config=config))


def total(module, config, nets, state, params, key=KEY):
    return loss_of(module, config, nets)(params, state, batch(rows()), key)


# --- codes


def test_clusters_are_drawn_by_the_prior(module):
    config = module.Config(**SMALL, prior=(6.0, 3.0, 1.0))
    z = np.asarray(module.latents(KEY, 20_000, config))
    codes = z[:, -3:]
    assert set(np.unique(codes)) == {0.0, 1.0} and (codes.sum(axis=1) == 1.0).all()
    np.testing.assert_allclose(codes.mean(axis=0), [0.6, 0.3, 0.1], atol=0.015)
    deviation = 0.1 if module is cluster_gan else 1.0
    np.testing.assert_allclose(z[:, :5].std(axis=0), deviation, rtol=0.05)
    even = np.asarray(module.latents(KEY, 20_000, module.Config(**SMALL)))[:, -3:]
    np.testing.assert_allclose(even.mean(axis=0), 1.0 / 3.0, atol=0.015)


def test_rows_of_a_cluster_can_be_asked_for(module):
    config, _, state, nets = parts(module)
    clusters = jnp.array([2, 0, 2, 1])
    z = module.latents(KEY, 4, config, clusters)
    np.testing.assert_array_equal(z[:, -3:].argmax(axis=1), clusters)
    made = jax.eval_shape(functools.partial(module.generate, nets=nets), state, z)
    assert made.shape == (4, 6)


@pytest.mark.parametrize(
    "prior", [(1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 1.0, float("nan")), (1e-300, 1.0, 1.0)]
)
def test_a_prior_that_does_not_fit(module, prior):
    with pytest.raises(ValueError, match="expected a prior of 3 sizes > 0, one for each cluster"):
        module.build(module.Config(**SMALL, prior=prior), (6,))


def test_rows_are_labelled_by_code_or_by_kmeans(module):
    config, algorithm, state, nets = parts(module)
    x = rows(90)
    state = algorithm.refresh(KEY, state, x)
    z = algorithm.embed(state, x)
    logits = game.read(state.params, z, nets, config)[1]
    np.testing.assert_array_equal(algorithm.assign(state, z), logits.argmax(axis=1))
    other = module.build(dataclasses.replace(config, labelled_by="kmeans"), (6,))
    near = jnp.linalg.norm(z[:, None] - state.centroids[None], axis=2).argmin(axis=1)
    np.testing.assert_array_equal(other.assign(state, z), near)
    with pytest.raises(ValueError, match="expected labelled_by code or kmeans, found 'size'"):
        module.build(dataclasses.replace(config, labelled_by="size"), (6,))


def test_priors_of_any_size_are_shares():
    """Trap: sizes beyond float32 become NaN."""
    for sizes in ((1e-50,) * 3, (1e308,) * 3, (5.0,) * 3):
        np.testing.assert_allclose(game.prior_of(sizes, 3), 1.0 / 3.0, rtol=1e-6)


# --- losses


@pytest.mark.parametrize("module", [info_gan, cluster_gan])
def test_the_code_is_told_by_cross_entropy(module):
    """The loss less that of a plain game is the weighted sum of both terms, written out."""
    config, _, state, nets = parts(module, weight=2.0)
    value, told = total(module, config, nets, state, state.params)
    z = np.asarray(module.latents(jax.random.split(KEY, 3)[0], 24, config))

    @jax.jit
    def read(params, z):
        made = nets.generator.apply(params["generator"], z)
        return game.read(params, nets.encoder.apply(params["encoder"], made), nets, config)

    found, logits = map(np.asarray, read(state.params, z))
    own = np.asarray(z)[:, -3:].argmax(axis=1)
    shares = np.asarray(jax.nn.softmax(logits))
    code = -np.log(shares[np.arange(24), own]).mean()
    np.testing.assert_allclose(told["code"], code, rtol=1e-5)
    if module is info_gan:
        style = np.mean((found - z[:, 5:7]) ** 2)
        np.testing.assert_allclose(told["style"], style, rtol=1e-5)
        extra = 2.0 * code + 0.1 * style
        zero = dataclasses.replace(config, weight=0.0, style_weight=0.0)
    else:
        noise = np.mean(np.sum((found - z[:, :5]) ** 2, axis=1))
        np.testing.assert_allclose(told["noise"], noise / (5 * 0.1**2), rtol=1e-4)
        extra = 2.0 * (code + noise)
        zero = dataclasses.replace(config, weight=0.0)
    plain = total(module, zero, nets, state, state.params)[0]
    np.testing.assert_allclose(value - plain, extra, rtol=1e-3)


def test_the_encoder_of_bi_gan_learns_from_real_rows_as_the_generator_from_made_ones():
    config, _, state, nets = parts(bi_gan, penalty=0.0)
    params = state.params
    grads = jax.jit(jax.grad(lambda p: total(bi_gan, config, nets, state, p)[0]))(params)

    def of_encoder(encoder):
        z = nets.encoder.apply(encoder, rows())
        noise, logits = game.read(params, z, nets, config)
        code = jnp.concatenate([noise, jax.nn.softmax(logits)], axis=1)
        seen = nets.discriminator.apply(params["discriminator"], rows(), code)
        return jnp.mean(jax.nn.softplus(seen))  # -log(1 - D(x, F(x)))

    expected = jax.jit(jax.grad(of_encoder))(params["encoder"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
        grads["encoder"], expected,
    )  # fmt: skip


def test_only_the_discriminator_moves_between(module):
    config, algorithm, state, _ = parts(module, ratio=2)
    new, _ = jax.jit(algorithm.step)(KEY, state, batch(rows()))

    def moved(name):
        pairs = zip(*(jax.tree.leaves(s.params[name]) for s in (state, new)), strict=True)
        return any(bool((a != b).any()) for a, b in pairs)

    found = {name for name in state.params if moved(name)}
    assert found == ({"encoder", "reader"} if module is info_gan else {"discriminator"})


def test_the_code_is_found_of_the_row_as_changed(module):
    config, _, state, nets = parts(module)
    shifted = nets._replace(change=lambda key, row: row + 3.0)
    one, other = (total(module, config, n, state, state.params)[1] for n in (nets, shifted))
    assert one["generator"] != other["generator"]
    if module is not bi_gan:
        assert one["code"] != other["code"]


def test_a_change_leaves_some_rows_as_they_are():
    """Trap: were all changed, made rows could look real only once they are."""
    change = game.sometimes(lambda key, row: row + 1.0)
    found = jax.jit(jax.vmap(change))(jax.random.split(KEY, 4000), jnp.zeros((4000, 2)))
    assert set(np.unique(found)) == {0.0, 1.0} and (found[:, 0] == found[:, 1]).all()
    assert float(found[:, 0].mean()) == pytest.approx(0.7, abs=0.03)
    assert game.sometimes(None) is None


# --- that codes are found


def fit_blobs(module, epochs, **more):
    """Three runs on three far blobs. -> accuracies of the codes, last metrics."""
    labels = np.random.default_rng(0).integers(0, 3, 600)
    centres = np.array([[3.0, 0.0], [-2.0, 2.5], [-2.0, -2.5]])
    x = np.float32(centres[labels] + 0.3 * np.random.default_rng(1).normal(size=(600, 2)))
    config = module.Config(3, embed_dim=8, hidden=(64,), penalty=0.1, n_init=2, **more)
    algorithm = module.build(config, (2,))
    keys = jax.random.split(KEY, 3)
    found = train.fit(keys, algorithm, x, epochs=epochs, batch_size=200, refresh_every=0)
    own = train.embed(algorithm, found.state, x)[1]
    return [metrics.accuracy(labels, one) for one in own], found.metrics


@pytest.mark.parametrize("module", [info_gan, cluster_gan])
def test_the_code_finds_the_clusters_of_far_blobs(module):
    scores, _ = fit_blobs(module, 150, latent_dim=4, learning_rate=2e-3)
    assert np.median(scores) > 0.9, scores


def test_the_encoder_of_bi_gan_inverts_its_generator():
    """With no more numbers than rows have: rows come back from their codes, which are sure."""
    scores, found = fit_blobs(bi_gan, 300, latent_dim=1)
    assert np.median(found["returned"][-1]) < 0.4 < found["returned"][0].min()
    assert np.median(found["sureness"][-1]) > 0.75
    assert np.median(scores) > 0.6, scores


def test_they_are_games_as_gan_is(module):
    """The same players and optimisers: fields that all have mean the same."""
    shared = {f.name: f.default for f in dataclasses.fields(gan.Config)}
    own = {f.name: f.default for f in dataclasses.fields(module.Config)}
    same = set(shared) & set(own) - {"latent_dim"}
    assert {"objective", "penalty", "ratio", "memory", "momentum"} <= same
    assert all(shared[name] == own[name] for name in same)
