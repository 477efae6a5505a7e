"""The one contract that every algorithm keeps; a new one is a line in ALGORITHMS."""

import dataclasses
import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from deepclust_jax import checkpoint, stream, train
from deepclust_jax.algorithms import (
    autoencoder,
    bi_gan,
    cluster_gan,
    contrastive,
    cross_modal,
    dcn,
    dec,
    deep_cluster,
    dkm,
    gan,
    info_gan,
    info_max,
    mmdc,
    n2d,
    next_frame,
    next_token,
    rotation,
    vade,
)
from deepclust_jax.types import Algorithm, Batch

SMALL = {"n_clusters": 3, "embed_dim": 2, "hidden": (16,)}
ALGORITHMS = {
    "autoencoder": (autoencoder, autoencoder.Config(**SMALL, n_init=2, metric="adaptive")),
    "dcn": (dcn, dcn.Config(**SMALL)),
    "dkm": (dkm, dkm.Config(**SMALL, alpha=0.1, annealed=True, epochs_per_alpha=1)),
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
    "rotation": (rotation, rotation.Config(**SMALL | {"hidden": (16, 8)}, n_init=2)),
    "mmdc": (mmdc, mmdc.Config(**SMALL)),
    "deep_cluster": (
        deep_cluster,
        deep_cluster.Config(**SMALL, n_classes=8, n_init=2),
    ),
    "gan": (gan, gan.Config(**SMALL, latent_dim=4, n_init=2)),
    "info_gan": (info_gan, info_gan.Config(**SMALL, latent_dim=4, n_init=2)),
    "cluster_gan": (cluster_gan, cluster_gan.Config(**SMALL, latent_dim=4, n_init=2)),
    "bi_gan": (bi_gan, bi_gan.Config(**SMALL, latent_dim=4, n_init=2)),
    "next_token": (
        next_token,
        next_token.Config(3, 4, hidden=(8,), learning_rate=0.03, vocabulary=20, n_init=2),
    ),
    "next_frame": (
        next_frame,
        next_frame.Config(3, 2, hidden=(8,), ahead=1, parts=2, n_init=2),
    ),
    "cross_modal": (
        cross_modal,
        cross_modal.Config(**SMALL, parts=((4, 2, 1), (8,)), n_init=2),
    ),
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
GAMES = (gan, info_gan, cluster_gan, bi_gan)
# One of each kind of steps: what costs a training of its own is of these.
KINDS = (autoencoder, contrastive, gan, next_token)
# What they cluster once, and no epoch needs.
AT_ONCE = (n2d, contrastive, info_max, next_token, next_frame, rotation, cross_modal, *GAMES)
N, BATCH, SHAPE = 53, 16, (4, 4, 1)
KEY = jax.random.key(3)
X = np.asarray(
    jax.random.normal(jax.random.key(0), (N, *SHAPE))
    + 4.0 * jax.random.randint(jax.random.key(1), (N, 1, 1, 1), 0, 3)
    + jnp.arange(4.0)[None, :, None, None]  # brighter below: their turns can be told
)


# Documents of a start and some of three words that go on in turn, and padding.
WORDS = (np.arange(N)[:, None] + np.arange(63)[None, :]) % 3 + 2 + 3 * (np.arange(N)[:, None] % 3)
TOKENS = np.pad(np.float32(WORDS), ((0, 0), (1, 0)), constant_values=1.0)
TOKENS[::2, 40:] = 0.0
KEYS = jax.random.split(KEY, 2)


@pytest.fixture(scope="module", params=ALGORITHMS, ids=list(ALGORITHMS))
def case(request):
    """Module, config, rows and algorithm: the same object in all tests, so that each program is
    compiled once."""
    module, config = ALGORITHMS[request.param]
    x = {next_token: TOKENS, cross_modal: X.reshape(N, -1)}.get(module, X)
    return module, config, x, module.build(config, x.shape[1:])


def width(config):
    """Of the codes; those of several modalities stand side by side."""
    sides = len(config.parts) if isinstance(config, cross_modal.Config) else 1
    return sides * config.embed_dim


@functools.lru_cache
def jitted(algorithm):
    """The step, and a list with an entry for each time that it was traced."""
    traces = []

    def step(*args):
        traces.append(1)
        return algorithm.step(*args)

    return jax.jit(step), traces


def population(algorithm, x):
    """States that a training of KEYS starts from."""
    return train.init(KEYS, algorithm, x, batch_size=BATCH)


def started(algorithm, x, run=0):
    """One of them."""
    states = population(algorithm, x)
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[run]), states)


