"""Turns and the points of a mixture: targets, their matching, and what both tasks leave."""

import dataclasses
import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from deepclust_jax import config, metrics, phases, run, train
from deepclust_jax.algorithms import mmdc
from deepclust_jax.report import pretext
from deepclust_jax.types import Batch

KEY = jax.random.key(0)
SMALL = mmdc.Config(n_clusters=3, embed_dim=4, hidden=(8,))
NETS = mmdc.build_nets(SMALL, (6, 6, 1))


@functools.cache
def started():
    """A state for images of 6 x 6 places, of as many as there may be."""
    x = jnp.zeros((6, 6, 6, 1))
    algorithm = mmdc.build(SMALL, x.shape[1:])
    return jax.jit(algorithm.init)(KEY, Batch(x, jnp.arange(6), jnp.ones(6)))


def test_targets_are_of_the_mixture():
    config = dataclasses.replace(SMALL, sigma=0.15)
    draw = jax.jit(jax.vmap(lambda key: mmdc.targets(key, 40, config)))
    t = np.asarray(draw(jax.random.split(KEY, 300)))
    component = t.argmax(axis=2)
    counts = np.stack([(component == j).sum(axis=1) for j in range(3)], axis=1)
    assert set(counts.ravel()) == {13, 14}, "of one size"
    assert (np.ptp(counts.mean(axis=0)) < 0.3).all(), "one more of each in turn"
    for j in range(3):
        own = t[component == j]
        np.testing.assert_allclose(own.mean(axis=0), np.eye(3)[j], atol=0.02)
        np.testing.assert_allclose(own.std(axis=0), 0.15, rtol=0.05)
    for m in (4, 10, 29):  # however many rows count
        some = np.stack([(component[:, :m] == j).sum(axis=1) for j in range(3)], axis=1)
        assert np.ptp(some, axis=1).max() <= 1


def test_the_matching_is_the_best_of_all_permutations():
    y, t = jax.random.normal(KEY, (6, 3)), jax.random.normal(jax.random.key(1), (6, 3))
    found = mmdc.matched(y, t, jnp.ones(6))
    costs = {p: float(((y - t[jnp.array(p)]) ** 2).sum()) for p in itertools.permutations(range(6))}
    best = min(costs, key=costs.get)
    np.testing.assert_array_equal(found, t[jnp.array(best)])


def test_rows_that_count_share_the_first_targets_whatever_padding_is():
    """Trap: a short batch whose rows choose among the targets of a full one may all be of one
    cluster."""
    t = jnp.eye(3)[jnp.array([0, 1, 2, 0, 0, 0])]
    y = jnp.eye(3)[jnp.array([0, 2, 0, 0, 1, 1])] * 5.0
    mask = jnp.array([1.0, 0.0, 1.0, 0.0, 1.0, 0.0])
    found = np.asarray(mmdc.matched(y, t, mask))[np.array([0, 2, 4])]
    np.testing.assert_array_equal(found[2], np.eye(3)[1])
    np.testing.assert_array_equal(np.sort(found.argmax(axis=1)), [0, 1, 2])
    one_cluster = jnp.zeros((60, 3)).at[:, 0].set(1.0)
    for m in (60, 20, 6):
        own = mmdc.matched(one_cluster, mmdc.targets(KEY, 60, SMALL), jnp.arange(60.0) < m)
        sizes = np.bincount(np.asarray(own[:m]).argmax(axis=1), minlength=3)
        assert np.ptp(sizes) <= 1 and sizes.sum() == m


def test_padding_changes_neither_loss_nor_gradient():
    """Trap: rows of padding that take a target away or are turned with the others."""
    x = jax.random.uniform(KEY, (8, 6, 6, 1))
    mask = jnp.ones(8).at[5:].set(0.0)
    state = started()

    @jax.jit
    @jax.value_and_grad
    def of(x):
        batch = Batch(x, jnp.arange(8), mask)
        return mmdc.loss(state.params, state, batch, KEY, nets=NETS, config=SMALL)[0]

    other = x.at[5:].set(7.0)
    (one, slope), (two, _) = of(x), of(other)
    np.testing.assert_allclose(one, two, rtol=1e-5)
    assert float(jnp.abs(slope[5:]).max()) == 0.0


