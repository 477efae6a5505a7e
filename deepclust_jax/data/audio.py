"""Features of sounds: log-mel spectrograms of a fixed length, computed in JAX.

Hann windows of 32 ms every 16 ms, power spectrum, 40 triangular bands on the HTK mel scale
(O'Shaughnessy 1987: 2595 log10(1 + f / 700)), logarithm, each band standardised over the frames
that clips have. Behind a short clip come frames of zeros, the mean of each band: silence would be
the largest difference between clips there, and clusters would be those of their lengths.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepclust_jax.data import arrays, scaling
from deepclust_jax.data.clips import Clips
from deepclust_jax.data.errors import DataError

WINDOW_SECONDS, HOP_SECONDS = 0.032, 0.016
BANDS = 40
FLOOR = 1e-8  # power added before the logarithm: 80 dB below full scale
MAX_FRAMES = 256
BATCH = 64  # clips per call; always this many, so that a clip's result never depends on the others


def fit(clips: Clips) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Frame settings, and each band's mean and multiplier [bands], of these clips.

    The number of frames is the 95th percentile of the clips, rounded up to a multiple of 4 (for
    strided convolutions), at most 256.
    """
    settings = framing(clips.sample_rate)
    lengths = [
        frame_count(len(clip), settings["window"], settings["hop"]) for clip in clips.samples
    ]
    frames = int(np.ceil(np.percentile(lengths, 95) / 4)) * 4
    settings |= {"frames": min(frames, MAX_FRAMES), "bands": BANDS, "fill": "mean"}
    logs, there = log_mels(settings, clips)
    blocks = list(arrays.row_blocks(logs.shape))
    found = scaling.moments(
        lambda: (np.float64(logs[rows][there[rows]]) for rows in blocks), int(there.sum())
    )
    return settings, found


def apply(settings: dict[str, Any], constants: dict[str, np.ndarray], clips: Clips) -> np.ndarray:
    """Standardised log-mel spectrograms, 0 behind short clips. -> float32 [n, frames, bands, 1].

    Raises DataError if the clips have another sample rate than those of `fit`, or if that filled
    short ones with something else.
    """
    check_rate(settings, clips)
    if settings.get("fill") != "mean":
        raise DataError(
            "the stored preprocessing filled short clips with silence, as versions of before did; "
            "train the run again"
        )
    x, there = log_mels(settings, clips)
    for rows in arrays.row_blocks(x.shape):
        found = scaling.transform(x[rows], "standard", constants)
        x[rows] = np.where(there[rows][..., None], found, 0.0)
    return x[..., None]


def framing(rate: int) -> dict[str, Any]:
    """Sample rate, window and hop (samples) and floor. Raises DataError for too low a rate, Hz."""
    window, hop = round(WINDOW_SECONDS * rate), round(HOP_SECONDS * rate)
    if hop < 1:
        raise DataError(f"sample rate {rate} Hz is too low for windows of 32 ms; resample")
    return {"sample_rate": rate, "window": window, "hop": hop, "floor": FLOOR}


def check_rate(settings: dict[str, Any], clips: Clips) -> None:
    """Raise DataError if the clips have another sample rate than the settings."""
    if clips.sample_rate != settings["sample_rate"]:
        raise DataError(
            f"the stored preprocessing expects a sample rate of {settings['sample_rate']} Hz, "
            f"found {clips.sample_rate} Hz; resample the clips"
        )


def frame_count(length: int, window: int, hop: int) -> int:
    """Frames of a clip; a clip shorter than a window is padded with silence to one frame."""
    return 1 + max(0, length - window) // hop


