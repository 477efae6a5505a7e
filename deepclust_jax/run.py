"""A run by its options: its phases trained, their checkpoints, and how to go on from them."""

import dataclasses
import functools
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepclust_jax import checkpoint, config, phases, profiles, resets, stream, train
from deepclust_jax.algorithms import next_token
from deepclust_jax.clustering import neighbors
from deepclust_jax.types import Algorithm, Array, Key, State

# Options that say where and how, not what: a run may go on with others.
FREE = ("out", "resume", "overwrite", "config", "compilation_cache")

_SAVE_EVERY = 60.0  # seconds between checkpoints
_PARTNERS = 5  # neighbours of a row that a partner is drawn from


class Trained(NamedTuple):
    """What training left; arrays have a leading seed axis."""

    algorithm: Algorithm
    state: State
    seconds: dict[str, float]  # by phase, of all sessions; compilation only of those cut short
    compile_seconds: dict[str, float]  # by phase, of this session
    start: tuple[Algorithm, State] | None = None  # what a joint phase began with


class Restored(NamedTuple):
    """A finished run, read from its folder."""

    options: config.Options
    algorithm: Algorithm
    state: State  # [S, ...]
    shape: tuple[int, ...]  # of a row
    chosen: int  # the run kept


# (phase, epochs done, epochs in all, metrics [S])
OnEpoch = Callable[[str, int, int, dict[str, np.ndarray]], None]
OnState = Callable[[int, int, State], None]  # (epochs done, epochs, state [S, ...])


def platform() -> str:
    """The platform that JAX computes on, such as "cpu" or "gpu".

    Raises:
        ConfigError: the one that JAX_PLATFORMS asks for is not there.
    """
    try:
        return jax.default_backend()
    except (RuntimeError, AssertionError) as error:
        wanted = os.environ.get("JAX_PLATFORMS", "")
        reason = str(error).split("\n")[0] or "no such plugin"
        raise config.ConfigError(
            f"JAX cannot start on JAX_PLATFORMS={wanted!r} ({reason}); unset it, or install the "
            'accelerator: pip install -e ".[cuda]"'
        ) from None


def checkpoint_bytes(options: config.Options, shape: tuple[int, ...]) -> int:
    """Most bytes that the checkpoints of a run take while it trains on data of shape [n, ...]."""
    keys, rows = seed_keys(options), np.zeros((2, *shape[1:]), np.float32)
    states = [
        jax.eval_shape(functools.partial(train.init, keys, phase.algorithm, rows))
        for phase in phases.of(options, shape)
    ]
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(states))
    return (checkpoint.KEEP + 1) * size  # those that stay, and the one being written


def seed_keys(options: config.Options, seeds: Sequence[int] | None = None) -> Key:
    """One key for each of the seeds, or of the first `--seeds`; none depends on the others. [S]."""
    root = jax.random.key(options.run.seed)
    numbers = jnp.arange(options.run.seeds) if seeds is None else jnp.asarray(seeds)
    return jax.vmap(lambda s: jax.random.fold_in(root, s))(numbers)


def own_keys(phase: phases.Phase, keys: Key) -> Key:
    """What a phase draws from, for the keys [S] of a run. -> [S]."""
    return jax.vmap(lambda key: jax.random.fold_in(key, phase.stream))(keys)


def clustered_again(
    options: config.Options, x: Any, state: State, seeds: Sequence[int] | None = None
) -> tuple[Algorithm, State]:
    """Trained states [S] of a first phase under the clustering of other options, as they would have
    found it at its end; seeds as in `execute`."""
    phase = phases.of(options, tuple(x.shape))[0]
    keys = own_keys(phase, seed_keys(options, seeds))
    return phase.algorithm, train.refresh(keys, phase.algorithm, state, x, epoch=phase.epochs)


