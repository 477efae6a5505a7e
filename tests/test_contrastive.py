"""Contrastive features: views, batch normalisation, traps, and the clusters of their graph."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepclust_jax import augment, config, losses, networks, phases, run, stream, train
from deepclust_jax.algorithms import contrastive, dcn, info_max
from deepclust_jax.clustering import neighbors
from deepclust_jax.types import Batch

KEY = jax.random.key(0)
SMALL = contrastive.Config(
    n_clusters=3, embed_dim=4, hidden=(16, 8), n_layouts=1, layout_epochs=5, n_neighbors=5,
    classifier_steps=5,
)  # fmt: skip


def rows(n=40, d=5):
    return jax.random.normal(KEY, (n, d))


def batch(x, mask=None, partner=None):
    mask = jnp.ones(len(x)) if mask is None else mask
    return Batch(x, jnp.arange(len(x)), mask, partner=partner)


# --- views


def test_both_views_are_changed_and_differently():
    x = jnp.ones((6, 4))
    found = augment.pair(KEY, batch(x), augment.noise)
    np.testing.assert_array_equal(found.clean, x)
    assert (found.x != x).all() and (found.partner != x).all()
    assert (found.x != found.partner).all()
    assert len(np.unique(np.asarray(found.x)[:, 0])) == 6, "one draw for each row"


def test_the_second_view_is_of_the_neighbour():
    x, partner = jnp.zeros((6, 4)), jnp.full((6, 4), 9.0)
    for change in (None, augment.noise):
        found = augment.pair(KEY, batch(x, partner=partner), change)
        np.testing.assert_allclose(found.partner, partner, atol=1.0)
        np.testing.assert_allclose(found.x, x, atol=1.0)


def test_noise_is_as_large_as_the_distance_of_a_pair():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(400, 30)), jnp.float32)
    for scale in (1.0, 50.0):  # whatever the scale of the rows
        own, partner = scale * x, scale * (x + 0.3)
        found = augment.pair(KEY, batch(own, partner=partner), noise_share=2.0)
        np.testing.assert_array_equal(found.clean, own)
        for view, before in ((found.x, own), (found.partner, partner)):
            np.testing.assert_allclose(np.std(view - before), scale * 0.6, rtol=0.02)
        assert (
            abs(np.corrcoef((found.x - own).ravel(), (found.partner - partner).ravel())[0, 1])
            < 0.03
        )
    # Rows that do not count give no scale, and change no other row's draw.
    rows_, mask = jnp.concatenate([x, 1e6 * x]), jnp.concatenate([jnp.ones(400), jnp.zeros(400)])
    padded = Batch(rows_, jnp.arange(800), mask, partner=rows_ + 0.3)
    both = augment.pair(KEY, padded, noise_share=1.0)
    np.testing.assert_allclose(np.std(both.x[:400] - x), 0.3, rtol=0.02)
    # Beside an augmentation it is added to the changed row.
    one = augment.pair(KEY, batch(x, partner=x + 0.3), lambda key, row: row + 10.0, 1.0)
    np.testing.assert_allclose(np.mean(one.x - x), 10.0, atol=0.02)
    np.testing.assert_allclose(np.std(one.x - x), 0.3, rtol=0.02)
    # Pairs of equal rows have none.
    np.testing.assert_array_equal(augment.pair(KEY, batch(x, partner=x), noise_share=2.0).x, x)


def test_a_batch_without_neighbours_pairs_each_row_with_itself():
    x = rows()
    np.testing.assert_array_equal(augment.pair(KEY, batch(x), None).partner, x)


# --- batch normalisation


def normalised(kind="mlp", shape=(5,)):
    return networks.normalised_encoder(kind, shape, (16, 8), 4)


@pytest.mark.parametrize("kind, shape", [("mlp", (5,)), ("mlp", (4, 5, 1)), ("conv", (9, 11, 1))])
def test_rows_that_were_measured_have_the_codes_of_their_batch(kind, shape):
    net, x = normalised(kind, shape), jax.random.normal(KEY, (30, *shape))
    params = net.init(KEY, x)
    statistics = net.measure(params, x)
    np.testing.assert_allclose(
        net.fixed(params, statistics, x), net.apply(params, x), rtol=1e-3, atol=1e-4
    )


def test_a_row_has_a_code_of_its_own():
    """Trap: with statistics of the batch a row's code depends on the rows beside it."""
    net, x = normalised(), rows()
    params = net.init(KEY, x)
    statistics = net.measure(params, x)
    alone = net.fixed(params, statistics, x[3:4])
    np.testing.assert_allclose(alone[0], net.fixed(params, statistics, x)[3], rtol=1e-5, atol=1e-6)
    assert jnp.abs(net.apply(params, x[3:5])[0] - net.apply(params, x)[3]).max() > 0.01


