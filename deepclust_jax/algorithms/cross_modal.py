"""Features on which the modalities of a thing agree, such as its picture and its sound, and k-means
on all of them.

    minimise  mean_i 1/2 (-log p(j = i | z_i) - log p(i = j | z'_j)),
    p(j | z_i) = exp(z_i . z'_j / t) / sum_l exp(z_i . z'_l / t)

    z_i = f(view of the one modality of row i),  z'_i = g(view of the other), both of unit length;
    l runs over the rows of the batch, and of more than two modalities the loss is the mean over
    pairs of them.

The loss is that of ConVIRT (Zhang et al. 2020, eq. 2 to 4) and CLIP (Radford et al. 2021); all
pairs of several modalities are in Tian et al. 2020, "Contrastive Multiview Coding". What two
modalities share is what the thing is; how it was written or who said it is in one of them only, and
is lost. Which rows belong together is given by the data. Where pairs were made by class, as those
of mnist_of_fsdd, that tells much of the classes: no other method has it.

`refresh` clusters the features of all modalities side by side; call it once, after training. It
also fixes the statistics of the batch normalisation, as in contrastive.py.

Deviations: batch normalisation and no projection head, as in contrastive.py; a fixed temperature.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import optax

from deepclust_jax import augment as augmentation
from deepclust_jax import losses, networks
from deepclust_jax.algorithms import contrastive
from deepclust_jax.clustering import kmeans
from deepclust_jax.types import Algorithm, Array, Batch, Key, Metrics, Network, Params


@dataclasses.dataclass(frozen=True)
class Config:
    n_clusters: int = 10  # k
    parts: tuple[tuple[int, ...], ...] = ()  # shapes of the modalities, in the order of a row
    embed_dim: int = 64  # width of the features of each modality
    network: str = "mlp"  # or "conv", for modalities that are images [h, w, c]
    hidden: tuple[int, ...] = (512, 512)  # encoder widths
    precision: str = "float32"  # of products; "bfloat16" keeps sums and weights in float32
    learning_rate: float = 1e-3  # of Adam
    temperature: float = 0.5  # t
    n_init: int = 10  # restarts of the k-means


@flax.struct.dataclass
class State:
    step: Array  # [] int32
    params: Params  # {"encoder"}: a tuple, one for each modality
    opt_state: optax.OptState
    statistics: tuple[Params, ...]  # of the batch normalisation, as of the last `refresh`
    centroids: Array  # [k, m * embed_dim]


class Nets(NamedTuple):
    encoder: Network  # rows -> features of all modalities side by side, by the batch's statistics
    encoders: tuple[networks.Normalised, ...]  # one for each modality, with the same parameters


def build_nets(config: Config, shape: tuple[int, ...]) -> Nets:
    """An encoder for each modality of rows of `shape` (d,).

    Raises:
        ValueError: fewer than two modalities, or they do not make up a row.
    """
    d = sum(map(math.prod, config.parts))
    if len(config.parts) < 2 or tuple(shape) != (d,):
        raise ValueError(
            f"expected two modalities or more that make up rows of shape {tuple(shape)}, found "
            f"{config.parts}"
        )
    kinds = ["conv" if config.network == "conv" and len(p) == 3 else "mlp" for p in config.parts]
    encoders = tuple(
        networks.normalised_encoder(
            kind, part, config.hidden, config.embed_dim, precision=config.precision
        )
        for kind, part in zip(kinds, config.parts, strict=True)
    )

    def init(key: Key, x: Array) -> Params:
        keys = jax.random.split(key, len(encoders))
        each = zip(encoders, keys, augmentation.parts_of(x, config.parts), strict=True)
        return tuple(encoder.init(*own) for encoder, *own in each)

    def encode(params: Params, x: Array, mask: Array | None = None) -> Array:
        each = zip(encoders, params, augmentation.parts_of(x, config.parts), strict=True)
        found = [losses.unit_length(encoder.apply(*own, mask)) for encoder, *own in each]
        return jnp.concatenate(found, axis=1)

    return Nets(Network(init, encode), encoders)


def agreement(one: Array, other: Array, mask: Array, temperature: float) -> Array:
    """The loss of each row for two modalities, nats, 0 outside the mask. [b, d] twice, [b] -> [b].

    Features are of unit length; rows outside the mask are no other row's candidates.
    """
    logits = jnp.matmul(one, other.T, precision="highest") / temperature
    here = jnp.where(mask > 0, 0.0, -jnp.inf)
    forth = jax.nn.logsumexp(logits + here[None, :], axis=1)
    back = jax.nn.logsumexp(logits + here[:, None], axis=0)
    return jnp.where(mask > 0, 0.5 * (forth + back) - jnp.diagonal(logits), 0.0)


def loss(
    params: Params, state: State, batch: Batch, key: Key, *, nets: Nets, config: Config
) -> tuple[Array, Metrics]:
    """Mean of `agreement` over rows and pairs of modalities, nats. -> [], metrics.

    The metric `alignment` is the mean cosine of the pairs.
    """
    del state, key
    z = nets.encoder.apply(params["encoder"], batch.x, batch.mask)
    pairs = list(itertools.combinations(jnp.split(z, len(config.parts), axis=1), 2))
    cost = sum(agreement(*pair, batch.mask, config.temperature) for pair in pairs)
    cosine = sum(jnp.sum(one * other, axis=-1) for one, other in pairs)
    alignment = losses.masked_mean(cosine / len(pairs), batch.mask)
    return losses.masked_mean(cost / len(pairs), batch.mask), {"alignment": alignment}


def features(state: State, x: Array, nets: Nets, parts: Sequence[tuple[int, ...]]) -> list[Array]:
    """Features of unit length of each modality, by the statistics of the state. -> m of [n, d]."""
    each = zip(
        nets.encoders, state.params["encoder"], state.statistics,
        augmentation.parts_of(x, parts), strict=True,
    )  # fmt: skip
    return [contrastive.features(*one) for one in each]


def build(
    config: Config,
    shape: tuple[int, ...],
    *,
    loss: Callable[..., tuple[Array, Metrics]] = loss,
    optimizer: optax.GradientTransformation | None = None,
    augment: Callable[[Key, Array], Array] | None = None,
) -> Algorithm:
    """The algorithm for rows of `shape` (d,), the modalities one behind the other.

    `optimizer` replaces the Adam of the config. `augment` (key, one row) -> row changes every row
    before a step; see `augment.each`.

    Raises:
        ValueError: as `build_nets`.
    """
    nets = build_nets(config, shape)
    tx = optimizer or optax.adam(config.learning_rate)
    width = len(config.parts) * config.embed_dim

    def measured(params: Params, x: Array) -> tuple[Params, ...]:
        parts = augmentation.parts_of(x, config.parts)
        each = zip(nets.encoders, params["encoder"], parts, strict=True)
        return tuple(contrastive.measured(*own) for own in each)

    def init(key: Key, batch: Batch) -> State:
        encoder_key, centroid_key = jax.random.split(key)
        params = {"encoder": nets.encoder.init(encoder_key, batch.x)}
        statistics = measured(params, batch.x)
        centroids = jax.random.normal(centroid_key, (config.n_clusters, width))
        return State(jnp.int32(0), params, tx.init(params), statistics, kmeans.unit(centroids))

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
        state = state.replace(statistics=measured(state.params, x))
        found = kmeans.fit(key, embed(state, x), config.n_clusters, n_init=config.n_init)
        return state.replace(centroids=found.centroids)

    def embed(state: State, x: Array) -> Array:
        each = features(state, x, nets, config.parts)
        return losses.unit_length(jnp.concatenate(each, axis=1))

    def assign(state: State, z: Array) -> Array:
        return kmeans.assign(z, state.centroids)[0]

    return Algorithm(init, step, refresh, embed, assign)
