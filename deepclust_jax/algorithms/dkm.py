"""DKM: deep k-means with a differentiable assignment (Fard, Thonet, Gaussier 2020, "Deep k-Means").

    minimise  mean_i |x_i - g(f(x_i))|^2 + weight * sum_k d_ik softmax_k(-alpha d_i)      (eq. 3)

with d_ik = |f(x_i) - mu_k|^2 and the centroids mu trained by the same optimiser as the networks.
Two ways, both of the paper: start from a trained autoencoder with a constant alpha of 1000
("DKM^p", `warm_start`), or raise alpha from 0.1 from random weights ("DKM^a", `annealed=True`).
Sums run over features. The scale of the code decides how hard a given alpha is: the metric
`hardness` (mean largest weight, 1/k to 1) tells. `centroid_gap` near 0 means collapsed centroids.
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
    weight: float = 1.0  # lambda, of the clustering term
    alpha: float = 1000.0  # inverse temperature; the first value of the schedule if annealed
    annealed: bool = False  # raise alpha while training
    epochs_per_alpha: int = 5  # how long each value of the schedule lasts
    sizes: str = "free"  # of the clusters in a batch: "even" or "prior" (losses.prices)


@flax.struct.dataclass
class State:
    step: Array  # [] int32
    params: Params  # {"encoder", "decoder", "centroids"}
    opt_state: optax.OptState
    epoch: Array  # [] int32, how often `refresh` was called
    frequency: Array | None  # [k], shares of the clusters at the last one, if they are the prior


class Nets(NamedTuple):
    encoder: Network
    decoder: Network


def build_nets(config: Config, shape: tuple[int, ...]) -> Nets:
    """Encoder and decoder for rows of the given shape."""
    pair = networks.autoencoder(
        config.network, shape, config.hidden, config.embed_dim, precision=config.precision
    )
    return Nets(*pair)


def alphas(first: float, n: int) -> np.ndarray:
    """The annealing schedule (section 3.3): a_1 = first, a_{t+1} = 2^(1 / ln(t + 1)^2) a_t. [n]."""
    t = np.arange(1, n)
    factors = 2.0 ** (1.0 / np.log(t + 1) ** 2)
    return first * np.cumprod(np.concatenate([[1.0], factors]))


def alpha(state: State, config: Config) -> Array:
    """The inverse temperature in force. -> []."""
    if not config.annealed:
        return jnp.float32(config.alpha)
    schedule = jnp.asarray(alphas(config.alpha, 40), jnp.float32)  # 40 values in the paper
    # `refresh` has been called once when the first epoch starts.
    level = jnp.maximum(state.epoch - 1, 0) // config.epochs_per_alpha
    return schedule[jnp.minimum(level, len(schedule) - 1)]


def loss(
    params: Params, state: State, batch: Batch, key: Key, *, nets: Nets, config: Config
) -> tuple[Array, Metrics]:
    """Reconstruction plus soft k-means (eq. 3), mean over rows. -> [], metrics.

    The weights of a row come from its code without augmentation.
    """
    del key
    z = nets.encoder.apply(params["encoder"], batch.x)
    x_hat = nets.decoder.apply(params["decoder"], z)
    reconstruction = losses.masked_mean(losses.reconstruction(batch.x, x_hat), batch.mask)
    # A row keeps its weights however it was augmented: that makes the code invariant.
    clean = None if batch.clean is None else nets.encoder.apply(params["encoder"], batch.clean)
    own = losses.squared_distances(z if clean is None else clean, params["centroids"])
    price = losses.prices(own, batch.mask, z.shape[1], config.sizes, state.frequency)
    sharpness = alpha(state, config)
    pull = losses.masked_mean(
        losses.soft_kmeans(z, params["centroids"], sharpness, clean=clean, price=price), batch.mask
    )
    value = reconstruction + config.weight * pull
    return value, {"reconstruction": reconstruction, "pull": pull}


def monitor(params: Params, state: State, batch: Batch, *, nets: Nets, config: Config) -> Metrics:
    """Signs of a temperature off its range and of collapse; see the head of this file."""
    sqdist = losses.squared_distances(
        nets.encoder.apply(params["encoder"], augmentation.clean(batch)), params["centroids"]
    )
    width = params["centroids"].shape[1]
    price = losses.prices(sqdist, batch.mask, width, config.sizes, state.frequency)
    weights = jax.nn.softmax(-alpha(state, config) * (sqdist + price[None, :]), axis=-1)
    gaps = losses.squared_distances(params["centroids"], params["centroids"])
    apart = jnp.where(jnp.eye(config.n_clusters, dtype=bool), jnp.inf, gaps)
    return {
        "alpha": alpha(state, config),
        "hardness": losses.masked_mean(jnp.max(weights, axis=-1), batch.mask),
        "centroid_gap": jnp.sqrt(jnp.min(apart)),
    }


def warm_start(state: State, pretrained: autoencoder.State) -> State:
    """`state` with the networks and the k-means centroids of a trained autoencoder."""
    params, centroids = autoencoder.starting_point(pretrained)
    return state.replace(params={**params, "centroids": centroids})


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
    before a step; the weights of the clusters come from the rows as they were (as in DEC-DA).
    `refresh` counts the epochs for the schedule of alpha, and the rows of each cluster where their
    sizes are a prior.
    """
    losses.check_sizes(config.sizes)
    nets = build_nets(config, shape)
    tx = optimizer or optax.adam(config.learning_rate)

    def init(key: Key, batch: Batch) -> State:
        shape = (config.n_clusters, config.embed_dim)
        centroids = jax.random.uniform(jax.random.fold_in(key, 1), shape, minval=-1.0, maxval=1.0)
        params = {**autoencoder.init_params(key, batch.x, nets), "centroids": centroids}
        has_prior = config.sizes == "prior"
        alike = jnp.full(config.n_clusters, 1.0 / config.n_clusters) if has_prior else None
        return State(jnp.int32(0), params, tx.init(params), jnp.int32(0), alike)

    def step(key: Key, state: State, batch: Batch) -> tuple[State, Metrics]:
        augment_key, loss_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch = augmentation.batch(augment_key, batch, augment)
        (value, metrics), grads = losses.value_and_grad(loss)(
            state.params, state, batch, loss_key, nets=nets, config=config
        )
        # A metric of the loss comes before a sign of the same name.
        metrics = monitor(state.params, state, batch, nets=nets, config=config) | metrics
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
        return state, {"loss": value, **metrics}

    def refresh(key: Key, state: State, x: Array) -> State:
        del key
        state = state.replace(epoch=state.epoch + 1)
        if config.sizes != "prior":
            return state
        sizes = jnp.bincount(assign(state, embed(state, x)), length=config.n_clusters)
        return state.replace(frequency=sizes / len(x))

    def embed(state: State, x: Array) -> Array:
        return networks.apply_in_blocks(nets.encoder.apply, state.params["encoder"], x)

    def assign(state: State, z: Array) -> Array:
        return kmeans.assign(z, state.params["centroids"])[0]

    return Algorithm(init, step, refresh, embed, assign)
