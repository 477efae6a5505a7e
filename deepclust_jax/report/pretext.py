"""What a network has learnt from labels that it made itself, beside the clusters it is used for."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deepclust_jax import config, metrics, phases, run, train
from deepclust_jax.algorithms import deep_cluster, next_frame, next_token
from deepclust_jax.clustering import kmeans, neighbors
from deepclust_jax.data import Dataset, tokens
from deepclust_jax.metrics import classifier
from deepclust_jax.report import scores

_BLOCK, _DOCUMENTS, _CLIPS = 4096, 128, 1024  # images, documents and clips at a time
_PAIRS = 1000  # at most, among which the other half of one is looked for


def of_turns(
    options: config.Options, x: Any, trained: run.Trained, labels: np.ndarray | None
) -> dict[str, Any]:
    """By rotation and mmdc: how often each run finds how an image was turned, and the clusters of
    every block of rotation.

    Of rows held out of training, where there are some; else of those trained on. `alike` is the
    share of images of which no run finds more than half of the turns, as of those that look alike
    when they are turned; where there are labels, the turns found by class show which.
    """
    module, network = phases.METHODS[options.method.method], options.network
    own = module.Config(hidden=tuple(network.hidden), embed_dim=network.embed_dim)
    nets = module.build_nets(own, x.shape[1:])
    rows, which = _told(options, x)
    found = jax.jit(lambda state, x: module.accuracy(state, x, nets))

    def of_run(s):
        state = jax.tree.map(lambda leaf: leaf[s], trained.state)
        return _in_blocks(lambda x: found(state, x), rows, _BLOCK)

    by_image = np.stack([of_run(s) for s in range(len(trained.state.step))])
    report: dict[str, Any] = {
        "rows": which,
        "accuracy": scores.summary(by_image.mean(axis=1)),
        "alike": float(np.mean(by_image.max(axis=0) <= 0.5)),
        "blocks": [],
    }
    if labels is not None:
        true, mean = labels[-len(rows) :], by_image.mean(axis=0)
        report["by_class"] = {str(c): float(mean[true == c].mean()) for c in np.unique(true)}
    if options.method.method == "mmdc":
        return report
    chosen = np.asarray(trained.state.block)
    for block in range(len(options.network.hidden)):
        entry: dict[str, Any] = {"chosen": int((chosen == block).sum())}
        if labels is not None:
            state = trained.state.replace(block=jnp.full_like(trained.state.block, block))
            clusters = train.embed(trained.algorithm, state, x)[1]
            entry["external"] = scores.external(clusters, labels)
        report["blocks"].append(entry)
    return report


def _told(options: config.Options, x: Any) -> tuple[Any, str]:
    """The rows by which a pretext task is judged, those held out where there are some, and what
    they are."""
    held_out = options.data.held_out
    return (x[-held_out:], "rows held out") if held_out else (x, "rows trained on")


def _in_blocks(function: Callable[[jax.Array], Any], rows: np.ndarray, size: int) -> Any:
    """What a function gives for all rows [n, ...], `size` of them at a time: arrays [n, ...]."""
    blocks = [rows[i : i + size] for i in range(0, len(rows), size)]
    parts = [jax.device_get(function(jnp.asarray(block))) for block in blocks]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


def of_deep_cluster(trained: run.Trained) -> dict[str, Any]:
    """How much the last classes of each run agree with those before, and how many are in use."""
    found = {
        "agreement": trained.state.agreement, "used": deep_cluster.used(trained.state.sizes)
    }  # fmt: skip
    return {name: scores.summary(np.asarray(values)) for name, values in found.items()}


def of_cross_modal(
    options: config.Options, z: np.ndarray, labels: np.ndarray | None
) -> dict[str, Any]:
    """By cross_modal, of codes z [S, n, d]: how well each run tells the other half of a pair from
    those of other pairs, and with labels the scores of k-means on the features of each modality
    alone, of all rows.

    Pairs are those held out of training, where there are some, beside as many trained on.
    """
    parts, k = config.shapes(options.data.parts), options.data.n_clusters
    z = np.nan_to_num(np.asarray(z))  # of a run that diverged, which is set aside elsewhere
    by_row, held_out = np.moveaxis(z, 1, 0), options.data.held_out

    def of_pairs(rows: np.ndarray) -> dict[str, Any]:
        halves = np.split(np.moveaxis(rows[:_PAIRS], 0, 1), len(parts), axis=2)
        told = [pairs_told(*two) for two in combinations(halves, 2)]
        return scores.summary(np.mean(told, axis=0))

    told, which = _told(options, by_row)
    pairs = {"rows": which, "among": min(len(told), _PAIRS), "told": of_pairs(told)}
    if held_out:
        pairs["of_trained_on"] = of_pairs(by_row[: min(held_out, len(by_row) - held_out)])
    report: dict[str, Any] = {"pairs": pairs}
    if labels is None:
        return report
    clusters = []
    for own in np.split(z, len(parts), axis=2):
        runs = zip(run.seed_keys(options), own, strict=True)
        found = [kmeans.assign(rows, kmeans.fit(key, rows, k).centroids)[0] for key, rows in runs]
        clusters.append(np.stack(found))
    alone = zip(options.data.parts, clusters, strict=True)
    report["modalities"] = [{"shape": s, "external": scores.external(c, labels)} for s, c in alone]
    return report


def pairs_told(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Share of the other rows of a second modality that are less like a row of the first, by the
    inner product, than its own one; 1/2 by chance, nan of one row. [S, n, d] twice -> [S]."""
    if one.shape[1] < 2:
        return np.full(len(one), np.nan)
    alike = np.einsum("snd,smd->snm", one, other)
    own = np.einsum("snn->sn", alike)[:, :, None]
    less = (alike < own).sum(axis=2) + 0.5 * ((alike == own).sum(axis=2) - 1)  # itself is none
    return np.mean(less / (one.shape[1] - 1), axis=1)


