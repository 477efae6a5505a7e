"""Metrics of a run as metrics.csv (the source of truth) and TensorBoard (made from it)."""

import csv
import dataclasses
import io
import math
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deepclust_jax.report import tiles

HEADER = ("phase", "epoch", "seed", "metric", "value")
SPRITE_TILE = 32  # pixels; 71 x 71 tiles stay far below the 8192 pixels a browser can load


class Row(NamedTuple):
    """One line of metrics.csv; `seed` counts the runs of the population from 0."""

    phase: str
    epoch: int
    seed: int
    metric: str
    value: float


@dataclasses.dataclass
class Log:
    """An open log: call `epoch` once per epoch, leave the `with` block or call `close`."""

    file: Any
    writer: Any
    last: dict[tuple[str, str], int]  # (phase, metric) -> last epoch written

    def epoch(self, phase: str, epoch: int, metrics: Mapping[str, np.ndarray]) -> None:
        """Append one epoch; every metric is [S], one value per seed, epochs count from 0.

        Raises ValueError if a metric of this phase was already logged for this or a later epoch.
        """
        values = {name: np.atleast_1d(np.asarray(value)) for name, value in metrics.items()}
        for name, value in values.items():
            if value.ndim != 1:
                raise ValueError(f"expected {name!r} as [seeds], found shape {value.shape}")
            if epoch <= self.last.get((phase, name), -1):
                raise ValueError(
                    f"expected an epoch of {phase!r} after {self.last[phase, name]} for {name!r}, "
                    f"found {epoch}; to go back open the log with resume={{{phase!r}: {epoch}}}"
                )
        # str of a NumPy scalar is the shortest text that reads back as the same number.
        rows = [
            Row(phase, epoch, s, name, str(x))
            for name, value in values.items()
            for s, x in enumerate(value)
        ]
        self.file.write(_text(rows))  # one write per epoch: a crash can cut one line only
        self.file.flush()
        _add_scalars(self.writer, phase, epoch, values)
        self.last.update({(phase, name): epoch for name in values})

    def close(self) -> None:
        """Write what is pending and close both files; closing twice is harmless."""
        self.file.close()
        self.writer.close()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_log(folder: str | os.PathLike, *, resume: Mapping[str, int] | None = None) -> Log:
    """A log that appends to folder/metrics.csv and writes TensorBoard scalars.

    Tags are `phase/metric` (mean over seeds) and, for several seeds, `phase/metric/seed_s`;
    values that are not finite are gaps there and stand as nan or inf in the file.

    Args:
      folder: of the run; created if needed.
      resume: None for a new log. Otherwise phase -> first epoch that will be written again:
        rows of that phase from that epoch on are dropped, phases not named are kept whole.
        The rows kept are replayed into a new event file which tells TensorBoard to forget the
        earlier ones, so it shows no epoch twice either.

    Raises FileExistsError if there is a log already and `resume` is None.
    """
    path = Path(folder) / "metrics.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    if resume is None and path.exists():
        raise FileExistsError(
            f"expected a folder without metrics.csv, found one in {path.parent}; choose another "
            "folder or open the log with resume={phase: epoch}"
        )
    kept = _read_rows(path) if path.exists() else []
    kept = [row for row in kept if row.epoch < (resume or {}).get(row.phase, row.epoch + 1)]
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(_text([HEADER, *kept]), encoding="utf-8")
    os.replace(temporary, path)

    writer = _writer(path.parent / "tensorboard")
    _replay(writer, kept)
    last = {(row.phase, row.metric): row.epoch for row in sorted(kept, key=lambda r: r.epoch)}
    return Log(path.open("a", encoding="utf-8"), writer, last)


def read_metrics(folder: str | os.PathLike) -> dict[str, dict[str, np.ndarray]]:
    """Phase -> metric -> float64 [epochs, seeds]; row e is epoch e, nan where nothing was logged.

    Raises FileNotFoundError if the folder holds no metrics.csv.
    """
    path = Path(folder) / "metrics.csv"
    if not path.exists():
        raise FileNotFoundError(f"expected metrics.csv in {folder}, found none; is this a run?")
    rows = _read_rows(path)
    shape: dict[str, tuple[int, int]] = {}
    for row in rows:
        epochs, seeds = shape.get(row.phase, (0, 0))
        shape[row.phase] = (max(epochs, row.epoch + 1), max(seeds, row.seed + 1))
    out: dict[str, dict[str, np.ndarray]] = {}
    for row in rows:
        metrics = out.setdefault(row.phase, {})
        if row.metric not in metrics:
            metrics[row.metric] = np.full(shape[row.phase], np.nan)
        metrics[row.metric][row.epoch, row.seed] = row.value
    return out


