"""What the scripts do around their work: errors of one line, and outputs that are safe to write."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from deepclust_jax.config import ConfigError

# Errors of the user's, by name: the modules that define them are heavy to import.
EXPECTED = ("ConfigError", "DataError", "CheckpointError")


def guard(work: Callable[[], int], *, expected: Sequence[str | type] = EXPECTED) -> int:
    """What `work` returns; 2 after one line on standard error for an error that is expected, by
    its name or type, and 130 for Ctrl-C. All others are bugs, and are raised."""
    types = tuple(kind for kind in expected if isinstance(kind, type))
    try:
        return work()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if type(error).__name__ not in expected and not isinstance(error, types):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


def check_output(path: Path, suffix: str, *, overwrite: bool) -> None:
    """Raise ConfigError unless a file of that ending can be written there."""
    folder = path.absolute().parent
    if path.suffix != suffix:
        raise ConfigError(f"expected a file ending in {suffix}, found {path}; rename it")
    if os.path.exists(path) and not overwrite:
        raise ConfigError(f"{path} is there already; add --overwrite or choose another")
    if not os.path.isdir(folder):
        raise ConfigError(f"no folder {folder} for {path}; make it")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"no permission to write {path}; choose another folder")
