"""Everything a finished run leaves in its folder, beside config.json and the checkpoint."""

import csv
import dataclasses
import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from deepclust_jax import config, data, game, metrics, phases, profiles, run, train
from deepclust_jax.data import Dataset, preprocessing
from deepclust_jax.report import (
    baselines,
    environment,
    figures,
    film,
    logs,
    lost,
    pretext,
    scores,
    sounds,
    words,
)

PARTNER = "partner"  # folder in that of a run: the preprocessing of the second modality


class Loaded(NamedTuple):
    """What a run trains on, and what it is scored and shown by."""

    dataset: Dataset
    labels: np.ndarray | None  # [n] int64, the true classes
    nuisance: np.ndarray | None  # [n] int64, labels that clusters should not follow
    files: dict[str, tuple[str, ...]]  # of the rows of folders: `files_of`
    shown: Dataset  # the rows as they were read, which the codes of a run are of


def write(
    folder: Path, options: config.Options, trained: run.Trained, loaded: Loaded
) -> dict[str, Any]:
    """Write arrays, figures, projector and report.json of a trained population. -> the report.

    The run kept is chosen before labels are looked at.
    """
    dataset, labels, nuisance, files, shown = loaded
    z_all, labels_all = train.embed(trained.algorithm, trained.state, dataset.x)
    logged = logs.read_metrics(folder)
    losses = {name: logged[name]["loss"] for name in phases.NAMES if "loss" in logged.get(name, {})}
    objectives, chosen_by = np.zeros(len(labels_all)), "final loss"
    if losses:
        objectives = list(losses.values())[-1][-1]
    may_be_one = options.method.merge or options.data.n_clusters == 1
    gone = lost.of_any(z_all, labels_all, losses, may_be_one=may_be_one)

    def epochs_of(name):  # [epochs, S]
        return logged.get("train", {}).get(name, np.zeros((0, len(labels_all))))

    if options.method.method == "deep_cluster":
        played = pretext.of_deep_cluster(trained)
        used, n_classes = played["used"]["values"], trained.state.sizes.shape[1]
        gone += lost.of_classes(
            np.asarray(used), epochs_of("used"), n_classes, options.data.n_clusters
        )
    if options.method.method in profiles.GAMES:
        made = pretext.made_rows(options, dataset.x, trained)
        left = len(dataset.x) - options.data.held_out
        seen = dataset.x[:left] if options.data.held_out else dataset.x
        played = pretext.of_game(made, seen, options.data.n_clusters)
        covered = pretext.uncovered(played)
        if covered is not None:  # no loss of a game tells how far it came
            objectives, chosen_by = covered, "uncovered share"
        missed = game.diverged(trained.state)
        gone += lost.of_game(
            played, options.data.n_clusters, missed, epochs_of("taken"), epochs_of("spread")
        )
    gone = lost.listed(gone)
    aside = lost.aside(gone, len(labels_all))
    k = None if options.method.merge else options.data.n_clusters
    report = scores.score_population(
        labels_all, iter(z_all), objectives, labels, n_clusters=k, chosen_by=chosen_by, aside=aside
    )
    report["lost"] = gone
    first = "train" if options.method.method == "autoencoder" else "pretrain"
    if first in losses and options.method.method != "info_max":  # of an autoencoder
        report["unexplained"] = scores.summary(losses[first][-1])
    if options.method.merge:
        report["clusters"] = scores.counted(labels_all)
        k = len(report["cluster_sizes"])  # of the run kept
        trained = trained._replace(start=start_of(options, dataset.x, trained, k))
    report["baselines"] = []
    if labels is not None:
        keys = run.seed_keys(options)
        simpler = baselines.labels_of(keys, dataset, k, trained)
        number = f", k = {k}" if options.method.merge else ""  # where it was not given
        report["baselines"] = [
            {"name": name + number, "external": scores.external(clusters, labels)}
            for name, clusters in simpler.items()
        ]
        if held_out := options.data.held_out:
            report["held_out"] = {
                "rows": held_out,
                "external": scores.external(labels_all[:, -held_out:], labels[-held_out:]),
            }
    if nuisance is not None:
        report["nuisance"] = scores.external(labels_all, nuisance)
    if options.method.method in ("rotation", "mmdc"):
        report["pretext"] = pretext.of_turns(options, dataset.x, trained, labels)
    if options.method.method == "next_frame":
        report["pretext"] = pretext.of_next_frame(options, dataset.x, trained)
    if options.method.method == "deep_cluster":
        report["pretext"] = played
    if options.method.method == "cross_modal":
        report["pretext"] = pretext.of_cross_modal(options, z_all, labels)
    if options.method.method in profiles.GAMES:
        if labels is not None:
            played["made"]["classes"] = pretext.classes_made(made, seen, labels[:left])
            named = options.data.data if options.data.labels is None else None
            if named in pretext.ABOUT_CENTRES:
                played["made"]["near"] = pretext.near_centres(made, dataset.x, labels)
            if named == pretext.STACKED:
                played["stacked"] = pretext.of_stacked(options, dataset, labels, trained)
            judged = pretext.judged(made, seen, labels[:left])
            played |= {} if judged is None else {"judged": judged}
        played["over_training"] = film.measures(folder)
        report["pretext"] = played
    if options.method.method == "next_token":
        report["pretext"] = pretext.of_next_token(options, dataset, trained)
        if labels is None:  # no score says which is better, but how far they differ is known
            simpler = baselines.labels_of(run.seed_keys(options), dataset, k, trained)
            report["pretext"]["agreement"] = {
                name: scores.summary(np.array(list(map(metrics.ari, labels_all, clusters))))
                for name, clusters in simpler.items()
            }
    chosen = report["chosen"]["run"]
    voted = scores.voted(labels_all, objectives, chosen, aside)
    if voted is not None:
        np.save(folder / "labels_vote.npy", voted)
        if labels is not None:
            report["vote"] = {"external": scores.external(voted[None], labels)}
    z, found = z_all[chosen], labels_all[chosen]
    centroids = cluster_means(z, found, k)
    np.save(folder / "embeddings.npy", z)
    np.save(folder / "labels.npy", found)
    np.save(folder / "labels_all.npy", labels_all)
    np.save(folder / "centroids.npy", centroids)
    if files:
        write_labels_by_file(folder / "labels.csv", files, found)
    preprocessing.save(dataset.preprocessing, folder)
    if dataset.partner is not None:
        (folder / PARTNER).mkdir(exist_ok=True)
        preprocessing.save(dataset.partner, folder / PARTNER)
    distances = np.sum((z - centroids[found]) ** 2, axis=-1)
    if shown.kind == "text":
        report["words"] = words.telling(shown.raw, found)
        written = {}
        if options.method.method == "next_token":
            nearest = figures.nearest(found, distances, 1)
            begun = {cluster: own[0] for cluster, own in enumerate(nearest) if len(own)}
            written = pretext.texts_of_clusters(options, dataset, trained, chosen, begun)
        figures.sample_texts(
            folder / "samples.md", shown.raw, found, distances,
            words=report["words"], written=written, n_clusters=len(centroids),
        )  # fmt: skip
    if shown.kind == "audio":
        names = files.get("file", ())
        sounds.write_samples(
            folder, shown.raw, found, distances, n_clusters=len(centroids), names=names
        )
    if options.method.method in profiles.GAMES:
        _write_made(folder, options, dataset, trained, chosen, centroids, made[chosen])
    _write_figures(folder, shown, z, found, centroids, distances, labels)
    report |= {
        "options": {k: v for k, v in config.flatten(options).items() if k not in run.FREE},
        "data": {
            "name": dataset.name,
            "kind": dataset.kind,
            "shape": list(dataset.x.shape),
            "checksum": dataset.checksum,
            "made": made_count(folder),
            "labelled": labels is not None,
        },
        "seconds": trained.seconds,
        "compile_seconds": trained.compile_seconds,
        "peak_memory_bytes": peak_memory(),
        "environment": environment.environment(),
    }
    scores.write_report(folder / "report.json", report)
    return report