def test_the_loss_is_what_it_says():
    x = jax.random.uniform(KEY, (6, 6, 6, 1))
    nets = NETS
    batch = Batch(x, jnp.arange(6), jnp.ones(6))
    state = started()
    encode, head, turns = (jax.jit(net.apply) for net in (nets.encoder, nets.head, nets.turns))

    @functools.partial(jax.jit, static_argnums=0)
    def of(weight):
        config = dataclasses.replace(SMALL, weight=weight)
        return mmdc.loss(state.params, state, batch, KEY, nets=nets, config=config)

    value, terms = of(0.0)
    z = encode(state.params["encoder"], x)
    y = head(state.params["head"], z)
    t = mmdc.matched(y, mmdc.targets(KEY, 6, SMALL), jnp.ones(6))
    np.testing.assert_allclose(value, ((y - t) ** 2).sum(axis=1).mean(), rtol=1e-5)
    np.testing.assert_allclose(terms["distance"], value, rtol=1e-6)
    costs, hits = [], []
    for turn in range(4):
        turned = jnp.asarray(np.rot90(x, turn, axes=(1, 2)))
        code = encode(state.params["encoder"], turned)
        p = jax.nn.softmax(turns(state.params["turns"], code))
        costs.append(-np.log(p[:, turn]))
        hits.append(p.argmax(axis=1) == turn)
    np.testing.assert_allclose(of(2.0)[0] - value, 2.0 * np.mean(costs), rtol=1e-4)
    np.testing.assert_allclose(terms["rotation_accuracy"], np.mean(hits), rtol=1e-6)
    accuracy = jax.jit(lambda x: mmdc.accuracy(state, x, nets))
    np.testing.assert_allclose(accuracy(x), np.mean(hits, axis=0), rtol=1e-6)


def test_turns_found_are_reported_by_class():
    args = ["--n-clusters", "3", "--method", "mmdc", "--hidden", "4", "--embed-dim", "5"]
    options = config.resolve(config.parse([*args, "--held-out", "8", "--seeds", "2"]))
    x = np.random.default_rng(0).random((20, 6, 6, 1), np.float32)
    algorithm = phases.of(options, (12, 6, 6, 1))[-1].algorithm
    states = train.init(run.seed_keys(options), algorithm, x)
    nets = mmdc.build_nets(mmdc.Config(hidden=(4,), embed_dim=5), x.shape[1:])
    wanted = jax.jit(jax.vmap(lambda state: mmdc.accuracy(state, x[12:], nets)))(states)
    wanted = np.asarray(wanted)
    found = pretext.of_turns(options, x, types.SimpleNamespace(state=states), np.arange(20) % 2)
    assert found["rows"] == "rows held out" and found["blocks"] == []
    np.testing.assert_allclose(found["accuracy"]["values"], wanted.mean(axis=1), rtol=1e-6)
    assert found["by_class"]["1"] == pytest.approx(float(wanted[:, 1::2].mean()))


def test_turns_come_first_and_alone():
    """Trap: the first matching is of a network that sees nothing yet, and stays."""
    x = jax.random.uniform(KEY, (6, 6, 6, 1))
    own = dataclasses.replace(SMALL, turns_first=2)
    batch = Batch(x, jnp.arange(6), jnp.ones(6))
    state = started()

    @jax.jit
    @jax.grad
    def of(params, step):
        now = state.replace(step=step)
        return mmdc.loss(params, now, batch, KEY, nets=NETS, config=own)[0]

    grads = [of(state.params, jnp.int32(step))["head"] for step in (0, 1, 2)]
    norms = [max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(g)) for g in grads]
    assert norms[0] == norms[1] == 0.0 and norms[2] > 0.0


def test_half_of_the_steps_are_of_turns_alone(monkeypatch):
    seen = []
    monkeypatch.setattr(mmdc, "build", lambda own, *args, **more: seen.append(own))
    args = ["--n-clusters", "3", "--method", "mmdc", "--epochs", "6", "--batch-size", "10"]
    phases.of(config.resolve(config.parse(args)), (40, 8, 8, 1))
    assert seen[0].turns_first == 4 * 6 // 2


def test_clusters_of_real_digits_are_of_one_size_and_of_digits():
    x, y = load_digits(return_X_y=True)
    x = (x.reshape(-1, 8, 8, 1) / 16).astype(np.float32)
    own = mmdc.Config(hidden=(8, 16), turns_first=150)
    algorithm = mmdc.build(own, x.shape[1:])
    found = train.fit(KEY, algorithm, x, epochs=25, batch_size=128, refresh_every=0)
    state = jax.tree.map(lambda leaf: leaf[None], found.state)
    labels = train.embed(algorithm, state, x)[1][0]
    sizes = np.bincount(labels, minlength=10)
    assert sizes.min() > 90, sizes
    assert metrics.external_scores(y, labels)["accuracy"] > 0.45
    assert found.metrics["rotation_accuracy"][-1] > 0.6
    assert found.metrics["distance"][-1] < 0.6 * found.metrics["distance"][0]


@pytest.mark.parametrize(
    "config, shape, words",
    [
        (SMALL, (6, 7, 1), "square images"),
        (SMALL, (9,), "square images"),
        (dataclasses.replace(SMALL, network="mlp"), (6, 6, 1), "'conv'"),
    ],
)
def test_what_does_not_fit_is_refused(config, shape, words):
    with pytest.raises(ValueError, match=words):
        mmdc.build(config, shape)