def test_padding_changes_no_statistics():
    net, x = normalised(), rows()
    params = net.init(KEY, x)
    padded = jnp.concatenate([x, jnp.full((8, 5), 1e3)])
    mask = jnp.concatenate([jnp.ones(40), jnp.zeros(8)])
    found = net.apply(params, padded, mask)[:40]
    np.testing.assert_allclose(found, net.apply(params, x), rtol=1e-4, atol=1e-5)


def test_a_batch_of_one_row_is_finite():
    """The last batch of an epoch may hold one row, whose variance is 0."""
    algorithm = contrastive.build(SMALL, (5,))
    x, mask = rows(8), jnp.zeros(8).at[0].set(1.0)
    state = jax.jit(algorithm.init)(KEY, batch(x))
    new, found = jax.jit(algorithm.step)(KEY, state, batch(x, mask))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((new, found)))


def test_first_layer_output_has_mean_zero_and_variance_one():
    """Worked: a network without a hidden activation that clips is linear in the normalised rows."""
    net = networks.normalised_encoder("mlp", (3,), (2,), 2)
    x = rows(200, 3)
    params = net.init(KEY, x)
    dense, last = params["params"]["Dense_0"], params["params"]["Dense_1"]
    hidden = x @ dense["kernel"]
    hidden = (hidden - hidden.mean(0, keepdims=True)) / jnp.sqrt(
        hidden.var(0, keepdims=True) + 1e-5
    )
    expected = jax.nn.relu(hidden) @ last["kernel"] + last["bias"][None, :]
    np.testing.assert_allclose(net.apply(params, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("conv", (7,), (8,), 2), "expected rows"),
        (("cnn", (7,), (8,), 2), "'mlp' or 'conv'"),
    ],
)
def test_bad_networks(arguments, message):
    with pytest.raises(ValueError, match=message):
        networks.normalised_encoder(*arguments)


# --- the algorithm


def measured(config, state, x):
    """The state with statistics for rows x, as `refresh` takes them, without its clustering."""
    encoder = contrastive.build_nets(config, x.shape[1:]).encoder
    statistics = contrastive.measured(encoder, state.params["encoder"], x)
    return state.replace(statistics=statistics)


def test_features_have_length_one():
    algorithm = contrastive.build(SMALL, (5,))
    z = jax.jit(algorithm.embed)(jax.jit(algorithm.init)(KEY, batch(rows())), rows())
    np.testing.assert_allclose(jnp.linalg.norm(z, axis=1), 1.0, rtol=1e-5)


def test_refresh_fixes_the_statistics():
    algorithm = contrastive.build(SMALL, (5,))
    x = rows(64)
    state = train.fit(KEY, algorithm, x, epochs=2, batch_size=16, refresh_every=0).state
    # Of what a refresh finds the statistics alone are compiled.
    statistics = jax.jit(lambda *args: algorithm.refresh(*args).statistics)(KEY, state, x)
    again = state.replace(statistics=statistics)
    nets = contrastive.build_nets(SMALL, (5,))
    encode = jax.jit(lambda params, x: losses.unit_length(nets.encoder.apply(params, x)))
    expected = encode(state.params["encoder"], x)
    found = jax.jit(algorithm.embed)(again, x)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_a_pair_is_drawn_together():
    """The loss pulls a row to its neighbour: after training they are nearer than others are."""
    x = jax.random.normal(KEY, (64, 8))
    near = jnp.arange(64)[:, None] ^ 1  # pairs (0, 1), (2, 3), ... that have nothing else in common
    wide = dataclasses.replace(SMALL, hidden=(64, 64))
    algorithm = contrastive.build(wide, (8,), optimizer=optax.adam(3e-3))
    found = train.fit(KEY, algorithm, x, epochs=60, batch_size=64, neighbors=near, refresh_every=0)
    z = algorithm.embed(measured(wide, found.state, x), x)
    cosine = z @ z.T
    of_pairs = jnp.mean(cosine[jnp.arange(64), near[:, 0]])
    assert of_pairs > 0.6 and abs(float(jnp.mean(cosine))) < 0.2
    assert found.metrics["alignment"][-1] > found.metrics["alignment"][0] + 0.3
    assert found.metrics["loss"][-1] < 0.8 * found.metrics["loss"][0]


