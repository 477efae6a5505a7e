"""Scores equal scikit-learn's and hand-worked numbers, whatever the labels look like."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import datasets
from sklearn import metrics as reference

from deepclust_jax import metrics
from deepclust_jax.metrics import internal

SIZES = {"n_classes": 14, "n_clusters": 13}  # more than any labels below use
JITTABLE = {
    name: jax.jit(score, static_argnames=tuple(SIZES))
    for name, score in {
        "accuracy": metrics.accuracy_jax,
        "nmi": metrics.nmi_jax,
        "ari": metrics.ari_jax,
    }.items()
}


def random_labels(n: int, n_classes: int, n_clusters: int, noise: float, seed: int = 0):
    """Classes, and clusters that agree with them but for a share `noise` of the rows."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, n_classes, n)
    labels = np.where(rng.random(n) < noise, rng.integers(0, n_clusters, n), y % n_clusters)
    return y, labels


def one_outlier(n: int):
    y = np.zeros(n, int)
    labels = np.zeros(n, int)
    y[:2], labels[1:4] = 1, 1
    return y, labels


LABELS = {
    "same number": random_labels(500, 10, 10, 0.3),
    "more clusters": random_labels(500, 3, 12, 0.5),
    "fewer clusters": random_labels(500, 12, 3, 0.5),
    "independent": random_labels(500, 5, 5, 1.0),
    "equal": random_labels(500, 6, 6, 0.0),
    "70,000 rows": random_labels(70_000, 10, 12, 0.2),
    "70,000 rows, rare clusters": one_outlier(70_000),
    "one cluster": (np.arange(9) % 3, np.zeros(9, int)),
    "one class": (np.zeros(9, int), np.arange(9) % 3),
    "both single": (np.zeros(9, int), np.zeros(9, int)),
    "singletons": (np.arange(9) % 3, np.arange(9)),
    "both singletons": (np.arange(9), np.arange(9)),
    "one row": (np.zeros(1, int), np.zeros(1, int)),
}


@pytest.fixture(scope="module")
def digits():
    z, y = datasets.load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    centres = z[rng.choice(len(z), 12, replace=False)]
    labels = np.argmin(((z[:, None] - centres[None]) ** 2).sum(-1), axis=1)
    return z, y, labels


@pytest.fixture(params=LABELS)
def pair(request):
    return LABELS[request.param]


def brute_force_ari(y, labels):
    """From scikit-learn's pair counts, by integers of unlimited size."""
    (tn, fp), (fn, tp) = reference.pair_confusion_matrix(y, labels).astype(object)
    if fn == 0 and fp == 0:
        return 1.0
    return 2 * (tp * tn - fn * fp) / ((tp + fn) * (fn + tn) + (tp + fp) * (fp + tn))


def test_scores_against_labels_equal_scikit_learn(pair):
    y, labels = pair
    homogeneity, completeness, v_measure = reference.homogeneity_completeness_v_measure(y, labels)
    found = metrics.external_scores(y, labels)
    assert all(type(value) is float for value in found.values())
    assert found["nmi"] == pytest.approx(v_measure, abs=1e-10)
    assert found["nmi"] == pytest.approx(
        reference.normalized_mutual_info_score(y, labels), abs=1e-10
    )
    assert found["homogeneity"] == pytest.approx(homogeneity, abs=1e-10)
    assert found["completeness"] == pytest.approx(completeness, abs=1e-10)
    assert found["ari"] == pytest.approx(reference.adjusted_rand_score(y, labels), abs=1e-10)
    assert found["ari"] == pytest.approx(brute_force_ari(y, labels), abs=1e-10)
    assert found["ami"] == pytest.approx(reference.adjusted_mutual_info_score(y, labels))
    table = reference.cluster.contingency_matrix(y, labels)
    assert found["purity"] == pytest.approx(table.max(axis=0).sum() / len(y))


def test_jittable_scores_equal_the_host(pair):
    y, labels = pair
    for name, score in JITTABLE.items():
        found = score(jnp.array(y), jnp.array(labels), **SIZES)
        assert found.dtype == jnp.float32 and found.shape == ()
        assert float(found) == pytest.approx(getattr(metrics, name)(y, labels), abs=1e-5)
    table = metrics.contingency_jax(jnp.array(y), jnp.array(labels), **SIZES)
    np.testing.assert_array_equal(table, metrics.contingency(y, labels, **SIZES))


