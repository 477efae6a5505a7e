"""What each algorithm promises beyond the contract, and the traps of published code."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepclust_jax import losses, train
from deepclust_jax.algorithms import autoencoder, dcn, dkm
from deepclust_jax.clustering import kmeans
from deepclust_jax.types import Batch

KEY = jax.random.key(0)
SMALL = {"n_clusters": 3, "embed_dim": 2, "hidden": (16,)}


def rows(n=60, d=6, seed=0):
    rng = np.random.default_rng(seed)
    centres = 4 * rng.normal(size=(3, d))
    return (centres[rng.integers(3, size=n)] + rng.normal(size=(n, d))).astype(np.float32)


def batch(x):
    return Batch(jnp.asarray(x), jnp.arange(len(x)), jnp.ones(len(x)))


# The same objects in all tests, so that each program is compiled once.
jitted = functools.cache(jax.jit)


@functools.cache
def built(module, config):
    return module.build(config, (6,)), module.build_nets(config, (6,))


@functools.cache
def loss_of(module, config):
    """The loss as a function of params, state, batch and key."""
    nets = built(module, config)[1]
    return jax.jit(functools.partial(module.loss, nets=nets, config=config))


FIRST = autoencoder.Config(**SMALL, n_init=3)


def started(module, config, x):
    """A state of the module that starts from a briefly trained autoencoder, and the algorithm."""
    first = built(autoencoder, FIRST)[0]
    pretrained = train.fit(KEY, first, x, epochs=20, refresh_every=0).state
    pretrained = first.refresh(KEY, pretrained, jnp.asarray(x))
    algorithm = built(module, config)[0]
    return algorithm, module.warm_start(train.init(KEY, algorithm, x), pretrained), pretrained


@pytest.mark.parametrize("module", [dcn, dkm])
def test_joint_training_starts_from_the_adaptive_clusters(module):
    """Trap: the autoencoder is clustered in one metric, and its successor goes on in another."""
    x = rows(300) @ np.diag([1.0, 30.0, 1.0, 1.0, 0.1, 1.0]).astype(np.float32)
    config = {**SMALL, "embed_dim": 4}
    first, _ = built(autoencoder, autoencoder.Config(**config, metric="adaptive"))
    pretrained = train.fit(KEY, first, x, epochs=5, refresh_every=0, refresh_at_end=True).state
    algorithm, nets = built(module, module.Config(**config))
    state = module.warm_start(train.init(KEY, algorithm, x), pretrained)
    z, wanted = train.embed(first, pretrained, x)
    found = train.embed(algorithm, state, x)[1]
    assert np.mean(found == wanted) > 0.95
    decode = jax.jit(nets.decoder.apply)
    both = [
        decode(params["decoder"], code)
        for params, code in (
            (pretrained.params, z),
            (state.params, jax.jit(nets.encoder.apply)(state.params["encoder"], x)),
        )
    ]
    np.testing.assert_allclose(*both, rtol=1e-3, atol=1e-3 * float(np.abs(both[0]).max()))


def test_autoencoder_loss_is_the_share_left_unexplained():
    """A decoder that returns the mean explains nothing, whatever the scale of the data."""
    params = train.init(KEY, built(autoencoder, FIRST)[0], rows()).params
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), params)
    for scale in (1.0, 1e3):
        x = scale * rows()
        params["decoder"]["params"]["Dense_1"]["bias"] = x.mean(0)
        value, metrics = loss_of(autoencoder, FIRST)(params, None, batch(x), KEY)
        np.testing.assert_allclose(value, 1.0, rtol=1e-5)
        np.testing.assert_allclose(metrics["reconstruction"], x.var(0).sum(), rtol=1e-4)


def test_autoencoder_refresh_is_kmeans_on_the_code():
    x = rows()
    algorithm = built(autoencoder, FIRST)[0]
    state = train.init(KEY, algorithm, x)
    state = algorithm.refresh(KEY, state, jnp.asarray(x))
    z = algorithm.embed(state, jnp.asarray(x))
    expected = kmeans.fit(KEY, z, 3, n_init=3)
    np.testing.assert_array_equal(state.centroids, expected.centroids)
    np.testing.assert_array_equal(algorithm.assign(state, z), expected.labels)


def test_dead_pixels_are_harmless():
    """Trap: features that never vary (the border of MNIST)."""
    x = rows()
    x[:, 2:4] = 0.0
    for module in (autoencoder, dcn, dkm):
        config = FIRST if module is autoencoder else module.Config(**SMALL)
        algorithm = built(module, config)[0]
        state = train.fit(KEY, algorithm, x, epochs=3, refresh_every=0).state
        state = algorithm.refresh(KEY, state, jnp.asarray(x))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_dcn_batched_update_equals_the_sequential_one():
    """Trap: the update in the published code's loop; ours moves all rows of a batch at once."""
    rng = np.random.default_rng(0)
    centroids, z = rng.normal(size=(4, 3)), rng.normal(size=(50, 3))
    labels, counts = rng.integers(4, size=50), np.full(4, 100.0)
    mask = np.ones(50)
    mask[40:] = 0
    one_by_one, seen = centroids.copy(), counts.copy()
    for i in range(40):
        k = labels[i]
        seen[k] += 1
        one_by_one[k] -= (one_by_one[k] - z[i]) / seen[k]
    moved, counted = jax.jit(dcn.move_centroids)(
        *(jnp.asarray(a, jnp.float32) for a in (centroids, counts, z)),
        jnp.asarray(labels),
        jnp.asarray(mask, jnp.float32),
    )
    np.testing.assert_allclose(moved, one_by_one, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(counted, seen)


def test_dcn_every_row_of_a_batch_counts():
    """Trap (DKM's repository): an op overwritten in a loop left 1 of 256 rows to move centroids."""
    x = rows()
    algorithm, state, _ = started(dcn, dcn.Config(**SMALL), x)
    assert float(state.counts.sum()) == 300.0
    state, _ = jitted(algorithm.step)(KEY, state, batch(x))
    assert float(state.counts.sum()) == 300.0 + len(x)


def test_dcn_no_gradient_reaches_the_centroids():
    x = rows()
    config = dcn.Config(**SMALL)
    _, state, _ = started(dcn, config, x)
    nets = built(dcn, config)[1]
    # Plain gradient descent: the first step of Adam shows the signs of a gradient alone.
    own_step = jax.jit(dcn.build(config, (6,), optimizer=optax.sgd(0.1)).step)
    state = state.replace(opt_state=optax.sgd(0.1).init(state.params))

    def of_centroids(centroids):
        moved = state.replace(centroids=centroids)
        return dcn.loss(state.params, moved, batch(x), KEY, nets=nets, config=config)[0]

    def step(centroids):
        return own_step(KEY, state.replace(centroids=centroids), batch(x))[0].params

    # The loss depends on them.
    assert np.abs(jax.jit(jax.grad(of_centroids))(state.centroids)).max() > 0
    changed = step(state.centroids + 1.0)
    assert any(
        (a != b).any()
        for a, b in zip(
            jax.tree.leaves(changed), jax.tree.leaves(step(state.centroids)), strict=True
        )
    )
    assert "centroids" not in state.params  # so no optimiser moves them

    # Nor does the step: its centroids are the running means alone.
    new, _ = own_step(KEY, state, batch(x))
    z = jitted(nets.encoder.apply)(new.params["encoder"], x)
    labels = losses.squared_distances(z, state.centroids).argmin(-1)
    moved, _ = dcn.move_centroids(state.centroids, state.counts, z, labels, jnp.ones(len(x)))
    np.testing.assert_allclose(new.centroids, moved, rtol=1e-5, atol=1e-6)


def test_dcn_loss_is_equation_4():
    x = rows()
    config = dcn.Config(**SMALL, weight=0.7)
    _, state, _ = started(dcn, config, x)
    nets = built(dcn, config)[1]
    value, _ = loss_of(dcn, config)(state.params, state, batch(x), KEY)
    z = np.asarray(jitted(nets.encoder.apply)(state.params["encoder"], x))
    x_hat = np.asarray(jitted(nets.decoder.apply)(state.params["decoder"], z))
    nearest = ((z[:, None] - np.asarray(state.centroids)) ** 2).sum(-1).min(1)
    expected = np.mean(((x - x_hat) ** 2).sum(1) + 0.7 / 2 * nearest)
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("module", [dcn, dkm])
def test_an_augmented_row_keeps_its_own_centroid(module):
    """Trap: assigned by its augmented code, a row that is thrown far away is pulled further."""
    x = rows()
    config = module.Config(**SMALL, weight=1.0)
    _, state, _ = started(module, config, x)
    nets = built(module, config)[1]
    encode, decode = jitted(nets.encoder.apply), jitted(nets.decoder.apply)
    centroids = state.params["centroids"] if module is dkm else state.centroids
    thrown = x[::-1].copy()  # every row becomes another one
    changed = batch(x)._replace(x=jnp.asarray(thrown), clean=jnp.asarray(x))
    _, metrics = loss_of(module, config)(state.params, state, changed, KEY)
    z, clean = (encode(state.params["encoder"], a) for a in (thrown, x))
    own = np.asarray(losses.squared_distances(clean, centroids)).argmin(1)
    expected = np.asarray(losses.squared_distances(z, centroids))[np.arange(len(x)), own].mean()
    np.testing.assert_allclose(metrics["pull"], expected, rtol=1e-3)
    # The reconstruction is that of the augmented row.
    x_hat = np.asarray(decode(state.params["decoder"], z))
    np.testing.assert_allclose(
        metrics["reconstruction"], ((x_hat - thrown) ** 2).sum(1).mean(), rtol=1e-5
    )


def test_dcn_augmentation_does_not_move_the_centroids():
    """The centroids are means of rows as they are, not of their augmentations."""
    x = rows()
    config = dcn.Config(**SMALL, learning_rate=0.0)
    _, state, _ = started(dcn, config, x)
    augmented = dcn.build(config, (6,), augment=lambda key, row: row + 5.0)
    plain, moved = (
        jax.jit(algorithm.step)(KEY, state, batch(x))[0]
        for algorithm in (built(dcn, config)[0], augmented)
    )
    np.testing.assert_array_equal(moved.centroids, plain.centroids)
    np.testing.assert_array_equal(moved.counts, plain.counts)


@pytest.mark.parametrize("module", [dcn, dkm])
def test_warm_start_keeps_networks_and_centroids(module):
    x = rows()
    _, state, pretrained = started(module, module.Config(**SMALL), x)
    found = state.params if module is dkm else {**state.params, "centroids": state.centroids}
    expected = {**pretrained.params, "centroids": pretrained.centroids}
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("module", [dcn, dkm])
def test_joint_training_makes_the_code_friendlier(module):
    """What both are for: codes nearer to their centroids, without losing the reconstruction."""
    x = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)  # no clusters to see
    config = dataclasses.replace(module.Config(**SMALL), weight=3.0, learning_rate=1e-2)
    algorithm, state, _ = started(module, config, x)
    found = train.fit(KEY, algorithm, x, epochs=160, state=state)

    def tightness(state):
        z = train.embed(algorithm, state, x)[0]
        means = kmeans.fit(KEY, z, 3, n_init=3)
        return float(means.inertia / np.sum((z - z.mean(0)) ** 2))

    assert tightness(found.state) < 0.9 * tightness(state)
    assert found.metrics["reconstruction"][-1] < found.metrics["reconstruction"][0]


