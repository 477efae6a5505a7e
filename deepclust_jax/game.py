"""What the generative adversarial networks share: what both players lose, and how they move.

A row of the game is what the discriminator is given: an array [b, ...], or a tuple of them.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepclust_jax import augment as augmentation
from deepclust_jax import losses, networks
from deepclust_jax.clustering import kmeans
from deepclust_jax.types import Algorithm, Array, Batch, Key, Metrics, Params

Change = Callable[[Key, Array], Array]  # of one row
S = TypeVar("S")  # a state with step, params, opt_state, average and missed

LABELLED_BY = ("code", "kmeans")
BLOCK = 1024  # rows that are embedded or made at once
_CHANGED = 0.7  # share of rows
_MISSED = 10  # steps
_SQUARES = 0.99  # b2 of Adam: the gradients of a game change


def of_players(
    logits: Callable[[Params, Any], Array],
    own: Params,
    real: Any,
    made: Any,
    mask: Array,
    key: Key,
    *,
    objective: str,
    penalty: float,
) -> tuple[Array, Array, Metrics]:
    """The losses of the discriminator (with its penalty) and of the generator, mean over the rows
    that count. -> [], [], metrics.

    `logits(own, rows)` [b] are those of being real, and `objective` is one of losses.ADVERSARIAL.
    Each player sees the other as fixed. The penalty is on the gradient of the logit: its square, on
    real rows (R1: Mescheder et al. 2018, eq. 9), or with "wasserstein" its distance from length 1,
    between real rows and made ones (Gulrajani et al. 2017, eq. 3).

    Metrics: `discriminator`, without its penalty; `generator`; `told`, the share of real and made
    rows that are told right, 0 to 1. With "wasserstein" logits have no zero of their own: they are
    taken from the middle between the means of both kinds.
    """
    real, fixed = jax.lax.stop_gradient((real, made))
    on_real, on_made = logits(own, real), logits(own, fixed)
    of_discriminator = losses.masked_mean(
        losses.of_discriminator(on_real, on_made, objective), mask
    )
    seen, zero = logits(jax.lax.stop_gradient(own), made), jnp.float32(0.0)
    if objective == "wasserstein":
        means = losses.masked_mean(on_real, mask) + losses.masked_mean(on_made, mask)
        zero = jax.lax.stop_gradient(0.5 * means)
    of_generator = losses.masked_mean(losses.of_generator(seen - zero, objective), mask)

    def slope(rows: Any) -> Array:
        """Squared length of the gradient of each logit by its row. -> [b]."""
        found = jax.grad(lambda rows: jnp.sum(logits(own, rows)))(rows)
        parts = [jnp.sum(g.reshape(len(g), -1) ** 2, axis=1) for g in jax.tree.leaves(found)]
        return sum(parts[1:], parts[0])

    if not penalty:  # nothing times a slope that is not finite would be no number
        cost = jnp.zeros_like(mask)
    elif objective == "wasserstein":
        shares = jax.random.uniform(key, mask.shape)

        def between(one: Array, other: Array) -> Array:
            share = shares.reshape(-1, *[1] * (one.ndim - 1))
            return share * one + (1.0 - share) * other

        lengths = jnp.sqrt(slope(jax.tree.map(between, real, fixed)) + 1e-12)
        cost = (lengths - 1.0) ** 2
    else:
        cost = 0.5 * slope(real)
    told = (on_real > zero).astype(mask.dtype) + (on_made <= zero)
    metrics = {
        "discriminator": of_discriminator,
        "generator": of_generator,
        "told": 0.5 * losses.masked_mean(told, mask),
    }
    return of_discriminator + penalty * losses.masked_mean(cost, mask), of_generator, metrics


def spread(made: Array, real: Array, mask: Array) -> Array:
    """The deviation of made rows over that of real ones, which falls to 0 where the generator
    makes one row; of a few kinds of rows it stays large. -> [] >= 0."""
    rows = jax.lax.stop_gradient(made).reshape(len(made), -1)
    weights = mask[:, None] / jnp.maximum(jnp.sum(mask), 1.0)
    mean = jnp.sum(weights * rows, axis=0, keepdims=True)
    variance = jnp.sum(weights * (rows - mean) ** 2)
    return jnp.sqrt(variance / losses.total_variance(real, mask))


def sometimes(change: Change | None) -> Change | None:
    """The change of seven rows in ten; the others stay.

    Made rows are changed as real ones are: else the generator learns to make changed ones (Zhao et
    al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training"). Were all changed, it
    could make rows that look real only once they are (Karras et al. 2020, "Training Generative
    Adversarial Networks with Limited Data", section 2.2).
    """
    if change is None:
        return None

    def of_row(key: Key, row: Array) -> Array:
        keys = jax.random.split(key)
        return jnp.where(jax.random.bernoulli(keys[0], _CHANGED), change(keys[1], row), row)

    return of_row


def changed(change: Change | None, key: Key, made: Array) -> Array:
    """Made rows [b, ...], each changed by a draw of its own."""
    return made if change is None else augmentation.every(key, made, change)


def adam(rate: optax.ScalarOrSchedule, momentum: float = 0.0) -> optax.GradientTransformation:
    """The optimiser of the players; with a high momentum they circle."""
    return optax.adam(rate, b1=momentum, b2=_SQUARES)


def moved(
    state: S,
    value: Array,
    metrics: Metrics,
    grads: Mapping[str, Params],
    optimizers: Mapping[str, optax.GradientTransformation],
    *,
    slow: Collection[str],
    ratio: int,
    memory: float,
) -> tuple[S, Metrics]:
    """The state after one step of all players, which move at once, and the metrics.

    Those named in `slow` move in every `ratio`-th step only. `average` becomes the mean of the
    generator's past weights, with a memory of at most `memory`, shorter at first. A step whose loss
    or new state is not finite is not taken: the metric `taken` is 0 then, and the others, 0 too,
    do not count in the means of an epoch (train.py).
    """
    params, opt_state = {}, {}
    for name, own in state.params.items():
        updates, opt_state[name] = optimizers[name].update(grads[name], state.opt_state[name], own)
        params[name] = optax.apply_updates(own, updates)
    found = jax.tree.leaves((value, params, opt_state))
    is_finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in found]).all()
    is_due = (state.step + 1) % ratio == 0

    def taken(name: str, new: Params, old: Params) -> Params:
        is_taken = is_finite & is_due if name in slow else is_finite
        return jax.tree.map(lambda a, b: jnp.where(is_taken, a, b), new, old)

    memory = jnp.minimum(memory, (1.0 + state.step) / (10.0 + state.step))
    average = jax.tree.map(
        lambda past, now: memory * past + (1.0 - memory) * now, state.average, params["generator"]
    )
    state = state.replace(
        step=state.step + 1,
        params={name: taken(name, params[name], state.params[name]) for name in params},
        opt_state={name: taken(name, opt_state[name], state.opt_state[name]) for name in params},
        average=taken("generator", average, state.average),
        missed=jnp.where(is_finite, 0, state.missed + 1),
    )
    metrics = {"loss": value, **metrics}
    metrics = {name: jnp.where(is_finite, own, 0.0) for name, own in metrics.items()}
    return state, metrics | {"taken": is_finite.astype(value.dtype)}


def optimizers(
    config: Any,
    names: Collection[str],
    slow: Collection[str],
    optimizer: optax.GradientTransformation | None,
    of_generator: optax.GradientTransformation | None,
) -> dict[str, optax.GradientTransformation]:
    """That of each player: `optimizer`, or the Adam of the config; of those in `slow`
    `of_generator`, where there is one."""
    tx = optimizer or adam(config.learning_rate, config.momentum)
    return {name: of_generator or tx if name in slow else tx for name in names}


def step_of(
    loss: Callable[..., tuple[Array, Metrics]],
    nets: Any,
    config: Any,
    players: Mapping[str, optax.GradientTransformation],
    *,
    slow: Collection[str],
) -> Callable[[Key, S, Batch], tuple[S, Metrics]]:
    """The step of a game: rows changed by `nets.change`, one backward pass for all players."""

    def step(key: Key, state: S, batch: Batch) -> tuple[S, Metrics]:
        augment_key, loss_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch = augmentation.batch(augment_key, batch, nets.change)
        (value, metrics), grads = losses.value_and_grad(loss)(
            state.params, state, batch, loss_key, nets=nets, config=config
        )
        return moved(
            state, value, metrics, grads, players,
            slow=slow, ratio=config.ratio, memory=config.memory,
        )  # fmt: skip

    return step


def generate(state: Any, z: Array, nets: Any) -> Array:
    """The rows that the generator makes of z, by the mean of its past weights. -> [n, *shape]."""
    return networks.apply_in_blocks(nets.generator.apply, state.average, z, block=BLOCK)


def diverged(state: Any) -> np.ndarray:
    """Which runs [S] ended with ten steps in a row, or all, that were not taken: they stand where
    they were before, and would not go on. -> [S] bool."""
    step, missed = np.asarray(state.step), np.asarray(state.missed)
    return (step > 0) & (missed >= np.minimum(step, _MISSED))


def latents(
    key: Key, n: int, width: int, config: Any, clusters: Array | None = None, scale: float = 1.0
) -> Array:
    """What n rows are made of: `width` normal numbers of a deviation `scale`, and as one-hot the
    cluster of each row, by the prior of the config or as told. -> [n, width + k].

    Raises:
        ValueError: clusters that are not n whole numbers of 0 to k - 1 (under a trace such a row
            has no cluster).
    """
    k = config.n_clusters
    if clusters is not None:
        clusters = jnp.asarray(clusters)
        is_right = clusters.shape == (n,) and jnp.issubdtype(clusters.dtype, jnp.integer)
        if is_right and n and not isinstance(clusters, jax.core.Tracer):
            is_right = int(clusters.min()) >= 0 and int(clusters.max()) < k
        if not is_right:
            raise ValueError(f"expected clusters [{n}] of 0 to {k - 1}, found {clusters}")
    noise_key, code_key = jax.random.split(key)
    noise = scale * jax.random.normal(noise_key, (n, width))
    if clusters is None:
        prior = prior_of(config.prior, k)
        clusters = jax.random.choice(code_key, k, (n,), p=prior)
    return jnp.concatenate([noise, jax.nn.one_hot(clusters, k)], axis=1)


def read(params: Params, z: Array, nets: Any, config: Any) -> tuple[Array, Array]:
    """What R finds in E(x): numbers, and the logits of the clusters. -> [b, m], [b, k]."""
    found = nets.reader.apply(params["reader"], z)
    return found[:, : -config.n_clusters], found[:, -config.n_clusters :]


def of_code(logits: Array, code: Array, mask: Array) -> Array:
    """How well clusters [b, k], one-hot, are found: cross-entropy, nats, mean. -> []."""
    return losses.masked_mean(-jnp.sum(code * jax.nn.log_softmax(logits), axis=1), mask)


# The least that a setting may be, of those that a config has; whole numbers first.
_WHOLE = {"n_clusters": 1, "embed_dim": 1, "latent_dim": 1, "n_styles": 0, "ratio": 1, "n_init": 1}
_ABOVE_0, _FROM_0 = ("learning_rate", "deviation"), ("penalty", "weight", "style_weight")
_BELOW_1 = ("momentum", "memory")


def check(config: Any) -> None:
    """Raise ValueError for settings that no game can have."""

    def expect(name: str, wanted: str, is_right: Callable[[Any], bool]) -> None:
        if hasattr(config, name) and not is_right(value := getattr(config, name)):
            raise ValueError(f"expected {name} {wanted}, found {value!r}")

    known = ", ".join(losses.ADVERSARIAL)
    expect("objective", known, lambda value: value in losses.ADVERSARIAL)
    for name, least in _WHOLE.items():
        expect(
            name,
            f"a whole number >= {least}",
            lambda value, least=least: isinstance(value, int | np.integer) and value >= least,
        )
    for name in _ABOVE_0:
        expect(name, "> 0", lambda value: 0 < value < math.inf)
    for name in _FROM_0:
        expect(name, ">= 0", lambda value: 0 <= value < math.inf)
    for name in _BELOW_1:
        expect(name, ">= 0 and < 1", lambda value: 0 <= value < 1)


def check_coded(config: Any) -> None:
    """Raise ValueError for settings that no method with a categorical code can have."""
    check(config)
    prior_of(config.prior, config.n_clusters)
    if config.labelled_by not in LABELLED_BY:
        raise ValueError(
            f"expected labelled_by {' or '.join(LABELLED_BY)}, found {config.labelled_by!r}"
        )


def coded(
    state_of: Callable[..., S],
    inputs: Callable[[Array], Mapping[str, tuple[Array, ...]]],
    loss: Callable[..., tuple[Array, Metrics]],
    nets: Any,
    config: Any,
    *,
    slow: Collection[str],
    optimizer: optax.GradientTransformation | None,
    of_generator: optax.GradientTransformation | None,
) -> Algorithm:
    """The algorithm of a game with a categorical code, whose rows are labelled by the code that is
    found in E(x), or by k-means on E(x).

    `state_of` is its State, and `inputs` (rows) -> what each network is given, by its name.
    """

    def init(key: Key, batch: Batch) -> S:
        examples = inputs(batch.x)
        *keys, centroid_key = jax.random.split(key, len(examples) + 1)
        pairs = zip(keys, examples.items(), strict=True)
        params = {name: getattr(nets, name).init(own, *given) for own, (name, given) in pairs}
        players = optimizers(config, params, slow, optimizer, of_generator)
        opt_state = {name: players[name].init(own) for name, own in params.items()}
        centroids = jax.random.normal(centroid_key, (config.n_clusters, config.embed_dim))
        return state_of(
            step=jnp.int32(0),
            params=params,
            opt_state=opt_state,
            average=params["generator"],
            missed=jnp.int32(0),
            centroids=centroids,
        )

    def step(key: Key, state: S, batch: Batch) -> tuple[S, Metrics]:
        players = optimizers(config, state.params, slow, optimizer, of_generator)
        return step_of(loss, nets, config, players, slow=slow)(key, state, batch)

    def refresh(key: Key, state: S, x: Array) -> S:
        found = kmeans.fit(key, embed(state, x), config.n_clusters, n_init=config.n_init)
        return state.replace(centroids=found.centroids)

    def embed(state: S, x: Array) -> Array:
        return networks.apply_in_blocks(nets.encoder.apply, state.params["encoder"], x, block=BLOCK)

    def assign(state: S, z: Array) -> Array:
        if config.labelled_by == "kmeans":
            return kmeans.assign(z, state.centroids)[0]
        return jnp.argmax(read(state.params, z, nets, config)[1], axis=1).astype(jnp.int32)

    return Algorithm(init, step, refresh, embed, assign)


def prior_of(sizes: Sequence[float], n_clusters: int) -> Array:
    """Shares of the clusters, all the same where `sizes` is empty. -> [k], sum 1.

    Raises:
        ValueError: not one size > 0 for each cluster.
    """
    shares = np.asarray(sizes or [1.0] * n_clusters, np.float64)
    is_sound = len(shares) == n_clusters and np.isfinite(shares).all() and shares.min() > 0
    if is_sound:
        shares = shares / shares.max()
        shares = np.float32(shares / shares.sum())
        is_sound = shares.min() > 0  # not rounded to 0
    if not is_sound:
        raise ValueError(
            f"expected a prior of {n_clusters} sizes > 0, one for each cluster, found "
            f"{' '.join(format(size, 'g') for size in sizes)}"
        )
    return jnp.asarray(shares)
