"""One function, one PNG: what a run found, drawn without any global plotting state."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepclust_jax.report import tiles

# Petroff (2021), arXiv:2107.02270: ten colours told apart with the common colour deficiencies.
# Shapes carry on where colours repeat.
COLOURS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
MARKERS = (("o", 1.0), ("^", 1.2), ("s", 0.8), ("D", 0.7), ("v", 1.2))  # shape, area
NOISE = "#d0d0d0"  # label -1 (DBSCAN): in no cluster
MAX_NUMBERED = 100  # clusters of embedding_map; the numbers of more would hide the points
MAX_CLUSTERS = 30  # rows of sample_images; more are not legible
MAX_PANELS = 15  # of training_curves
DPI = 110


def embedding_map(
    path: str | os.PathLike, z: np.ndarray, labels: np.ndarray, *, max_rows: int = 5000
) -> None:
    """Write a 2-D map of z [n, d] coloured by labels [n], each cluster's number at its median.

    d > 2 is projected by PCA, d = 1 gets a meaningless vertical jitter. At most `max_rows` rows,
    drawn with a fixed seed; rows that are not finite are left out.
    """
    z, labels = np.asarray(z, np.float64), np.asarray(labels)
    if z.ndim != 2 or labels.shape != z.shape[:1]:
        raise ValueError(f"expected z [n, d] and labels [n], found {z.shape} and {labels.shape}")
    rows = np.flatnonzero(np.isfinite(z).all(axis=1))
    rng = np.random.default_rng(0)
    if len(rows) > max_rows:
        rows = np.sort(rng.choice(rows, max_rows, replace=False))
    xy, names = _plane(z[rows], rng)
    labels = labels[rows]
    figure = _figure(6.4, 5.6)
    axes = figure.add_subplot()
    size = float(np.clip(12_000 / max(len(rows), 1), 7, 30))
    shown = np.unique(labels)
    for k in shown:
        marker, area = MARKERS[(max(k, 0) // len(COLOURS)) % len(MARKERS)]
        member = labels == k
        axes.scatter(*xy[member].T, s=size * area, c=_colour(k), marker=marker, alpha=0.7, lw=0)
    shown = shown[shown >= 0]
    shown = shown if len(shown) <= MAX_NUMBERED else shown[:0]
    medians = np.array([np.median(xy[labels == k], axis=0) for k in shown]).reshape(-1, 2)
    for k, at in zip(shown, spread(axes.transData.transform(medians)), strict=True):
        box = {"boxstyle": "round,pad=0.2", "fc": "white", "ec": _colour(k), "alpha": 0.85}
        at = axes.transData.inverted().transform(at)
        axes.text(*at, str(k), ha="center", va="center", fontsize=8, bbox=box)
    axes.set(xlabel=names[0], ylabel=names[1])
    if z.shape[1] == 1:
        axes.set_yticks([])
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    _save(figure, path)


def cluster_sizes(path: str | os.PathLike, sizes: np.ndarray) -> None:
    """Write a bar per cluster with its size; sizes [k], the dashed line is the even split."""
    sizes = np.asarray(sizes)
    if sizes.ndim != 1 or not len(sizes):
        raise ValueError(f"expected sizes [k] with k >= 1, found shape {sizes.shape}")
    k = len(sizes)
    figure = _figure(float(np.clip(1.5 + 0.42 * k, 4.0, 11.0)), 3.2)
    axes = figure.add_subplot()
    bars = axes.bar(np.arange(k), sizes, color=COLOURS[0], width=min(0.8, 0.2 * k))
    if k <= 25:
        box = {"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none"}
        axes.bar_label(bars, fontsize=8, padding=2, bbox=box)
        axes.set_xticks(np.arange(k))
    axes.axhline(sizes.mean(), color="0.3", lw=1, ls="--", zorder=0, label="even split")
    # Above the axes: bars fill what is inside.
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
    axes.set(xlabel="cluster", ylabel="rows", xlim=(-0.6, k - 0.4))
    axes.set_ylim(0, 1.12 * max(sizes.max(), 1))
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def confusion(
    path: str | os.PathLike, y: np.ndarray, labels: np.ndarray, names: Sequence[str] = ()
) -> None:
    """Write the table classes x clusters of y [n], labels [n] as colours, with counts if small.

    Columns are in matched order (the one-to-one matching with most rows in common), clusters
    without a partner behind them, so a good clustering is a diagonal. Colour is the share of a
    class. `names` are those of the classes 0, 1, 2, ..., if they have any.
    """
    counts, classes, clusters = matched_counts(y, labels)
    n_rows, n_columns = counts.shape
    figure = _figure(*np.clip([1.8 + 0.42 * n_columns, 1.4 + 0.36 * n_rows], 3.4, 10.0))
    axes = figure.add_subplot()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if max(counts.shape) <= 20:
        for i, j in np.argwhere(counts > 0):
            ink = "white" if share[i, j] > 0.55 else "black"
            axes.text(j, i, counts[i, j], ha="center", va="center", color=ink, fontsize=7)
    if n_rows <= 40:
        shown = [str(names[c] if names else c) for c in classes]
        axes.set_yticks(np.arange(n_rows), [_cut(name, 24) for name in shown], parse_math=False)
    if n_columns <= 40:
        axes.set_xticks(np.arange(n_columns), clusters)
    axes.tick_params(labelsize=8 if max(counts.shape) <= 25 else 6)
    axes.set(xlabel="cluster, matched to the classes", ylabel="class")
    figure.colorbar(image, ax=axes, label="share of the class", shrink=0.9)
    _save(figure, path)


def sample_images(
    path: str | os.PathLike,
    images: np.ndarray,
    labels: np.ndarray,
    distances: np.ndarray,
    *,
    n_clusters: int | None = None,
    per_cluster: int = 10,
    title: str = "nearest to the centroid",
) -> None:
    """Write one row per cluster: its images nearest to the centroid, the nearest first.

    images [n, h, w, 1 or 3] (uint8, or floats in [0, 1]; only those shown are read), labels [n],
    distances [n] of each image to its own centroid. The first 30 clusters are shown; an empty
    cluster is an empty row. `n_clusters` None: up to the last one that has images.
    """
    chosen = nearest(labels, distances, per_cluster, n_clusters)
    shown = chosen[:MAX_CLUSTERS]
    sizes = np.bincount(labels[np.asarray(labels) >= 0], minlength=len(chosen))
    # The area is bounded, since photographs hardly compress and the file must stay small.
    size = int(np.clip(np.sqrt(125_000 / (len(shown) * per_cluster)), 12, 48))
    rows = [np.full((per_cluster, size, size, 3), 255, np.uint8) for _ in shown]
    for row, members in zip(rows, shown, strict=True):
        if len(members):
            row[: len(members), 1:, 1:] = tiles.square(images[members], size - 1)
    picture = tiles.mosaic(np.concatenate(rows), per_cluster)
    height, width = picture.shape[:2]
    left, right, bottom, top = 92, 8, 8, 24  # pixels; the picture itself is drawn one to one
    full = (width + left + right, height + bottom + top)
    figure = _figure(full[0] / DPI, full[1] / DPI, layout=None)
    axes = figure.add_axes(
        (left / full[0], bottom / full[1], width / full[0], height / full[1]), frameon=False
    )
    axes.imshow(picture, interpolation="nearest", aspect="auto")
    for k in range(len(shown)):
        y = (k + 0.5) * size
        axes.text(-left + 8, y, f"{k}", va="center", fontsize=8, weight="bold")
        axes.text(-8, y, f"n = {sizes[k]}", va="center", ha="right", fontsize=7, color="0.35")
    axes.set_axis_off()
    more = f" (clusters 0 to {len(shown) - 1} of {len(chosen)})" if shown != chosen else ""
    axes.set_title(f"{title}{more}", fontsize=8, loc="left")
    _save(figure, path)


def grid(path: str | os.PathLike, images: np.ndarray, n_columns: int) -> None:
    """Write images [n, h, w, 1 or 3] row by row, grey between them, and nothing else."""
    from PIL import Image

    size = int(np.clip(np.sqrt(250_000 / max(len(images), 1)), 12, 48))
    framed = np.pad(
        tiles.square(images, size), ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=96
    )
    Image.fromarray(tiles.mosaic(framed, n_columns)).save(path)


def made_points(path: str | os.PathLike, real: np.ndarray, made: np.ndarray) -> None:
    """Write where real rows [n, 2] lie and where made ones [m, 2] do, side by side."""
    figure = _figure(8.0, 4.0)
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for ax, rows, name in zip(axes, (real, made), ("real", "made"), strict=True):
        ax.scatter(*rows.T, s=2, alpha=0.3, linewidths=0)
        ax.set_title(name, fontsize=8, loc="left")
        ax.set_aspect("equal")
    _save(figure, path)


def sample_texts(
    path: str | os.PathLike,
    texts: Sequence[str],
    labels: np.ndarray,
    distances: np.ndarray,
    *,
    words: Sequence[Sequence[str]] = (),
    written: Mapping[int, str] | None = None,
    n_clusters: int | None = None,
    per_cluster: int = 5,
    width: int = 300,
) -> None:
    """Write a Markdown file: per cluster the documents nearest to its centroid, cut to `width`.

    Above them the words that tell the cluster, below what a network wrote, where they are given by
    the number of the cluster.
    """
    chosen = nearest(labels, distances, per_cluster, n_clusters)
    sizes = np.bincount(np.asarray(labels)[np.asarray(labels) >= 0], minlength=len(chosen))
    lines = ["# Documents nearest to each centroid"]
    for k, members in enumerate(chosen):
        lines += ["", f"## Cluster {k} (n = {sizes[k]})", ""]
        if k < len(words):
            lines += [f"Words: {', '.join(words[k])}", ""]
        for i in members:
            lines.append(f"- row {i}: {_cut(' '.join(str(texts[i]).split()), width)}")
        if written and k in written:
            lines.append(f"- written by the network: {_cut(' '.join(written[k].split()), width)}")
    # backslashreplace: a text from JSON may hold half of a surrogate pair
    text = "\n".join(lines) + "\n"
    Path(path).write_text(text, encoding="utf-8", errors="backslashreplace")


def choice_of_k(path: str | os.PathLike, evidence: Any, suggested: Mapping[str, int]) -> None:
    """Write one panel per score of `select_k.sweep`, with a line at the number it speaks for."""
    better = {"inertia": "", "stability": ", the last high one"}
    better |= {"davies_bouldin": ", low is good", "bic": ", low is good"}
    better |= {"gap": ", the first within an error of the next"}
    names = [name for name in evidence._fields if name not in ("k", "gap_error", "centroids")]
    figure = _figure(12.8, 5.0)
    grid = figure.subplots(2, 4, squeeze=False)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(grid.flat, names, strict=False):
        error = evidence.gap_error if name == "gap" else None
        values = getattr(evidence, name)
        axes.errorbar(evidence.k, values, yerr=error, color=COLOURS[0], lw=1.5, marker=".")
        if name in suggested:
            axes.axvline(suggested[name], color=COLOURS[2], lw=1, ls="--")
        title = name.replace("_", " ") + better.get(name, ", high is good")
        if name in suggested:
            title += f": {suggested[name]}"
        axes.set_title(title, fontsize=8, loc="left")
        axes.tick_params(labelsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("clusters", fontsize=8)
    _save(figure, path)


def training_curves(
    path: str | os.PathLike, metrics: Mapping[str, Mapping[str, np.ndarray]]
) -> None:
    """Write one panel per phase and metric of `logs.read_metrics`: mean and ± std over seeds.

    Epochs count from 1, as in the terminal. One in which a seed is not finite is left out, so a
    curve that ends early has diverged.
    """
    panels = [(phase, name) for phase, terms in metrics.items() for name in terms]
    if not panels:
        raise ValueError("expected metrics of at least one phase, found none; was anything logged?")
    shown = panels[:MAX_PANELS]
    n_columns = min(3, len(shown))
    n_rows = -(-len(shown) // n_columns)
    figure = _figure(max(3.4 * n_columns, 4.0), 2.5 * n_rows + 0.2)
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    for axes, (phase, name) in zip(grid.flat, shown, strict=False):
        values = np.asarray(metrics[phase][name], np.float64)
        there = np.isfinite(values).all(axis=1)
        values, epochs = values[there], 1 + np.flatnonzero(there)
        mean, mark = values.mean(axis=1), "." if len(epochs) <= 30 else ""
        axes.plot(epochs, mean, color=COLOURS[0], lw=1.5, marker=mark)
        if values.shape[1] > 1:
            std = values.std(axis=1, ddof=1)
            axes.fill_between(epochs, mean - std, mean + std, color=COLOURS[0], alpha=0.25, lw=0)
        axes.set_title(f"{phase}: {name}", fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("epoch", fontsize=8)
    _save(figure, path)


def nearest(
    labels: np.ndarray, distances: np.ndarray, per_cluster: int, n_clusters: int | None = None
) -> list[np.ndarray]:
    """For each cluster 0..k-1 the rows nearest to its centroid, nearest first. [n], [n] -> k lists.

    An empty cluster has an empty list; label -1 (noise) is nowhere. `n_clusters` None: up to the
    last one that has rows.
    """
    labels, distances = np.asarray(labels), np.asarray(distances)
    if labels.ndim != 1 or distances.shape != labels.shape:
        raise ValueError(
            f"expected labels and distances [n], found {labels.shape} and {distances.shape}"
        )
    order = np.argsort(distances, kind="stable")
    k = n_clusters or int(labels.max(initial=-1)) + 1
    return [order[labels[order] == c][:per_cluster] for c in range(k)]


def matched_counts(y: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(counts [classes, clusters], classes, clusters), the columns in matched order."""
    from scipy.optimize import linear_sum_assignment

    y, labels = np.asarray(y), np.asarray(labels)
    if y.ndim != 1 or y.shape != labels.shape or not len(y):
        raise ValueError(f"expected y and labels [n], found {y.shape} and {labels.shape}")
    classes, rows = np.unique(y, return_inverse=True)
    clusters, columns = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(classes), len(clusters)), np.int64)
    np.add.at(counts, (rows, columns), 1)
    matched = linear_sum_assignment(counts, maximize=True)[1]
    rest = np.setdiff1d(np.arange(len(clusters)), matched)
    order = np.concatenate([matched, rest[np.argsort(-counts[:, rest].sum(axis=0), kind="stable")]])
    return counts[:, order], classes, clusters[order]


