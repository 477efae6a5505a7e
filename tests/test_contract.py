"""The one contract that every algorithm keeps; a new one is a line in ALGORITHMS."""

import dataclasses
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepclust_jax import checkpoint, train
from deepclust_jax.algorithms import (
    autoencoder,
    contrastive,
    dcn,
    dec,
    dkm,
    info_max,
    n2d,
    rotation,
    vade,
)
from deepclust_jax.types import Algorithm, Batch

SMALL = {"n_clusters": 3, "embed_dim": 2, "hidden": (16, 8)}
ALGORITHMS = {
    "autoencoder": (autoencoder, autoencoder.Config(**SMALL, n_init=2)),
    "autoencoder adaptive": (
        autoencoder,
        autoencoder.Config(**SMALL, n_init=2, metric="adaptive"),
    ),
    "dcn": (dcn, dcn.Config(**SMALL)),
    "dkm": (dkm, dkm.Config(**SMALL, alpha=10.0)),
    "dkm annealed": (dkm, dkm.Config(**SMALL, alpha=0.1, annealed=True, epochs_per_alpha=1)),
    "idec": (dec, dec.Config(**SMALL)),  # DEC is the same without a decoder: test_dec.py
    "vade": (vade, vade.Config(**SMALL, n_init=2)),
    "n2d": (
        n2d,
        n2d.Config(
            **SMALL,
            n_neighbors=5,
            n_layouts=2,
            layout_epochs=5,
            classifier=(8,),
            classifier_steps=5,
        ),
    ),
    "info_max": (info_max, info_max.Config(**SMALL, n_heads=2)),
    "rotation": (rotation, rotation.Config(**SMALL, n_init=2)),
    "contrastive": (
        contrastive,
        contrastive.Config(
            **SMALL,
            n_neighbors=5,
            n_layouts=2,
            layout_epochs=5,
            classifier_steps=5,
        ),
    ),
}
AT_END = (n2d, contrastive, info_max, rotation)  # cluster once, after training; autoencoders may
N, BATCH, SHAPE = 53, 16, (4, 4, 1)
KEY = jax.random.key(3)
X = np.asarray(
    jax.random.normal(jax.random.key(0), (N, *SHAPE))
    + 4.0 * jax.random.randint(jax.random.key(1), (N, 1, 1, 1), 0, 3)
    + jnp.arange(4.0)[None, :, None, None]  # brighter below: their turns can be told
)


@pytest.fixture(params=ALGORITHMS, ids=list(ALGORITHMS))
def case(request):
    return ALGORITHMS[request.param]


def batch(rows=BATCH):
    return Batch(jnp.asarray(X[:rows]), jnp.arange(rows), jnp.ones(rows))


def fit(module, *args, **options):
    """Trained as the module is, which saves compiling a clustering that no epoch needs."""
    return train.fit(*args, refresh_every=0 if module in AT_END else 1, **options)


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, other in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(one, other)


def test_headings(case):
    """The same names in the same order in every file of algorithms/."""
    module, config = case
    order = ["Config", "State", "Nets", "build_nets", "loss", "build"]
    source = inspect.getsource(module)
    written = re.findall(r"^(?:class|def) (\w+)", source, re.MULTILINE)
    found = [name for name in written if name in order]
    assert found == order, "each is written out in the file, none imported or a partial"
    assert dataclasses.is_dataclass(config) and config.__dataclass_params__.frozen
    assert list(inspect.signature(module.build_nets).parameters) == ["config", "shape"]
    names = ["params", "state", "batch", "key", "nets", "config"]
    assert list(inspect.signature(module.loss).parameters) == names


def test_argument_names(case):
    module, config = case
    algorithm = module.build(config, SHAPE)
    assert isinstance(algorithm, Algorithm)
    expected = {
        "init": ["key", "batch"],
        "step": ["key", "state", "batch"],
        "refresh": ["key", "state", "x"],
        "embed": ["state", "x"],
        "assign": ["state", "z"],
    }
    for name, arguments in expected.items():
        assert list(inspect.signature(getattr(algorithm, name)).parameters) == arguments