def test_scores_on_digits_equal_scikit_learn(digits):
    _, y, labels = digits
    found = metrics.external_scores(y, labels)
    assert found["ari"] == pytest.approx(reference.adjusted_rand_score(y, labels), abs=1e-10)
    assert found["nmi"] == pytest.approx(reference.normalized_mutual_info_score(y, labels))
    for name, score in JITTABLE.items():
        value = score(jnp.array(y), jnp.array(labels), **SIZES)
        assert float(value) == pytest.approx(found[name], abs=1e-5)


def test_numbers_worked_by_hand():
    y = np.array([0, 0, 0, 1, 1, 1])
    labels = np.array([2, 2, 0, 0, 0, 1])
    np.testing.assert_array_equal(metrics.contingency(y, labels, 2, 3), [[1, 0, 2], [2, 1, 0]])
    assert metrics.accuracy(y, labels) == pytest.approx(4 / 6)  # 0 -> 2, 1 -> 0; cluster 1 is alone
    assert metrics.purity(y, labels) == pytest.approx(5 / 6)
    # Pairs: 2 together in both, 4 only in y, 2 only in the clusters, 7 in neither.
    assert metrics.ari(y, labels) == pytest.approx(2 * (2 * 7 - 4 * 2) / (6 * 11 + 4 * 9))
    information = (2 * np.log(2) + np.log(2 / 3) + 2 * np.log(4 / 3) + np.log(2)) / 6
    entropy = -(np.log(1 / 2) * 3 + np.log(1 / 3) * 2 + np.log(1 / 6)) / 6
    assert metrics.homogeneity(y, labels) == pytest.approx(information / np.log(2))
    assert metrics.completeness(y, labels) == pytest.approx(information / entropy)
    assert metrics.nmi(y, labels) == pytest.approx(2 * information / (np.log(2) + entropy))


def test_accuracy_uses_the_best_matching_and_not_a_greedy_one():
    y = np.repeat([0, 0, 1, 1], [5, 4, 4, 0])
    labels = np.repeat([0, 1, 0], [5, 4, 4])
    # Greedy takes (0, 0) with 5 rows and leaves (1, 1) with none; the best is 4 + 4.
    assert metrics.accuracy(y, labels) == pytest.approx(8 / 13)
    found = metrics.accuracy_jax(jnp.array(y), jnp.array(labels), n_classes=2, n_clusters=2)
    assert float(found) == pytest.approx(8 / 13)


def test_names_of_classes_and_clusters_do_not_matter(digits):
    _, y, labels = digits
    wanted = metrics.external_scores(y, labels)
    rng = np.random.default_rng(1)
    gaps = rng.permutation(np.arange(-1, 50))
    words = np.array([f"class {i}" for i in range(10)])
    assert metrics.external_scores(words[y], gaps[labels]) == pytest.approx(wanted)
    rows = rng.permutation(len(y))
    assert metrics.external_scores(y[rows], labels[rows]) == pytest.approx(wanted)


def test_jittable_scores_vmapped_over_seeds_equal_the_loop():
    pairs = [random_labels(300, 4, 6, 0.4, seed) for seed in range(3)]
    y, labels = (jnp.array(np.stack(v)) for v in zip(*pairs, strict=True))
    for score in JITTABLE.values():
        one = partial(score, **SIZES)
        looped = jnp.stack([one(a, b) for a, b in zip(y, labels, strict=True)])
        assert len(set(looped.tolist())) == 3
        np.testing.assert_allclose(jax.jit(jax.vmap(one))(y, labels), looped, atol=1e-6)


def test_rows_out_of_range_are_left_out_of_jittable_scores():
    y, labels = jnp.array([0, 1, 1, 5, 0, -1]), jnp.array([1, 0, 0, 0, -1, 1])
    sizes = {"n_classes": 2, "n_clusters": 2}
    np.testing.assert_array_equal(metrics.contingency_jax(y, labels, **sizes), [[0, 1], [2, 0]])
    for score in JITTABLE.values():
        assert float(score(y, labels, **sizes)) == pytest.approx(1.0)
        assert np.isnan(score(jnp.full(3, -1), jnp.zeros(3, int), **sizes))
    small = jnp.array([15, 0], jnp.uint8)  # 15 * 20 is more than uint8 holds
    table = metrics.contingency_jax(small, small, n_classes=16, n_clusters=20)
    assert int(table[15, 15]) == 1 and int(table.sum()) == 2


