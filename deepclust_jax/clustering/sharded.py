"""k-means with the rows spread over devices and hosts, one sum of k (d + 1) numbers an iteration.

    found = sharded.fit(jax.random.key(0), x, 1000)     # all devices that JAX sees

On a CPU, `jax.config.update("jax_num_cpu_devices", 2)` before anything else makes devices of cores.
On several hosts call `jax.distributed.initialize()` first and give a global array, made by
`jax.make_array_from_process_local_data`.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from deepclust_jax.clustering import kmeans, lloyd
from deepclust_jax.types import Array, Key

AXIS = "rows"


def fit(
    key: Key,
    x: Array,
    n_clusters: int,
    *,
    devices: Sequence[jax.Device] | None = None,
    init: str | Array | Callable[..., Array] = "k-means++",
    n_init: int = 10,
    max_iter: int = 300,
    tol: float = 1e-4,
    sample: int | None = None,
) -> kmeans.KMeans:
    """`kmeans.fit` on several devices; from the same first centroids it finds the same labels.

    Args:
        key: a typed key; the result is a function of it and of the rows.
        x: rows [n, d]. A global array whose rows are sharded already stays where it is.
        n_clusters: k.
        devices: to use; None: all. Of a sharded array its own.
        init: as in `kmeans.fit`; restarts are made on a sample, on one device.
        n_init: restarts.
        max_iter: iterations at most.
        tol: as in `kmeans.fit`.
        sample: rows of the sample. None: 65,536, or 8 for each cluster where that is more.

    `labels` [n] are a sharded array.

    Raises:
        ValueError: as `kmeans.fit`.
    """
    is_given = hasattr(init, "shape")
    kmeans.check_key(key)
    kmeans.check(x, n_clusters, init, n_init, max_iter, None, None)
    n = x.shape[0]
    sample = kmeans.sample_size(sample, n_clusters)
    if devices is not None and (not isinstance(devices, Sequence) or len(devices) == 0):
        raise ValueError(
            f"expected devices as a list, such as jax.devices()[:2], found {devices!r}"
        )
    rows, weights, mesh, offset = _place(x, devices)
    variance, is_finite, is_tame = kmeans.survey(rows, n)
    if not is_finite:
        kmeans.check_finite("x", x)
    mean, scale = jnp.zeros((1, x.shape[1])), jnp.ones(())
    if not is_tame:
        rows, mean, scale, variance = _normalise(rows, weights)
    if is_given:
        start = (kmeans.narrow(init, offset) - mean) / scale
    else:
        chosen = kmeans.spread(jax.random.fold_in(key, n_init), n, min(sample, n))
        whole = NamedSharding(mesh, PartitionSpec())
        few = jax.jit(lambda x, rows: x[rows], out_shardings=whole)(rows, np.asarray(chosen))
        few = jnp.asarray(np.asarray(few))  # on one device
        start = kmeans.fit(key, few, n_clusters, init=init, n_init=n_init, tol=tol).centroids
    plan = lloyd.plan(
        rows.shape[0] // mesh.size, x.shape[1], n_clusters,
        weighted=rows.shape[0] > n, devices=mesh.size,
    )  # fmt: skip
    start = jax.device_put(np.asarray(start), NamedSharding(mesh, PartitionSpec()))
    found = _fit(rows, weights, start, max_iter, tol * variance, plan=plan, mesh=mesh)
    centroids = kmeans.with_offset(found.centroids * scale + mean, offset)
    return found._replace(
        centroids=centroids, labels=found.labels[:n], inertia=found.inertia * scale**2
    )


def _place(x, devices):
    """Rows and weights over the devices, padded with rows of no weight; mesh and offset."""
    sharding = getattr(x, "sharding", None)
    if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1:
        mesh = Mesh(sharding.mesh.devices.ravel(), (AXIS,), axis_types=(AxisType.Auto,))
        spread = NamedSharding(mesh, PartitionSpec(AXIS))
        if x.shape[0] % mesh.size:
            raise ValueError(
                f"expected a multiple of {mesh.size} rows, one part for each device, found "
                f"{x.shape[0]}; shard as many"
            )
        x = x if x.dtype == jnp.float32 else x.astype(jnp.float32)
        return jax.device_put(x, spread), _ones(x.shape[0], 0, spread), mesh, np.float32(0)
    devices = jax.devices() if devices is None else devices
    mesh = Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))
    spread = NamedSharding(mesh, PartitionSpec(AXIS))
    offset = kmeans.offset_of(x)
    padding = -x.shape[0] % mesh.size
    rows = np.asarray(x - offset if np.any(offset) else x, np.float32)
    rows = np.pad(rows, ((0, padding), (0, 0))) if padding else rows
    return jax.device_put(rows, spread), _ones(x.shape[0], padding, spread), mesh, offset


def _ones(n, padding, spread):
    return jax.device_put(np.r_[np.ones(n, np.float32), np.zeros(padding, np.float32)], spread)


@jax.jit
def _normalise(x, weights):
    share = weights[:, None] / jnp.sum(weights)
    rows, mean, scale = kmeans.normalise(x, share)
    return rows, mean, scale, jnp.sum(jnp.mean(share * rows**2, axis=1))


@partial(jax.jit, static_argnames=("plan", "mesh"))
def _fit(x, weights, centroids, max_iter, threshold, *, plan, mesh) -> kmeans.KMeans:
    k = centroids.shape[0]

    def local(x, weights, centroids, max_iter, threshold):
        rows, active = lloyd.prepare(plan, x, weights), jnp.ones(k, bool)
        best = lloyd.descend(plan, rows, centroids, active, max_iter, threshold, axis=AXIS)
        totals = lloyd.totals(plan, x, weights, best.labels, k)
        centroids = lloyd.means(lloyd.over_devices(totals, AXIS), best.centroids)
        labels = lloyd.nearest(plan, rows, centroids, jnp.sum(centroids**2, axis=-1))
        inertia = jnp.sum(weights * lloyd.distances(x, centroids, labels))
        inertia = lloyd.over_devices(inertia, AXIS)
        return kmeans.KMeans(centroids, labels, inertia, best.n_iter, best.converged)

    rows, whole = PartitionSpec(AXIS), PartitionSpec()
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(rows, rows, whole, whole, whole),
        out_specs=kmeans.KMeans(whole, rows, whole, whole, whole),
        check_vma=False,  # the loops begin with the same zeros on all devices
    )(x, weights, centroids, max_iter, threshold)
