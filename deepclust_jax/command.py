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
        reason = str(error)
        if isinstance(error, OSError):  # a full disk, or a file that is gone
            reason = f"{error.filename or 'a file'}: {error.strerror or error}"
        elif type(error).__name__ not in expected and not isinstance(error, types):
            raise
        print(f"error: {reason}", file=sys.stderr)
        return 2


def check_seed(seed: int) -> None:
    """Raise ConfigError for a seed that is no root of keys."""
    if not 0 <= seed < 2**32:
        raise ConfigError(f"expected --seed from 0 to 2**32 - 1, found {seed}")


def check_output(path: Path, suffix: str, *, overwrite: bool) -> None:
    """Raise ConfigError unless a file of that ending can be written there."""
    folder = path.absolute().parent
    if path.suffix != suffix:
        raise ConfigError(f"expected a file ending in {suffix}, found {path}; rename it")
    if os.path.isdir(path):
        raise ConfigError(f"{path} is a folder; choose a file")
    if os.path.exists(path) and not overwrite:
        raise ConfigError(f"{path} is there already; add --overwrite or choose another")
    if not os.path.isdir(folder):
        raise ConfigError(f"no folder {folder} for {path}; make it")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"no permission to write {path}; choose another folder")
