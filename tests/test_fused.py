"""The kernel of accelerators: step by step on a CPU, and lowered for GPU and TPU."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from deepclust_jax.clustering import fused, lloyd

SHAPES = [
    (1000, 10, 7), (513, 128, 300), (70, 3, 1), (5, 2, 3), (640, 200, 129), (256, 16, 16),
]  # fmt: skip


def integers(n, d, k):
    """Rows and centroids of small integers: products are exact, and many scores are tied."""
    rng = np.random.default_rng(n + k)
    return (rng.integers(-2, 3, size=(m, d)).astype(np.float32) for m in (n, k))


def padded(x):
    return jnp.pad(x, ((0, 0), (0, fused.width(x.shape[1]) - x.shape[1])))


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize("shape", SHAPES)
def test_labels_and_ties_as_numpy(shape, platform):
    x, c = integers(*shape)
    offsets = np.sum(c**2, axis=1)
    scores = offsets[None] - 2 * x @ c.T
    labels = fused.nearest(padded(x), c, offsets, platform=platform, interpret=True)
    np.testing.assert_array_equal(labels, scores.argmin(axis=1))
    if shape[2] > 100:
        tied = np.sum(scores == scores.min(axis=1, keepdims=True), axis=1) > 1
        assert tied.any()  # or the test says nothing of ties


def test_centroids_left_out_get_no_row():
    x, c = integers(300, 8, 40)
    offsets = np.where(np.arange(40) < 25, np.sum(c**2, axis=1), np.inf).astype(np.float32)
    labels = fused.nearest(padded(x), c, offsets, platform="gpu", interpret=True)
    np.testing.assert_array_equal(labels, (offsets[None] - 2 * x @ c.T).argmin(axis=1))
    assert labels.max() < 25


def test_over_a_population():
    x, c = integers(300, 8, 40)
    many = jnp.stack([c, c[::-1], c + 1])
    offsets = jnp.sum(many**2, axis=-1)

    def nearest(c, offsets):
        return fused.nearest(padded(x), c, offsets, platform="tpu", interpret=True)

    together = jax.vmap(nearest)(many, offsets)
    for one, c, h in zip(together, many, offsets, strict=True):
        np.testing.assert_array_equal(one, nearest(c, h))


@pytest.mark.parametrize("shape", [(100_000, 128, 1024), (70_000, 10, 10), (9298, 256, 100)])
def test_lowers_for_tpu(shape):
    n, d, k = shape
    text = lowered("tpu", n, d, k)
    assert "tpu_custom_call" in text
    assert f"{n}x{k}xf32" not in text  # no score of all rows


@pytest.mark.skipif(
    not hasattr(jax.sharding, "AbstractDevice"), reason="this JAX lowers for a GPU beside one only"
)
@pytest.mark.parametrize("shape", [(100_000, 128, 1024), (70_000, 10, 10), (9298, 120, 100)])
def test_lowers_for_gpu(shape):
    n, d, k = shape
    device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
    axis = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((1,), ("x",), axis_types=axis, abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated")
        text = lowered("cuda", n, d, k)
    assert "triton" in text and f"{n}x{k}xf32" not in text


def lowered(platform, n, d, k):
    def nearest(x, c, offsets):
        name = {"cuda": "gpu"}.get(platform, platform)
        return fused.nearest(x, c, offsets, platform=name)

    calls = [f"{name}" for name in ("__gpu$xla.gpu.triton", "tpu_custom_call")]
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in calls]
    shapes = [(n, fused.width(d)), (k, d), (k,)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    exporter = export.export(jax.jit(nearest), platforms=[platform], disabled_checks=checks)
    return exporter(*arrays).mlir_module()


def test_not_used_where_it_cannot_run():
    assert not fused.works(10, 10, "cpu")
    assert not fused.works(10, 10, "gpu")  # no such device here
    assert lloyd.plan(10_000, 10, 10, platform="gpu").form == "rows"
    assert lloyd.plan(10_000_000, 128, 1000, platform="tpu").form == "blocks"


def test_a_kernel_that_fails_or_errs_is_not_used(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    kernel = fused.nearest

    def here(*args, platform):
        return kernel(*args, platform=platform, interpret=True)

    try:
        for wrong, verdict in [
            (here, True),
            (lambda *args, platform: here(*args, platform=platform) + 1, False),
            (lambda *args, platform: 1 / 0, False),
        ]:
            monkeypatch.setattr(fused, "nearest", wrong)
            fused._works.cache_clear()
            # Also while a program is traced, and from within vmap.
            traced = jax.jit(jax.vmap(lambda x: x * fused.works(10, 20, "gpu")))
            assert traced(jnp.ones(3)).tolist() == [verdict] * 3
            assert fused.works(200, 20, "gpu") is False
            with jax.enable_x64(True):
                assert fused.works(10, 20, "gpu") is False
            form = "fused" if verdict else "blocks"
            assert lloyd.plan(10**9, 10, 20, platform="gpu").form == form
    finally:
        fused._works.cache_clear()


def rounded(x, bits):
    """float32 numbers with so many bits of their mantissa."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.round(mantissa * 2**bits) / 2**bits, exponent).astype(np.float32)


