"""What a run was computed with, so that a result file explains itself."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

import deepclust_jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")


def environment() -> dict[str, Any]:
    """Versions, device and git state as a dict that JSON can hold; no host name and no paths.

    `commit` and `dirty` are None when the package is not tracked by a git checkout or git is
    missing. `dirty` is True if a tracked file differs from the commit or an untracked `.py`
    file lies in the checkout; untracked results do not count.
    """
    devices = jax.devices()
    commit, dirty = git_state(Path(deepclust_jax.__file__).parent)
    return {
        "versions": {
            "python": platform.python_version(),
            "deepclust_jax": deepclust_jax.__version__,
            **{name: _version(name) for name in PACKAGES},
        },
        "device": {
            "kind": devices[0].device_kind,
            "platform": devices[0].platform,
            "count": len(devices),
        },
        "processor": processor(),
        "cores": os.cpu_count(),
        "matmul_precision": jax.config.jax_default_matmul_precision,
        "commit": commit,
        "dirty": dirty,
    }


def processor() -> str:
    """Name of the processor, as far as the system tells, and its widest vectors."""
    file = Path("/proc/cpuinfo")
    text = file.read_text() if file.is_file() else ""
    name = next((line for line in text.splitlines() if line.startswith("model name")), ": unknown")
    vectors = next((flag for flag in ("avx512f", "avx2", "avx") if f" {flag} " in text), "")
    return f"{name.split(':')[1].strip()} {vectors}".strip()


def git_state(folder: Path) -> tuple[str | None, bool | None]:
    """(commit, dirty) of the checkout that tracks `folder`/__init__.py, else (None, None)."""
    # An environment inside another project's checkout must not report that project's commit.
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=all")
    if commit is None or changes is None:
        return None, None
    lines = changes.splitlines()
    return commit.strip(), any(not x.startswith("??") or x.endswith(".py") for x in lines)


def _git(folder: Path, *arguments: str) -> str | None:
    # Inside a git hook GIT_DIR points elsewhere and would win over the folder.
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=env)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
