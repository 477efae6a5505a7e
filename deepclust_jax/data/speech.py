"""Features of spoken words: what is said, with little of who says it and how fast.

The log-mel bands of audio.py, from the first loud frame to the last, stretched to one number of
frames; 12 cepstral coefficients (Davis & Mermelstein 1980: the cosine transform of the bands, but
for its mean, which is loudness); each coefficient minus its mean over the clip and over its
deviation there, which takes away a constant colour: microphone, room, part of the voice (Viikki &
Laurila 1998, "Cepstral Domain Segmental Feature Vector Normalization for Noise Robust Speech
Recognition").

A clip depends on itself alone, and so silence, noise and music come out as well, but lose what
tells them apart: they are better off with audio.py.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepclust_jax.data import audio
from deepclust_jax.data.clips import Clips

COEFFICIENTS = 12
LOUD = 0.25  # of the way from the silence of a clip to its peak, in the logarithm
QUIET = 0.05  # share of frames that are taken as silence
LEAST = 4  # loud frames; a clip with fewer is taken whole
MIN_FRAMES, MAX_FRAMES = 16, 256  # after stretching
ROOM = 0.1  # added to deviations, nats: a coefficient that does not move stays near 0
_SHORTEST = 16  # frames that clips are padded to, or to a power of two: one program for each


def fit(clips: Clips) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Settings; no arrays. The number of frames is the median between first and last loud one of
    these clips, rounded up to a multiple of 4 (for strided convolutions), from 16 to 256.

    Raises DataError for a sample rate that is too low.
    """
    settings = {"scaling": "speech", **audio.framing(clips.sample_rate), "bands": audio.BANDS}
    lengths = np.zeros(len(clips))
    for rows, logs, counts in _log_mels(settings, clips):
        first, last = _loud_parts(logs, counts)
        lengths[rows] = np.asarray(last - first + 1)[: len(rows)]
    frames = int(np.ceil(np.median(lengths) / 4)) * 4
    return settings | {"frames": int(np.clip(frames, MIN_FRAMES, MAX_FRAMES))}, {}


def apply(settings: dict[str, Any], clips: Clips) -> np.ndarray:
    """Normalised cepstral coefficients. -> float32 [n, frames, 12, 1].

    Raises DataError if the clips have another sample rate than those of `fit`.
    """
    audio.check_rate(settings, clips)
    transform = cosines(settings["bands"], COEFFICIENTS)
    x = np.empty((len(clips), settings["frames"], COEFFICIENTS, 1), np.float32)
    for rows, logs, counts in _log_mels(settings, clips):
        found = _cepstra(logs, counts, transform, frames=settings["frames"])
        x[rows, :, :, 0] = np.asarray(found)[: len(rows)]
    return x


def cosines(bands: int, coefficients: int) -> np.ndarray:
    """Rows 1, 2, … of the orthonormal cosine transform (DCT-II). -> float32 [bands, coefficients].

    The transform of x [..., bands] is x @ cosines; that times its transpose is x again but for its
    mean and its finest ripples.
    """
    k, b = np.arange(1, coefficients + 1)[None, :], np.arange(bands)[:, None]
    return np.float32(np.sqrt(2.0 / bands) * np.cos(np.pi * k * (2 * b + 1) / (2 * bands)))


def normalised(x: jax.Array) -> jax.Array:
    """Each coefficient minus its mean over the frames, over its deviation there. [t, c] -> same."""
    x = x - jnp.mean(x, axis=0, keepdims=True)
    return x / (jnp.std(x, axis=0, keepdims=True) + ROOM)


def at_places(x: jax.Array, places: jax.Array) -> jax.Array:
    """Rows of x at real-valued places, between two by their distance. [t, c], [m] -> [m, c].

    Places outside 0..t - 1 are those at the ends.
    """
    places = jnp.clip(places, 0.0, x.shape[0] - 1.0)
    below = jnp.clip(jnp.floor(places).astype(jnp.int32), 0, max(x.shape[0] - 2, 0))
    above = jnp.minimum(below + 1, x.shape[0] - 1)
    share = (places - below)[:, None]
    return (1.0 - share) * x[below] + share * x[above]


def _log_mels(
    settings: dict[str, Any], clips: Clips
) -> Iterator[tuple[np.ndarray, jax.Array, jax.Array]]:
    """(which clips, log-mel bands [b, f, bands], valid frames [b]) of all clips, those of about one
    length together, filled up with empty ones to one b for each f."""
    window, hop = settings["window"], settings["hop"]
    mel = audio.mel_bank(settings["sample_rate"], 2 * window, settings["bands"])
    counts = np.array([audio.frame_count(len(clip), window, hop) for clip in clips.samples])
    rooms = 2 ** np.ceil(np.log2(np.maximum(counts, _SHORTEST))).astype(int)
    for room in np.unique(rooms):
        size = max(1, audio.BATCH * audio.MAX_FRAMES // int(room))
        alike = np.flatnonzero(rooms == room)
        for rows in np.split(alike, range(size, len(alike), size)):
            sounds = np.zeros((size, (room - 1) * hop + window), np.float32)
            for sound, row in zip(sounds, rows, strict=False):
                kept = audio.as_float(clips.samples[row])[: len(sound)]
                sound[: len(kept)] = kept
            valid = np.ones(size, np.int32)
            valid[: len(rows)] = counts[rows]
            logs = audio.log_mel_batch(
                sounds, valid, mel, settings["floor"], window=window, hop=hop
            )
            yield rows, logs, jnp.asarray(valid)


@jax.jit
def _loud_parts(logs: jax.Array, counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First and last loud frame of clips. [b, f, bands], [b] -> int32 [b], [b]."""
    valid = jnp.arange(logs.shape[1])[None, :] < counts[:, None]
    loudness = jnp.mean(logs, axis=2)
    in_order = jnp.sort(jnp.where(valid, loudness, jnp.inf), axis=1)
    place = (QUIET * (counts - 1)).astype(jnp.int32)
    low = jnp.take_along_axis(in_order, place[:, None], axis=1)
    high = jnp.max(jnp.where(valid, loudness, -jnp.inf), axis=1, keepdims=True)
    loud = valid & (loudness > low + LOUD * (high - low))
    first = jnp.argmax(loud, axis=1)
    last = logs.shape[1] - 1 - jnp.argmax(loud[:, ::-1], axis=1)
    whole = (last - first + 1 < LEAST) | ~jnp.any(loud, axis=1)
    return jnp.where(whole, 0, first), jnp.where(whole, counts - 1, last)


@functools.partial(jax.jit, static_argnames="frames")
def _cepstra(logs: jax.Array, counts: jax.Array, transform: jax.Array, *, frames: int) -> jax.Array:
    """[b, f, bands], [b], [bands, c] -> normalised coefficients of the loud part [b, frames, c]."""
    first, last = _loud_parts(logs, counts)
    share = jnp.linspace(0.0, 1.0, frames)[None, :]
    places = first[:, None] + (last - first)[:, None] * share
    stretched = jax.vmap(at_places)(logs, places)
    return jax.vmap(normalised)(jnp.matmul(stretched, transform, precision="highest"))
