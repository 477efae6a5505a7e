"""The one training loop, for one seed or a population of seeds, resident or streamed data.

    found = train.fit(jax.random.key(0), algorithm, x, epochs=50)                     # one run
    found = train.fit(jax.random.split(jax.random.key(0), 10), algorithm, x, epochs=50)  # ten runs

A run is a function of its key, the rows and their order: every draw is `fold_in` of the key and a
counter that the state holds, so a run that stops and goes on equals one that never stopped.
"""

import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepclust_jax import stream
from deepclust_jax.types import Algorithm, Array, Batch, Key, Metrics, State

# What a run draws from its key, one stream for each purpose.
_INIT, _ORDER, _STEP, _REFRESH, _PARTNER = range(5)

_BLOCK = 1024  # rows at most that `embed` puts on the device at once


class Diverged(RuntimeError):
    """The loss of every run is no longer finite."""


class Fit(NamedTuple):
    """A trained state, with a leading seed axis [S] if `fit` was given S keys."""

    state: State
    metrics: dict[str, np.ndarray]  # means over the rows of an epoch: [epochs] or [epochs, S]
    seconds: float  # training, without compilation
    compile_seconds: float


def fit(
    key: Key,
    algorithm: Algorithm,
    x: Any,
    *,
    epochs: int,
    batch_size: int = 256,
    neighbors: Array | None = None,
    state: State | None = None,
    refresh_every: int = 1,
    refresh_at_end: bool = False,
    resident: bool | None = None,
    on_epoch: Callable[[int, State, dict[str, np.ndarray]], None] | None = None,
) -> Fit:
    """Train on rows x [n, ...] until `epochs` epochs are done. -> Fit.

    Args:
        key: one key [], or keys [S] for S independent runs in one compiled program.
        algorithm: the method; see `types.Algorithm`.
        x: rows: a NumPy or JAX array, or anything with `shape` and `x[array of indices]`.
        epochs: passes over the data, counted from the start of training, not from `state`.
        batch_size: rows per step; the last batch of an epoch is padded and masked.
        neighbors: row numbers [n, m], or [S, n, m] for each of S keys its own; each row of a batch
            comes with one of its m neighbours, drawn anew in every epoch, as `batch.partner`. None:
            no partners.
        state: where to go on from (a warm start, or the state of a run that stopped); the number
            of its steps decides the epoch. None starts from `algorithm.init`.
        refresh_every: epochs between calls of `algorithm.refresh`, which comes first in an epoch;
            0 never calls it.
        refresh_at_end: call it once more after the last epoch: the k-means of an autoencoder.
        resident: keep all rows on the device, an epoch being one compiled call; or stream batches
            from the host. None streams memory maps, lazy rows, and what would fill over half of
            the device.
        on_epoch: called after every epoch with (epochs done, state [S, ...], its metrics [S]). The
            state is only valid during the call.

    Raises:
        TypeError: key is no key of `jax.random.key`, or x no array.
        ValueError: x, epochs, batch_size or neighbors are out of range, or x of the host is not
            finite.
        Diverged: the loss of every run became NaN or infinite. A population goes on without
            those that did; their metrics show it.
    """
    _check(key, x, epochs, batch_size, neighbors)
    keys = key[None] if key.ndim == 0 else key
    if neighbors is not None:
        shape = (len(keys), *neighbors.shape[-2:])
        neighbors = jnp.broadcast_to(jnp.asarray(neighbors, jnp.int32), shape)
    batch_size = min(batch_size, x.shape[0])
    steps = -(-x.shape[0] // batch_size)
    if state is None:
        state = init(key, algorithm, x, batch_size=batch_size)
    # A copy: the loop donates its state, and the caller keeps the one it gave.
    state = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state)
    state = jax.tree.map(lambda leaf: leaf[None], state) if key.ndim == 0 else state
    if resident is None:
        resident = stream.fits_on_device(x)
    loop = _resident if resident else _streamed
    refresh_due = [refresh_every > 0 and e % refresh_every == 0 for e in range(epochs)]
    first = int(state.step[0]) // steps
    run_epoch, run_refresh, compile_seconds = loop(
        keys, algorithm, x, neighbors, state, batch_size, any(refresh_due[first:]) or refresh_at_end
    )
    history, start = [], time.perf_counter()
    for epoch in range(first, epochs):
        if refresh_due[epoch]:
            state = run_refresh(state, epoch)
        state, metrics = run_epoch(state, epoch)
        history.append({name: np.asarray(values) for name, values in metrics.items()})
        _check_finite(history[-1].get("loss"), epoch)
        if on_epoch is not None:
            on_epoch(epoch + 1, state, history[-1])
    if refresh_at_end:
        state = run_refresh(state, epochs)
    jax.block_until_ready(state)
    seconds = time.perf_counter() - start
    metrics = {name: np.stack([row[name] for row in history]) for name in (history or [{}])[0]}
    if key.ndim == 0:
        state = jax.tree.map(lambda leaf: leaf[0], state)
        metrics = {name: values[:, 0] for name, values in metrics.items()}
    return Fit(state, metrics, seconds, compile_seconds)