def batch(x):
    return Batch(jnp.asarray(x[:BATCH]), jnp.arange(BATCH), jnp.ones(BATCH))


def fit(module, *args, **options):
    """Trained as the module is, which saves compiling a clustering that no epoch needs."""
    return train.fit(*args, refresh_every=0 if module in AT_ONCE else 1, **options)


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, other in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_array_equal(one, other)


def test_headings(case):
    """The same names in the same order in every file of algorithms/."""
    module, config, x, algorithm = case
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
    module, config, x, algorithm = case
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
    x, algorithm = case[2:]
    states = population(algorithm, x)
    np.testing.assert_array_equal(states.step, 0)
    for leaf in jax.tree.leaves(states):
        assert isinstance(leaf, jax.Array)
        assert not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def test_shapes(case):
    module, config, x, algorithm = case
    state = started(algorithm, x)
    new, metrics = jitted(algorithm)[0](KEY, state, batch(x))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), new) == jax.tree.map(
        lambda a: (a.shape, a.dtype), state
    )
    assert int(new.step) == 1 and all(value.shape == () for value in metrics.values())
    z, labels = train.embed(algorithm, new, x)
    assert z.shape == (N, width(config))
    assert labels.shape == (N,) and labels.dtype == jnp.int32


def test_one_trace_over_many_steps(case):
    x, algorithm = case[2:]
    state, (step, traces) = started(algorithm, x), jitted(algorithm)
    for _ in range(4):
        state, _ = step(KEY, state, batch(x))
    assert len(traces) == 1 and int(state.step) == 4


def test_two_traces_are_one_program(case):
    """No random number of the host is in a step, and no counter of Python."""
    x, algorithm = case[2:]
    state = started(algorithm, x)
    steps = jitted(algorithm)[0], jitted.__wrapped__(algorithm)[0]
    one, other = (step.lower(KEY, state, batch(x)).as_text() for step in steps)
    assert one == other


def test_jit_equals_eager():
    """Of one algorithm: op by op a step takes seconds."""
    algorithm = autoencoder.build(ALGORITHMS["autoencoder"][1], X.shape[1:])
    state = started(algorithm, X)
    eager, _ = algorithm.step(KEY, state, batch(X))
    at_once, _ = jitted(algorithm)[0](KEY, state, batch(X))
    for one, other in zip(leaves(eager), leaves(at_once), strict=True):
        # Adam divides a gradient by its size: rounding of a small one is part of a step of 1e-3.
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=5e-5)


def test_same_key_same_run(case):
    module, config, x, algorithm = case
    a, b = (fit(module, KEYS, algorithm, x, epochs=2, batch_size=BATCH) for _ in range(2))
    assert_equal(a.state, b.state)
    assert any((leaf[0] != leaf[1]).any() for leaf in leaves(a.state))


def test_population_equals_single_runs(case):
    """And a run is the same whatever runs stand beside it, in any order."""
    module, config, x, algorithm = case
    many, turned = (
        fit(module, keys, algorithm, x, epochs=3, batch_size=BATCH) for keys in (KEYS, KEYS[::-1])
    )
    for a, b in zip(leaves(many.state), leaves(turned.state), strict=True):
        np.testing.assert_array_equal(a, b[::-1])
    for i, key in enumerate(KEYS):
        if module not in KINDS:
            continue
        one = fit(module, key, algorithm, x, epochs=3, batch_size=BATCH)
        for a, b in zip(leaves(many.state), leaves(one.state), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6)
        for name in many.metrics:
            np.testing.assert_allclose(many.metrics[name][:, i], one.metrics[name], rtol=1e-4)


