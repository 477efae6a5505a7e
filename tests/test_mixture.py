"""Gaussian mixtures: equality with scikit-learn, invariants, input that has no answer."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from deepclust_jax import data
from deepclust_jax.clustering import mixture

KEY = jax.random.key(0)
OTHER_NAMES = {"diagonal": "diag"}


def blobs(n=300, d=3, k=4, seed=0, spread=6.0):
    """Most tests fit 4 components to 300 rows of 3 features: programs of one shape compile once."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % k
    centres = spread * rng.normal(size=(k, d))
    stretch = 0.3 * rng.normal(size=(k, d, d)) + np.eye(d)
    noise = np.einsum("nd,nde->ne", rng.normal(size=(n, d)), stretch[labels])
    return (centres[labels] + noise).astype(np.float32), labels.astype(np.int32)


def by_sklearn(x, labels, k, covariance, **settings):
    """scikit-learn's mixture from the same labels; its own start from labels is not public."""
    model = GaussianMixture(k, covariance_type=OTHER_NAMES.get(covariance, covariance), **settings)
    x = x.astype(np.float64)
    share = np.eye(k)[labels]
    counts = share.sum(0)
    means = share.T @ x / counts[:, None]
    apart = [x[labels == j] - means[j] for j in range(k)]
    full = np.stack([a.T @ a / len(a) for a in apart]) + 1e-6 * np.eye(x.shape[1])
    diagonal = np.diagonal(full, axis1=1, axis2=2)
    within = sum(a.T @ a for a in apart) / len(x) + 1e-6 * np.eye(x.shape[1])
    precisions = {
        "full": np.linalg.inv(full), "tied": np.linalg.inv(within), "diagonal": 1 / diagonal,
        "spherical": 1 / diagonal.mean(1),
    }[covariance]  # fmt: skip
    model.set_params(
        weights_init=counts / len(x), means_init=means, precisions_init=precisions, **settings
    )
    return model.fit(x)


