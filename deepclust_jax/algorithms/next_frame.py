"""Next-frame prediction: a network that tells how a sound goes on, then k-means on what it
remembers of it (Chung et al. 2019, "An Unsupervised Autoregressive Model for Speech Representation
Learning").

    minimise  mean_i mean_t |x_i,t+a - f(x_i,1..t)|        (eq. 1, a frames ahead)

The network is of gated recurrent units or a transformer, the head linear. A frame right behind is
told by going on as before; one further ahead needs the sound that is being made, and so a > 1.

A clip is the means of the states over `parts` of it, in order, whitened along their principal axes
and of unit length. It ends with its last frame that is not zeros alone: what fills a short clip is
neither told nor part of it. `refresh` whitens and clusters; call it once, after training.

Deviations: one layer and few units by default, and without residual connections.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import optax

from deepclust_jax import augment as augmentation
from deepclust_jax import losses, networks
from deepclust_jax.clustering import kmeans, whitening
from deepclust_jax.types import Algorithm, Array, Batch, Key, Metrics, Network, Params


@dataclasses.dataclass(frozen=True)
class Config:
    n_clusters: int = 10  # k
    embed_dim: int = 32  # principal axes of the means
    network: str = "gru"  # or "transformer"
    hidden: tuple[int, ...] = (128,)  # widths of the layers
    learning_rate: float = 1e-3  # of Adam
    ahead: int = 5  # a
    parts: int = 4  # of a clip, whose means are joined
    n_init: int = 10  # restarts of the k-means


@flax.struct.dataclass
class State:
    step: Array  # [] int32
    params: Params  # {"encoder"}
    opt_state: optax.OptState
    view: whitening.View  # of the means
    centroids: Array  # [k, embed_dim]


class Nets(NamedTuple):
    encoder: Network  # clips [b, t, ...] -> means of the states [b, m]
    frames: networks.Frames  # the same parameters: frames -> states -> frames


def build_nets(config: Config, shape: tuple[int, ...]) -> Nets:
    """The network for clips of `shape` (t, ...), whose first axis is time.

    Raises:
        ValueError: rows without an axis beside time, or too short; or as `networks.frames`.
    """
    if len(shape) < 2 or shape[0] <= config.ahead:
        raise ValueError(
            f"expected clips [t, ...] of more than {config.ahead} frames, found rows of shape "
            f"{tuple(shape)}"
        )
    outputs = math.prod(shape[1:])
    frames = networks.frames(config.network, config.hidden, shape[0], outputs)

    def means(params: Params, x: Array) -> Array:
        x = in_order(x)
        return means_of_parts(frames.states(params, x), length(x), config.parts)

    return Nets(Network(lambda key, x: frames.init(key, in_order(x)), means), frames)


def in_order(x: Array) -> Array:
    """Clips as frames. [b, t, ...] -> [b, t, c]."""
    return x.reshape(*x.shape[:2], -1)


def length(x: Array) -> Array:
    """Frames up to the last that is not zeros alone. [b, t, c] -> int32 [b]."""
    there = jnp.any(x != 0, axis=2)
    return jnp.max(jnp.where(there, 1 + jnp.arange(x.shape[1])[None, :], 0), axis=1)


def means_of_parts(states: Array, length: Array, parts: int) -> Array:
    """Means over parts of a clip, in order; parts overlap where their number does not divide its
    length. [b, t, m], int [b] -> [b, parts m], with no more parts than frames."""
    t = states.shape[1]
    parts = min(parts, t)
    length = jnp.maximum(length, 1)[:, None]  # of a clip of zeros alone the first frame
    part = jnp.arange(parts)[None, :]
    begin, end = part * length // parts, -(-(part + 1) * length // parts)
    frame = jnp.arange(t)[None, None, :]
    share = (frame >= begin[:, :, None]) & (frame < end[:, :, None])
    share = share / (end - begin)[:, :, None]
    means = jnp.matmul(share, states, precision="highest")
    return means.reshape(len(states), -1)


def loss(
    params: Params, state: State, batch: Batch, key: Key, *, nets: Nets, config: Config
) -> tuple[Array, Metrics]:
    """Mean distance of each number of a frame from what was told `ahead` frames before. -> [], {}.

    What is to be told are frames of the clip that is read, changed or not: a change may move them
    in time.
    """
    del state, key
    told = told_frames(params["encoder"], batch.x, nets, config)
    # A change may hide the last frames, and the clip ends where it did.
    off, count = distances(told, batch.x, length(in_order(augmentation.clean(batch))))
    return losses.masked_mean(off, batch.mask * (count > 0)), {}


def told_frames(params: Params, x: Array, nets: Nets, config: Config) -> Array:
    """What the network says the frames from `ahead` on are. [b, t, ...] -> [b, t - ahead, c]."""
    return nets.frames.told(params, nets.frames.states(params, in_order(x)[:, : -config.ahead]))


def distances(told: Array, x: Array, length: Array) -> tuple[Array, Array]:
    """Mean distance of the numbers of each clip from what was told of its last t - a frames, and
    how many of these there are before it ends. [b, t - a, c], [b, t, ...], int [b] -> [b], [b]."""
    ahead = x.shape[1] - told.shape[1]
    count = jnp.maximum(length - ahead, 0)
    off = jnp.mean(jnp.abs(told - in_order(x)[:, ahead:]), axis=2)
    off = jnp.where(jnp.arange(off.shape[1])[None, :] < count[:, None], off, 0.0)
    return jnp.sum(off, axis=1) / jnp.maximum(count, 1), count


def build(
    config: Config,
    shape: tuple[int, ...],
    *,
    loss: Callable[..., tuple[Array, Metrics]] = loss,
    optimizer: optax.GradientTransformation | None = None,
    augment: Callable[[Key, Array], Array] | None = None,
) -> Algorithm:
    """The algorithm for clips of `shape` (t, ...).

    `optimizer` replaces the Adam of the config. `augment` (key, one clip) -> clip changes every
    clip that is read.

    Raises:
        ValueError: as `build_nets`, or more axes than means of states.
    """
    nets = build_nets(config, shape)
    tx = optimizer or optax.adam(config.learning_rate)
    width = networks.outputs(nets.encoder, shape).shape[1]
    if config.embed_dim > width:
        raise ValueError(
            f"expected embed_dim <= {width}, the means of states, found {config.embed_dim}"
        )

    def init(key: Key, batch: Batch) -> State:
        encoder_key, centroid_key = jax.random.split(key)
        params = {"encoder": nets.encoder.init(encoder_key, batch.x)}
        centroids = jax.random.normal(centroid_key, (config.n_clusters, config.embed_dim))
        view = whitening.unfitted(width, config.embed_dim)
        return State(jnp.int32(0), params, tx.init(params), view, kmeans.unit(centroids))

    def step(key: Key, state: State, batch: Batch) -> tuple[State, Metrics]:
        augment_key, loss_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch = augmentation.batch(augment_key, batch, augment)
        (value, metrics), grads = losses.value_and_grad(loss)(
            state.params, state, batch, loss_key, nets=nets, config=config
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
        return state, {"loss": value, **metrics}

    def means(state: State, x: Array) -> Array:
        return networks.apply_in_blocks(nets.encoder.apply, state.params["encoder"], x, block=1024)

    def refresh(key: Key, state: State, x: Array) -> State:
        found = means(state, x)
        view = whitening.fit(found, config.embed_dim)
        z = whitening.apply(view, found)
        centroids = kmeans.fit(key, z, config.n_clusters, n_init=config.n_init).centroids
        return state.replace(view=view, centroids=centroids)

    def embed(state: State, x: Array) -> Array:
        return whitening.apply(state.view, means(state, x))

    def assign(state: State, z: Array) -> Array:
        return kmeans.assign(z, state.centroids)[0]

    return Algorithm(init, step, refresh, embed, assign)
