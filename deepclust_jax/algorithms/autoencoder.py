"""Autoencoder, then k-means on its code: the classical deep k-means, and everyone's warm start.

    minimise  sum_i |x_i - g(f(x_i))|^2 / sum_i |x_i - mean|^2,   then k-means on z_i = f(x_i)

Network and optimiser are those of the autoencoder whose ten-seed figures are published with
DEC-keras: 500-500-2000-d with ReLU and a linear code, SGD with a high learning rate and momentum
0.9, whose noise is what makes the code cluster well. Deviations: the squared error is a share of
the variance of the batch and not a mean over features, so that one learning rate serves data of
any scale (their rate of 1 is 0.067 here on MNIST, whose pixels have a mean variance of 0.067);
gradients are clipped; and the weights start with more variance (`networks.start_variance`).
`refresh` is the k-means; call it once, after training (`train.fit(..., refresh_every=0,
refresh_at_end=True)`). Its distances on the code are Euclidean as published, or by
`metric="adaptive"` those of clustering/adaptive.py.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import optax

from deepclust_jax import augment as augmentation
from deepclust_jax import losses, networks
from deepclust_jax.clustering import adaptive, kmeans
from deepclust_jax.types import Algorithm, Array, Batch, Key, Metrics, Network, Params


@dataclasses.dataclass(frozen=True)
class Config:
    n_clusters: int = 10  # k of the k-means on the code
    embed_dim: int = 10  # width of the code
    network: str = "mlp"  # or "conv", for images
    hidden: tuple[int, ...] = (500, 500, 2000)  # encoder widths; the decoder mirrors them
    precision: str = "float32"  # of products; "bfloat16" keeps sums and weights in float32
    learning_rate: float = 0.2  # of SGD, for an error relative to the variance
    momentum: float = 0.9
    clip: float = 1.0  # largest norm of a gradient: on low-dimensional tables SGD would explode
    n_init: int = 20  # restarts of the k-means
    metric: str = "euclidean"  # of the k-means, or "adaptive"


@flax.struct.dataclass
class State:
    step: Array  # [] int32
    params: Params  # {"encoder", "decoder"}
    opt_state: optax.OptState
    centroids: Array  # [k, embed_dim], means of the codes of their rows
    view: adaptive.View | None  # how codes are seen, where the metric is adaptive


class Nets(NamedTuple):
    encoder: Network
    decoder: Network


def build_nets(config: Config, shape: tuple[int, ...]) -> Nets:
    """Encoder and decoder for rows of the given shape."""
    pair = networks.autoencoder(
        config.network, shape, config.hidden, config.embed_dim, precision=config.precision
    )
    return Nets(*pair)


def init_params(key: Key, x: Array, nets: Nets) -> Params:
    """Fresh parameters of both networks for rows like `x` [b, ...]."""
    encoder_key, decoder_key = jax.random.split(key)
    encoder = nets.encoder.init(encoder_key, x)
    code = nets.encoder.apply(encoder, x)
    return {"encoder": encoder, "decoder": nets.decoder.init(decoder_key, code)}


def loss(
    params: Params, state: State, batch: Batch, key: Key, *, nets: Nets, config: Config
) -> tuple[Array, Metrics]:
    """Share of the variance of the batch that the reconstruction leaves unexplained. -> [].

    The metric `reconstruction` is the squared error summed over features, mean over rows.
    """
    del state, key, config
    z = nets.encoder.apply(params["encoder"], batch.x)
    x_hat = nets.decoder.apply(params["decoder"], z)
    error = losses.masked_mean(losses.reconstruction(batch.x, x_hat), batch.mask)
    return error / losses.total_variance(batch.x, batch.mask), {"reconstruction": error}


def sgd(learning_rate: float | optax.Schedule, config: Config) -> optax.GradientTransformation:
    """SGD with momentum and clipped gradients, for a rate or a schedule."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip), optax.sgd(learning_rate, config.momentum)
    )


def starting_point(state: State) -> tuple[Params, Array]:
    """Networks and centroids for a method that goes on with Euclidean distances. -> params, [k, d].

    Under an adaptive metric the code is turned and scaled, volume kept, until its Euclidean
    distances are those of the metric near the mean, and the decoder takes that back: it
    reconstructs as before.
    """
    if state.view is None:
        return state.params, state.centroids
    matrix = adaptive.linear(state.view)
    encoder, decoder = networks.change_code(
        state.params["encoder"], state.params["decoder"], matrix
    )
    centroids = jnp.dot(state.centroids, matrix, precision=jax.lax.Precision.HIGHEST)
    return {"encoder": encoder, "decoder": decoder}, centroids


def build(
    config: Config,
    shape: tuple[int, ...],
    *,
    loss: Callable[..., tuple[Array, Metrics]] = loss,
    optimizer: optax.GradientTransformation | None = None,
    augment: Callable[[Key, Array], Array] | None = None,
) -> Algorithm:
    """The algorithm for rows of the given shape.

    `optimizer` replaces the SGD of the config. `augment` (key, one row) -> row changes every row
    before a step; the network then reconstructs the changed row (as in DEC-DA).
    """
    if config.metric not in ("euclidean", "adaptive"):
        raise ValueError(f"expected metric euclidean or adaptive, found {config.metric!r}")
    nets = build_nets(config, shape)
    tx = optimizer or sgd(config.learning_rate, config)

    def init(key: Key, batch: Batch) -> State:
        params = init_params(key, batch.x, nets)
        # Infinite before the first k-means: a method that starts from a state without one stops
        # at once, where zeros would train.
        centroids = jnp.full((config.n_clusters, config.embed_dim), jnp.inf)
        view = adaptive.unfitted(centroids) if config.metric == "adaptive" else None
        return State(jnp.int32(0), params, tx.init(params), centroids, view)

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

    def refresh(key: Key, state: State, x: Array) -> State:
        z = embed(state, x)
        if config.metric == "adaptive":
            found = adaptive.fit(key, z, config.n_clusters, n_init=config.n_init)
            return state.replace(centroids=found.centroids, view=found.view)
        # On all codes in every restart, as published.
        found = kmeans.fit(key, z, config.n_clusters, n_init=config.n_init, sample=None)
        return state.replace(centroids=found.centroids)

    def embed(state: State, x: Array) -> Array:
        return networks.apply_in_blocks(nets.encoder.apply, state.params["encoder"], x)

    def assign(state: State, z: Array) -> Array:
        if config.metric == "adaptive":
            return adaptive.assign(state.view, z)
        return kmeans.assign(z, state.centroids)[0]

    return Algorithm(init, step, refresh, embed, assign)
