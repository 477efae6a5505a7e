"""A small classifier whose features made rows are judged by. It sees labels: for scores only.

judge = fit(key, x, labels)      trained on four rows in five; `accuracy` is on the others
features(judge, x)               [n, 128], the last hidden layer
classes(judge, x)                [n], the most likely class of each row
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike

from deepclust_jax import networks
from deepclust_jax.types import Array, Key, Params

_WIDTHS = (512, 128)
_RATE, _BATCH, _STEPS = 1e-3, 256, 2000
_BLOCK = 4096  # rows at once


class Judge(NamedTuple):
    """A trained classifier of rows of one shape."""

    params: Params
    n_classes: int
    accuracy: float  # of the fifth of the rows that it was not trained on


def fit(key: Key, x: ArrayLike, labels: ArrayLike, *, n_classes: int | None = None) -> Judge:
    """Train a perceptron on rows [n, ...] and their labels [n], 0 to k - 1, for 2,000 steps.

    `n_classes` is k where these rows may not have the last classes; None: the largest label and 1.

    Raises:
        ValueError: not one label >= 0 for each row, fewer than 5 rows, or fewer than 2 classes.
    """
    x, labels = _flat(x), np.asarray(labels)
    if labels.shape != (len(x),) or len(x) < 5 or labels.min() < 0 or labels.max() < 1:
        raise ValueError(
            f"expected 5 rows or more and a label of 2 classes or more for each, found {len(x)} "
            f"rows and labels of shape {labels.shape}"
        )
    n_classes = n_classes or int(labels.max()) + 1
    split_key, init_key, order_key = jax.random.split(key, 3)
    order = np.asarray(jax.random.permutation(split_key, len(x)))
    left, seen = np.split(order, [len(x) // 5])
    net = _net(n_classes)
    params = net.init(init_key, x[:1])
    params = _train(order_key, params, x[seen], jnp.asarray(labels[seen], jnp.int32), n_classes)
    judge = Judge(params, n_classes, 0.0)
    return judge._replace(accuracy=float(np.mean(classes(judge, x[left]) == labels[left])))


def features(judge: Judge, x: ArrayLike) -> np.ndarray:
    """What made rows are compared by. [n, ...] -> [n, 128]."""
    return _in_blocks(judge, x)[0]


def classes(judge: Judge, x: ArrayLike) -> np.ndarray:
    """The most likely class of each row. [n, ...] -> [n] int64."""
    return _in_blocks(judge, x)[1].argmax(axis=1)


def _flat(x: ArrayLike) -> np.ndarray:
    x = np.asarray(x, np.float32)
    return x.reshape(len(x), -1)


def _net(n_classes: int) -> networks.Network:
    trunk, head = networks.mlp(_WIDTHS), networks.mlp((n_classes,))

    def init(key: Key, x: Array) -> Params:
        keys = jax.random.split(key)
        return {
            "trunk": trunk.init(keys[0], x),
            "head": head.init(keys[1], jnp.zeros((len(x), _WIDTHS[-1]))),
        }

    def apply(params: Params, x: Array) -> tuple[Array, Array]:
        found = jax.nn.relu(trunk.apply(params["trunk"], x))
        return found, head.apply(params["head"], found)

    return networks.Network(init, apply)


@partial(jax.jit, static_argnames="n_classes")
def _train(key: Key, params: Params, x: Array, labels: Array, n_classes: int) -> Params:
    net, tx = _net(n_classes), optax.adam(optax.linear_schedule(_RATE, 0.0, _STEPS))

    def cost(params: Params, rows: Array) -> Array:
        logits = net.apply(params, x[rows])[1]
        found = optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows])
        return jnp.mean(found)

    def step(carry, step_key):
        params, opt_state = carry
        rows = jax.random.randint(step_key, (_BATCH,), 0, len(x))
        updates, opt_state = tx.update(jax.grad(cost)(params, rows), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    keys = jax.random.split(key, _STEPS)
    return jax.lax.scan(step, (params, tx.init(params)), keys)[0][0]


def _in_blocks(judge: Judge, x: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, net = _flat(x), _net(judge.n_classes)
    blocks = [net.apply(judge.params, x[i : i + _BLOCK]) for i in range(0, len(x), _BLOCK)]
    found, logits = zip(*jax.device_get(blocks), strict=True)
    return np.concatenate(found), np.concatenate(logits)
