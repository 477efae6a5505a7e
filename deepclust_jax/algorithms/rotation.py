"""Rotation prediction: a network that tells by how many quarter turns an image was turned, then
k-means on what it has learnt to see (Gidaris et al. 2018, "Unsupervised Representation Learning by
Predicting Image Rotations").

    minimise  mean_i 1/4 sum_{r = 0..3} -log p_r(x_i turned r times)        (eq. 2 and 3)

All four turns of an image are in one batch, exact quarter turns, so that no border and no
interpolation tells them apart. The network is one of convolutional blocks; the head is a linear
layer on the means of the last one.

The last block knows about turns, those before it about shapes (their section 4.2), so features of
every block go to k-means: means over a grid of parts of the picture, whitened along their principal
axes and of unit length. `refresh` does that; call it once, after training. The block that labels is
`config.block`, or where that is None the one whose clusters are found again most surely in other
rows (`stability.of_halves`), or the first where half of the rows are fewer than k; no label
decides. Clusters of the last block are tightest, and worst where they are of turns.

The task cannot work where turned images look alike (digits 0, 1 and 8) or where classes differ by
a turn (6 and 9). Deviations: group instead of batch normalisation, Adam, and far smaller networks.
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
from deepclust_jax.clustering import kmeans, stability, whitening
from deepclust_jax.types import Algorithm, Array, Batch, Key, Metrics, Network, Params

TURNS = 4
_COMPARED = 10_000  # rows by which blocks are compared


@dataclasses.dataclass(frozen=True)
class Config:
    n_clusters: int = 10  # k
    embed_dim: int = 32  # principal axes of a block's features
    network: str = "conv"  # no other has blocks
    hidden: tuple[int, ...] = (16, 32, 64)  # widths of the blocks
    precision: str = "float32"  # of products
    learning_rate: float = 2e-3  # of Adam
    block: int | None = None  # whose features are clustered, from 1; None: chosen by `refresh`
    grid: int = 2  # features are means over so many parts of a picture each way
    n_init: int = 10  # restarts of the k-means


@flax.struct.dataclass
class State:
    step: Array  # [] int32
    params: Params  # {"encoder", "head"}
    opt_state: optax.OptState
    views: tuple[whitening.View, ...]  # of the features of each block
    centroids: Array  # [blocks, k, embed_dim]
    block: Array  # [] int32, the one that labels, from 0


class Nets(NamedTuple):
    encoder: Network  # images -> means of the last block [b, width]
    blocks: Network  # the same parameters: images -> features of every block, a tuple of [b, m]
    head: Network  # means of the last block -> logits [b, 4]


def check_square(shape: tuple[int, ...]) -> None:
    """Raise ValueError for rows that are no square images."""
    if len(shape) != 3 or shape[0] != shape[1]:
        raise ValueError(f"expected square images [h, h, c], found rows of shape {tuple(shape)}")


def build_nets(config: Config, shape: tuple[int, ...]) -> Nets:
    """Blocks of convolutions for square images, and the head.

    Raises:
        ValueError: rows that are no square images, or a network without blocks.
    """
    check_square(shape)
    if config.network != "conv":
        raise ValueError(f"expected network 'conv', which has blocks, found {config.network!r}")
    blocks = networks.conv_blocks(config.hidden)

    def encode(params, x):
        return networks.pooled(blocks.apply(params, x)[-1])

    def of_blocks(params, x):
        return tuple(networks.pooled(found, config.grid) for found in blocks.apply(params, x))

    return Nets(
        Network(blocks.init, encode), Network(blocks.init, of_blocks), networks.mlp((TURNS,))
    )


def most_axes(nets: Nets, shape: tuple[int, ...]) -> int:
    """Features of the block that has the fewest: as many principal axes can all blocks have."""
    return min(block.shape[1] for block in networks.outputs(nets.blocks, shape))


def turns(x: Array) -> Array:
    """The images, then all of them turned once, twice, three times. [b, h, h, c] -> [4 b, ...]."""
    return jnp.concatenate([jnp.rot90(x, turn, axes=(1, 2)) for turn in range(TURNS)])


def log_probabilities(params: Params, x: Array, nets: Nets) -> Array:
    """log p of every turn for images as they are. [b, h, h, c] -> [b, 4]."""
    z = nets.encoder.apply(params["encoder"], x)
    return jax.nn.log_softmax(nets.head.apply(params["head"], z))


def told(log_p: Array, mask: Array) -> tuple[Array, Array]:
    """Cross-entropy of the turns, nats, and the share of turns that are found, 0 to 1; means over
    rows and turns. log_p [4 b, 4] in the order of `turns`, mask [b] -> [], []."""
    true, mask = jnp.repeat(jnp.arange(TURNS), len(mask)), jnp.tile(mask, TURNS)
    cost = -jnp.take_along_axis(log_p, true[:, None], axis=1)[:, 0]
    found = (jnp.argmax(log_p, axis=1) == true).astype(log_p.dtype)
    return losses.masked_mean(cost, mask), losses.masked_mean(found, mask)


def loss(
    params: Params, state: State, batch: Batch, key: Key, *, nets: Nets, config: Config
) -> tuple[Array, Metrics]:
    """Cross-entropy of the turns, nats, mean over rows and turns. -> [], metrics.

    The metric `rotation_accuracy` is the share of turned images whose turn is found, 0 to 1.
    """
    del state, key, config
    cost, found = told(log_probabilities(params, turns(batch.x), nets), batch.mask)
    return cost, {"rotation_accuracy": found}


def accuracy(state: State, x: Array, nets: Nets) -> Array:
    """Share of the four turns of each image that are found. [n, h, h, c] -> [n], 0 to 1."""

    def of_some(params, x):
        found = jnp.argmax(log_probabilities(params, turns(x), nets), axis=1)
        return jnp.mean(found.reshape(TURNS, len(x)) == jnp.arange(TURNS)[:, None], axis=0)

    return networks.apply_in_blocks(of_some, state.params, x, block=1024)


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
    before it is turned.

    Raises:
        ValueError: rows that are no square images, or more axes or another block than there are.
    """
    nets = build_nets(config, shape)
    tx = optimizer or optax.adam(config.learning_rate)
    n_blocks = len(config.hidden)
    if config.block is not None and not 1 <= config.block <= n_blocks:
        raise ValueError(f"expected a block of 1 to {n_blocks}, found {config.block}")
    fewest = most_axes(nets, shape)
    if config.embed_dim > fewest:
        raise ValueError(
            f"expected embed_dim <= {fewest}, the features of a block, found {config.embed_dim}"
        )

    def init(key: Key, batch: Batch) -> State:
        encoder_key, head_key, centroid_key = jax.random.split(key, 3)
        encoder = nets.encoder.init(encoder_key, batch.x)
        head = nets.head.init(head_key, nets.encoder.apply(encoder, batch.x))
        params = {"encoder": encoder, "head": head}
        features = jax.eval_shape(nets.blocks.apply, encoder, batch.x)
        views = tuple(whitening.unfitted(f.shape[1], config.embed_dim) for f in features)
        shape = n_blocks, config.n_clusters, config.embed_dim
        centroids = kmeans.unit(jax.random.normal(centroid_key, shape).reshape(-1, shape[-1]))
        block = jnp.int32((config.block or 1) - 1)
        return State(jnp.int32(0), params, tx.init(params), views, centroids.reshape(shape), block)

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
        features = networks.apply_in_blocks(
            lambda params, x: jnp.concatenate(nets.blocks.apply(params, x), axis=1),
            state.params["encoder"], x, block=1024,
        )  # fmt: skip
        ends, views, centroids, stable = [], [], [], []
        for view in state.views[:-1]:
            ends.append(sum(ends[-1:]) + len(view.mean))
        for i, own in enumerate(jnp.split(features, ends, axis=1)):
            view = whitening.fit(own, config.embed_dim)
            z, k = whitening.apply(view, own), config.n_clusters
            found = kmeans.fit(jax.random.fold_in(key, i), z, k, n_init=config.n_init)
            views.append(view)
            centroids.append(found.centroids)
            some = z[:: -(-len(x) // _COMPARED)]
            if config.block is None and k <= len(some) // 2:
                # The same halves for all blocks.
                half_key = jax.random.fold_in(key, n_blocks)
                stable.append(stability.of_halves(half_key, some, k, n_init=config.n_init))
        chosen = jnp.argmax(jnp.stack(stable)) if stable else (config.block or 1) - 1
        return state.replace(
            views=tuple(views), centroids=jnp.stack(centroids), block=jnp.int32(chosen)
        )

    def embed(state: State, x: Array) -> Array:
        def of_some(state, x):
            found = nets.blocks.apply(state.params["encoder"], x)
            seen = [whitening.apply(v, f) for v, f in zip(state.views, found, strict=True)]
            return jnp.stack(seen)[state.block]

        return networks.apply_in_blocks(of_some, state, x, block=1024)

    def assign(state: State, z: Array) -> Array:
        return kmeans.assign(z, state.centroids[state.block])[0]

    return Algorithm(init, step, refresh, embed, assign)