def test_features_do_not_collapse():
    """Trap: all rows at one point align every pair perfectly."""
    x = rows(128, 6)
    near = neighbors.nearest(x, 3).index
    algorithm = contrastive.build(SMALL, (6,))
    found = train.fit(KEY, algorithm, x, epochs=20, batch_size=64, neighbors=near, refresh_every=0)
    z = algorithm.embed(measured(SMALL, found.state, x), x)
    assert jnp.linalg.norm(jnp.mean(z, axis=0)) < 0.7
    assert jnp.linalg.matrix_rank(z - z.mean(0, keepdims=True), rtol=0.05) >= 3


def options(method, *more):
    args = ["--method", method, "--n-clusters", "3", "--epochs", "1", "--hidden", "8", *more]
    return config.resolve(config.parse([*args, "--seeds", "1"]))


@pytest.mark.parametrize("method", ["contrastive", "info_max"])
def test_neighbours_of_rows_that_do_not_fit_are_refused(monkeypatch, method):
    """Before anything is trained, and before anything is written."""
    monkeypatch.setattr(stream, "fits_on_device", lambda x: False)
    monkeypatch.setattr(stream, "_SAMPLE", 10)
    monkeypatch.setattr(train, "fit", None)
    x = np.zeros((20, 3), np.float32)
    for call in (phases.check, run.execute):
        with pytest.raises(config.ConfigError, match="use --limit 10") as error:
            call(options(method), x)
        assert "\n" not in str(error.value)
    phases.check(options("dcn"), x)
    phases.check(options(method), x[:10])


def test_pairs_are_by_rows_first_and_then_by_the_features(monkeypatch):
    x, given, fit = np.asarray(rows(40)), [], train.fit

    def noted(*args, neighbors, **more):
        given.append(neighbors)
        return fit(*args, neighbors=neighbors, **more)

    monkeypatch.setattr(train, "fit", noted)
    found = run.execute(options("info_max", "--pretrain-epochs", "1"), x)
    features = train.embed(*found.start, x)[0][0]
    np.testing.assert_array_equal(given[0], neighbors.nearest(x, 5).index)
    np.testing.assert_array_equal(given[1][0], neighbors.nearest(features, 5).index)
    assert (np.asarray(given[0]) != np.asarray(given[1][0])).any()


def test_views_of_images_are_scaled_and_sheared(monkeypatch):
    """More than by the affine change of the other methods, in both phases."""
    for method, n in (("contrastive", 1), ("info_max", 2), ("dcn", 0)):
        seen = []
        for module in (contrastive, info_max, dcn):
            build = module.build

            def noted(*args, augment=None, build=build, seen=seen, **more):
                seen.append(augment)
                return build(*args, augment=augment, **more)

            monkeypatch.setattr(module, "build", noted)
        phases.of(options(method, "--augment", "affine"), (20, 8, 8, 1))
        assert seen.count(phases._WIDE) == n and seen
        monkeypatch.undo()


def test_partners_of_few_rows():
    found = run.partners(np.asarray(rows(4)))
    assert found.shape == (4, 3)


def test_noise_without_partners_is_refused():
    rows = Batch(jnp.ones((3, 2)), jnp.arange(3), jnp.ones(3))
    with pytest.raises(ValueError, match="found none; give train.fit neighbors="):
        augment.pair(KEY, rows, None, 2.0)