def test_dkm_schedule():
    """a_1 = 0.1, a_{t+1} = 2^(1 / ln(t + 1)^2) a_t, with the natural logarithm (section 3.3)."""
    schedule = dkm.alphas(0.1, 40)
    np.testing.assert_allclose(schedule[:3], [0.1, 0.42, 0.75], atol=0.005)
    np.testing.assert_allclose(schedule[[19, 39]], [8.4, 28.1], rtol=0.01)


def test_dkm_alpha_rises_while_training():
    config = dkm.Config(**SMALL, alpha=0.1, annealed=True, epochs_per_alpha=2)
    found = train.fit(KEY, built(dkm, config)[0], rows(), epochs=6)
    expected = np.repeat(dkm.alphas(0.1, 3), 2)
    np.testing.assert_allclose(found.metrics["alpha"], expected, rtol=1e-5)


def test_dkm_cold_equals_kmeans():
    """At alpha = 1000 the gradient is that of hard k-means."""
    z, centroids = jax.random.normal(KEY, (20, 3)), jax.random.normal(jax.random.key(1), (4, 3))
    soft = jax.jit(jax.grad(lambda c: losses.soft_kmeans(z, c, 1000.0).sum()))(centroids)
    hard = jax.jit(jax.grad(lambda c: losses.squared_distances(z, c).min(-1).sum()))(centroids)
    np.testing.assert_allclose(soft, hard, rtol=1e-3, atol=1e-2)


