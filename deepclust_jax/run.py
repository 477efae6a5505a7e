"""A run by its options: the phases of a method, their checkpoints, and how to go on from them."""

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
import optax

from deepclust_jax import augment, checkpoint, config, game, resets, stream, train
from deepclust_jax.algorithms import (
    autoencoder,
    bi_gan,
    cluster_gan,
    contrastive,
    cross_modal,
    dcn,
    dec,
    deep_cluster,
    dkm,
    gan,
    info_gan,
    info_max,
    mmdc,
    n2d,
    next_frame,
    next_token,
    rotation,
    vade,
)
from deepclust_jax.clustering import neighbors
from deepclust_jax.data import speech, tokens
from deepclust_jax.types import Algorithm, Array, Key, State

METHODS = {
    "autoencoder": autoencoder, "dcn": dcn, "dkm": dkm, "dec": dec, "idec": dec, "vade": vade,
    "n2d": n2d, "contrastive": contrastive, "info_max": info_max, "rotation": rotation,
    "mmdc": mmdc, "deep_cluster": deep_cluster, "next_token": next_token, "next_frame": next_frame,
    "cross_modal": cross_modal, "gan": gan, "info_gan": info_gan, "cluster_gan": cluster_gan,
    "bi_gan": bi_gan,
}  # fmt: skip
PHASES = ("pretrain", "train")  # as their checkpoints and logs are called

# Options that say where and how, not what: a run may go on with others.
FREE = ("out", "resume", "overwrite", "config", "compilation_cache")

# Of features: outside, the autoencoder of digits ends worse than a mean, or no better.
_DEVIATIONS = 0.05, 20.0
_SAVE_EVERY = 60.0  # seconds between checkpoints
_ON_PAIRS = ("contrastive", "info_max")
_WITH_BLOCKS = ("rotation", "mmdc", "deep_cluster")
_WORD = speech.COEFFICIENTS, 1  # axes of a word behind that of time
_PARTNERS = 5  # neighbours of a row that a partner is drawn from

FIRST = 2**14  # rows that tell whether all are in 0..1
_NOISE = 2.0  # of views by --augment noise, as a share of the distance of a pair
_SHARP = 0.1  # temperature of contrastive features of --augment photo
_SMALLER = 0.75  # size of its views, but of a residual network, where it was not tried
# Of the views of a pair, with scale and shear; the other methods take `augment.affine` as it is.
_WIDE = functools.partial(augment.affine, degrees=15.0, shift=0.08, scale=0.15, shear=0.2)


class Phase(NamedTuple):
    """One call of `train.fit`."""

    name: str  # one of PHASES
    stream: int  # of the draws; that of an autoencoder is the same alone and as a warm start
    algorithm: Algorithm
    epochs: int
    refresh_every: int  # as in `train.fit`
    cluster: bool  # refresh once more at the end: the k-means of an autoencoder, what is merged
    pairs: str = ""  # of neighbours by what, if it trains on pairs: "rows", or "features" before


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


def phases(
    options: config.Options,
    shape: tuple[int, ...],
    *,
    filled: float = 1.0,
    is_bounded: bool = False,
) -> list[Phase]:
    """The phases of a method for data of shape [n, ...]; options as `config.resolve` leaves them.

    `filled` is the share of tokens that are no padding, of which next_token trains the faster the
    less it is, and `is_bounded` whether rows are in 0..1, as what is made then is; they change no
    shape of a state.

    The same options give the same phases, whose programs are compiled once in a process.

    Raises:
        ConfigError: the options do not fit rows of this shape.
    """
    _check_rows(options, shape[1:])
    data = config.Data(n_clusters=options.data.n_clusters, parts=options.data.parts)
    groups = data, options.method, options.network, options.training
    asked = config.Options(*map(_of_python, groups))
    return list(_phases(asked, tuple(shape), filled, is_bounded, repr(asked)))


