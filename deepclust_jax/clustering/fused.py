"""Nearest centroids in one kernel, for GPU and TPU: the scores never leave the chip.

XLA writes the n x k scores to memory and reads them back for the minimum. Here a program holds a
block of rows, walks over tiles of centroids, and keeps the lowest score so far and its number.

Written in Pallas, which lowers it by Triton for GPUs and by Mosaic for TPUs. Tests run it step by
step on a CPU and lower it for both; where there is a device, `works` tries it before it is used.
Mosaic for GPUs has no products of full float32 precision, and Pallas will let go of Triton: when it
does, XLA's blocks take over again.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from deepclust_jax.types import Array

# What JAX lowers for, by the name of the backend.
LOWERED = {"gpu": ("cuda", "rocm"), "tpu": ("tpu",)}

_MOST_FEATURES = 256  # beyond, the product takes longer than to write and read the scores
_VMEM = 2**20  # numbers that centroids may be on a TPU: a quarter of the memory of a core, 4 MiB


def width(d: int) -> int:
    """Features that rows of d must be padded to with zeros: a power of two, as Triton asks for."""
    return max(1 << (d - 1).bit_length(), 16)


def sizes(w: int, k: int, platform: str) -> tuple[int, int]:
    """Rows of a program and centroids of a tile, for rows of w features."""
    if platform == "gpu":  # 64 and 32 KiB of the shared memory of a processor
        block, tile = max(min(256, 2**14 // w), 64), max(min(128, 2**13 // w), 16)
    else:
        block, tile = 256, 128  # the lanes of a vector, or a multiple
    return block, min(tile, max(1 << (k - 1).bit_length(), 16))


def nearest(
    x: Array, directions: Array, offsets: Array, *, platform: str, interpret: bool = False
) -> Array:
    """argmin_j offsets_j - 2 x . directions_j. [n, w], [k, d], [k] -> [n] int32.

    Ties go to the lowest number. Rows are float32, padded to w = `width(d)` features; products are
    of full precision.
    `interpret` runs the kernel step by step on any platform, for tests.
    """
    (n, w), k = x.shape, directions.shape[0]
    block, tile = sizes(w, k, platform)
    directions = jnp.pad(directions, ((0, -k % tile), (0, w - directions.shape[1])))
    offsets = jnp.pad(offsets, (0, -k % tile), constant_values=jnp.inf)[:, None]
    rest, labels = n % block, jnp.zeros(0, jnp.int32)
    if n >= block:
        labels = pl.pallas_call(
            partial(_kernel, tile=tile),
            grid=(n // block,),
            in_specs=[
                pl.BlockSpec((block, w), lambda i: (i, 0)),
                pl.BlockSpec(directions.shape, lambda i: (0, 0)),
                pl.BlockSpec(offsets.shape, lambda i: (0, 0)),
            ],
            out_specs=pl.BlockSpec((1, block), lambda i: (0, i)),
            out_shape=jax.ShapeDtypeStruct((1, n - rest), jnp.int32),
            interpret=interpret,
            compiler_params=_compiler(platform),
        )(x, directions, offsets)[0]
    if rest:  # less than a block: by XLA
        precision = jax.lax.Precision.HIGHEST
        scores = offsets - 2.0 * jnp.dot(directions, x[n - rest :].T, precision=precision)
        labels = jnp.concatenate([labels, jnp.argmin(scores, axis=0).astype(jnp.int32)])
    return labels


def _compiler(platform):
    if platform != "gpu":
        return None
    from jax.experimental.pallas import triton

    return triton.CompilerParams()


def _kernel(x_ref, directions_ref, offsets_ref, labels_ref, *, tile):
    x = x_ref[...]
    k = directions_ref.shape[0]

    def step(t, carry):
        best, labels = carry
        at = pl.ds(t * tile, tile)
        product = jax.lax.dot_general(
            directions_ref[at, :], x, (((1,), (1,)), ((), ())),
            precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32,
        )  # fmt: skip
        scores = offsets_ref[at, :] - 2.0 * product
        number = t * tile + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
        lowest = jnp.min(scores, axis=0, keepdims=True)
        first = jnp.min(jnp.where(scores == lowest, number, k), axis=0, keepdims=True)
        is_lower = lowest < best  # a tie stays with the tile before
        return jnp.where(is_lower, lowest, best), jnp.where(is_lower, first, labels)

    start = jnp.full((1, x.shape[0]), jnp.inf, jnp.float32), jnp.zeros((1, x.shape[0]), jnp.int32)
    labels_ref[...] = jax.lax.fori_loop(0, k // tile, step, start)[1]


def works(d: int, k: int, platform: str) -> bool:
    """Whether the kernel runs here for such rows and gives the right labels; tried once."""
    return not jax.config.jax_enable_x64 and _works(d, k, platform)  # Mosaic counts in 32 bits


@cache
def _works(d, k, platform):
    is_fit = d <= _MOST_FEATURES and (platform == "gpu" or -(-k // 128) * 128 * width(d) <= _VMEM)
    if platform not in ("gpu", "tpu") or platform != jax.default_backend() or not is_fit:
        return False
    rng = np.random.default_rng(0)
    x, c = (rng.integers(-4, 5, size=(m, d)).astype(np.float32) for m in (600, k))
    offsets = np.sum(c**2, axis=1)
    x = np.pad(x, ((0, 0), (0, width(d) - d)))
    try:  # compiled ahead of time: that runs also while another program is traced
        kernel = jax.jit(partial(nearest, platform=platform))
        found = kernel.lower(x, c, offsets).compile()(x, c, offsets)
        return bool(np.array_equal(found, np.argmin(offsets[None] - 2 * x[:, :d] @ c.T, axis=1)))
    except Exception:  # whatever a compiler says: there is another way
        return False
