"""InfoGAN: a generator with a categorical code that the discriminator's features tell (Chen et al.
2016, "InfoGAN: Interpretable Representation Learning by Information Maximizing Generative
Adversarial Nets").

    z = (n, c, s),   n of a normal distribution,  c one of k clusters,  s styles of the same kind
    discriminator             as in gan.py
    discriminator, generator  minimise also  weight  mean -log c'_c                      (eq. 5)
                                             + style_weight  mean |s - s'|^2 / n_styles
                                             where (c', s') = R(E(G(z)))

E are the last hidden features of the discriminator, and R a linear layer. The first term is, but
for the entropy of c, a bound on the information that a made row has of its cluster. A row is
labelled by its code: the most likely cluster of R(E(x)); or, by `labelled_by` "kmeans", by k-means
on E(x). Clusters have the shares of `prior`.

Deviations: styles are normal, of one deviation, where the paper has them uniform with a deviation
that is learnt; the information is drawn from in the steps of the discriminator too.

The other things are those of gan.py: both players move at once, the generator in every `ratio`-th
step, and what makes rows after training is the mean of past weights. Call `refresh` once, after
training.
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
    hidden: tuple[int, ...] = (256, 256)  # widths before E, and reversed the generator
    latent_dim: int = 62  # of n
    n_styles: int = 2  # numbers of s
    prior: tuple[float, ...] = ()  # sizes of the clusters; (): all the same
    labelled_by: str = "code"  # or "kmeans"
    is_bounded: bool = False  # whether rows are in 0..1, as made ones then are
    objective: str = "logistic"  # one of losses.ADVERSARIAL
    penalty: float = 10.0
    weight: float = 1.0  # of the information on c
    style_weight: float = 0.1
    ratio: int = 1  # steps of the discriminator for each of the generator
    learning_rate: float = 1e-3  # of Adam, for both
    momentum: float = 0.0  # b1 of Adam
    memory: float = 0.999  # of `average`, at most
    n_init: int = 10  # restarts of the k-means


@flax.struct.dataclass
class State:
    step: Array  # [] int32
    params: Params  # {"encoder", "reader", "generator"}; the encoder is the discriminator
    opt_state: dict[str, optax.OptState]  # of each
    average: Params  # of the generator
    missed: Array  # [] int32, steps in a row that were not taken
    centroids: Array  # [k, embed_dim] of E(x)


class Nets(NamedTuple):
    encoder: Network  # rows -> E(x) [b, embed_dim]
    reader: Network  # E(x) -> s [b, n_styles] beside the logits of c [b, k]
    discriminator: Network  # the encoder's parameters: rows -> E(x), logits [b]
    generator: Network  # n, s and c side by side -> rows
    change: game.Change | None = None  # of made rows, as of real ones


def build_nets(config: Config, shape: tuple[int, ...]) -> Nets:
    """Both players for rows of the given shape.

    Raises:
        ValueError: an unknown network, or convolutions for rows that are no images.
    """
    hidden = (*config.hidden, config.embed_dim)
    discriminator = networks.discriminator(config.network, shape, hidden)
    return Nets(
        Network(discriminator.init, lambda params, x: discriminator.apply(params, x)[0]),
        networks.mlp((config.n_styles + config.n_clusters,)),
        discriminator,
        networks.generator(
            config.network, shape, config.hidden[::-1], is_bounded=config.is_bounded
        ),
    )


def loss(
    params: Params, state: State, batch: Batch, key: Key, *, nets: Nets, config: Config
) -> tuple[Array, Metrics]:
    """The losses of both players, mean over rows, summed. -> [], metrics.

    Metrics: those of `game.of_players` and `spread`; `code`, how well the clusters of made rows are
    found, nats, log k for a guess; `style`, the mean squared error of s, 1 for a guess.
    """
    del state
    draw_key, mix_key, change_key = jax.random.split(key, 3)
    drawn = latents(draw_key, len(batch.x), config)
    style, code = jnp.split(drawn[:, config.latent_dim :], [config.n_styles], axis=1)
    made = nets.generator.apply(params["generator"], drawn)
    made = game.changed(nets.change, change_key, made)

    def logits(own: Params, x: Array) -> Array:
        return nets.discriminator.apply(own, x)[1]

    of_discriminator, of_generator, metrics = game.of_players(
        logits, params["encoder"], batch.x, made, batch.mask, mix_key,
        objective=config.objective, penalty=config.penalty,
    )  # fmt: skip
    z = nets.encoder.apply(params["encoder"], made)
    found, logits_of_code = game.read(params, z, nets, config)
    of_style = jnp.sum((found - style) ** 2, axis=1) / max(config.n_styles, 1)
    of_style = losses.masked_mean(of_style, batch.mask)
    of_code = game.of_code(logits_of_code, code, batch.mask)
    metrics |= {
        "code": of_code,
        "style": of_style,
        "spread": game.spread(made, batch.x, batch.mask),
    }
    of_both = config.weight * of_code + config.style_weight * of_style
    return of_discriminator + of_generator + of_both, metrics


def latents(key: Key, n: int, config: Config, clusters: Array | None = None) -> Array:
    """What n rows are made of, of the clusters [n] or of those that the prior has: z, whose last
    k numbers are the cluster. -> [n, latent_dim + n_styles + k]."""
    return game.latents(key, n, config.latent_dim + config.n_styles, config, clusters)


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

    `optimizer` replaces the Adam of the config, for all players, or for discriminator and R
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
        width = config.latent_dim + config.n_styles + config.n_clusters
        return {
            "encoder": (x,),
            "reader": (jnp.zeros((n, config.embed_dim)),),
            "generator": (jnp.zeros((n, width)),),
        }

    return game.coded(
        State, inputs, loss, nets, config, slow=("generator",),
        optimizer=optimizer, of_generator=of_generator,
    )  # fmt: skip