_LEARNT, _NUMBERS = 2**16, 2**28  # rows, and their numbers, at most that the classifier learns
_HELD = 2**26  # numbers at most of the real rows among which copies are looked for
_MADE = 5000  # rows, and as many real ones that they are compared with
WIDEST = 4096  # numbers of a row whose covariances are compared: they take the cube in time


class Maker(NamedTuple):
    """The generator of one run, by what rows are made of."""

    latents: Callable[..., jax.Array]  # (key, n) or, with a code, (key, n, clusters) -> z [n, m]
    make: Callable[[jax.Array], np.ndarray]  # z [n, m] -> rows [n, *shape]


def makers(options: config.Options, x: Any) -> Callable[[Any], Maker]:
    """The generator of a state [], for rows x of which the last may have been held out."""
    module = phases.METHODS[options.method.method]
    # As training saw it: by the first rows of those that were not held out.
    first = x[: min(phases.FIRST, len(x) - options.data.held_out)]
    own = phases.game_config(options, phases.is_bounded(first))
    nets = module.build_nets(own, x.shape[1:])
    return lambda state: Maker(
        lambda key, n, *clusters: module.latents(key, n, own, *clusters),
        lambda z: np.asarray(module.generate(state, z, nets)),
    )


def made_rows(options: config.Options, x: Any, trained: run.Trained) -> np.ndarray:
    """Rows that the generator of each run makes, as many as it was trained on or 5,000.
    -> [S, m, *shape]."""
    maker, made = makers(options, x), []
    for s, key in enumerate(run.seed_keys(options)):
        own = maker(jax.tree.map(lambda leaf, s=s: leaf[s], trained.state))
        made.append(own.make(own.latents(key, len(compared(len(x) - options.data.held_out)))))
    return np.stack(made)


def compared(n: int, most: int | None = None) -> np.ndarray:
    """Which of n real rows made ones are compared with: at most so many, or 5,000. -> [m]."""
    return np.linspace(0, n - 1, min(_MADE if most is None else most, n)).astype(int)


def measured(real: np.ndarray, made: np.ndarray, *, frechet: bool = True) -> dict[str, float]:
    """Measures of made rows [m, d] beside real ones [n, d]; of what is not finite, or a million
    times as large as real rows are, NaN, and shares of 0."""
    shares, is_sound = {}, _is_sound(real, made)
    if len(real) > 5 and len(made) > 5:
        names = ("precision", "recall", "density", "coverage")
        shares = metrics.fidelity(real, made) if is_sound else dict.fromkeys(names, 0.0)
    if frechet:
        shares["frechet"] = metrics.frechet(real, made) if is_sound else math.nan
    return shares