def write_projector(
    folder: str | os.PathLike,
    z: np.ndarray,
    labels: np.ndarray,
    *,
    images: np.ndarray | None = None,
    max_rows: int = 5000,
    seed: int = 0,
) -> None:
    """Write TensorBoard's embedding projector for z [n, d], coloured by labels [n].

    At most `max_rows` rows, drawn with `seed`; rows with a value that is not finite are left out.
    `images` [n, h, w, 1 or 3] become thumbnails; only those written are read. A second call
    replaces the first.
    """
    # Written by hand: tensorboardX appends to the configuration at each call, so a repeated
    # report shows every embedding twice, and it refuses images that are not square.
    z, labels = np.asarray(z), np.asarray(labels)
    if z.ndim != 2 or labels.shape != z.shape[:1]:
        raise ValueError(f"expected z [n, d] and labels [n], found {z.shape} and {labels.shape}")
    if images is not None and len(images) != len(z):
        raise ValueError(f"expected {len(z)} images, one per row of z, found {len(images)}")
    rows = np.flatnonzero(np.isfinite(z).all(axis=1))
    if len(rows) > max_rows:
        rows = np.sort(np.random.default_rng(seed).choice(rows, max_rows, replace=False))
    board = Path(folder) / "tensorboard"
    assets = board / "projector"
    shutil.rmtree(assets, ignore_errors=True)
    assets.mkdir(parents=True)
    np.savetxt(assets / "tensors.tsv", z[rows], fmt="%.6g", delimiter="\t")
    # Two columns, because a header is only read when there is more than one.
    lines = ["cluster\trow", *(f"{labels[i]}\t{i}" for i in rows)]
    (assets / "metadata.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sprite = "" if images is None else _write_sprite(assets, np.asarray(images[rows]))
    config = (
        'embeddings {\n  tensor_name: "embedding"\n  tensor_path: "projector/tensors.tsv"\n'
        f'  metadata_path: "projector/metadata.tsv"\n{sprite}}}\n'
    )
    (board / "projector_config.pbtxt").write_text(config, encoding="utf-8")


def write_images(folder: str | os.PathLike, paths: Iterable[str | os.PathLike]) -> None:
    """Show PNG files in TensorBoard's image tab, tagged by file name, replacing earlier ones.

    They go to a run of their own, tensorboard/figures, because a resumed log makes TensorBoard
    forget everything earlier in the run of the scalars.
    """
    from PIL import Image

    with _writer(Path(folder) / "tensorboard" / "figures") as writer:
        for path in map(Path, paths):
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            writer.add_image(path.stem, pixels, dataformats="HWC")


def write_film(
    folder: str | os.PathLike,
    frames: Mapping[int, str | os.PathLike],
    by_epoch: Mapping[str, Mapping[str, float]],
) -> None:
    """Show PNG files by epoch in TensorBoard's image tab, as one picture with a slider, and
    measures of made rows by epoch among its scalars, as made/NAME."""
    from PIL import Image

    with _writer(Path(folder) / "tensorboard" / "film") as writer:
        for epoch, measures in by_epoch.items():
            for name, value in measures.items():
                if math.isfinite(value):
                    writer.add_scalar(f"made/{name}", value, global_step=int(epoch))
        for epoch, path in frames.items():
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            writer.add_image("film", pixels, global_step=epoch, dataformats="HWC")


def _writer(board: Path) -> Any:
    from tensorboardX import SummaryWriter

    # Writers opened within one second share a file name and lose events: the suffix parts them,
    # and it sorts by time because TensorBoard only goes on to names that sort behind the last.
    # purge_step makes it forget what came before. Old files stay: removing one stops a
    # TensorBoard that has it open from ever reading on.
    suffix = f".{time.time_ns()}"
    return SummaryWriter(str(board), flush_secs=10, purge_step=0, filename_suffix=suffix)


def _write_sprite(assets: Path, images: np.ndarray) -> str:
    from PIL import Image

    size = min(SPRITE_TILE, max(images.shape[1:3]))
    n_side = max(int(np.ceil(np.sqrt(len(images)))), 1)
    padded = np.zeros((n_side * n_side, size, size, 3), np.uint8)  # the sprite must be square
    padded[: len(images)] = tiles.square(images, size)
    Image.fromarray(tiles.mosaic(padded, n_side)).save(assets / "sprite.png")
    return (
        '  sprite {\n    image_path: "projector/sprite.png"\n'
        f"    single_image_dim: {size}\n    single_image_dim: {size}\n  }}\n"
    )


def _text(rows: Iterable[Iterable[Any]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _read_rows(path: Path) -> list[Row]:
    text = path.read_text(encoding="utf-8")
    # A crash can leave half a line, and half a number is still a number.
    lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))
    if lines and tuple(lines[0]) != HEADER:
        raise ValueError(f"expected columns {','.join(HEADER)} in {path}, found {lines[0]}")
    return [Row(p, int(e), int(s), m, float(v)) for p, e, s, m, v in lines[1:]]


def _replay(writer: Any, rows: list[Row]) -> None:
    epochs: dict[tuple[str, int], dict[str, list[float]]] = {}
    for row in rows:
        epochs.setdefault((row.phase, row.epoch), {}).setdefault(row.metric, []).append(row.value)
    for (phase, epoch), metrics in epochs.items():
        _add_scalars(writer, phase, epoch, {k: np.asarray(v) for k, v in metrics.items()})


def _add_scalars(writer: Any, phase: str, epoch: int, metrics: Mapping[str, np.ndarray]) -> None:
    for name, values in metrics.items():
        tag = f"{phase}/{name}"
        scalars = {tag: float(np.mean(values, dtype=np.float64))}
        if len(values) > 1:
            scalars |= {f"{tag}/seed_{s}": float(x) for s, x in enumerate(values)}
        for key, value in scalars.items():
            if np.isfinite(value):
                writer.add_scalar(key, value, epoch)