def test_vmap_equals_one_after_another(case, monkeypatch):
    """Accelerators run the seeds of a population by vmap, the CPU by a loop."""
    module, config, x, algorithm = case
    looped = fit(module, KEYS, algorithm, x, epochs=2, batch_size=BATCH)
    # An init and a whole epoch of each kind, of the others the steps.
    whole = module in KINDS
    start = None if whole else population(algorithm, x)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    mapped = fit(
        module, KEYS, algorithm, x, epochs=2, batch_size=BATCH, state=start, resident=whole
    )
    for a, b in zip(leaves(looped.state), leaves(mapped.state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_stop_save_load_continue_equals_uninterrupted(case, tmp_path):
    module, config, x, algorithm = case
    whole = fit(module, KEYS, algorithm, x, epochs=5, batch_size=BATCH)
    part = fit(module, KEYS, algorithm, x, epochs=2, batch_size=BATCH)
    checkpoint.save(tmp_path, part.state, step=int(part.state.step[0]))
    target = jax.eval_shape(lambda: train.init(KEYS, algorithm, x, batch_size=BATCH))
    state = checkpoint.restore(tmp_path, target)
    rest = fit(module, KEYS, algorithm, x, epochs=5, batch_size=BATCH, state=state)
    assert_equal(whole.state, rest.state)
    assert len(rest.metrics["loss"]) == 3


def test_streamed_equals_resident(case):
    """By `fit`, or by its steps alone where nothing comes between them."""
    module, config, x, algorithm = case
    resident = fit(module, KEYS, algorithm, x, epochs=2, batch_size=BATCH)
    if module in KINDS or module not in AT_ONCE:
        streamed = fit(module, KEYS, algorithm, x, epochs=2, batch_size=BATCH, resident=False)
        for a, b in zip(leaves(resident.state), leaves(streamed.state), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        for name in resident.metrics:
            np.testing.assert_allclose(resident.metrics[name], streamed.metrics[name], rtol=1e-4)
        return
    for i, key in enumerate(KEYS):
        state, step_key = started(algorithm, x, i), jax.random.fold_in(key, train._STEP)
        for epoch in range(2):
            order = jax.device_get(train._order(key, jnp.int32(epoch), N, BATCH))
            told = []
            for rows in stream.batches(x, *order):
                state, metrics = jitted(algorithm)[0](step_key, state, rows)
                told.append(jax.device_get(metrics))
            for name, values in resident.metrics.items():
                means = train._means(
                    {name: np.stack([m[name] for m in told]) for name in told[0]},
                    order[1].sum(axis=1),
                )
                np.testing.assert_allclose(values[epoch, i], means[name], rtol=1e-4)
        for a, b in zip(leaves(resident.state), leaves(state), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6)


def test_padding_never_reaches_a_gradient(case):
    module, config, x, algorithm = case
    state, rows, step = started(algorithm, x), batch(x), jitted(algorithm)[0]
    mask = rows.mask.at[-4:].set(0.0)
    changed = rows._replace(x=rows.x.at[-4:].set(1e3), mask=mask)
    a, metrics_a = step(KEY, state, rows._replace(mask=mask))
    b, metrics_b = step(KEY, state, changed)
    assert_equal(a, b)
    assert_equal(metrics_a, metrics_b)
    full, _ = step(KEY, state, rows)
    assert any((u != v).any() for u, v in zip(leaves(a), leaves(full), strict=True))


def test_augmentation_changes_training_and_nothing_after_it(case):
    module, config, x, algorithm = case

    def shaken(key, row):
        return row + jax.random.normal(key, row.shape)

    augmented = module.build(config, x.shape[1:], augment=shaken)
    a = b = started(algorithm, x)
    for _ in range(2):
        a, b = (
            jitted(own)[0](KEY, state, batch(x))[0]
            for own, state in ((algorithm, a), (augmented, b))
        )
    pairs = zip(leaves(a.params["encoder"]), leaves(b.params["encoder"]), strict=True)
    kernels = [(u, v) for u, v in pairs if u.ndim >= 2]
    assert kernels and all((u != v).any() for u, v in kernels)
    assert_equal(train.embed(algorithm, b, x), train.embed(augmented, b, x))
    if module in KINDS:
        c, d = (
            fit(module, KEYS, augmented, x, epochs=2, batch_size=BATCH, resident=own).state
            for own in (True, False)
        )
        for u, v in zip(leaves(c), leaves(d), strict=True):
            np.testing.assert_allclose(u, v, rtol=1e-5, atol=1e-6)


def test_a_loss_and_an_optimizer_can_be_passed(case):
    """Trap (rejax): an override that is silently not called."""
    module, config, x, algorithm = case

    def loss(params, state, batch, key, **static):
        # Its arguments are those of the loss in the module.
        jax.eval_shape(functools.partial(module.loss, **static), params, state, batch, key)
        size = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params["encoder"]))
        return size, {"size": size}

    own = module.build(config, x.shape[1:], loss=loss, optimizer=optax.sgd(0.25))
    opt_state = jax.eval_shape(own.init, KEY, batch(x)).opt_state
    assert not jax.tree.leaves(opt_state), "of SGD, which has none"
    state = started(algorithm, x).replace(opt_state=opt_state)
    new, metrics = jitted(own)[0](KEY, state, batch(x))
    assert "size" in metrics and metrics["loss"] == metrics["size"]
    for name, part in state.params.items():
        by = 0.25 if name == "encoder" else 0.0
        assert_equal(new.params[name], jax.tree.map(lambda leaf, by=by: leaf - by, part))


def test_training_improves_the_loss(case):
    module, config, x, algorithm = case
    found = fit(module, KEYS, algorithm, x, epochs=30, batch_size=BATCH)
    name = "reconstruction" if "reconstruction" in found.metrics else "loss"
    if module in GAMES:  # of two players, what one gains the other loses; this one is first
        name = "discriminator"
    values = found.metrics[name].mean(axis=1)
    assert values[-1] < 0.9 * values[0]


def test_labels_cannot_be_reached(case):
    """Nothing that trains, clusters or refreshes has a place where labels could come in."""
    module, config, x, algorithm = case
    functions = [train.fit, train.refresh, train.embed, module.build, *algorithm]
    forbidden = {"y", "labels", "label", "target", "targets", "truth"}
    for function in functions:
        assert not forbidden & set(inspect.signature(function).parameters)
    assert set(Batch._fields) == {"x", "index", "mask", "clean", "partner"}


def test_works_with_another_network(case):
    """Convolutions on images, of no multiple of 8; documents are read by a transformer."""
    module, config, x, _ = case
    other, rows = "conv", np.asarray(jax.random.uniform(KEY, (12, 9, 9, 1)))
    if module in (next_token, next_frame):
        other, rows = "transformer", x[:12]
    if module is cross_modal:  # an image and a table
        rows, config = rows.reshape(12, -1), dataclasses.replace(config, parts=((8, 9, 1), (9,)))
    algorithm = module.build(dataclasses.replace(config, network=other), rows.shape[1:])
    some = Batch(jnp.asarray(rows), jnp.arange(12), jnp.ones(12))
    state = jax.eval_shape(algorithm.init, KEY, some)
    new, _ = jax.eval_shape(algorithm.step, KEY, state, some)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    z = jax.eval_shape(algorithm.embed, state, some.x)
    assert z.shape == (12, width(config))
    assert jax.eval_shape(algorithm.assign, state, z).shape == (12,)
    if module in (autoencoder, contrastive, next_token):  # of each kind; the others compile long
        state = jax.jit(algorithm.init)(KEY, some)
        new, found = jitted(algorithm)[0](KEY, state, some)
        assert np.isfinite(found["loss"])
        moved = zip(leaves(state.params["encoder"]), leaves(new.params["encoder"]), strict=True)
        assert any((a != b).any() for a, b in moved)
        assert np.isfinite(train.embed(algorithm, new, rows)[0]).all()
