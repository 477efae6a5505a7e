"""Next-frame prediction: what is told, how far ahead, and what a clip is."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepclust_jax import networks, train
from deepclust_jax.algorithms import next_frame
from deepclust_jax.types import Batch

KEY = jax.random.key(0)
SMALL = next_frame.Config(2, 4, hidden=(8,), ahead=2, parts=3, n_init=2)
SHAPE = (12, 3, 1)


def batch(x, mask=None):
    return Batch(jnp.asarray(x), jnp.arange(len(x)), jnp.ones(len(x)) if mask is None else mask)


@pytest.fixture(scope="module", params=["gru", "transformer"])
def nets(request):
    """What is called of the networks, compiled once for each number of clips."""
    own = next_frame.build_nets(dataclasses.replace(SMALL, network=request.param), SHAPE)
    frames = own.frames._replace(states=jax.jit(own.frames.states), told=jax.jit(own.frames.told))
    encoder = own.encoder._replace(apply=jax.jit(own.encoder.apply))
    return own._replace(frames=frames, encoder=encoder)


@pytest.fixture(scope="module")
def params(nets):
    return {"encoder": jax.jit(nets.encoder.init)(KEY, jnp.zeros((1, *SHAPE)))}


@functools.cache
def loss_of(nets):
    return jax.jit(functools.partial(next_frame.loss, nets=nets, config=SMALL))


def clips(n, seed=0):
    """Tones of two frequencies that go on as they began."""
    rng = np.random.default_rng(seed)
    kind, phase = np.arange(n) % 2, rng.uniform(0, 6, n)
    t = np.arange(12)[None, :, None]
    step = np.where(kind, 1.6, 0.7)[:, None, None]
    x = np.sin(step * t + phase[:, None, None] + np.arange(3)[None, None, :])
    return np.float32(x[..., None]), kind


def test_loss_is_the_distance_of_frames_so_far_ahead(nets, params):
    x = jnp.asarray(clips(4)[0])
    mask = jnp.array([1.0, 1.0, 0.0, 1.0])
    value, _ = loss_of(nets)(params, None, batch(x, mask), KEY)
    frames = np.asarray(x)[..., 0]
    told = nets.frames.told(params["encoder"], nets.frames.states(params["encoder"], frames))
    wanted = np.abs(np.asarray(told)[:, :-2] - frames[:, 2:]).mean(axis=(1, 2))
    assert float(value) == pytest.approx(wanted[[0, 1, 3]].mean(), rel=1e-5)


def test_no_frame_is_seen_before_its_turn(nets, params):
    """Trap: a model that sees what it is asked tells it perfectly."""
    x = clips(2)[0][..., 0]
    states = nets.frames.states(params["encoder"], x)
    other = x.copy()
    other[:, 7:] += 1.0
    changed = nets.frames.states(params["encoder"], other)
    np.testing.assert_array_equal(states[:, :7], changed[:, :7])
    assert (np.asarray(states)[:, 7] != np.asarray(changed)[:, 7]).all(axis=1).any()


def test_a_clip_is_the_means_of_its_parts_in_order(nets, params):
    x = jnp.asarray(clips(5)[0])
    states = np.asarray(nets.frames.states(params["encoder"], x[..., 0]))
    wanted = np.concatenate([states[:, i : i + 4].mean(axis=1) for i in (0, 4, 8)], axis=1)
    np.testing.assert_allclose(nets.encoder.apply(params["encoder"], x), wanted, atol=1e-5)


def test_what_fills_a_short_clip_is_neither_told_nor_part_of_it(nets, params):
    """Trap: of clips of several lengths clusters are the lengths."""
    x = jnp.asarray(clips(3)[0])
    short = x.at[:, 9:].set(0.0)
    states = np.asarray(nets.frames.states(params["encoder"], x[..., 0]))
    wanted = np.concatenate([states[:, i : i + 3].mean(axis=1) for i in (0, 3, 6)], axis=1)
    np.testing.assert_allclose(nets.encoder.apply(params["encoder"], short), wanted, atol=1e-5)
    mixed = jnp.concatenate([x[:1], short[1:2], jnp.zeros((1, *SHAPE))])
    value, _ = loss_of(nets)(params, None, batch(mixed), KEY)
    told = np.asarray(nets.frames.told(params["encoder"], states))
    off = np.abs(told[:, :-2] - np.asarray(x)[:, 2:, :, 0]).mean(axis=2)
    wanted = (off[0].mean() + off[1, :7].mean()) / 2  # a clip of zeros alone has nothing to tell
    assert float(value) == pytest.approx(wanted, rel=1e-5)
    assert np.isfinite(nets.encoder.apply(params["encoder"], mixed)).all()
    hidden = batch(short)._replace(clean=x)  # by a change of clips that are whole
    value, _ = loss_of(nets)(params, None, hidden, KEY)
    told = nets.frames.told(params["encoder"], nets.frames.states(params["encoder"], short[..., 0]))
    wanted = np.abs(np.asarray(told)[:, :-2] - np.asarray(short)[:, 2:, :, 0]).mean()
    assert float(value) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("n, parts", [(12, 3), (10, 4), (7, 3), (2, 4)])
def test_parts_of_whole_clips_are_those_of_pictures(n, parts):
    states = jax.random.normal(KEY, (2, n, 5))
    found = next_frame.means_of_parts(states, jnp.array([n, n]), parts)
    np.testing.assert_allclose(found, networks.pooled(states[:, :, None], parts), atol=1e-6)


def test_frames_to_be_told_are_those_of_the_changed_clip(nets, params):
    """Trap: a change that moves frames in time leaves those before it at other places."""
    x = jnp.asarray(clips(4)[0])
    changed = batch(x + 1.0)._replace(clean=x)
    value, _ = loss_of(nets)(params, None, changed, KEY)
    told = nets.frames.told(
        params["encoder"], nets.frames.states(params["encoder"], (x + 1.0)[..., 0])
    )
    wanted = np.abs(np.asarray(told)[:, :-2] - np.asarray(x + 1.0)[:, 2:, :, 0]).mean()
    assert float(value) == pytest.approx(wanted, rel=1e-5)


def test_sounds_that_go_on_differently_are_told_and_told_apart():
    x, kind = clips(120)
    algorithm = next_frame.build(dataclasses.replace(SMALL, learning_rate=0.02), SHAPE)
    losses = []
    fitted = train.fit(
        KEY, algorithm, x, epochs=40, batch_size=60, refresh_every=0, refresh_at_end=True,
        on_epoch=lambda epoch, state, metrics: losses.append(metrics["loss"].item()),
    )  # fmt: skip
    assert losses[-1] < 0.5 * losses[0]
    found = np.asarray(train.embed(algorithm, fitted.state, x)[1])
    assert max(np.mean(found == kind), np.mean(found != kind)) > 0.9


@pytest.mark.parametrize(
    "change, shape, words",
    [
        ({}, (12,), "expected clips .* of more than 2 frames, found rows of shape"),
        ({}, (2, 3), "of more than 2 frames"),
        ({"network": "mlp"}, SHAPE, "expected network 'gru' or 'transformer', found 'mlp'"),
        ({"embed_dim": 25}, SHAPE, "expected embed_dim <= 24, the means of states, found 25"),
    ],
)
def test_what_cannot_work_is_refused(change, shape, words):
    with pytest.raises(ValueError, match=words):
        next_frame.build(dataclasses.replace(SMALL, **change), shape)
