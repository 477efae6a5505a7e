"""What a method trains by its options: its phases, and whether the data fit them."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from deepclust_jax import augment, config, game, profiles, resets, stream
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
from deepclust_jax.data import speech, tokens
from deepclust_jax.types import Algorithm, Array, Key

METHODS = {
    "autoencoder": autoencoder, "dcn": dcn, "dkm": dkm, "dec": dec, "idec": dec, "vade": vade,
    "n2d": n2d, "contrastive": contrastive, "info_max": info_max, "rotation": rotation,
    "mmdc": mmdc, "deep_cluster": deep_cluster, "next_token": next_token, "next_frame": next_frame,
    "cross_modal": cross_modal, "gan": gan, "info_gan": info_gan, "cluster_gan": cluster_gan,
    "bi_gan": bi_gan,
}  # fmt: skip
NAMES = ("pretrain", "train")  # of phases, as their checkpoints and logs are called

# Of features: outside, the autoencoder of digits ends worse than a mean, or no better.
_DEVIATIONS = 0.05, 20.0
_ON_PAIRS = ("contrastive", "info_max")
_WITH_BLOCKS = ("rotation", "mmdc", "deep_cluster")
_WORD = speech.COEFFICIENTS, 1  # axes of a word behind that of time

FIRST = 2**14  # rows that tell whether all are in 0..1
_NOISE = 2.0  # of views by --augment noise, as a share of the distance of a pair
_SHARP = 0.1  # temperature of contrastive features of --augment photo
_SMALLER = 0.75  # size of its views, but of a residual network, where it was not tried
# Of the views of a pair, with scale and shear; the other methods take `augment.affine` as it is.
_WIDE = functools.partial(augment.affine, degrees=15.0, shift=0.08, scale=0.15, shear=0.2)


class Phase(NamedTuple):
    """One call of `train.fit`."""

    name: str  # one of NAMES
    stream: int  # of the draws; that of an autoencoder is the same alone and as a warm start
    algorithm: Algorithm
    epochs: int
    refresh_every: int  # as in `train.fit`
    cluster: bool  # refresh once more at the end: the k-means of an autoencoder, what is merged
    pairs: str = ""  # of neighbours by what, if it trains on pairs: "rows", or "features" before


def of(
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
    return list(_of(asked, tuple(shape), filled, is_bounded, repr(asked)))


def _of_python(group: Any) -> Any:
    """A group of options whose arrays and lists are numbers and tuples, which can be compared."""

    def plain(value):
        if isinstance(value, list | tuple):
            return tuple(map(plain, value))
        return value.item() if getattr(value, "ndim", None) == 0 else value

    values = {f.name: plain(getattr(group, f.name)) for f in dataclasses.fields(group)}
    return dataclasses.replace(group, **values)


@functools.lru_cache(maxsize=16)
def _of(
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
    if method.method in profiles.GAMES:
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
    if method.method in profiles.GAMES:
        _check_game(options)
    if network.network != "mlp" and network.precision != "float32":
        raise config.ConfigError("--precision bfloat16 needs --network mlp")
    if method.method == "cross_modal":
        return _check_parts(options, row)
    if network.network != "mlp" and len(row) != 3:
        raise config.ConfigError(
            f"--network {network.network} needs images [h, w, c], found rows {row}"
        )
    usual = profiles.PROFILES[options.method.profile][options.method.method]["hidden"]
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
