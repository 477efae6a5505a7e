"""k-means: worked numbers, scikit-learn's answers, the edge cases and the traps of the field."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import cluster, datasets

from deepclust_jax import data, metrics
from deepclust_jax.clustering import hierarchical, kmeans, lloyd, seeding, sharded, streaming

KEY = jax.random.key(0)


def rows(seed=0, n=300, d=5, k=4):
    """Most tests fit 4 clusters to 300 rows of 5 features: programs of one shape compile once."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(k, d)) * 3
    return (centres[rng.integers(k, size=n)] + rng.normal(size=(n, d))).astype(np.float32)


def nearest(x, centroids):
    x, centroids = np.asarray(x, np.float64), np.asarray(centroids, np.float64)
    return ((x[:, None] - centroids[None]) ** 2).sum(-1)


def assert_same_labels(x, ours, theirs, centroids):
    """Equal labels, but for rows as near to one centroid as to the other in float32."""
    differ = np.flatnonzero(np.asarray(ours) != theirs)
    sqdist = nearest(x[differ], centroids)
    at = np.arange(len(differ))
    gap = np.abs(sqdist[at, np.asarray(ours)[differ]] - sqdist[at, theirs[differ]])
    scale = (x[differ].astype(np.float64) ** 2).sum(-1)
    np.testing.assert_array_less(gap, 1e-5 * np.maximum(scale, 1e-30))
    assert len(differ) <= max(1, len(x) // 10_000), f"{len(differ)} labels differ"


def compare_with_sklearn(x, k, seed=0):
    first = x[np.random.default_rng(seed).choice(len(x), k, replace=False)]
    # In float64: in float32 scikit-learn's own labels change with rounding on digits.
    theirs = cluster.KMeans(k, init=first.astype(np.float64), n_init=1).fit(x.astype(np.float64))
    ours = kmeans.fit(KEY, x, k, init=first)
    assert_same_labels(x, ours.labels, theirs.labels_, theirs.cluster_centers_)
    np.testing.assert_allclose(ours.inertia, theirs.inertia_, rtol=1e-5)
    return ours, theirs


def test_worked_example_with_a_cluster_that_starts_empty():
    """Four points and four centroids, one of which no point is nearest to."""
    x = np.array([[0, 0], [1, 0], [9, 0], [10, 0]], np.float32)
    first = np.array([[0, 0], [9, 0], [10, 0], [100, 100]], np.float32)
    found = kmeans.fit(KEY, x, 4, init=first)
    assert float(found.inertia) == 0.0
    assert sorted(np.asarray(found.centroids)[:, 0].tolist()) == [0, 1, 9, 10]
    assert len(set(np.asarray(found.labels).tolist())) == 4


@pytest.mark.parametrize("seed", range(4))
def test_equals_sklearn_on_digits(seed):
    x = (datasets.load_digits().data / 16).astype(np.float32)
    compare_with_sklearn(x, 10, seed)


@pytest.mark.parametrize("name", ["usps", "mnist"])
def test_equals_sklearn_on_real_images(data_dir, name):
    images = np.load(data_dir / f"{name}.npz", allow_pickle=False)["X"][:10_000]
    x = images.reshape(len(images), -1).astype(np.float32) / 255
    ours, theirs = compare_with_sklearn(x, 10)
    assert abs(int(ours.n_iter) - theirs.n_iter_) <= 1


@pytest.mark.parametrize("name, k", [("pendigits", 10), ("pbmc4k", 8), ("pbmc4k", 40)])
def test_equals_sklearn_on_real_tables(data_dir, name, k):
    dataset, _ = data.load(name)
    compare_with_sklearn(np.asarray(dataset.x, np.float32), k)


def test_iterations_as_sklearn():
    x = rows()
    first = x[:4]
    for max_iter in (1, 2, 3):
        theirs = cluster.KMeans(4, init=first, n_init=1, max_iter=max_iter, tol=0).fit(x)
        ours = kmeans.fit(KEY, x, 4, init=first, max_iter=max_iter, tol=0.0)
        np.testing.assert_allclose(ours.centroids, theirs.cluster_centers_, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(ours.labels, theirs.labels_)


def test_inertia_never_rises():
    x = rows(1, k=12)
    inertia = [
        float(kmeans.fit(KEY, x, 4, init=x[:4], max_iter=i, tol=0.0).inertia) for i in range(1, 15)
    ]
    assert all(b <= a * (1 + 1e-6) for a, b in zip(inertia, inertia[1:], strict=False))
    assert inertia[-1] < inertia[0]


def test_labels_belong_to_the_returned_centroids():
    """Trap (sklearn#34074): labels of the iteration before the last centroid update."""
    x = rows(2, k=12)
    for max_iter in (1, 2, 300):
        found = kmeans.fit(KEY, x, 4, n_init=1, max_iter=max_iter)
        np.testing.assert_array_equal(found.labels, nearest(x, found.centroids).argmin(1))
        labels, sqdist = kmeans.assign(x, found.centroids)
        np.testing.assert_array_equal(labels, found.labels)
        np.testing.assert_allclose(sqdist.sum(), found.inertia, rtol=1e-5)


def test_more_restarts_never_hurt():
    x = rows(3, k=12)
    few = [float(kmeans.fit(jax.random.key(s), x, 4, n_init=1).inertia) for s in range(8)]
    many = [float(kmeans.fit(jax.random.key(s), x, 4, n_init=10).inertia) for s in range(8)]
    assert np.mean(many) < np.mean(few) and max(many) < max(few)


@pytest.mark.parametrize("offset, dtype", [(1e3, np.float32), (1e6, np.float64)])
def test_large_offset(offset, dtype):
    """Trap: |x|^2 - 2xc + |c|^2 in float32 loses the labels of offset data."""
    x = rows(4).astype(dtype)
    plain, moved = (kmeans.fit(KEY, v.astype(dtype), 4, init=v[:4]) for v in (x, x + dtype(offset)))
    np.testing.assert_array_equal(plain.labels, moved.labels)
    np.testing.assert_allclose(plain.inertia, moved.inertia, rtol=1e-4)
    np.testing.assert_allclose(moved.centroids - dtype(offset), plain.centroids, atol=1e-3)
    labels, _ = kmeans.assign(x + dtype(offset), moved.centroids)
    np.testing.assert_array_equal(labels, plain.labels)
    on_device = kmeans.fit(
        KEY, jnp.asarray(x + dtype(offset), jnp.float32), 4, init=moved.centroids
    )
    if dtype == np.float32:
        np.testing.assert_array_equal(on_device.labels, plain.labels)


@pytest.mark.parametrize("far", [1e4, 1e6])
def test_one_row_far_away_moves_no_other_label(far):
    """Trap: an origin that follows an outlier costs all other rows their digits."""
    rng = np.random.default_rng(0)
    centres = 10 * np.eye(5)[:3]
    x = np.concatenate([centres[rng.integers(3, size=299)] + rng.normal(size=(299, 5)),
                        np.full((1, 5), far)]).astype(np.float32)  # fmt: skip
    first = np.concatenate([centres, np.full((1, 5), far)]).astype(np.float32)
    theirs = cluster.KMeans(4, init=first.astype(np.float64), n_init=1).fit(x.astype(np.float64))
    for init in (first, "k-means++"):
        found = kmeans.fit(KEY, x, 4, init=init)
        assert metrics.ari(theirs.labels_, np.asarray(found.labels)) == 1.0
    labels, _ = kmeans.assign(jnp.asarray(x), jnp.asarray(theirs.cluster_centers_, jnp.float32))
    np.testing.assert_array_equal(labels, theirs.labels_)


@pytest.mark.parametrize("scale", [1e-22, 1e20])
def test_scale_of_the_data(scale):
    """Trap: squares that overflow or vanish in float32."""
    x = rows()
    found = kmeans.fit(
        KEY, (x * scale).astype(np.float32), 4, init=(x[:4] * scale).astype(np.float32)
    )
    np.testing.assert_array_equal(found.labels, kmeans.fit(KEY, x, 4, init=x[:4]).labels)
    labels, _ = kmeans.assign((x * scale).astype(np.float32), found.centroids)
    np.testing.assert_array_equal(labels, found.labels)


def test_large_integers():
    x = (1_700_000_000 + 100 * np.round(10 * rows())).astype(np.int64)
    found = kmeans.fit(KEY, x, 4)
    np.testing.assert_array_equal(kmeans.assign(x, found.centroids)[0], found.labels)
    assert len(np.unique(found.centroids, axis=0)) == 4


def test_float64_input_gives_float64_centroids():
    found = kmeans.fit(KEY, rows().astype(np.float64), 4)
    assert found.centroids.dtype == np.float64


@pytest.mark.parametrize("dtype", [np.float16, np.int32, np.uint8])
def test_other_types_are_computed_in_float32(dtype):
    x = np.round(np.abs(rows())).astype(dtype)
    found = kmeans.fit(KEY, x, 4, init=x[:4])
    reference = kmeans.fit(KEY, x.astype(np.float32), 4, init=x[:4].astype(np.float32))
    np.testing.assert_array_equal(found.labels, reference.labels)
    assert found.centroids.dtype == (np.float64 if dtype == np.int32 else np.float32)
    np.testing.assert_array_equal(
        kmeans.fit(KEY, jnp.asarray(x), 4, init=jnp.asarray(x[:4])).labels, reference.labels
    )


def test_one_cluster_is_the_mean():
    x = rows()
    found = kmeans.fit(KEY, x, 1)
    np.testing.assert_allclose(found.centroids[0], x.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.inertia, ((x - x.mean(0)) ** 2).sum(), rtol=1e-5)


def test_as_many_clusters_as_rows():
    x = rows(n=8)
    found = kmeans.fit(KEY, x, 8)
    assert len(np.unique(found.labels)) == 8
    np.testing.assert_allclose(found.inertia, 0.0, atol=1e-6)


def test_duplicates_fewer_distinct_rows_than_clusters():
    x = np.repeat(rows(n=3), 100, axis=0)
    found = kmeans.fit(KEY, x, 4)
    assert len(np.unique(found.labels)) == 3 and float(found.inertia) < 1e-8
    assert np.isfinite(found.centroids).all()


def test_constant_features_change_nothing():
    x = rows(d=3)
    padded = np.concatenate([x, np.full((len(x), 2), 7, np.float32)], axis=1)
    wanted = cluster.KMeans(4, init=x[:4], n_init=1, tol=0).fit(x).labels_
    found = kmeans.fit(KEY, padded, 4, init=padded[:4], tol=0.0)
    np.testing.assert_array_equal(found.labels, wanted)


@pytest.mark.parametrize("make_x", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("make_init", [np.asarray, jnp.asarray])
def test_first_centroids_of_either_kind_of_array(make_x, make_init):
    """Trap: rows centred on the host, and first centroids on the device that were not."""
    x = rows() + np.float32(50)
    wanted = cluster.KMeans(4, init=x[:4], n_init=1, tol=0).fit(x).labels_
    found = kmeans.fit(KEY, make_x(x), 4, init=make_init(x[:4]), tol=0.0)
    np.testing.assert_array_equal(found.labels, wanted)


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_first_centroids_on_the_device_beside_wide_rows(dtype):
    """Trap: rows of float64 are centred on the host; first centroids must follow them."""
    x = (100 * rows() + 1000).astype(dtype)
    a, b = (
        kmeans.fit(KEY, x, 4, init=make(x[:4]), max_iter=1) for make in (np.asarray, jnp.asarray)
    )
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_allclose(a.centroids, b.centroids, rtol=1e-6)


def test_rows_without_weight_set_no_scale():
    x = rows(n=298)
    far = np.concatenate([x, np.full((1, 5), 1e9, np.float32), np.full((1, 5), -3e38, np.float32)])
    weights = np.r_[np.ones(298), 0, 0].astype(np.float32)
    found = kmeans.fit(KEY, far, 4, init=x[:4], weights=weights, tol=0.0)
    alone = cluster.KMeans(4, init=x[:4], n_init=1, tol=0).fit(x)
    np.testing.assert_array_equal(np.asarray(found.labels)[:298], alone.labels_)
    np.testing.assert_allclose(found.inertia, alone.inertia_, rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-60, 1e200])
def test_cosine_of_rows_beyond_float32(scale):
    x = rows().astype(np.float64)
    first = x[:4]
    a, b = (kmeans.fit(KEY, v, 4, init=first, metric="cosine") for v in (x, x * scale))
    np.testing.assert_array_equal(a.labels, b.labels)


@pytest.mark.parametrize(
    "change", [{"x": [[1.0], [2.0]]}, {"init": [[1.0], [2.0]]}, {"weights": [1.0] * 9}]
)
def test_lists_are_refused(change):
    with pytest.raises(ValueError, match="expected"):
        kmeans.fit(KEY, n_clusters=2, **({"x": np.eye(9, dtype=np.float32)} | change))


def test_assign_refuses_no_centroids():
    with pytest.raises(ValueError, match="expected x"):
        kmeans.assign(rows(), np.zeros((0, 5), np.float32))


def test_ties_go_to_the_lowest_index():
    x = np.array([[0.0], [2.0], [1.0]], np.float32)
    for centroids in ([[0.0], [2.0]], [[2.0], [0.0]], [[2.0], [2.0], [0.0]]):
        labels, _ = kmeans.assign(x, np.array(centroids, np.float32))
        np.testing.assert_array_equal(labels, nearest(x, centroids).argmin(1))


def test_ties_of_integers_as_numpy():
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 3, size=(500, 2)).astype(np.float32)
    centroids = rng.permutation(np.unique(x, axis=0))[:10] * 2
    centroids -= centroids.mean(0).round()  # keeps the arithmetic exact
    labels, _ = kmeans.assign(jnp.asarray(x), jnp.asarray(centroids))
    tied = nearest(x, centroids)
    exact = (tied == tied.min(1, keepdims=True)).sum(1) > 1
    assert exact.sum() > 20
    np.testing.assert_array_equal(labels, tied.argmin(1))


def test_weights_equal_repetition():
    x, counts = rows(), np.random.default_rng(1).integers(1, 4, size=300)
    found = kmeans.fit(KEY, x, 4, init=x[:4], weights=counts.astype(np.float32), tol=0.0)
    repeated = cluster.KMeans(4, init=x[:4], n_init=1, tol=0).fit(np.repeat(x, counts, axis=0))
    np.testing.assert_array_equal(np.repeat(np.asarray(found.labels), counts), repeated.labels_)
    np.testing.assert_allclose(found.inertia, repeated.inertia_, rtol=1e-5)


def test_rows_without_weight_do_not_count():
    x = rows(n=295)
    with_outliers = np.concatenate([x, 1e3 + rows(5, n=5)])
    weights = np.r_[np.ones(295), np.zeros(5)].astype(np.float32)
    found = kmeans.fit(KEY, with_outliers, 4, init=x[:4], weights=weights, tol=0.0)
    alone = cluster.KMeans(4, init=x[:4], n_init=1, tol=0).fit(x)
    np.testing.assert_allclose(found.centroids, alone.cluster_centers_, rtol=1e-3, atol=1e-3)
    seeds = np.asarray(kmeans.fit(KEY, with_outliers, 4, weights=weights).centroids)
    assert np.abs(seeds).max() < 100


PLANS = [
    lloyd.Plan("features", 3000, "scatter", "all"),
    lloyd.Plan("rows", 3000, "scatter", "moved"),
    lloyd.Plan("rows", 3000, "product", "all"),
    lloyd.Plan("blocks", 700, "scatter", "moved"),
    lloyd.Plan("blocks", 700, "product", "all"),
    lloyd.Plan("blocks", 1000, "scatter", "all"),
]


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: "-".join(map(str, plan)))
def test_every_plan_gives_the_same(monkeypatch, plan):
    x = rows(6, n=3000)
    theirs = cluster.KMeans(7, init=x[:7].astype(np.float64), n_init=1, tol=0).fit(
        x.astype(np.float64)
    )
    monkeypatch.setattr(lloyd, "plan", lambda *shape, weighted: plan)
    found = kmeans.fit(KEY, x, 7, init=x[:7], tol=0.0)
    np.testing.assert_array_equal(found.labels, theirs.labels_)
    np.testing.assert_allclose(found.inertia, theirs.inertia_, rtol=1e-6)
    assert bool(found.converged) and int(found.n_iter) == theirs.n_iter_


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: "-".join(map(str, plan)))
def test_sums_of_many_rows(plan):
    """Trap: row after row added to one float32 loses a digit for every hundredfold of rows."""
    x = np.random.default_rng(0).uniform(size=(200_000, 4)).astype(np.float32)
    labels = jnp.asarray(np.arange(200_000) % 3, jnp.int32)
    ready = lloyd.prepare(plan, jnp.asarray(x), jnp.ones(len(x)))
    sums = [jax.jit(lloyd.all_totals, static_argnums=(0, 3))(plan, ready, labels, 3)]
    if plan.update == "moved":
        zeros = lloyd.Totals(jnp.zeros((3, 4)), jnp.zeros(3))
        sums.append(jax.jit(lloyd._moved)(ready.x, zeros, labels, jnp.full(len(x), -1)))
    for found in sums:
        true = np.stack([x[i::3].sum(0, dtype=np.float64) for i in range(3)])
        np.testing.assert_allclose(found.sums, true, rtol=1e-6)
        np.testing.assert_array_equal(found.counts, [66_667, 66_667, 66_666])


