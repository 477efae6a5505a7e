"""Classification heads that tell as much as they can about pairs of neighbours: the losses of
IMSAT, IIC and SCAN.

    information   minimise  -I(c; c')           c, c' the clusters of both views      (IIC, eq. 3)
    agreement     minimise  mean_i -log p_i . p'_i  -  weight * H(mean_i p_i)         (SCAN, eq. 2)
    invariance    minimise  mean_i KL(p_i || p'_i)
                            -  weight * (H(mean_i p_i) - mean_i H(p_i))               (IMSAT, eq. 7)

    p_i = softmax h(f(view of row i)),  p'_i = softmax h(f(view of a neighbour of row i));
    in H(mean_i p_i) the mean is over both views

IMSAT: Hu et al. 2017, "Learning Discrete Representations via Information Maximizing Self-Augmented
Training"; IIC: Ji et al. 2019, "Invariant Information Clustering"; SCAN: Van Gansbeke et al. 2020,
"Learning to Classify Images without Labels". H is the entropy and I the mutual information.

Several heads h learn on one encoder f, each with a loss of its own. Started from contrastive
features (`warm_start`) each head is one of the clusterings of their neighbour graph; started at
random, heads merge clusters. `refresh` computes the loss of each head over all rows and their
nearest neighbours in the features, and keeps the head with the lowest (as IIC and SCAN do). Call it
once, after training.

The entropy of the mean over a batch, times a weight, draws clusters to one size; information, which
has no weight, does so least. Deviations: the second view is of a neighbour and not only of the row
(IMSAT, IIC); IMSAT's adversarial changes are left out; IIC's heads with more clusters than k too.
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
from deepclust_jax.algorithms import contrastive
from deepclust_jax.clustering import neighbors
from deepclust_jax.types import Algorithm, Array, Batch, Key, Metrics, Network, Params

OBJECTIVES = ("information", "agreement", "invariance")


@dataclasses.dataclass(frozen=True)
class Config:
    n_clusters: int = 10  # k
    embed_dim: int = 64  # width of the features
    network: str = "mlp"  # or "conv" or "resnet", for images
    hidden: tuple[int, ...] = (512, 512)  # encoder widths
    precision: str = "float32"  # of products; "bfloat16" keeps sums and weights in float32
    learning_rate: float = 1e-3  # of Adam
    noise: float = 0.0  # on both views, as a share of the distance of a pair (`augment.pair`)
    of_views: bool = False  # statistics, as in algorithms/contrastive.py
    objective: str = "information"  # one of OBJECTIVES
    weight: float = 5.0  # of the entropy (agreement, SCAN) or the information (invariance)
    n_heads: int = 5  # of which the best by its own loss is kept; the layouts of a warm start
    n_neighbors: int = 5  # of each row's features, by which heads are compared


@flax.struct.dataclass
class State:
    step: Array  # [] int32
    params: Params  # {"encoder", "heads"}
    opt_state: optax.OptState
    statistics: Params  # of the batch normalisation, as of the last `refresh`
    centre: Array  # [embed_dim], of the features that heads are given
    scale: Array  # [embed_dim]
    head: Array  # [] int32, the one that labels


class Nets(NamedTuple):
    encoder: networks.Normalised
    heads: Network  # features, centred and scaled -> logits [b, n_heads * k]


def build_nets(config: Config, shape: tuple[int, ...]) -> Nets:
    """Encoder for rows of the given shape, and all heads as one linear layer."""
    encoder = networks.normalised_encoder(
        config.network, shape, config.hidden, config.embed_dim, precision=config.precision
    )
    return Nets(encoder, networks.mlp((config.n_heads * config.n_clusters,)))


def shares(params: Params, state: State, z: Array, nets: Nets, config: Config) -> Array:
    """Probability of each cluster, by each head, for features [b, d]. -> [n_heads, b, k]."""
    labeller = distil.Labeller(params["heads"], state.centre, state.scale)
    logits = distil.logits(labeller, nets.heads, z)
    logits = logits.reshape(len(z), config.n_heads, config.n_clusters)
    return jnp.moveaxis(jax.nn.softmax(logits, axis=-1), 1, 0)


def objective(one: Array, other: Array, mask: Array, config: Config) -> Array:
    """The loss of one head on pairs of shares [b, k], of which those of the mask count. -> []."""
    if config.objective == "information":
        return -losses.mutual_information(one, other, mask)
    counted = jnp.maximum(jnp.sum(mask), 1.0)
    mean = jnp.sum((one + other) * mask[:, None], axis=0) / (2.0 * counted)
    if config.objective == "agreement":
        agreement = losses.masked_mean(losses.agreement(one, other), mask)
        return agreement - config.weight * losses.entropy(mean)
    log_other = jnp.log(jnp.maximum(other, 1e-12))
    change = losses.masked_mean(losses.divergence(jax.lax.stop_gradient(one), log_other), mask)
    unsure = losses.masked_mean(losses.entropy(one), mask)
    return change - config.weight * (losses.entropy(mean) - unsure)


def loss(
    params: Params, state: State, batch: Batch, key: Key, *, nets: Nets, config: Config
) -> tuple[Array, Metrics]:
    """Mean over the heads of their objective on the rows and their partners. -> [], metrics.

    The metric `sureness` is the mean largest probability, 1/k to 1.
    """
    del key
    z, mask = contrastive.of_pairs(nets.encoder, params["encoder"], batch), batch.mask
    one, other = jnp.split(shares(params, state, z, nets, config), 2, axis=1)
    values = jax.vmap(lambda one, other: objective(one, other, mask, config))(one, other)
    sureness = losses.masked_mean(jnp.mean(jnp.max(one, axis=-1), axis=0), mask)
    return jnp.mean(values), {"sureness": sureness}


def warm_start(state: State, pretrained: contrastive.State) -> State:
    """`state` with the encoder of a contrastive one, and its clusterings as heads."""
    labeller = pretrained.labeller
    shapes = [jax.tree.map(jnp.shape, p) for p in (state.params["heads"], labeller.params)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"expected heads {shapes[0]}, found layouts {shapes[1]}; n_heads is theirs"
        )
    return state.replace(
        params={"encoder": pretrained.params["encoder"], "heads": labeller.params},
        statistics=pretrained.statistics,
        centre=labeller.centre,
        scale=labeller.scale,
        head=pretrained.best,
    )


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
    if config.objective not in OBJECTIVES:
        raise ValueError(f"expected objective {', '.join(OBJECTIVES)}, found {config.objective!r}")
    nets = build_nets(config, shape)
    tx = optimizer or optax.adam(config.learning_rate)
    of_views = augment if config.of_views else None

    def init(key: Key, batch: Batch) -> State:
        encoder_key, heads_key = jax.random.split(key)
        encoder = nets.encoder.init(encoder_key, batch.x)
        heads, centre, scale = distil.unfitted(heads_key, nets.heads, config.embed_dim)
        params = {"encoder": encoder, "heads": heads}
        statistics, none = nets.encoder.measure(encoder, batch.x), jnp.int32(0)
        return State(none, params, tx.init(params), statistics, centre, scale, none)

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
        statistics = contrastive.measured(nets.encoder, state.params["encoder"], x, key, of_views)
        state = state.replace(statistics=statistics)
        z = embed(state, x)
        near = neighbors.nearest(z, min(config.n_neighbors, len(x) - 1)).index
        p, ones = shares(state.params, state, z, nets, config), jnp.ones(len(x))

        def of_head(p):
            values = jax.lax.map(lambda index: objective(p, p[index], ones, config), near.T)
            return jnp.mean(values)

        return state.replace(head=jnp.argmin(jax.lax.map(of_head, p)).astype(jnp.int32))

    def embed(state: State, x: Array) -> Array:
        return contrastive.features(nets.encoder, state.params["encoder"], state.statistics, x)

    def assign(state: State, z: Array) -> Array:
        own = shares(state.params, state, z, nets, config)[state.head]
        return jnp.argmax(own, axis=-1).astype(jnp.int32)

    return Algorithm(init, step, refresh, embed, assign)