@pytest.mark.parametrize("covariance", mixture.COVARIANCES)
def test_equals_sklearn_from_the_same_start(covariance):
    x, _ = blobs()
    start = KMeans(4, n_init=1, random_state=1).fit(x).labels_.astype(np.int32)
    found = mixture.fit(KEY, x, 4, covariance=covariance, init=start)
    other = by_sklearn(x, start, 4, covariance)
    assert int(found.n_iter) == other.n_iter_ and bool(found.converged)
    np.testing.assert_allclose(found.log_likelihood, other.score(x.astype(float)), rtol=1e-4)
    np.testing.assert_array_equal(found.labels, other.predict(x.astype(float)))
    np.testing.assert_allclose(found.mixture.means, other.means_, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.mixture.weights, other.weights_, rtol=1e-3)
    wanted = other.covariances_.reshape(found.mixture.covariances.shape)
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(found.mixture.covariances, wanted, rtol=1e-2, atol=1e-3 * scale)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(mixture.bic(found, len(x), covariance), other.bic(wide), rtol=1e-4)
    np.testing.assert_allclose(
        mixture.posterior(x, found.mixture), other.predict_proba(wide), atol=1e-3
    )
    np.testing.assert_allclose(
        mixture.log_likelihood(x, found.mixture), other.score_samples(wide), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("covariance", ["tied", "full"])
def test_equals_sklearn_on_real_images(covariance):
    x = np.asarray(data.load("digits")[0].x).reshape(1797, -1)
    x = PCA(12, random_state=0).fit_transform(x).astype(np.float32)
    start = KMeans(10, n_init=1, random_state=0).fit(x).labels_.astype(np.int32)
    found = mixture.fit(KEY, x, 10, covariance=covariance, init=start)
    other = by_sklearn(x, start, 10, covariance)
    np.testing.assert_allclose(found.log_likelihood, other.score(x.astype(float)), rtol=1e-4)
    assert np.mean(np.asarray(found.labels) != other.predict(x.astype(float))) < 0.002


@pytest.mark.parametrize("covariance", mixture.COVARIANCES)
def test_no_iteration_lowers_the_likelihood(covariance):
    x, _ = blobs(spread=1.0)
    start = np.arange(len(x), dtype=np.int32) % 4  # no clusters at all
    values = [
        float(
            mixture.fit(
                KEY, x, 4, covariance=covariance, init=start, max_iter=m, tol=0.0, ridge=0.0
            ).log_likelihood
        )
        for m in range(1, 12)
    ]
    assert (np.diff(values) > -1e-4).all() and values[-1] > values[0]


def test_the_scatter_of_soft_shares_is_that_of_the_definition():
    """The tied covariance is computed without a product for each component."""
    x, _ = blobs(spread=1.0)
    shares = np.random.default_rng(0).dirichlet(np.ones(4), size=len(x)).astype(np.float32)
    means = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    ones = np.ones(len(x), np.float32)
    moments = jax.jit(mixture._moments, static_argnames="form")
    found = moments(x, ones, shares, means, form="tied", log_likelihood=ones)
    apart = x[:, None] - means[None]
    expected = np.einsum("nk,nkd,nke->de", shares, apart, apart)
    np.testing.assert_allclose(found.squares[0], expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("covariance", mixture.COVARIANCES)
def test_blocks_change_nothing(covariance, monkeypatch):
    x, _ = blobs()
    start = KMeans(4, n_init=1, random_state=1).fit(x).labels_.astype(np.int32)
    whole = mixture.fit(KEY, x, 4, covariance=covariance, init=start)
    monkeypatch.setattr(mixture, "_block", lambda n, d, k, form: 77)
    for name, static in (("_fit", ("n_clusters", "covariance", "n_init")),
                         ("_over_blocks", ("of_joint",))):  # fmt: skip
        anew = partial(getattr(mixture, name).__wrapped__)  # of the same function JAX has a program
        monkeypatch.setattr(mixture, name, jax.jit(anew, static_argnames=static))
    parts = mixture.fit(KEY, x, 4, covariance=covariance, init=start)
    np.testing.assert_array_equal(whole.labels, parts.labels)
    np.testing.assert_allclose(whole.log_likelihood, parts.log_likelihood, rtol=1e-5)


def test_restarts_are_chosen_by_likelihood():
    x, _ = blobs(k=8, seed=1, spread=2.0)
    single = [
        float(mixture.fit(jax.random.key(s), x, 4, n_init=1).log_likelihood) for s in range(6)
    ]
    assert max(single) > min(single) + 0.01  # else this tests nothing
    best = [float(mixture.fit(jax.random.key(s), x, 4).log_likelihood) for s in range(3)]
    assert min(best) > np.mean(single)
    assert best[0] >= single[0]  # the first restart is the run of one


def test_a_pure_function_of_its_key():
    x, _ = blobs()
    a, b = (mixture.fit(jax.random.key(3), x, 4) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("covariance", mixture.COVARIANCES)
def test_shift_and_scale_change_no_label(covariance):
    x, start = blobs()
    one = mixture.fit(KEY, x, 4, covariance=covariance, init=start, ridge=0.0)
    wide = x.astype(np.float64) * 1e-3 + 1e4  # digits that float32 has not
    other = mixture.fit(KEY, wide, 4, covariance=covariance, init=start, ridge=0.0)
    assert np.asarray(other.mixture.means).dtype == np.float64
    assert np.mean(np.asarray(one.labels) != np.asarray(other.labels)) < 0.01
    np.testing.assert_array_equal(mixture.assign(wide, other.mixture), other.labels)
    moved = float(one.log_likelihood) - x.shape[1] * np.log(1e-3)
    np.testing.assert_allclose(other.log_likelihood, moved, rtol=1e-3)


@pytest.mark.parametrize("covariance", mixture.COVARIANCES)
@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
def test_the_ridge_is_relative(covariance, scale):
    x, start = blobs()
    one, other = (
        mixture.fit(KEY, s * x, 4, covariance=covariance, init=start, ridge=0.1).mixture
        for s in (np.float32(1.0), np.float32(scale))
    )
    np.testing.assert_allclose(other.covariances / scale**2, one.covariances, rtol=1e-5)
    without = mixture.fit(KEY, x, 4, covariance=covariance, init=start, ridge=0.0).mixture
    own, plain = (
        np.diagonal(m.covariances, axis1=1, axis2=2) if m.covariances.ndim == 3 else m.covariances
        for m in (one, without)
    )
    # More in some, as shares have changed.
    assert np.min(np.asarray(own) - np.asarray(plain)) > 0.05 * np.mean(np.var(x, axis=0))


def test_labels_are_those_of_assign():
    x, start = blobs(spread=2.0)
    for covariance in mixture.COVARIANCES:
        found = mixture.fit(KEY, x, 4, covariance=covariance, init=start)
        np.testing.assert_array_equal(mixture.assign(x, found.mixture), found.labels)
        joint = jax.jit(mixture.log_joint)(x, found.mixture)
        np.testing.assert_array_equal(np.argmax(joint, axis=1), found.labels)


def test_tied_is_kmeans_in_the_metric_of_the_scatter_within():
    """Sheets that k-means cuts across are told apart, as in test_adaptive.py by adaptive.py."""
    rng = np.random.default_rng(0)
    labels = np.arange(600) % 3
    x = rng.normal(size=(600, 3)) * [30.0, 1.0, 1.0]
    x[:, 1] += 8 * labels
    x = x.astype(np.float32)
    found = np.asarray(mixture.fit(KEY, x, 3, covariance="tied", n_init=20).labels)
    assert len(set(zip(found.tolist(), labels.tolist(), strict=True))) == 3
    plain = KMeans(3, n_init=10, random_state=0).fit(x).labels_
    assert len(set(zip(plain.tolist(), labels.tolist(), strict=True))) > 3


def test_masked_components_are_as_fewer():
    x, start = blobs()
    few = mixture.fit(KEY, x, 4, init=start)
    many = mixture.fit(KEY, x, 6, init=start, n_active=4)
    np.testing.assert_array_equal(few.labels, many.labels)
    np.testing.assert_allclose(few.log_likelihood, many.log_likelihood, rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(many.mixture.weights)[4:], 0.0)
    np.testing.assert_allclose(mixture.bic(few, len(x), "full"), mixture.bic(many, len(x), "full"))


def test_a_population_in_one_program():
    x, _ = blobs()
    keys = jax.random.split(KEY, 3)
    for n_init in (1, 10):
        many = jax.vmap(lambda key, n=n_init: mixture.fit(key, x, 4, n_init=n))(keys)
        one = [mixture.fit(key, x, 4, n_init=n_init) for key in keys]
        likelihoods = [found.log_likelihood for found in one]
        np.testing.assert_allclose(many.log_likelihood, likelihoods, rtol=1e-5)
        if n_init == 1:  # of two runs as good as each other rounding decides
            np.testing.assert_array_equal(many.labels, [found.labels for found in one])


def test_log_joint_is_differentiable():
    x, start = blobs()
    found = mixture.fit(KEY, x, 4, init=start).mixture

    def value(means):
        joint = mixture.log_joint(jnp.asarray(x), found._replace(means=means))
        return jnp.mean(jax.nn.logsumexp(joint, axis=1))

    grad = np.asarray(jax.jit(jax.grad(value))(found.means))
    assert np.isfinite(grad).all() and np.abs(grad).max() < 1e-2  # at the maximum


def test_second_call_compiles_nothing():
    x, _ = blobs()
    mixture.fit(KEY, x, 4)
    size = mixture._fit._cache_size()
    mixture.fit(jax.random.key(7), x + 1, 4, max_iter=5, tol=1e-2, ridge=1e-3)
    assert mixture._fit._cache_size() == size


@pytest.mark.parametrize("form", ["spherical", "diagonal"])
def test_the_variance_of_rows_that_are_alike_is_not_below_zero(form):
    """Trap: rounding leaves less than nothing of E x^2 - (E x)^2."""
    away = np.linspace(0.1, 3.0, 50, dtype=np.float32)[:, None]
    three = np.full(50, 3.0, np.float32)
    moments = mixture._Moments(three, 3 * away, 3 * away**2, jnp.zeros(()))
    old = mixture.Mixture(np.full(50, 0.02), np.zeros((50, 1)), np.ones((50, 1)))
    found = mixture._maximise(moments, jax.tree.map(jnp.asarray, old), form, 0.0)
    assert (found.covariances >= 0).all()


def test_duplicates_and_constant_features_end():
    x = np.repeat(np.float32([[0.0, 1.0, 5.0], [4.0, 1.0, 5.0]]), 150, axis=0)
    place = np.repeat(np.int32([0, 1]), 150)
    by_kmeans = mixture.fit(KEY, x, 4, n_init=1)
    given = [mixture.fit(KEY, x, 4, covariance=c, init=place) for c in mixture.COVARIANCES]
    for found in (by_kmeans, *given):
        labels = np.asarray(found.labels)
        assert np.isfinite(found.log_likelihood)
        assert (labels == labels[[0, 150]][place]).all() and labels[0] != labels[150]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"covariance": "round"}, "expected covariance 'full', 'tied', 'diagonal', 'spherical'"),
        ({"init": "random"}, r"expected init 'k-means' or labels \[n\], found 'random'"),
        ({"init": np.zeros(7, np.int32)}, r"expected labels \[300\] as whole numbers"),
        ({"init": np.zeros(300)}, r"expected labels \[300\] as whole numbers, found float64"),
        ({"init": np.full(300, 4)}, "expected labels from 0 to 3, found 4 to 4"),
        ({"ridge": -1.0}, "expected ridge >= 0"),
        ({"n_clusters": 301}, "expected 1 <= n_clusters <= 300"),
        ({"n_init": 0}, "expected n_init and max_iter >= 1"),
        ({"x": np.full((300, 2), np.nan)}, "expected finite x"),
        ({"key": 3}, "expected one key"),
    ],
)
def test_bad_input(change, message):
    arguments = {"key": KEY, "x": blobs()[0], "n_clusters": 4} | change
    with pytest.raises(ValueError, match=message) as error:
        mixture.fit(**arguments)
    assert "\n" not in str(error.value)


def test_a_row_too_far_for_float32_has_probabilities():
    x = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    found = mixture.fit(KEY, x, 4).mixture
    far = np.concatenate([np.float32([[1e20, 0.0, 0.0], [0.0, 0.0, 0.0]]), x[2:]])
    np.testing.assert_allclose(np.sum(mixture.posterior(far, found), axis=1), 1.0, rtol=1e-5)
    assert np.isfinite(mixture.log_likelihood(far, found)).all()


def test_labels_beyond_the_components_in_use_are_refused():
    x = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    labels = np.arange(30, dtype=np.int32) % 3
    with pytest.raises(ValueError, match="labels from 0 to 1, found 0 to 2"):
        mixture.fit(jax.random.key(0), x, 3, init=labels, n_active=2)
