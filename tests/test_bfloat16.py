"""Products of rounded operands, and their derivatives."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from deepclust_jax import bfloat16


def rounded(x):
    return np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float64)


def operands(b, i, o):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (b, i), (i, o), (b, o)
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


# Odd widths take another way on CPU than even ones.
@pytest.mark.parametrize("b, i, o", [(8, 6, 4), (8, 7, 4), (7, 6, 5), (1, 1, 1), (256, 500, 30)])
@pytest.mark.parametrize("jitted", [True, False])
def test_value_and_derivatives_are_products_of_rounded_operands(b, i, o, jitted):
    x, w, g = operands(b, i, o)

    def run(x, w, g):
        y, back = jax.vjp(bfloat16.product, x, w)
        return y, *back(g)

    y, dx, dw = (jax.jit(run) if jitted else run)(x, w, g)
    assert {a.dtype for a in (y, dx, dw)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(y, rounded(x) @ rounded(w), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dx, rounded(g) @ rounded(w).T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dw, rounded(x).T @ rounded(g), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("i", [6, 7])
def test_second_derivatives(i):
    """Trap: a bit cast has no derivative, and JAX takes it for zero without a word."""
    x, w, v = operands(8, i, 4)[0], operands(8, i, 4)[1], jnp.ones((i, 4))

    def curvature(product):
        def by_weight(x, w):
            return jax.grad(lambda w: jnp.sum(jnp.sin(product(x, w))))(w)

        return jax.grad(lambda x, w: jnp.sum(by_weight(x, w) * v), argnums=(0, 1))(x, w)

    exact = curvature(jnp.matmul)
    for found, wanted in zip(curvature(bfloat16.product), exact, strict=True):
        error = jnp.linalg.norm(found - wanted) / jnp.linalg.norm(wanted)
        assert 0 < float(error) < 0.03  # rounded, or it would be exact


def test_under_vmap():
    """A population of networks has a product for each."""
    xs, ws, gs = (jnp.stack([a, 2 * a, a[::-1]]) for a in operands(8, 6, 4))

    def backward(x, w, g):
        return jax.vjp(bfloat16.product, x, w)[1](g)

    together = jax.jit(jax.vmap(backward))(xs, ws, gs)
    for n in range(3):
        for one, all_ in zip(backward(xs[n], ws[n], gs[n]), together, strict=True):
            np.testing.assert_allclose(all_[n], one, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("width", [6, 7])
def test_transposed_operand_is_exact(width):
    """Every value comes back in its place, whatever its bits."""
    values = jnp.array([0.0, -0.0, 1e-30, -1e-3, 1.5, -3e38, 7.0, 0.1], jnp.bfloat16)
    x = jnp.stack([jnp.roll(values, n)[:width] for n in range(8)])
    product = bfloat16._product_over_rows_cpu(x, jnp.eye(8, dtype=jnp.bfloat16))
    np.testing.assert_array_equal(product, x.T.astype(jnp.float32))