def test_state_holds_arrays_only(case):
    module, config = case
    state = module.build(config, SHAPE).init(KEY, batch())
    assert int(state.step) == 0
    for leaf in jax.tree.leaves(state):
        assert isinstance(leaf, jax.Array)
        assert not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def test_shapes(case):
    module, config = case
    algorithm = module.build(config, SHAPE)
    state = algorithm.init(KEY, batch())
    new, metrics = algorithm.step(KEY, state, batch())
    assert jax.tree.map(lambda a: (a.shape, a.dtype), new) == jax.tree.map(
        lambda a: (a.shape, a.dtype), state
    )
    assert int(new.step) == 1 and all(value.shape == () for value in metrics.values())
    z = algorithm.embed(new, jnp.asarray(X))
    labels = algorithm.assign(new, z)
    assert z.shape == (N, config.embed_dim)
    assert labels.shape == (N,) and labels.dtype == jnp.int32


def test_one_trace_over_many_steps(case):
    module, config = case
    algorithm, traces = module.build(config, SHAPE), []

    @jax.jit
    def step(*args):
        traces.append(1)
        return algorithm.step(*args)

    state = algorithm.init(KEY, batch())
    for _ in range(4):
        state, _ = step(KEY, state, batch())
    assert len(traces) == 1 and int(state.step) == 4