def execute(
    options: config.Options,
    x: Any,
    *,
    folder: Path | None = None,
    seeds: Sequence[int] | None = None,
    pretrained: State | None = None,
    near: Any = None,
    on_epoch: OnEpoch | None = None,
    on_state: OnState | None = None,
) -> Trained:
    """Train all seeds on rows x [n, ...].

    Args:
        options: as `config.resolve` leaves them, with `n_clusters` filled in.
        x: rows; see `train.fit`.
        folder: where checkpoints are kept and, if there are some, gone on from. None keeps none.
        seeds: which seeds to train; None: the first `--seeds`.
        pretrained: states [S] of a finished first phase, to be used instead of training one.
        near: what `partners` finds for the rows, where it is known already.
        on_epoch: called after every epoch.
        on_state: the same, with the state, which is only valid during the call; of the last phase.

    Raises:
        ConfigError: `pretrained` for a method that has no pretraining, or unresolved options; or
            rows that `phases.check` refuses.
        Diverged: see `train.fit`; the message names the phase and its option.
        CheckpointError: a checkpoint that is needed is damaged, or is of other seeds.
    """
    if None in (options.data.n_clusters, options.training.epochs):
        raise config.ConfigError("expected options of config.resolve with n_clusters, found None")
    phases.check(options, x, is_begun=_begun(folder, "pretrain", "train"))
    keys = seed_keys(options, seeds)
    numbers = list(range(options.run.seeds)) if seeds is None else [int(s) for s in seeds]
    made = {"seed": options.run.seed, "seeds": numbers}
    filled = next_token.filled(x) if options.method.method == "next_token" else 1.0
    bounded = options.method.method in profiles.GAMES and phases.is_bounded(x)
    todo = phases.of(options, tuple(x.shape), filled=filled, is_bounded=bounded)
    seconds, compile_seconds, state, start = {}, {}, None, None
    if pretrained is not None:
        if len(todo) == 1:
            raise config.ConfigError(
                f"expected a method that pretrains, found {options.method.method} with "
                "pretrained=; leave it out"
            )
        start = todo[0].algorithm, pretrained
        todo, state = todo[1:], pretrained
    for i, phase in enumerate(todo):
        store = None if folder is None else folder / phase.name
        seconds[phase.name], done = _so_far(store, phase, made)
        compile_seconds[phase.name] = 0.0
        begun = i == 0 and len(todo) == 2 and _begun(folder, todo[1].name)
        begun = begun and not needs_start(folder, options)
        if not (done or begun):
            begin = time.perf_counter()
            if phase.pairs == "rows":
                found = partners(x) if near is None else near
            else:
                found = partners_by_features(*start, x) if phase.pairs else None
            seconds[phase.name] += time.perf_counter() - begin
            watch = on_state if i == len(todo) - 1 else None
            hook = _epoch_hook(phase, store, seconds[phase.name], made, on_epoch, watch)
            fitted = _train(phase, keys, x, found, options, state, store, hook)
            state = fitted.state
            seconds[phase.name] += fitted.seconds
            compile_seconds[phase.name] = fitted.compile_seconds
            if store is not None:
                _save(store, state, seconds[phase.name], made, epochs=phase.epochs)
        elif done:
            try:
                state = load_state(store, phase, keys, x.shape[1:])
            except checkpoint.CheckpointError:
                if not begun:
                    raise
                continue  # damaged, but not needed any more
        else:
            continue  # lost, but not needed any more
        if i < len(todo) - 1:
            start = phase.algorithm, state
    return Trained(todo[-1].algorithm, state, seconds, compile_seconds, start)


def needs_start(folder: Path | None, options: config.Options) -> bool:
    """Whether joint training that has begun still needs what it started from: for pairs by its
    features. `folder` is that of the checkpoints."""
    if folder is None or options.method.method != "info_max":
        return False
    step = checkpoint.newest_sound(folder / "train")
    if step is None:
        return True
    known = checkpoint.metadata(folder / "train", step)
    return known.get("finished_epochs") != options.training.epochs


def partners(x: Any) -> Array:
    """The rows that may be the partner of each of the rows x [n, ...]: its nearest. -> [n, 5]."""
    rows = stream.sample(x)
    return _nearest(rows.reshape(len(rows), -1))


