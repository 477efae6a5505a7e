"""k-means in blocks and mini-batches: the answers of the rows in memory, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import cluster

from deepclust_jax import metrics
from deepclust_jax.clustering import kmeans, streaming

KEY = jax.random.key(0)


def blobs(seed=0, n=5000, d=6, k=7):
    rng = np.random.default_rng(seed)
    centres = 5 * rng.normal(size=(k, d))
    return (centres[rng.integers(k, size=n)] + rng.normal(size=(n, d))).astype(np.float32)


@pytest.mark.parametrize("block", [999, 5000, 65_536])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_same_as_in_memory(block, offset):
    x = blobs() + np.float32(offset)
    found = streaming.fit(KEY, x, 7, init=x[:7], block=block, tol=0.0)
    whole = kmeans.fit(KEY, x, 7, init=x[:7], tol=0.0)
    np.testing.assert_array_equal(found.labels, whole.labels)
    np.testing.assert_allclose(found.inertia, whole.inertia, rtol=1e-4)
    np.testing.assert_allclose(found.centroids, whole.centroids, rtol=1e-5, atol=1e-3)
    assert int(found.n_iter) == int(whole.n_iter) and bool(found.converged)
    assert found.labels.dtype == np.int32


def test_a_memory_map_and_an_iterator(tmp_path):
    x = blobs()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    of_file = streaming.fit(KEY, mapped, 7, block=1000)
    of_blocks = streaming.fit(KEY, lambda: (x[i : i + 1000] for i in range(0, 5000, 1000)), 7)
    np.testing.assert_array_equal(of_file.labels, of_blocks.labels)
    np.testing.assert_allclose(of_file.centroids, of_blocks.centroids, rtol=1e-6)
    best = cluster.KMeans(7, n_init=10, random_state=0).fit(x)
    np.testing.assert_allclose(of_file.inertia, best.inertia_, rtol=1e-3)
    assert metrics.ari(best.labels_, of_file.labels) > 0.99


def test_real_rows_by_block(data_dir):
    x = np.load(data_dir / "usps.npz", allow_pickle=False)["X"].reshape(9298, -1)
    found = streaming.fit(KEY, x, 10, init=x[:10], block=1024)
    rows = x.astype(np.float64)
    theirs = cluster.KMeans(10, init=rows[:10], n_init=1).fit(rows)
    assert np.mean(found.labels != theirs.labels_) < 1e-3
    np.testing.assert_allclose(found.inertia, theirs.inertia_, rtol=1e-5)


def test_little_memory():
    """What a block needs does not grow with the rows."""
    x, c = (jax.ShapeDtypeStruct((n, 64), jnp.float32) for n in (65_536, 1000))
    memory = streaming._of_block.lower(x, c).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 64 * 2**20


def test_sample_is_one_of_all_rows():
    x = np.arange(20_000, dtype=np.float32)[:, None] - 10_000
    blocks = streaming._blocks(x, 700)
    share = np.zeros(20)
    for seed in range(20):
        few, offset, variance, n = streaming._survey(jax.random.key(seed), blocks, 1000)
        assert n == 20_000 and len(np.unique(few)) == 1000
        share += np.histogram(few, bins=20, range=(-10_000, 10_000))[0]
    np.testing.assert_allclose(share / 1000, 1.0, atol=0.15)  # 5 sigma
    np.testing.assert_allclose(variance, x.var(), rtol=1e-6)


def test_a_cluster_without_rows_keeps_its_centroid():
    x = blobs(n=300)
    first = np.concatenate([x[:3], np.full((1, 6), 1e3, np.float32)])
    found = streaming.fit(KEY, x, 4, init=first)
    np.testing.assert_array_equal(np.asarray(found.centroids)[3], first[3])
    assert np.isfinite(found.centroids).all() and found.labels.max() == 2


def test_empty_blocks_are_passed_over():
    x = blobs()
    parts = [x[:0], x[:2000], x[2000:2000], x[2000:]]
    found = streaming.fit(KEY, lambda: iter(parts), 7, init=x[:7])
    np.testing.assert_array_equal(found.labels, streaming.fit(KEY, x, 7, init=x[:7]).labels)


def test_a_batch_without_weight_changes_nothing():
    state = streaming.partial_fit(streaming.start(blobs()[:3]), blobs(n=50))
    same = streaming.partial_fit(state, blobs(1, n=50), np.zeros(50))
    np.testing.assert_array_equal(same.centroids, state.centroids)
    with pytest.raises(ValueError, match="expected weights >= 0"):
        streaming.partial_fit(state, blobs(n=50), -np.ones(50))


def test_partial_fit_is_the_mean_of_all_rows_given():
    x = blobs()
    state = streaming.start(x[:7])
    sums, counts = np.zeros((7, 6)), np.zeros(7)
    for i in range(0, 5000, 500):
        labels = np.asarray(kmeans.assign(x[i : i + 500], state.centroids)[0])
        np.add.at(sums, labels, x[i : i + 500])
        counts += np.bincount(labels, minlength=7)
        state = streaming.partial_fit(state, x[i : i + 500])
    np.testing.assert_allclose(state.counts, counts)
    np.testing.assert_allclose(state.centroids, sums / counts[:, None], rtol=1e-3, atol=1e-4)


def test_partial_fit_with_weights_is_repetition():
    x = blobs(n=40)
    counts = np.random.default_rng(0).integers(0, 4, size=40)
    a = streaming.partial_fit(streaming.start(x[:3]), x, counts.astype(np.float32))
    b = streaming.partial_fit(streaming.start(x[:3]), np.repeat(x, counts, axis=0))
    np.testing.assert_allclose(a.centroids, b.centroids, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(a.counts, b.counts)


def test_mini_batches_of_real_rows(data_dir):
    """As good as scikit-learn's, batch by batch from the same start."""
    x = np.load(data_dir / "usps.npz", allow_pickle=False)["X"].reshape(9298, -1) / np.float32(255)
    theirs = cluster.MiniBatchKMeans(10, init=x[:10], n_init=1, reassignment_ratio=0.0)
    state = streaming.start(x[:10])
    order = np.random.default_rng(0).permutation(len(x))
    for i in range(0, len(x), 512):
        theirs.partial_fit(x[order[i : i + 512]])
        state = streaming.partial_fit(state, x[order[i : i + 512]])
    ours = float(jnp.sum(kmeans.assign(jnp.asarray(x), state.centroids)[1]))
    np.testing.assert_allclose(ours, -theirs.score(x), rtol=1e-3)