def log_mels(settings: dict[str, Any], clips: Clips) -> tuple[np.ndarray, np.ndarray]:
    """Log-mel spectrograms, longer clips cut on both sides; and which frames are of the clip, as
    behind a shorter one comes the floor, for callers to replace.

    -> float32 [n, frames, bands], bool [n, frames].
    """
    window, hop, frames = settings["window"], settings["hop"], settings["frames"]
    mel = mel_bank(settings["sample_rate"], 2 * window, settings["bands"])
    batches, counts = [], np.zeros(len(clips), np.int32)
    for start in range(0, len(clips), BATCH):
        sounds = np.zeros((BATCH, (frames - 1) * hop + window), np.float32)
        valid = np.zeros(BATCH, np.int32)
        chosen = clips.samples[start : start + BATCH]
        for i, clip in enumerate(chosen):
            found = frame_count(len(clip), window, hop)
            first = max(0, found - frames) // 2 * hop
            kept = as_float(clip[first : first + sounds.shape[1]])
            sounds[i, : len(kept)], valid[i] = kept, min(found, frames)
        logs = log_mel_batch(sounds, valid, mel, settings["floor"], window=window, hop=hop)
        batches.append(np.asarray(logs)[: len(chosen)])
        counts[start : start + BATCH] = valid[: len(chosen)]
    return np.concatenate(batches), np.arange(frames)[None, :] < counts[:, None]


def as_float(clip: np.ndarray) -> np.ndarray:
    """Samples as float32, integers relative to full scale. [length] -> [length]."""
    if clip.dtype.kind == "i":
        return clip.astype(np.float32) / np.float32(2.0 ** (8 * clip.dtype.itemsize - 1))
    return clip.astype(np.float32)


@functools.partial(jax.jit, static_argnames=("window", "hop"))
def log_mel_batch(
    sounds: jax.Array, counts: jax.Array, mel: jax.Array, floor: float, *, window: int, hop: int
) -> jax.Array:
    """Log-mel bands, the floor beyond the valid frames.

    [b, length], [b] valid frames, [bins, bands] -> [b, frames, bands].
    """
    power = jax.vmap(functools.partial(power_spectrum, window=window, hop=hop))(sounds)
    bands = jnp.einsum("bft,tm->bfm", power, mel, precision="highest")
    valid = jnp.arange(power.shape[1])[None, :] < counts[:, None]
    return jnp.log(floor + jnp.where(valid[..., None], bands, 0.0))


def power_spectrum(sound: jax.Array, *, window: int, hop: int) -> jax.Array:
    """Power of Hann-windowed frames, zero-padded to 2 windows. [length] -> [frames, window + 1].

    Divided by (sum of the window)², scipy's scaling "spectrum": a full-scale sine has 1/4 in its
    bin. The Hann window is the periodic one.
    """
    frames = 1 + (sound.shape[0] - window) // hop
    places = hop * jnp.arange(frames)[:, None] + jnp.arange(window)[None, :]
    hann = 0.5 - 0.5 * jnp.cos(2.0 * jnp.pi * jnp.arange(window) / window)
    spectrum = jnp.fft.rfft(sound[places] * hann[None, :], n=2 * window)
    return jnp.abs(spectrum / jnp.sum(hann)) ** 2


def mel_bank(sample_rate: int, fft_length: int, bands: int) -> np.ndarray:
    """Triangular bands of height 1, evenly spaced in HTK mel from 0 to half the sample rate.

    -> float32 [fft_length // 2 + 1, bands].
    """
    top = hertz_to_mel(sample_rate / 2)
    edges = mel_to_hertz(np.linspace(0.0, top, bands + 2))
    bins = np.arange(fft_length // 2 + 1) * sample_rate / fft_length
    low, centre, high = edges[None, :-2], edges[None, 1:-1], edges[None, 2:]
    rising = (bins[:, None] - low) / (centre - low)
    falling = (high - bins[:, None]) / (high - centre)
    return np.float32(np.maximum(0.0, np.minimum(rising, falling)))


def hertz_to_mel(hertz: np.ndarray | float) -> np.ndarray:
    """HTK mel: 1000 Hz is 1000 mel (to four digits)."""
    return 2595.0 * np.log10(1.0 + np.asarray(hertz) / 700.0)


def mel_to_hertz(mel: np.ndarray | float) -> np.ndarray:
    """Inverse of `hertz_to_mel`."""
    return 700.0 * (10.0 ** (np.asarray(mel) / 2595.0) - 1.0)
