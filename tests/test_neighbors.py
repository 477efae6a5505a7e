"""Exact nearest neighbours: equality with brute force, ties, the bound, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from deepclust_jax import data
from deepclust_jax.clustering import neighbors


def by_numpy(x, k, queries=None):
    """Numbers and squared distances, the lower number first in a tie."""
    x = x.astype(np.float64)
    asked = x if queries is None else queries.astype(np.float64)
    sqdist = ((asked[:, None] - x[None]) ** 2).sum(-1)
    if queries is None:
        np.fill_diagonal(sqdist, np.inf)
    index = np.argsort(sqdist, axis=1, kind="stable")[:, :k]
    return index, np.take_along_axis(sqdist, index, axis=1)


def normal(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


@pytest.mark.parametrize(("n", "d", "k"), [(50, 3, 1), (300, 5, 20), (7, 2, 6), (1000, 40, 30)])
def test_equals_brute_force(n, d, k):
    x = normal(n, d)
    found, (index, sqdist) = neighbors.nearest(x, k), by_numpy(x, k)
    assert found.index.dtype == jnp.int32
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_allclose(found.sqdist, sqdist, rtol=1e-4, atol=1e-6)


def test_queries():
    x, new = normal(100, 4), normal(31, 4, seed=1)
    found, (index, sqdist) = neighbors.nearest(x, 5, queries=new), by_numpy(x, 5, new)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_allclose(found.sqdist, sqdist, rtol=1e-4)
    # A row of x among all of x is nearest to itself.
    same = neighbors.nearest(x, 1, queries=x)
    np.testing.assert_array_equal(same.index[:, 0], np.arange(100))
    np.testing.assert_array_equal(same.sqdist, 0.0)
    assert neighbors.nearest(x[:3], 3, queries=new).index.shape == (31, 3)


def test_ties_and_duplicates_go_to_the_lower_number():
    x = np.repeat(np.float32([[0.0, 0.0], [1.0, 0.0], [5.0, 5.0]]), 40, axis=0)
    index, sqdist = by_numpy(x, 45)
    found = neighbors.nearest(x, 45)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_allclose(found.sqdist, sqdist)
    assert not (np.asarray(found.index) == np.arange(120)[:, None]).any()  # itself is none


@pytest.mark.parametrize("scores", [2**12, 2**15])
def test_blocks_and_tiles_change_nothing(monkeypatch, scores):
    x = normal(700, 6)
    x[100:150] = x[:50]
    whole = neighbors.nearest(x, 12)
    monkeypatch.setattr(neighbors, "_SCORES", {jax.default_backend(): scores})
    monkeypatch.setattr(neighbors, "_tile", lambda: 193)
    neighbors._among_all.clear_cache()
    parts = neighbors.nearest(x, 12)
    neighbors._among_all.clear_cache()
    np.testing.assert_array_equal(whole.index, parts.index)
    np.testing.assert_allclose(whole.sqdist, parts.sqdist, rtol=1e-5)


def test_lowest_of_groups():
    scores = np.random.default_rng(0).integers(0, 50, size=(9, 5000)).astype(np.float32)
    lowest, index = jax.jit(neighbors._lowest_of, static_argnums=1)(scores, 12)
    expected = np.argsort(scores, axis=1, kind="stable")[:, :12]
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_array_equal(lowest, np.take_along_axis(scores, expected, axis=1))


def structured(n, d, rank, seed=0):
    """Rows near a plane, as pictures are."""
    rng = np.random.default_rng(seed)
    plane = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, d))
    return (plane + 0.05 * rng.normal(size=(n, d))).astype(np.float32)


@pytest.mark.parametrize("rank", [4, 60])
def test_the_bound_gives_what_all_distances_give(monkeypatch, rank):
    """Of rank 4 it proves all rows; of rank 60 few, and the others are measured against all."""
    x = structured(900, 64, rank)
    whole = neighbors.nearest(x, 10)
    asked = []
    among_all = neighbors._among_all
    monkeypatch.setattr(neighbors, "_WIDE", 64)
    monkeypatch.setattr(neighbors, "_MANY", 100)
    monkeypatch.setattr(neighbors, "_PROVEN", 0.0)
    monkeypatch.setattr(
        neighbors,
        "_among_all",
        lambda q, *args, **kw: asked.append(len(q)) or among_all(q, *args, **kw),
    )
    found = neighbors.nearest(x, 10)
    np.testing.assert_array_equal(found.index, whole.index)
    np.testing.assert_allclose(found.sqdist, whole.sqdist, rtol=1e-5)
    assert asked == ([] if rank == 4 else [1024]) or (rank == 60 and asked[0] >= 100)


def test_a_bound_that_proves_little_is_left(monkeypatch):
    x = normal(900, 64)  # no direction says more than another
    monkeypatch.setattr(neighbors, "_WIDE", 64)
    monkeypatch.setattr(neighbors, "_MANY", 100)
    found, (index, _) = neighbors.nearest(x, 10), by_numpy(x, 10)
    np.testing.assert_array_equal(found.index, index)


def test_the_bound_is_one():
    x = structured(200, 32, 6)
    low, again, rounding = neighbors._reduced(jnp.asarray(x), jnp.asarray(x), n_directions=4)
    np.testing.assert_array_equal(low, again)
    low = np.asarray(low, np.float64)
    bound = ((low[:, None] - low[None]) ** 2).sum(-1)
    wide = x.astype(np.float64)
    sqdist = ((wide[:, None] - wide[None]) ** 2).sum(-1)
    assert (bound <= sqdist + float(rounding)).all()
    apart = ~np.eye(200, dtype=bool)
    assert np.median(bound[apart] / sqdist[apart]) > 0.3  # and says something


def test_large_offsets_cost_no_digits():
    x = normal(100, 4)
    wide = x.astype(np.float64) * 1e-3 + 1e5
    found, (index, sqdist) = neighbors.nearest(wide, 5), by_numpy(wide, 5)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_allclose(found.sqdist, sqdist, rtol=1e-3)


def test_huge_and_tiny_rows():
    x = normal(100, 4)
    expected = by_numpy(x, 5)[0]
    for scale in (1e-25, 1e25):
        found = neighbors.nearest((x.astype(np.float64) * scale).astype(np.float32), 5)
        np.testing.assert_array_equal(found.index, expected)


def test_under_a_trace():
    x = normal(100, 4)
    found = jax.jit(lambda x: neighbors.nearest(x, 5))(x)
    np.testing.assert_array_equal(found.index, by_numpy(x, 5)[0])


@pytest.mark.parametrize("name", ["usps", "mnist"])
def test_equals_sklearn_on_real_images(data_dir, name, monkeypatch):
    """MNIST is wide enough for the bound, which also settles most of its rows."""
    monkeypatch.setattr(neighbors, "_MANY", 5_000)
    x = np.asarray(data.load(name)[0].x).reshape(-1, {"usps": 256, "mnist": 784}[name])
    x = np.ascontiguousarray(x[:8_000])
    some = np.random.default_rng(0).choice(len(x), 400, replace=False)
    wide = x.astype(np.float64)
    sqdist, index = (
        NearestNeighbors(n_neighbors=21, algorithm="brute").fit(wide).kneighbors(wide[some])
    )
    found = neighbors.nearest(x, 20)
    own = np.sqrt(np.asarray(found.sqdist)[some])
    # The row itself comes first, or a twin of it: distances say more than numbers.
    np.testing.assert_allclose(own, sqdist[:, 1:], rtol=1e-4, atol=1e-3)
    is_same = np.asarray(found.index)[some] == index[:, 1:]
    assert is_same.mean() > 0.999


def test_the_distances_of_all_pairs_never_exist():
    n = 40_000
    x = jax.ShapeDtypeStruct((n, 8), jnp.float32)
    own = jax.ShapeDtypeStruct((n,), jnp.int32)
    memory = neighbors._among_all.lower(x, x, own, k=10, n_others=n - 1).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.05 * 4 * n * n


def test_second_call_compiles_nothing():
    x = normal(100, 4)
    neighbors.nearest(x, 5)
    size = neighbors._among_all._cache_size()
    neighbors.nearest(x + 1, 5)
    assert neighbors._among_all._cache_size() == size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_neighbors": 100}, r"expected 1 <= n_neighbors <= 99 \(other rows\), found 100"),
        ({"n_neighbors": 0}, "found 0"),
        ({"n_neighbors": 2.5}, "found 2.5"),
        ({"x": np.full((100, 4), np.inf)}, "expected finite x"),
        ({"x": np.zeros(5)}, r"expected rows x of shape \[n, d\]"),
        ({"queries": np.zeros((3, 5))}, r"expected queries \[q, 4\], found \(3, 5\)"),
        ({"queries": np.full((3, 4), np.nan)}, "expected finite queries"),
    ],
)
def test_bad_input(change, message):
    arguments = {"x": normal(100, 4), "n_neighbors": 5} | change
    with pytest.raises(ValueError, match=message) as error:
        neighbors.nearest(**arguments)
    assert "\n" not in str(error.value)


def share_found(x, k=10):
    """Share of the nearest rows, by float64, that are found."""
    found = np.asarray(neighbors.nearest(x.astype(np.float32), k).index)
    wide = x.astype(np.float32).astype(np.float64)
    index = NearestNeighbors(n_neighbors=k).fit(wide).kneighbors(return_distance=False)
    return np.mean([len({*a} & {*b}) / k for a, b in zip(found, index, strict=True)])


def test_rows_close_to_each_other_and_far_from_the_mean():
    # Products of these rows are rounded by more than their distances.
    groups = 0.1 * normal(600, 5)
    groups[:300] += 1000.0
    groups[300:] -= 1000.0
    assert share_found(groups) > 0.995
    outlier = normal(600, 5)
    outlier[0, 0] = 1e7
    assert share_found(outlier) > 0.995


def test_rounding_is_remeasured_under_a_trace_too():
    groups = 0.1 * normal(600, 5)
    groups[:300] += 1000.0
    some = np.stack([groups, normal(600, 5)])
    found = jax.jit(jax.vmap(lambda x: neighbors.nearest(x, 10).index))(some)
    for own, rows in zip(np.asarray(found), some, strict=True):
        np.testing.assert_array_equal(own, neighbors.nearest(rows, 10).index)


def test_all_rows_as_neighbours_of_many_wide_queries(monkeypatch):
    monkeypatch.setattr(neighbors, "_MANY", 10)
    x, new = normal(20, neighbors._WIDE), normal(30, neighbors._WIDE, seed=1)
    np.testing.assert_array_equal(
        neighbors.nearest(x, 20, queries=new).index, by_numpy(x, 20, new)[0]
    )


@pytest.mark.parametrize("d", [3, 100, 5000])
def test_products_round_by_no_more_than_is_reckoned_with(d):
    rng = np.random.default_rng(0)
    for rows in (
        rng.normal(size=(100, d)), rng.random((100, d)) < 0.02, 1e3 + rng.normal(size=(100, d)),
        np.exp(3.0 * rng.normal(size=(100, d))),
    ):  # fmt: skip
        rows = np.float32(rows)
        found = np.asarray(jnp.dot(rows, rows.T, precision="highest"), np.float64)
        exact = np.float64(rows) @ np.float64(rows).T
        lengths = np.linalg.norm(np.float64(rows), axis=1)
        allowed = neighbors._rounding(d) * lengths[:, None] * lengths[None, :]
        assert (np.abs(found - exact) <= allowed).all()


def test_noise_of_many_features_is_not_measured_again(monkeypatch):
    """Neither are sparse rows: what products may be off by grows with the root of the features."""

    def marked(queries, x, own, found, is_sure):
        return found._replace(sqdist=jnp.where(is_sure[:, None], found.sqdist, -1.0))

    whole = neighbors._among_all.__wrapped__
    monkeypatch.setattr(neighbors, "_remeasured", marked)
    monkeypatch.setattr(
        neighbors, "_among_all", jax.jit(whole, static_argnames=("k", "n_others"))
    )  # compiled anew
    sparse = np.float32(np.random.default_rng(0).random((100, 6000)) < 0.01)
    for x in (normal(100, 6000), sparse):
        assert float(neighbors.nearest(x, 10).sqdist.min()) > 0
    close = 1000.0 + 1e-3 * normal(100, 5)
    close[50:] -= 2000.0
    assert float(neighbors.nearest(close, 10).sqdist.min()) < 0  # these are


def test_all_others_but_one_as_candidates_for_queries():
    # Nine candidates of ten rows: the one left out may be nearest, as rounding is all there is.
    x = 1000.0 + 1e-3 * normal(10, 5)
    x[5:] -= 2000.0
    queries = x + 1e-4 * normal(10, 5, seed=1)
    mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    index = by_numpy(x - mean, 5, queries - mean)[0]
    np.testing.assert_array_equal(neighbors.nearest(x, 5, queries=queries).index, index)
