"""Losses: arrays in, one number per example out. No parameters, no mean; `masked_mean` averages.

Sums run over features, as the papers write them, so the weight of one term against another depends
on it: dividing a reconstruction by the number of features divides its weight by that number.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepclust_jax.types import Array


def masked_mean(per_example: Array, mask: Array) -> Array:
    """Mean over the rows that count. [b], [b] of 0/1 -> []; 0 where no row counts."""
    if per_example.shape != mask.shape:
        raise ValueError(
            f"expected one number for each row of the mask {list(mask.shape)}, found shape "
            f"{list(per_example.shape)}; sum over the features first"
        )
    # `where`, not a product: padding that overflows would give 0 * inf = nan.
    kept = jnp.where(mask > 0, per_example * mask, 0.0)
    return jnp.sum(kept) / jnp.maximum(jnp.sum(mask), 1.0)


def reconstruction(x: Array, x_hat: Array) -> Array:
    """Squared error summed over all features. [b, ...], [b, ...] -> [b]."""
    if x.shape != x_hat.shape:
        raise ValueError(f"expected a reconstruction of shape {x.shape}, found {x_hat.shape}")
    return jnp.sum((x - x_hat) ** 2, axis=tuple(range(1, x.ndim)))


def total_variance(x: Array, mask: Array) -> Array:
    """Variance of the rows that count, summed over features. [b, ...], [b] of 0/1 -> [], > 0."""
    rows = jnp.where(mask[:, None] > 0, x.reshape(x.shape[0], -1), 0.0)
    mean = jnp.sum(rows, axis=0, keepdims=True) / jnp.maximum(jnp.sum(mask), 1.0)
    variance = masked_mean(jnp.sum((rows - mean) ** 2, axis=-1), mask)
    # A batch of equal rows, such as a last batch of one, has none but rounding; its mean square
    # serves, and for rows of zeros 1.
    square = jnp.sum(mean**2)
    spare = jnp.where(square > 0, square, 1.0)
    return jnp.where(variance > 1e-12 * square, variance, spare)


def squared_distances(z: Array, centroids: Array) -> Array:
    """Squared distance of every code to every centroid. [b, d], [k, d] -> [b, k].

    By direct differences: exact for near points, and its gradient is finite at distance zero. For
    batches; `clustering.kmeans.assign` is the blocked form for whole data sets.
    """
    return jnp.sum((z[:, None, :] - centroids[None, :, :]) ** 2, axis=-1)


def to_own_centroid(z: Array, centroids: Array, labels: Array) -> Array:
    """Squared distance to a given centroid (DCN, eq. 4). [b, d], [k, d], [b] int -> [b]."""
    return jnp.sum((z - centroids[labels]) ** 2, axis=-1)


def soft_kmeans(
    z: Array, centroids: Array, alpha: Array | float, *, clean: Array | None = None
) -> Array:
    """Squared distance weighted by a softmin over clusters (DKM, eq. 3). [b, d], [k, d] -> [b].

    `alpha` >= 0 is the inverse temperature: 0 weighs all clusters alike, infinity is k-means.
    Where `z` are codes of augmented rows, `clean` [b, d] are those of the rows as they were, and
    the weights are theirs: fixed targets, without a gradient.
    """
    sqdist = squared_distances(z, centroids)
    by = sqdist if clean is None else squared_distances(clean, centroids)
    weights = jax.nn.softmax(-alpha * by, axis=-1)  # subtracts the row's largest exponent
    if clean is not None:
        # Between two clusters the gradient of a weight is alpha times a difference of distances,
        # which is 0 there for one row but not for two: it would burst at alpha = 1000.
        weights = jax.lax.stop_gradient(weights)
    return jnp.sum(weights * sqdist, axis=-1)


def value_and_grad(loss: Callable[..., tuple[Array, dict[str, Array]]]) -> Callable[..., Any]:
    """`jax.value_and_grad` of an algorithm's loss: (params, ...) -> ((value, metrics), gradients).

    Raises:
        TypeError: the loss returns something else than (value [], dict of metrics []), or the
            metric "loss", which is the value's own.
    """

    def checked(*args, **static):
        found = loss(*args, **static)
        wanted = "expected a loss to return (value [], dict of metrics [])"
        if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], dict)):
            raise TypeError(f"{wanted}, found {_kind(found)}; return both, {{}} for no metrics")
        for name, value in (("value", found[0]), *found[1].items()):
            if not isinstance(name, str):
                raise TypeError(f"{wanted}, found a metric called {name!r}; give it a name")
            if not isinstance(value, jax.Array | np.ndarray | np.generic | float | int):
                raise TypeError(f"{wanted}, found {name} as {_kind(value)}; return an array")
            if jnp.shape(value):
                found_shape = f"{name} {list(jnp.shape(value))}"
                raise TypeError(f"{wanted}, found {found_shape}; use losses.masked_mean")
        if "loss" in found[1]:
            raise TypeError(f"{wanted}, found a metric 'loss', the name of the value; rename it")
        return jnp.asarray(found[0], float), found[1]

    return jax.value_and_grad(checked, has_aux=True)


def _kind(found: Any) -> str:
    if isinstance(found, tuple):
        return f"({', '.join(_kind(item) for item in found)})"
    return "an array" if isinstance(found, jax.Array) else f"a {type(found).__name__}"