def test_rows_that_moved_leave_nothing_behind():
    """A heavy cluster that loses all rows but one: float32 sums that only gave rows away would be
    rounding noise. Labels must be those of the exact means."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(5000, 40)) + 1e3, rng.normal(size=(1, 40))])
    x = x.astype(np.float32)
    first = np.stack([x[-1] + 480, x[0] + 5e3]).astype(np.float32)  # all to the first, then split
    plan = lloyd.Plan("rows", len(x), "scatter", "moved")
    start = jnp.asarray(first)
    ready = lloyd.prepare(plan, jnp.asarray(x), jnp.ones(len(x)))
    active = jnp.ones(2, bool)
    found = jax.jit(lloyd.descend, static_argnums=0)(plan, ready, start, active, 50, 0.0)
    exact = np.stack([x[np.asarray(found.labels) == j].mean(0, dtype=np.float64) for j in (0, 1)])
    np.testing.assert_allclose(found.centroids, exact, rtol=5e-6, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(found.labels), nearest(x, exact).argmin(1))


def test_light_rows_beside_heavy_ones():
    """Trap: sums that are corrected by moved rows lose clusters of small weight."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(2000, 40)), 5 + rng.normal(size=(300, 40))])
    x = x.astype(np.float32)
    weights = np.repeat(np.float32([1e6, 1e-3]), [2000, 300])
    weights *= rng.uniform(0.5, 1.5, size=2300).astype(np.float32)
    first = x[[0, 1, 2, 3, 2000, 2100]]
    found = kmeans.fit(KEY, x, 6, init=first, weights=weights, tol=0.0)
    theirs = cluster.KMeans(6, init=first.astype(np.float64), n_init=1, tol=0)
    theirs = theirs.fit(x.astype(np.float64), sample_weight=weights.astype(np.float64))
    np.testing.assert_array_equal(found.labels, theirs.labels_)
    np.testing.assert_allclose(found.centroids, theirs.cluster_centers_, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n, d, k", [(1_000_000, 64, 256), (200_000, 128, 1024), (70_000, 784, 10)])
def test_memory_of_a_fit(n, d, k):
    """64 MB and two labels for each row beside the rows themselves, restarts or not."""
    x = jax.ShapeDtypeStruct((n, d), jnp.float32)
    first = jax.ShapeDtypeStruct((k, d), jnp.float32)
    args = KEY, x, k, first, 300, 1e-4, None, None, jnp.float32(1)
    plan = lloyd.plan(n, d, k)
    static = dict(init="given", n_init=1, plan=plan, as_it_is=True)
    memory = kmeans._fit.lower(*args, **static).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 64 * 2**20 + 2 * 4 * n


def test_never_holds_the_distance_matrix():
    n, k = 200_000, 500
    x = jax.ShapeDtypeStruct((n, 4), jnp.float32)
    centroids = jax.ShapeDtypeStruct((k, 4), jnp.float32)
    memory = jax.jit(kmeans.assign).lower(x, centroids).compile().memory_analysis()
    assert memory.temp_size_in_bytes < n * k * 4 / 10


def test_population_equals_single_runs():
    x = rows(7)
    keys = jax.random.split(KEY, 3)
    many = jax.vmap(lambda key: kmeans.fit(key, x, 4))(keys)
    for i, key in enumerate(keys):
        one = kmeans.fit(key, x, 4)
        np.testing.assert_array_equal(many.labels[i], one.labels)
        np.testing.assert_allclose(many.inertia[i], one.inertia, rtol=1e-5)


def test_vmap_over_data():
    data = jnp.stack([jnp.asarray(rows(s)) for s in (8, 9)])
    many = jax.vmap(lambda x: kmeans.fit(KEY, x, 4))(data)
    for i in range(2):
        one = kmeans.fit(KEY, data[i], 4)
        np.testing.assert_array_equal(many.labels[i], one.labels)


def test_masked_k_in_one_program():
    x = rows(10)
    ks = np.arange(1, 5)
    sweep = jax.vmap(lambda k: kmeans.fit(KEY, x, 4, n_active=k))(ks)
    assert [len(np.unique(labels)) for labels in np.asarray(sweep.labels)] == [1, 2, 3, 4]
    one = [cluster.KMeans(k, n_init=10, random_state=0).fit(x).inertia_ for k in ks]
    np.testing.assert_allclose(sweep.inertia, one, rtol=0.05)


def test_second_call_does_not_compile():
    x = rows()
    kmeans.fit(KEY, x, 4)
    before = kmeans._fit._cache_size()
    kmeans.fit(jax.random.key(5), x + 1, 4)
    assert kmeans._fit._cache_size() == before


def test_assign_is_differentiable():
    x, c = rows(n=10), rows(1, n=3)
    dx, dc = jax.grad(lambda x, c: kmeans.assign(x, c)[1].sum(), argnums=(0, 1))(
        *map(jnp.asarray, (x, c))
    )
    labels = nearest(x, c).argmin(1)
    np.testing.assert_allclose(dx, 2 * (x - c[labels]), rtol=1e-5)
    member = np.eye(3)[labels]
    np.testing.assert_allclose(dc, 2 * member.T @ (c[labels] - x), rtol=1e-4, atol=1e-4)


def test_fit_is_differentiable_at_fixed_labels():
    x = rows()
    fit = lambda x: kmeans.fit(KEY, x, 4, init=rows()[:4], tol=0.0)  # noqa: E731
    direction = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    step = np.float32(1e-2)
    ahead, behind = (float(fit(x + sign * step * direction).inertia) for sign in (1, -1))
    gradient = jax.grad(lambda x: fit(x).inertia)(jnp.asarray(x))
    numeric = (ahead - behind) / (2 * step)
    np.testing.assert_allclose(np.sum(gradient * direction), numeric, rtol=1e-2)
    jacobian = jax.jacrev(lambda x: fit(x).centroids)(jnp.asarray(x))
    member = np.eye(4)[fit(x).labels]
    expected = (member / member.sum(0)).T  # d centroid / d row, the same for each feature
    np.testing.assert_allclose(np.asarray(jacobian)[:, 0, :, 0], expected, atol=1e-6)


def test_gradient_through_init_and_weights():
    x = jnp.asarray(rows())
    by_init = jax.grad(lambda x: kmeans.fit(KEY, x, 4, init=x[:4]).inertia)(x)
    by_weights = jax.grad(lambda w: kmeans.fit(KEY, x, 4, init=x[:4], weights=w).inertia)(
        jnp.ones(300)
    )
    assert np.isfinite(by_init).all()
    found = kmeans.fit(KEY, x, 4, init=x[:4])
    np.testing.assert_allclose(by_weights, kmeans.assign(x, found.centroids)[1], rtol=1e-3)


def test_init_function_and_names():
    x = rows()
    given = kmeans.fit(KEY, x, 4, init=lambda key, x, k, weights: x[:k], n_init=1)
    array = kmeans.fit(KEY, x, 4, init=x[:4])
    np.testing.assert_array_equal(given.labels, array.labels)
    assert np.isfinite(kmeans.fit(KEY, x, 4, init="random").inertia)


def test_kmeans_plus_plus_draws_by_weighted_distance():
    """One far row among many near ones: drawn second with probability d^2 / sum d^2."""
    x = jnp.array([[0.0], [1.0], [-1.0], [3.0]])
    keys = jax.random.split(KEY, 4000)
    weights = jnp.array([1e6, 1.0, 1.0, 1.0])  # the first draw is row 0
    draw = partial(seeding.kmeans_plus_plus, x=x, n_clusters=2, weights=weights, n_trials=1)
    second = np.asarray(jax.jit(jax.vmap(draw))(keys))[:, 1, 0]
    share = np.mean(second == 3.0)
    np.testing.assert_allclose(share, 9 / 11, atol=0.025)  # 4 sigma


def test_kmeans_plus_plus_never_takes_a_duplicate_while_others_are_left():
    x = np.repeat(rows(n=6), 50, axis=0)
    x = x - x.mean(0, keepdims=True)
    seed_with = jax.jit(seeding.kmeans_plus_plus, static_argnums=2)
    for seed in range(5):
        centroids = seed_with(jax.random.key(seed), x, 6, np.ones(300, np.float32))
        assert len(np.unique(np.asarray(centroids).round(5), axis=0)) == 6


def test_kmeans_parallel_finds_every_cluster_and_weighs_candidates():
    rng = np.random.default_rng(0)
    centres = 20 * rng.normal(size=(50, 6))
    x = (centres[rng.integers(50, size=4000)] + rng.normal(size=(4000, 6))).astype(np.float32)
    seed_with = jax.jit(seeding.kmeans_parallel, static_argnums=2)
    for seed in range(3):
        found = seed_with(jax.random.key(seed), x, 50, np.ones(4000, np.float32))
        assert len(set(nearest(found, centres).argmin(1).tolist())) == 50
        assert (nearest(found, x).min(1) < 1e-6).all()  # they are rows
    weights = (np.arange(4000) < 2000).astype(np.float32)
    found = seed_with(KEY, x, 50, weights)
    assert (nearest(found, x[:2000]).min(1) < 1e-6).all()
    one = kmeans.fit(KEY, x, 50, init="k-means||", n_init=1).inertia
    best = cluster.KMeans(50, init=centres.astype(np.float32), n_init=1).fit(x).inertia_
    assert float(one) < 1.01 * best


def test_kmeans_parallel_with_few_rows():
    x = rows(n=8)
    found = jax.jit(seeding.kmeans_parallel, static_argnums=2)(KEY, x, 8, np.ones(8, np.float32))
    assert found.shape == (8, 5) and np.isfinite(found).all()
    assert len(np.unique(kmeans.fit(KEY, x, 8, init=found).labels)) == 8


def test_random_rows_are_distinct_and_uniform():
    x = jnp.arange(5.0)[:, None]
    draw = partial(seeding.random_rows, x=x, n_clusters=2, weights=jnp.ones(5))
    drawn = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(KEY, 2000)))[..., 0]
    assert (drawn[:, 0] != drawn[:, 1]).all()
    share = np.bincount(drawn.astype(int).ravel(), minlength=5) / 4000
    np.testing.assert_allclose(share, 0.2, atol=0.03)


