"""MMDC: images told by how they were turned, and by the point of a mixture that each is given
(Shiran & Weinshall 2021, "Multi-Modal Deep Clustering: Unsupervised Partitioning of Images").

    minimise  mean_i |y_i - t_pi(i)|^2
              + weight mean_i 1/4 sum_{r = 0..3} -log p_r(x_i turned r times)

    t ~ mixture of k equal Gaussians, with the unit vectors of R^k as means, variance sigma^2 I
    pi = argmin sum_i |y_i - t_pi(i)|^2  over the permutations of a batch    (Hungarian algorithm)

y in R^k is a linear head on the code of the image as it is augmented. The matching moves all images
to the mixture as a whole, each to a point near it, so that no cluster is empty and all are of one
size; what is near is decided by what the network sees, which the turns teach it: so they come first
and alone, as from random weights the first matching would stay. The cluster of an image is the
largest number of its y.

Deviations: both tasks then in every step, not in turns by epoch; targets are drawn anew for every
batch, not kept by image, so that no state has a place for each row; no last stage of k-means; group
instead of batch normalisation, and Adam.
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
from deepclust_jax.algorithms import rotation
from deepclust_jax.types import Algorithm, Array, Batch, Key, Metrics, Network, Params


@dataclasses.dataclass(frozen=True)
class Config:
    n_clusters: int = 10  # k
    embed_dim: int = 32  # width of the code
    network: str = "conv"  # blocks of convolutions; no other
    hidden: tuple[int, ...] = (16, 32, 64)  # widths of the blocks
    learning_rate: float = 2e-3  # of Adam
    sigma: float = 0.1  # deviation of the targets from their means
    weight: float = 1.0  # of the turns, 0 without
    turns_first: int = 0  # steps of turns alone
    grid: int = 2  # features are means over so many parts of a picture each way


@flax.struct.dataclass
class State:
    step: Array  # [] int32
    params: Params  # {"encoder", "head", "turns"}
    opt_state: optax.OptState


class Nets(NamedTuple):
    encoder: Network  # images -> codes [b, embed_dim]
    head: Network  # codes -> y [b, k]
    turns: Network  # codes -> logits [b, 4]


def build_nets(config: Config, shape: tuple[int, ...]) -> Nets:
    """Blocks of convolutions for square images, whose last one is seen in parts by a linear layer,
    and a linear head for each task.

    Raises:
        ValueError: rows that are no square images, or another network.
    """
    rotation.check_square(shape)
    if config.network != "conv":
        raise ValueError(f"expected network 'conv', found {config.network!r}")
    blocks, code = networks.conv_blocks(config.hidden), networks.mlp((config.embed_dim,))

    def seen(params, x):
        return networks.pooled(blocks.apply(params, x)[-1], config.grid)

    def init(key, x):
        blocks_key, code_key = jax.random.split(key)
        params = blocks.init(blocks_key, x)
        return {"blocks": params, "code": code.init(code_key, seen(params, x))}

    def encode(params, x):
        return code.apply(params["code"], seen(params["blocks"], x))

    heads = (networks.mlp((width,)) for width in (config.n_clusters, rotation.TURNS))
    return Nets(Network(init, encode), *heads)


def targets(key: Key, n: int, config: Config) -> Array:
    """Points of the mixture, the first m of which are of each component as many, or one more,
    whatever m is. -> [n, k]."""
    noise_key, first_key = jax.random.split(key)
    k = config.n_clusters
    # Those that have one more are others in every batch.
    component = (jnp.arange(n) + jax.random.randint(first_key, (), 0, k)) % k
    return jax.nn.one_hot(component, k) + config.sigma * jax.random.normal(noise_key, (n, k))


def matched(y: Array, t: Array, mask: Array) -> Array:
    """The targets in the order in which they are nearest to y [b, k], as a whole. -> [b, k].

    The m rows that count share the first m targets, the others have what is left.
    """
    counts = mask > 0
    cost = losses.squared_distances(y, t)
    beyond = jnp.arange(len(t)) >= jnp.sum(counts)
    cost = jnp.where(beyond[None, :], 1.0 + len(t) * jnp.max(cost), cost)
    cost = jnp.where(counts[:, None], cost, 0.0)
    rows, columns = optax.assignment.hungarian_algorithm(jax.lax.stop_gradient(cost))
    return jnp.zeros_like(t).at[rows].set(t[columns])


def loss(
    params: Params, state: State, batch: Batch, key: Key, *, nets: Nets, config: Config
) -> tuple[Array, Metrics]:
    """Squared distance to the targets and cross-entropy of the turns, nats. -> [], metrics.

    The metric `rotation_accuracy` is the share of turned images whose turn is found, 0 to 1.
    """
    z = nets.encoder.apply(params["encoder"], rotation.turns(batch.x))
    log_p = jax.nn.log_softmax(nets.turns.apply(params["turns"], z))
    cost, found = rotation.told(log_p, batch.mask)
    y = nets.head.apply(params["head"], z[: len(batch.x)])  # of those that are not turned
    t = matched(y, targets(key, len(y), config), batch.mask)
    distance = losses.masked_mean(jnp.sum((y - t) ** 2, axis=1), batch.mask)
    begun = jnp.where(state.step < config.turns_first, 0.0, distance)
    return begun + config.weight * cost, {"distance": distance, "rotation_accuracy": found}


def accuracy(state: State, x: Array, nets: Nets) -> Array:
    """Share of the four turns of each image that are found. [n, h, h, c] -> [n], 0 to 1."""
    own = {"encoder": state.params["encoder"], "head": state.params["turns"]}
    return rotation.accuracy(state.replace(params=own), x, nets._replace(head=nets.turns))


def build(
    config: Config,
    shape: tuple[int, ...],
    *,
    loss: Callable[..., tuple[Array, Metrics]] = loss,
    optimizer: optax.GradientTransformation | None = None,
    augment: Callable[[Key, Array], Array] | None = None,
) -> Algorithm:
    """The algorithm for square images of the given shape.

    `optimizer` replaces the Adam of the config. `augment` (key, one row) -> row changes every image
    before it is turned and given a target.

    Raises:
        ValueError: see `build_nets`.
    """
    nets = build_nets(config, shape)
    tx = optimizer or optax.adam(config.learning_rate)

    def init(key: Key, batch: Batch) -> State:
        encoder_key, head_key, turns_key = jax.random.split(key, 3)
        encoder = nets.encoder.init(encoder_key, batch.x)
        z = nets.encoder.apply(encoder, batch.x)
        params = {
            "encoder": encoder,
            "head": nets.head.init(head_key, z),
            "turns": nets.turns.init(turns_key, z),
        }
        return State(jnp.int32(0), params, tx.init(params))

    def step(key: Key, state: State, batch: Batch) -> tuple[State, Metrics]:
        augment_key, loss_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch = augmentation.batch(augment_key, batch, augment)
        (value, metrics), grads = losses.value_and_grad(loss)(
            state.params, state, batch, loss_key, nets=nets, config=config
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(state.step + 1, params, opt_state), {"loss": value, **metrics}

    def refresh(key: Key, state: State, x: Array) -> State:
        del key, x  # the head is the clustering
        return state

    def embed(state: State, x: Array) -> Array:
        return networks.apply_in_blocks(nets.encoder.apply, state.params["encoder"], x, block=1024)

    def assign(state: State, z: Array) -> Array:
        return jnp.argmax(nets.head.apply(state.params["head"], z), axis=1).astype(jnp.int32)

    return Algorithm(init, step, refresh, embed, assign)
