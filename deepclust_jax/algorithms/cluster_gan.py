"""ClusterGAN: a generator with a categorical code, and an encoder that finds the code of a row
(Mukherjee et al. 2019, "ClusterGAN: Latent Space Clustering in Generative Adversarial Networks").

    z = (n, c),   n of a normal distribution with a small deviation,   c one of k clusters
    discriminator        as in gan.py
    generator, encoder   minimise  the generator's loss of gan.py
                                   + weight  mean |n - n'|^2         (n', c') = R(E(G(z)))
                                   + weight  mean -log c'_c                            (eq. 3)

A row is labelled by its code: the most likely cluster of R(E(x)), R a linear layer; or, by
`labelled_by` "kmeans", by k-means on E(x), as in the paper. Clusters have the shares of `prior`.

Deviations: the weights of both terms are one; the paper has a Wasserstein loss ("wasserstein" here)
and convolutions for images.

The other things are those of gan.py: all players move at once, the generator and the encoder in
every `ratio`-th step, and what makes rows after training is the mean of past weights. Call
`refresh` once, after training.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import optax

from deepclust_jax import game, losses, networks
from deepclust_jax.types import Algorithm, Array, Batch, Key, Metrics, Network, Params


@dataclasses.dataclass(frozen=True)
class Config:
    n_clusters: int = 10  # k
    embed_dim: int = 32  # width of E
    network: str = "mlp"  # or "conv", for images
    hidden: tuple[int, ...] = (256, 256)  # widths of E and discriminator, reversed the generator
    latent_dim: int = 30  # of n
    deviation: float = 0.1  # of n
    prior: tuple[float, ...] = ()  # sizes of the clusters; (): all the same
    labelled_by: str = "code"  # or "kmeans"
    is_bounded: bool = False  # whether rows are in 0..1, as made ones then are
    objective: str = "logistic"  # one of losses.ADVERSARIAL
    penalty: float = 10.0
    weight: float = 1.0  # of the codes found
    ratio: int = 1  # steps of the discriminator for each of the others
    learning_rate: float = 1e-3  # of Adam, for all
    momentum: float = 0.0  # b1 of Adam
    memory: float = 0.999  # of `average`, at most
    n_init: int = 10  # restarts of the k-means


@flax.struct.dataclass
class State:
    step: Array  # [] int32
    params: Params  # {"encoder", "reader", "discriminator", "generator"}
    opt_state: dict[str, optax.OptState]  # of each
    average: Params  # of the generator
    missed: Array  # [] int32, steps in a row that were not taken
    centroids: Array  # [k, embed_dim] of E(x)


class Nets(NamedTuple):
    encoder: Network  # rows -> E(x) [b, embed_dim]
    reader: Network  # E(x) -> n [b, latent_dim] beside the logits of c [b, k]
    discriminator: Network  # rows -> features, logits [b]
    generator: Network  # n beside c -> rows
    change: game.Change | None = None  # of made rows, as of real ones


def build_nets(config: Config, shape: tuple[int, ...]) -> Nets:
    """The networks for rows of the given shape.

    Raises:
        ValueError: an unknown network, or convolutions for rows that are no images.
    """
    encoder, _ = networks.autoencoder(config.network, shape, config.hidden, config.embed_dim)
    return Nets(
        encoder,
        networks.mlp((config.latent_dim + config.n_clusters,)),
        networks.discriminator(config.network, shape, config.hidden),
        networks.generator(
            config.network, shape, config.hidden[::-1], is_bounded=config.is_bounded
        ),
    )


def loss(
    params: Params, state: State, batch: Batch, key: Key, *, nets: Nets, config: Config
) -> tuple[Array, Metrics]:
    """The losses of all players, mean over rows, summed. -> [], metrics.

    Metrics: those of `game.of_players` and `spread`; `code`, how well the clusters of made rows are
    found, nats, log k for a guess; `noise`, the mean squared error of n over its variance.
    """
    del state
    draw_key, mix_key, change_key = jax.random.split(key, 3)
    drawn = latents(draw_key, len(batch.x), config)
    noise, code = drawn[:, : config.latent_dim], drawn[:, config.latent_dim :]
    made = nets.generator.apply(params["generator"], drawn)
    made = game.changed(nets.change, change_key, made)

    def logits(own: Params, x: Array) -> Array:
        return nets.discriminator.apply(own, x)[1]

    of_discriminator, of_generator, metrics = game.of_players(
        logits, params["discriminator"], batch.x, made, batch.mask, mix_key,
        objective=config.objective, penalty=config.penalty,
    )  # fmt: skip
    z = nets.encoder.apply(params["encoder"], made)
    found, logits_of_code = game.read(params, z, nets, config)
    of_noise = losses.masked_mean(jnp.sum((found - noise) ** 2, axis=1), batch.mask)
    of_code = game.of_code(logits_of_code, code, batch.mask)
    metrics |= {
        "code": of_code,
        "noise": of_noise / (max(config.latent_dim, 1) * config.deviation**2),
        "spread": game.spread(made, batch.x, batch.mask),
    }
    return of_discriminator + of_generator + config.weight * (of_noise + of_code), metrics


def latents(key: Key, n: int, config: Config, clusters: Array | None = None) -> Array:
    """What n rows are made of, of the clusters [n] or of those that the prior has: z, whose last
    k numbers are the cluster. -> [n, latent_dim + k]."""
    return game.latents(key, n, config.latent_dim, config, clusters, scale=config.deviation)


generate = game.generate


def build(
    config: Config,
    shape: tuple[int, ...],
    *,
    loss: Callable[..., tuple[Array, Metrics]] = loss,
    optimizer: optax.GradientTransformation | None = None,
    of_generator: optax.GradientTransformation | None = None,
    augment: game.Change | None = None,
) -> Algorithm:
    """The algorithm for rows of the given shape.

    `optimizer` replaces the Adam of the config, for all players, or for the discriminator
    where there is one `of_generator`, whose steps are those that the others move in. `augment`
    (key, one row) -> row changes most real and made rows; it must have a gradient.

    Raises:
        ValueError: a setting that no game can have (game.check), an unknown network or way to
            label, or a prior that does not fit.
    """
    game.check_coded(config)
    nets = build_nets(config, shape)._replace(change=game.sometimes(augment))

    def inputs(x: Array) -> dict[str, tuple[Array, ...]]:
        n = len(x)
        return {
            "encoder": (x,),
            "reader": (jnp.zeros((n, config.embed_dim)),),
            "discriminator": (x,),
            "generator": (jnp.zeros((n, config.latent_dim + config.n_clusters)),),
        }

    return game.coded(
        State, inputs, loss, nets, config, slow=("encoder", "reader", "generator"),
        optimizer=optimizer, of_generator=of_generator,
    )  # fmt: skip
