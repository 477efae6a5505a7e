"""The game of generator and discriminator: its losses, gradients and steps, and that it covers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepclust_jax import game, losses, networks, train
from deepclust_jax.algorithms import bi_gan, cluster_gan, gan, info_gan
from deepclust_jax.types import Batch

KEY = jax.random.key(0)
SMALL = gan.Config(n_clusters=3, embed_dim=2, hidden=(16, 8), latent_dim=4)


def rows(n=24, d=5):
    return 1.0 + 2.0 * jax.random.normal(KEY, (n, d))


def batch(x):
    return Batch(x, jnp.arange(len(x)), jnp.ones(len(x)))


def state_of(config=SMALL, **more):
    algorithm = gan.build(config, (5,), **more)
    return algorithm, algorithm.init(KEY, batch(rows()))


# --- losses


def test_losses_are_those_of_the_papers():
    """Worked: D(x) = 0.8 and D(G(z)) = 0.3."""
    real, made = (jnp.log(jnp.array([p / (1.0 - p)])) for p in (0.8, 0.3))
    np.testing.assert_allclose(
        losses.of_discriminator(real, made, "logistic"), -np.log(0.8) - np.log(0.7), rtol=1e-6
    )
    np.testing.assert_allclose(losses.of_generator(made, "logistic"), -np.log(0.3), rtol=1e-6)
    one, other = jnp.array([0.25]), jnp.array([-3.0])
    assert losses.of_discriminator(one, other, "hinge") == 0.75 + 0.0
    assert losses.of_discriminator(other, one, "hinge") == 4.0 + 1.25
    assert losses.of_discriminator(one, other, "wasserstein") == -3.25
    assert losses.of_generator(one, "hinge") == losses.of_generator(one, "wasserstein") == -0.25


def test_logits_however_large_have_finite_losses_and_gradients():
    """Trap: log D of a probability that is rounded to 0."""
    far = jnp.array([-1e4, 1e4])
    for function in (
        lambda x: losses.of_discriminator(x, -x, "logistic").sum(),
        lambda x: losses.of_generator(x, "logistic").sum(),
    ):
        value, slope = jax.value_and_grad(function)(far)
        assert jnp.isfinite(value) and jnp.isfinite(slope).all()
    # Where the discriminator is sure that rows are made, the generator still moves.
    slope = jax.grad(lambda x: losses.of_generator(x, "logistic").sum())(far[:1])
    np.testing.assert_allclose(slope, -1.0)


@pytest.mark.parametrize(
    "module, name, value, wanted",
    [
        (gan, "penalty", -1.0, ">= 0"),
        (gan, "penalty", np.inf, ">= 0"),
        (gan, "ratio", 1.5, "a whole number >= 1"),
        (gan, "memory", 1.0, ">= 0 and < 1"),
        (gan, "learning_rate", -1e-3, "> 0"),
        (gan, "embed_dim", 0, "a whole number >= 1"),
        (info_gan, "n_styles", -1, "a whole number >= 0"),
        (info_gan, "weight", np.nan, ">= 0"),
        (cluster_gan, "deviation", 0.0, "> 0"),
        (bi_gan, "latent_dim", -1, "a whole number >= 1"),
    ],
)
def test_settings_that_no_game_can_have(module, name, value, wanted):
    with pytest.raises(ValueError, match=f"expected {name} {wanted}, found {value}"):
        module.build(module.Config(**{name: value}), (5,))


def test_no_penalty_asks_for_no_slope():
    """Trap: nothing times an infinite slope is no number, and the step is not taken."""
    rows, mask = jnp.zeros((4, 2)), jnp.ones(4)
    found = game.of_players(
        lambda own, rows: jnp.sqrt(jnp.sum(rows, axis=1)), {}, rows, rows, mask, KEY,
        objective="logistic", penalty=0.0,
    )  # fmt: skip
    np.testing.assert_allclose(found[0], 2.0 * np.log(2.0), rtol=1e-6)


def test_unknown_objective():
    with pytest.raises(ValueError, match="expected objective logistic, hinge, wasserstein, found"):
        gan.build(dataclasses.replace(SMALL, objective="saturating"), (5,))
    with pytest.raises(ValueError, match="expected embed_dim <= 8, the features of"):
        gan.build(dataclasses.replace(SMALL, embed_dim=9), (5,))


@pytest.mark.parametrize("objective", losses.ADVERSARIAL)
def test_each_player_has_the_gradient_of_its_own_loss(objective):
    """The sum of both losses is what one backward pass is of; neither may move the other's way."""
    config = dataclasses.replace(SMALL, objective=objective, penalty=0.7)
    state, x = state_of(config)[1], rows()
    nets, key = gan.build_nets(config, (5,)), jax.random.key(7)
    grads = jax.grad(lambda p: gan.loss(p, state, batch(x), key, nets=nets, config=config)[0])(
        state.params
    )
    z_key, mix_key, _ = jax.random.split(key, 3)
    z = jax.random.normal(z_key, (len(x), config.latent_dim))

    def logits(own, x):
        return nets.discriminator.apply(own, x)[1]

    def of_discriminator(own):
        made = nets.generator.apply(state.params["generator"], z)
        cost = losses.of_discriminator(logits(own, x), logits(own, made), objective).mean()
        where = x
        if objective == "wasserstein":
            share = jax.random.uniform(mix_key, (len(x), 1))
            where = share * x + (1.0 - share) * made
        slopes = jax.vmap(jax.grad(lambda row: logits(own, row[None])[0]))(where)
        lengths = jnp.sqrt((slopes**2).sum(axis=1))
        by = (lengths - 1.0) ** 2 if objective == "wasserstein" else 0.5 * lengths**2
        return cost + 0.7 * by.mean()

    def of_generator(own):
        made = nets.generator.apply(own, z)
        return losses.of_generator(logits(state.params["encoder"], made), objective).mean()

    own = {
        "encoder": jax.grad(of_discriminator)(state.params["encoder"]),
        "generator": jax.grad(of_generator)(state.params["generator"]),
    }
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), grads, own)


