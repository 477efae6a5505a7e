"""Checkpoints: a tree of arrays in a folder, written atomically and verified when read.

    folder/<step>/arrays/        the arrays, written by Orbax
    folder/<step>/header.json    versions, metadata; size and SHA-256 of the files; CRC32, shape and
                                 dtype of the arrays

Orbax alone loads a flipped byte without a word and casts dtypes on restore; the header is what
makes both an error. Files are compared before Orbax reads them, as its threads outlive an error and
then print errors of their own; arrays are compared after. States are arrays only: keys follow from
the run's seed and are never stored.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import jax
import numpy as np

KEEP = 2  # the newest steps that stay, so that a broken newest one never loses the run
_TEMPORARY = ".tmp-"
_HEADER = "header.json"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the first line says which and why."""


class Mismatch(CheckpointError):
    """A sound checkpoint that is of other arrays than those that are to be restored."""


def save(folder: str | Path, state: Any, *, step: int, metadata: dict | None = None) -> None:
    """Write `state` as folder/<step> and remove all but the newest two steps; atomic, synchronous.

    A save that is killed leaves a temporary folder, which the next save removes; a step that is
    there already is replaced. One process writes a folder at a time; of several JAX processes
    none may save arrays that are spread over hosts.

    Args:
        folder: local folder, made if needed.
        state: any tree of arrays (dataclass, dict, tuple, NamedTuple, None); bit for bit.
        step: >= 0 and not below the newest step in the folder.
        metadata: JSON values, such as the configuration; comes back from `metadata`.

    Raises:
        CheckpointError: a leaf that is no array, a random key, two leaves with the same name, a
            step that would be removed at once, or metadata that is no JSON: nothing is written. Or
            the disk cannot be written: the checkpoints before stay.
    """
    root = _resolve(folder)
    newest = latest(root)
    if step < 0 or (newest is not None and step < newest):
        raise CheckpointError(
            f"expected a step >= {newest or 0}, the newest in {root}, found {step}; "
            "save into another folder"
        )
    arrays = _host_arrays(state)
    header = _header(arrays, int(step), metadata or {})
    temporary = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        for stale in root.glob(_TEMPORARY + "*"):
            shutil.rmtree(stale)
        _check_space(root, arrays)
        temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=root))
        _write_arrays(temporary / "arrays", arrays)
        with open(temporary / _HEADER, "w", encoding="utf-8") as file:
            header["files"] = _files(temporary)
            file.write(json.dumps(header | {"crc32": _header_crc32(header)}, indent=1))
            file.flush()
            os.fsync(file.fileno())
        _discard(root / str(step))
        os.replace(temporary, root / str(step))
        for old in _steps(root)[:-KEEP]:
            _discard(root / str(old))
    except OSError as error:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        reason = error.strerror or error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = f"{reason}; make room, then --resume"
        raise CheckpointError(f"cannot write a checkpoint to {root}: {reason}") from error


def restore(folder: str | Path, target: Any, *, step: int | None = None) -> Any:
    """The state saved at `step` (None: the newest), in the structure of `target`.

    A leaf comes back as a NumPy array where the target's is one, else as a JAX array, with the
    target's sharding where it has one.

    Args:
        folder: what `save` was given.
        target: tree of arrays or jax.ShapeDtypeStruct, such as jax.eval_shape(init, key, batch).
        step: which of the saved steps.

    Raises:
        CheckpointError: no such step, a damaged or missing file, or names, shapes or dtypes that
            differ from the target's; the differences are listed, one a line.
    """
    path = _step_folder(folder, step)
    header = _read_header(path)
    expected, tree = _named(target)
    _check_fit(path, header["arrays"], expected)
    arrays = _read_arrays(path, header)
    return tree.unflatten([_place(arrays[name], leaf) for name, leaf in expected.items()])


def newest_sound(folder: str | Path) -> int | None:
    """The newest step in the folder that can be read whole, or None."""
    root = _resolve(folder)
    for step in reversed(_steps(root)):
        path = root / str(step)
        try:
            _read_arrays(path, _read_header(path))
        except CheckpointError:
            continue
        return step
    return None


