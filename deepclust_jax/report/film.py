"""What a generator makes of the same latents while it trains: frames, a film, TensorBoard."""

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepclust_jax import config, profiles, run
from deepclust_jax.report import figures, logs, pretext

FRAMES, FILM, MEASURES = "frames", "film.gif", "made.jsonl"
_COMPARED = 1000  # rows of each kind, measured in an epoch
_MOST, _LASTING = 50, 120  # frames of a film, and milliseconds of each
COLUMNS = 10  # rows that are made of each cluster
_STILL = 2000  # milliseconds of the last frame


def watcher(
    folder: Path, options: config.Options, x: Any, kind: str
) -> Callable[[int, int, Any], None] | None:
    """What measures, and where rows are of the kind "image" draws, what run 0 makes in some epochs,
    to be given (epochs done, epochs, state [S]). x are all rows, of which those held out are not
    compared with. None where the method makes no rows."""
    if options.method.method not in profiles.GAMES:
        return None
    key = run.seed_keys(options)[0]
    rows = pretext.compared(len(x) - options.data.held_out, _COMPARED)
    real = np.asarray(x[rows]).reshape(-1, math.prod(x.shape[1:]))
    maker_of = pretext.makers(options, x)
    is_seen = kind == "image" and x.shape[-1] in (1, 3)

    def on_state(epoch: int, epochs: int, state: Any) -> None:
        if epoch > 1 and epoch < epochs and epoch % math.ceil(epochs / _MOST):
            return
        maker = maker_of(jax.tree.map(lambda leaf: leaf[0], state))
        made = maker.make(maker.latents(key, len(real))).reshape(len(real), -1)
        own = pretext.measured(real, made, frechet=real.shape[1] <= pretext.WIDEST)
        own = {name: own[name] for name in ("frechet", "coverage") if name in own}
        with (folder / MEASURES).open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps({"epoch": epoch, **own}))
        if is_seen:
            (folder / FRAMES).mkdir(exist_ok=True)
            images = maker.make(latents(maker, key, options))
            figures.grid(folder / FRAMES / f"{epoch:06d}.png", images, COLUMNS)

    return on_state


def measures(folder: Path) -> dict[str, dict[str, float]]:
    """What `watcher` measured, by epoch; {} where it did not. Of an epoch that was trained twice,
    after a stop, the last."""
    file = folder / MEASURES
    if not file.is_file():
        return {}
    by_epoch = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # empty, or cut off as the run was
            own = json.loads(line)
            by_epoch[str(own.pop("epoch"))] = own
    return dict(sorted(by_epoch.items(), key=lambda item: int(item[0])))


def latents(maker: pretext.Maker, key: jax.Array, options: config.Options) -> jax.Array:
    """Ten latents of each cluster, of at most 30, where the method has a code; else a hundred.
    -> [n, m]."""
    if options.method.method == "gan":
        return maker.latents(key, COLUMNS**2)
    k = min(options.data.n_clusters, figures.MAX_CLUSTERS)
    clusters = np.repeat(np.arange(k), COLUMNS)
    return maker.latents(key, len(clusters), jnp.asarray(clusters))


def walks(maker: pretext.Maker, key: jax.Array, options: config.Options) -> np.ndarray:
    """What is made on the way from one latent to the next, ten steps each: of the clusters in
    turn, all else equal, where there is a code; else of ten draws. -> [n * 10, h, w, c]."""
    if options.method.method == "gan":
        ends = maker.latents(key, COLUMNS)
        # On a circle between them all draws are as likely as the ends.
        angles = 0.5 * np.pi * np.linspace(0.0, 1.0, COLUMNS)
        shares = np.cos(angles), np.sin(angles)
    else:
        k = min(options.data.n_clusters, figures.MAX_CLUSTERS)
        one = maker.latents(key, 1, jnp.zeros(1, int))
        codes = jax.nn.one_hot(jnp.arange(k), options.data.n_clusters)
        noise = jnp.repeat(one[:, : -options.data.n_clusters], k, axis=0)
        ends = jnp.concatenate([noise, codes], axis=1)
        steps = np.linspace(0.0, 1.0, COLUMNS)
        shares = 1.0 - steps, steps
    after = jnp.roll(ends, -1, axis=0)
    one, other = (jnp.asarray(share)[None, :, None] for share in shares)
    z = one * ends[:, None, :] + other * after[:, None, :]
    return maker.make(z.reshape(-1, ends.shape[1]))


def write(folder: Path) -> None:
    """film.gif of the frames that are there, and both they and `measures` to TensorBoard."""
    from PIL import Image

    frames = sorted((folder / FRAMES).glob("*.png"))
    logs.write_film(folder, {int(frame.stem): frame for frame in frames}, measures(folder))
    if not frames:
        return
    pictures = [Image.open(frame).convert("P") for frame in frames]
    lasting = [_LASTING] * (len(frames) - 1) + [_STILL]
    pictures[0].save(
        folder / FILM, save_all=True, append_images=pictures[1:], duration=lasting, loop=0
    )