def partners_by_features(algorithm: Algorithm, state: State, x: Any) -> Array:
    """The same by the features of each state [S, ...]. -> [S, n, 5]."""
    # A run that diverged has no features, and the others go on without it.
    return jnp.stack([_nearest(np.nan_to_num(z)) for z in train.embed(algorithm, state, x)[0]])


def load_state(store: Path, phase: phases.Phase, keys: Key, row: Sequence[int]) -> State:
    """The newest checkpoint of a phase, for keys [S] and rows of shape `row`. -> state [S, ...].

    Raises:
        CheckpointError: there is none, it is damaged, or it is of other options.
    """
    rows = np.zeros((2, *row), np.float32)
    return checkpoint.restore(
        store, jax.eval_shape(lambda: train.init(keys, phase.algorithm, rows))
    )


def restore(folder: str | Path) -> Restored:
    """A finished run from its folder.

    Raises:
        ConfigError: the folder holds no run, or one that is not finished.
        CheckpointError: the checkpoint is damaged.
    """
    folder = Path(folder)
    options = read_options(folder)
    try:
        report = json.loads((folder / "report.json").read_text())
        shape, chosen = tuple(report["data"]["shape"]), report["chosen"]["run"]
        made = report["data"].get("made", 0)
    except OSError:
        raise config.ConfigError(f"the run in {folder} is not finished; --resume it") from None
    except (ValueError, KeyError, TypeError):
        raise config.ConfigError(f"{folder}/report.json is damaged; --resume makes it") from None
    # Which shapes of states go by.
    trained_on = (shape[0] - options.data.held_out + made, *shape[1:])
    phase = phases.of(options, trained_on)[-1]
    store = folder / "checkpoint" / phase.name
    state = load_state(store, phase, seed_keys(options), shape[1:])
    return Restored(options, phase.algorithm, state, shape[1:], chosen)


def read_options(folder: Path) -> config.Options:
    """The options that a run directory was made with.

    Raises:
        ConfigError: the folder holds no run.
    """
    if not (folder / config.FILE).is_file():
        raise config.ConfigError(f"expected a run directory with {config.FILE}, found {folder}")
    options = config.resolve(config.parse(["--config", str(folder / config.FILE)]))
    return dataclasses.replace(options, run=dataclasses.replace(options.run, out=folder))


def write_options(
    folder: Path, options: config.Options, given: config.Options, before: dict[str, Any]
) -> None:
    """config.json, which `--config` reads again; it tells what was given from what was derived.

    `before` is what the file behind `given` holds, {} without one. Raises FileExistsError where
    another run began in the folder.
    """
    values = {k: v for k, v in config.flatten(options).items() if k not in FREE}
    asked = config.flatten(given)
    kept = [k for k in before.get(config.DERIVED, []) if before.get(k) == config.plain(values[k])]
    values[config.DERIVED] = [  # a scaling is derived from "auto", all else from None
        k for k in values if (asked[k] in (None, "auto") and values[k] != asked[k]) or k in kept
    ]
    with (folder / config.FILE).open("x", encoding="utf-8") as file:
        try:
            file.write(json.dumps(values, indent=1) + "\n")
            file.flush()
        except OSError:
            (folder / config.FILE).unlink()  # an empty one would make the folder nobody's
            raise


def check_same(folder: Path, options: config.Options) -> None:
    """Raise ConfigError unless the run in the folder was started with these options."""
    before, now = (config.flatten(o) for o in (read_options(folder), options))
    for name in before:
        if name not in FREE and config.plain(before[name]) != config.plain(now[name]):
            flag = name.replace("_", "-")
            raise config.ConfigError(
                f"--resume: the run in {folder} has --{flag} {before[name]}, found {now[name]}"
            )


def drop_damaged(folder: Path, options: config.Options) -> list[str]:
    """Remove damaged checkpoints of a run, so that the ones before serve. -> what was removed."""
    removed = []
    for name in phases.NAMES:
        # Joint training begins again from a sound pretraining, which it needs no more once begun.
        has_begun = checkpoint.newest_sound(folder / "train") is not None
        if name == "pretrain" and has_begun and not needs_start(folder, options):
            continue
        has_start = checkpoint.newest_sound(folder / "pretrain") is not None
        spare = has_begun if name == "pretrain" else has_start
        steps = checkpoint.drop_damaged(folder / name, spare=spare)
        removed += [f"step {step} of {name}" for step in steps]
    return removed


