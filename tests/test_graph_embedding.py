"""Points by UMAP's objective, the mixture on them, and N2D, which labels new rows too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.optimize import curve_fit
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import mutual_info_score

from deepclust_jax import data, metrics, train
from deepclust_jax.algorithms import autoencoder, n2d
from deepclust_jax.clustering import graph_embedding, neighbors

KEY = jax.random.key(0)


def rings(n=400):
    """Four rings in planes of their own, around centres that are nearer than their size."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 4
    planes = np.linalg.qr(rng.normal(size=(4, 10, 2)))[0]
    t = rng.uniform(0, 2 * np.pi, n)
    x = np.einsum("nij,nj->ni", planes[labels], np.stack([np.cos(t), np.sin(t)], axis=1))
    x = x + 0.4 * rng.normal(size=(4, 10))[labels] + 0.03 * rng.normal(size=x.shape)
    return x.astype(np.float32), labels


def test_the_curve_is_the_one_of_umap():
    t = np.linspace(0, 3, 300)
    (a, b), _ = curve_fit(lambda t, a, b: 1 / (1 + a * t ** (2 * b)), t, np.exp(-t))
    np.testing.assert_allclose([graph_embedding.A, graph_embedding.B], [a, b], atol=2e-3)


def test_weights_by_definition():
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    k = 8
    near = neighbors.nearest(x, k)
    index, distance = np.asarray(near.index), np.sqrt(np.asarray(near.sqdist, np.float64))
    directed = np.zeros((60, 60))
    for i in range(60):
        apart = distance[i] - distance[i].min()
        low, high = 1e-6, 1e3
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (
                (low, middle) if np.exp(-apart / middle).sum() > np.log2(k) else (middle, high)
            )
        directed[i, index[i]] = np.exp(-apart / low)
    both = directed + directed.T - directed * directed.T
    weights = np.asarray(graph_embedding.graph(near), np.float64)
    # Each unordered pair has its weight once, whoever holds it.
    found = np.zeros((60, 60))
    np.add.at(found, (np.repeat(np.arange(60), k), index.ravel()), weights.ravel())
    np.testing.assert_allclose(found + found.T, both, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(directed.sum(1), np.log2(k), rtol=1e-6)


def test_gradients_of_both_terms():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(12, 3)).astype(np.float32)
    index = rng.integers(12, size=(12, 4))
    pulled = jax.jit(lambda y: jnp.sum(graph_embedding.pull(y, index)))
    check_grads(pulled, (y,), 1, ["rev"], atol=3e-2, rtol=3e-2)
    grad = jax.jit(jax.grad(lambda y: jnp.sum(graph_embedding.push(y, index))))(y)
    # UMAP: -2 b (y_i - y_j) / ((eps + t^2) (1 + a t^2b)), mean over the others; they stay.
    apart = y[:, None] - y[index]
    sqdist = (apart**2).sum(-1, keepdims=True) + 1e-3
    a, b = graph_embedding.A, graph_embedding.B
    expected = (-2 * b * apart / (sqdist * (1 + a * sqdist**b))).mean(1)
    np.testing.assert_allclose(grad, expected, rtol=1e-3, atol=1e-5)


def test_gradients_at_one_point_are_finite():
    y = np.zeros((4, 2), np.float32)
    index = np.array([[1], [0], [3], [2]])
    for term in (graph_embedding.pull, graph_embedding.push):
        grad = jax.jit(jax.grad(lambda y, t=term: jnp.sum(t(y, index))))(y)
        assert np.isfinite(grad).all()


def test_neighbours_meet():
    x = load_digits().data[:600].astype(np.float32)
    near = neighbors.nearest(x, 10)
    start = graph_embedding.principal(x, 2)
    others = np.random.default_rng(0).integers(len(x), size=(len(x), 10))

    def nearness(y):  # of neighbours, as a share of that of any rows
        near_by, far = (
            np.mean(np.linalg.norm(y[:, None] - y[rows], axis=-1)) for rows in (near.index, others)
        )
        return near_by / far

    y = np.asarray(graph_embedding.fit(KEY, near, start, epochs=200))
    assert nearness(y) < 0.6 * nearness(np.asarray(start))


