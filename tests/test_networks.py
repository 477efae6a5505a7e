"""Networks: shapes, starts, precision; and random changes of images."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepclust_jax import augment, networks

KEY = jax.random.key(0)
# Bounds are numbers and no part of the program.
affine = jax.jit(augment.affine)


@pytest.mark.parametrize(("hidden", "variance"), [(64, 1.0), (128, 1.0), (192, 2 / 3), (500, 0.5)])
def test_start_has_less_variance_where_layers_are_wide(hidden, variance):
    params = jax.jit(networks.mlp([600, hidden, 40]).init)(KEY, jnp.ones((1, 30)))["params"]
    for i, fan_in in enumerate([30, 600, hidden]):
        kernel = np.asarray(params[f"Dense_{i}"]["kernel"])
        limit = np.sqrt(3 * variance / fan_in)
        assert np.abs(kernel).max() <= limit
        np.testing.assert_allclose(kernel.std(), limit / np.sqrt(3), rtol=0.03)


def test_the_code_is_linear():
    """Trap: a ReLU on the code kills its dimensions."""
    network = networks.mlp([8, 4])
    params = network.init(KEY, jnp.ones((1, 3)))
    z = network.apply(params, jax.random.normal(KEY, (200, 3)))
    assert (z < 0).any(axis=0).any() and (z < 0).mean() > 0.1


@pytest.mark.parametrize("kind, shape", [("mlp", (7,)), ("mlp", (5, 6, 1)), ("conv", (28, 28, 1)),
                                         ("conv", (9, 12, 3))])  # fmt: skip
def test_autoencoder_returns_the_shape_it_got(kind, shape):
    encoder, decoder = networks.autoencoder(kind, shape, (16,), 3)

    def both(x):
        z = encoder.apply(encoder.init(KEY, x), x)
        return z, decoder.apply(decoder.init(KEY, z), z)

    z, again = jax.eval_shape(both, jnp.ones((2, *shape)))
    assert z.shape == (2, 3)
    assert again.shape == (2, *shape)


@pytest.mark.parametrize(
    "arguments, message",
    [(("conv", (7,), (8,), 2), "expected rows"), (("cnn", (7,), (8,), 2), "'mlp' or 'conv'")],
)
def test_bad_networks(arguments, message):
    with pytest.raises(ValueError, match=message):
        networks.autoencoder(*arguments)


def test_bad_precision():
    with pytest.raises(ValueError, match="expected precision"):
        networks.mlp([3], precision="float16")


def test_bfloat16_rounds_products_and_nothing_else():
    exact, rounded = networks.mlp([64, 5]), networks.mlp([64, 5], precision="bfloat16")
    x = jax.random.normal(KEY, (32, 40))
    params = exact.init(KEY, x)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(rounded.init(KEY, x)))

    def loss(apply, params):
        return jnp.mean(apply(params, x) ** 2)

    value, grads = jax.jit(jax.value_and_grad(lambda p: loss(exact.apply, p)))(params)
    near, near_grads = jax.jit(jax.value_and_grad(lambda p: loss(rounded.apply, p)))(params)
    assert near.dtype == jnp.float32 and near != value
    np.testing.assert_allclose(near, value, rtol=0.02)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(near_grads), strict=True):
        assert b.dtype == jnp.float32
        assert jnp.linalg.norm(a - b) < 0.03 * jnp.linalg.norm(a)


@pytest.mark.parametrize("n", [1, 5, 8, 17])
def test_blocks_change_nothing(n):
    network = networks.mlp([4, 2])
    x = jax.random.normal(KEY, (n, 3))
    params = network.init(KEY, x)
    blocked = networks.apply_in_blocks(network.apply, params, x, block=8)
    np.testing.assert_allclose(blocked, network.apply(params, x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_change_of_code_is_seen_by_the_code_alone(kind):
    x = jax.random.uniform(KEY, (5, 8, 8, 1))
    encoder, decoder = networks.autoencoder(kind, (8, 8, 1), (16, 12), 3)
    first = jax.jit(encoder.init)(KEY, x)
    first = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.1, first)  # biases that are not 0
    encode, decode = jax.jit(encoder.apply), jax.jit(decoder.apply)
    z = encode(first, x)
    second = jax.jit(decoder.init)(KEY, z)
    matrix = jnp.array([[2.0, 0.3, 0.0], [0.0, 0.5, 1.0], [0.1, 0.0, -1.0]])
    changed = networks.change_code(first, second, matrix)
    new = encode(changed[0], x)
    np.testing.assert_allclose(new, z @ matrix, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(decode(changed[1], new), decode(second, z), rtol=1e-4, atol=1e-4)
    assert jax.tree.structure(changed) == jax.tree.structure((first, second))


def test_affine_without_motion_is_identity():
    x = jax.random.uniform(KEY, (6, 8, 2))
    same = affine(KEY, x, degrees=0.0, shift=0.0)
    np.testing.assert_allclose(same, x, atol=1e-6)


def test_affine_shifts_by_whole_pixels():
    """With bounds that make the draws two rows and no column, the rows are those two further on."""
    x = jax.random.uniform(KEY, (10, 30, 1))
    keys = jax.random.split(KEY, 3000)
    draws = jax.vmap(lambda k: jax.random.uniform(k, (5,), minval=-1.0, maxval=1.0))(keys)
    key = keys[jnp.abs(draws[:, 2]).argmin()]
    row, column = jax.random.uniform(key, (5,), minval=-1.0, maxval=1.0)[1:3]
    moved = affine(key, x, degrees=0.0, shift=abs(2.0 / (10 * float(row))))
    assert abs(column) < 1e-3
    expected = np.zeros((10, 30, 1))
    if row > 0:
        expected[:8] = x[2:]
    else:
        expected[2:] = x[:8]
    assert np.abs(moved - expected).mean() < 0.02


@pytest.mark.parametrize("options", [{"scale": 0.3}, {"shear": 0.4}])
def test_affine_scale_and_shear_move_pixels_as_they_say(options):
    """The result at (r, c) is the image at the place that the inverse motion gives."""
    rows, columns = np.mgrid[:9, :9].astype(np.float32) - 4.0
    image = jnp.asarray(rows + 10.0 * columns)[..., None]  # linear: interpolation is exact
    key = jax.random.key(3)
    draw = np.asarray(jax.random.uniform(key, (5,), minval=-1.0, maxval=1.0))
    found = np.asarray(affine(key, image, degrees=0.0, shift=0.0, **options))[..., 0]
    zoom = 1.0 + draw[3] * options.get("scale", 0.0)
    slope = draw[4] * options.get("shear", 0.0)
    source_row, source_column = rows / zoom, slope * rows + columns / zoom
    inside = (np.abs(source_row) <= 4) & (np.abs(source_column) <= 4)
    expected = source_row + 10.0 * source_column
    assert 20 < inside.sum() < 82 and abs(zoom - 1) + abs(slope) > 0.05
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-4)
    assert not np.allclose(found, image[..., 0])


def test_affine_leaves_nothing_of_an_image_that_moved_out():
    """Trap: places outside that are clipped to just inside keep a trace of the edge."""
    image = jnp.ones((6, 6, 1))
    draw = jax.random.uniform(jax.random.key(0), (5,), minval=-1.0, maxval=1.0)
    for shift in (20.0, -20.0):
        found = affine(jax.random.key(0), image, degrees=0.0, shift=shift)
        assert min(abs(float(draw[1])), abs(float(draw[2]))) * 20.0 > 1.2
        np.testing.assert_array_equal(found, 0.0)


def test_affine_quarter_turn_equals_rot90():
    """A bound of 90 / draw degrees turns by exactly a quarter."""
    x = jax.random.uniform(KEY, (7, 7, 1))
    draw = jax.random.uniform(KEY, (5,), minval=-1.0, maxval=1.0)
    turned = affine(KEY, x, degrees=90.0 / float(draw[0]), shift=0.0)
    candidates = [np.rot90(x, 1), np.rot90(x, -1)]
    assert min(np.abs(turned - c).max() for c in candidates) < 1e-4


def test_affine_draws_within_its_bounds():
    bar = jnp.zeros((21, 21, 1)).at[10, 4:17].set(1.0)
    keys = jax.random.split(KEY, 200)
    move = jax.jit(jax.vmap(lambda key: augment.affine(key, bar, degrees=0.0, shift=0.1)))
    moved = np.asarray(move(keys))
    mass = moved.sum((1, 2, 3))
    np.testing.assert_allclose(mass, 13.0, rtol=0.01)  # nothing is lost near the middle
    centre = (moved.sum((2, 3)) * np.arange(21.0)).sum(1) / mass
    assert centre.min() >= 10 - 2.1 - 1e-3 and centre.max() <= 10 + 2.1 + 1e-3
    assert centre.max() - centre.min() > 3.0


def test_quarter_turns_are_exact_and_uniform():
    x = jax.random.uniform(KEY, (4, 4, 1))
    turn = jax.jit(jax.vmap(lambda key: augment.quarter_turn(key, x)))
    turned = np.asarray(turn(jax.random.split(KEY, 800)))
    counts = [int((np.abs(turned - np.rot90(x, n)).max((1, 2, 3)) == 0).sum()) for n in range(4)]
    assert sum(counts) == 800 and min(counts) > 150


def test_noise_and_mask():
    x = jnp.ones(20_000)
    noisy = augment.noise(KEY, x, scale=0.5)
    np.testing.assert_allclose([noisy.mean(), noisy.std()], [1.0, 0.5], atol=0.02)
    np.testing.assert_allclose(augment.mask(KEY, x, rate=0.3).mean(), 0.7, atol=0.02)


def test_images_only():
    with pytest.raises(ValueError, match="expected an image"):
        augment.affine(KEY, jnp.ones((4, 4)))
    with pytest.raises(ValueError, match="expected a square image"):
        augment.quarter_turn(KEY, jnp.ones((4, 5, 1)))


@pytest.mark.parametrize("shape, features, size, stride", [
    ((28, 28, 1), 16, 5, 2), ((9, 7, 3), 8, 3, 2), ((8, 8, 4), 4, 3, 1), ((3, 3, 2), 4, 5, 2),
])  # fmt: skip
def test_convolutions_by_product_are_convolutions(shape, features, size, stride):
    """On a CPU they are products of patches; the values and gradients are those of flax."""
    x = jax.random.normal(KEY, (4, *shape))
    pairs = [
        (
            networks._conv(features, size, strides=stride),
            nn.Conv(features, (size, size), strides=stride),
        ),
        (
            networks.ConvTranspose(features, size),
            nn.ConvTranspose(features, (size, size), strides=(2, 2)),
        ),
    ]
    for own, other in pairs:
        params = jax.jit(own.init)(KEY, x)
        expected = jax.eval_shape(other.init, KEY, x)
        assert jax.tree.structure(params) == jax.tree.structure(expected)

        def value(params, x, module):
            found = module.apply(params, x)
            return jnp.sum(jnp.sin(found)), found

        both = jax.value_and_grad(value, argnums=(0, 1), has_aux=True)
        ((_, one), grads), ((_, two), wanted) = (
            jax.jit(functools.partial(both, module=module))(params, x) for module in (own, other)
        )
        np.testing.assert_allclose(one, two, atol=1e-4)
        for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-3)


def test_a_block_halves_the_picture_and_sees_one_image_at_a_time():
    x = jax.random.normal(KEY, (5, 9, 9, 2))
    blocks = networks.conv_blocks((8, 12))
    params = jax.jit(blocks.init)(KEY, x)
    apply = jax.jit(blocks.apply)
    found = apply(params, x)
    assert [f.shape for f in found] == [(5, 5, 5, 8), (5, 3, 3, 12)]
    alone = apply(params, x[2:3])
    for many, one in zip(found, alone, strict=True):
        np.testing.assert_allclose(np.asarray(many)[2], np.asarray(one)[0], atol=1e-5)


def test_pooled_means_over_parts():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_allclose(networks.pooled(x), [[7.5]])
    np.testing.assert_allclose(networks.pooled(x, 2), [[2.5, 4.5, 10.5, 12.5]])
    assert networks.pooled(x, 9).shape == (1, 16)  # no finer than its pixels
    np.testing.assert_allclose(networks.pooled(x[:, :3, :3], 2)[0, 0], 2.5)  # parts overlap
