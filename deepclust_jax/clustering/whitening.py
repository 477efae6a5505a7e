"""Features on their principal axes with variance 1 on each, and of unit length: what DeepCluster
(Caron et al. 2018, section 3.3) gives to k-means.

    view = whitening.fit(features, 32)
    z = whitening.apply(view, features)

Features of networks have a few directions with most of the variance and many channels that say the
same: k-means on them as they are sees little else.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deepclust_jax.clustering import lloyd
from deepclust_jax.types import Array

_FLOOR = 1e-6  # of the largest variance: axes with less are rounding, and stay 0


class View(NamedTuple):
    """How features are seen."""

    mean: Array  # [m]
    axes: Array  # [m, d], each divided by the deviation along it, or by a power of that


def unfitted(m: int, d: int) -> View:
    """A view of the right shapes, before there is a fitted one."""
    return View(jnp.zeros(m), jnp.eye(m, d))


@partial(jax.jit, static_argnames=("d", "power"))
def fit(x: Array, d: int, *, power: float = 1.0) -> View:
    """The d leading principal axes of rows [n, m].

    Each is divided by the deviation along it to this power, up to one factor for all: 1 whitens, 0
    changes no ratio of distances; between, axes with much variance keep some of their weight.

    Raises:
        ValueError: fewer than d features.
    """
    m = x.shape[1]
    if not 1 <= d <= m:
        raise ValueError(f"expected 1 to {m} axes for {m} features, found {d}")
    mean = jnp.mean(x, axis=0)
    centred = x - mean[None, :]
    # Squares that neither overflow nor vanish.
    scale = jnp.maximum(jnp.max(jnp.abs(centred)), jnp.finfo(x.dtype).tiny)
    centred = centred / scale
    scatter = jnp.dot(centred.T, centred, precision=lloyd.EXACT) / len(x)
    variances, axes = principal_axes(scatter)
    floor = _FLOOR * jnp.maximum(variances[0], jnp.finfo(x.dtype).tiny)
    gain = jnp.where(variances > floor, jnp.maximum(variances, floor) ** (-0.5 * power), 0.0)
    return View(mean, (axes * gain[None, :])[:, :d] / scale)


def apply(view: View, x: Array) -> Array:
    """Whitened rows of unit length; 0 for a row at the mean. [n, m] -> [n, d]."""
    y = jnp.dot(x - view.mean[None, :], view.axes, precision=lloyd.EXACT)
    return lloyd.to_unit_length(y, y)


def principal_axes(scatter: Array) -> tuple[Array, Array]:
    """Variances along the principal axes, falling, and these. [m, m] -> [m], [m, m] by columns."""
    variances, axes = jnp.linalg.eigh(scatter)
    variances, axes = variances[::-1], axes[:, ::-1]
    # The sign of an axis is an accident of the decomposition: its largest entry becomes positive.
    largest = jnp.take_along_axis(axes, jnp.argmax(jnp.abs(axes), axis=0)[None, :], axis=0)
    return variances, axes * jnp.sign(largest)
