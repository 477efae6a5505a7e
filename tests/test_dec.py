"""DEC and IDEC: the equations, and the traps of published code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from deepclust_jax import losses, train
from deepclust_jax.algorithms import autoencoder, dec
from deepclust_jax.types import Batch

KEY = jax.random.key(0)
SMALL = {"n_clusters": 3, "embed_dim": 2, "hidden": (16,)}
DEC = {**SMALL, "weight": 1.0, "reconstruction": 0.0}


def rows(n=60, d=6, seed=0):
    rng = np.random.default_rng(seed)
    centres = 4 * rng.normal(size=(3, d))
    return (centres[rng.integers(3, size=n)] + rng.normal(size=(n, d))).astype(np.float32)


def batch(x, index=None):
    index = jnp.arange(len(x)) if index is None else jnp.asarray(index)
    return Batch(jnp.asarray(x), index, jnp.ones(len(x)))


# The same objects in all tests, so that each program is compiled once.
FIRST = autoencoder.build(autoencoder.Config(**SMALL, n_init=3), (6,))
jitted = functools.cache(jax.jit)
built = functools.cache(dec.build)
nets_of = functools.cache(dec.build_nets)


@functools.cache
def loss_of(config):
    """The loss as a function of params, state, batch and key, and its gradient."""
    loss = functools.partial(dec.loss, nets=nets_of(config, (6,)), config=config)
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def started(config, x, **changes):
    """An algorithm, and its state after a briefly trained autoencoder and a first refresh."""
    pretrained = train.fit(KEY, FIRST, x, epochs=20, refresh_every=0, refresh_at_end=True).state
    algorithm = built(config, (6,), **changes)
    state = dec.warm_start(train.init(KEY, algorithm, x), pretrained)
    return algorithm, jitted(algorithm.refresh)(KEY, state, jnp.asarray(x)), pretrained


def shares_by_numpy(z, centroids):
    z, centroids = (np.asarray(a, np.float64) for a in (z, centroids))
    q = 1 / (1 + ((z[:, None] - centroids[None]) ** 2).sum(-1))
    return q / q.sum(1, keepdims=True)


def targets_by_numpy(q):
    p = q**2 / q.sum(0)
    return p / p.sum(1, keepdims=True)


def test_shares_and_targets_by_hand():
    """Two codes, two centroids: distances 0, 3 and 3, 0 squared and one row between."""
    z = jnp.array([[0.0], [1.0]])
    centroids = jnp.array([[0.0], [2.0]])
    q = jnp.exp(losses.log_student_t(z, centroids))
    np.testing.assert_allclose(q, [[5 / 6, 1 / 6], [0.5, 0.5]], rtol=1e-6)  # 1 : 1/5, 1/2 : 1/2
    p = losses.sharpened(jnp.log(q), jnp.sum(q, axis=0))
    first = np.array([(5 / 6) ** 2 / (4 / 3), (1 / 6) ** 2 / (2 / 3)])
    second = np.array([0.25 / (4 / 3), 0.25 / (2 / 3)])
    np.testing.assert_allclose(p, [first / first.sum(), second / second.sum()], rtol=1e-6)
    # A mean in place of a sum changes nothing.
    np.testing.assert_allclose(losses.sharpened(jnp.log(q), jnp.mean(q, axis=0)), p, rtol=1e-6)


def test_divergence_by_hand():
    p, q = jnp.array([[0.5, 0.5], [1.0, 0.0]]), jnp.array([[0.25, 0.75], [0.5, 0.5]])
    expected = [0.5 * np.log(2) + 0.5 * np.log(2 / 3), np.log(2)]
    np.testing.assert_allclose(losses.divergence(p, jnp.log(q)), expected, rtol=1e-6)
    grad = jax.grad(lambda log_q: losses.divergence(p, log_q).sum())(jnp.log(q))
    np.testing.assert_allclose(grad, -p)


def test_gradients_of_the_shares():
    z, centroids = jax.random.normal(KEY, (5, 3)), jax.random.normal(jax.random.key(1), (4, 3))
    check_grads(jax.jit(losses.log_student_t), (z, centroids), 1, ["rev"], atol=1e-2, rtol=1e-2)


def test_far_codes_are_finite():
    """Trap: a logarithm without an epsilon, of a share that underflows."""
    centroids = jnp.array([[0.0, 0.0], [1.0, 0.0]])

    def value(z):
        log_q = losses.log_student_t(z, centroids)
        p = losses.sharpened(log_q, jnp.array([1.0, 0.0]))  # a cluster that no row has a share in
        return losses.divergence(jax.lax.stop_gradient(p), log_q).sum()

    both = jax.jit(jax.value_and_grad(value))
    for size in (0.0, 1.0, 1e6, 1e15):
        found, grad = both(np.full((1, 2), size, np.float32))
        assert jnp.isfinite(found) and jnp.isfinite(grad).all(), size


@functools.cache
def targets_of(nets, config):
    return jax.jit(lambda *args: dec.targets(*args, nets, config))


def targets(state, x, nets, **changes):
    found = targets_of(nets, dec.Config(**SMALL, **changes))
    return np.asarray(found(state.snapshot, jnp.asarray(x), jnp.ones(len(x))))


def test_targets_are_over_all_rows_and_not_over_the_batch():
    """Trap: sums over the batch give weaker targets that drift."""
    x = rows()
    algorithm, state, _ = started(dec.Config(**SMALL), x)
    nets = nets_of(dec.Config(**SMALL), (6,))
    z = train.embed(algorithm, state, x)[0]
    expected = targets_by_numpy(shares_by_numpy(z, state.params["centroids"]))
    few = slice(7, 12)
    found = targets(state, x[few], nets)
    np.testing.assert_allclose(found, expected[few], rtol=1e-4, atol=1e-6)
    of_batch = targets_by_numpy(shares_by_numpy(z[few], state.params["centroids"]))
    assert np.abs(of_batch - expected[few]).max() > 0.01  # else this tests nothing


def test_targets_stay_between_refreshes_whatever_the_order_of_rows():
    """Trap: targets of a shuffled batch, looked up by their place in it."""
    x = rows()
    config = dec.Config(**SMALL, learning_rate=1e-2)
    algorithm, state, _ = started(config, x)
    nets = nets_of(config, (6,))
    before = np.asarray(targets(state, x, nets))
    order = np.random.default_rng(0).permutation(len(x))
    new, _ = jitted(algorithm.step)(KEY, state, batch(x[order], order))
    moved = [
        (a != b).any()
        for a, b in zip(*map(jax.tree.leaves, (new.params, state.params)), strict=True)
    ]
    assert all(moved)
    after = np.asarray(targets(new, x[order], nets))
    np.testing.assert_allclose(after, before[order], rtol=1e-6)
    renewed = jitted(algorithm.refresh)(KEY, new, jnp.asarray(x))
    found = np.asarray(targets(renewed, x, nets))
    assert np.abs(found - before).max() > 1e-4


def test_no_gradient_flows_through_the_targets():
    """Trap: with a gradient through p the shares are made alike, not sharper."""
    x = rows()
    config = dec.Config(**DEC)
    _, state, _ = started(config, x)
    nets = nets_of(config, (6,))

    def of_snapshot(snapshot):
        moved = state.replace(snapshot=snapshot)
        return dec.loss(state.params, moved, batch(x), KEY, nets=nets, config=config)[0]

    for leaf in jax.tree.leaves(jax.jit(jax.grad(of_snapshot))(state.snapshot)):
        np.testing.assert_array_equal(leaf, 0.0)
    p = targets(state, x, nets)

    def with_constants(params):
        z = nets.encoder.apply(params["encoder"], x)
        return jnp.mean(losses.divergence(p, losses.log_student_t(z, params["centroids"])))

    _, found = loss_of(config)(state.params, state, batch(x), KEY)
    expected = jax.jit(jax.grad(with_constants))(state.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), found, expected
    )


def test_weights_are_on_their_own_terms():
    """Trap (in many copies): gamma on the reconstruction in place of the divergence."""
    x = rows()
    config = dec.Config(**SMALL, weight=0.3, reconstruction=2.0)
    _, state, _ = started(config, x)
    nets = nets_of(config, (6,))
    (value, metrics), _ = loss_of(config)(state.params, state, batch(x), KEY)
    z = np.asarray(jitted(nets.encoder.apply)(state.params["encoder"], x))
    x_hat = np.asarray(jitted(nets.decoder.apply)(state.params["decoder"], z))
    q = shares_by_numpy(z, state.params["centroids"])
    p = targets_by_numpy(q)
    kl = np.mean((p * np.log(p / q)).sum(1))  # a mean over rows, a sum over clusters
    error = np.mean(((x - x_hat) ** 2).sum(1))
    np.testing.assert_allclose(metrics["divergence"], kl, rtol=1e-3)
    np.testing.assert_allclose(metrics["reconstruction"], error, rtol=1e-4)
    np.testing.assert_allclose(value, 0.3 * kl + 2.0 * error / x.var(0).sum(), rtol=1e-3)


def test_dec_has_no_decoder():
    x = rows()
    algorithm, state, _ = started(dec.Config(**DEC), x)
    new, metrics = jitted(algorithm.step)(KEY, state, batch(x))
    assert set(metrics) == {"loss", "divergence"}
    jax.tree.map(np.testing.assert_array_equal, new.params["decoder"], state.params["decoder"])


def test_centroids_are_trained_at_the_same_rate():
    """Trap: centroids left to k-means, or at a rate of their own."""
    x = rows()
    config = dec.Config(**DEC)
    rate = optax.sgd(0.5)
    algorithm, state, _ = started(config, x, optimizer=rate)
    _, grad = loss_of(config)(state.params, state, batch(x), jax.random.key(5))
    new, _ = jitted(algorithm.step)(KEY, state, batch(x))
    for name in ("centroids", "encoder"):
        jax.tree.map(
            lambda a, b, g: np.testing.assert_allclose(a, b - 0.5 * g, rtol=1e-5, atol=1e-6),
            new.params[name], state.params[name], grad[name],
        )  # fmt: skip
    assert np.abs(grad["centroids"]).max() > 0


def test_warm_start_keeps_networks_and_centroids():
    x = rows()
    _, state, pretrained = started(dec.Config(**SMALL), x)
    expected = {**pretrained.params, "centroids": pretrained.centroids}
    jax.tree.map(np.testing.assert_array_equal, state.params, expected)


def test_an_augmented_row_has_the_targets_of_the_row_as_it_was():
    x = rows()
    config = dec.Config(**DEC)
    _, state, _ = started(config, x)
    nets = nets_of(config, (6,))
    thrown = jnp.asarray(x[::-1].copy())
    changed = batch(x)._replace(x=thrown, clean=jnp.asarray(x))
    (_, metrics), _ = loss_of(config)(state.params, state, changed, KEY)
    encode = jitted(nets.encoder.apply)
    z, clean = (encode(state.params["encoder"], a) for a in (thrown, jnp.asarray(x)))
    p = targets_by_numpy(shares_by_numpy(clean, state.params["centroids"]))
    q = shares_by_numpy(z, state.params["centroids"])
    np.testing.assert_allclose(metrics["divergence"], (p * np.log(p / q)).sum(1).mean(), rtol=1e-3)


@pytest.mark.parametrize("config", [dec.Config(**DEC), dec.Config(**SMALL)], ids=["dec", "idec"])
def test_training_makes_rows_surer(config):
    x = rows(200)
    algorithm, state, _ = started(config, x)
    found = train.fit(KEY, algorithm, x, epochs=60, batch_size=50, state=state).state

    def sureness(state):
        log_q = losses.log_student_t(train.embed(algorithm, state, x)[0], state.params["centroids"])
        return float(jnp.mean(jnp.max(jnp.exp(log_q), axis=1)))

    assert sureness(found) > sureness(state) + 0.02


def test_targets_of_even_sizes_and_of_sizes_as_they_are():
    x = rows()
    _, state, _ = started(dec.Config(**SMALL), x)
    nets = nets_of(dec.Config(**SMALL), (6,))
    even = targets(state, x, nets, sizes="even")
    np.testing.assert_allclose(even.sum(0), len(x) / SMALL["n_clusters"], rtol=1e-3)
    q = shares_by_numpy(
        jitted(nets.encoder.apply)(state.params["encoder"], x), state.params["centroids"]
    )
    expected = q**2 / (q**2).sum(1, keepdims=True)
    np.testing.assert_allclose(targets(state, x, nets, sizes="prior"), expected, atol=1e-5)
