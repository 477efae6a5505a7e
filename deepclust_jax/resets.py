"""Resets in BRB's manner around any method with centroids (Miklautz et al. 2025, "Breaking the
Reclustering Barrier in Centroid-based Deep Clustering").

    algorithm = resets.around(dcn.build(config, shape), every=20)

Every so many epochs each weight of the encoder, but those of the layer that makes the code, becomes
`keep` of itself and the rest of a fresh draw; k-means on the new codes replaces the centroids; and
the optimiser forgets where the old ones were going. Training goes on from there, so that early
assignments are no trap. Deviations: the weights between are those of the encoder alone, the decoder
learns on; counts of DCN begin again with the centroids; and of Adam only the first moments are
forgotten: it shares one count of steps, and without the second ones its steps would be too long.
"""

from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp
import numpy as np

from deepclust_jax import networks
from deepclust_jax.clustering import kmeans
from deepclust_jax.types import Algorithm, Array, Batch, Key, Metrics, Params
from deepclust_jax.types import State as AnyState

_CLUSTERED = 10_000  # rows of which the new centroids are found, as in the paper, or k if more


@flax.struct.dataclass
class State:
    step: Array  # [] int32
    own: AnyState  # of the algorithm inside
    epoch: Array  # [] int32, how often `refresh` was called


def around(
    algorithm: Algorithm, *, every: int, keep: float = 0.8, until: int | None = None
) -> Algorithm:
    """The algorithm with a reset at the start of every `every`-th epoch, but for the first.

    Its state must have `params["encoder"]`, a perceptron or convolutions of networks.py, and
    centroids in `params["centroids"]` or `centroids`. Call `refresh` in every epoch, as `train.fit`
    does. With `until`, the number of epochs, none comes after the last, should it be called there.

    Raises:
        ValueError: every < 1, or keep outside 0..1.
    """
    if not isinstance(every, int | np.integer) or every < 1 or not 0 <= keep <= 1:
        raise ValueError(
            f"expected a whole number every >= 1 and 0 <= keep <= 1, found {every} and {keep}"
        )

    def init(key: Key, batch: Batch) -> State:
        return State(jnp.int32(0), algorithm.init(key, batch), jnp.int32(0))

    def step(key: Key, state: State, batch: Batch) -> tuple[State, Metrics]:
        own, metrics = algorithm.step(key, state.own, batch)
        return state.replace(step=own.step, own=own), metrics

    def refresh(key: Key, state: State, x: Array) -> State:
        is_due = (state.epoch > 0) & (state.epoch % every == 0)
        if until is not None:
            is_due &= state.epoch < until
        own = jax.lax.cond(is_due, lambda own: reset(key, own, x), lambda own: own, state.own)
        own = algorithm.refresh(key, own, x)
        return state.replace(own=own, epoch=state.epoch + 1)

    def reset(key, own, x):
        draw_key, cluster_key = jax.random.split(jax.random.fold_in(key, 1))
        two = Batch(x[:2], jnp.arange(min(2, len(x))), jnp.ones(min(2, len(x))))
        fresh = algorithm.init(draw_key, two)
        encoder = mixed(own.params["encoder"], fresh.params["encoder"], keep)
        own = own.replace(params=own.params | {"encoder": encoder})
        is_trained = "centroids" in own.params
        k = len(own.params["centroids"] if is_trained else own.centroids)
        some = np.linspace(0, len(x) - 1, min(len(x), max(_CLUSTERED, k))).astype(np.int32)
        z = algorithm.embed(own, x[some])
        centroids = kmeans.fit(cluster_key, z, k).centroids
        if not is_trained:
            return own.replace(centroids=centroids, counts=fresh.counts)
        params = own.params | {"centroids": centroids}
        return own.replace(params=params, opt_state=without_memory(own.opt_state))

    return Algorithm(
        init,
        step,
        refresh,
        lambda state, x: algorithm.embed(state.own, x),
        lambda state, z: algorithm.assign(state.own, z),
    )


def mixed(encoder: Params, fresh: Params, keep: float) -> Params:
    """`keep` of the encoder's weights and the rest of the fresh ones; its last layer as it is."""
    last = networks.last_layer(encoder)
    between = jax.tree.map(lambda a, b: keep * a + (1 - keep) * b, encoder, fresh)
    return between | {"params": between["params"] | {last: encoder["params"][last]}}


def without_memory(opt_state: AnyState) -> AnyState:
    """The state of an optimiser with its momentum of the centroids set to 0."""

    def forget(path, leaf):
        names = [getattr(part, "key", getattr(part, "name", None)) for part in path]
        is_momentum = "centroids" in names and "nu" not in names  # Adam's second moment
        return jnp.zeros_like(leaf) if is_momentum else leaf

    return jax.tree_util.tree_map_with_path(forget, opt_state)


def around_start(warm_start: Callable[..., AnyState]) -> Callable[[State, AnyState], State]:
    """The `warm_start` of an algorithm for its state inside."""
    return lambda state, pretrained: state.replace(own=warm_start(state.own, pretrained))
