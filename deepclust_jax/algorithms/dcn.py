"""DCN: an autoencoder and k-means trained together (Yang et al. 2017, "Towards K-means-friendly
Spaces").

    minimise  mean_i |x_i - g(f(x_i))|^2 + (weight / 2) |f(x_i) - M s_i|^2        (eq. 4)

with s_i the one-hot nearest centroid. Every batch: one gradient step on the networks with centroids
and assignments fixed, new assignments, then every centroid moves to its rows with a step of one
over the number of rows it has seen, which starts at 100 in the authors' code, not in their paper.
Sums run over features. Deviation: the rows of a batch move the centroids at once instead of one by
one, which is the same arithmetic once the batch is assigned (a test proves it).

With `merge` the number of clusters is found while it trains. Of `n_clusters` there are several
times as many as are expected; before each epoch, and after the last (`train.fit(...,
refresh_at_end=True)`), those are joined to groups between which a graph of neighbours has no more
edges than chance gives (clustering/linkage.py, also on when that finds too many). The group is the
cluster, and s_i draws a row to its mean, by the rows that its centroids have seen; `sizes` are of
the centroids. To start with too many and merge while the network trains is from Leiber et al. 2021,
"Dip-based Deep Embedded Clustering with k-Estimation". Deviations from that: edges of a graph in
place of Hartigan's dip, which on the codes of eight data sets had the lower NMI on each; no pull
between clusters that may become one; and groups are found anew each time, so that what was joined
can part.

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
import numpy as np
import optax

from deepclust_jax import augment as augmentation
from deepclust_jax import losses, networks
from deepclust_jax.algorithms import autoencoder
from deepclust_jax.clustering import kmeans, linkage
from deepclust_jax.types import Algorithm, Array, Batch, Key, Metrics, Network, Params

_MERGED_BY = 10_000  # rows at most whose neighbours tell which clusters are one


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
    merge: bool = False  # n_clusters is far too many, to be joined to fewer while it trains


@flax.struct.dataclass
class State:
    step: Array  # [] int32
    params: Params  # {"encoder", "decoder"}
    opt_state: optax.OptState
    centroids: Array  # [k, embed_dim]
    counts: Array  # [k], rows each centroid has seen
    group: Array | None = None  # [k] int32, with `merge`: numbers from 0 on


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
    pull = losses.masked_mean(losses.to_own_centroid(z, middles(state), labels), batch.mask)
    value = reconstruction + 0.5 * config.weight * pull
    return value, {"reconstruction": reconstruction, "pull": pull}


def nearest(z: Array, state: State, mask: Array, config: Config) -> Array:
    """The centroid of each row of a batch: the nearest, after the prices for sizes. -> [b] int."""
    sqdist = losses.squared_distances(z, state.centroids)
    frequency = state.counts / jnp.sum(state.counts)
    price = losses.prices(sqdist, mask, z.shape[1], config.sizes, frequency)
    return jnp.argmin(sqdist + price[None, :], axis=-1)


def middles(state: State) -> Array:
    """Where the rows of each centroid are drawn to: itself, or the mean of its group. -> [k, d]."""
    if state.group is None:
        return state.centroids
    member = jax.nn.one_hot(state.group, len(state.group)) * state.counts[:, None]
    sums = jnp.dot(member.T, state.centroids, precision=jax.lax.Precision.HIGHEST)
    seen = jnp.sum(member, axis=0)
    return (sums / jnp.where(seen > 0, seen, 1.0)[:, None])[state.group]


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
    """`state` with the networks and the k-means centroids of a trained autoencoder.

    With `merge` the networks alone: the first `refresh` finds centroids of its own number.
    """
    params, centroids = autoencoder.starting_point(pretrained)
    if state.group is not None:
        return state.replace(params=params)
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
    With `merge`, `refresh` joins the centroids.
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
        group = jnp.arange(config.n_clusters, dtype=jnp.int32) if config.merge else None
        return State(jnp.int32(0), params, tx.init(params), centroids, counts, group)

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
        state = state.replace(
            step=state.step + 1, params=params, opt_state=opt_state,
            centroids=centroids, counts=counts,
        )  # fmt: skip
        if config.merge:
            metrics = {**metrics, "clusters": jnp.max(state.group) + 1.0}
        return state, {"loss": value, **metrics}

    def refresh(key: Key, state: State, x: Array) -> State:
        if not config.merge:
            return state  # centroids move in every step
        most = max(_MERGED_BY, config.n_clusters)
        some = np.linspace(0, len(x) - 1, min(len(x), most)).astype(np.int32)
        z = embed(state, x[some])
        centroids = jax.lax.cond(
            state.step == 0,
            lambda key, z: kmeans.fit(key, z, config.n_clusters).centroids,
            lambda key, z: state.centroids,
            key,
            z,
        )
        edges = linkage.edges(z, kmeans.assign(z, centroids)[0], config.n_clusters)
        # A centroid without rows goes to the nearest with rows: it would draw others nowhere.
        gaps = losses.squared_distances(centroids, centroids)
        has_rows = jnp.sum(edges, axis=1) > 0
        nearest = jnp.argmin(jnp.where(has_rows[None, :], gaps, jnp.inf), axis=1)
        nearest = jnp.where(has_rows, jnp.arange(len(gaps)), nearest)
        group = linkage.merge(edges)[nearest]
        return state.replace(centroids=centroids[nearest], group=group)

    def embed(state: State, x: Array) -> Array:
        return networks.apply_in_blocks(nets.encoder.apply, state.params["encoder"], x)

    def assign(state: State, z: Array) -> Array:
        labels = kmeans.assign(z, state.centroids)[0]
        return labels if state.group is None else state.group[labels]

    return Algorithm(init, step, refresh, embed, assign)
