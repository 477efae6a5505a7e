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
weights, `average`. What changes real rows, `augment`, changes made ones as well: else the generator
learns to make changed ones (Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN
Training"). A step whose loss or new state is not finite is not taken.

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

from deepclust_jax import augment as augmentation
from deepclust_jax import losses, networks
from deepclust_jax.clustering import kmeans, whitening
from deepclust_jax.types import Algorithm, Array, Batch, Key, Metrics, Network, Params

Change = Callable[[Key, Array], Array]  # of one row

_SQUARES = 0.99  # b2 of Adam: the gradients of a game change
_BLOCK = 1024  # rows that `embed` sees at once


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
    view: whitening.View  # of the features
    centroids: Array  # [k, embed_dim]


class Nets(NamedTuple):
    encoder: Network  # rows -> features [b, m]
    discriminator: Network  # the same parameters: rows -> features, logits [b]
    generator: Network  # z [b, latent_dim] -> rows
    change: Change | None = None  # of made rows, as of real ones


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

    Metrics: the losses `discriminator` (without its penalty) and `generator`; `told`, the share of
    real and made rows that are told right, 0 to 1; `spread`, the deviation of made rows over that
    of real ones, which falls to 0 where the generator collapses. With "wasserstein" logits have no
    zero of their own: they are taken from the middle between the means of both kinds.
    """
    del state
    z_key, mix_key, change_key = jax.random.split(key, 3)
    own, mask = params["encoder"], batch.mask
    z = jax.random.normal(z_key, (len(batch.x), config.latent_dim))
    made = nets.generator.apply(params["generator"], z)
    if nets.change is not None:
        made = jax.vmap(nets.change)(jax.random.split(change_key, len(made)), made)
    fixed = jax.lax.stop_gradient(made)

    def logits(own: Params, x: Array) -> Array:
        return nets.discriminator.apply(own, x)[1]

    real, fake = logits(own, batch.x), logits(own, fixed)
    of_discriminator = losses.masked_mean(
        losses.of_discriminator(real, fake, config.objective), mask
    )
    seen = logits(jax.lax.stop_gradient(own), made)
    zero = jnp.float32(0.0)
    if config.objective == "wasserstein":
        means = losses.masked_mean(real, mask), losses.masked_mean(fake, mask)
        zero = jax.lax.stop_gradient(0.5 * (means[0] + means[1]))
        seen = seen - zero
    of_generator = losses.masked_mean(losses.of_generator(seen, config.objective), mask)

    def slope(x: Array) -> Array:
        """Squared length of the gradient of each logit by its row. [b, ...] -> [b]."""
        found = jax.grad(lambda x: jnp.sum(logits(own, x)))(x)
        return jnp.sum(found.reshape(len(x), -1) ** 2, axis=1)

    if config.objective == "wasserstein":
        share = jax.random.uniform(mix_key, (len(z), *[1] * (made.ndim - 1)))
        lengths = jnp.sqrt(slope(share * batch.x + (1.0 - share) * fixed) + 1e-12)
        cost = (lengths - 1.0) ** 2
    else:
        cost = 0.5 * slope(batch.x)
    penalty = config.penalty * losses.masked_mean(cost, mask)
    told = 0.5 * losses.masked_mean((real > zero).astype(real.dtype) + (fake <= zero), mask)
    metrics = {
        "discriminator": of_discriminator,
        "generator": of_generator,
        "told": told,
        "spread": jnp.sqrt(_variance(fixed, mask) / losses.total_variance(batch.x, mask)),
    }
    return of_discriminator + penalty + of_generator, metrics


def _variance(x: Array, mask: Array) -> Array:
    """Of the rows that count, summed over features; 0 where they are equal. -> []."""
    rows = x.reshape(len(x), -1)
    weights = mask[:, None] / jnp.maximum(jnp.sum(mask), 1.0)
    mean = jnp.sum(weights * rows, axis=0, keepdims=True)
    return jnp.sum(weights * (rows - mean) ** 2)


def adam(rate: optax.ScalarOrSchedule, config: Config) -> optax.GradientTransformation:
    """The optimiser of both players."""
    return optax.adam(rate, b1=config.momentum, b2=_SQUARES)


def generate(key: Key, state: State, n: int, nets: Nets, config: Config) -> Array:
    """n rows that the generator makes. -> [n, *shape]."""
    z = jax.random.normal(key, (n, config.latent_dim))
    return networks.apply_in_blocks(nets.generator.apply, state.average, z, block=_BLOCK)


def build(
    config: Config,
    shape: tuple[int, ...],
    *,
    loss: Callable[..., tuple[Array, Metrics]] = loss,
    optimizer: optax.GradientTransformation | None = None,
    of_generator: optax.GradientTransformation | None = None,
    augment: Change | None = None,
) -> Algorithm:
    """The algorithm for rows of the given shape.

    `optimizer` replaces the Adam of the config, for both players, or for the discriminator where
    there is one `of_generator`, whose steps are those that the generator moves in. `augment` (key,
    one row) -> row changes every real and made row; it must have a gradient.

    Raises:
        ValueError: an unknown objective or network, or more axes than features.
    """
    losses.check_adversarial(config.objective)
    nets = build_nets(config, shape)._replace(change=augment)
    tx = optimizer or adam(config.learning_rate, config)
    optimizers = {"encoder": tx, "generator": of_generator or tx}
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
        opt_state = {name: optimizers[name].init(own) for name, own in params.items()}
        view = whitening.unfitted(width, config.embed_dim)
        return State(jnp.int32(0), params, opt_state, generator, view, kmeans.unit(centroids))

    def step(key: Key, state: State, batch: Batch) -> tuple[State, Metrics]:
        augment_key, loss_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch = augmentation.batch(augment_key, batch, augment)
        (value, metrics), grads = losses.value_and_grad(loss)(
            state.params, state, batch, loss_key, nets=nets, config=config
        )
        params, opt_state = {}, {}
        for name, own in state.params.items():
            updates, opt_state[name] = optimizers[name].update(
                grads[name], state.opt_state[name], own
            )
            params[name] = optax.apply_updates(own, updates)
        is_due = (state.step + 1) % config.ratio == 0
        memory = jnp.minimum(config.memory, (1.0 + state.step) / (10.0 + state.step))
        average = jax.tree.map(
            lambda past, now: memory * past + (1.0 - memory) * now,
            state.average, params["generator"],
        )  # fmt: skip
        found = jax.tree.leaves((value, params, opt_state))
        is_finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in found]).all()

        def taken(is_taken: Array, new: Params, old: Params) -> Params:
            return jax.tree.map(lambda a, b: jnp.where(is_taken, a, b), new, old)

        moves = {"encoder": is_finite, "generator": is_finite & is_due}
        state = state.replace(
            step=state.step + 1,
            params={n: taken(moves[n], params[n], state.params[n]) for n in moves},
            opt_state={n: taken(moves[n], opt_state[n], state.opt_state[n]) for n in moves},
            average=taken(moves["generator"], average, state.average),
        )
        metrics = {"loss": value, **metrics}
        metrics = {name: jnp.where(is_finite, own, 0.0) for name, own in metrics.items()}
        return state, metrics | {"taken": is_finite.astype(value.dtype)}

    def features(state: State, x: Array) -> Array:
        return networks.apply_in_blocks(
            nets.encoder.apply, state.params["encoder"], x, block=_BLOCK
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
