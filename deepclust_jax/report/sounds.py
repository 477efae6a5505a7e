"""Clips of each cluster, to be heard."""

import html
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deepclust_jax.data import Clips
from deepclust_jax.report import figures

FOLDER, PAGE = "samples", "samples.html"


def write_samples(
    folder: Path,
    clips: Clips,
    labels: np.ndarray,
    distances: np.ndarray,
    *,
    n_clusters: int,
    per_cluster: int = 5,
    names: Sequence[str] = (),
) -> None:
    """Write the clips nearest to each centroid, nearest first, as wav files in samples/, and
    samples.html, on which they are played. labels, distances [n]; `names` are those of the files
    of all clips, if there are any."""
    from scipy.io import wavfile

    shutil.rmtree(folder / FOLDER, ignore_errors=True)  # of a run that went on there may be others
    (folder / FOLDER).mkdir()
    lines = ["<!doctype html>", '<meta charset="utf-8">', "<title>Clips of each cluster</title>"]
    sizes = np.bincount(labels, minlength=n_clusters)
    for cluster, rows in enumerate(figures.nearest(labels, distances, per_cluster, n_clusters)):
        lines.append(f"<h2>Cluster {cluster}, of size {sizes[cluster]:,}</h2>")
        for place, row in enumerate(rows):
            name = f"{FOLDER}/{cluster}-{place}.wav"
            wavfile.write(folder / name, clips.sample_rate, _int16(clips[row]))
            told = html.escape(names[row]) if names else f"row {row}"
            lines.append(f'<p><audio controls preload="none" src="{name}"></audio> {told}</p>')
    page = "\n".join(lines) + "\n"
    (folder / PAGE).write_text(page, encoding="utf-8", errors="surrogateescape")


def _int16(samples: np.ndarray) -> np.ndarray:
    """What every player plays; integers are that already."""
    if samples.dtype == np.int16:
        return samples
    return np.int16(np.round(np.clip(samples, -1.0, 1.0) * 32767.0))
