"""Every test runs with warnings as errors and without silent broadcasting."""

import os
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the benchmark data; tests that need it are skipped where it is not set."""
    folder = os.environ.get("DEEPCLUST_DATA_DIR")
    if not folder:
        pytest.skip("DEEPCLUST_DATA_DIR is not set: no benchmark data")
    return Path(folder)


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    """Programs of an earlier test are read from a cache: most of the time here is compilation."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], str(tmp_path_factory.mktemp("xla")))
    jax.config.update(names[1], 0.0)
    compilation_cache.reset_cache()  # it remembers that there was none
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