def start_of(options: config.Options, x: Any, trained: run.Trained, n_clusters: int) -> Any:
    """What a run with --merge started from, clustered to as many clusters as it found; None where
    it started from nothing, or found one."""
    if trained.start is None or n_clusters < 2:
        return None
    own = dataclasses.replace(options.data, n_clusters=n_clusters)
    return run.clustered_again(dataclasses.replace(options, data=own), x, trained.start[1])


def load(given: config.Data, *, with_nuisance: bool = True) -> Loaded:
    """What `--data` names: data by `data.load`, or the codes of a finished run, as a table.

    A run brings its own labels, nuisance labels and files, in the order of its rows, and its number
    of clusters; so does the run of a run. Its scaling "auto" is "codes" (data/scaling.py).

    Raises DataError or ConfigError; the latter also where labels, kind, limit or a second modality
    are given for a run, or it is not finished, or its data are gone.
    """
    config.lineage(given)  # which must have an end
    folder = config.run_of(given.data)
    if folder is not None:
        return _load_run(folder, given, with_nuisance)
    order = pair_order(given.data, given.partner)  # before what takes long
    kind = None if given.kind == "auto" else given.kind
    dataset, labels = data.load(
        given.data, labels=given.labels, kind=kind, scaling=given.scaling, limit=given.limit
    )
    if given.partner is not None:
        other = data.load(
            given.partner, scaling=given.partner_scaling, order=order, limit=given.limit
        )[0]
        if given.labels in other.names:
            raise config.ConfigError(
                f"expected no column {given.labels} of --labels among the features of --partner "
                f"{given.partner}; remove it there"
            )
        dataset = data.paired(dataset, other)
    files = files_of(given.data, given.partner, len(dataset.x), order=order, limit=given.limit)
    nuisance = None
    if with_nuisance:
        nuisance = data.nuisance(given.data, dataset.whole, file=given.nuisance, limit=given.limit)
    return Loaded(dataset, labels, nuisance, files, dataset)


