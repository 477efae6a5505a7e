"""Sound clips of different lengths, and how to read them from a folder of wav files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepclust_jax.data.errors import DataError


@dataclass(frozen=True, eq=False)
class Clips:
    """Mono clips of any length with one sample rate; `clips[i]` is the samples of clip i."""

    samples: tuple[np.ndarray, ...]  # each [length], int16 or float in [-1, 1]
    sample_rate: int  # Hz

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.samples)

    def __getitem__(self, i: int) -> np.ndarray:
        """Samples of clip i. -> [length]."""
        return self.samples[i]


def read(paths: list[Path]) -> Clips:
    """Clips of these wav files as float32 in [-1, 1], several channels averaged.

    Raises DataError naming the first file that is unreadable, empty or has another sample rate.
    """
    try:
        import soundfile
    except ImportError:
        raise DataError("reading wav files needs soundfile; install deepclust_jax[data]") from None
    samples, rate = [], None
    for path in paths:
        try:
            sound, found = soundfile.read(path, dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, RuntimeError) as error:
            reason = str(error).replace("\n", " ")
            raise DataError(f"{path} is not a readable sound file: {reason}; remove it") from None
        rate = rate or found
        if found != rate:
            raise DataError(
                f"{path} has a sample rate of {found} Hz, but {paths[0].name} has {rate} Hz; "
                "resample all clips to one rate"
            )
        if len(sound) == 0:
            raise DataError(f"{path} has no samples; remove it")
        samples.append(sound.mean(axis=1))
    return Clips(tuple(samples), int(rate))