def test_cosine_goes_by_angles_alone():
    """Rows along rays: lengths change nothing, and labels are those of the largest cosine."""
    rng = np.random.default_rng(0)
    rays = np.linalg.qr(rng.normal(size=(5, 4)))[0].T
    x = (rays[np.arange(300) % 4] + 0.1 * rng.normal(size=(300, 5))).astype(np.float32)
    lengths = rng.uniform(0.01, 100, size=(300, 1)).astype(np.float32)
    found = kmeans.fit(KEY, x, 4, metric="cosine")
    scaled = kmeans.fit(KEY, x * lengths, 4, metric="cosine")
    np.testing.assert_array_equal(found.labels, scaled.labels)
    assert metrics.ari(np.arange(300) % 4, np.asarray(found.labels)) == 1.0
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1.0, rtol=1e-5)
    cosine = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ np.asarray(found.centroids).T
    np.testing.assert_array_equal(found.labels, cosine.argmax(1))
    np.testing.assert_allclose(found.inertia, np.sum(2 - 2 * cosine.max(1)), rtol=1e-4)
    np.testing.assert_array_equal(kmeans.assign(kmeans.unit(x), found.centroids)[0], found.labels)


def test_cosine_iterations_never_lose_and_fixed_point():
    x = rows(5, k=12)
    sums = [
        float(kmeans.fit(KEY, x, 4, init=x[:4], metric="cosine", max_iter=i, tol=0.0).inertia)
        for i in range(1, 12)
    ]
    assert all(b <= a * (1 + 1e-6) for a, b in zip(sums, sums[1:], strict=False))
    found = kmeans.fit(KEY, x, 4, init=x[:4], metric="cosine", tol=0.0)
    units = np.asarray(kmeans.unit(x), np.float64)
    means = np.stack([units[np.asarray(found.labels) == j].sum(0) for j in range(4)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    assert bool(found.converged)
    np.testing.assert_allclose(found.centroids, means, atol=1e-5)


def test_cosine_of_directions_that_float32_does_not_tell_apart():
    x = rows(5).astype(np.float64)
    kmeans.fit(KEY, x + 1e2, 4, metric="cosine")
    with pytest.raises(ValueError, match="take an offset from the rows first"):
        kmeans.fit(KEY, x + 1e5, 4, metric="cosine")
    kmeans.fit(KEY, np.ones((300, 5)), 4, metric="cosine")  # all the same is no such case


def test_cosine_with_restarts_on_a_sample():
    rng = np.random.default_rng(0)
    x = (np.eye(40)[np.arange(40_000) % 40] + 0.05 * rng.normal(size=(40_000, 40))).astype(
        np.float32
    )
    found = kmeans.fit(KEY, x, 40, metric="cosine")
    assert metrics.ari(np.arange(40_000) % 40, np.asarray(found.labels)) > 0.999


def test_rotation():
    x = rows(6, n=300, d=5)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0].astype(np.float32)
    found = kmeans.fit(KEY, x, 4, init=x[:4])
    turned = kmeans.fit(KEY, x @ turn, 4, init=x[:4] @ turn)
    np.testing.assert_array_equal(turned.labels, found.labels)
    np.testing.assert_allclose(turned.centroids, found.centroids @ turn, atol=1e-4)


def test_shift_scale_and_permutation():
    x = rows(11)
    order = np.random.default_rng(0).permutation(len(x))
    reference = kmeans.fit(KEY, x, 4, init=x[:4])
    moved = kmeans.fit(KEY, 2 * x + 5, 4, init=2 * x[:4] + 5)
    shuffled = kmeans.fit(KEY, x[order], 4, init=x[:4])
    np.testing.assert_array_equal(reference.labels, moved.labels)
    np.testing.assert_array_equal(np.asarray(reference.labels)[order], shuffled.labels)


@pytest.mark.parametrize("key", [0, np.zeros(2), jax.random.split(KEY, 3)])
@pytest.mark.parametrize("fit", [kmeans.fit, sharded.fit, streaming.fit, hierarchical.fit])
def test_what_is_no_key(fit, key):
    with pytest.raises(ValueError, match=r"expected one key, such as jax.random.key\(0\), found"):
        fit(key, rows(), 4)


def test_keys_of_the_old_kind():
    kmeans.fit(jax.random.PRNGKey(0), rows(), 4, n_init=1)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: dict(x=x[0]), r"expected rows x of shape \[n, d\]"),
        (lambda x: dict(n_clusters=0), "expected 1 <= n_clusters <= 300"),
        (lambda x: dict(n_clusters=301), "expected 1 <= n_clusters <= 300"),
        (lambda x: dict(x=np.where(x == x[3, 2], np.nan, x)), "expected finite x, found 1 NaN"),
        (lambda x: dict(x=jnp.asarray(x).at[0, 0].set(jnp.inf)), "expected finite x, found 1 NaN"),
        (lambda x: dict(init="kmeans"), "expected init 'k-means"),
        (lambda x: dict(init=x[:3]), "expected first centroids"),
        (lambda x: dict(weights=np.ones(3)), "expected weights of shape"),
        (lambda x: dict(weights=[1.0] * 300), r"expected weights as an array \[n\], found a list"),
        (lambda x: dict(x=x.astype(str)), "expected real numbers in x"),
        (lambda x: dict(x=x + 1j), "expected real numbers in x"),
        (lambda x: dict(x=x[:0]), "none of them 0, found"),
        (lambda x: dict(weights=-np.ones(300)), "expected weights >= 0"),
        (lambda x: dict(n_init=0), "expected n_init and max_iter >= 1"),
        (lambda x: dict(n_active=5), "expected 1 <= n_active <= 4"),
        (lambda x: dict(n_clusters=3.0), "expected a whole number n_clusters, found 3.0"),
        (lambda x: dict(n_active=np.int64(0)), "expected 1 <= n_active <= 4"),
        (lambda x: dict(init=np.full((4, 5), np.nan)), "expected finite init, found 20 NaN"),
        (lambda x: dict(init=lambda k, x, n, w: x[:2]), r"\(4, 5\) from the function init"),
        (lambda x: dict(metric="cosines"), "expected metric 'euclidean' or 'cosine'"),
        (lambda x: dict(x=x * (x != x[:1]), metric="cosine"), "expected rows with a direction"),
        (lambda x: dict(x=x.astype(np.float64) * 1e300), "expected finite x"),
    ],
)
def test_bad_input(change, message):
    x = rows()
    with pytest.raises(ValueError, match=message) as error:
        kmeans.fit(KEY, **(dict(x=x, n_clusters=4) | change(x)))
    assert "\n" not in str(error.value)