def test_align_renames_to_the_reference():
    first = np.array([7, 7, 7, 3, 3, 3, 3])
    second = np.array([0, 0, 1, 1, 1, 1, 5])
    # 0 -> 7 and 1 -> 3; cluster 5 has no partner and takes the smallest free number, 0.
    np.testing.assert_array_equal(metrics.align(first, second), [7, 7, 3, 3, 3, 3, 0])
    np.testing.assert_array_equal(metrics.align(second, first), [0, 0, 0, 1, 1, 1, 1])
    y, labels = random_labels(400, 8, 8, 0.2)
    renamed = metrics.align(y, np.random.default_rng(0).permutation(8)[labels])
    np.testing.assert_array_equal(renamed, labels)
    assert np.mean(renamed == y) == pytest.approx(metrics.accuracy(y, labels))


def test_stability_is_the_mean_agreement_with_the_other_runs():
    a, b = random_labels(200, 4, 4, 0.3)
    c = (a + 1) % 4  # the same clusters under other names
    mean, per_run = metrics.stability([a, b, c])
    agreement = metrics.ari(a, b)
    np.testing.assert_allclose(per_run, [(1 + agreement) / 2, agreement, (1 + agreement) / 2])
    assert mean == pytest.approx((1 + 2 * agreement) / 3)
    mean, per_run = metrics.stability(a[None])
    assert np.isnan(mean) and per_run.shape == (1,) and np.isnan(per_run).all()


def test_scores_without_labels_equal_scikit_learn(digits):
    z, y, labels = digits
    for clusters in (y, np.where(labels == 3, -1, labels * 7)):
        found = metrics.internal_scores(z, clusters)
        assert found["silhouette"] == pytest.approx(
            reference.silhouette_score(z, clusters), abs=1e-5
        )
        assert found["davies_bouldin"] == pytest.approx(
            reference.davies_bouldin_score(z, clusters), rel=1e-5
        )
        assert found["calinski_harabasz"] == pytest.approx(
            reference.calinski_harabasz_score(z, clusters), rel=1e-5
        )
        distances = reference.pairwise_distances(z)
        same = clusters[:, None] == clusters[None, :]
        assert found["dunn"] == pytest.approx(
            distances[~same].min() / distances[same].max(), rel=1e-5
        )


@pytest.mark.parametrize(("offset", "scale"), [(0, 1), (1e4, 1), (0, 1e-12), (0, 1e18)])
def test_offsets_scales_and_tight_clusters_keep_their_accuracy(offset, scale):
    # Two pairs of clusters: near each other, far from the other pair, and tight.
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0, 0], [0.02, 0, 0], [3, 4, 0], [3, 4, 0.02]])
    labels = np.arange(600) % 4
    z = ((centres[labels] + rng.normal(size=(600, 3)) * 0.004) * scale + offset).astype(np.float32)
    found, exact = metrics.internal_scores(z, labels), z.astype(np.float64)
    assert found["silhouette"] == pytest.approx(reference.silhouette_score(exact, labels), abs=1e-5)
    assert found["davies_bouldin"] == pytest.approx(
        reference.davies_bouldin_score(exact / scale, labels), rel=1e-4
    )
    assert found["calinski_harabasz"] == pytest.approx(
        reference.calinski_harabasz_score(exact, labels), rel=1e-4
    )
    distances = reference.pairwise_distances(exact - exact.mean(axis=0))
    same = labels[:, None] == labels[None, :]
    assert found["dunn"] == pytest.approx(
        distances[~same].min() / distances[same].max(),
        abs=2e-5,  # the gap is a small part of the spread
    )


def test_scores_of_four_points_worked_by_hand():
    z, labels = np.array([[0.0], [1.0], [10.0], [12.0]]), np.array([0, 0, 1, 1])
    silhouette = np.mean([1 - 1 / 11, 1 - 1 / 10, 1 - 2 / 9.5, 1 - 2 / 11.5])
    assert metrics.silhouette(z, labels) == pytest.approx(silhouette, abs=1e-6)
    assert metrics.davies_bouldin(z, labels) == pytest.approx((0.5 + 1.0) / 10.5, rel=1e-6)
    between, within = 4 * 5.25**2, 2 * 0.5**2 + 2 * 1.0**2
    assert metrics.calinski_harabasz(z, labels) == pytest.approx(between / (within / 2), rel=1e-6)
    assert metrics.dunn(z, labels) == pytest.approx(9 / 2, rel=1e-6)


def test_a_singleton_counts_zero_in_the_silhouette():
    z, labels = np.array([[0.0], [1.0], [10.0]]), np.array([0, 0, 1])
    wanted = (1 - 1 / 10 + 1 - 1 / 9 + 0) / 3
    assert metrics.silhouette(z, labels) == pytest.approx(wanted, abs=1e-6)
    assert wanted == pytest.approx(reference.silhouette_score(z, labels))


