"""Nearest centroids in one kernel, for GPU and TPU: the scores never leave the chip.

XLA writes the n x k scores to memory and reads them back for the minimum. Here a program holds a
block of rows, walks over tiles of centroids, and keeps the lowest score so far and its number.

Written in Pallas, which lowers it by Triton for GPUs and by Mosaic for TPUs. Tests run it step by
step on a CPU and lower it for both; where there is a device, `works` tries it before it is used.
On a GPU a product is three of TF32 (`X3`), of the parts of 11 bits that float32 numbers split into:
as good as float32 but for the last two bits, and eight times as fast as float32 there. Mosaic for
GPUs has no such products, and Pallas will let go of Triton: when it does, XLA's blocks take over
again.
"""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from deepclust_jax.types import Array

# What JAX lowers for, by the name of the backend.
LOWERED = {"gpu": ("cuda", "rocm"), "tpu": ("tpu",)}

EXACT = jax.lax.Precision.HIGHEST
X3 = jax.lax.DotAlgorithmPreset.TF32_TF32_F32_X3

# Most features, beyond which writing the scores costs little beside the product. On an H200 three
# products by XLA take 1.7 times less time at 768 features and 1.2 times more at 128.
_MOST_FEATURES = {"gpu": 128, "tpu": 256}
_VMEM = 2**20  # numbers that centroids may be on a TPU: a quarter of the memory of a core, 4 MiB


class Sizes(NamedTuple):
    """How a kernel divides its work."""

    block: int  # rows of a program
    tile: int  # centroids at a time


def width(d: int) -> int:
    """Features that rows of d must be padded to with zeros: a power of two, as Triton asks for."""
    return max(1 << (d - 1).bit_length(), 16)


def chosen(k: int, platform: str) -> Sizes:
    """For k centroids."""
    tile = max(1 << (k - 1).bit_length(), 16)
    if platform == "gpu":
        return Sizes(128, min(tile, 64))  # the fastest of nine on an H200, at 64 and 128 features
    return Sizes(256, min(tile, 128))  # the lanes of a vector, or a multiple


