"""DCN: an autoencoder and k-means trained together (Yang et al. 2017, "Towards K-means-friendly
Spaces").

    minimise  mean_i |x_i - g(f(x_i))|^2 + (weight / 2) |f(x_i) - M s_i|^2        (eq. 4)

with s_i the one-hot nearest centroid. Every batch: one gradient step on the networks with centroids
and assignments fixed, new assignments, then every centroid moves to its rows with a step of one
over the number of rows it has seen, which starts at 100 in the authors' code, not in their paper.
Sums run over features. Deviation: the rows of a batch move the centroids at once instead of one by
one, which is the same arithmetic once the batch is assigned (a test proves it).

The defaults are the paper's. The practical profile of the script, a rate of 1e-4 and a weight of 2,
comes from trials on single seeds of USPS.

Start it from a trained autoencoder (`warm_start`): from random weights the code collapses.
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
from deepclust_jax.algorithms import autoencoder
from deepclust_jax.clustering import kmeans
from deepclust_jax.types import Algorithm, Array, Batch, Key, Metrics, Network, Params


@dataclasses.dataclass(frozen=True)
class Config:
    n_clusters: int = 10  # k
    embed_dim: int = 10  # width of the code
    network: str = "mlp"  # or "conv", for images
    hidden: tuple[int, ...] = (500, 500, 2000)  # encoder widths; the decoder mirrors them
    precision: str = "float32"  # of products; "bfloat16" keeps sums and weights in float32
    learning_rate: float = 1e-3  # of Adam
    weight: float = 0.05  # lambda, of the clustering term
    count: float = 100.0  # rows a centroid has seen before the first step
    sizes: str = "free"  # of the clusters in a batch: "even" or "prior" (losses.prices)


@flax.struct.dataclass
class State:
    step: Array  # [] int32
    params: Params  # {"encoder", "decoder"}
    opt_state: optax.OptState
    centroids: Array  # [k, embed_dim]
    counts: Array  # [k], rows each centroid has seen


class Nets(NamedTuple):
    encoder: Network
    decoder: Network


def build_nets(config: Config, shape: tuple[int, ...]) -> Nets:
    """Encoder and decoder for rows of the given shape."""
    pair = networks.autoencoder(
        config.network, shape, config.hidden, config.embed_dim, precision=config.precision
    )
    return Nets(*pair)


def loss(
    params: Params, state: State, batch: Batch, key: Key, *, nets: Nets, config: Config
) -> tuple[Array, Metrics]:
    """Reconstruction plus pull to the own centroid (eq. 4), mean over rows. -> [], metrics.

    The own centroid of a row is the nearest to its code without augmentation.
    """
    del key
    z = nets.encoder.apply(params["encoder"], batch.x)
    x_hat = nets.decoder.apply(params["decoder"], z)
    reconstruction = losses.masked_mean(losses.reconstruction(batch.x, x_hat), batch.mask)
    # A row keeps its centroid however it was augmented: that makes the code invariant.
    clean = z if batch.clean is None else nets.encoder.apply(params["encoder"], batch.clean)
    labels = nearest(clean, state, batch.mask, config)
    pull = losses.masked_mean(losses.to_own_centroid(z, state.centroids, labels), batch.mask)
    value = reconstruction + 0.5 * config.weight * pull
    return value, {"reconstruction": reconstruction, "pull": pull}


def nearest(z: Array, state: State, mask: Array, config: Config) -> Array:
    """The centroid of each row of a batch: the nearest, after the prices for sizes. -> [b] int."""
    sqdist = losses.squared_distances(z, state.centroids)
    frequency = state.counts / jnp.sum(state.counts)
    price = losses.prices(sqdist, mask, z.shape[1], config.sizes, frequency)
    return jnp.argmin(sqdist + price[None, :], axis=-1)


def move_centroids(
    centroids: Array, counts: Array, z: Array, labels: Array, mask: Array
) -> tuple[Array, Array]:
    """Centroids and counts after a batch: running means of all rows seen. [k, d], [k].

    Equal to mu <- mu - (mu - z_i) / c with c <- c + 1 before it, for one row i after another.
    """
    member = jax.nn.one_hot(labels, centroids.shape[0], dtype=z.dtype) * mask[:, None]
    seen = counts + jnp.sum(member, axis=0)
    sums = counts[:, None] * centroids + jnp.dot(member.T, z, precision=jax.lax.Precision.HIGHEST)
    return sums / seen[:, None], seen


def warm_start(state: State, pretrained: autoencoder.State) -> State:
    """`state` with the networks and the k-means centroids of a trained autoencoder."""
    params, centroids = autoencoder.starting_point(pretrained)
    return state.replace(params=params, centroids=centroids)


def build(
    config: Config,
    shape: tuple[int, ...],
    *,
    loss: Callable[..., tuple[Array, Metrics]] = loss,
    optimizer: optax.GradientTransformation | None = None,
    augment: Callable[[Key, Array], Array] | None = None,
) -> Algorithm:
    """The algorithm for rows of the given shape.

    `optimizer` replaces the Adam of the config. `augment` (key, one row) -> row changes every row
    before a step; assignments and centroids come from the rows as they were (as in DEC-DA).
    """
    losses.check_sizes(config.sizes)
    nets = build_nets(config, shape)
    tx = optimizer or optax.adam(config.learning_rate)

    def init(key: Key, batch: Batch) -> State:
        params = autoencoder.init_params(key, batch.x, nets)
        # Spread like random codes; `warm_start` replaces them by the k-means of trained ones.
        centroids = jax.random.normal(
            jax.random.fold_in(key, 1), (config.n_clusters, config.embed_dim)
        )
        counts = jnp.full(config.n_clusters, config.count, jnp.float32)
        return State(jnp.int32(0), params, tx.init(params), centroids, counts)

    def step(key: Key, state: State, batch: Batch) -> tuple[State, Metrics]:
        augment_key, loss_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch = augmentation.batch(augment_key, batch, augment)
        (value, metrics), grads = losses.value_and_grad(loss)(
            state.params, state, batch, loss_key, nets=nets, config=config
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        z = nets.encoder.apply(params["encoder"], augmentation.clean(batch))
        labels = nearest(z, state, batch.mask, config)
        centroids, counts = move_centroids(state.centroids, state.counts, z, labels, batch.mask)
        state = State(state.step + 1, params, opt_state, centroids, counts)
        return state, {"loss": value, **metrics}

    def refresh(key: Key, state: State, x: Array) -> State:
        del key, x  # centroids move in every step
        return state

    def embed(state: State, x: Array) -> Array:
        return networks.apply_in_blocks(nets.encoder.apply, state.params["encoder"], x)

    def assign(state: State, z: Array) -> Array:
        return kmeans.assign(z, state.centroids)[0]

    return Algorithm(init, step, refresh, embed, assign)