def drop_damaged(folder: str | Path, *, spare: bool = False) -> list[int]:
    """Remove the steps after the newest one that can be read whole. -> the steps removed.

    Where none can be read, all stay (perhaps they are sound and reading is what fails), or with
    `spare`, for states that can be had again, all are put aside as damaged-STEP.
    """
    root = _resolve(folder)
    sound = newest_sound(root)
    if sound is None and not spare:
        return []
    damaged = [step for step in reversed(_steps(root)) if sound is None or step > sound]
    for step in damaged:
        if sound is None:
            aside = root / f"damaged-{step}"
            _discard(aside)
            os.replace(root / str(step), aside)
        else:
            _discard(root / str(step))
    return damaged


def latest(folder: str | Path) -> int | None:
    """The newest complete step in the folder, or None; a killed save does not count."""
    steps = _steps(_resolve(folder))
    return steps[-1] if steps else None


def metadata(folder: str | Path, step: int | None = None) -> dict:
    """The metadata given to `save` at `step` (None: the newest).

    Raises CheckpointError if there is no such step or its header is damaged.
    """
    return _read_header(_step_folder(folder, step))["metadata"]


def _resolve(folder: str | Path) -> Path:
    if "://" in str(folder):
        raise CheckpointError(f"expected a local folder, found {folder}; mount the bucket")
    return Path(folder).expanduser().resolve()  # Orbax fails on relative paths


def _steps(root: Path) -> list[int]:
    """Steps whose header can be read, in rising order."""
    steps = []
    for path in root.glob("*/" + _HEADER):
        if path.parent.name.isdecimal():
            try:
                _read_header(path.parent)
            except CheckpointError:
                continue
            steps.append(int(path.parent.name))
    return sorted(steps)


def _step_folder(folder: str | Path, step: int | None) -> Path:
    root = _resolve(folder)
    step = latest(root) if step is None else step
    if step is None or not (root / str(step)).is_dir():
        wanted = "a checkpoint" if step is None else f"step {step}"
        raise CheckpointError(f"expected {wanted} in {root}, found readable steps {_steps(root)}")
    return root / str(step)


def _discard(path: Path) -> None:
    """Remove a step; renamed first, so that one killed on the way is never taken for complete."""
    if path.exists():
        doomed = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=path.parent))
        os.replace(path, doomed / path.name)
        shutil.rmtree(doomed)


