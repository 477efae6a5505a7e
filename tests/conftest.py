"""Every test runs with warnings as errors and without silent broadcasting."""

import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the benchmark data; tests that need it are skipped where it is not set."""
    folder = os.environ.get("DEEPCLUST_DATA_DIR")
    if not folder:
        pytest.skip("DEEPCLUST_DATA_DIR is not set: no benchmark data")
    return Path(folder)
