"""How many clusters: scores as scikit-learn's, the number found on rows that have one."""

import jax
import numpy as np
import pytest
from sklearn import cluster, datasets
from sklearn import metrics as their_metrics
from sklearn.mixture import GaussianMixture

from deepclust_jax.clustering import kmeans, select_k

KEY = jax.random.key(0)
FEW = dict(n_init=4, n_references=4, n_halves=3)  # with 600 x 4 rows and k_max 6: compiled once


@pytest.fixture(scope="module")
def blobs():
    centres = 8 * np.concatenate([np.zeros((1, 4)), np.eye(4)])  # all far from each other
    x = datasets.make_blobs(600, centers=centres, cluster_std=1.0, random_state=3)[0]
    return x.astype(np.float32)


@pytest.fixture(scope="module")
def evidence(blobs):
    return select_k.sweep(KEY, blobs, 6, **FEW)


def test_scores_as_sklearn(blobs, evidence):
    for i, k in enumerate(evidence.k):
        theirs = cluster.KMeans(k, n_init=10, random_state=0).fit(blobs)
        np.testing.assert_allclose(evidence.inertia[i], theirs.inertia_, rtol=0.02)
        centroids = evidence.centroids[i, :k]
        labels = np.asarray(kmeans.assign(blobs, centroids)[0])
        inertia = ((blobs - centroids[labels]) ** 2).sum()
        np.testing.assert_allclose(evidence.inertia[i], inertia, rtol=1e-4)
        if k == 1:
            assert np.isnan(evidence.silhouette[i]) and np.isnan(evidence.davies_bouldin[i])
            continue
        for name, score in (
            ("silhouette", their_metrics.silhouette_score),
            ("calinski_harabasz", their_metrics.calinski_harabasz_score),
            ("davies_bouldin", their_metrics.davies_bouldin_score),
        ):
            np.testing.assert_allclose(getattr(evidence, name)[i], score(blobs, labels), rtol=1e-3)


def test_every_score_finds_the_number_of_blobs(evidence):
    assert select_k.suggestions(evidence) == {
        "silhouette": 5, "calinski_harabasz": 5, "davies_bouldin": 5, "gap": 5, "bic": 5,
        "stability": 5,
    }  # fmt: skip
    assert evidence.stability[4] > 0.99 and evidence.stability[5] < 0.98
    assert (np.diff(evidence.inertia) < 0).all()


def test_shares_of_the_numbers_over_draws(blobs, evidence):
    other = select_k.sweep(jax.random.key(5), blobs, 6, **FEW)
    found = select_k.distribution([evidence, other])
    assert list(found) == [*select_k.suggestions(evidence), "all"]
    for shares in found.values():
        np.testing.assert_allclose(shares.sum(), 1.0)
    assert found["all"][4] > 0.9, "five blobs"
    # Worked: a score that speaks for 3 once and once for 5, and one that is silent in one draw.
    changed = other._replace(
        silhouette=np.where(other.k == 3, 2.0, other.silhouette),
        gap=np.linspace(0, 6, 6), gap_error=np.zeros(6),
    )  # fmt: skip
    found = select_k.distribution([evidence, changed])
    np.testing.assert_allclose(found["silhouette"], np.eye(6)[[2, 4]].mean(0))
    np.testing.assert_allclose(found["gap"], np.eye(6)[4])


def test_draws_of_other_numbers_have_no_shares(evidence):
    few = evidence._replace(k=evidence.k[:3])
    for draws in ([], [evidence, few]):
        with pytest.raises(ValueError, match="expected sweeps of the same numbers"):
            select_k.distribution(draws)


def test_one_cluster_is_found_by_the_gap_and_the_bic():
    x = np.random.default_rng(0).normal(size=(600, 4)).astype(np.float32)
    found = select_k.suggestions(select_k.sweep(KEY, x, 6, **FEW))
    assert found["gap"] == 1 and found["bic"] == 1


