"""The number of clusters by linkage in a graph of neighbours, and dcn, which so finds it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepclust_jax import data, metrics, resets, train
from deepclust_jax.algorithms import autoencoder, dcn
from deepclust_jax.clustering import linkage
from deepclust_jax.types import Batch

KEY = jax.random.key(0)
SMALL = {"embed_dim": 5, "hidden": (64, 64)}

edges_of = jax.jit(linkage.edges, static_argnums=2)
linkage_of = jax.jit(linkage.of)
merge = jax.jit(linkage.merge)


def rings(n=600, seed=0):
    """Two rings, one inside the other: no line between centroids tells them apart."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], n // 2)
    angle = rng.uniform(0, 2 * np.pi, n)
    radius = np.where(labels, 3.0, 1.0) + rng.normal(0, 0.1, n)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).astype(np.float32), labels


def modularity(edges, group):
    """Newman and Girvan: the share of edges within groups, less what chance gives."""
    total, value = edges.sum(), 0.0
    for own in np.unique(group):
        members = group == own
        value += edges[np.ix_(members, members)].sum() / total
        value -= (edges[members].sum() / total) ** 2
    return value


def test_edges_by_hand(monkeypatch):
    monkeypatch.setattr(linkage, "NEIGHBORS", 2)
    z = np.float32([[0.0], [1.0], [2.2], [10.0], [10.5], [11.5]])
    # Nearest: 1 2, 0 2, 1 0, 4 5, 3 5, 4 3.
    found = edges_of(z, np.array([0, 0, 1, 3, 3, 3]), 4)
    expected = np.zeros((4, 4))
    expected[0, 0], expected[3, 3] = 4.0, 12.0  # 2 and 6 pairs, either way
    expected[0, 1] = expected[1, 0] = 4.0  # both rows of 0 have that of 1, and it has both
    np.testing.assert_array_equal(found, expected)


def test_linkage_by_hand():
    edges = np.float32([[6.0, 2.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 0.0]])  # degrees 8, 6, 0
    found = np.asarray(linkage_of(edges))
    assert found[0, 1] == pytest.approx(2.0 * 14.0 / (8.0 * 6.0))
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(found[2], -1.0)  # no edges
    np.testing.assert_array_equal(np.diag(found), -1.0)


@pytest.mark.parametrize("seed", range(5))
def test_merging_ends_where_joining_two_would_no_longer_raise_the_modularity(seed):
    rng = np.random.default_rng(seed)
    edges = rng.poisson(np.where(rng.random((12, 12)) < 0.2, 30.0, 1.0)).astype(np.float32)
    edges = edges + edges.T
    group = np.asarray(merge(edges))
    reached = modularity(edges, group)
    assert 1 < len(np.unique(group)) < 12 and reached > modularity(edges, np.arange(12))
    for a in np.unique(group):
        for b in np.unique(group):
            if a < b:
                assert modularity(edges, np.where(group == b, a, group)) <= reached + 1e-6


def test_groups_are_numbered_in_the_order_of_their_first_clusters():
    edges = np.zeros((6, 6), np.float32)
    for a, b in ((1, 4), (0, 0), (3, 3), (1, 1), (4, 4)):  # 2 and 5 have no edges
        edges[a, b] = edges[b, a] = 10.0
    group = np.asarray(merge(edges))
    assert group[[0, 1, 3, 4]].tolist() == [0, 1, 2, 1] and group.max() == 2
    assert np.asarray(merge(np.zeros((3, 3), np.float32))).tolist() == [0, 0, 0]


def test_the_largest_linkage_is_joined_first():
    """1 goes with 0; together they are no longer as near to 2 as 1 was."""
    edges = np.full((3, 3), 1.0, np.float32)
    np.fill_diagonal(edges, [2.0, 2.0, 40.0])
    edges[0, 1] = edges[1, 0] = 6.0
    edges[1, 2] = edges[2, 1] = 5.0
    found = np.asarray(linkage_of(edges))
    assert found[0, 1] > found[1, 2]
    assert np.asarray(merge(edges)).tolist() == [0, 0, 1]


def test_rings_are_two_where_no_line_between_centroids_tells():
    x, y = rings()
    nearest = np.argmin(np.sum((x[:, None] - x[None, ::15]) ** 2, axis=-1), axis=1)  # of 40
    edges = edges_of(x, nearest, 40)
    group = np.asarray(merge(edges, 0.0))[nearest]
    assert metrics.accuracy(y, group) > 0.98


@pytest.fixture(scope="module")
def digits():
    dataset, labels = data.load("digits")
    algorithm = autoencoder.build(
        autoencoder.Config(**SMALL, learning_rate=0.3), dataset.x.shape[1:]
    )
    found = train.fit(KEY, algorithm, dataset.x, epochs=40, refresh_every=0, refresh_at_end=True)
    return np.asarray(dataset.x), labels, found.state