# --- steps


def test_the_generator_moves_in_every_ratio_th_step():
    config = dataclasses.replace(SMALL, ratio=3)
    algorithm, state = state_of(config)
    step = jax.jit(algorithm.step)
    moved = []
    for _ in range(6):
        new, _ = step(KEY, state, batch(rows()))
        pairs = zip(*(jax.tree.leaves(s.params["generator"]) for s in (state, new)), strict=True)
        moved.append(any(bool((a != b).any()) for a, b in pairs))
        assert (new.opt_state["generator"][0].count > state.opt_state["generator"][0].count) == (
            moved[-1]
        )
        state = new
    assert moved == [False, False, True] * 2


def test_the_average_is_of_past_weights():
    algorithm, state = state_of(optimizer=optax.sgd(0.1))
    first = jax.tree.leaves(state.params["generator"])[0]
    new, _ = algorithm.step(KEY, state, batch(rows()))
    now = jax.tree.leaves(new.params["generator"])[0]
    expected = 0.1 * first + 0.9 * now  # memory (1 + 0) / (10 + 0)
    np.testing.assert_allclose(jax.tree.leaves(new.average)[0], expected, rtol=1e-6)


def test_the_average_is_of_the_steps_that_the_generator_took():
    """Trap: it mixes in weights that the generator never had, or forgets no more than at first."""
    config = dataclasses.replace(SMALL, ratio=3, memory=0.5)
    algorithm, state = state_of(config, optimizer=optax.sgd(0.1))
    step = jax.jit(algorithm.step)

    def weights(params):
        return np.asarray(jax.tree.leaves(params)[0])

    expected = weights(state.params["generator"])
    for t in range(30):
        state, _ = step(jax.random.key(t), state, batch(rows()))
        if (t + 1) % 3 == 0:
            memory = min(0.5, (1 + t) / (10 + t))
            now = weights(state.params["generator"])
            expected = memory * expected + (1 - memory) * now
        np.testing.assert_allclose(weights(state.average), expected, rtol=1e-5, atol=1e-7)


def test_ten_steps_in_a_row_that_are_not_taken_are_a_lost_game():
    algorithm, state = state_of()
    step = jax.jit(algorithm.step)
    good, bad = batch(rows()), batch(rows().at[0].set(jnp.inf))

    def is_lost():
        return game.diverged(jax.tree.map(lambda leaf: leaf[None], state)).tolist() == [True]

    assert not is_lost(), "none was taken, and none was missed"
    for _ in range(2):  # nine in a row, twice
        for given in (*[bad] * 9, good):
            state, _ = step(KEY, state, given)
        assert state.missed == 0 and not is_lost()
    for missed in range(1, 11):
        state, _ = step(KEY, state, bad)
        assert state.missed == missed and is_lost() == (missed == 10)


