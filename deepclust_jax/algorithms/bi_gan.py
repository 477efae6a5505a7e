"""BiGAN with a categorical code: a discriminator of rows beside their codes, so that the encoder
becomes the inverse of the generator (Donahue et al. 2017, "Adversarial Feature Learning").

    z = (n, c),   n of a normal distribution,   c one of k clusters
    discriminator        minimise  mean -log D(x, F(x)) - log(1 - D(G(z), z))   + penalty, as gan.py
    generator, encoder   minimise  mean -log(1 - D(x, F(x))) - log D(G(z), z)               (eq. 3)

    F(x) = (n', softmax c') = R(E(x)), R a linear layer

To be taken for z, the code of a row must be sure of its cluster, and clusters have the shares of
`prior`. A row is labelled by its code: the most likely cluster; or, by `labelled_by` "kmeans", by
k-means on E(x).

Deviations: the paper's code is n alone. The labels of the discriminator are swapped for the others
(its section 3.4), which is what the losses of gan.py are.

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
    prior: tuple[float, ...] = ()  # sizes of the clusters; (): all the same
    labelled_by: str = "code"  # or "kmeans"
    is_bounded: bool = False  # whether rows are in 0..1, as made ones then are
    objective: str = "logistic"  # one of losses.ADVERSARIAL
    penalty: float = 10.0
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
    discriminator: Network  # (rows [b, ...], codes [b, latent_dim + k]) -> logits [b]
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
        networks.pair_discriminator(config.network, shape, config.hidden),
        networks.generator(
            config.network, shape, config.hidden[::-1], is_bounded=config.is_bounded
        ),
    )


def loss(
    params: Params, state: State, batch: Batch, key: Key, *, nets: Nets, config: Config
) -> tuple[Array, Metrics]:
    """The losses of all players, mean over rows, summed. -> [], metrics.

    Metrics: those of `game.of_players` and `spread`; `sureness`, the mean largest probability of a
    cluster, 1/k to 1; `returned`, the squared error of real rows made again from their codes, as a
    share of their variance.
    """
    del state
    draw_key, mix_key, change_key = jax.random.split(key, 3)
    code = latents(draw_key, len(batch.x), config)
    made = nets.generator.apply(params["generator"], code)
    made = game.changed(nets.change, change_key, made)
    noise, found = game.read(params, nets.encoder.apply(params["encoder"], batch.x), nets, config)
    shares = jax.nn.softmax(found)
    own_code = jnp.concatenate([noise, shares], axis=1)

    def logits(own: Params, rows: tuple[Array, Array]) -> Array:
        return nets.discriminator.apply(own, *rows)

    own = params["discriminator"]
    of_discriminator, of_generator, metrics = game.of_players(
        logits, own, (batch.x, own_code), (made, code), batch.mask, mix_key,
        objective=config.objective, penalty=config.penalty,
    )  # fmt: skip
    seen = logits(jax.lax.stop_gradient(own), (batch.x, own_code))
    of_encoder = losses.masked_mean(losses.of_generator(-seen, config.objective), batch.mask)
    again = nets.generator.apply(jax.lax.stop_gradient(params["generator"]), own_code)
    error = losses.masked_mean(losses.reconstruction(batch.x, again), batch.mask)
    metrics |= {
        "sureness": losses.masked_mean(jnp.max(shares, axis=1), batch.mask),
        "returned": jax.lax.stop_gradient(error) / losses.total_variance(batch.x, batch.mask),
        "spread": game.spread(made, batch.x, batch.mask),
    }
    return of_discriminator + of_generator + of_encoder, metrics


def latents(key: Key, n: int, config: Config, clusters: Array | None = None) -> Array:
    """What n rows are made of, of the clusters [n] or of those that the prior has: z, whose last
    k numbers are the cluster. -> [n, latent_dim + k]."""
    return game.latents(key, n, config.latent_dim, config, clusters)


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
        code = jnp.zeros((len(x), config.latent_dim + config.n_clusters))
        return {
            "encoder": (x,),
            "reader": (jnp.zeros((len(x), config.embed_dim)),),
            "discriminator": (x, code),
            "generator": (code,),
        }

    return game.coded(
        State, inputs, loss, nets, config, slow=("encoder", "reader", "generator"),
        optimizer=optimizer, of_generator=of_generator,
    )  # fmt: skip
