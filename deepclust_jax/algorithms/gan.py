"""GAN: a generator that makes rows, a discriminator that tells them from real ones, and k-means on
what the discriminator sees (Goodfellow et al. 2014, "Generative Adversarial Nets").

    discriminator   minimise  mean -log D(x) - log(1 - D(G(z)))
                              + penalty / 2  mean |grad_x logit D(x)|^2          (R1)
    generator       minimise  mean -log D(G(z)),            z of a normal distribution

or, by `objective`, with the losses named in losses.py. With "wasserstein" the penalty is

    penalty  mean (|grad_x logit D(x')| - 1)^2,       x' between a row and a made one

(Gulrajani et al. 2017, eq. 3), with the others that on real rows (Mescheder et al. 2018, "Which
Training Methods for GANs do actually Converge?", eq. 9), with which training settles where the rows
are, and without which it circles.

The value of `loss` is the sum of both. Each player sees the other as fixed, so the gradient of the
sum is that of each, and one backward pass serves both: they move at once, not in turn (deviation).
The generator moves in every `ratio`-th step. What makes rows after training is the mean of its past
weights, `average`. A step whose loss or new state is not finite is not taken (game.py).

No value of these losses tells how good the made rows are; metrics/generated.py does.

Features are the last hidden layer of the discriminator, whitened. `refresh` whitens and clusters;
call it once, after training.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import optax

from deepclust_jax import game, networks
from deepclust_jax.clustering import kmeans, whitening
from deepclust_jax.types import Algorithm, Array, Batch, Key, Metrics, Network, Params


@dataclasses.dataclass(frozen=True)
class Config:
    n_clusters: int = 10  # k
    embed_dim: int = 32  # principal axes of the features
    network: str = "mlp"  # or "conv", for images
    hidden: tuple[int, ...] = (256, 256)  # widths of the discriminator, and reversed the generator
    latent_dim: int = 64  # of z
    is_bounded: bool = False  # whether rows are in 0..1, as made ones then are
    objective: str = "logistic"  # one of losses.ADVERSARIAL
    penalty: float = 10.0
    ratio: int = 1  # steps of the discriminator for each of the generator
    learning_rate: float = 1e-3  # of Adam, for both
    momentum: float = 0.0  # b1 of Adam; with a high one the players circle
    memory: float = 0.999  # of `average`, at most; shorter at first
    n_init: int = 10  # restarts of the k-means


@flax.struct.dataclass
class State:
    step: Array  # [] int32
    params: Params  # {"encoder", "generator"}; the encoder is the discriminator
    opt_state: dict[str, optax.OptState]  # of each player
    average: Params  # of the generator
    missed: Array  # [] int32, steps in a row that were not taken
    view: whitening.View  # of the features
    centroids: Array  # [k, embed_dim]


class Nets(NamedTuple):
    encoder: Network  # rows -> features [b, m]
    discriminator: Network  # the same parameters: rows -> features, logits [b]
    generator: Network  # z [b, latent_dim] -> rows
    change: game.Change | None = None  # of made rows, as of real ones


def build_nets(config: Config, shape: tuple[int, ...]) -> Nets:
    """Both players for rows of the given shape.

    Raises:
        ValueError: an unknown network, or convolutions for rows that are no images.
    """
    discriminator = networks.discriminator(config.network, shape, config.hidden)
    generator = networks.generator(
        config.network, shape, config.hidden[::-1], is_bounded=config.is_bounded
    )
    encoder = Network(discriminator.init, lambda params, x: discriminator.apply(params, x)[0])
    return Nets(encoder, discriminator, generator)


def loss(
    params: Params, state: State, batch: Batch, key: Key, *, nets: Nets, config: Config
) -> tuple[Array, Metrics]:
    """The losses of both players, mean over rows, summed. -> [], metrics.

    Metrics: those of `game.of_players`, and `spread`, which falls to 0 where the generator
    collapses.
    """
    del state
    z_key, mix_key, change_key = jax.random.split(key, 3)
    z = latents(z_key, len(batch.x), config)
    made = nets.generator.apply(params["generator"], z)
    made = game.changed(nets.change, change_key, made)

    def logits(own: Params, x: Array) -> Array:
        return nets.discriminator.apply(own, x)[1]

    of_discriminator, of_generator, metrics = game.of_players(
        logits, params["encoder"], batch.x, made, batch.mask, mix_key,
        objective=config.objective, penalty=config.penalty,
    )  # fmt: skip
    metrics |= {"spread": game.spread(made, batch.x, batch.mask)}
    return of_discriminator + of_generator, metrics


def latents(key: Key, n: int, config: Config) -> Array:
    """What n rows are made of. -> z [n, latent_dim]."""
    return jax.random.normal(key, (n, config.latent_dim))


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

    `optimizer` replaces the Adam of the config, for both players, or for the discriminator where
    there is one `of_generator`, whose steps are those that the generator moves in. `augment` (key,
    one row) -> row changes most real and made rows; it must have a gradient.

    Raises:
        ValueError: a setting that no game can have (game.check), an unknown network, or more axes
            than features.
    """
    game.check(config)
    nets = build_nets(config, shape)._replace(change=game.sometimes(augment))
    slow = ("generator",)
    players = game.optimizers(config, ("encoder", *slow), slow, optimizer, of_generator)
    width = config.hidden[-1]
    if config.embed_dim > width:
        raise ValueError(
            f"expected embed_dim <= {width}, the features of the discriminator, found "
            f"{config.embed_dim}"
        )

    def init(key: Key, batch: Batch) -> State:
        encoder_key, generator_key, centroid_key = jax.random.split(key, 3)
        z = jnp.zeros((len(batch.x), config.latent_dim))
        generator = nets.generator.init(generator_key, z)
        params = {"encoder": nets.encoder.init(encoder_key, batch.x), "generator": generator}
        centroids = jax.random.normal(centroid_key, (config.n_clusters, config.embed_dim))
        opt_state = {name: players[name].init(own) for name, own in params.items()}
        view = whitening.unfitted(width, config.embed_dim)
        return State(
            jnp.int32(0), params, opt_state, generator, jnp.int32(0), view, kmeans.unit(centroids)
        )

    step = game.step_of(loss, nets, config, players, slow=slow)

    def features(state: State, x: Array) -> Array:
        return networks.apply_in_blocks(
            nets.encoder.apply, state.params["encoder"], x, block=game.BLOCK
        )

    def refresh(key: Key, state: State, x: Array) -> State:
        found = features(state, x)
        view = whitening.fit(found, config.embed_dim)
        z = whitening.apply(view, found)
        centroids = kmeans.fit(key, z, config.n_clusters, n_init=config.n_init).centroids
        return state.replace(view=view, centroids=centroids)

    def embed(state: State, x: Array) -> Array:
        return whitening.apply(state.view, features(state, x))

    def assign(state: State, z: Array) -> Array:
        return kmeans.assign(z, state.centroids)[0]

    return Algorithm(init, step, refresh, embed, assign)
