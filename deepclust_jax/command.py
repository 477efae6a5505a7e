"""What the scripts do around their work: errors of one line, outputs that are safe to write, and
processes that are timed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deepclust_jax.config import ConfigError

# Errors of the user's, by name: the modules that define them are heavy to import.
EXPECTED = ("ConfigError", "DataError", "CheckpointError")

INTERRUPTED = 130  # exit code, as shells have it

# Settings that hold a library's threads or kernels back; they would cripple a peer of a benchmark.
_HELD = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def guard(work: Callable[[], int], *, expected: Sequence[str | type] = EXPECTED) -> int:
    """What `work` returns; 2 after one line on standard error for an error that is expected, by
    its name or type, and 130 for Ctrl-C. All others are bugs, and are raised."""
    types = tuple(kind for kind in expected if isinstance(kind, type))
    try:
        return work()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        raise  # no error of the user's: see `to_reader`
    except Exception as error:
        reason = str(error)
        if isinstance(error, OSError):  # a full disk, or a file that is gone
            reason = f"{error.filename or 'a file'}: {error.strerror or error}"
        elif type(error).__name__ not in expected and not isinstance(error, types):
            raise
        print(f"error: {reason}", file=sys.stderr)
        return 2


def to_reader(main: Callable[[], int]) -> int:
    """What `main` returns, once what it printed is written; 141, as shells have it, where the
    reader left before that, as of `| head`. After Ctrl-C the process ends here."""
    code = 0
    try:
        try:
            code = main()
        except SystemExit as end:  # after --help
            code = end.code
        if sys.stdout is not None:
            sys.stdout.flush()
        if code == INTERRUPTED:
            # JAX may still compile in threads of its own, and Python, which takes its modules away
            # as it ends, would end with a segmentation fault.
            sys.stderr.flush()
            os._exit(code)
        return code
    except BrokenPipeError:
        # Or Python complains when it flushes again as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code or 141


def check_seed(seed: int) -> None:
    """Raise ConfigError for a seed that is no root of keys."""
    if not 0 <= seed < 2**32:
        raise ConfigError(f"expected --seed from 0 to 2**32 - 1, found {seed}")


def check_output(path: Path, suffix: str, flag: str, *, overwrite: bool) -> None:
    """Raise ConfigError unless a file of that ending, the value of `flag`, can be written there."""
    folder = path.absolute().parent
    if path.suffix != suffix:
        raise ConfigError(f"expected a file ending in {suffix}, found {path}; rename it")
    if os.path.isdir(path):
        raise ConfigError(f"{path} is a folder; choose a file")
    if os.path.exists(path) and not overwrite:
        raise ConfigError(f"{path} is there already; add --overwrite or give another {flag}")
    if not os.path.isdir(folder):
        raise ConfigError(f"no folder {folder} for {path}; make it")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"no permission to write {path}; choose another folder")


def unheld_environment() -> dict[str, str]:
    """The environment for a process that is timed, without what would hold it back."""
    return {name: value for name, value in os.environ.items() if name not in _HELD}


def run_apart(args: Sequence[str]) -> tuple[Any, str]:
    """What a process that is timed prints as JSON in its last line, and ""; or None and the last
    line of its complaint, where it fails."""
    done = subprocess.run(args, capture_output=True, text=True, env=unheld_environment())
    if done.returncode != 0:
        return None, (done.stderr.strip().splitlines() or ["no message"])[-1]
    return json.loads(done.stdout.strip().splitlines()[-1]), ""