@pytest.fixture(scope="module")
def merged(digits):
    """Of 35 clusters, from an autoencoder that had 10. -> algorithm, Fit."""
    x, _, start = digits
    algorithm = dcn.build(
        dcn.Config(**SMALL, n_clusters=35, merge=True, weight=2.0, learning_rate=1e-3), x.shape[1:]
    )
    first = dcn.warm_start(train.init(KEY, algorithm, x), start)
    assert start.centroids.shape[0] == 10 and first.centroids.shape[0] == 35
    return algorithm, train.fit(KEY, algorithm, x, epochs=10, state=first, refresh_at_end=True)


def test_dcn_finds_the_number_of_clusters_of_digits(digits, merged):
    x, y, _ = digits
    algorithm, found = merged
    labels = train.embed(algorithm, found.state, x)[1]
    n = len(np.unique(labels))
    assert labels.max() + 1 == n == int(found.state.group.max()) + 1
    assert 8 <= n <= 15 and metrics.nmi(y, labels) > 0.75
    assert (found.metrics["clusters"] < 35).all()


def test_rows_are_drawn_to_the_mean_of_their_group():
    state = dcn.State(
        jnp.int32(0), {}, (), jnp.array([[0.0, 0.0], [2.0, 0.0], [9.0, 9.0]]),
        jnp.array([1.0, 3.0, 2.0]), jnp.array([0, 0, 1], jnp.int32),
    )  # fmt: skip
    np.testing.assert_allclose(dcn.middles(state), [[1.5, 0.0], [1.5, 0.0], [9.0, 9.0]])
    assert dcn.middles(state.replace(group=None)) is state.centroids


def test_the_loss_draws_rows_to_their_group():
    config = dcn.Config(n_clusters=3, embed_dim=2, hidden=(8,), merge=True, weight=3.0)
    algorithm, nets = dcn.build(config, (4,)), dcn.build_nets(config, (4,))
    x = jax.random.normal(KEY, (6, 4))
    rows = Batch(x, jnp.arange(6), jnp.ones(6))
    state = algorithm.init(KEY, rows)
    z = nets.encoder.apply(state.params["encoder"], x)
    state = state.replace(
        centroids=z[:3], counts=jnp.array([1.0, 3.0, 2.0]), group=jnp.array([0, 0, 1], jnp.int32)
    )
    _, found = dcn.loss(state.params, state, rows, KEY, nets=nets, config=config)
    middle = (z[0] + 3.0 * z[1]) / 4.0
    nearest = np.argmin(np.sum((z[:, None] - z[None, :3]) ** 2, axis=-1), axis=1)
    drawn_to = np.stack([middle, middle, z[2]])[nearest]
    pull = np.mean(np.sum((np.asarray(z) - drawn_to) ** 2, axis=1))
    np.testing.assert_allclose(found["pull"], pull, rtol=1e-4)


def test_a_centroid_without_rows_goes_to_the_nearest(digits, merged):
    """Trap: far from all rows it moved the mean of a group. The others stay where they are."""
    x, (algorithm, found) = jnp.asarray(digits[0]), merged
    before = np.asarray(found.state.centroids)
    moved = before.copy()
    moved[3] = far = before[7] + 1e3  # nearest to whichever lies furthest in that direction
    state = jax.jit(algorithm.refresh)(KEY, found.state.replace(centroids=jnp.asarray(moved)), x)
    gaps = np.sum((before - far[None, :]) ** 2, axis=1)
    gaps[3] = np.inf
    nearest = np.argmin(gaps)
    group = np.asarray(state.group)
    assert group[3] == group[nearest]
    moved[3] = before[nearest]
    np.testing.assert_array_equal(state.centroids, moved)
    labels = train.embed(algorithm, state, x)[1]
    assert len(np.unique(labels)) == labels.max() + 1


def test_groups_are_found_anew_each_time(digits, merged):
    """What was joined can part again: the groups do not depend on those of before."""
    x, (algorithm, found) = jnp.asarray(digits[0]), merged
    one = found.state.replace(group=jnp.zeros(35, jnp.int32))
    refresh = jax.jit(algorithm.refresh)
    again = refresh(KEY, one, x)
    np.testing.assert_array_equal(again.group, refresh(KEY, found.state, x).group)
    assert again.group.max() > 0


def test_after_a_reset_groups_are_of_the_new_centroids(digits, merged):
    x, (algorithm, found) = jnp.asarray(digits[0]), merged
    around = resets.around(algorithm, every=1, until=2)
    before = resets.State(found.state.step, found.state, jnp.int32(1))
    refresh = jax.jit(around.refresh)
    after = refresh(KEY, before, x)
    assert not np.allclose(after.own.centroids, found.state.centroids)
    alone = jax.jit(algorithm.refresh)(KEY, after.own, x)
    np.testing.assert_array_equal(after.own.group, alone.group)
    last = refresh(KEY, after, x)  # after the last epoch
    np.testing.assert_array_equal(last.own.centroids, after.own.centroids)


def test_without_merge_the_state_is_as_before(digits):
    x, _, start = digits
    algorithm = dcn.build(dcn.Config(**SMALL), x.shape[1:])
    state = dcn.warm_start(train.init(KEY, algorithm, x), start)
    assert state.group is None
    np.testing.assert_array_equal(state.centroids, autoencoder.starting_point(start)[1])
