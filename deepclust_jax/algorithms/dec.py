"""DEC and IDEC: codes are drawn to the clusters that they are surest of (Xie et al. 2016,
"Unsupervised Deep Embedding for Clustering Analysis"; Guo et al. 2017, "Improved Deep Embedded
Clustering with Local Structure Preservation").

    minimise  weight * mean_i KL(p_i || q_i)
              + reconstruction * sum_i |x_i - g(f(x_i))|^2 / sum_i |x_i - mean|^2

    q_ik  proportional to  1 / (1 + |z_i - mu_k|^2)              (DEC, eq. 1)
    p_ik  proportional to  q_ik^2 / sum_i q_ik                    (DEC, eq. 3)

DEC has a weight of 1 and no reconstruction (0), and drops the decoder. IDEC has a reconstruction of
1 and a weight (gamma) of 0.1 against the error averaged over features, as its authors' code has it.
Here the error is a share of the variance of the batch, as in algorithms/autoencoder.py, so that one
weight serves data of any scale: 1.5 is their 0.1 on MNIST, whose pixels have a mean variance of
0.067. Centroids are trained with the networks, at the same rate.

The targets p stay as they are from one `refresh` to the next, and their sums run over all rows that
`refresh` is given, not over a batch. They are no table of n rows: the state keeps the encoder and
the centroids as they were then, and a step computes the targets of its rows from those. That is the
same number for every row, whatever its place in a batch, also for data that are streamed and never
all at hand; it costs one more pass through the encoder. (With sizes "even" they are of the batch.)

Deviations: targets are renewed once an epoch and not every 140 steps (MNIST) or 30 (USPS, where an
epoch has 37), and training ends after a number of epochs, not when labels change little.
The paper profile is that of the papers' authors in learning rates: SGD at 0.01 for DEC and Adam at
0.001 for IDEC. Both start from a trained autoencoder (`warm_start`): the papers train it layer by
layer with dropout and then as a whole, for 50,000 and 100,000 steps; the paper profile trains it as
a whole, for 50 epochs.
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
    weight: float = 1.5  # gamma, of the clustering term
    reconstruction: float = 1.0  # weight of the reconstruction; 0 is DEC, without a decoder
    sizes: str = "free"  # of the clusters: "even" or "prior" in the targets (`targets`)


class Snapshot(NamedTuple):
    """What the targets are computed from: all as it was at the last `refresh`."""

    encoder: Params
    centroids: Array  # [k, embed_dim]
    frequency: Array  # [k], mean over the rows of their shares q


@flax.struct.dataclass
class State:
    step: Array  # [] int32
    params: Params  # {"encoder", "decoder", "centroids"}
    opt_state: optax.OptState
    snapshot: Snapshot


class Nets(NamedTuple):
    encoder: Network
    decoder: Network


def build_nets(config: Config, shape: tuple[int, ...]) -> Nets:
    """Encoder and decoder for rows of the given shape."""
    pair = networks.autoencoder(
        config.network, shape, config.hidden, config.embed_dim, precision=config.precision
    )
    return Nets(*pair)


def targets(snapshot: Snapshot, x: Array, mask: Array, nets: Nets, config: Config) -> Array:
    """The targets p of rows, without a gradient. [b, ...] -> [b, k], rows sum to 1.

    Dividing by the sum of the shares, as published, draws sizes towards each other. With sizes
    "prior" p is proportional to q^2 alone, and keeps them; with "even" to q^2 times what makes the
    sizes in the batch equal.
    """
    z = nets.encoder.apply(snapshot.encoder, x)
    log_q = losses.log_student_t(z, snapshot.centroids)
    if config.sizes == "free":
        p = losses.sharpened(log_q, snapshot.frequency)
    elif config.sizes == "prior":
        p = jax.nn.softmax(2.0 * log_q, axis=-1)
    else:
        p = losses.even_shares(2.0 * log_q, mask)
    return jax.lax.stop_gradient(p)


def loss(
    params: Params, state: State, batch: Batch, key: Key, *, nets: Nets, config: Config
) -> tuple[Array, Metrics]:
    """Divergence from the targets, plus reconstruction, mean over rows. -> [], metrics.

    The targets of a row come from it as it was before an augmentation (DEC-DA, Guo et al. 2018).
    """
    del key
    p = targets(state.snapshot, augmentation.clean(batch), batch.mask, nets, config)
    z = nets.encoder.apply(params["encoder"], batch.x)
    log_q = losses.log_student_t(z, params["centroids"])
    divergence = losses.masked_mean(losses.divergence(p, log_q), batch.mask)
    value, metrics = config.weight * divergence, {"divergence": divergence}
    if config.reconstruction:
        x_hat = nets.decoder.apply(params["decoder"], z)
        error = losses.masked_mean(losses.reconstruction(batch.x, x_hat), batch.mask)
        share = error / losses.total_variance(batch.x, batch.mask)
        value, metrics = value + config.reconstruction * share, {**metrics, "reconstruction": error}
    return value, metrics


def warm_start(state: State, pretrained: autoencoder.State) -> State:
    """`state` with the networks and the k-means centroids of a trained autoencoder."""
    params, centroids = autoencoder.starting_point(pretrained)
    snapshot = state.snapshot._replace(encoder=params["encoder"], centroids=centroids)
    return state.replace(params={**params, "centroids": centroids}, snapshot=snapshot)


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
    before a step; its targets come from the row as it was (as in DEC-DA). `refresh` renews the
    targets.
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
        alike = jnp.full(config.n_clusters, 1.0 / config.n_clusters)
        snapshot = Snapshot(params["encoder"], centroids, alike)
        params = {**params, "centroids": centroids}
        return State(jnp.int32(0), params, tx.init(params), snapshot)

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
        del key
        encoder, centroids = state.params["encoder"], state.params["centroids"]
        q = jnp.exp(losses.log_student_t(embed(state, x), centroids))
        return state.replace(snapshot=Snapshot(encoder, centroids, jnp.mean(q, axis=0)))

    def embed(state: State, x: Array) -> Array:
        return networks.apply_in_blocks(nets.encoder.apply, state.params["encoder"], x)

    def assign(state: State, z: Array) -> Array:
        return kmeans.assign(z, state.params["centroids"])[0]

    return Algorithm(init, step, refresh, embed, assign)