def test_bic_as_sklearn(blobs, evidence):
    labels = np.asarray(kmeans.assign(blobs, evidence.centroids[4, :5])[0])
    within = np.concatenate([blobs[labels == j] - blobs[labels == j].mean(0) for j in range(5)])
    theirs = GaussianMixture(
        5, covariance_type="tied", means_init=evidence.centroids[4, :5],
        weights_init=np.bincount(labels) / len(blobs),
        precisions_init=np.linalg.inv(within.T @ within / len(blobs)),
    ).fit(blobs)  # fmt: skip
    np.testing.assert_allclose(evidence.bic[4], theirs.bic(blobs), rtol=1e-3)


def test_references_lie_in_the_box_of_the_principal_axes():
    x = np.random.default_rng(0).uniform(-1, 1, size=(500, 2)) * [10, 1]
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    drawn = np.asarray(select_k._without_clusters(KEY, (x @ turn).astype(np.float32))) @ turn.T
    np.testing.assert_allclose(np.abs(drawn).max(axis=0), [10, 1], rtol=0.1)
    np.testing.assert_allclose(drawn.std(axis=0), np.array([10, 1]) / np.sqrt(3), rtol=0.1)


def test_offset_and_part_of_the_rows():
    x = datasets.make_blobs(4000, 4, centers=4, cluster_std=0.5, random_state=1)[0] + 1e6
    found = select_k.sweep(KEY, x, 6, max_rows=600, **FEW)
    assert found.k.tolist() == [1, 2, 3, 4, 5, 6]
    assert select_k.suggestions(found)["silhouette"] == 4
    true = cluster.KMeans(4, n_init=5, random_state=0).fit(x).cluster_centers_
    ours = found.centroids[3, :4]
    assert np.abs(true[:, None] - ours[None]).sum(-1).min(1).max() < 0.3


def test_real_digits():
    x = datasets.load_digits().data[:900]
    found = select_k.sweep(KEY, x, 11, k_min=9, n_init=2, n_references=2, n_halves=3)
    for i, k in enumerate(found.k):
        labels = np.asarray(kmeans.assign(x, found.centroids[i, :k])[0])
        score = their_metrics.silhouette_score(x, labels)
        np.testing.assert_allclose(found.silhouette[i], score, rtol=2e-3)
    assert (found.stability > 0.6).all() and (found.gap > 0).all()


def test_rows_that_are_all_alike_say_nothing():
    assert select_k.suggestions(select_k.sweep(KEY, np.ones((600, 4)), 6, **FEW)) == {}
    found = select_k.sweep(KEY, np.repeat(np.eye(4)[:3], 200, axis=0), 6, **FEW)
    assert np.isnan(found.silhouette[2:]).all() and np.isfinite(found.silhouette[1])


def test_compiles_once(blobs):
    select_k.sweep(KEY, blobs, 6, **FEW)
    before = select_k._sweep._cache_size()
    select_k.sweep(jax.random.key(1), blobs, 6, **FEW)
    assert select_k._sweep._cache_size() == before


@pytest.mark.parametrize(
    "change, message",
    [
        ({"k_max": 500}, "expected 1 <= k_min <= k_max <= 300"),
        ({"k_min": 0}, "expected 1 <= k_min"),
        ({"k_min": 5}, "expected 1 <= k_min"),
        ({"n_references": 1}, "expected n_references and n_halves >= 2, found 1 and 6"),
        ({"x": np.ones(5)}, r"expected rows x of shape \[n, d\]"),
        ({"x": np.full((600, 2), np.inf)}, "expected finite x"),
    ],
)
def test_bad_input(blobs, change, message):
    with pytest.raises(ValueError, match=message) as error:
        select_k.sweep(KEY, **({"x": blobs, "k_max": 4} | change))
    assert "\n" not in str(error.value)


def test_the_scale_of_the_rows_changes_no_suggestion():
    centres = 8.0 * np.eye(4)[:3]
    x = np.repeat(centres, 200, axis=0) + np.random.default_rng(0).normal(size=(600, 4))
    found = [
        select_k.suggestions(select_k.sweep(KEY, (s * x).astype(np.float32), 6, **FEW))
        for s in (1.0, 1e-4)
    ]
    assert found[0] == found[1]
    assert found[1]["bic"] == 3
