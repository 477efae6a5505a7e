"""N2D: an autoencoder, a neighbour-graph embedding of its code, and a mixture on that (McConville
et al. 2020, "N2D: (Not Too) Deep Clustering via Clustering the Local Manifold of an Autoencoded
Embedding").

The network learns what the autoencoder learns and nothing else; `refresh` is the clustering: exact
neighbours of the codes, graph_embedding.py on them, a Gaussian mixture with full covariances on the
points. Call it once, after training.

Layouts differ from key to key, and some join two clusters: `refresh` makes several and keeps the
one whose clusters say most of those of the neighbours. A layout says nothing of new rows. So a
small classifier learns the mixture's posterior from the codes, and labels old and new rows alike:
`assign` is a function of the code. Where the number of clusters is not known, `merge` starts with
too many and joins those with no valley between.

Deviations: the paper trains its autoencoder for 1,000 epochs with Adam, here it is the common one
(`warm_start`); neighbours are exact and the layout is by graph_embedding.py, in place of the
library of UMAP's authors; the paper keeps one layout and has no labels for new rows.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import optax

from deepclust_jax import augment as augmentation
from deepclust_jax import distil, losses, networks
from deepclust_jax.algorithms import autoencoder
from deepclust_jax.clustering import graph_embedding
from deepclust_jax.types import Algorithm, Array, Batch, Key, Metrics, Network, Params


@dataclasses.dataclass(frozen=True)
class Config:
    n_clusters: int = 10  # k, or with `merge` the most there can be
    merge: bool = False  # of the clusters those with no valley between (clustering/merging.py)
    embed_dim: int = 10  # width of the code, and of the layout
    network: str = "mlp"  # or "conv", for images
    hidden: tuple[int, ...] = (500, 500, 2000)  # encoder widths; the decoder mirrors them
    precision: str = "float32"  # of products; "bfloat16" keeps sums and weights in float32
    learning_rate: float = 0.2  # of SGD, as in algorithms/autoencoder.py
    n_neighbors: int = 20  # of each code
    n_layouts: int = 5  # of which the best is kept
    layout_epochs: int = 300
    classifier: tuple[int, ...] = (256, 256)  # its hidden widths
    classifier_steps: int = 3000  # of 512 codes each


@flax.struct.dataclass
class State:
    step: Array  # [] int32
    params: Params  # {"encoder", "decoder"}
    opt_state: optax.OptState
    labeller: distil.Labeller


class Nets(NamedTuple):
    encoder: Network
    decoder: Network
    classifier: Network  # code, centred and scaled -> logits [b, k]


def build_nets(config: Config, shape: tuple[int, ...]) -> Nets:
    """Encoder and decoder for rows of the given shape, and the classifier of codes."""
    pair = networks.autoencoder(
        config.network, shape, config.hidden, config.embed_dim, precision=config.precision
    )
    return Nets(*pair, networks.mlp((*config.classifier, config.n_clusters)))


def loss(
    params: Params, state: State, batch: Batch, key: Key, *, nets: Nets, config: Config
) -> tuple[Array, Metrics]:
    """That of the autoencoder: the share of the variance left unexplained. -> [], metrics."""
    return autoencoder.loss(params, state, batch, key, nets=nets, config=config)


def warm_start(state: State, pretrained: autoencoder.State) -> State:
    """`state` with the networks of a trained autoencoder."""
    return state.replace(params=autoencoder.starting_point(pretrained)[0])


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
    nets = build_nets(config, shape)
    own = autoencoder.Config(learning_rate=config.learning_rate)
    tx = optimizer or autoencoder.sgd(config.learning_rate, own)

    def init(key: Key, batch: Batch) -> State:
        params = autoencoder.init_params(key, batch.x, nets)
        labeller_key = jax.random.fold_in(key, 1)
        labeller = distil.unfitted(labeller_key, nets.classifier, config.embed_dim)
        return State(jnp.int32(0), params, tx.init(params), labeller)

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
        layout_key, labeller_key = jax.random.split(key)
        z = embed(state, x)
        posterior = graph_embedding.cluster(
            layout_key, z, config.n_clusters, dim=config.embed_dim,
            n_neighbors=config.n_neighbors, n_layouts=config.n_layouts,
            epochs=config.layout_epochs, merge=config.merge,
        ).posterior  # fmt: skip
        steps = config.classifier_steps
        return state.replace(
            labeller=distil.fit(labeller_key, nets.classifier, z, posterior, steps)
        )

    def embed(state: State, x: Array) -> Array:
        return networks.apply_in_blocks(nets.encoder.apply, state.params["encoder"], x)

    def assign(state: State, z: Array) -> Array:
        return distil.assign(state.labeller, nets.classifier, z)

    return Algorithm(init, step, refresh, embed, assign)
