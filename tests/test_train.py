"""The training loop, streams of rows, and the seed example."""

import dataclasses
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepclust_jax import BROKEN_JAX, check_jax_version, stream, train
from deepclust_jax.algorithms import autoencoder, dcn, dkm
from deepclust_jax.clustering import kmeans

KEY = jax.random.key(0)
CONFIG = autoencoder.Config(n_clusters=3, embed_dim=2, hidden=(8,), n_init=2)


def rows(n=50, d=4):
    return np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)


def test_seed_example():
    """The classic toy: 100 points, a 4-unit ReLU layer, a 2-unit linear code, k-means on it."""
    x = jax.random.normal(jax.random.key(42), (100, 2))
    config = autoencoder.Config(n_clusters=3, embed_dim=2, hidden=(4,))
    algorithm = autoencoder.build(config, x.shape[1:])
    found = train.fit(jax.random.key(0), algorithm, x, epochs=100, refresh_every=0)
    result = kmeans.fit(jax.random.key(1), algorithm.embed(found.state, x), 3)
    print(result.labels)
    assert found.metrics["loss"][-1] < found.metrics["loss"][0]
    assert result.labels.shape == (100,) and set(np.asarray(result.labels)) == {0, 1, 2}


def test_a_run_is_on_the_device_that_is_the_default_at_its_time():
    algorithm = autoencoder.build(CONFIG, (4,))
    for device in jax.devices()[:2]:
        with jax.default_device(device):
            found = train.fit(jax.random.split(KEY, 2), algorithm, rows(), epochs=1)
        assert {d for leaf in jax.tree.leaves(found.state) for d in leaf.devices()} == {device}


def test_every_row_once_per_epoch():
    index, mask = train._order(KEY, jnp.int32(3), 53, 16)
    assert index.shape == mask.shape == (4, 16)
    assert sorted(index[mask > 0].tolist()) == list(range(53))
    other, _ = train._order(KEY, jnp.int32(4), 53, 16)
    assert (index != other).any()


def numbered(n=53):
    """Rows that hold their own number."""
    return np.repeat(np.arange(n, dtype=np.float32)[:, None], 4, axis=1)


NEAR = np.stack([(np.arange(53) + 7 * j + 1) % 53 for j in range(3)], axis=1)


def recorder():
    """An algorithm that learns nothing, and whose metrics tell of the partners it was given."""
    base = autoencoder.build(CONFIG, (4,))

    def step(key, state, batch):
        del key
        index, partner = batch.x[:, 0].astype(int), batch.partner[:, 0].astype(int)
        is_near = (jnp.asarray(NEAR)[index] == partner[:, None]).any(axis=1)
        metrics = {
            "loss": jnp.mean(is_near | (batch.mask == 0)),
            "sum": jnp.sum(batch.mask * partner * (batch.index + 1)) / 1e3,
        }
        return state.replace(step=state.step + 1), metrics

    return base._replace(step=step)


@pytest.mark.parametrize("resident", [True, False])
def test_partners_are_neighbours_drawn_anew_in_every_epoch(resident):
    keys = jax.random.split(KEY, 2)
    found = train.fit(
        keys, recorder(), numbered(), epochs=3, batch_size=16, neighbors=NEAR,
        refresh_every=0, resident=resident,
    ).metrics  # fmt: skip
    np.testing.assert_array_equal(found["loss"], 1.0)
    assert len(np.unique(found["sum"])) == 6  # of every epoch and seed others
    other = train.fit(
        keys, recorder(), numbered(), epochs=3, batch_size=16, neighbors=NEAR,
        refresh_every=0, resident=not resident,
    ).metrics  # fmt: skip
    np.testing.assert_allclose(found["sum"], other["sum"], rtol=1e-5)