def spread(points: np.ndarray, gap: float = 21.0) -> np.ndarray:
    """Points moved until they are about `gap` apart, in the same unit. [k, 2] -> [k, 2]."""
    points = np.array(points, np.float64)
    points += np.random.default_rng(0).normal(0, 1e-3, points.shape)  # parts equal points
    for _ in range(100):
        step = points[:, None, :] - points[None, :, :]
        distance = np.linalg.norm(step, axis=-1) + np.eye(len(points)) * gap
        push = np.maximum(gap - distance, 0.0) / (2.0 * distance)
        points += np.sum(step * push[:, :, None], axis=1)
    return points


def _colour(k: int) -> str:
    return NOISE if k < 0 else COLOURS[k % len(COLOURS)]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def _plane(z: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, tuple[str, str]]:
    n, d = z.shape
    if d == 1:
        jitter = rng.uniform(-1, 1, n)
        return np.stack([z[:, 0], jitter], axis=1), ("z 1", "jitter (no meaning)")
    if d == 2 or n == 0:
        return z[:, :2], ("z 1", "z 2")
    centred = z - z.mean(axis=0, keepdims=True)
    variances, directions = np.linalg.eigh(centred.T @ centred)
    shares = 100.0 * variances[::-1] / max(variances.sum(), np.finfo(float).tiny)
    first, second = (f"PC {i + 1} ({shares[i]:.1f} % of the variance)" for i in range(2))
    # Rounding, stretched over the height of a picture, would be drawn as if it meant something.
    flat = variances[-2] <= 1e-12 * variances[-1]
    return centred @ directions[:, :-3:-1] * [1.0, 0.0 if flat else 1.0], (first, second)


def _figure(width: float, height: float, layout: str | None = "constrained") -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)
    if layout is not None:
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    return figure


def _save(figure: Any, path: str | os.PathLike) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=DPI, format="png")
