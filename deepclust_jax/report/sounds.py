"""Clips of each cluster, to be heard."""

import shutil
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
) -> None:
    """Write the clips nearest to each centroid, nearest first, as wav files in samples/, and
    samples.html, on which they are played. labels, distances [n]."""
    from scipy.io import wavfile

    shutil.rmtree(folder / FOLDER, ignore_errors=True)  # of a run that went on there may be others
    (folder / FOLDER).mkdir()
    lines = ["<!doctype html>", '<meta charset="utf-8">', "<title>Clips of each cluster</title>"]
    sizes = np.bincount(labels, minlength=n_clusters)
    for cluster, rows in enumerate(figures.nearest(labels, distances, per_cluster, n_clusters)):
        lines.append(f"<h2>Cluster {cluster}: {sizes[cluster]:,} clips</h2>")
        for place, row in enumerate(rows):
            name = f"{FOLDER}/{cluster}-{place}.wav"
            wavfile.write(folder / name, clips.sample_rate, _int16(clips[row]))
            lines.append(f'<p><audio controls preload="none" src="{name}"></audio> row {row}</p>')
    (folder / PAGE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _int16(samples: np.ndarray) -> np.ndarray:
    """What every player plays; integers are that already."""
    if samples.dtype == np.int16:
        return samples
    return np.int16(np.round(np.clip(samples, -1.0, 1.0) * 32767.0))