def _load_run(folder: Path, given: config.Data, with_nuisance: bool) -> Loaded:
    own = {"labels": given.labels, "limit": given.limit, "partner": given.partner}
    if given.kind not in ("auto", "tabular") or any(v is not None for v in own.values()):
        raise config.ConfigError(
            f"expected --kind and {', '.join(f'--{name}' for name in own)} beside data only, found "
            f"the run {folder}, which has its own; leave them out"
        )
    path = folder / "embeddings.npy"
    z = _read_array(path)
    options, source = run.read_options(folder), run_before(folder)
    then = options.data
    if source is not None:  # wherever it lies by now
        then = dataclasses.replace(then, data=str(source))
    # A file of nuisance labels that is not needed may be gone.
    before = load(then, with_nuisance=with_nuisance and given.nuisance is None)
    if len(before.dataset.x) != len(z) or not _is_of(folder, before.dataset.checksum):
        raise config.ConfigError(
            f"expected the {len(z)} rows that the run in {folder} was trained on in "
            f"{then.data}, found others; they have changed since"
        )
    k = clusters_of(folder, options)
    scaling = "codes" if given.scaling == "auto" else given.scaling
    dataset, _ = data.load(path, kind="tabular", scaling=scaling)
    own = dataset.preprocessing
    own = dataclasses.replace(
        own, settings=own.settings | {preprocessing.OF: str(folder.resolve())}
    )
    dataset = dataclasses.replace(
        dataset, name=folder.resolve().name, n_clusters=k, preprocessing=own
    )
    nuisance = before.nuisance
    if given.nuisance is not None and with_nuisance:
        nuisance = data.nuisance(path, len(z), file=given.nuisance)
    return before._replace(dataset=dataset, nuisance=nuisance)


def run_before(folder: Path) -> Path | None:
    """The run whose codes a run was trained on, or None where it was trained on data. It lies where
    it lay then, or beside the other.

    Raises ConfigError where it is gone, or has other codes by now.
    """
    named = config.source_noted(folder)
    if named is None:
        return None
    there = [p for p in config.sources_of(folder) if (p / "embeddings.npy").is_file()]
    if not there:
        raise config.ConfigError(
            f"expected the run {named}, whose codes the run in {folder} was trained on, found "
            "none; put it back, or beside that run"
        )
    for place in there:
        codes = data.load(place / "embeddings.npy", kind="tabular", scaling="none")[0]
        if _is_of(folder, codes.checksum):
            return place
    raise config.ConfigError(
        f"expected in {there[0]} the codes that the run in {folder} was trained on, found others; "
        "they have changed since"
    )


def _is_of(folder: Path, checksum: str) -> bool:
    """Whether a run was trained on rows of that checksum; one that was killed may have noted
    none."""
    file = folder / config.CHECKSUM
    return not file.is_file() or file.read_text() == checksum


def clusters_of(folder: Path, options: config.Options) -> int:
    """How many clusters a finished run has, where its options may have where merging began.

    Raises ConfigError where its labels cannot be read.
    """
    if not options.method.merge:
        return options.data.n_clusters
    return len(np.unique(_read_array(folder / "labels.npy")))