@pytest.mark.parametrize("shape", [(10, 10), (64, 256), (784, 10), (3, 2), (5, 1)])
def test_the_trial_tells_precisions_apart(shape):
    """Trap: products of TF32 (11 bits) pass for float32 on small whole numbers."""
    x, c, offsets = fused.trial(*shape)

    def labels(products):
        return np.argmin(offsets[None] - 2.0 * products, axis=1)

    assert fused.is_right(x, c, offsets, labels(x @ c.T))
    assert not fused.is_right(x, c, offsets, labels(x @ c.T) + 1)
    parts = [(rounded(a, 11), rounded(a - rounded(a, 11), 11)) for a in (x, c)]
    (x_high, x_low), (c_high, c_low) = parts
    three = x_high @ c_high.T + (x_high @ c_low.T + x_low @ c_high.T)
    assert fused.is_right(x, c, offsets, labels(three))
    if shape[1] > 2:
        assert not fused.is_right(x, c, offsets, labels(x_high @ c_high.T))


def test_products_on_a_gpu_are_three_and_on_its_cpu_whole(monkeypatch):
    x, c = (jnp.asarray(a) for a in integers(30, 8, 5))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    np.testing.assert_array_equal(jax.jit(lloyd.product)(x, c.T), x @ c.T)
    lower = export.export(jax.jit(lambda a, b: lloyd.product(a, b)), platforms=["cuda"])
    assert "num_primitive_operations = 3" in lower(x, c.T).mlir_module()


def test_sums_by_copies_equal_the_others():
    """The sums of a GPU: one scatter into copies of the clusters."""
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(5000, 3)).astype(np.float32), rng.random(5000, np.float32)
    labels = rng.integers(7, size=5000)
    one = jnp.asarray(x), jnp.asarray(weights), jnp.asarray(labels)
    found = {
        sums: lloyd.totals(lloyd.Plan("rows", 5000, sums, "all"), *one, 9)
        for sums in ("copies", "product")
    }
    for a, b in zip(*found.values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)
    assert lloyd.plan(10**6, 64, 256, platform="gpu").sums == "copies"
    assert lloyd.plan(10**6, 64, 256, platform="tpu").sums == "product"


@pytest.mark.parametrize("lowered_for", [("cpu",), ("cuda", "rocm")])
def test_k_means_through_the_kernel(monkeypatch, lowered_for):
    """The whole algorithm with the plan of a GPU, the kernel interpreted; and on the CPU of a
    machine that has a GPU, where the kernel cannot run and blocks must."""
    kernel, called = fused.nearest, []

    def interpreted(*args, platform):
        called.append(platform)
        assert lowered_for == ("cpu",) or jax.default_backend() == "cpu"
        return kernel(*args, platform="gpu", interpret=True)

    monkeypatch.setattr(fused, "nearest", interpreted)
    monkeypatch.setattr(fused, "LOWERED", {"cpu": lowered_for})
    x, c = integers(700, 5, 9)
    x = x + np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    found = {}
    for form in ("fused", "blocks"):
        plan = lloyd.Plan(form, 100, "copies", "all")
        rows = lloyd.prepare(plan, jnp.asarray(x), jnp.ones(700))
        active = jnp.ones(9, bool)
        found[form] = lloyd.descend(plan, rows, jnp.asarray(c), active, 50, 0.0)
    np.testing.assert_array_equal(found["fused"].labels, found["blocks"].labels)
    np.testing.assert_allclose(found["fused"].centroids, found["blocks"].centroids, atol=1e-5)
    assert found["fused"].n_iter == found["blocks"].n_iter > 3
    assert called
