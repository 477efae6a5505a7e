"""DeepCluster: classes from the epoch before, centroids as the classifier, no collapse."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits
from test_scripts import TRAIN, done, refused

from deepclust_jax import metrics, run, train
from deepclust_jax.algorithms import deep_cluster
from deepclust_jax.clustering import kmeans, whitening
from deepclust_jax.types import Batch

KEY = jax.random.key(0)
SMALL = deep_cluster.Config(3, 4, hidden=(8,), n_classes=6, n_init=2)


@pytest.fixture(scope="module")
def case():
    """A fresh state with classes for images, its algorithm and networks."""
    x = jax.random.uniform(KEY, (40, 6, 6, 1))
    algorithm = deep_cluster.build(SMALL, (6, 6, 1))
    state = jax.jit(algorithm.init)(KEY, batch(x))
    state = jax.jit(algorithm.refresh)(KEY, state, x)
    return x, algorithm, state, deep_cluster.build_nets(SMALL, (6, 6, 1))


def batch(x):
    return Batch(x, jnp.arange(len(x)), jnp.ones(len(x)))


def test_classes_are_nearest_centroids_by_the_cosine(case):
    x, _, state, nets = case
    features = nets.encoder.apply(state.params["encoder"], x)
    z = whitening.apply(state.view, features)
    np.testing.assert_allclose(jnp.linalg.norm(state.classes, axis=1), 1.0, atol=1e-5)
    own = np.asarray(deep_cluster.classes_of(state, x, nets))
    np.testing.assert_array_equal(own, np.argmax(np.asarray(z) @ np.asarray(state.classes).T, 1))
    np.testing.assert_array_equal(state.sizes, np.bincount(own, minlength=6))


def test_the_loss_by_numpy(case):
    """Cross-entropy weighted as if rows were drawn evenly over classes."""
    x, _, state, nets = case
    params = jax.tree.map(lambda p: 1.1 * p + 0.01, state.params)  # as after some steps
    mask = jnp.ones(40).at[-5:].set(0.0)
    value, found = deep_cluster.loss(
        params, state, batch(x)._replace(mask=mask), KEY, nets=nets, config=SMALL
    )
    z = np.asarray(whitening.apply(state.view, nets.encoder.apply(params["encoder"], x)))
    logits = z @ np.asarray(state.classes).T / SMALL.temperature
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    own = np.asarray(deep_cluster.classes_of(state, x, nets))
    cost, weight = -log_p[np.arange(40), own], 1.0 / np.asarray(state.sizes)[own]
    np.testing.assert_allclose(value, np.average(cost[:35], weights=weight[:35]), rtol=1e-4)
    told = np.mean(np.argmax(logits, 1)[:35] == own[:35])
    np.testing.assert_allclose(found["told"], told, rtol=1e-5)


def test_every_class_weighs_the_same_however_large(case):
    """Trap: without it one cluster takes all rows."""
    x, _, state, nets = case

    def gradient(state):
        def of(params):
            return deep_cluster.loss(params, state, batch(x), KEY, nets=nets, config=SMALL)[0]

        return jax.tree.leaves(jax.grad(of)(state.params))

    own = np.asarray(deep_cluster.classes_of(state, x, nets))
    largest = int(np.argmax(np.bincount(own)))
    even = state.replace(sizes=jnp.ones(6))
    grown = state.replace(sizes=jnp.ones(6).at[largest].set(1e9))  # its rows weigh nothing
    without = [
        deep_cluster.loss(
            state.params, state.replace(sizes=jnp.ones(6)),
            batch(x)._replace(mask=jnp.asarray(own != largest, jnp.float32)), KEY,
            nets=nets, config=SMALL,
        )[0],
        deep_cluster.loss(state.params, grown, batch(x), KEY, nets=nets, config=SMALL)[0],
    ]  # fmt: skip
    np.testing.assert_allclose(*without, rtol=1e-5)
    assert any((a != b).any() for a, b in zip(gradient(even), gradient(grown), strict=True))


def test_classes_come_from_rows_as_they_were_and_the_network_of_before(case):
    x, _, state, nets = case
    rows = batch(x)
    changed = rows._replace(x=x[::-1], clean=x)
    seen = [
        deep_cluster.loss(state.params, state, r, KEY, nets=nets, config=SMALL)[1]["told"]
        for r in (rows, changed)
    ]
    assert float(seen[0]) == 1.0 and float(seen[1]) < 0.6  # others in the place of each
    other = jax.tree.map(lambda p: -p, state.params)
    np.testing.assert_array_equal(
        deep_cluster.classes_of(state.replace(params=other), x, nets),
        deep_cluster.classes_of(state, x, nets),
    )


def test_agreement_is_that_of_two_epochs(case):
    """Trap (deepcluster issue 81): numbers of clusters change from epoch to epoch."""
    x, algorithm, state, nets = case
    before = np.asarray(deep_cluster.classes_of(state, x, nets))
    moved = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(KEY, p.shape), state.params)
    later = state.replace(params=moved, step=jnp.int32(1))
    again = jax.jit(algorithm.refresh)(jax.random.key(1), later, x)
    now = np.asarray(deep_cluster.classes_of(again, x, nets))
    assert 0.1 < float(again.agreement) < 1.0
    np.testing.assert_allclose(again.agreement, metrics.nmi(before, now), atol=1e-5)
    assert float(state.agreement) == 0.0  # nothing was before the first


def test_a_collapse_shows(case):
    x, _, state, nets = case
    for sizes, used in (([40, 0, 0, 0, 0, 0], 1 / 6), ([1, 1, 1, 1, 1, 1], 1.0)):
        own = state.replace(sizes=jnp.float32(sizes))
        found = deep_cluster.loss(own.params, own, batch(x), KEY, nets=nets, config=SMALL)[1]
        np.testing.assert_allclose(found["used"], used, rtol=1e-5)


def test_digits_settle_and_all_classes_stay_in_use():
    x = np.float32(load_digits().images[:500, :, :, None] / 16)
    config = dataclasses.replace(SMALL, n_clusters=10, hidden=(8, 16), embed_dim=8, n_classes=30)
    algorithm = deep_cluster.build(config, (8, 8, 1))
    found = train.fit(KEY, algorithm, x, epochs=8, batch_size=100, refresh_at_end=True)
    assert found.metrics["agreement"][-1] > 0.7 > found.metrics["agreement"][0]
    assert found.metrics["used"].min() > 0.6 and found.metrics["told"][-1] > 0.8
    z, labels = train.embed(algorithm, found.state, x)
    np.testing.assert_array_equal(labels, kmeans.assign(z, found.state.centroids)[0])
    assert metrics.nmi(load_digits().target[:500], labels) > 0.4


@pytest.mark.parametrize(
    "change, shape, words",
    [
        ({}, (64,), r"expected images \[h, w, c\], found rows of shape \(64,\)"),
        ({"network": "mlp"}, (8, 8, 1), "expected network 'conv', found 'mlp'"),
        ({"embed_dim": 33}, (8, 8, 1), "expected embed_dim <= 32, the features of the network"),
    ],
)
def test_what_cannot_work_is_refused(change, shape, words):
    with pytest.raises(ValueError, match=words):
        deep_cluster.build(dataclasses.replace(SMALL, **change), shape)


def test_a_run_reports_its_classes_and_a_collapse_and_is_restored(tmp_path):
    """There are as many classes as the rows that trained allow."""
    out = tmp_path / "run"
    args = ["--method", "deep_cluster", "--limit", "100", "--held-out", "20", "--n-clusters", "3"]
    args += ["--hidden", "8", "--embed-dim", "4"]
    args += ["--augment", "affine", "--epochs", "2", "--seeds", "2"]
    printed = done(TRAIN, *args, "--out", out)
    assert run.restore(out).state.classes.shape == (2, 20, 4)
    found = json.loads((out / "report.json").read_text())["pretext"]
    assert len(found["used"]["values"]) == 2 and 0.3 < found["used"]["mean"] <= 1
    used, agreement = (f"{100 * found[name]['mean']:.1f} ± " for name in ("used", "agreement"))
    assert f"classes in use [%]: {used}" in printed
    assert (
        f"agreement with those before [%]: {agreement}" in printed and "few classes" not in printed
    )


@pytest.mark.parametrize(
    "args, words",
    [
        (["--data", "pendigits_like.npy"], "--method deep_cluster needs images"),
        (["--network", "mlp"], "--method deep_cluster needs --network conv"),
        (["--embed-dim", "65", "--hidden", "16"], "expected --embed-dim <= 64"),
    ],
)
def test_a_run_that_cannot_work_is_refused(tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    np.save("pendigits_like.npy", np.random.default_rng(0).normal(size=(50, 16)))
    args = [*args, "--method", "deep_cluster", "--n-clusters", "3", "--out", tmp_path / "run"]
    assert words in refused(TRAIN, *args)