def test_dkm_centroids_are_trained_by_the_optimiser():
    x = rows()
    algorithm, state, _ = started(dkm, dkm.Config(**SMALL), x)
    new, _ = jitted(algorithm.step)(KEY, state, batch(x))
    assert (new.params["centroids"] != state.params["centroids"]).any()


def test_dkm_collapse_shows():
    """Trap: at a temperature too high for the scale of the code all centroids meet."""
    x = rows()
    config = dkm.Config(**SMALL, weight=10.0, learning_rate=1e-1, alpha=1e-6)
    algorithm, state, _ = started(dkm, config, x)
    found = train.fit(KEY, algorithm, x, epochs=200, state=state)
    assert found.metrics["centroid_gap"][-1] < 0.2 * found.metrics["centroid_gap"][0]


@pytest.mark.parametrize("hidden", [(32,), (64, 16)])
def test_joint_training_starts_where_a_code_with_dead_directions_ended(hidden):
    """Trap: whitened rounding errors are larger than all else, and the start is noise."""
    from deepclust_jax import data

    x = data.load("digits", limit=600)[0].x
    config = autoencoder.Config(hidden=hidden, embed_dim=32, metric="adaptive")
    algorithm = autoencoder.build(config, x.shape[1:])
    state = train.fit(KEY, algorithm, x, epochs=60, refresh_every=0).state
    state = algorithm.refresh(KEY, state, jnp.asarray(x))
    z = np.asarray(algorithm.embed(state, jnp.asarray(x)))
    spread = np.linalg.svd(z - z.mean(axis=0), compute_uv=False)
    assert spread[-1] < 1e-5 * spread[0]  # else this tests nothing
    params, centroids = autoencoder.starting_point(state)
    nets = autoencoder.build_nets(config, x.shape[1:])

    def decoded(params):
        return nets.decoder.apply(params["decoder"], nets.encoder.apply(params["encoder"], x))

    np.testing.assert_allclose(decoded(params), decoded(state.params), atol=1e-3)
    before = algorithm.assign(state, jnp.asarray(z))
    after = kmeans.assign(nets.encoder.apply(params["encoder"], x), centroids)[0]
    assert np.mean(np.asarray(before) == np.asarray(after)) > 0.9


@pytest.mark.parametrize("hidden", [(128, 128, 512), (128, 64)])
def test_autoencoder_leaves_the_mean_of_the_data(hidden):
    """Trap: with a start too small a deep narrow network outputs the mean for ever (loss 1)."""
    from deepclust_jax import data

    x = data.load("digits")[0].x
    config = autoencoder.Config(hidden=hidden)
    keys = jax.random.split(KEY, 5)
    found = train.fit(keys, autoencoder.build(config, x.shape[1:]), x, epochs=20, refresh_every=0)
    assert (found.metrics["loss"][-1] < 0.75).all()