def test_rings_are_told_apart():
    x, labels = rings()
    found = graph_embedding.cluster(KEY, x, 4, n_neighbors=10, n_layouts=3)
    plain = KMeans(4, n_init=10, random_state=0).fit(x).labels_
    accuracy = metrics.accuracy(labels, np.asarray(found.labels))
    assert accuracy > metrics.accuracy(labels, plain) + 0.03
    assert found.points.shape == (400, 10) and found.posterior.shape == (400, 4)
    posterior = np.asarray(found.posterior)
    np.testing.assert_allclose(posterior.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(posterior.argmax(axis=1), found.labels)


def test_digits_beat_kmeans_by_far():
    x, labels = load_digits(return_X_y=True)
    found = graph_embedding.cluster(KEY, x, 10, dim=5, n_layouts=2)
    assert metrics.accuracy(labels, np.asarray(found.labels)) > 0.86
    plain = KMeans(10, n_init=10, random_state=0).fit(x).labels_
    assert metrics.accuracy(labels, plain) < 0.82


def test_information_by_hand():
    index, of = jnp.array([[1], [0], [3], [2]]), graph_embedding.information
    ones = jnp.ones((4, 1))
    np.testing.assert_allclose(of(jnp.array([0, 0, 1, 1]), index, ones, 3), np.log(2), rtol=1e-6)
    assert of(jnp.array([0, 0, 0, 0]), index, ones, 3) == 0.0
    # Neighbours in either cluster alike say nothing of their row, unless they weigh nothing.
    index = jnp.array([[1, 2], [0, 3], [3, 0], [2, 1]])
    labels = jnp.array([0, 0, 1, 1])
    np.testing.assert_allclose(of(labels, index, jnp.ones((4, 2)), 2), 0.0, atol=1e-7)
    weights = jnp.tile(jnp.array([[1.0, 0.0]]), (4, 1))
    np.testing.assert_allclose(of(labels, index, weights, 2), np.log(2), rtol=1e-6)


def test_information_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels, index = rng.integers(4, size=300), rng.integers(300, size=(300, 5))
    ends = np.repeat(labels, 5), labels[index].reshape(-1)
    expected = mutual_info_score(np.concatenate(ends), np.concatenate(ends[::-1]))
    found = graph_embedding.information(labels, index, np.full((300, 5), 0.3, np.float32), 4)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_information_of_many_edges_loses_none():
    """Trap: a sum of ten million weights in float32 stops growing before its end."""
    n = 1_000_000
    labels, index = np.arange(n) % 2, (np.arange(n)[:, None] + np.arange(2, 42, 2)[None, :]) % n
    weights = np.full(index.shape, 0.7, np.float32)
    found = graph_embedding.information(labels, index, weights, 2)
    np.testing.assert_allclose(found, np.log(2), rtol=1e-5)


def test_clusters_joined_and_cut_have_less_information():
    """Trap: a layout that joins two clusters and cuts a third can have the likelier mixture."""
    x, labels = load_digits(return_X_y=True)
    near = neighbors.nearest(x, 10)
    joined = np.where(labels == 9, 7, labels)
    half = (labels == 0) & (x[:, 20] > np.median(x[labels == 0, 20]))
    joined_and_cut = np.where(half, 9, joined)
    weights = graph_embedding.graph(near)
    values = [
        float(graph_embedding.information(jnp.asarray(found), near.index, weights, 10))
        for found in (labels, joined_and_cut, joined)
    ]
    assert values[0] > values[1] > values[2]


def test_a_pure_function_of_its_key():
    x, _ = rings()
    near, start = neighbors.nearest(x, 10), graph_embedding.principal(x, 2)
    a, b, c = (graph_embedding.fit(jax.random.key(s), near, start, epochs=20) for s in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert (np.asarray(a) != np.asarray(c)).any()


def test_scale_and_offset_change_little():
    x, labels = rings()
    for wide in (x.astype(np.float64) * 1e-4 + 1e3, x * 1e8):
        found = graph_embedding.cluster(KEY, wide, 4, n_neighbors=10, n_layouts=3)
        assert metrics.accuracy(labels, np.asarray(found.labels)) > 0.9


def test_principal_coordinates():
    x = np.random.default_rng(0).normal(size=(200, 5)) * [10, 5, 3, 1, 0.1] + 7
    found = np.asarray(graph_embedding.principal(jnp.asarray(x, jnp.float32), 3))
    centred = x - x.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:3]
    np.testing.assert_allclose(np.abs(found), np.abs(centred @ axes.T), rtol=1e-2, atol=1e-2)


def test_duplicates_end():
    places = np.repeat(np.float32([[0, 0, 0], [5, 0, 0], [0, 9, 0]]), 50, axis=0)
    for x in (places, np.ones((150, 3), np.float32)):
        found = graph_embedding.cluster(KEY, x, 3, dim=2, n_layouts=1, epochs=30)
        assert np.isfinite(found.points).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_clusters": 500}, "expected 1 <= n_clusters <= 400"),
        ({"n_layouts": 0}, "expected n_init and max_iter >= 1"),
        ({"n_neighbors": 0}, "dim and n_neighbors >= 1, found 10 and 0"),
        ({"epochs": 0}, "expected epochs and negatives >= 1"),
        ({"x": np.full((400, 3), np.nan)}, "expected finite x"),
        ({"key": 0}, "expected one key"),
    ],
)
def test_bad_input(change, message):
    arguments = {"key": KEY, "x": rings()[0], "n_clusters": 2} | change
    with pytest.raises(ValueError, match=message) as error:
        graph_embedding.cluster(**arguments)
    assert "\n" not in str(error.value)