def epochs_done(folder: Path, options: config.Options, n: int) -> dict[str, int]:
    """Epochs that the checkpoints of a run hold, by phase; a phase that is lost but done is not."""
    steps = -(-n // min(options.training.batch_size, n))
    found = {name: checkpoint.latest(folder / name) for name in phases.NAMES}
    is_lost = found["train"] is not None and found["pretrain"] is None
    if is_lost and not needs_start(folder, options):
        del found["pretrain"]
    return {name: (step or 0) // steps for name, step in found.items()}


def _nearest(rows: Any) -> Array:
    return neighbors.nearest(rows, min(_PARTNERS, len(rows) - 1)).index


def _train(phase, keys, x, near, options, before, store, on_epoch) -> train.Fit:
    """Train one phase from its newest checkpoint, or from the state of the phase before it."""
    batch_size = options.training.batch_size
    phase_keys = own_keys(phase, keys)
    if store is not None and checkpoint.latest(store) is not None:
        state = load_state(store, phase, keys, x.shape[1:])
    else:
        state = train.init(phase_keys, phase.algorithm, x, batch_size=batch_size)
        if before is not None:
            warm_start = phases.METHODS[options.method.method].warm_start
            if options.method.resets is not None:
                warm_start = resets.around_start(warm_start)
            state = jax.vmap(warm_start)(state, before)
    try:
        return train.fit(
            phase_keys,
            phase.algorithm,
            x,
            epochs=phase.epochs,
            batch_size=batch_size,
            neighbors=near,
            state=state,
            refresh_every=phase.refresh_every,
            refresh_at_end=phase.cluster,
            on_epoch=on_epoch,
        )
    except train.Diverged as error:
        rate = "pretrain-learning-rate" if phase.name == "pretrain" else "learning-rate"
        now = getattr(options.training, rate.replace("-", "_"))
        message = str(error).split(";")[0]
        raise train.Diverged(
            f"{message} of phase {phase.name}; lower --{rate} (now {now:g}) or scale the data"
        ) from None


def _begun(folder: Path | None, *names: str) -> bool:
    return folder is not None and any(
        checkpoint.latest(folder / name) is not None for name in names
    )


def _so_far(store: Path | None, phase: phases.Phase, made: dict[str, Any]) -> tuple[float, bool]:
    """Seconds of training that the newest checkpoint of a phase stands for, and if it is the end.

    NaN where they were not recorded. Raises CheckpointError if it is of other seeds.
    """
    if store is None or checkpoint.latest(store) is None:
        return 0.0, False
    known = checkpoint.metadata(store)
    if known.get("made", made) != made:
        raise checkpoint.CheckpointError(
            f"expected seeds {made['seeds']} of --seed {made['seed']} in {store}, found "
            f"{known['made']['seeds']} of {known['made']['seed']}; choose another folder"
        )
    return known.get("seconds", math.nan), known.get("finished_epochs") == phase.epochs


def _save(store: Path, state: State, seconds: float, made, *, epochs: int | None = None) -> None:
    """Write a checkpoint; `epochs` marks the end of a phase of so many, its last k-means done."""
    known = {"seconds": seconds, "made": made, "finished_epochs": epochs}
    checkpoint.save(store, state, step=int(state.step[0]), metadata=known)


def _epoch_hook(phase: phases.Phase, store, before: float, made, on_epoch, on_state):
    start = saved = time.monotonic()

    def hook(epoch, state, metrics):
        nonlocal saved
        if on_epoch is not None:
            on_epoch(phase.name, epoch, phase.epochs, metrics)
        if on_state is not None:
            on_state(epoch, phase.epochs, state)
        if store is not None and time.monotonic() - saved > _SAVE_EVERY:
            _save(store, jax.device_get(state), before + time.monotonic() - start, made)
            saved = time.monotonic()

    return hook
