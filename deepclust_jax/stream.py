"""Rows that do not fit on the device: batches gathered by a host thread, a step ahead."""

import math
import queue
import threading
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepclust_jax.types import Array, Batch

_AHEAD = 2  # batches on their way to the device
_SAMPLE = 65_536  # rows at most that `refresh` sees of data that do not fit
_SAMPLE_BYTES = 2**30


def fits_on_device(x: Any) -> bool:
    """True for a plain array that would fill at most half of the device's memory."""
    if isinstance(x, np.memmap) or not isinstance(x, np.ndarray | jax.Array):
        return False
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit", float("inf"))  # the CPU names no limit
    return 4 * x.size <= limit / 2


def sample_size(x: Any) -> int:
    """How many rows `sample` gives of x [n, ...]."""
    if fits_on_device(x):
        return x.shape[0]
    return min(x.shape[0], _SAMPLE, max(1, _SAMPLE_BYTES // (4 * math.prod(x.shape[1:]))))


def sample(x: Any) -> Array:
    """All rows, or a fixed uniform sample of those that do not fit. [n, ...] float32.

    The sample has 65,536 rows, or what a GiB holds if that is less.
    """
    size = sample_size(x)
    if x.shape[0] == size:
        return jnp.asarray(x[:], jnp.float32)
    rows = np.random.default_rng(0).choice(x.shape[0], size, replace=False)
    return jnp.asarray(x[np.sort(rows)], jnp.float32)  # sorted: a memory map is read forwards


def batches(
    x: Any, index: np.ndarray, mask: np.ndarray, partner: np.ndarray | None = None
) -> Iterator[Batch]:
    """Batches of given rows, gathered ahead by a thread, each with that of its partner if there
    are partners. index, mask and partner [steps, ..., b].

    An error while gathering is raised here, in the consumer.
    """
    ready: queue.Queue = queue.Queue(maxsize=_AHEAD)
    stop = threading.Event()

    def put(item) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def gathered(rows):
        found = np.asarray(x[rows.reshape(-1)], np.float32)
        return found.reshape(*rows.shape, *x.shape[1:])

    def gather():
        try:
            for i, (rows, counts) in enumerate(zip(index, mask, strict=True)):
                batch = Batch(gathered(rows), rows, counts)
                if partner is not None:
                    batch = batch._replace(partner=gathered(partner[i]))
                if not put(jax.device_put(batch)):
                    return
            put(None)
        except Exception as error:
            put(error)

    thread = threading.Thread(target=gather, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:  # also when the consumer stops early
        stop.set()
        thread.join()