def test_every_seed_may_have_neighbours_of_its_own():
    keys = jax.random.split(KEY, 2)
    own = np.stack([NEAR, (np.asarray(NEAR) + 1) % len(NEAR)])
    fitted = {"epochs": 2, "batch_size": 16, "refresh_every": 0}
    both = train.fit(keys, recorder(), numbered(), neighbors=own, **fitted).metrics
    np.testing.assert_array_equal(both["loss"][:, 0], 1.0)
    assert (both["loss"][:, 1] < 1.0).all()  # other than those that the recorder looks for
    for s in range(2):
        alone = train.fit(keys[s], recorder(), numbered(), neighbors=own[s], **fitted).metrics
        np.testing.assert_array_equal(both["sum"][:, s], alone["sum"])


def test_without_neighbours_there_are_no_partners():
    def step(key, state, batch):
        assert batch.partner is None
        return state.replace(step=state.step + 1), {"loss": jnp.float32(0)}

    algorithm = autoencoder.build(CONFIG, (4,))._replace(step=step)
    train.fit(KEY, algorithm, numbered(), epochs=1, refresh_every=0)


def test_rows_that_are_no_numbers_are_refused():
    """Trap: a loss that no bad row reaches stays finite, and all codes are one cluster."""
    x = np.array(numbered())
    x[7, 2] = np.nan
    with pytest.raises(ValueError, match="finite numbers, found others in row 7"):
        train.fit(KEY, autoencoder.build(CONFIG, (4,)), x, epochs=1)


@pytest.mark.parametrize(
    ("neighbors", "message"),
    [
        (np.zeros((52, 3), int), r"expected neighbors \[53, m\] or, .* found \(52, 3\)"),
        (np.zeros(53, int), r"expected neighbors \[53, m\] or, .* found \(53,\)"),
        (np.zeros((2, 53, 3), int), r"for each of the keys \[S\], .* found \(2, 53, 3\)"),
        (np.full((53, 2), 53), "expected neighbors from 0 to 52, found 53 to 53"),
        ([[1]], "found list"),
    ],
)
def test_neighbours_that_are_none_are_refused(neighbors, message):
    algorithm = autoencoder.build(CONFIG, (4,))
    with pytest.raises(ValueError, match=message):
        train.fit(KEY, algorithm, numbered(), epochs=1, neighbors=neighbors)


def test_refresh_comes_first_in_its_epochs():
    base = autoencoder.build(CONFIG, (4,))

    def init(key, batch):
        state = base.init(key, batch)
        return state.replace(centroids=jnp.zeros_like(state.centroids))

    def refresh(key, state, x):
        return state.replace(centroids=state.centroids + 1.0)

    algorithm = base._replace(init=init, refresh=refresh)
    for every, expected in ((0, 0), (1, 5), (2, 3), (5, 1)):
        found = train.fit(KEY, algorithm, rows(), epochs=5, refresh_every=every)
        assert float(found.state.centroids[0, 0]) == expected


def test_a_method_that_starts_from_an_autoencoder_without_its_k_means_stops():
    """Trap: centroids of zeros, towards which the code would collapse without a word."""
    for metric in ("euclidean", "adaptive"):
        first = autoencoder.build(dataclasses.replace(CONFIG, metric=metric), (4,))
        without = train.fit(KEY, first, rows(), epochs=1, refresh_every=0).state
        for module in (dcn, dkm):
            own = module.Config(n_clusters=3, embed_dim=2, hidden=(8,))
            joint = module.build(own, (4,))
            start = module.warm_start(train.init(KEY, joint, rows()), without)
            with pytest.raises(train.Diverged, match="after its refresh"):
                train.fit(KEY, joint, rows(), epochs=1, state=start)


def test_state_given_is_kept():
    """The loop donates its buffers, never the caller's."""
    algorithm = autoencoder.build(CONFIG, (4,))
    state = train.init(KEY, algorithm, rows())
    before = jax.tree.map(np.asarray, state)
    train.fit(KEY, algorithm, rows(), epochs=2, state=state, refresh_every=0)
    jax.tree.map(np.testing.assert_array_equal, before, state)


def test_on_epoch_sees_every_epoch():
    seen = []
    algorithm = autoencoder.build(CONFIG, (4,))
    keys = jax.random.split(KEY, 2)
    train.fit(
        keys, algorithm, rows(), epochs=3, refresh_every=0,
        on_epoch=lambda epoch, state, metrics: seen.append((epoch, metrics["loss"].shape)),
    )  # fmt: skip
    assert seen == [(1, (2,)), (2, (2,)), (3, (2,))]