def made_for(given: config.Data, dataset: Dataset) -> np.ndarray | None:
    """The rows [m, ...] that the run of `--made` made, to be trained on beside those of the data
    set; None without it.

    Raises ConfigError where it made none, or was trained on other rows, or in other numbers.
    """
    folder = given.made
    if folder is None:
        return None
    own = run.read_options(folder)
    if own.method.method not in profiles.GAMES:
        raise config.ConfigError(
            f"expected --made as a run of {', '.join(profiles.GAMES)}, found one of "
            f"{own.method.method}"
        )
    made = _read_array(folder / "made.npy")
    checksum, fitted = folder / config.CHECKSUM, dataset.preprocessing
    is_same = checksum.is_file() and checksum.read_text() == dataset.checksum
    before = preprocessing.load(folder)
    is_same &= before.settings == fitted.settings and before.arrays.keys() == fitted.arrays.keys()
    is_same = is_same and all((a == fitted.arrays[n]).all() for n, a in before.arrays.items())
    if not is_same or own.data.held_out != given.held_out or made.shape[1:] != dataset.x.shape[1:]:
        raise config.ConfigError(
            f"expected --made as a run on the same rows of {given.data}, scaled alike and with the "
            f"same --limit and --held-out, found other ones in {folder}"
        )
    return np.asarray(made)


def made_count(folder: Path) -> int:
    """How many rows of `--made` a run in the folder is trained on."""
    file = folder / config.MADE
    return int(file.read_text().split()[0]) if file.is_file() else 0


def _read_array(path: Path) -> np.ndarray:
    for file in (path, path.parent / "report.json"):  # the last that is written
        if not file.is_file():
            raise config.ConfigError(
                f"expected a finished run in {path.parent}, found no {file.name}; train it to the "
                "end, by --resume if it began"
            )
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)  # often only its length is wanted
    except (ValueError, EOFError):
        raise config.ConfigError(
            f"{path} is damaged; run scripts/cluster.py again on the data of the run, with "
            f"--{path.stem}-out"
        ) from None


def rows_of(
    source: str, labels: str | None = None, *, kind: str = "auto", scaling: str = "auto"
) -> tuple[np.ndarray | preprocessing.Rows, np.ndarray | None, int | None]:
    """Rows [n, d] of a source, their true labels or None, and the number of clusters if known.

    The source is a finished run, whose codes are taken as they are, or what `data.load` takes; only
    there labels, kind and scaling can be given. Codes do not need the data they are of, but for
    labels: a line on standard error says that these are gone. A large .npy of rows stays on disk.

    Raises DataError or ConfigError.
    """
    folder = config.run_of(source)
    if folder is None:
        given = config.Data(data=source, labels=labels, kind=kind, scaling=scaling)
        dataset, truth = load(given, with_nuisance=False)[:2]
        k = dataset.n_clusters
    else:
        if labels is not None or (kind, scaling) != ("auto", "auto"):
            raise config.ConfigError(
                "expected --labels, --kind and --scaling beside data only; a run has its own"
            )
        _read_array(folder / "embeddings.npy")
        dataset, _ = data.load(folder / "embeddings.npy", kind="tabular", scaling="none")
        k, truth = clusters_of(folder, run.read_options(folder)), None
        try:
            truth = load(config.Data(data=source), with_nuisance=False).labels
        except (data.DataError, config.ConfigError) as error:
            print(f"no labels of {source}: {error}", file=sys.stderr)
    if isinstance(dataset.x, preprocessing.Rows) and len(dataset.x.shape) == 2:
        return dataset.x, truth, k
    return np.asarray(dataset.x[:]).reshape(len(dataset.x), -1), truth, k


def pair_order(source: str, partner: str | None) -> np.ndarray | None:
    """The order of the files of `partner` beside those of `source` (`data.matched`); None where
    one of them is no folder. Raises DataError, and ConfigError for a run."""
    if partner is None:
        return None
    if config.run_of(partner) is not None:
        raise config.ConfigError(
            f"expected data as --partner, found the run {partner}; give its embeddings.npy, for "
            "training with --partner-scaling codes"
        )
    return data.matched(data.row_files(source), data.row_files(partner))


def files_of(
    source: str,
    partner: str | None,
    n_rows: int,
    *,
    order: np.ndarray | None = None,
    limit: int | None = None,
) -> dict[str, tuple[str, ...]]:
    """Paths of the rows inside the folders that data and their second modality are, by the name of
    a column: `file`, `partner`, which is in `order`; empty where neither is a folder.

    Raises DataError where they are no longer as many as rows.
    """
    found = {"file": data.row_files(source, limit=limit)}
    if partner is not None:
        found["partner"] = data.row_files(partner, order=order, limit=limit)
    for own, files in zip((source, partner), found.values(), strict=False):
        if files and len(files) != n_rows:
            raise data.DataError(f"{own} changed while it was read; run again")
    return {name: files for name, files in found.items() if files}