def _named(tree: Any) -> tuple[dict[str, Any], Any]:
    """Name -> leaf, such as params/encoder/kernel, and the structure; refuses what is no array."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    named: dict[str, Any] = {}
    for keys, leaf in leaves:
        name = jax.tree_util.keystr(keys, simple=True, separator="/")
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            found = type(leaf).__name__
            raise CheckpointError(f"expected arrays, found {found} at {name}; use jnp.asarray")
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise CheckpointError(
                f"expected arrays, found a random key at {name}; "
                "keep keys out of the state and fold the step into the run's key"
            )
        if name in named:
            raise CheckpointError(f"expected one array for each name, found two called {name}")
        named[name] = leaf
    return named, structure


def _host_arrays(state: Any) -> dict[str, np.ndarray]:
    named = _named(state)[0]
    for name, leaf in named.items():
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            raise CheckpointError(f"expected arrays of this process, found {name} spread over more")
        if leaf.dtype.hasobject:
            raise CheckpointError(f"expected arrays of numbers, found objects at {name}")
    return {name: np.asarray(leaf) for name, leaf in named.items()}


def _crc32(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _header_crc32(header: dict) -> int:
    body = {key: value for key, value in header.items() if key != "crc32"}
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())


def _header(arrays: dict[str, np.ndarray], step: int, metadata: dict) -> dict:
    header = {
        "step": step,
        "versions": {name: packages.version(name) for name in ("jax", "flax", "orbax-checkpoint")},
        "arrays": {
            name: {"dtype": a.dtype.name, "shape": list(a.shape), "crc32": _crc32(a)}
            for name, a in arrays.items()
        },
        "metadata": metadata,
    }
    try:
        return json.loads(json.dumps(header))  # tuples become lists before they are summed
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"expected metadata of JSON values, found {error}") from error


def _files(path: Path) -> dict[str, dict[str, Any]]:
    """Name -> size and SHA-256 of every file of the arrays."""
    found = {}
    for name in (path / "arrays").rglob("*"):
        if name.is_file():
            with open(name, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = name.stat().st_size
            found[name.relative_to(path).as_posix()] = {"bytes": size, "sha256": digest}
    return found


def _check_files(path: Path, expected: dict[str, dict[str, Any]]) -> None:
    found = _files(path)
    for name, file in expected.items():
        if name not in found:
            what = f"expected a file {name}, found none"
        elif found[name]["bytes"] != file["bytes"]:
            what = f"expected {name} of {file['bytes']} bytes, found {found[name]['bytes']} bytes"
        elif found[name] != file:
            what = f"the SHA-256 of {name} differs"
        else:
            continue
        raise CheckpointError(f"{path} is damaged: {what}; restore an older step")


def _read_header(path: Path) -> dict:
    try:
        header = json.loads((path / _HEADER).read_text(encoding="utf-8"))
        intact = header["crc32"] == _header_crc32(header)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot read {path / _HEADER}: {type(error).__name__}") from error
    if not intact:
        raise CheckpointError(f"{path / _HEADER} is damaged: its CRC32 differs")
    return header


def _check_space(root: Path, arrays: dict[str, np.ndarray]) -> None:
    # Before Orbax writes: its threads print errors of their own.
    need, free = sum(array.nbytes for array in arrays.values()), shutil.disk_usage(root).free
    if free < need + 2**20:
        found = f"No space left on device ({free / 1e6:,.1f} MB for {need / 1e6:,.1f} MB)"
        raise OSError(errno.ENOSPC, found)


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    from orbax.checkpoint import v1

    # Orbax refuses arrays without elements; the header alone describes those.
    named = {_orbax_key(name): a for name, a in arrays.items() if a.size} or {"_": np.ones(1)}
    try:
        v1.save(path, named)
    except Exception as error:  # Orbax raises whatever its layers raise
        raise OSError(_first_line(error)) from error


def _read_arrays(path: Path, header: dict) -> dict[str, np.ndarray]:
    from orbax.checkpoint import v1

    try:
        _check_files(path, header["files"])
        stored = v1.load(path / "arrays")
    except CheckpointError:
        raise
    except Exception as error:  # Orbax raises whatever its layers raise
        raise CheckpointError(f"cannot read {path / 'arrays'}: {_first_line(error)}") from error
    arrays = {}
    for name, entry in header["arrays"].items():
        dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
        array = stored.get(_orbax_key(name), None if 0 not in shape else np.zeros(shape, dtype))
        if array is None or (array.dtype, array.shape) != (dtype, shape):
            raise CheckpointError(f"{path} is damaged: {name} is not the array in the header")
        if _crc32(array) != entry["crc32"]:
            raise CheckpointError(f"{path} is damaged: the CRC32 of {name} differs")
        arrays[name] = array
    return arrays


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _orbax_key(name: str) -> str:
    return "array " + name.replace("%", "%25").replace("/", "%2F")  # a key becomes a file path


def _describe(dtype: Any, shape: Any) -> str:
    return f"{np.dtype(dtype).name}[{','.join(map(str, shape))}]"


def _check_fit(path: Path, stored: dict[str, dict], expected: dict[str, Any]) -> None:
    differences = []
    for name in sorted(stored | expected):
        has = (
            _describe(stored[name]["dtype"], stored[name]["shape"]) if name in stored else "nothing"
        )
        wants = (
            _describe(expected[name].dtype, expected[name].shape) if name in expected else "nothing"
        )
        if has != wants:
            differences.append(f"{name}: stored {has}, expected {wants}")
    if differences:
        more = [f"and {len(differences) - 4} more"] if len(differences) > 5 else []
        shown = differences if not more else differences[:4]
        raise Mismatch(f"{path} does not fit the target: " + "\n".join(shown + more))


def _place(array: np.ndarray, leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray | np.generic):
        return array
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        raise CheckpointError(
            f"expected a dtype that JAX keeps, found {array.dtype}; set jax_enable_x64 or give a "
            "NumPy target"
        )
    return jax.device_put(array, getattr(leaf, "sharding", None))
