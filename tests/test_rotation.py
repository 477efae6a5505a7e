"""Rotation prediction: the turns, the loss, and the traps of the task."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from deepclust_jax import augment, metrics, train
from deepclust_jax.algorithms import rotation
from deepclust_jax.clustering import kmeans, stability, whitening
from deepclust_jax.types import Batch

KEY = jax.random.key(0)
SMALL = rotation.Config(n_clusters=3, embed_dim=4, hidden=(8, 8), n_init=2)


def batch(x):
    return Batch(jnp.asarray(x), jnp.arange(len(x)), jnp.ones(len(x)))


@pytest.fixture(scope="module")
def small():
    """Networks for images of 8 x 8 places, and a state for six of them."""
    algorithm = rotation.build(SMALL, (8, 8, 1))
    state = jax.jit(algorithm.init)(KEY, batch(np.zeros((6, 8, 8, 1), np.float32)))
    return algorithm, state, rotation.build_nets(SMALL, (8, 8, 1))


def loss(nets):
    return jax.jit(functools.partial(rotation.loss, nets=nets, config=SMALL))


@pytest.fixture(scope="module")
def digits():
    """Digits, and a network that was trained on them for a little."""
    x, y = load_digits(return_X_y=True)
    x = (x[:600].reshape(-1, 8, 8, 1) / 16).astype(np.float32)
    config = rotation.Config(hidden=(8, 16), embed_dim=8, n_init=4)
    algorithm = rotation.build(config, x.shape[1:])
    found = train.fit(
        KEY, algorithm, x, epochs=30, batch_size=64, refresh_every=0, refresh_at_end=True
    )
    return x, y[:600], config, algorithm, found


def test_turns_are_exact():
    """Trap: borders or interpolation that tell how an image was turned."""
    x = jax.random.uniform(KEY, (3, 5, 5, 2))
    found = rotation.turns(x)
    for turn in range(4):
        np.testing.assert_array_equal(
            found[3 * turn : 3 * turn + 3], np.rot90(x, turn, axes=(1, 2))
        )
    again = rotation.turns(found)[12:24]  # once more: every pixel comes back
    np.testing.assert_array_equal(jnp.sort(found.ravel()), jnp.sort(again.ravel()))


def test_all_four_turns_of_each_image_are_in_the_batch_and_the_loss_is_their_mean(small):
    x = jax.random.uniform(KEY, (6, 8, 8, 1))
    _, state, nets = small
    value, terms = loss(nets)(state.params, state, batch(x), KEY)
    log_probabilities = jax.jit(lambda x: rotation.log_probabilities(state.params, x, nets))
    costs, hits = [], []
    for turn in range(4):
        log_p = np.asarray(log_probabilities(np.rot90(x, turn, axes=(1, 2))))
        costs += [-float(log_p[i, turn]) for i in range(6)]
        hits += [int(np.argmax(log_p[i])) == turn for i in range(6)]
    assert float(value) == pytest.approx(np.mean(costs), rel=1e-5)
    assert float(terms["rotation_accuracy"]) == pytest.approx(np.mean(hits))


def test_a_head_that_knows_nothing_has_the_loss_of_chance(small):
    x = jax.random.uniform(KEY, (6, 8, 8, 1))
    _, state, nets = small
    params = state.params | {"head": jax.tree.map(jnp.zeros_like, state.params["head"])}
    value, _ = loss(nets)(params, state, batch(x), KEY)
    assert float(value) == pytest.approx(np.log(4), rel=1e-6)


def test_images_without_an_upright_side_cannot_be_told(small):
    """Trap: classes that look alike however they are turned."""
    x = np.asarray(jax.random.uniform(KEY, (6, 8, 8, 1)))
    x = sum(np.rot90(x, turn, axes=(1, 2)) for turn in range(4))
    algorithm, state, nets = small
    step = jax.jit(algorithm.step)
    for _ in range(20):
        state, terms = step(KEY, state, batch(x))
    assert float(terms["loss"]) >= np.log(4) - 1e-3
    accuracy = jax.jit(lambda state, x: rotation.accuracy(state, x, nets))
    np.testing.assert_allclose(accuracy(state, x), 0.25)


def test_accuracy_by_image(digits):
    x, y, config, _, found = digits
    nets = rotation.build_nets(config, x.shape[1:])
    by_image = jax.jit(lambda state, x: rotation.accuracy(state, x, nets))(found.state, x)
    by_image = np.asarray(by_image)
    assert by_image.shape == (600,) and set(np.unique(by_image * 4)) <= set(range(5))
    assert by_image.mean() > 0.85
    by_digit = np.array([by_image[y == digit].mean() for digit in range(10)])
    assert by_digit[0] < by_digit[[2, 3, 4, 7]].min()  # a 0 is one whichever way it is turned


def test_features_are_whitened_and_clusters_are_nearest_centroids(digits):
    x, _, config, algorithm, found = digits
    state, nets = found.state, rotation.build_nets(config, x.shape[1:])
    z, labels = train.embed(algorithm, state, x)
    features = jax.jit(nets.blocks.apply)(state.params["encoder"], x)
    block = int(state.block)
    wanted = whitening.apply(whitening.fit(features[block], 8), features[block])
    np.testing.assert_allclose(np.abs(z), np.abs(wanted), atol=2e-2)
    np.testing.assert_array_equal(labels, kmeans.assign(z, state.centroids[block])[0])


def test_the_block_is_the_one_found_again_in_other_rows_or_the_one_asked_for(digits, monkeypatch):
    """Trap: the clusters of the last block are the tightest, and they are of turns."""
    x, _, config, _, found = digits
    # Which block is chosen does not depend on its clusters.
    monkeypatch.setattr(
        kmeans, "fit", lambda key, z, k, **more: types.SimpleNamespace(centroids=z[:k])
    )
    own = rotation.build(dataclasses.replace(config, block=2), x.shape[1:])
    assert int(train.refresh(KEY, own, found.state, x).block) == 1
    seen = []

    def noted(key, z, k, **more):
        seen.append((z.shape, k))
        return jnp.float32(len(seen) == most)

    monkeypatch.setattr(stability, "of_halves", noted)
    for most in (1, 2):  # which is the most stable
        seen.clear()
        again = rotation.build(config, x.shape[1:])
        assert int(train.refresh(KEY, again, found.state, x).block) == most - 1
    assert seen == [((len(x), config.embed_dim), config.n_clusters)] * 2


def test_clusters_know_more_of_digits_than_chance(digits):
    x, y, _, algorithm, found = digits
    labels = train.embed(algorithm, found.state, x)[1]
    assert metrics.external_scores(y, labels)["nmi"] > 0.35


def test_what_changes_an_image_comes_before_its_turns():
    x = jax.random.uniform(KEY, (4, 8, 8, 1))
    seen = []

    def noted(key, row):
        seen.append(row.shape)
        return augment.affine(key, row)

    algorithm = rotation.build(SMALL, x.shape[1:], augment=noted)
    jax.eval_shape(algorithm.step, KEY, jax.eval_shape(algorithm.init, KEY, batch(x)), batch(x))
    assert seen == [(8, 8, 1)]  # traced for one image, not for its turns


@pytest.mark.parametrize(
    "change, shape, words",
    [
        ({}, (8, 6, 1), r"expected square images \[h, h, c\], found rows of shape \(8, 6, 1\)"),
        ({}, (64,), r"expected square images \[h, h, c\], found rows of shape \(64,\)"),
        ({"network": "mlp"}, (8, 8, 1), "expected network 'conv', which has blocks, found 'mlp'"),
        ({"block": 3}, (8, 8, 1), "expected a block of 1 to 2, found 3"),
        ({"block": 0}, (8, 8, 1), "expected a block of 1 to 2, found 0"),
        ({"embed_dim": 99}, (8, 8, 1), "expected embed_dim <= 32, the features of a block, found"),
    ],
)
def test_what_cannot_work_is_refused(change, shape, words):
    config = dataclasses.replace(SMALL, **change)
    with pytest.raises(ValueError, match=words):
        rotation.build(config, shape).init(KEY, batch(np.zeros((4, *shape), np.float32)))