def nearest(
    x: Array,
    directions: Array,
    offsets: Array,
    *,
    platform: str,
    interpret: bool = False,
) -> Array:
    """argmin_j offsets_j - 2 x . directions_j. [n, w], [k, d], [k] -> [n] int32.

    Ties go to the lowest number. Rows are float32, padded to w = `width(d)` features.
    `interpret` runs the kernel step by step on any platform, for tests.
    """
    (n, w), k = x.shape, directions.shape[0]
    own = chosen(k, platform)
    directions = jnp.pad(directions, ((0, -k % own.tile), (0, w - directions.shape[1])))
    offsets = jnp.pad(offsets, (0, -k % own.tile), constant_values=jnp.inf)
    rest, labels = n % own.block, jnp.zeros(0, jnp.int32)
    if n >= own.block:
        kernel = _by_rows if platform == "gpu" else _by_columns
        precision = X3 if platform == "gpu" and not interpret else EXACT
        lined = offsets[None, :] if platform == "gpu" else offsets[:, None]
        labels = pl.pallas_call(
            partial(kernel, own=own, precision=precision),
            grid=(n // own.block,),
            in_specs=[
                pl.BlockSpec((own.block, w), lambda i: (i, 0)),
                pl.BlockSpec(directions.shape, lambda i: (0, 0)),
                pl.BlockSpec(lined.shape, lambda i: (0, 0)),
            ],
            out_specs=pl.BlockSpec((1, own.block), lambda i: (0, i)),
            out_shape=jax.ShapeDtypeStruct((1, n - rest), jnp.int32),
            interpret=interpret,
            compiler_params=_compiler(platform),
        )(x, directions, lined)[0]
    if rest:  # less than a block: by XLA
        scores = offsets[:, None] - 2.0 * jnp.dot(directions, x[n - rest :].T, precision=EXACT)
        labels = jnp.concatenate([labels, jnp.argmin(scores, axis=0).astype(jnp.int32)])
    return labels


def _compiler(platform):
    if platform != "gpu":
        return None
    from jax.experimental.pallas import triton

    return triton.CompilerParams(num_warps=4, num_stages=2)


def _by_rows(x_ref, directions_ref, offsets_ref, labels_ref, *, own, precision):
    """For GPUs: scores [block, tile], whose minimum over a row stays within few threads."""
    x, k = x_ref[...], directions_ref.shape[0]

    def step(t, carry):
        best, labels = carry
        at = pl.ds(t * own.tile, own.tile)
        product = jax.lax.dot_general(
            x, directions_ref[at, :], (((1,), (1,)), ((), ())),
            precision=precision, preferred_element_type=jnp.float32,
        )  # fmt: skip
        scores = offsets_ref[0, at][None, :] - 2.0 * product
        number = t * own.tile + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
        lowest = jnp.min(scores, axis=1)
        first = jnp.min(jnp.where(scores == lowest[:, None], number, k), axis=1)
        is_lower = lowest < best  # a tie stays with the tile before
        return jnp.where(is_lower, lowest, best), jnp.where(is_lower, first, labels)

    start = jnp.full(x.shape[:1], jnp.inf, jnp.float32), jnp.zeros(x.shape[:1], jnp.int32)
    labels_ref[0, :] = jax.lax.fori_loop(0, k // own.tile, step, start)[1]


def _by_columns(x_ref, directions_ref, offsets_ref, labels_ref, *, own, precision):
    """For TPUs: scores [tile, block], rows along the lanes."""
    x, k = x_ref[...], directions_ref.shape[0]

    def step(t, carry):
        best, labels = carry
        at = pl.ds(t * own.tile, own.tile)
        product = jax.lax.dot_general(
            directions_ref[at, :], x, (((1,), (1,)), ((), ())),
            precision=precision, preferred_element_type=jnp.float32,
        )  # fmt: skip
        scores = offsets_ref[at, :] - 2.0 * product
        number = t * own.tile + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
        lowest = jnp.min(scores, axis=0, keepdims=True)
        first = jnp.min(jnp.where(scores == lowest, number, k), axis=0, keepdims=True)
        is_lower = lowest < best  # a tie stays with the tile before
        return jnp.where(is_lower, lowest, best), jnp.where(is_lower, first, labels)

    start = jnp.full((1, x.shape[0]), jnp.inf, jnp.float32), jnp.zeros((1, x.shape[0]), jnp.int32)
    labels_ref[...] = jax.lax.fori_loop(0, k // own.tile, step, start)[1]


def works(d: int, k: int, platform: str) -> bool:
    """Whether the kernel runs here for such rows and gives the right labels; tried once."""
    return not jax.config.jax_enable_x64 and _works(d, k, platform)  # Mosaic counts in 32 bits


@cache
def _works(d, k, platform):
    is_fit = platform == "gpu" or -(-k // 128) * 128 * width(d) <= _VMEM
    is_fit = is_fit and d <= _MOST_FEATURES.get(platform, 0)
    if platform != jax.default_backend() or not is_fit:
        return False
    x, c, offsets = trial(d, k)
    padded = np.pad(x, ((0, 0), (0, width(d) - d)))
    try:  # compiled ahead of time: that runs also while another program is traced
        kernel = jax.jit(partial(nearest, platform=platform))
        found = np.asarray(kernel.lower(padded, c, offsets).compile()(padded, c, offsets))
    except Exception:  # whatever a compiler says: there is another way
        return False
    return is_right(x, c, offsets, found)


def trial(d: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows [600, d], centroids [k, d] and offsets [k] that only products of full precision tell
    apart: each second centroid is the one before, moved by 2^-13 of itself."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, d)).astype(np.float32)
    c = np.repeat(rng.normal(size=(-(-k // 2), d)), 2, axis=0)[:k]
    c[1::2] *= 1.0 + 2.0**-13 * rng.normal(size=c[1::2].shape)
    c = c.astype(np.float32)
    return x, c, np.sum(c.astype(np.float64) ** 2, axis=1).astype(np.float32)


def is_right(x: np.ndarray, c: np.ndarray, offsets: np.ndarray, labels: np.ndarray) -> bool:
    """Whether labels [n] are those of the lowest scores, up to the rounding of float32."""
    scores = offsets[None].astype(np.float64) - 2.0 * x.astype(np.float64) @ c.T.astype(np.float64)
    if labels.min() < 0 or labels.max() >= len(c):
        return False
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(c, axis=1).max()
    excess = scores[np.arange(len(x)), labels] - scores.min(axis=1)
    return bool(np.all(excess <= 2.0**-20 * (lengths + offsets.max())))
