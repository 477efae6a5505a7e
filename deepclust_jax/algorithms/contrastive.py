"""Contrastive features on pairs of neighbours, and the clusters of their neighbour graph.

    minimise  mean_i -log  exp(z_i . z'_i / t) / sum_{j != i} exp(z_i . z_j / t)      (NT-Xent)

    z_i = f(view of row i),  z'_i = f(view of a neighbour of row i), both of unit length;
    j runs over both views of all rows of the batch.

The loss is that of SimCLR (Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual
Representations", eq. 1). A pair there is one image changed twice; here the second view is of one of
the nearest rows, drawn anew in every epoch (`batch.partner`, from `train.fit(neighbors=)`), as in
NNCLR (Dwibedi et al. 2021), though the neighbours are those of the rows as they come. `augment`
changes both. A batch without partners pairs each row with itself.

`refresh` is the clustering: neighbours of the features, layouts of their graph, a mixture on the
points of each (graph_embedding.py), and a linear classifier for each of these clusterings that
labels rows by their features; `best` is the one that says most of the neighbours. Where the number
of clusters is not known, `merge` starts with too many and joins those with no valley between, in
place of the mixture; `best` is then the one that agrees best with the others. Call it once, after
training. It also fixes the statistics of the batch normalisation, which in training are those
of the batch: `embed` gives every row a code of its own. With `of_views` they are of rows that
`augment` changed, as in training: a photograph is unlike the parts of photographs that were learnt.

Deviations from both papers: a perceptron by default, without their projection head, and where there
is one ("resnet") not what is before it is clustered but the features of the loss. Statistics are of
at most 8,192 rows, evenly spaced, and of large images of fewer.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import optax

from deepclust_jax import augment as augmentation
from deepclust_jax import distil, losses, networks
from deepclust_jax.clustering import graph_embedding
from deepclust_jax.types import Algorithm, Array, Batch, Key, Metrics, Network, Params

_MEASURED = 8192  # rows of which the statistics are taken, or
_NUMBERS = 2**23  # as many as hold so many numbers, but 256 at least


@dataclasses.dataclass(frozen=True)
class Config:
    n_clusters: int = 10  # k, or with `merge` the most there can be
    merge: bool = False  # of the clusters those with no valley between (clustering/merging.py)
    embed_dim: int = 64  # width of the features
    network: str = "mlp"  # or "conv" or "resnet", for images
    hidden: tuple[int, ...] = (512, 512)  # encoder widths
    precision: str = "float32"  # of products; "bfloat16" keeps sums and weights in float32
    learning_rate: float = 1e-3  # of Adam
    noise: float = 0.0  # on both views, as a share of the distance of a pair (`augment.pair`)
    temperature: float = 0.5  # t
    of_views: bool = False  # statistics, of changed rows and not of the rows as they are
    layout_dim: int = 10
    n_neighbors: int = 20  # of each row's features, in the graph
    n_layouts: int = 5  # and so many clusterings, of which the best labels
    layout_epochs: int = 300
    classifier_steps: int = 2000  # of 512 rows each


@flax.struct.dataclass
class State:
    step: Array  # [] int32
    params: Params  # {"encoder"}
    opt_state: optax.OptState
    statistics: Params  # of the batch normalisation, as of the last `refresh`
    labeller: distil.Labeller  # of all clusterings
    best: Array  # [] int32, the clustering that labels


class Nets(NamedTuple):
    encoder: networks.Normalised
    classifier: Network  # features, centred and scaled -> logits [b, n_layouts * k]


def build_nets(config: Config, shape: tuple[int, ...]) -> Nets:
    """Encoder for rows of the given shape, and the classifier of features, one linear layer."""
    encoder = networks.normalised_encoder(
        config.network, shape, config.hidden, config.embed_dim, precision=config.precision
    )
    return Nets(encoder, networks.mlp((config.n_layouts * config.n_clusters,)))


def loss(
    params: Params, state: State, batch: Batch, key: Key, *, nets: Nets, config: Config
) -> tuple[Array, Metrics]:
    """NT-Xent of the rows and their partners, nats, mean over rows. -> [], metrics.

    Both views are normalised together. The metric `alignment` is the mean cosine of the pairs.
    """
    del state, key
    one, other = jnp.split(of_pairs(nets.encoder, params["encoder"], batch), 2)
    cost = losses.contrast(one, other, batch.mask, config.temperature)
    alignment = losses.masked_mean(jnp.sum(one * other, axis=-1), batch.mask)
    return losses.masked_mean(cost, batch.mask), {"alignment": alignment}


def of_pairs(encoder: networks.Normalised, params: Params, batch: Batch) -> Array:
    """Features of the rows of a batch, then of their partners, normalised together. -> [2 b, d]."""
    partner = batch.x if batch.partner is None else batch.partner
    mask = jnp.concatenate([batch.mask, batch.mask])
    return losses.unit_length(encoder.apply(params, jnp.concatenate([batch.x, partner]), mask))


def features(encoder: networks.Normalised, params: Params, statistics: Params, x: Array) -> Array:
    """Features of rows x [n, ...] by fixed statistics, of unit length. -> [n, d]."""
    fixed = partial(encoder.fixed, params)
    block = min(4096, max(256, _NUMBERS // 2 // x[0].size))
    return losses.unit_length(networks.apply_in_blocks(fixed, statistics, x, block=block))


def measured(
    encoder: networks.Normalised,
    params: Params,
    x: Array,
    key: Key | None = None,
    augment: Callable[[Key, Array], Array] | None = None,
) -> Params:
    """Statistics of the batch normalisation for rows x [n, ...], or for those that `augment` makes
    of them."""
    rows = min(_MEASURED, max(256, _NUMBERS // x[0].size))  # all their layers are held at once
    x = x[:: -(-len(x) // rows)]
    return encoder.measure(params, x if augment is None else augmentation.every(key, x, augment))


def build(
    config: Config,
    shape: tuple[int, ...],
    *,
    loss: Callable[..., tuple[Array, Metrics]] = loss,
    optimizer: optax.GradientTransformation | None = None,
    augment: Callable[[Key, Array], Array] | None = None,
) -> Algorithm:
    """The algorithm for rows of the given shape.

    `optimizer` replaces the Adam of the config. `augment` (key, one row) -> row changes both views
    of every row before a step.
    """
    nets = build_nets(config, shape)
    tx = optimizer or optax.adam(config.learning_rate)
    of_views = augment if config.of_views else None

    def init(key: Key, batch: Batch) -> State:
        encoder_key, labeller_key = jax.random.split(key)
        encoder = nets.encoder.init(encoder_key, batch.x)
        params = {"encoder": encoder}
        statistics = nets.encoder.measure(encoder, batch.x)
        labeller = distil.unfitted(labeller_key, nets.classifier, config.embed_dim)
        return State(jnp.int32(0), params, tx.init(params), statistics, labeller, jnp.int32(0))

    def step(key: Key, state: State, batch: Batch) -> tuple[State, Metrics]:
        augment_key, loss_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch = augmentation.pair(augment_key, batch, augment, config.noise)
        (value, metrics), grads = losses.value_and_grad(loss)(
            state.params, state, batch, loss_key, nets=nets, config=config
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
        return state, {"loss": value, **metrics}

    def refresh(key: Key, state: State, x: Array) -> State:
        layout_key, labeller_key = jax.random.split(key)
        views_key = jax.random.fold_in(key, 2)
        statistics = measured(nets.encoder, state.params["encoder"], x, views_key, of_views)
        state = state.replace(statistics=statistics)
        z = embed(state, x)
        found = graph_embedding.candidates(
            layout_key, z, config.n_clusters, dim=config.layout_dim,
            n_neighbors=config.n_neighbors, n_layouts=config.n_layouts,
            epochs=config.layout_epochs, merge=config.merge,
        )  # fmt: skip
        posterior, steps = jnp.moveaxis(found.posterior, 0, 1), config.classifier_steps
        labeller = distil.fit(labeller_key, nets.classifier, z, posterior, steps)
        best = graph_embedding.best(found, config.merge).astype(jnp.int32)
        return state.replace(labeller=labeller, best=best)

    def embed(state: State, x: Array) -> Array:
        return features(nets.encoder, state.params["encoder"], state.statistics, x)

    def assign(state: State, z: Array) -> Array:
        logits = distil.logits(state.labeller, nets.classifier, z)
        own = logits.reshape(len(z), config.n_layouts, config.n_clusters)[:, state.best]
        return jnp.argmax(own, axis=-1).astype(jnp.int32)

    return Algorithm(init, step, refresh, embed, assign)
