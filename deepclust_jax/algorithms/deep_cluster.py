"""DeepCluster: the clusters of an epoch are the classes of the next (Caron et al. 2018, "Deep
Clustering for Unsupervised Learning of Visual Features"), with centroids as the classifier (their
second version, in Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting
Cluster Assignments").

    c_i = nearest centroid to z_i,   z_i = features of row i as the epoch before left the network,
                                           whitened and of unit length       (their section 3.3)

    minimise  sum_i w_i -log softmax(z'_i . C / temperature)_{c_i},   w_i = 1 / size of c_i

z' is of the row as it is augmented, by the network as it is now. The weights are those of drawing
rows evenly over clusters, without which one cluster takes all rows (their section 3.3). `refresh`
makes the clusters, many more than classes, and the k that label; call it in every epoch and once
after training. Clusters have other numbers in each epoch; as centroids are the classifier none has
to be learnt anew, and the metric `agreement` is the mutual information with those of the epoch
before, normalised: it rises towards 1 while features settle. `used` is exp(entropy of the sizes)
over their number: near 0 they collapsed.

Deviations: group instead of batch normalisation, Adam, no Sobel filter, and a far smaller network.
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
from deepclust_jax.clustering import kmeans, whitening
from deepclust_jax.metrics.jittable import nmi_jax
from deepclust_jax.types import Algorithm, Array, Batch, Key, Metrics, Network, Params

_BLOCK = 1024  # images whose features are computed together


@dataclasses.dataclass(frozen=True)
class Config:
    n_clusters: int = 10  # k
    embed_dim: int = 32  # principal axes of the features
    network: str = "conv"  # blocks of convolutions; no other
    hidden: tuple[int, ...] = (16, 32, 64)  # widths of the blocks
    learning_rate: float = 1e-3  # of Adam
    n_classes: int = 100  # clusters that are told apart, at most as many as rows; ten times k
    temperature: float = 0.1
    grid: int = 2  # features are means over so many parts of a picture each way
    n_init: int = 10  # restarts of the k-means that labels


@flax.struct.dataclass
class State:
    step: Array  # [] int32
    params: Params  # {"encoder"}
    opt_state: optax.OptState
    before: Params  # {"encoder"}, as of the last `refresh`, by which rows have their classes
    view: whitening.View  # of its features
    classes: Array  # [n_classes, embed_dim], centroids of unit length
    sizes: Array  # [n_classes], rows of each
    agreement: Array  # [], of the classes with those of the refresh before, 0 to 1
    centroids: Array  # [k, embed_dim]


class Nets(NamedTuple):
    encoder: Network  # images -> features [b, m]


def build_nets(config: Config, shape: tuple[int, ...]) -> Nets:
    """Blocks of convolutions for images, whose last one is seen in parts.

    Raises:
        ValueError: rows that are no images, or another network.
    """
    if len(shape) != 3:
        raise ValueError(f"expected images [h, w, c], found rows of shape {tuple(shape)}")
    if config.network != "conv":
        raise ValueError(f"expected network 'conv', found {config.network!r}")
    blocks = networks.conv_blocks(config.hidden)
    return Nets(
        Network(
            blocks.init,
            lambda params, x: networks.pooled(blocks.apply(params, x)[-1], config.grid),
        )
    )


def most_axes(nets: Nets, shape: tuple[int, ...]) -> int:
    """Features of an image: as many principal axes can there be."""
    return networks.outputs(nets.encoder, shape).shape[1]


def classes_of(state: State, x: Array, nets: Nets) -> Array:
    """The class of each row, as the last `refresh` left them. [b, ...] -> [b] int32."""
    z = whitening.apply(state.view, nets.encoder.apply(state.before["encoder"], x))
    return kmeans.assign(z, state.classes)[0]


def used(sizes: Array) -> Array:
    """exp(entropy of the sizes of classes) over their number, above 0 to 1. [..., m] -> [...]."""
    share = sizes / jnp.maximum(jnp.sum(sizes, axis=-1, keepdims=True), 1.0)
    return jnp.exp(losses.entropy(share)) / sizes.shape[-1]


def loss(
    params: Params, state: State, batch: Batch, key: Key, *, nets: Nets, config: Config
) -> tuple[Array, Metrics]:
    """Cross-entropy of the classes, nats, mean over rows by their weights. -> [], metrics."""
    del key
    own = jax.lax.stop_gradient(classes_of(state, augmentation.clean(batch), nets))
    z = whitening.apply(state.view, nets.encoder.apply(params["encoder"], batch.x))
    logits = jnp.dot(z, state.classes.T) / config.temperature
    cost = optax.softmax_cross_entropy_with_integer_labels(logits, own)
    weights = jnp.where(batch.mask > 0, batch.mask / jnp.maximum(state.sizes[own], 1.0), 0.0)
    value = losses.masked_mean(cost * weights, batch.mask)
    value = value / jnp.maximum(losses.masked_mean(weights, batch.mask), 1e-30)
    told = (jnp.argmax(logits, axis=1) == own).astype(cost.dtype)
    return value, {
        "told": losses.masked_mean(told, batch.mask),
        "agreement": state.agreement,
        "used": used(state.sizes),
    }


def build(
    config: Config,
    shape: tuple[int, ...],
    *,
    loss: Callable[..., tuple[Array, Metrics]] = loss,
    optimizer: optax.GradientTransformation | None = None,
    augment: Callable[[Key, Array], Array] | None = None,
) -> Algorithm:
    """The algorithm for images of the given shape.

    `optimizer` replaces the Adam of the config. `augment` (key, one row) -> row changes every image
    before a step; its class is that of the image as it was.

    Raises:
        ValueError: rows that are no images, or more axes than features.
    """
    nets = build_nets(config, shape)
    tx = optimizer or optax.adam(config.learning_rate)
    m, k, d = most_axes(nets, shape), config.n_clusters, config.embed_dim
    if d > m:
        raise ValueError(f"expected embed_dim <= {m}, the features of the network, found {d}")

    def init(key: Key, batch: Batch) -> State:
        encoder_key, class_key, centroid_key = jax.random.split(key, 3)
        params = {"encoder": nets.encoder.init(encoder_key, batch.x)}
        classes = kmeans.unit(jax.random.normal(class_key, (config.n_classes, d)))
        centroids = kmeans.unit(jax.random.normal(centroid_key, (k, d)))
        return State(
            jnp.int32(0), params, tx.init(params), params, whitening.unfitted(m, d), classes,
            jnp.ones(config.n_classes), jnp.zeros(()), centroids,
        )  # fmt: skip

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

    def features_of(state: State, x: Array) -> Array:
        return networks.apply_in_blocks(
            nets.encoder.apply, state.params["encoder"], x, block=_BLOCK
        )

    def refresh(key: Key, state: State, x: Array) -> State:
        class_key, cluster_key = jax.random.split(key)
        features = features_of(state, x)
        view = whitening.fit(features, d)
        z = whitening.apply(view, features)
        found = kmeans.fit(class_key, z, config.n_classes, n_init=1, metric="cosine")
        of_before = networks.apply_in_blocks(
            lambda state, x: classes_of(state, x, nets), state, x, block=_BLOCK
        )
        agreement = nmi_jax(
            of_before, found.labels, n_classes=config.n_classes, n_clusters=config.n_classes
        )
        return state.replace(
            before=state.params,
            view=view,
            classes=found.centroids,
            sizes=jnp.bincount(found.labels, length=config.n_classes).astype(z.dtype),
            agreement=jnp.where(state.step > 0, agreement, 0.0),
            centroids=kmeans.fit(cluster_key, z, k, n_init=config.n_init).centroids,
        )

    def embed(state: State, x: Array) -> Array:
        return whitening.apply(state.view, features_of(state, x))

    def assign(state: State, z: Array) -> Array:
        return kmeans.assign(z, state.centroids)[0]

    return Algorithm(init, step, refresh, embed, assign)