def _is_sound(real: np.ndarray, made: np.ndarray) -> bool:
    # NaN is not <= either.
    return bool(np.abs(made).max() <= 1e6 * max(float(np.abs(real).max()), 1e-30))


def of_game(made_by_run: np.ndarray, x: Any, n_clusters: int) -> dict[str, Any]:
    """How the rows that each run made compare with those it was trained on, x, in their own
    numbers; `occupied` are those of n_clusters clusters of the real rows that made rows have a
    tenth or more of their share in.
    """
    d = math.prod(x.shape[1:])
    real = np.asarray(x[compared(len(x))]).reshape(-1, d)
    # A copy may be of any row.
    every = np.asarray(x[compared(len(x), max(len(real), _HELD // d))]).reshape(-1, d)
    made_by_run = made_by_run.reshape(len(made_by_run), len(real), d)
    found = [measured(real, made, frechet=d <= WIDEST) for made in made_by_run]
    for own in found:
        own |= {"copies": math.nan, "copied": math.nan, "occupied": 0.0, "spread": math.nan}
    sound = [s for s, made in enumerate(made_by_run) if _is_sound(real, made)]
    memorised = metrics.memorised(every, made_by_run[sound]) if sound else {}
    # They part the rows, and no figure is of them: one start does.
    parts = kmeans.fit(jax.random.key(0), real, min(n_clusters, len(real)), n_init=1)
    for i, s in enumerate(sound):
        made = made_by_run[s]
        found[s] |= {name: float(values[i]) for name, values in memorised.items()}
        near = np.asarray(kmeans.assign(made, parts.centroids)[0])
        found[s]["occupied"] = _classes(near, np.asarray(parts.labels), n_clusters)
        found[s]["spread"] = float(np.sqrt(made.var(axis=0).sum() / real.var(axis=0).sum()))
    return {"made": _summaries(found), "compared": len(real)}


def _summaries(by_run: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    return {n: scores.summary(np.array([own[n] for own in by_run])) for n in by_run[0]}


def _classes(found: np.ndarray, true: np.ndarray, n_classes: int) -> float:
    """How many classes are found with a tenth or more of their share of the true ones."""
    sizes, wanted = (np.bincount(y, minlength=n_classes) for y in (found, true))
    return float(np.sum((sizes >= 0.1 * wanted) & (wanted > 0)))


def uncovered(report: dict[str, Any]) -> np.ndarray | None:
    """What runs of a game are chosen by, of the report of `of_game`: 1 less the smaller of coverage
    and recall. (A single made row in the middle covers much of wide rows, and recalls none.)
    -> [S], or None where rows are too few to be measured."""
    if "coverage" not in report["made"]:
        return None
    return 1.0 - np.min([report["made"][n]["values"] for n in ("coverage", "recall")], axis=0)


def classes_made(made_by_run: np.ndarray, x: Any, labels: np.ndarray) -> dict[str, Any]:
    """How many classes each run makes: a made row is of the class of the real row next to it, and a
    class is there with a tenth or more of its share of the real rows. None is of rows that are not
    finite."""
    chosen = compared(len(x))
    real = np.asarray(x[chosen]).reshape(len(chosen), -1)
    true, k, found = labels[chosen], labels.max() + 1, []
    for made in made_by_run.reshape(len(made_by_run), len(real), -1):
        if not _is_sound(real, made):
            found.append(0.0)
            continue
        near = np.asarray(neighbors.nearest(real, 1, queries=made).index)[:, 0]
        found.append(_classes(true[near], true, k))
    return scores.summary(np.array(found))


ABOUT_CENTRES = ("ring_8", "grid_25")  # data sets of points whose classes are round


def near_centres(made_by_run: np.ndarray, x: Any, labels: np.ndarray) -> dict[str, Any]:
    """Share of made points that lie within 3 deviations of the centre of a class, in each run: the
    usual measure for GANs of points about centres. Points [n, d] and their labels [n]; a deviation
    is that of one coordinate, of the class."""
    rows, near = np.asarray(x, np.float64), []
    own = [rows[labels == c] for c in np.unique(labels)]
    centres = np.stack([points.mean(axis=0) for points in own])
    reach = 3.0 * np.array([np.sqrt(points.var(axis=0).mean()) for points in own])
    for made in made_by_run:
        gaps = np.linalg.norm(made[:, None] - centres[None], axis=2)
        near.append(np.mean((gaps <= reach[None]).any(axis=1)))
    return scores.summary(np.array(near))


def judged(made_by_run: np.ndarray, x: Any, labels: np.ndarray) -> dict[str, Any] | None:
    """How the rows that each run made compare with real ones by the features of a classifier that
    saw all labels, which decide nothing: the measures of `of_game`, and how many classes it finds
    among made rows, each with a tenth or more of its share of real ones. None where the rows that
    it would learn from are of one class."""
    learnt = compared(len(x), min(_LEARNT, max(5, _NUMBERS // math.prod(x.shape[1:]))))
    if labels[learnt].max() < 1 or len(learnt) < 5:
        return None
    judge = classifier.fit(
        jax.random.key(0), x[learnt], labels[learnt], n_classes=int(labels.max()) + 1
    )
    chosen = compared(len(x))
    rows = np.asarray(x[chosen])
    real, true = classifier.features(judge, x[chosen]), labels[chosen]
    found = []
    for made in made_by_run:
        own = measured(real, classifier.features(judge, made))
        told = classifier.classes(judge, made) if _is_sound(rows, made) else np.zeros(0, int)
        own["classes"] = _classes(told, true, judge.n_classes)
        found.append(own)
    return {"accuracy": judge.accuracy, "made": _summaries(found)}


STACKED = "stacked_mnist"  # classes of three digits, one in each colour
_STACKS, _AT_ONCE = 25_600, 2_560  # made rows that its classes are counted among


def of_stacked(
    options: config.Options, dataset: Dataset, labels: np.ndarray, trained: run.Trained
) -> dict[str, Any]:
    """How many of the 1,000 classes of stacked_mnist each run makes among 25,600 rows, and the
    divergence of their shares from equal ones, nats.

    A class is told by a classifier of single digits, which saw the colours of real rows and their
    labels. `classes` counts those with a tenth or more of an equal share, `modes` those with one
    row, as is usual there (Metz et al. 2017, section 3.3.1): more than there are, since one row
    that the classifier takes for another makes a class.
    """
    x = np.asarray(dataset.x[: _LEARNT // 3])
    stacks = np.array(dataset.classes, int)[labels[: len(x)]]
    digits = np.stack([stacks // 100, stacks // 10 % 10, stacks % 10], axis=1).reshape(-1)
    colours = _colours(x)
    # A digit is drawn more than once: what is told must not be a copy of what was learnt.
    single = list({colour.tobytes(): i for i, colour in enumerate(colours)}.values())
    judge = classifier.fit(jax.random.key(0), colours[single], digits[single], n_classes=10)
    maker, found = makers(options, dataset.x), {"classes": [], "modes": [], "divergence": []}
    for s, key in enumerate(run.seed_keys(options)):
        own, counts = maker(jax.tree.map(lambda leaf, s=s: leaf[s], trained.state)), np.zeros(1000)
        for i in range(0, _STACKS, _AT_ONCE):
            made = own.make(own.latents(jax.random.fold_in(key, i), _AT_ONCE))
            if not _is_sound(x, made):
                continue
            told = classifier.classes(judge, _colours(made)).reshape(-1, 3)
            counts += np.bincount(told @ [100, 10, 1], minlength=1000)
        share = counts[counts > 0] / max(counts.sum(), 1)
        found["classes"].append(np.sum(share >= 1e-4))
        found["modes"].append(len(share))
        found["divergence"].append(np.sum(share * np.log(1000.0 * share)) if len(share) else np.nan)
    by_run = {name: scores.summary(np.array(values)) for name, values in found.items()}
    return by_run | {"accuracy": judge.accuracy}


def _colours(x: np.ndarray) -> np.ndarray:
    """Pictures [n, h, w, 3] as three each of one colour. -> [3n, h, w]."""
    return np.moveaxis(x, 3, 1).reshape(-1, *x.shape[1:3])


_GIVEN = 8  # tokens of a document that a text begins with


def of_next_token(
    options: config.Options, dataset: Dataset, trained: run.Trained
) -> dict[str, Any]:
    """The perplexity of documents under each run, and that of a guess by frequency alone.

    Of rows held out of training, where there are some (but not of the vocabulary, which is learnt
    from all), and then of as many of those trained on beside; else of those trained on.
    Perplexities are of sub-words: of other vocabularies they cannot be compared. NaN where all
    documents are empty.
    """
    x, vocabulary = dataset.x, dataset.preprocessing.settings["vocabulary"]
    nets = _reader(options, x.shape[1:])
    rows, which = _told(options, x)
    told = jax.jit(lambda params, x: next_token.told(params, x, nets.language))

    def of_runs(rows):
        found = []
        for s in range(len(trained.state.step)):
            params = jax.tree.map(lambda leaf, s=s: leaf[s], trained.state.params["encoder"])
            total, count = _in_blocks(lambda x, own=params: told(own, x), rows, _DOCUMENTS)
            found.append(np.exp(total.sum() / count.sum()) if count.any() else np.nan)
        return scores.summary(np.array(found))

    held_out = options.data.held_out
    return {
        "texts": len(x),
        "rows": which,
        "perplexity": of_runs(rows),
        **({"of_trained_on": of_runs(x[: min(held_out, len(x) - held_out)])} if held_out else {}),
        "by_frequency": _by_frequency(x[: len(x) - held_out], rows, vocabulary),
    }


def of_next_frame(options: config.Options, x: Any, trained: run.Trained) -> dict[str, Any]:
    """Mean distance of frames from what each run says of them `ahead` frames before, and from what
    would be said without learning: the frame that is heard then, and the mean of all, which is 0
    of scaled sounds. NaN where all clips are too short."""
    network = options.network
    own = next_frame.Config(network=network.network, hidden=tuple(network.hidden))
    nets = next_frame.build_nets(own, x.shape[1:])
    rows, which = _told(options, x)

    def off(said, x):
        return next_frame.distances(said, x, next_frame.length(next_frame.in_order(x)))

    def mean_off(of_clips):
        values, count = _in_blocks(of_clips, rows, _CLIPS)
        return values[count > 0].mean() if count.any() else np.nan

    told = jax.jit(lambda params, x: off(next_frame.told_frames(params, x, nets, own), x))
    heard = jax.jit(lambda x: off(next_frame.in_order(x)[:, : -own.ahead], x))
    zeros = jax.jit(lambda x: off(jnp.zeros_like(next_frame.in_order(x)[:, own.ahead :]), x))

    def of_run(s):
        params = jax.tree.map(lambda leaf: leaf[s], trained.state.params["encoder"])
        return mean_off(lambda x: told(params, x))

    by_run = np.array([of_run(s) for s in range(len(trained.state.step))])
    return {
        "ahead": own.ahead,
        "rows": which,
        "distance": scores.summary(by_run),
        "same": float(mean_off(heard)),
        "mean": float(mean_off(zeros)),
    }


def texts_of_clusters(
    options: config.Options,
    dataset: Dataset,
    trained: run.Trained,
    s: int,
    begun: Mapping[int, int],
) -> dict[int, str]:
    """A text for each cluster as run s writes it, which begins as the document of number
    `begun[cluster]` does."""
    nets = _reader(options, dataset.x.shape[1:])
    state = jax.tree.map(lambda leaf: leaf[s], trained.state)
    first = next_token.windows(jnp.asarray(dataset.x[[*begun.values()]]))[:, 0]
    key = run.seed_keys(options)[s]
    go_on = jax.jit(lambda state, x: next_token.generate(key, state, x, nets, given=_GIVEN))
    written = tokens.decode(dataset.preprocessing.settings, np.asarray(go_on(state, first)))
    return dict(zip(begun, written, strict=True))


def _reader(options: config.Options, shape: tuple[int, ...]) -> next_token.Nets:
    network = options.network
    own = next_token.Config(
        network=network.network, hidden=tuple(network.hidden), embed_dim=network.embed_dim
    )
    return next_token.build_nets(own, shape)


def _by_frequency(trained_on: np.ndarray, rows: np.ndarray, vocabulary: int) -> float:
    """Perplexity of the tokens that a network tells, guessed by how often they are, each once more
    than seen."""
    counts = 1.0 + np.bincount(trained_on.astype(int).ravel(), minlength=vocabulary)
    counts[[tokens.PAD, tokens.START]] = 0.0
    own = rows[:, np.arange(rows.shape[1]) % tokens.WINDOW > 0].astype(int).ravel()
    own = own[counts[own] > 0]
    return float(np.exp(np.mean(np.log(counts.sum() / counts[own])))) if len(own) else np.nan
