"""The whole contract on one screen: what a batch, a network and an algorithm are."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
Key = jax.Array  # typed, from jax.random.key
Params = Any  # a tree of arrays
State = Any  # a flax.struct.dataclass of arrays with a field `step`, one class per algorithm
Metrics = dict[str, Array]  # scalars, for people; the next step never reads them


class Batch(NamedTuple):
    """Rows of one step. `x`, `clean` and `partner` are data; `index` and `mask` say which rows
    they are."""

    x: Array  # [b, ...] float32, changed at random if the algorithm augments
    index: Array  # [b] int32, row in the data set: pseudo-labels and targets live in the state
    mask: Array  # [b] float32, 1 for a row and 0 for padding
    clean: Array | None = None  # [b, ...] the rows before an augmentation; None: `x` is unchanged
    partner: Array | None = None  # [b, ...] a neighbour of each row, where neighbours are given


class Network(NamedTuple):
    """A network as two pure functions."""

    init: Callable[..., Params]  # (key, *example) -> params; an example has a batch axis
    apply: Callable[..., Array]  # (params, *inputs) -> output


class Algorithm(NamedTuple):
    """A clustering method as five pure functions; every one can be jitted and vmapped."""

    init: Callable[[Key, Batch], State]
    step: Callable[[Key, State, Batch], tuple[State, Metrics]]
    refresh: Callable[[Key, State, Array], State]  # k-means, targets, schedules; between epochs
    embed: Callable[[State, Array], Array]  # (state, x [n, ...]) -> z [n, d]
    assign: Callable[[State, Array], Array]  # (state, z [n, d]) -> labels [n] int32