def test_divergence_is_named():
    config = autoencoder.Config(n_clusters=3, embed_dim=2, hidden=(8,), learning_rate=1e6)
    with pytest.raises(train.Diverged, match="expected a finite loss, found") as error:
        train.fit(KEY, autoencoder.build(config, (4,)), rows(), epochs=20, refresh_every=0)
    assert "\n" not in str(error.value)


def test_one_run_that_diverges_does_not_stop_the_others():
    base = autoencoder.build(CONFIG, (4,))

    def step(key, state, batch):
        state, metrics = base.step(key, state, batch)
        bad = jnp.where(jax.random.key_data(key)[-1] == bad_key, jnp.nan, 0.0)
        return state, {name: value + bad for name, value in metrics.items()}

    keys = jax.random.split(KEY, 3)
    bad_key = jax.random.key_data(jax.random.fold_in(keys[1], train._STEP))[-1]
    algorithm = base._replace(step=step)
    found = train.fit(keys, algorithm, rows(), epochs=2, refresh_every=0)
    assert np.isfinite(found.metrics["loss"]).all(axis=0).tolist() == [True, False, True]
    with pytest.raises(train.Diverged):
        train.fit(keys[1], algorithm, rows(), epochs=2, refresh_every=0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": np.zeros((0, 4))}, "expected rows x"),
        ({"x": np.zeros(4)}, "expected rows x"),
        ({"epochs": -1}, "expected epochs >= 0"),
        ({"batch_size": 0}, "batch_size >= 1"),
    ],
)
def test_bad_input(change, message):
    arguments = {"x": rows(), "epochs": 1, "batch_size": 8} | change
    with pytest.raises(ValueError, match=message):
        train.fit(KEY, autoencoder.build(CONFIG, (4,)), **arguments)


@pytest.mark.parametrize(
    "key, error",
    [
        (0, TypeError),
        (jax.random.PRNGKey(0), TypeError),
        (jax.random.split(KEY, (2, 2)), ValueError),
    ],
)
def test_a_bad_key(key, error):
    with pytest.raises(error, match="expected .*keys"):
        train.fit(key, autoencoder.build(CONFIG, (4,)), rows(), epochs=1)


def test_a_batch_larger_than_the_data():
    found = train.fit(KEY, autoencoder.build(CONFIG, (4,)), rows(10), epochs=2, refresh_every=0)
    assert int(found.state.step) == 2


def test_embed_gives_a_row_its_code_whatever_is_beside_it(monkeypatch):
    """Trap (faiss#3818): labels that change with the size of the batch."""
    algorithm = autoencoder.build(CONFIG, (4,))
    state = train.init(jax.random.split(KEY, 2), algorithm, rows())
    monkeypatch.setattr(train, "_BLOCK", 16)
    z, labels = train.embed(algorithm, state, rows())
    assert z.shape == (2, 50, 2) and labels.shape == (2, 50)
    one = train.embed(algorithm, jax.tree.map(lambda leaf: leaf[1], state), rows())
    np.testing.assert_array_equal(one[0], z[1])
    np.testing.assert_array_equal(one[1], labels[1])
    some = np.array([3, 7, 49, 0])
    z_some, labels_some = train.embed(algorithm, state, rows()[some])
    np.testing.assert_array_equal(z_some, z[:, some])
    np.testing.assert_array_equal(labels_some, labels[:, some])


def test_memory_maps_are_streamed(tmp_path):
    np.save(tmp_path / "x.npy", rows())
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert not stream.fits_on_device(x) and stream.fits_on_device(np.asarray(x))
    algorithm = autoencoder.build(CONFIG, (4,))
    a = train.fit(KEY, algorithm, x, epochs=2)
    b = train.fit(KEY, algorithm, rows(), epochs=2)
    for u, v in zip(jax.tree.leaves(a.state), jax.tree.leaves(b.state), strict=True):
        np.testing.assert_allclose(u, v, rtol=1e-5, atol=1e-6)


