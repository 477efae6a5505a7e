"""Checkpoints come back bit for bit, or not at all."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from orbax.checkpoint import v1

from deepclust_jax import checkpoint


@flax.struct.dataclass
class State:
    step: jax.Array
    params: Any
    opt_state: Any
    extra: Any


def make_state(seed: int = 0) -> State:
    rng = np.random.default_rng(seed)
    params = {
        "encoder": {"Dense_0": {"kernel": jnp.asarray(rng.normal(size=(784, 40)), "float32")}}
    }
    adam, sgd = optax.adam(1e-3), optax.sgd(0.1, momentum=0.9)
    updates, moments = adam.update(params, adam.init(params), params)
    extra = (
        jnp.asarray(rng.normal(size=(3, 4)), jnp.bfloat16),
        [jnp.int32(2**31 - 1), jnp.float32(jnp.nan), None],
        {
            "labels": jnp.arange(7, dtype=jnp.int32) - 1,
            "none": jnp.zeros((0, 5)),
            "on": jnp.array(True),
        },
    )
    return State(jnp.int32(3), updates, (moments, sgd.init(params)), extra)


def assert_same_bits(found: Any, wanted: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def biggest_file(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.fixture
def saved(tmp_path):
    checkpoint.save(tmp_path / "run", make_state(), step=3)
    return tmp_path / "run"


@pytest.mark.parametrize("shapes_only", [True, False])
def test_a_nested_state_comes_back_bit_for_bit(saved, shapes_only):
    state = make_state()
    target = jax.eval_shape(make_state) if shapes_only else jax.tree.map(jnp.zeros_like, state)
    restored = checkpoint.restore(saved, target)
    assert_same_bits(restored, state)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored))
    assert isinstance(restored.opt_state[0][0], optax.ScaleByAdamState)


def test_numpy_leaves_stay_numpy_and_keep_64_bits(tmp_path):
    state = {"n": np.array([2**40 + 1]), "x": np.array(0.1), "f8": np.ones(3, jnp.float8_e4m3fn)}
    checkpoint.save(tmp_path, state, step=0)
    restored = checkpoint.restore(tmp_path, state)
    assert_same_bits(restored, state)
    assert all(isinstance(leaf, np.ndarray) for leaf in restored.values())
    shapes = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in state.items()}
    with pytest.raises(checkpoint.CheckpointError, match="jax_enable_x64"):
        checkpoint.restore(tmp_path, shapes)


def test_a_state_of_nothing_but_empty_arrays(tmp_path):
    checkpoint.save(tmp_path, {"a": jnp.zeros((0, 2)), "b": None}, step=0)
    assert_same_bits(
        checkpoint.restore(tmp_path, {"a": jnp.ones((0, 2)), "b": None})["a"], jnp.zeros((0, 2))
    )


def test_the_target_says_on_which_devices_arrays_live(saved):
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("i"))
    shapes = jax.eval_shape(make_state)
    labels = shapes.extra[2]["labels"]
    shapes.extra[2]["labels"] = jax.ShapeDtypeStruct(labels.shape, labels.dtype, sharding=sharding)
    assert checkpoint.restore(saved, shapes).extra[2]["labels"].sharding == sharding


def test_relative_paths_and_metadata(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"config": {"k": 10, "hidden": (500, 500)}, "score": 0.5}
    checkpoint.save("run", {"a": jnp.ones(2)}, step=1, metadata=given)
    assert checkpoint.latest("run") == 1
    assert_same_bits(checkpoint.restore("run", {"a": jnp.zeros(2)}), {"a": jnp.ones(2)})
    assert checkpoint.metadata("run") == {"config": {"k": 10, "hidden": [500, 500]}, "score": 0.5}


def test_only_the_newest_two_steps_stay_and_a_step_can_be_saved_again(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    for step in (9, 10, 100, 100):
        checkpoint.save(tmp_path, {"a": jnp.full(2, step)}, step=step, metadata={"at": step})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["10", "100"]
    assert checkpoint.latest(tmp_path) == 100
    assert int(checkpoint.restore(tmp_path, {"a": jnp.zeros(2, int)}, step=10)["a"][0]) == 10
    assert checkpoint.metadata(tmp_path, 10) == {"at": 10}
    with pytest.raises(checkpoint.CheckpointError, match="expected a step >= 100.*found 11"):
        checkpoint.save(tmp_path, {"a": jnp.ones(2)}, step=11)
    with pytest.raises(checkpoint.CheckpointError, match=r"expected step 9 in .* \[10, 100\]"):
        checkpoint.restore(tmp_path, {"a": jnp.zeros(2)}, step=9)


@pytest.mark.parametrize("where", [0.3, 0.5, 0.7])
def test_a_flipped_byte_names_the_file(saved, where):
    file = biggest_file(saved)
    data = bytearray(file.read_bytes())
    data[int(where * len(data))] ^= 1
    file.write_bytes(data)
    with pytest.raises(checkpoint.CheckpointError, match=f"SHA-256 of .*{file.name}") as error:
        checkpoint.restore(saved, make_state())
    assert "\n" not in str(error.value)


def test_an_array_that_orbax_gives_back_changed_is_named(saved, monkeypatch):
    load = v1.load

    def changed(path):
        arrays = load(path)
        name = next(name for name in arrays if "Dense_0" in name)
        arrays[name] = np.array(arrays[name])
        arrays[name].flat[7] += 1e-3
        return arrays

    monkeypatch.setattr(v1, "load", changed)
    with pytest.raises(checkpoint.CheckpointError, match="CRC32 of .*Dense_0.* differs"):
        checkpoint.restore(saved, make_state())


@pytest.mark.parametrize("damage", ["truncated", "missing", "no arrays"])
def test_damaged_files_are_errors_of_one_line(saved, damage):
    file = biggest_file(saved)
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif damage == "missing":
        file.unlink()
    else:
        (saved / "3" / "arrays").rename(saved / "elsewhere")
    with pytest.raises(checkpoint.CheckpointError, match=str(saved)) as error:
        checkpoint.restore(saved, make_state())
    assert "\n" not in str(error.value)


def test_a_damaged_newest_step_is_dropped_for_the_one_before(saved):
    assert checkpoint.drop_damaged(saved) == [] and checkpoint.latest(saved) == 3
    checkpoint.save(saved, make_state(1), step=4)
    file = biggest_file(saved / "4")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert checkpoint.drop_damaged(saved) == [4] and checkpoint.latest(saved) == 3
    assert_same_bits(checkpoint.restore(saved, make_state()), make_state())
    assert checkpoint.drop_damaged(saved / "nowhere") == []


def test_the_only_step_is_not_dropped(saved):
    file = biggest_file(saved)
    file.write_bytes(file.read_bytes()[:-10])
    assert checkpoint.drop_damaged(saved) == [] and checkpoint.latest(saved) == 3
    assert checkpoint.newest_sound(saved) is None
    # ... unless something else serves in its place.
    assert checkpoint.drop_damaged(saved, spare=True) == [3] and checkpoint.latest(saved) is None
    assert (saved / "damaged-3").is_dir()


def test_a_step_with_a_damaged_header_is_not_the_latest(saved):
    checkpoint.save(saved, make_state(1), step=4, metadata={"k": 10})
    header = saved / "4" / "header.json"
    good = header.read_text()
    for text in (good[:-20], good.replace('"k": 10', '"k": 11'), ""):
        header.write_text(text)
        assert checkpoint.latest(saved) == 3
        with pytest.raises(checkpoint.CheckpointError, match="header.json"):
            checkpoint.metadata(saved, 4)
    assert_same_bits(checkpoint.restore(saved, make_state()), make_state())


def test_differences_from_the_target_are_listed(tmp_path):
    checkpoint.save(
        tmp_path,
        {"params": {"w": jnp.ones((4, 5)), "b": jnp.ones(5)}, "n": jnp.int32(16777217)},
        step=0,
    )
    target = {"params": {"w": jnp.ones((4, 3)), "c": jnp.ones(5)}, "n": jnp.float32(0)}
    with pytest.raises(checkpoint.CheckpointError) as error:
        checkpoint.restore(tmp_path, target)
    text = str(error.value)
    assert "params/w: stored float32[4,5], expected float32[4,3]" in text
    assert "params/b: stored float32[5], expected nothing" in text
    assert "params/c: stored nothing, expected float32[5]" in text
    assert "n: stored int32[], expected float32[]" in text.splitlines()[0]
    many = {str(i): jnp.ones(1) for i in range(9)}
    with pytest.raises(checkpoint.CheckpointError, match="and 8 more") as error:
        checkpoint.restore(tmp_path, many)
    assert len(str(error.value).splitlines()) == 5


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"key": jax.random.key(0)}, "random key at key"),
        ({"n": {"m": 3}}, "found int at n/m"),
        ({"o": np.array([{}])}, "objects at o"),
        ({"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, "two called a/b"),
    ],
)
def test_what_is_no_array_is_refused_before_anything_is_written(tmp_path, state, message):
    with pytest.raises(checkpoint.CheckpointError, match=message):
        checkpoint.save(tmp_path / "run", state, step=0)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_one_line_and_keeps_what_was_saved(saved, monkeypatch):
    def full(path, arrays):
        path.mkdir()
        (path / "half").write_bytes(b"1")
        raise OSError(28, "No space left on device")

    usage = shutil.disk_usage(saved)._replace(free=2**20)
    for owner, name, fake in (
        (checkpoint, "_write_arrays", full),
        (shutil, "disk_usage", lambda path: usage),  # found before Orbax writes
    ):
        with monkeypatch.context() as patch, pytest.raises(checkpoint.CheckpointError) as error:
            patch.setattr(owner, name, fake)
            checkpoint.save(saved, make_state(), step=4)
        assert "No space left on device" in str(error.value) and "make room" in str(error.value)
        assert [path.name for path in saved.iterdir()] == ["3"]
    assert_same_bits(checkpoint.restore(saved, make_state()), make_state())


def test_metadata_that_is_no_json_and_remote_folders_are_refused(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="JSON"):
        checkpoint.save(tmp_path, {"a": jnp.ones(1)}, step=0, metadata={"f": len})
    with pytest.raises(checkpoint.CheckpointError, match="local folder"):
        checkpoint.latest("gs://bucket/run")
    with pytest.raises(checkpoint.CheckpointError, match="expected a checkpoint"):
        checkpoint.restore(tmp_path, {"a": jnp.ones(1)})


KILLED = """
import os, sys
import jax.numpy as jnp
from deepclust_jax import checkpoint

folder, moment = sys.argv[1:]
checkpoint.save(folder, {"a": jnp.ones(3)}, step=1)
real = os.replace
if moment == "before the rename":
    os.replace = lambda *names: os._exit(9)
else:
    write = checkpoint._write_arrays
    checkpoint._write_arrays = lambda path, arrays: (write(path, arrays), os._exit(9))
checkpoint.save(folder, {"a": jnp.full(3, 2.0)}, step=2)
"""


@pytest.mark.parametrize("moment", ["before the rename", "before the header"])
def test_a_killed_save_leaves_the_previous_step_and_is_cleaned_up(tmp_path, moment):
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path, moment], check=False)
    assert done.returncode == 9
    assert len(list(tmp_path.iterdir())) == 2  # step 1 and what the killed save left
    assert checkpoint.latest(tmp_path) == 1
    assert_same_bits(checkpoint.restore(tmp_path, {"a": jnp.zeros(3)}), {"a": jnp.ones(3)})
    checkpoint.save(tmp_path, {"a": jnp.zeros(3)}, step=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]
