"""Photographs: two views of each, and the residual network that tells them from others."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepclust_jax import augment, config, networks, phases, profiles, train
from deepclust_jax.algorithms import contrastive, info_max
from deepclust_jax.types import Batch

KEY = jax.random.key(0)
STILL = {"area": 1.0, "aspect": 1.0, "light": 0.0, "hue": 0.0, "grey": 0.0}


def views(x, n=400, **options):
    change = jax.jit(jax.vmap(lambda key: augment.photo(key, x, **options)))
    return np.asarray(change(jax.random.split(KEY, n)))


def test_without_changes_a_view_is_the_picture_or_its_mirror_image():
    x = jax.random.uniform(KEY, (6, 8, 3))
    found = views(x, **STILL)
    mirrored = np.abs(found - x[None, :, ::-1]).max(axis=(1, 2, 3)) < 1e-5
    same = np.abs(found - x[None]).max(axis=(1, 2, 3)) < 1e-5
    assert (same ^ mirrored).all()
    assert 0.4 < mirrored.mean() < 0.6


def test_a_view_is_a_part_at_the_size_of_the_whole():
    """Of a picture whose values are places, a view tells which part it shows."""
    rows, columns = np.mgrid[:32, :32].astype(np.float32)
    found = views(jnp.asarray(rows + 100.0 * columns)[..., None], **(STILL | {"area": 0.2}))
    down = (found[:, -5, 10, 0] - found[:, 5, 10, 0]) / 22  # rows of the picture for one of a view
    across = np.abs(found[:, 10, -5, 0] - found[:, 10, 5, 0]) / 22 / 100
    np.testing.assert_allclose(down, across, rtol=1e-2)  # no other aspect
    assert 0.2 - 1e-3 < (down * across).min() < 0.25 and 0.95 < (down * across).max() < 1.0 + 1e-3
    assert abs((down * across).mean() - 0.6) < 0.03, "the area is uniform"
    assert found.min() >= 0 and found.max() <= 3131, "nothing is outside"
    wide = views(jnp.asarray(rows + 100.0 * columns)[..., None], area=0.2, light=0.0, aspect=2.0)
    ratio = (wide[:, -5, 10, 0] - wide[:, 5, 10, 0]) * 100
    ratio /= np.abs(wide[:, 10, -5, 0] - wide[:, 10, 5, 0])
    assert 0.5 - 1e-2 < ratio.min() < 0.6 and 1.7 < ratio.max() < 2.0 + 1e-2


def test_a_smaller_view_shows_the_same_part():
    """Values are places: the middle of a pixel of a view is that of 4/3 of those of the picture."""
    rows, columns = np.mgrid[:32, :32].astype(np.float32)
    found = views(jnp.asarray(rows)[..., None], size=0.75, **STILL)
    assert found.shape[1:] == (24, 24, 1)
    places = np.clip((np.arange(24) + 0.5) * 4 / 3 - 0.5, 0, 31)
    expected = np.broadcast_to(places[None, :, None], (len(found), 24, 24))
    np.testing.assert_allclose(found[..., 0], expected, atol=1e-3)
    across = views(jnp.asarray(columns)[..., None], size=0.75, **STILL)[:, 5, :, 0]
    is_mirrored = across[:, :1] > across[:, -1:]
    across = np.where(is_mirrored, across[:, ::-1], across)
    np.testing.assert_allclose(across, expected[:, :, 0], atol=1e-3)
    parts = {size: views(jnp.asarray(rows)[..., None], light=0.0, size=size) for size in (0.75, 1)}
    means = [part.mean(axis=(1, 2, 3)) for part in parts.values()]
    np.testing.assert_allclose(*means, atol=0.05)  # the same part of the picture


@pytest.mark.parametrize("size", [0.0, -0.5, 1.5])
def test_a_size_out_of_range_is_refused(size):
    with pytest.raises(ValueError, match="size above 0 and up to 1"):
        augment.photo(KEY, jnp.ones((4, 4, 3)), size=size)


def test_convolutions_learn_of_smaller_views_and_measure_them(monkeypatch, phases_anew):
    """Trap: a network that learnt of parts as large as pictures sees things in pictures smaller
    than ever before, and its statistics are not those that it learnt with."""
    seen = {}

    def build(own, shape, *, augment, **more):
        seen[type(own).__module__.split(".")[-1]] = own, augment

    monkeypatch.setattr(contrastive, "build", build)
    monkeypatch.setattr(info_max, "build", build)
    x = jnp.ones((32, 32, 3))
    for network, side in (("conv", 24), ("resnet", 32)):
        given = options("--method", "info_max", "--augment", "photo", "--network", network)
        phases.of(given, (20, *x.shape))
        for own, change in seen.values():
            assert own.of_views
            assert change(KEY, x).shape == (side, side, 3)
        assert set(seen) == {"contrastive", "info_max"}
    phases.of(options("--method", "info_max", "--augment", "affine"), (20, *x.shape))
    assert not any(own.of_views for own, _ in seen.values())


@pytest.mark.parametrize("algorithms", [contrastive, info_max])
def test_statistics_are_of_rows_or_of_what_is_learnt_of_them(algorithms):
    x = jax.random.uniform(KEY, (40, 8, 8, 3))
    found = {}
    for of_views in (False, True):
        own = algorithms.Config(3, embed_dim=4, network="conv", hidden=(8,), of_views=of_views)
        algorithm = algorithms.build(own, x.shape[1:], augment=lambda key, row: 3.0 * row[:6, :6])
        batch = Batch(x, jnp.arange(40), jnp.ones(40))
        state = jax.jit(algorithm.init)(KEY, batch)
        # Of what a refresh finds the statistics alone are compiled.
        after = jax.jit(lambda *args, own=algorithm: own.refresh(*args).statistics)(KEY, state, x)
        encoder = algorithms.build_nets(own, x.shape[1:]).encoder
        rows = 3.0 * x[:, :6, :6] if of_views else x
        expected = jax.jit(encoder.measure)(state.params["encoder"], rows)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4), after, expected)
        found[of_views] = jax.tree.leaves(after)[0]
    assert jnp.abs(found[True] / found[False] - 1).max() > 0.5


def test_light_changes_brightness_and_contrast_by_their_bounds():
    x = jax.random.uniform(KEY, (8, 8, 1), minval=0.2, maxval=0.8)
    found = views(x, n=4000, **(STILL | {"light": 0.4}), plain=0.25)
    brightness = found.mean(axis=(1, 2, 3)) / float(x.mean())
    contrast = found.std(axis=(1, 2, 3)) / float(x.std()) / brightness
    for factor in (brightness, contrast):
        assert 0.6 - 1e-3 < factor.min() < 0.63 and 1.37 < factor.max() < 1.4 + 1e-3
        assert abs(np.mean(np.abs(factor - 1) < 1e-4) - 0.25) < 0.03, "a share stays plain"


def test_colours_keep_the_brightness_and_some_pictures_lose_them():
    x = jax.random.uniform(KEY, (8, 8, 3))
    weights = np.array([0.299, 0.587, 0.114])
    found = views(x, n=2000, **(STILL | {"hue": 0.1, "grey": 0.2}), plain=0.0)
    light = found @ weights
    flipped = np.abs(light - (x @ weights)[None]).max(axis=(1, 2)) > 1e-3
    light[flipped] = light[flipped][:, :, ::-1]
    np.testing.assert_allclose(light, np.broadcast_to(x @ weights, light.shape), atol=2e-3)
    is_grey = np.ptp(found, axis=3).max(axis=(1, 2)) < 5e-3
    assert abs(is_grey.mean() - 0.2) < 0.03
    # A hue is an angle: red turned by a tenth of a circle is no longer the reddest.
    red = jnp.zeros((2, 2, 3)).at[..., 0].set(1.0)
    turned = views(red, **(STILL | {"hue": 0.5}), plain=0.0).mean(axis=(1, 2))
    assert len(set(turned.argmax(axis=1))) == 3


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 2), (4, 4, 4)])
def test_what_is_no_photograph_is_refused(shape):
    with pytest.raises(ValueError, match="1 or 3 channels"):
        augment.photo(KEY, jnp.ones(shape))


def options(*args):
    return config.resolve(config.parse(["--n-clusters", "3", *args]))


def test_a_photograph_is_its_own_pair():
    """Trap: photographs with the nearest pixels are of other things; no neighbours are looked up
    but by features."""
    shape = (20, 8, 8, 3)
    for method, expected in (("contrastive", [""]), ("info_max", ["", "features"])):
        for change, by_rows in (("photo", ""), ("affine", "rows")):
            given = options("--method", method, "--augment", change)
            wanted = [p or by_rows for p in expected]
            assert [phase.pairs for phase in phases.of(given, shape)] == wanted
    alone = options("--method", "info_max", "--augment", "photo", "--pretrain-epochs", "0")
    assert [phase.pairs for phase in phases.of(alone, shape)] == [""]


def test_photographs_are_told_apart_sharply_and_for_long(monkeypatch, phases_anew):
    seen = []
    monkeypatch.setattr(
        contrastive, "build", lambda own, *args, **more: seen.append(own.temperature)
    )
    for change, temperature, epochs in (("photo", 0.1, 200), ("affine", 0.5, 93)):
        given = config.parse(["--n-clusters", "3", "--method", "info_max", "--augment", change])
        given = config.resolve(given, 10_000)
        phases.of(given, (10_000, 8, 8, 3))
        assert seen.pop() == temperature
        assert (given.training.pretrain_epochs, given.training.epochs) == (epochs, 40)
        assert given.network.network == ("conv" if change == "photo" else "mlp")
        assert given.training.pretrain_learning_rate == (2e-3 if change == "photo" else 1e-3)


def test_convolutions_see_what_is_in_a_picture_wherever_it_is():
    """Moved by the stride of all layers together, a thing in the middle has the same features, but
    for what the borders, where zeros are, add to its ground."""
    encoder = networks.normalised_encoder("conv", (64, 64, 1), (8,), 4)
    x = jnp.zeros((8, 64, 64, 1)).at[:, 24:32, 24:32].set(jax.random.uniform(KEY, (8, 8, 8, 1)))
    params = jax.jit(encoder.init)(KEY, x)
    moved = jnp.roll(x, (8, -8), axis=(1, 2))
    apply = jax.jit(encoder.apply)
    found = apply(params, x)
    np.testing.assert_allclose(apply(params, moved), found, atol=0.02)
    assert jnp.abs(found - found.mean(axis=0, keepdims=True)).max() > 0.1


@pytest.mark.parametrize(
    "args, row, words",
    [
        (["--augment", "photo"], (8,), "needs images"),
        (["--augment", "photo"], (8, 8, 4), "1 or 3 channels"),
        (["--network", "resnet"], (8,), "--network resnet needs images"),
        (["--network", "resnet", "--precision", "bfloat16"], (8, 8, 3), "needs --network mlp"),
        (["--network", "resnet", "--method", "dcn"], (8, 8, 3), "--network mlp or conv"),
    ],
)
def test_options_that_do_not_fit_are_refused(args, row, words):
    method = [] if "--method" in args else ["--method", "contrastive"]
    with pytest.raises(config.ConfigError, match=words):
        phases.of(options(*args, *method), (20, *row))


def test_resnet_18_has_its_published_size():
    """11.17 million weights of the layers up to the mean, as of its version for CIFAR-10."""
    assert options("--method", "contrastive", "--network", "resnet").network.hidden == (
        profiles.RESNET_18
    )
    encoder = networks.normalised_encoder("resnet", (32, 32, 3), profiles.RESNET_18, 128)
    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(lambda x: encoder.init(KEY, x), x)["params"]
    head = sum(leaf.size for name in params if "Dense" in name for leaf in params[name].values())
    norm = 2 * 512  # of the hidden layer of the head
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert total - head - norm == 11_168_832
    assert jax.eval_shape(encoder.apply, {"params": params}, x).shape == (2, 128)


def test_convolutions_embed_larger_pictures_than_they_learn_of():
    x = np.asarray(jax.random.uniform(KEY, (40, 8, 8, 3)))
    own = contrastive.Config(
        3, embed_dim=4, network="conv", hidden=(16,), of_views=True, n_layouts=1, layout_epochs=5,
        classifier_steps=5,
    )  # fmt: skip
    change = partial(augment.photo, size=0.75, **STILL)
    algorithm = contrastive.build(own, x.shape[1:], augment=change)
    found = train.fit(KEY, algorithm, x, epochs=6, batch_size=20, refresh_every=0)
    assert found.metrics["loss"][-1] < found.metrics["loss"][0]
    z, labels = train.embed(algorithm, train.refresh(KEY, algorithm, found.state, x), x)
    assert z.shape == (40, 4) and labels.shape == (40,)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1.0, rtol=1e-5)


def test_the_residual_network_learns_and_tells_rows_one_by_one():
    x = np.asarray(jax.random.uniform(KEY, (40, 8, 8, 3)))
    own = contrastive.Config(3, embed_dim=4, network="resnet", hidden=(8, 16))
    algorithm = contrastive.build(own, x.shape[1:], augment=augment.photo)
    found = train.fit(KEY, algorithm, x, epochs=6, batch_size=20, refresh_every=0)
    assert found.metrics["loss"][-1] < found.metrics["loss"][0]
    encoder = contrastive.build_nets(own, x.shape[1:]).encoder
    measure = jax.jit(lambda params, x: contrastive.measured(encoder, params, x))
    state = found.state.replace(statistics=measure(found.state.params["encoder"], x))
    embed = jax.jit(algorithm.embed)
    z = np.asarray(embed(state, x))
    np.testing.assert_allclose(z[:7], embed(state, x[:7]), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1.0, rtol=1e-5)
