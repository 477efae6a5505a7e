"""Heads of maximal information: the losses of IIC, SCAN and IMSAT, and which head is kept."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepclust_jax import data, losses, metrics, run, train
from deepclust_jax.algorithms import contrastive, info_max
from deepclust_jax.clustering import kmeans
from deepclust_jax.types import Batch

KEY = jax.random.key(0)
SMALL = info_max.Config(n_clusters=3, embed_dim=4, hidden=(16, 8), n_heads=2, n_neighbors=3)


def rows(n=90, d=5):
    centres = 6 * jax.random.normal(jax.random.key(1), (3, d))
    own = jnp.arange(n) % 3
    return centres[own] + jax.random.normal(KEY, (n, d)), own


@functools.cache
def built():
    """The same object in all tests, so that each program is compiled once."""
    return info_max.build(SMALL, (5,))


def objective(one, other, **changes):
    one, other = jnp.asarray(one, jnp.float32), jnp.asarray(other, jnp.float32)
    return info_max.objective(one, other, jnp.ones(len(one)), dataclasses.replace(SMALL, **changes))


SURE = np.eye(3)[[0, 1, 2, 0, 1, 2]]
SAME = np.full((6, 3), 1 / 3)
MERGED = np.eye(3)[[0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    "name, sure",
    [
        ("information", -np.log(3)),
        ("agreement", -5 * np.log(3)),
        ("invariance", -5 * np.log(3)),
    ],
)
def test_sure_even_and_invariant_rows_are_best(name, sure):
    """Worked: every row sure, both views in one cluster, three clusters of one size."""
    np.testing.assert_allclose(objective(SURE, SURE, objective=name), sure, atol=1e-5)
    for other in (SAME, MERGED):
        assert objective(other, other, objective=name) > sure + 0.5


def test_one_cluster_for_all_has_no_information():
    """Trap: without the entropy of the sizes all rows agree in one cluster."""
    np.testing.assert_allclose(objective(MERGED, MERGED, objective="information"), 0.0, atol=1e-5)
    np.testing.assert_allclose(objective(MERGED, MERGED, objective="agreement"), 0.0, atol=1e-5)
    np.testing.assert_allclose(objective(MERGED, MERGED, objective="invariance"), 0.0, atol=1e-5)


def test_agreement_by_hand():
    one, other = [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], [[0.5, 0.5, 0.0], [0.5, 0.25, 0.25]]
    mean = np.mean(one + other, axis=0)
    expected = 0.5 * (np.log(2) + np.log(2)) + 2.0 * np.sum(mean * np.log(mean))
    np.testing.assert_allclose(
        objective(one, other, objective="agreement", weight=2.0), expected, rtol=1e-5
    )


def test_invariance_by_hand():
    """Trap (IMSAT): the divergence is of the changed row from the row, not the other way round."""
    one, other = np.array([[0.7, 0.2, 0.1]]), np.array([[0.3, 0.3, 0.4]])
    change = np.sum(one * np.log(one / other))
    assert abs(change - np.sum(other * np.log(other / one))) > 0.04
    # One row: the entropy of the mean over rows is that of the row, and no information is left.
    mean = (one + other) / 2
    own = -np.sum(one * np.log(one))
    expected = change - 3.0 * (-np.sum(mean * np.log(mean)) - own)
    np.testing.assert_allclose(
        objective(one, other, objective="invariance", weight=3.0), expected, rtol=1e-5
    )


def test_the_row_stays_where_its_changed_view_is_drawn_to_it():
    """Trap (IMSAT): without the stop of the gradient rows move to their changed views as well."""
    one, other = np.array([[0.7, 0.2, 0.1]]), np.array([[0.3, 0.3, 0.4]])

    def change(one, other):
        return objective(one, other, objective="invariance", weight=0.0)

    np.testing.assert_array_equal(jax.grad(change)(jnp.asarray(one), other), 0.0)
    np.testing.assert_allclose(
        jax.grad(change, 1)(one, jnp.asarray(other)), -one / other, rtol=1e-5
    )


@pytest.mark.parametrize("name", info_max.OBJECTIVES)
def test_padding_counts_for_nothing(name):
    config = dataclasses.replace(SMALL, objective=name)
    one, other = jax.nn.softmax(jax.random.normal(KEY, (2, 8, 3)), axis=-1)
    mask = jnp.ones(8).at[5:].set(0.0)
    found = info_max.objective(one, other, mask, config)
    np.testing.assert_allclose(
        found, info_max.objective(one[:5], other[:5], jnp.ones(5), config), rtol=1e-5
    )


def test_the_head_with_the_lowest_loss_is_kept():
    x, own = rows()
    algorithm = built()
    refresh = jax.jit(algorithm.refresh)
    state = train.init(KEY, algorithm, x)
    state = refresh(KEY, state, x)
    z = train.embed(algorithm, state, x)[0]
    own = np.asarray(own)
    # A head that knows the clusters, in the second place, beside one that knows nothing.
    means = np.stack([z[own == k].mean(0) for k in range(3)])
    kernel = jnp.concatenate([jnp.zeros((4, 3)), 50.0 * (means - means.mean(0)).T], axis=1)
    for places, best in (((0, 1), 1), ((1, 0), 0)):
        order = jnp.concatenate([jnp.arange(3) + 3 * place for place in places])
        moved = {"params": {"Dense_0": {"kernel": kernel[:, order], "bias": jnp.zeros(6)}}}
        state = state.replace(params=state.params | {"heads": moved})
        found = refresh(KEY, state, x)
        assert int(found.head) == best
        labels = np.asarray(algorithm.assign(found, z))
        assert metrics.accuracy(own, labels) > 0.9


def test_heads_are_different():
    x, _ = rows()
    algorithm = built()
    state = train.init(KEY, algorithm, x)
    nets = info_max.build_nets(SMALL, (5,))
    z = train.embed(algorithm, state, x)[0]
    found = info_max.shares(state.params, state, jnp.asarray(z), nets, SMALL)
    assert found.shape == (2, 90, 3)
    np.testing.assert_allclose(found.sum(-1), 1.0, rtol=1e-5)
    assert jnp.abs(found[0] - found[1]).max() > 0.01


def test_the_metric_sureness():
    x, _ = rows()
    algorithm = built()
    batch = Batch(x, jnp.arange(90), jnp.ones(90))
    state = train.init(KEY, algorithm, x)
    _, found = jax.jit(algorithm.step)(KEY, state, batch)
    assert 1 / 3 <= float(found["sureness"]) <= 1


def test_unknown_objective_is_refused():
    with pytest.raises(ValueError, match="expected objective information, agreement, invariance"):
        info_max.build(dataclasses.replace(SMALL, objective="entropy"), (5,))


def test_other_numbers_of_heads_than_of_layouts_are_refused():
    x, _ = rows()
    config = contrastive.Config(n_clusters=3, embed_dim=4, hidden=(16, 8), n_layouts=3)
    start = train.init(KEY, contrastive.build(config, (5,)), x)
    state = train.init(KEY, built(), x)
    with pytest.raises(ValueError, match="n_heads is theirs"):
        info_max.warm_start(state, start)


@pytest.fixture(scope="module")
def digits():
    dataset, labels = data.load("digits")
    x = dataset.x
    config = contrastive.Config(**DIGITS, n_layouts=2, classifier_steps=500)
    first = contrastive.build(config, x.shape[1:])
    found = train.fit(
        KEY, first, x, epochs=60, neighbors=run.partners(x), refresh_every=0, refresh_at_end=True
    )
    return first, found.state, x, labels


DIGITS = {"hidden": (128, 128), "embed_dim": 32}


def test_contrastive_features_of_digits_and_labels_of_new_rows(digits):
    algorithm, state, x, labels = digits
    z, labelled = train.embed(algorithm, state, x)
    rows_alone = np.asarray(kmeans.fit(KEY, x.reshape(len(x), -1), 10).labels)
    assert metrics.accuracy(labels, labelled) > max(0.85, metrics.accuracy(labels, rows_alone))
    few_z, few = train.embed(algorithm, state, x[100:140])
    np.testing.assert_array_equal(few, labelled[100:140])
    np.testing.assert_array_equal(few_z, z[100:140])


def test_a_start_that_diverged_does_not_stop_the_others(digits):
    first, start, x, _ = digits
    broken = start.replace(params=jax.tree.map(lambda a: jnp.nan * a, start.params))
    states = jax.tree.map(lambda a, b: jnp.stack([a, b]), start, broken)
    near = run.partners_by_features(first, states, x)
    alone = run.partners_by_features(first, jax.tree.map(lambda a: a[None], start), x)
    np.testing.assert_array_equal(near[0], alone[0])
    assert near.shape == (2, len(x), 5) and near.min() >= 0 and near.max() < len(x)


@pytest.mark.parametrize("name", info_max.OBJECTIVES)
def test_digits_from_contrastive_features(digits, name):
    first, start, x, labels = digits
    config = info_max.Config(**DIGITS, n_heads=2, objective=name)
    algorithm = info_max.build(config, x.shape[1:])
    state = info_max.warm_start(train.init(KEY, algorithm, x), start)
    before = train.embed(first, start, x)
    for a, b in zip(before, train.embed(algorithm, state, x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # features, and labels of the best
    near = run.partners_by_features(first, jax.tree.map(lambda a: a[None], start), x)[0]
    found = train.fit(
        KEY, algorithm, x, epochs=10, neighbors=near, state=state, refresh_every=0,
        refresh_at_end=True,
    )  # fmt: skip
    z, labelled = train.embed(algorithm, found.state, x)
    assert metrics.accuracy(labels, labelled) > metrics.accuracy(labels, before[1]) - 0.02 > 0.85
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1.0, rtol=1e-5)
    assert losses.entropy(jnp.bincount(labelled, length=10) / len(x)) > 0.9 * np.log(10)
