"""k-means over several devices: the labels of one, and what is refused. Four devices of a CPU."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from deepclust_jax.clustering import kmeans, sharded

KEY = jax.random.key(0)


def blobs(seed=0, n=4000, d=6, k=7):
    rng = np.random.default_rng(seed)
    centres = 3 * rng.normal(size=(k, d))
    return (centres[rng.integers(k, size=n)] + rng.normal(size=(n, d))).astype(np.float32)


def assert_same(found, one):
    np.testing.assert_array_equal(found.labels, one.labels)
    np.testing.assert_allclose(found.inertia, one.inertia, rtol=1e-5)
    np.testing.assert_allclose(found.centroids, one.centroids, rtol=1e-4, atol=1e-4)
    assert int(found.n_iter) == int(one.n_iter) and bool(found.converged) == bool(one.converged)


@pytest.fixture(scope="module", autouse=True)
def four_devices():
    assert len(jax.devices()) == 4


@pytest.mark.parametrize("n, d, k", [(4000, 6, 7), (3997, 6, 7), (2000, 40, 9), (4001, 12, 150)])
def test_same_as_on_one_device(n, d, k):
    """Every plan, and rows that are no multiple of the devices."""
    x = blobs(n=n, d=d, k=k)
    found = sharded.fit(KEY, x, k, init=x[:k], tol=0.0)
    assert_same(found, kmeans.fit(KEY, x, k, init=x[:k], tol=0.0))
    assert found.labels.shape == (n,)


@pytest.mark.parametrize("offset, dtype", [(1e3, np.float32), (1e6, np.float64), (0, np.uint8)])
def test_offsets_and_types(offset, dtype):
    x = (np.abs(blobs()) + offset).astype(dtype)
    found = sharded.fit(KEY, x, 7, init=x[:7], tol=0.0)
    assert_same(found, kmeans.fit(KEY, x, 7, init=x[:7], tol=0.0))


def test_empty_clusters_take_the_farthest_rows_of_all_devices():
    x = blobs(n=4000)
    far = x.copy()
    far[3999] += 50  # on the last device
    first = np.concatenate([far[:5], np.full((2, 6), 1e4, np.float32)])
    found = sharded.fit(KEY, far, 7, init=first, tol=0.0)
    assert_same(found, kmeans.fit(KEY, far, 7, init=first, tol=0.0))
    assert len(np.unique(found.labels)) == 7


def test_restarts_on_a_sample():
    x = blobs(n=40_000)
    found = sharded.fit(KEY, x, 7, sample=5000)
    best = kmeans.fit(KEY, x, 7)
    np.testing.assert_allclose(found.inertia, best.inertia, rtol=1e-3)


def test_rows_that_are_sharded_already_stay():
    x = blobs()
    mesh = jax.make_mesh((2, 2), ("host", "device"), axis_types=(AxisType.Auto,) * 2)
    spread = NamedSharding(mesh, PartitionSpec(("host", "device")))
    rows = jax.device_put(x, spread)
    found = sharded.fit(KEY, rows, 7, init=x[:7], tol=0.0)
    assert_same(found, kmeans.fit(KEY, x, 7, init=x[:7], tol=0.0))
    assert len(found.labels.sharding.device_set) == 4
    with pytest.raises(ValueError, match="expected a multiple of 4 rows"):
        uneven = jax.device_put(x[:3998], NamedSharding(mesh, PartitionSpec("host")))
        sharded.fit(KEY, uneven, 7)


def test_one_sum_an_iteration():
    """Between devices go k (d + 1) numbers and a few counts, whatever the rows."""
    n, d, k = 40_000, 16, 32
    x = blobs(n=n, d=d, k=k)
    rows, weights, mesh, _ = sharded._place(x, None)
    plan = sharded.lloyd.plan(n // 4, d, k)
    args = rows, weights, jnp.asarray(x[:k]), 10, 0.0
    text = sharded._fit.lower(*args, plan=plan, mesh=mesh).compile().as_text()
    sums = re.findall(r"= (.*) all-reduce\(", text)
    shapes = [re.findall(r"\w+\[([\d,]*)\]", line) for line in sums]
    sizes = [math.prod(map(int, filter(None, dims.split(",")))) for one in shapes for dims in one]
    assert max(sizes) == k * d and sum(sizes) < 6 * k * (d + 1)  # iteration, relocation, the end


def test_bad_input():
    x = blobs()
    for change, message in (
        ({"n_clusters": 0}, "expected 1 <= n_clusters <= 4000"),
        ({"x": np.where(x > 5, np.nan, x)}, "expected finite x, found"),
        ({"sample": 3}, "expected sample >= 7"),
        ({"devices": 2}, "expected devices as a list"),
        ({"devices": []}, "expected devices as a list"),
        ({"init": x[:3]}, r"expected first centroids \(7, 6\)"),
    ):
        with pytest.raises(ValueError, match=message):
            sharded.fit(KEY, **({"x": x, "n_clusters": 7} | change))
