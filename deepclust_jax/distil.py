"""A small classifier that learns the posterior of a clustering from the codes, and so labels new
rows where the clustering itself has labels for its own rows only (a neighbour graph has)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from deepclust_jax import networks
from deepclust_jax.types import Array, Key, Network, Params

_BATCH = 512  # codes of a step


class Labeller(NamedTuple):
    """A classifier of codes that are centred and scaled."""

    params: Params
    centre: Array  # [d], mean of the codes
    scale: Array  # [d], their deviations


def unfitted(key: Key, classifier: Network, d: int) -> Labeller:
    """What labels codes [n, d] of unit length at random; `classifier` maps [n, d] to logits."""
    # Of codes of unit length a feature has a mean square of 1 / d.
    return Labeller(classifier.init(key, jnp.zeros((1, d))), jnp.zeros(d), jnp.full(d, d**-0.5))


def fit(key: Key, classifier: Network, z: Array, posterior: Array, steps: int) -> Labeller:
    """What labels codes z [n, d] by a posterior [n, k], after so many steps of Adam.

    Of several clusterings at once: the posteriors are [n, h, k], and the classifier has h k logits.

    Raises:
        ValueError: steps below 1.
    """
    if steps < 1:
        raise ValueError(f"expected steps >= 1, found {steps}")
    init_key, step_key = jax.random.split(key)
    centre, scale = jnp.mean(z, axis=0), jnp.std(z, axis=0)
    # A number that is the same in all codes has a deviation of the rounding of its mean.
    scale = jnp.where(scale > 1e-5 * jnp.maximum(jnp.abs(centre), jnp.max(scale)), scale, 1.0)
    rows = _standardised(Labeller(None, centre, scale), z)
    tx = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

    def cost(params, index):
        wanted = posterior[index]
        logits = classifier.apply(params, rows[index]).reshape(wanted.shape)
        return -jnp.sum(wanted * jax.nn.log_softmax(logits, axis=-1)) / len(index)

    def step(i, carry):
        params, state = carry
        draw = jax.random.fold_in(step_key, i)
        index = jax.random.randint(draw, (min(_BATCH, len(z)),), 0, len(z))
        updates, state = tx.update(jax.grad(cost)(params, index), state)
        return optax.apply_updates(params, updates), state

    params = classifier.init(init_key, rows[:1])
    params = jax.lax.fori_loop(0, steps, step, (params, tx.init(params)))[0]
    return Labeller(params, centre, scale)


def logits(labeller: Labeller, classifier: Network, z: Array) -> Array:
    """Of codes [n, d]. -> [n, k], or [n, h k] of several clusterings."""
    return classifier.apply(labeller.params, _standardised(labeller, z))


def assign(labeller: Labeller, classifier: Network, z: Array) -> Array:
    """The likeliest cluster of codes [n, d]. -> [n] int32."""
    rows = _standardised(labeller, z)
    found = networks.apply_in_blocks(classifier.apply, labeller.params, rows)
    return jnp.argmax(found, axis=-1).astype(jnp.int32)


def _standardised(labeller: Labeller, z: Array) -> Array:
    return (z - labeller.centre[None, :]) / labeller.scale[None, :]