def init(key: Key, algorithm: Algorithm, x: Any, *, batch_size: int = 256) -> State:
    """The state `fit` starts from: [] for one key, [S, ...] for keys [S]."""
    rows = np.arange(min(batch_size, x.shape[0]))
    example = Batch(_to_device(x[rows]), jnp.asarray(rows, jnp.int32), jnp.ones(len(rows)))
    args = (key[None] if key.ndim == 0 else key, example)
    states = _mapped(_init_one, algorithm, shared=1)(*args)
    return states if key.ndim else jax.tree.map(lambda leaf: leaf[0], states)


def refresh(key: Key, algorithm: Algorithm, state: State, x: Any, epoch: int = 0) -> State:
    """`algorithm.refresh` on all rows, for one state or, with keys [S], a population."""
    if key.ndim == 0:
        key, state = key[None], jax.tree.map(lambda leaf: leaf[None], state)
        return jax.tree.map(lambda leaf: leaf[0], refresh(key, algorithm, state, x, epoch))
    args = (key, state, stream.sample(x), jnp.int32(epoch))
    return _mapped(_refresh_one, algorithm, shared=2)(*args)


def embed(algorithm: Algorithm, states: State, x: Any) -> tuple[np.ndarray, np.ndarray]:
    """Codes and labels of all rows under every state of a population. -> [S, n, d], [S, n].

    Of a single state: [n, d], [n]. Rows go to the device in blocks whose size depends on that of
    a row alone, so that a row gets the same code whatever the rows beside it.
    """
    if states.step.ndim == 0:
        z, labels = embed(algorithm, jax.tree.map(lambda leaf: leaf[None], states), x)
        return z[0], labels[0]
    block = min(_BLOCK, max(64, 2**22 // math.prod(x.shape[1:])))
    # One state after another: what is computed, and so the rounding, is as of a single state.
    call, parts = _embed_jitted(algorithm), []
    for start in range(0, x.shape[0], block):
        rows = np.asarray(x[start : start + block], np.float32)
        padded = np.pad(rows, [(0, block - len(rows))] + [(0, 0)] * (rows.ndim - 1))
        padded = _to_device(padded)
        found = [jax.device_get(call(states, s, padded)) for s in range(len(states.step))]
        parts.append(tuple(np.stack(arrays)[:, : len(rows)] for arrays in zip(*found, strict=True)))
    return tuple(np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))


def _over_seeds(function: Callable, shared: int, in_turn: bool) -> Callable:
    """`function` over the leading axis of its arguments, but for the last `shared` of them."""

    def mapped(*args):
        split = len(args) - shared
        own, common = args[:split], args[split:]
        # One seed after another where a core does the work: there a batched product is slower
        # than a plain one; and `in_turn`. The results are the same.
        if in_turn or jax.default_backend() == "cpu":
            return jax.lax.map(lambda own: function(*own, *common), own)
        return jax.vmap(lambda *own: function(*own, *common))(*own)

    mapped.__name__ = function.func.__name__.strip("_")  # what profiles and logs of JAX show
    return mapped


@functools.lru_cache(maxsize=64)
def _jitted(function, static, shared, backend, donate=()) -> Callable:
    """`function(*static, ...)` over seeds, jitted once for all calls of its kind."""
    del backend  # part of the key: `_over_seeds` asks for it
    # k-means fills a device with one seed, and in step with others waits for the slowest.
    over = _over_seeds(functools.partial(function, *static), shared, function is _refresh_one)
    return jax.jit(over, donate_argnums=donate)


@functools.lru_cache(maxsize=64)
def _embed_jitted(algorithm: Algorithm) -> Callable:
    return jax.jit(functools.partial(_embed_one, algorithm))


def _mapped(function: Callable, *static, shared: int) -> Callable:
    return _jitted(function, static, shared, jax.default_backend())


def _compiled(
    function: Callable, static: tuple, args: tuple, *, shared: int = 0, donate: tuple = (1,)
) -> Callable:
    """The same, compiled ahead for these arguments and donating some: the second, the state."""
    leaves, tree = jax.tree.flatten(args)
    shapes = tuple((leaf.shape, leaf.dtype, _placement(leaf)) for leaf in leaves)
    own = jax.config
    settings = jax.default_backend(), own.jax_default_device, own.jax_default_matmul_precision
    return _compile(function, static, shared, settings, tree, shapes, donate)


@functools.lru_cache(maxsize=64)
def _compile(function, static, shared, settings, tree, shapes, donate) -> Callable:
    args = tree.unflatten(
        jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype, sharding in shapes
    )
    return _jitted(function, static, shared, settings[0], donate=donate).lower(*args).compile()


def _placement(leaf: Any):
    """Where an array was put on purpose, or None."""
    return leaf.sharding if isinstance(leaf, jax.Array) and leaf.committed else None


def _order(key: Key, epoch: Array, n: int, batch_size: int) -> tuple[Array, Array]:
    """Rows of every step of an epoch, and their mask. -> [steps, b] int32, [steps, b]."""
    steps = -(-n // batch_size)
    order_key = jax.random.fold_in(jax.random.fold_in(key, _ORDER), epoch)
    order = jax.random.permutation(order_key, n).astype(jnp.int32)
    padding = steps * batch_size - n
    index = jnp.pad(order, (0, padding)).reshape(steps, batch_size)
    mask = jnp.pad(jnp.ones(n), (0, padding)).reshape(steps, batch_size)
    return index, mask


def _partners(key: Key, epoch: Array, index: Array, neighbors: Any) -> Array:
    """A neighbour of each row of `index` [...], drawn for this epoch; their row numbers [...]."""
    partner_key = jax.random.fold_in(jax.random.fold_in(key, _PARTNER), epoch)
    column = jax.random.randint(partner_key, index.shape, 0, neighbors.shape[1])
    return neighbors[index, column]


def _init_one(algorithm: Algorithm, key: Key, example: Batch) -> State:
    return algorithm.init(jax.random.fold_in(key, _INIT), example)


def _embed_one(algorithm: Algorithm, states: State, s: Array, x: Array) -> tuple[Array, Array]:
    state = jax.tree.map(lambda leaf: leaf[s], states)
    z = algorithm.embed(state, x)
    return z, algorithm.assign(state, z)


def _order_one(n, batch_size, key, neighbors, epoch) -> tuple[Array, Array, Array | None]:
    index, mask = _order(key, epoch, n, batch_size)
    return index, mask, None if neighbors is None else _partners(key, epoch, index, neighbors)


def _step_one(algorithm: Algorithm, key: Key, state: State, batch: Batch):
    return algorithm.step(jax.random.fold_in(key, _STEP), state, batch)


def _refresh_one(algorithm: Algorithm, key: Key, state: State, x: Array, epoch: Array) -> State:
    return algorithm.refresh(jax.random.fold_in(jax.random.fold_in(key, _REFRESH), epoch), state, x)


def _epoch_one(
    algorithm: Algorithm, batch_size: int, key, state, neighbors, x, epoch
) -> tuple[State, Metrics]:
    index, mask, partner = _order_one(x.shape[0], batch_size, key, neighbors, epoch)

    def body(state, rows):
        index, mask, partner = rows
        partner = None if partner is None else x[partner]
        batch = Batch(x[index], index, mask, partner=partner)
        return _step_one(algorithm, key, state, batch)

    state, metrics = jax.lax.scan(body, state, (index, mask, partner))
    return state, _means(metrics, jnp.sum(mask, axis=1))


def _means(metrics: Mapping[str, Any], weights: Any) -> dict[str, Any]:
    """Of metrics [steps, ...], by the rows of each step. Where one of them is whether a step was
    `taken`, the others are of those that were, and 0 if none was."""
    means = {}
    for name, values in metrics.items():
        counted = weights if name == "taken" else weights * metrics.get("taken", 1.0)
        total = counted.sum(axis=0)
        means[name] = (counted * values).sum(axis=0) / (total + (total == 0))
    return means


def _resident(keys, algorithm, x, neighbors, state, batch_size, refreshes):
    """Epoch and refresh as one compiled call each; rows and shuffling on the device."""
    x, start = _to_device(x), time.perf_counter()
    common = x, jnp.int32(0)
    args = keys, state, neighbors, *common
    run = _compiled(_epoch_one, (algorithm, batch_size), args, shared=2)
    run_refresh = None
    if refreshes:
        run_refresh = _compiled(_refresh_one, (algorithm,), (keys, state, *common), shared=2)
    return (
        lambda state, epoch: run(keys, state, neighbors, x, jnp.int32(epoch)),
        lambda state, epoch: run_refresh(keys, state, x, jnp.int32(epoch)),
        time.perf_counter() - start,
    )


def _streamed(keys, algorithm, x, neighbors, state, batch_size, refreshes):
    """The same steps, fed by a host thread that gathers batches ahead of the device."""
    sample = _to_device(stream.sample(x)) if refreshes else None
    start, first = time.perf_counter(), jnp.int32(0)
    static = x.shape[0], batch_size
    order_all = _compiled(_order_one, static, (keys, neighbors, first), shared=1, donate=())
    rows = jax.ShapeDtypeStruct((len(keys), batch_size, *x.shape[1:]), jnp.float32)
    batch = Batch(
        rows,
        jax.ShapeDtypeStruct((len(keys), batch_size), jnp.int32),
        jax.ShapeDtypeStruct((len(keys), batch_size), jnp.float32),
        partner=None if neighbors is None else rows,
    )
    run_step = _compiled(_step_one, (algorithm,), (keys, state, batch))
    run_refresh = None
    if refreshes:
        args = keys, state, sample, first
        run_refresh = _compiled(_refresh_one, (algorithm,), args, shared=2)
    seconds = time.perf_counter() - start

    def run_epoch(state, epoch):
        found = jax.device_get(order_all(keys, neighbors, jnp.int32(epoch)))  # [S, steps, b]
        index, mask, partner = jax.tree.map(lambda a: np.swapaxes(a, 0, 1), found)
        metrics = []
        for batch in stream.batches(x, index, mask, partner):
            state, step_metrics = run_step(keys, state, batch)
            metrics.append(step_metrics)
        rows = jax.device_get(metrics)
        found = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return state, _means(found, mask[:, 0].sum(axis=1, keepdims=True))

    return (
        run_epoch,
        lambda state, epoch: run_refresh(keys, state, sample, jnp.int32(epoch)),
        seconds,
    )


def _to_device(x: Any) -> Array:
    return jnp.asarray(x, jnp.float32)


def _check(key: Key, x: Any, epochs: int, batch_size: int, neighbors: Any) -> None:
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise TypeError(
            f"expected key jax.random.key(seed) or keys [S], found {type(key).__name__} {key}"
        )
    if key.ndim > 1:
        raise ValueError(f"expected one key [] or keys [S], found shape {key.shape}")
    if not hasattr(x, "shape"):
        raise TypeError(f"expected rows x as an array [n, ...], found a {type(x).__name__}")
    if len(x.shape) < 2 or math.prod(x.shape) == 0:
        raise ValueError(f"expected rows x [n, ...] with n > 0, found shape {tuple(x.shape)}")
    if isinstance(x, np.ndarray) and not isinstance(x, np.memmap):  # others are read in batches
        sound = np.isfinite(x).reshape(len(x), -1).all(axis=1)
        if not sound.all():
            raise ValueError(
                f"expected rows x of finite numbers, found others in row {int(sound.argmin())}"
            )
    if epochs < 0 or batch_size < 1:
        raise ValueError(
            f"expected epochs >= 0 and batch_size >= 1, found {epochs} and {batch_size}"
        )
    if neighbors is None:
        return
    n, found = x.shape[0], getattr(neighbors, "shape", ())
    fits = len(found) == 2 or (len(found) == 3 and key.ndim == 1 and found[0] == len(key))
    if not fits or found[-2] != n or found[-1] < 1:
        wanted = f"[{n}, m] or, for each of the keys [S], [S, {n}, m]"
        raise ValueError(f"expected neighbors {wanted}, found {found or type(neighbors).__name__}")
    least, most = int(neighbors.min()), int(neighbors.max())
    if not 0 <= least <= most < n:
        raise ValueError(f"expected neighbors from 0 to {n - 1}, found {least} to {most}")


def _check_finite(loss: np.ndarray | None, epoch: int) -> None:
    if loss is not None and not np.isfinite(loss).any():
        raise Diverged(
            f"expected a finite loss, found {loss[0]} in epoch {epoch + 1}; "
            "lower the learning rate, scale the rows, and see that they are finite, and the "
            "centroids it started from (those of an autoencoder are after its refresh)"
        )