def write_labels_by_file(
    path: Path, files: Mapping[str, Sequence[str]], labels: np.ndarray
) -> None:
    """Table of the clusters of folders' files, as of `files_of`: one line per row, with its paths
    and its cluster."""
    # surrogateescape: names that are no UTF-8 are written as the bytes they are
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        table = csv.writer(file)
        table.writerow((*files, "cluster"))
        table.writerows(zip(*files.values(), labels.tolist(), strict=True))


def cluster_means(z: np.ndarray, labels: np.ndarray, n_clusters: int) -> np.ndarray:
    """Mean code of every cluster; the mean of all where one is empty. [n, d], [n] -> [k, d]."""
    counts = np.bincount(labels, minlength=n_clusters)
    sums = np.zeros((n_clusters, z.shape[1]))
    np.add.at(sums, labels, z)
    means = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], z.mean(axis=0))
    return means.astype(z.dtype)


def peak_memory() -> int:
    """Most memory the process has held, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _write_figures(folder, dataset, z, labels, centroids, distances, truth) -> None:
    figures.embedding_map(folder / "embedding_map.png", z, labels)
    sizes = metrics.cluster_sizes(labels, len(centroids))
    figures.cluster_sizes(folder / "cluster_sizes.png", sizes)
    if truth is not None:
        figures.confusion(folder / "confusion.png", truth, labels, dataset.classes)
    images = _pictures(dataset)
    if images is not None:
        figures.sample_images(
            folder / "samples.png", images, labels, distances, n_clusters=len(centroids)
        )
    history = logs.read_metrics(folder)
    if history:
        figures.training_curves(folder / "training.png", history)
    sprites = images if images is not None and max(images.shape[1:3]) <= 64 else None
    logs.write_projector(folder, z, labels, images=sprites)
    logs.write_images(folder, sorted(folder.glob("*.png")))


def _write_made(folder, options, dataset, trained, chosen, centroids, made) -> None:
    """What the run kept makes: made.npy, rows; made.png, of pictures some of each cluster, by the
    code they are made from where there is one, of tables with two columns where they lie; walk.png,
    pictures from one latent to the next. And the film, of run 0."""
    np.save(folder / "made.npy", made)
    if made.shape[1:] == (2,):
        some = np.asarray(dataset.x[pretext.compared(len(dataset.x))])
        figures.made_points(folder / "made.png", some, made)
    film.write(folder)
    if dataset.kind != "image" or made.shape[-1] not in (1, 3):
        return
    state = jax.tree.map(lambda leaf: leaf[chosen], trained.state)
    maker, key = pretext.makers(options, dataset.x)(state), run.seed_keys(options)[chosen]
    title = "of made ones, nearest to the centroid"
    if options.method.method == "gan" or options.method.labelled_by == "kmeans":
        own = jax.tree.map(lambda leaf: leaf[None], state)
        z, labels = (found[0] for found in train.embed(trained.algorithm, own, made))
        distances = np.sum((z - centroids[labels]) ** 2, axis=-1)
    else:
        z = film.latents(maker, key, options)
        made, title = maker.make(z), "made from the code of each cluster"
        labels = np.asarray(z[:, -options.data.n_clusters :].argmax(axis=1))
        distances = np.zeros(len(made))
    figures.sample_images(
        folder / "made.png", _Scaled(made), labels, distances,
        n_clusters=len(centroids), title=title,
    )  # fmt: skip
    figures.grid(folder / "walk.png", film.walks(maker, key, options), film.COLUMNS)


class _Scaled:
    """Pictures [n, h, w, c] of any range, as floats in 0..1 where they are looked at."""

    def __init__(self, raw: np.ndarray):
        some = raw[:: max(1, len(raw) // 10_000)]
        self.raw, self.shape = raw, raw.shape
        self.low, self.high = some.min(), some.max()

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        span = max(float(self.high) - float(self.low), 1e-12)
        return np.clip((self.raw[rows] - float(self.low)) / span, 0.0, 1.0)


def _pictures(dataset: Dataset) -> np.ndarray | _Scaled | None:
    """Pictures to show, as bytes or floats in 0..1 when indexed; None where there are none."""
    raw = dataset.raw
    if dataset.kind != "image" or raw.shape[-1] not in (1, 3):
        return None
    return raw if raw.dtype == np.uint8 and raw[:1000].max() > 16 else _Scaled(raw)
