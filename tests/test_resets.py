"""Resets around methods with centroids: when, what stays, and what is new."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepclust_jax import networks, resets, train
from deepclust_jax.algorithms import dcn, dec, dkm

KEY = jax.random.key(0)
SMALL = {"n_clusters": 3, "embed_dim": 2, "hidden": (16, 8)}
METHODS = {"dcn": dcn, "dkm": dkm, "idec": dec}


def rows(n=120, d=5):
    rng = np.random.default_rng(0)
    centres = 4 * rng.normal(size=(3, d))
    return jnp.asarray(centres[rng.integers(3, size=n)] + rng.normal(size=(n, d)), jnp.float32)


@pytest.fixture(scope="module", params=METHODS, ids=list(METHODS))
def case(request):
    """The same objects in all tests, so that each program is compiled once."""
    module = METHODS[request.param]
    inner = module.build(module.Config(**SMALL), (5,))
    return inner, resets.around(inner, every=2, keep=0.8)


@functools.lru_cache
def jitted(algorithm):
    return jax.jit(algorithm.refresh)


def refreshed(algorithm, state, x, times):
    for i in range(times):
        state = jitted(algorithm)(jax.random.fold_in(KEY, i), state, x)
    return state


def encoder(state):
    return state.own.params["encoder"]["params"]


def test_a_reset_comes_every_so_many_epochs_and_not_at_the_start(case):
    _, algorithm = case
    x = rows()
    first = train.init(KEY, algorithm, x)
    kernels = [encoder(refreshed(algorithm, first, x, n))["Dense_0"]["kernel"] for n in range(6)]
    changed = [bool((a != b).any()) for a, b in itertools.pairwise(kernels)]
    assert changed == [False, False, True, False, True]  # at the starts of epochs 2 and 4
    # Every reset draws anew, and keeps 0.8 of what was there.
    drawn = [(b - 0.8 * a) / 0.2 for a, b in ((kernels[2], kernels[3]), (kernels[4], kernels[5]))]
    for fresh in drawn:
        np.testing.assert_allclose(fresh.std(), kernels[0].std(), rtol=0.3)
    assert jnp.abs(jnp.corrcoef(*(d.reshape(-1) for d in drawn))[0, 1]) < 0.5


def test_the_layer_of_the_code_and_the_decoder_stay(case):
    _, algorithm = case
    x = rows()
    first = train.init(KEY, algorithm, x)
    after = refreshed(algorithm, first, x, 3)
    for a, b in zip(
        jax.tree.leaves((encoder(first)["Dense_2"], first.own.params["decoder"])),
        jax.tree.leaves((encoder(after)["Dense_2"], after.own.params["decoder"])),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    for layer in ("Dense_0", "Dense_1"):
        assert (encoder(first)[layer]["kernel"] != encoder(after)[layer]["kernel"]).any()


def test_centroids_are_means_of_the_new_codes(case):
    inner, algorithm = case
    x = rows()
    after = refreshed(algorithm, train.init(KEY, algorithm, x), x, 3)
    z = algorithm.embed(after, x)
    labels = np.asarray(algorithm.assign(after, z))
    params = after.own.params
    centroids = params["centroids"] if "centroids" in params else after.own.centroids  # noqa: SIM401
    for k in range(3):
        np.testing.assert_allclose(centroids[k], z[labels == k].mean(0), rtol=1e-3, atol=1e-3)


def test_the_optimiser_forgets_the_old_centroids(case):
    """Trap: momentum of centroids that are no more moves the new ones."""
    _, algorithm = case
    x = rows()
    state = train.fit(KEY, algorithm, x, epochs=2, batch_size=32).state
    if "centroids" not in state.own.params:
        assert float(jnp.max(state.own.counts)) > 100  # of DCN, which has seen rows
        after = refreshed(algorithm, state, x, 1)
        np.testing.assert_array_equal(after.own.counts, 100.0)
        return
    before, after = state.own.opt_state[0], refreshed(algorithm, state, x, 1).own.opt_state[0]
    assert jnp.abs(before.mu["centroids"]).max() > 0
    np.testing.assert_array_equal(after.mu["centroids"], 0.0)
    np.testing.assert_array_equal(after.nu["centroids"], before.nu["centroids"])
    for a, b in zip(
        jax.tree.leaves(before.mu["encoder"]), jax.tree.leaves(after.mu["encoder"]), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_keeping_everything_changes_no_weight():
    inner = dcn.build(dcn.Config(**SMALL), (5,))
    params = train.init(KEY, inner, rows()).params["encoder"]
    fresh = train.init(jax.random.key(1), inner, rows()).params["encoder"]
    for keep, expected in ((1.0, params), (0.0, fresh)):
        found = resets.mixed(params, fresh, keep)
        kernel = expected["params"]["Dense_0"]["kernel"]
        np.testing.assert_array_equal(found["params"]["Dense_0"]["kernel"], kernel)
        assert networks.last_layer(found) == "Dense_2"


def test_a_run_is_a_function_of_its_key_and_goes_on_where_it_stopped(case):
    _, algorithm = case
    x = np.asarray(rows())
    whole = train.fit(KEY, algorithm, x, epochs=5, batch_size=32).state
    part = train.fit(KEY, algorithm, x, epochs=3, batch_size=32).state
    rest = train.fit(KEY, algorithm, x, epochs=5, batch_size=32, state=part).state
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(rest), strict=True):
        np.testing.assert_array_equal(a, b)


def test_seeds_together_equal_seeds_alone(case):
    _, algorithm = case
    keys = jax.random.split(KEY, 2)
    x = np.asarray(rows())
    many = train.fit(keys, algorithm, x, epochs=3, batch_size=32).state
    one = train.fit(keys[1], algorithm, x, epochs=3, batch_size=32).state
    for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a[1], b, rtol=1e-4, atol=1e-5)


def test_whole_numbers_of_numpy_are_whole_numbers():
    resets.around(dcn.build(dcn.Config(**SMALL), (5,)), every=np.int64(2))


@pytest.mark.parametrize(
    "bad", [{"every": 0}, {"every": 2, "keep": 1.5}, {"every": 2, "keep": float("nan")}]
)
def test_bad_numbers_are_refused(bad):
    with pytest.raises(ValueError, match="expected a whole number every >= 1"):
        resets.around(dcn.build(dcn.Config(**SMALL), (5,)), **bad)