@pytest.mark.parametrize(
    "source, change, message",
    [
        (blobs(n=5), {}, "expected at least 7 rows"),
        (blobs()[0], {}, r"expected rows as an array \[n, d\] or a function .* found \(6,\)"),
        (lambda: iter([]), {}, "expected blocks of rows, found none"),
        (lambda: iter([blobs(), blobs(d=5)]), {}, r"expected blocks as arrays \[b, 6\]"),
        (np.where(blobs() > 9, np.nan, blobs()), {}, "expected finite x, rows from 0 on"),
        (blobs(), {"init": blobs(n=6)}, r"expected first centroids \(7, 6\)"),
        (blobs(), {"sample": 3}, "expected sample >= 7"),
        (blobs(), {"init": "kmeans"}, "expected init 'k-means"),
        (blobs(), {"max_iter": 0}, "expected block and max_iter >= 1"),
        (blobs(), {"init": np.full((7, 6), np.nan)}, "expected finite init"),
        (blobs().tolist(), {}, r"expected rows as an array .* found a list"),
        (iter([blobs()]), {}, "a function that gives an iterator of blocks, found a list_iterator"),
        (lambda: iter([blobs().tolist()]), {}, r"expected blocks as arrays \[b, d\]"),
    ],
)
def test_bad_input(source, change, message):
    with pytest.raises(ValueError, match=message) as error:
        streaming.fit(KEY, source, 7, **change)
    assert "\n" not in str(error.value)


def test_an_iterator_that_gives_other_rows():
    left = [blobs(n=500), blobs(n=400), blobs(n=400)]
    with pytest.raises(ValueError, match="expected 500 rows at every pass, found 400"):
        streaming.fit(KEY, lambda: iter([left.pop(0)]), 7)
    once = iter([blobs(n=500)])
    with pytest.raises(ValueError, match="expected 500 rows at every pass, found 0"):
        streaming.fit(KEY, lambda: once, 7)


@pytest.mark.parametrize(
    "x, message",
    [
        (np.zeros((3, 5), np.float32), r"expected a batch as an array \[b, 6\], found \(3, 5\)"),
        (np.zeros((0, 6), np.float32), r"expected a batch as an array \[b, 6\], found \(0, 6\)"),
        (np.full((3, 6), np.nan, np.float32), "expected finite x"),
        ([[0.0] * 6], r"expected a batch as an array \[b, 6\], found a list"),
    ],
)
def test_bad_batches(x, message):
    with pytest.raises(ValueError, match=message):
        streaming.partial_fit(streaming.start(blobs(n=4)), x)
    with pytest.raises(ValueError, match=r"expected centroids \[k, d\]"):
        streaming.start(np.zeros(3))
