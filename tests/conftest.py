"""Every test runs with warnings as errors and without silent broadcasting."""

import gc
import os
from pathlib import Path

# Most of the time here is compilation, a third of it optimisation; XLA_FLAGS= brings that back.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from deepclust_jax import phases, train

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 4)  # for what is sharded; all else is on the first one


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the benchmark data; tests that need it are skipped where it is not set."""
    folder = os.environ.get("DEEPCLUST_DATA_DIR")
    if not folder:
        pytest.skip("DEEPCLUST_DATA_DIR is not set: no benchmark data")
    return Path(folder)


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """Programs of an earlier test are read from a cache: most of the time here is compilation.

    One for each process: of two, one would read what the other has half written.
    """
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()  # the import of a test may have shown it that there was none


# Of the 65,530 memory maps that Linux allows a process; a test takes some hundreds.
_MAPS = 40_000


@pytest.fixture(scope="module", autouse=True)
def let_go():
    """Programs of a file are let go of after it, for their memory."""
    yield
    _let_go()


@pytest.fixture(autouse=True)
def let_go_in_time():
    """Each program takes some of the memory maps that Linux allows a process, and when there are no
    more JAX ends with a segmentation fault: a long file lets go of them before."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > _MAPS:
        _let_go()


@pytest.fixture
def phases_anew():
    """For a test that puts something in the place of what phases are built of: none are kept from
    before it, nor after it."""
    phases._of.cache_clear()
    yield
    phases._of.cache_clear()


def _let_go() -> None:
    for kept in (phases._of, train._compile, train._jitted, train._embed_jitted):
        kept.cache_clear()
    jax.clear_caches()
    gc.collect()  # of what is left in cycles: programs are let go of with their last reference