def test_neighbours_of_other_rows_are_refused():
    x, _ = rings()
    with pytest.raises(ValueError, match=r"expected neighbours \[50, k\], found \(400, 5\)"):
        graph_embedding.fit(KEY, neighbors.nearest(x, 5), x[:50])


# --- N2D


SMALL = {"n_clusters": 10, "embed_dim": 5, "hidden": (128, 128)}


@pytest.fixture(scope="module")
def digits():
    dataset, labels = data.load("digits")
    first = autoencoder.build(autoencoder.Config(**SMALL), dataset.x.shape[1:])
    fitted = {"epochs": 40, "refresh_every": 0, "refresh_at_end": True}
    pretrained = train.fit(KEY, first, dataset.x, **fitted).state
    algorithm = n2d.build(
        n2d.Config(**SMALL, n_layouts=2, layout_epochs=150, classifier_steps=600),
        dataset.x.shape[1:],
    )
    state = n2d.warm_start(train.init(KEY, algorithm, dataset.x), pretrained)
    state = train.fit(KEY, algorithm, dataset.x, epochs=0, state=state, refresh_at_end=True).state
    return algorithm, state, dataset.x, labels, pretrained


def test_n2d_on_digits(digits):
    algorithm, state, x, labels, _ = digits
    z, found = train.embed(algorithm, state, x)
    assert metrics.accuracy(labels, found) > 0.85
    plain = KMeans(10, n_init=10, random_state=0).fit(z).labels_
    assert metrics.accuracy(labels, plain) < metrics.accuracy(labels, found)


def test_n2d_labels_new_rows(digits):
    """Trap: a layout has no place for new rows, so that labels cannot be had for them."""
    algorithm, state, x, _, _ = digits
    _, all_labels = train.embed(algorithm, state, x)
    _, few = train.embed(algorithm, state, x[100:140])
    np.testing.assert_array_equal(few, all_labels[100:140])


def test_n2d_keeps_the_code_of_the_autoencoder(digits):
    algorithm, state, x, _, pretrained = digits
    nets = autoencoder.build_nets(autoencoder.Config(**SMALL), x.shape[1:])
    z = nets.encoder.apply(pretrained.params["encoder"], jnp.asarray(x))
    np.testing.assert_allclose(algorithm.embed(state, jnp.asarray(x)), z, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [2.0**-66, 2.0**56])
def test_the_scale_of_the_rows_changes_no_cluster(scale):
    x = np.random.default_rng(0).normal(size=(150, 3)).astype(np.float32)
    x[:50] += 20.0
    x[50:100] -= 20.0
    one, other = (
        graph_embedding.cluster(KEY, s * x, 3, dim=2, n_layouts=1, epochs=30).labels
        for s in (np.float32(1.0), np.float32(scale))
    )
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("option", [{"dim": 2.5}, {"n_neighbors": 0}, {"n_neighbors": 3.0}])
def test_whole_numbers(option):
    with pytest.raises(ValueError, match="expected whole numbers dim and n_neighbors >= 1"):
        graph_embedding.cluster(KEY, np.eye(5, dtype=np.float32), 2, **option)


def test_one_row_has_no_neighbours():
    with pytest.raises(ValueError, match="expected 2 rows or more"):
        graph_embedding.cluster(KEY, np.ones((1, 2), np.float32), 1)