def test_a_step_that_is_not_finite_is_not_taken():
    """Trap: one NaN, and all weights are NaN for ever."""
    algorithm, state = state_of()
    bad = rows().at[3, 2].set(jnp.inf)
    new, metrics = jax.jit(algorithm.step)(KEY, state, batch(bad))
    assert metrics["taken"] == 0.0 and metrics["loss"] == 0.0 and new.step == 1
    for a, b in zip(*(jax.tree.leaves(s.params) for s in (state, new)), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(*(jax.tree.leaves(s.opt_state) for s in (state, new)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_state_of_the_optimiser_that_is_not_finite_is_not_kept():
    """Trap: squares of large gradients overflow in Adam, whose steps are then 0 for ever."""
    algorithm, state = state_of()
    new, metrics = jax.jit(algorithm.step)(KEY, state, batch(1e25 * rows()))
    assert metrics["taken"] == 0.0
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(new.opt_state))


def test_made_rows_are_changed_as_real_ones(monkeypatch):
    """Trap: a discriminator that sees changed real rows alone tells made ones by the change."""

    def shifted(key, row):
        del key
        return row + 100.0

    monkeypatch.setattr(game, "_CHANGED", 1.0)  # all of them
    algorithm, state = state_of(augment=shifted)
    config = dataclasses.replace(SMALL, is_bounded=False)
    nets = gan.build_nets(config, (5,))._replace(change=shifted)
    plain = nets._replace(change=None)
    changed = batch(rows() + 100.0)
    with_change = gan.loss(state.params, state, changed, KEY, nets=nets, config=config)[1]
    without = gan.loss(state.params, state, changed, KEY, nets=plain, config=config)[1]
    assert with_change["generator"] != without["generator"]
    key = jax.random.split(jax.random.fold_in(KEY, 0))[1]
    expected = gan.loss(state.params, state, changed, key, nets=nets, config=config)[1]
    found = jax.jit(algorithm.step)(KEY, state, batch(rows()))[1]
    np.testing.assert_allclose(found["generator"], expected["generator"], rtol=1e-4)


def test_equal_made_rows_have_no_spread():
    algorithm, state = state_of()
    generator = jax.tree.map(jnp.zeros_like, state.params["generator"])
    state = state.replace(params=state.params | {"generator": generator})
    x = batch(rows())
    nets = gan.build_nets(SMALL, (5,))
    found = gan.loss(state.params, state, x, KEY, nets=nets, config=SMALL)[1]
    assert found["spread"] == 0.0


def test_wasserstein_sees_no_bias_of_the_critic():
    """Trap: its loss moves with the last bias, which changes nothing."""
    config = dataclasses.replace(SMALL, objective="wasserstein")
    state, nets = state_of(config)[1], gan.build_nets(config, (5,))

    def of(shift):
        moved = networks_with_bias(nets, shift)
        return gan.loss(state.params, state, batch(rows()), KEY, nets=moved, config=config)

    (one, a), (other, b) = of(0.0), of(7.0)
    np.testing.assert_allclose(one, other, rtol=1e-4)
    np.testing.assert_allclose(a["told"], b["told"])
    assert a["told"] > 0.0


def networks_with_bias(nets, shift):
    def apply(params, x):
        features, logits = nets.discriminator.apply(params, x)
        return features, logits + shift

    return nets._replace(discriminator=nets.discriminator._replace(apply=apply))


def test_made_rows_have_the_shape_and_range_of_real_ones():
    for network, shape in (("mlp", (3, 4)), ("conv", (9, 11, 2))):
        for is_bounded in (True, False):
            config = dataclasses.replace(SMALL, network=network, is_bounded=is_bounded)
            nets = gan.build_nets(config, shape)
            z = 50.0 * jax.random.normal(KEY, (6, 4))
            made = nets.generator.apply(nets.generator.init(KEY, z), z)
            assert made.shape == (6, *shape)
            assert (float(made.min()) >= 0.0 and float(made.max()) <= 1.0) == is_bounded
            features, logits = nets.discriminator.apply(nets.discriminator.init(KEY, made), made)
            assert features.shape == (6, 8) and logits.shape == (6,)
    with pytest.raises(ValueError, match="expected rows"):
        networks.discriminator("conv", (5,), (8,))


# --- that it covers


def ring(n, modes=8, deviation=0.05):
    rng = np.random.default_rng(0)
    angle = 2.0 * np.pi * rng.integers(0, modes, n) / modes
    centres = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.float32(centres + deviation * rng.normal(size=(n, 2)))


def test_all_modes_of_a_ring_are_made():
    """Trap: a generator that collapses makes a few of them."""
    x = ring(4096)
    config = gan.Config(
        8, embed_dim=8, hidden=(64, 64), latent_dim=8,
        penalty=0.003, learning_rate=3e-3, momentum=0.0,
    )  # fmt: skip
    algorithm = gan.build(config, (2,))
    found = train.fit(KEY, algorithm, x, epochs=100, refresh_every=0)
    nets = gan.build_nets(config, (2,))
    made = np.asarray(gan.generate(found.state, gan.latents(KEY, 2000, config), nets))
    angle = 2.0 * np.pi * np.arange(8) / 8
    centres = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    gaps = np.linalg.norm(made[:, None] - centres[None], axis=2)
    shares = np.bincount(gaps.argmin(axis=1)[gaps.min(axis=1) < 0.15], minlength=8) / 2000
    # A tenth of its share makes a mode, as in pretext.py; shares differ between machines.
    assert shares.min() > 0.0125 and shares.sum() > 0.5
    assert 0.9 < found.metrics["spread"][-1] < 1.1