def test_jit_equals_eager(case):
    module, config = case
    algorithm = module.build(config, SHAPE)
    state = algorithm.init(KEY, batch())
    eager, _ = algorithm.step(KEY, state, batch())
    jitted, _ = jax.jit(algorithm.step)(KEY, state, batch())
    for one, other in zip(leaves(eager), leaves(jitted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_same_key_same_run(case):
    module, config = case
    algorithm = module.build(config, SHAPE)
    a, b, c = (
        train.fit(jax.random.key(s), algorithm, X, epochs=2, batch_size=BATCH) for s in (0, 0, 1)
    )
    assert_equal(a.state, b.state)
    assert any((u != v).any() for u, v in zip(leaves(a.state), leaves(c.state), strict=True))


def test_population_equals_single_runs(case):
    module, config = case
    algorithm = module.build(config, SHAPE)
    keys = jax.random.split(KEY, 3)
    many = fit(module, keys, algorithm, X, epochs=3, batch_size=BATCH)
    for i, key in enumerate(keys):
        one = fit(module, key, algorithm, X, epochs=3, batch_size=BATCH)
        for a, b in zip(leaves(many.state), leaves(one.state), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6)
        for name in many.metrics:
            np.testing.assert_allclose(many.metrics[name][:, i], one.metrics[name], rtol=1e-4)


def test_vmap_equals_one_after_another(case, monkeypatch):
    """Accelerators run the seeds of a population by vmap, the CPU by a loop."""
    module, config = case
    algorithm = module.build(config, SHAPE)
    keys = jax.random.split(KEY, 3)
    looped = fit(module, keys, algorithm, X, epochs=2, batch_size=BATCH)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    mapped = fit(module, keys, algorithm, X, epochs=2, batch_size=BATCH)
    for a, b in zip(leaves(looped.state), leaves(mapped.state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_stop_save_load_continue_equals_uninterrupted(case, tmp_path):
    module, config = case
    algorithm = module.build(config, SHAPE)
    whole = fit(module, KEY, algorithm, X, epochs=5, batch_size=BATCH)
    part = fit(module, KEY, algorithm, X, epochs=2, batch_size=BATCH)
    checkpoint.save(tmp_path, part.state, step=int(part.state.step))
    target = jax.eval_shape(lambda: train.init(KEY, algorithm, X, batch_size=BATCH))
    state = checkpoint.restore(tmp_path, target)
    rest = fit(module, KEY, algorithm, X, epochs=5, batch_size=BATCH, state=state)
    assert_equal(whole.state, rest.state)
    assert len(rest.metrics["loss"]) == 3


def test_streamed_equals_resident(case):
    module, config = case
    algorithm = module.build(config, SHAPE)
    keys = jax.random.split(KEY, 2)
    runs = [
        fit(module, keys, algorithm, X, epochs=2, batch_size=BATCH, resident=resident)
        for resident in (True, False)
    ]
    for a, b in zip(leaves(runs[0].state), leaves(runs[1].state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for name in runs[0].metrics:
        np.testing.assert_allclose(runs[0].metrics[name], runs[1].metrics[name], rtol=1e-4)


def test_padding_never_reaches_a_gradient(case):
    module, config = case
    algorithm = module.build(config, SHAPE)
    state = algorithm.init(KEY, batch())
    rows = batch()
    mask = rows.mask.at[-4:].set(0.0)
    changed = rows._replace(x=rows.x.at[-4:].set(1e3), mask=mask)
    a, metrics_a = algorithm.step(KEY, state, rows._replace(mask=mask))
    b, metrics_b = algorithm.step(KEY, state, changed)
    assert_equal(a, b)
    assert_equal(metrics_a, metrics_b)
    full, _ = algorithm.step(KEY, state, rows)
    assert any((u != v).any() for u, v in zip(leaves(a), leaves(full), strict=True))


def test_augmentation_changes_training_and_nothing_after_it(case):
    module, config = case

    def shaken(key, row):
        return row + jax.random.normal(key, row.shape)

    plain, augmented = module.build(config, SHAPE), module.build(config, SHAPE, augment=shaken)
    keys = jax.random.split(KEY, 2)
    a, b, c = (
        fit(module, keys, algorithm, X, epochs=2, batch_size=BATCH, resident=resident).state
        for algorithm, resident in ((plain, True), (augmented, True), (augmented, False))
    )
    pairs = zip(leaves(a.params["encoder"]), leaves(b.params["encoder"]), strict=True)
    assert all((u != v).any() for u, v in pairs if u.ndim == 3)
    for u, v in zip(leaves(b), leaves(c), strict=True):  # resident and streamed
        np.testing.assert_allclose(u, v, rtol=1e-5, atol=1e-6)
    assert_equal(train.embed(plain, b, X), train.embed(augmented, b, X))


def test_a_wrapped_loss_changes_training(case):
    """Trap (rejax): an override that is silently not called."""
    module, config = case

    def loss(params, state, batch, key, **static):
        value, terms = module.loss(params, state, batch, key, **static)
        z = static["nets"].encoder.apply(params["encoder"], batch.x)
        return value + jnp.mean(z**2), terms | {"size": jnp.mean(z**2)}

    runs = [
        fit(module, KEY, a, X, epochs=3, batch_size=BATCH)
        for a in (module.build(config, SHAPE), module.build(config, SHAPE, loss=loss))
    ]
    assert "size" in runs[1].metrics and "size" not in runs[0].metrics
    encoders = [leaves(run.state.params["encoder"]) for run in runs]
    assert all((a != b).any() for a, b in zip(*encoders, strict=True) if a.ndim == 2)


def test_an_optimizer_can_be_passed(case):
    import optax

    module, config = case
    algorithm = module.build(config, SHAPE, optimizer=optax.sgd(0.0))
    state = algorithm.init(KEY, batch())
    new, _ = algorithm.step(KEY, state, batch())
    assert_equal(new.params, state.params)


def test_training_improves_the_loss(case):
    module, config = case
    algorithm = module.build(config, SHAPE)
    found = fit(module, KEY, algorithm, X, epochs=30, batch_size=BATCH)
    name = "reconstruction" if "reconstruction" in found.metrics else "loss"
    assert found.metrics[name][-1] < 0.9 * found.metrics[name][0]


def test_labels_cannot_be_reached(case):
    """Nothing that trains, clusters or refreshes has a place where labels could come in."""
    module, config = case
    algorithm = module.build(config, SHAPE)
    functions = [train.fit, train.refresh, train.embed, module.build, *algorithm]
    forbidden = {"y", "labels", "label", "target", "targets", "truth"}
    for function in functions:
        assert not forbidden & set(inspect.signature(function).parameters)
    assert set(Batch._fields) == {"x", "index", "mask", "clean", "partner"}


def test_works_on_images(case):
    module, config = case
    config = dataclasses.replace(config, network="conv")
    algorithm = module.build(config, (9, 9, 1))  # no multiple of 8
    images = np.asarray(jax.random.uniform(KEY, (12, 9, 9, 1)))
    found = fit(module, KEY, algorithm, images, epochs=2, batch_size=6)
    assert np.isfinite(found.metrics["loss"]).all()
    assert algorithm.embed(found.state, jnp.asarray(images)).shape == (12, config.embed_dim)
