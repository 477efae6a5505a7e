"""Products of operands rounded to bfloat16, with float32 sums, for the layers of a network.

JAX's own derivative of such a product multiplies a float32 cotangent by a bfloat16 operand, which
no backend has a fast product for, so the derivative here rounds the cotangent as well.
"""

import jax
import jax.numpy as jnp

from deepclust_jax.types import Array


@jax.custom_vjp
def product(x: Array, w: Array) -> Array:
    """x @ w with both factors rounded to bfloat16. [b, i], [i, o] -> [b, o] float32.

    Its derivatives are products of the same kind, also the second ones. Reverse mode only, as of
    every `jax.custom_vjp`.
    """
    return _dot(_narrow(x), _narrow(w), 1, 0)


def dot_general(lhs, rhs, dimension_numbers, precision=None, **_) -> Array:
    """`product` as `flax.linen.Dense` calls it: last axis of `lhs` with first axis of `rhs`."""
    del dimension_numbers, precision
    flat = product(lhs.reshape(-1, lhs.shape[-1]), rhs)
    return flat.reshape(*lhs.shape[:-1], rhs.shape[-1])


def _forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    x, w = _narrow(x), _narrow(w)
    return _dot(x, w, 1, 0), (x, w)


def _backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    (x, w), g = saved, _narrow(g)
    return _dot(g, w, 1, 1), _product_over_rows(x, g)


product.defvjp(_forward, _backward)


def _narrow(x: Array) -> Array:
    return x.astype(jnp.bfloat16)


def _dot(a: Array, b: Array, axis_a: int, axis_b: int) -> Array:
    numbers = (((axis_a,), (axis_b,)), ((), ()))
    return jax.lax.dot_general(a, b, numbers, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _product_over_rows(x: Array, g: Array) -> Array:
    """x^T g: [b, i], [b, o] -> [i, o]; with a derivative, which JAX finds none of for bit casts."""
    return jax.lax.platform_dependent(
        x, g, cpu=_product_over_rows_cpu, default=lambda x, g: _dot(x, g, 0, 0)
    )


def _over_rows_backward(saved: tuple[Array, Array], c: Array) -> tuple[Array, Array]:
    (x, g), c = saved, _narrow(c)
    return _narrow(_dot(g, c, 1, 1)), _narrow(_dot(x, c, 1, 0))


_product_over_rows.defvjp(lambda x, g: (_product_over_rows(x, g), (x, g)), _over_rows_backward)


def _product_over_rows_cpu(x: Array, g: Array) -> Array:
    """x^T g: [b, i], [b, o] -> [i, o]. Turns x first: the product by itself takes twice as long."""
    if x.shape[1] % 2:
        return _dot(x, g, 0, 0)
    # Transposed in pairs of columns, as words of 32 bits that are split afterwards: a plain
    # transpose would be folded into the product again. The barrier keeps the split out of it.
    pairs = jax.lax.bitcast_convert_type(x.reshape(x.shape[0], -1, 2), jnp.uint32).T
    halves = jnp.stack([pairs & 0xFFFF, pairs >> 16], axis=1).astype(jnp.uint16)
    rows = jax.lax.bitcast_convert_type(halves, jnp.bfloat16).reshape(x.shape[::-1])
    return _dot(jax.lax.optimization_barrier(rows), g, 1, 0)