def _of_python(group: Any) -> Any:
    """A group of options whose arrays and lists are numbers and tuples, which can be compared."""

    def plain(value):
        if isinstance(value, list | tuple):
            return tuple(map(plain, value))
        return value.item() if getattr(value, "ndim", None) == 0 else value

    values = {f.name: plain(getattr(group, f.name)) for f in dataclasses.fields(group)}
    return dataclasses.replace(group, **values)


@functools.lru_cache(maxsize=16)
def _phases(
    options: config.Options, shape: tuple[int, ...], filled: float, is_bounded: bool, written: str
) -> tuple[Phase, ...]:
    del written  # part of the key, as 2 == 2.0, and no number of epochs is 2.0
    method, network, training = options.method, options.network, options.training
    common = {
        "n_clusters": options.data.n_clusters,
        "embed_dim": network.embed_dim,
        "network": network.network,
        "hidden": network.hidden,
        "precision": network.precision,
    }
    steps = -(-shape[0] // min(training.batch_size, shape[0]))
    affine = _WIDE if method.method in _ON_PAIRS else augment.affine
    of_sounds = augment.speech if shape[2:] == _WORD else augment.masks
    is_smaller = method.method in _ON_PAIRS and network.network == "conv"
    photo = functools.partial(augment.photo, size=_SMALLER if is_smaller else 1.0)
    changes = {"affine": affine, "photo": photo, "speech": of_sounds}
    change = changes.get(method.augment)
    # Photographs that lie near each other as they are do not show the same: each is its own pair.
    by_rows = "" if method.augment == "photo" else "rows"
    pairs = {
        "noise": _NOISE if method.augment == "noise" else 0.0,
        "of_views": method.augment == "photo",
    }
    # Two views of one photograph are a surer pair than neighbours, which may be of two things.
    sharp = {"temperature": _SHARP} if method.augment == "photo" else {}

    def falling(rate: float, epochs: int) -> optax.Schedule:
        return falling_rate(rate, steps * epochs, training.decay)

    def encoder_phase(name: str, rate: float, epochs: int, change=None) -> Phase:
        own = autoencoder.Config(**common, learning_rate=rate, metric=method.metric)
        optimizer = autoencoder.sgd(falling(rate, epochs), own)
        algorithm = autoencoder.build(own, shape[1:], optimizer=optimizer, augment=change)
        return Phase(name, 0, algorithm, epochs, 0, True)

    def contrastive_phase(name: str, rate: float, epochs: int) -> Phase:
        own = contrastive.Config(**common, **pairs, **sharp, learning_rate=rate, merge=method.merge)
        optimizer = optax.adam(falling(rate, epochs))
        algorithm = contrastive.build(own, shape[1:], optimizer=optimizer, augment=change)
        return Phase(name, 0, algorithm, epochs, 0, True, pairs=by_rows)

    if method.method == "cross_modal":
        parts = config.shapes(options.data.parts)
        own = cross_modal.Config(**common, parts=parts, learning_rate=training.learning_rate)
        optimizer = optax.adam(falling(training.learning_rate, training.epochs))
        changes = [change_of(part) for part in parts] if method.augment == "each" else None
        change = changes and augment.each(parts, changes)
        algorithm = cross_modal.build(own, shape[1:], optimizer=optimizer, augment=change)
        return (Phase("train", 0, algorithm, training.epochs, 0, True),)
    if method.method == "contrastive":
        return (contrastive_phase("train", training.learning_rate, training.epochs),)
    if method.method in config.GAMES:
        own = game_config(options, is_bounded)
        rate = falling(training.learning_rate, training.epochs)
        players = game.adam(rate), game.adam(lambda count: rate(count * own.ratio))
        algorithm = METHODS[method.method].build(
            own, shape[1:], optimizer=players[0], of_generator=players[1], augment=change
        )
        return (Phase("train", 0, algorithm, training.epochs, 0, True),)
    if method.method in (*_WITH_BLOCKS, "next_token", "next_frame"):
        rate = training.learning_rate
        if method.method == "rotation":
            common |= {"block": method.block}
        else:
            del common["precision"]
        if method.method == "next_token":
            common |= {"filled": filled}
        if method.method == "deep_cluster":
            # A refresh clusters no more of rows that stream; the same for those that do not, so
            # that the state is of one shape on every device.
            n = stream.sample_size(jax.ShapeDtypeStruct(shape, np.float32))
            common |= {"n_classes": min(10 * options.data.n_clusters, max(n // 4, 1))}
        if method.method == "mmdc":
            common |= {"turns_first": steps * training.epochs // 2}
        module = METHODS[method.method]
        optimizer = optax.adam(falling(rate, training.epochs))
        own = module.Config(**common, learning_rate=rate)
        algorithm = module.build(own, shape[1:], optimizer=optimizer, augment=change)
        every = 1 if method.method == "deep_cluster" else 0
        return (Phase("train", 0, algorithm, training.epochs, every, True),)
    if method.method == "autoencoder":
        return (encoder_phase("train", training.learning_rate, training.epochs, change),)
    own = {"learning_rate": training.learning_rate}
    for name in ("weight", "likelihood", "objective", "sizes"):
        if getattr(method, name) is not None:
            own[name] = getattr(method, name)
    if method.method == "dkm":
        # From random weights the paper raises alpha; from trained ones it keeps it.
        own |= {"alpha": method.alpha, "annealed": training.pretrain_epochs == 0}
    if method.method == "dec":
        own |= {"weight": 1.0, "reconstruction": 0.0}
    module = METHODS[method.method]
    rate = falling(training.learning_rate, training.epochs)
    is_sgd = (method.method, method.profile) == ("dec", "paper")
    optimizer = optax.sgd(rate, momentum=0.9) if is_sgd else optax.adam(rate)
    if method.method == "info_max":
        own |= pairs
    if method.method in ("dcn", "n2d"):
        own |= {"merge": method.merge}
    if method.method == "n2d":
        optimizer = autoencoder.sgd(rate, autoencoder.Config())
    algorithm = module.build(
        module.Config(**common, **own), shape[1:], optimizer=optimizer, augment=change
    )
    if method.resets is not None:
        algorithm = resets.around(algorithm, every=method.resets, until=training.epochs)
    once = method.method in ("n2d", "info_max")  # clustered at the end alone
    at_end = once or method.merge
    joint = Phase("train", 1, algorithm, training.epochs, 0 if once else 1, at_end)
    rate, epochs = training.pretrain_learning_rate, training.pretrain_epochs
    if method.method == "info_max":
        joint = joint._replace(pairs="features" if epochs else by_rows)
    if epochs == 0:
        return (joint,)
    start = contrastive_phase if method.method == "info_max" else encoder_phase
    return start("pretrain", rate, epochs), joint


def game_config(options: config.Options, is_bounded: bool) -> Any:
    """The settings that the options name of a game, for rows in 0..1 or others."""
    method, network = options.method, options.network
    coded = {} if method.method == "gan" else {
        "prior": tuple(method.prior or ()), "labelled_by": method.labelled_by
    }  # fmt: skip
    return METHODS[method.method].Config(
        n_clusters=options.data.n_clusters,
        embed_dim=network.embed_dim,
        network=network.network,
        hidden=tuple(network.hidden),
        is_bounded=is_bounded,
        objective=method.objective,
        penalty=method.penalty,
        ratio=5 if method.objective == "wasserstein" else 1,
        learning_rate=options.training.learning_rate,
        **coded,
    )


def is_bounded(x: Any) -> bool:
    """Whether rows are in 0..1, by the first of them."""
    some = np.asarray(x[:FIRST])
    return bool(some.min() >= 0 and some.max() <= 1)


def change_of(part: tuple[int, ...]) -> Callable[[Key, Array], Array] | None:
    """What `--augment each` does to a modality of this shape."""
    if len(part) != 3:
        return None
    return augment.speech if part[1:] == _WORD else _WIDE


def checkpoint_bytes(options: config.Options, shape: tuple[int, ...]) -> int:
    """Most bytes that the checkpoints of a run take while it trains on data of shape [n, ...]."""
    keys, rows = seed_keys(options), np.zeros((2, *shape[1:]), np.float32)
    states = [
        jax.eval_shape(functools.partial(train.init, keys, phase.algorithm, rows))
        for phase in phases(options, shape)
    ]
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(states))
    return (checkpoint.KEEP + 1) * size  # those that stay, and the one being written


def seed_keys(options: config.Options, seeds: Sequence[int] | None = None) -> Key:
    """One key for each of the seeds, or of the first `--seeds`; none depends on the others. [S]."""
    root = jax.random.key(options.run.seed)
    numbers = jnp.arange(options.run.seeds) if seeds is None else jnp.asarray(seeds)
    return jax.vmap(lambda s: jax.random.fold_in(root, s))(numbers)


def own_keys(phase: Phase, keys: Key) -> Key:
    """What a phase draws from, for the keys [S] of a run. -> [S]."""
    return jax.vmap(lambda key: jax.random.fold_in(key, phase.stream))(keys)


def clustered_again(
    options: config.Options, x: Any, state: State, seeds: Sequence[int] | None = None
) -> tuple[Algorithm, State]:
    """Trained states [S] of a first phase under the clustering of other options, as they would have
    found it at its end; seeds as in `execute`."""
    phase = phases(options, tuple(x.shape))[0]
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
            rows that `check` refuses.
        Diverged: see `train.fit`; the message names the phase and its option.
        CheckpointError: a checkpoint that is needed is damaged, or is of other seeds.
    """
    if None in (options.data.n_clusters, options.training.epochs):
        raise config.ConfigError("expected options of config.resolve with n_clusters, found None")
    check(options, x, is_begun=_begun(folder, "pretrain", "train"))
    keys = seed_keys(options, seeds)
    numbers = list(range(options.run.seeds)) if seeds is None else [int(s) for s in seeds]
    made = {"seed": options.run.seed, "seeds": numbers}
    filled = next_token.filled(x) if options.method.method == "next_token" else 1.0
    bounded = options.method.method in config.GAMES and is_bounded(x)
    todo = phases(options, tuple(x.shape), filled=filled, is_bounded=bounded)
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


def check(options: config.Options, x: Any, *, is_begun: bool = False) -> None:
    """Raise ConfigError where a method cannot train on rows x [n, ...]; a run that has begun goes
    on with features of any deviation."""
    method = options.method.method
    if options.method.likelihood == "bernoulli":
        _check_unit_range(x)
    if method == "next_token":
        _check_tokens(x)
    if method == "next_frame":
        _check_frames(x)
    size = stream.sample_size(x)
    if method in _ON_PAIRS and size < x.shape[0]:
        raise config.ConfigError(
            f"--method {method} finds the neighbours of all rows, which must fit in memory, found "
            f"{x.shape[0]:,} rows; use --limit {size}"
        )
    if options.data.scaling == "none" and not is_begun:
        _check_deviation(x)


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


def load_state(store: Path, phase: Phase, keys: Key, row: Sequence[int]) -> State:
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
    phase = phases(options, trained_on)[-1]
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
    for name in PHASES:
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
    found = {name: checkpoint.latest(folder / name) for name in PHASES}
    is_lost = found["train"] is not None and found["pretrain"] is None
    if is_lost and not needs_start(folder, options):
        del found["pretrain"]
    return {name: (step or 0) // steps for name, step in found.items()}


def _check_rows(options: config.Options, row: tuple[int, ...]) -> None:
    method, network = options.method, options.network
    is_reader = method.method in ("next_token", "next_frame")
    allowed = ("gru", "transformer") if is_reader else ("mlp", "conv")
    if method.method in _ON_PAIRS:
        allowed = ("mlp", "conv", "resnet")
    if network.network not in allowed and method.method not in _WITH_BLOCKS:
        raise config.ConfigError(
            f"expected --network {' or '.join(allowed)} beside --method {method.method}, found "
            f"{network.network}"
        )
    if method.augment in ("affine", "photo") and len(row) != 3:
        pairs = "; of pairs take each" if method.method == "cross_modal" else ""
        raise config.ConfigError(
            f"--augment {method.augment} needs images [h, w, c], found rows {row}{pairs}"
        )
    if method.augment == "photo" and row[2] not in (1, 3):
        raise config.ConfigError(
            f"--augment photo needs images of 1 or 3 channels, found {row[2]}; take affine"
        )
    if method.augment == "speech" and (len(row) != 3 or row[2] != 1):
        raise config.ConfigError(f"--augment speech needs sounds [t, bands, 1], found rows {row}")
    if is_reader:
        return _check_reader(METHODS[method.method], options, row)
    if method.method in _WITH_BLOCKS:
        return _check_blocks(method.method, network, row)
    if method.method in config.GAMES:
        _check_game(options)
    if network.network != "mlp" and network.precision != "float32":
        raise config.ConfigError("--precision bfloat16 needs --network mlp")
    if method.method == "cross_modal":
        return _check_parts(options, row)
    if network.network != "mlp" and len(row) != 3:
        raise config.ConfigError(
            f"--network {network.network} needs images [h, w, c], found rows {row}"
        )
    usual = config.PROFILES[options.method.profile][options.method.method]["hidden"]
    if network.network == "conv" and tuple(network.hidden) != usual:
        raise config.ConfigError("--hidden needs --network mlp, or resnet; leave it out for conv")


def _check_game(options: config.Options) -> None:
    method, network = options.method, options.network
    if network.precision != "float32":
        raise config.ConfigError(
            f"--method {method.method} needs --precision float32, found bfloat16"
        )
    if method.method == "gan" and network.embed_dim > network.hidden[-1]:
        raise config.ConfigError(
            f"expected --embed-dim <= {network.hidden[-1]}, the last of --hidden, found "
            f"{network.embed_dim}"
        )
    if method.prior and options.data.n_clusters is not None:
        try:
            game.prior_of(method.prior, options.data.n_clusters)
        except ValueError as error:
            raise config.ConfigError(f"--prior: {error}") from None


def _check_parts(options: config.Options, row: tuple[int, ...]) -> None:
    parts = config.shapes(options.data.parts or ())
    if len(parts) < 2:
        raise config.ConfigError(
            "--method cross_modal needs rows of two modalities or more; give the second as "
            f"--partner, or the shapes of all as --parts, found {options.data.parts}"
        )
    wanted = sum(math.prod(part) for part in parts)
    if row != (wanted,):
        raise config.ConfigError(
            f"expected rows of {wanted} numbers, which --parts {' '.join(options.data.parts)} "
            f"make up, found rows of shape {row}"
        )
    if options.method.augment == "each" and not any(map(change_of, parts)):
        raise config.ConfigError(
            "--augment each needs a modality of images or of words of --scaling speech, found "
            f"--parts {' '.join(options.data.parts)}"
        )
    if options.network.network == "conv" and not any(len(part) == 3 for part in parts):
        raise config.ConfigError(
            f"--network conv needs a modality of images [h, w, c], found {options.data.parts}"
        )


def _check_reader(module: Any, options: config.Options, row: tuple[int, ...]) -> None:
    network, method = options.network, options.method.method
    if network.precision != "float32":
        raise config.ConfigError(f"--method {method} needs --precision float32, found bfloat16")
    try:
        own = module.Config(
            embed_dim=network.embed_dim, network=network.network, hidden=tuple(network.hidden)
        )
        module.build(own, row)
    except ValueError as error:
        raise config.ConfigError(f"--method {method}: {error}") from None


def _check_blocks(method: str, network: config.Network, row: tuple[int, ...]) -> None:
    if method != "deep_cluster" and (len(row) != 3 or row[0] != row[1]):
        raise config.ConfigError(
            f"--method {method} needs square images [h, h, c], which turn into themselves, "
            f"found rows of shape {row}; cut or pad them"
        )
    if len(row) != 3:
        raise config.ConfigError(f"--method {method} needs images, found rows of shape {row}")
    if (network.network, network.precision) != ("conv", "float32"):
        raise config.ConfigError(
            f"--method {method} needs --network conv and --precision float32, found "
            f"{network.network} and {network.precision}"
        )
    if method == "mmdc":  # whose code is no principal axes
        return
    module = METHODS[method]
    axes = module.most_axes(module.build_nets(module.Config(hidden=network.hidden), row), row)
    if network.embed_dim > axes:
        raise config.ConfigError(
            f"expected --embed-dim <= {axes}, the features of the network, found "
            f"{network.embed_dim}; give fewer, or wider --hidden"
        )


def _nearest(rows: Any) -> Array:
    return neighbors.nearest(rows, min(_PARTNERS, len(rows) - 1)).index


def _check_unit_range(x: Any) -> None:
    if not is_bounded(x):
        some = np.asarray(x[: 2**14])
        raise config.ConfigError(
            "--likelihood bernoulli needs rows in 0..1, found "
            f"{some.min():g} to {some.max():g}; take gaussian or --scaling range"
        )


def _check_tokens(x: Any) -> None:
    some = np.asarray(x)
    is_whole = (some == np.floor(some)).all() and (some[:, 0] == tokens.START).all()
    if not is_whole or some.min() < 0 or some.max() >= tokens.VOCABULARY:
        raise config.ConfigError(
            "--method next_token needs rows of tokens, found other numbers; take --scaling tokens, "
            'from Python data.load(..., scaling="tokens")'
        )


def _check_frames(x: Any) -> None:
    ahead, size = next_frame.Config().ahead, 1024
    parts = (np.asarray(x[i : i + size]) for i in range(0, x.shape[0], size))
    longest = (int(next_frame.length(next_frame.in_order(part)).max()) for part in parts)
    if all(frames <= ahead for frames in longest):  # mostly the first part tells
        raise config.ConfigError(
            f"--method next_frame needs sounds of more than {ahead} frames, which it tells so far "
            "ahead, found none; take --method autoencoder"
        )


def _check_deviation(x: Any) -> None:
    rows = np.unique(np.linspace(0, x.shape[0] - 1, 1024).astype(np.int64))
    some = np.asarray(x[rows], np.float32).reshape(len(rows), -1)
    variances = np.var(some, axis=0, dtype=np.float64)
    deviation = float(np.sqrt(np.mean(variances, where=variances > 0))) if variances.any() else 0.0
    if 0 < deviation < _DEVIATIONS[0] or deviation > _DEVIATIONS[1]:
        raise config.ConfigError(
            f"expected features with a deviation from {_DEVIATIONS[0]} to {_DEVIATIONS[1]:g}, for "
            f"which the learning rates are, found {deviation:.2g}; take --scaling auto or standard"
        )


def falling_rate(rate: float, steps: int, decay: float) -> optax.Schedule:
    """A constant rate that falls to 0 in a line over the last share `decay` of the steps."""
    last = int(steps * decay)
    if last == 0:
        return optax.constant_schedule(rate)
    line = optax.linear_schedule(rate, 0.0, last)
    return optax.join_schedules([optax.constant_schedule(rate), line], [steps - last])


def _train(phase, keys, x, near, options, before, store, on_epoch) -> train.Fit:
    """Train one phase from its newest checkpoint, or from the state of the phase before it."""
    batch_size = options.training.batch_size
    phase_keys = own_keys(phase, keys)
    if store is not None and checkpoint.latest(store) is not None:
        state = load_state(store, phase, keys, x.shape[1:])
    else:
        state = train.init(phase_keys, phase.algorithm, x, batch_size=batch_size)
        if before is not None:
            warm_start = METHODS[options.method.method].warm_start
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


def _begun(folder: Path | None, *phases: str) -> bool:
    return folder is not None and any(checkpoint.latest(folder / p) is not None for p in phases)


def _so_far(store: Path | None, phase: Phase, made: dict[str, Any]) -> tuple[float, bool]:
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


def _epoch_hook(phase: Phase, store, before: float, made, on_epoch, on_state):
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