def test_seconds_of_streamed_training_are_without_compilation(monkeypatch):
    """Trap: what is compiled when it is first called is timed with what it does."""
    compiled, inside, own = [], [], train._streamed
    listen = lambda event, seconds, **more: compiled.append(  # noqa: E731
        seconds if "backend_compile" in event else 0.0
    )

    def watched(*args):
        *calls, seconds = own(*args)

        def counted(call):
            def run(*args):
                before = sum(compiled)
                found = jax.block_until_ready(call(*args))
                inside.append(sum(compiled) - before)
                return found

            return run

        return *map(counted, calls), seconds

    monkeypatch.setattr(train, "_streamed", watched)
    jax.monitoring.register_event_duration_secs_listener(listen)
    algorithm = autoencoder.build(CONFIG, (7,))
    train.fit(KEY, algorithm, rows(60, 7), epochs=2, resident=False)
    jax.monitoring.unregister_event_duration_listener(listen)
    assert len(inside) == 4 and sum(inside) < 0.2 * sum(compiled)


def test_batches_are_gathered_in_order():
    x, index = rows(), np.arange(20).reshape(5, 4)
    mask = np.ones((5, 4), np.float32)
    for i, batch in enumerate(stream.batches(x, index, mask)):
        np.testing.assert_array_equal(batch.x, x[index[i]])
        np.testing.assert_array_equal(batch.index, index[i])


def test_an_error_while_gathering_reaches_the_consumer():
    with pytest.raises(IndexError):
        list(stream.batches(rows(), np.full((2, 3), 99), np.ones((2, 3))))


def test_the_thread_ends_when_the_consumer_stops_early():
    import threading

    before = threading.active_count()
    feed = stream.batches(rows(), np.zeros((100, 3), int), np.ones((100, 3)))
    next(feed)
    feed.close()
    deadline = time.time() + 5
    while threading.active_count() > before and time.time() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_a_broken_jax_is_refused():
    for version in BROKEN_JAX:
        with pytest.raises(ImportError, match="expected a working JAX, found jaxlib"):
            check_jax_version({"jax": "0.12.0.1", "jaxlib": version})
    check_jax_version({"jax": "0.12.0.1", "jaxlib": "0.10.1"})


def test_vmap_beyond_32768_rows_is_right():
    """Trap (jax#39103): a release that computes wrong numbers from row 32,768 on."""
    w = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    r = np.random.default_rng(1).normal(size=(40_001, 3)).astype(np.float32)
    found = jax.jit(jax.vmap(lambda v: jnp.sum((w @ v) ** 2)))(r)
    np.testing.assert_allclose(found, ((r @ w.T) ** 2).sum(1), rtol=1e-4)


def test_import_is_light():
    """`import deepclust_jax` and its options load no JAX, so that --help is quick."""
    code = (
        "import sys, deepclust_jax.config; "
        "heavy = {'jax', 'flax', 'sklearn', 'matplotlib', 'scipy', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_metrics_of_an_epoch_are_those_of_the_steps_taken():
    """Trap: steps that a game did not take counted as 0, and half of them halved its spread."""
    rows = jnp.array([4.0, 4.0, 4.0, 2.0])
    metrics = {"spread": jnp.array([1.0, 0.0, 4.0, 2.0]), "taken": jnp.array([1.0, 0.0, 1.0, 1.0])}
    found = train._means(metrics, rows)
    np.testing.assert_allclose(found["spread"], (4.0 * 1.0 + 4.0 * 4.0 + 2.0 * 2.0) / 10.0)
    np.testing.assert_allclose(found["taken"], 10.0 / 14.0)
    lost = train._means({"loss": jnp.zeros(4), "taken": jnp.zeros(4)}, rows)
    assert lost["loss"] == 0.0 and lost["taken"] == 0.0
    np.testing.assert_allclose(train._means({"loss": metrics["spread"]}, rows)["loss"], 24.0 / 14.0)