def test_degenerate_clusters_and_diverged_embeddings_give_nan():
    z = np.random.default_rng(0).normal(size=(6, 2))
    halves = np.array([0, 0, 0, 1, 1, 1])
    broken = np.where(np.arange(6)[:, None] == 2, np.nan, z)
    for x, labels in [
        (z, np.zeros(6, int)),
        (z, np.arange(6)),
        (broken, halves),
        (np.full_like(z, np.inf), halves),
    ]:
        found = metrics.internal_scores(x, labels)
        assert all(type(v) is float and np.isnan(v) for v in found.values()), found


def test_duplicate_points_are_defined_as_in_scikit_learn():
    labels = np.array([0, 0, 1, 1])
    same, twice = np.ones((4, 2)), np.repeat([[0.0, 0.0], [3.0, 4.0]], 2, axis=0)
    for z in (same, twice):
        found = metrics.internal_scores(z, labels)
        assert found["silhouette"] == reference.silhouette_score(z, labels)
        assert found["davies_bouldin"] == reference.davies_bouldin_score(z, labels)
        assert found["calinski_harabasz"] == reference.calinski_harabasz_score(z, labels)
    assert metrics.dunn(twice, labels) == np.inf and np.isnan(metrics.dunn(same, labels))


def test_large_data_are_sampled_by_seed(digits):
    z, y, _ = digits
    for score in (metrics.silhouette, metrics.dunn):
        drawn = [score(z, y, max_rows=600, seed=seed) for seed in (0, 0, 1)]
        assert drawn[0] == drawn[1] != drawn[2]
        assert score(z, y, max_rows=len(z)) == score(z, y)
    assert metrics.silhouette(z, y, max_rows=600) == pytest.approx(
        metrics.silhouette(z, y), abs=0.03
    )


@pytest.mark.parametrize("name", ["_silhouette", "_extremes"])
def test_memory_does_not_grow_with_the_square_of_the_rows(name):
    n, static = 10_000, {"k": 10} if name == "_silhouette" else {}
    shapes = jax.ShapeDtypeStruct((n, 10), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.int32)
    compiled = getattr(internal, name).lower(*shapes, **static).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.15 * 4 * n**2


def test_cluster_sizes_count_empty_clusters_too():
    np.testing.assert_array_equal(metrics.cluster_sizes([0, 3, 3], 5), [1, 0, 0, 2, 0])
    for bad in ([0, 5], [-1, 0]):
        with pytest.raises(ValueError, match=r"expected labels in 0\.\.4"):
            metrics.cluster_sizes(bad, 5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.accuracy([0, 1], [0]),
        lambda: metrics.nmi([], []),
        lambda: metrics.ari(np.zeros((2, 2), int), np.zeros((2, 2), int)),
        lambda: metrics.external_scores([0.0, np.nan], [0, 1]),
        lambda: metrics.contingency([0, 2], [0, 1], 2, 2),
        lambda: metrics.align(["a", "b"], [0, 1]),
        lambda: metrics.stability([0, 1, 1]),
        lambda: metrics.accuracy(np.arange(20_000), np.arange(20_000)),
        lambda: metrics.silhouette(np.zeros(3), [0, 1, 1]),
        lambda: metrics.dunn(np.zeros((3, 2)), [0, 1]),
        lambda: metrics.internal_scores(np.zeros((3, 2)), [0.0, 1.0, 1.0]),
        lambda: metrics.silhouette(np.zeros((3, 2)), [0, 1, 1], max_rows=1),
    ],
)
def test_bad_input_is_an_error_of_one_line(call):
    with pytest.raises(ValueError, match="expected .* found") as error:
        call()
    assert "\n" not in str(error.value)


def test_scores_of_wide_rows_are_of_fewer(monkeypatch):
    """Trap: 10,000 photographs of 3,072 numbers took most of an hour to compare."""
    z = np.random.default_rng(0).normal(size=(300, 50))
    labels = np.arange(300) % 3
    whole = metrics.internal_scores(z, labels)
    monkeypatch.setattr(internal, "_COMPARED", 50 * 100**2)
    found = metrics.internal_scores(z, labels)
    assert found["silhouette"] == internal.silhouette(z, labels, max_rows=100)
    assert found["dunn"] == internal.dunn(z, labels, max_rows=100)
    assert found["silhouette"] != whole["silhouette"]
    assert found["davies_bouldin"] == whole["davies_bouldin"]
