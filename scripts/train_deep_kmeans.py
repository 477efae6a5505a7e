"""Cluster data with a trained network, over several seeds, from a file to a report.

    python scripts/train_deep_kmeans.py                             # digits, minutes on a laptop
    python scripts/train_deep_kmeans.py --data mnist --method autoencoder --seeds 10
    python scripts/train_deep_kmeans.py --data my_table.csv --n-clusters 8
    python scripts/train_deep_kmeans.py --resume --out runs/mnist-autoencoder

What scores to expect is in the README, written there by scripts/reproduce.py.
"""

import argparse
import contextlib
import dataclasses
import fcntl
import math
import os
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from deepclust_jax import command, config

LOCK = "lock"  # in a run directory: held by the process that trains it
# All that a run leaves in its directory, and so all that --overwrite may delete.
OF_A_RUN = {
    config.CHECKSUM, config.FILE, "checkpoint", "tensorboard", "metrics.csv",
    "report.json", "labels.npy", "labels_all.npy", "labels_vote.npy", "labels.csv",
    "embeddings.npy", "centroids.npy", "preprocessing.json", "preprocessing.npz", "partner",
    config.MADE, "cluster_sizes.png",
    "confusion.png", "embedding_map.png", "samples.png", "samples.md",
    "samples.html", "samples", "training.png",
    "made.npy", "made.png", "walk.png", "film.gif", "frames",
    "made.jsonl", LOCK,
}  # fmt: skip


def main(args: list[str] | None = None) -> int:
    """Run the script; 0 if all went well, else 2 after one line on standard error."""
    try:
        given = config.parse(args)
        options = config.resolve(given)
        return train_and_report(given, options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return command.INTERRUPTED
    except Exception as error:
        names = {kind.__name__ for kind in type(error).__mro__}  # no import of what takes long
        started = names & {"CheckpointError", "Diverged"}
        if not started and not names & {"ConfigError", "DataError"}:
            raise
        again = f"; --overwrite replaces the run in {options.run.out}" if started else ""
        print(f"error: {error}{again}", file=sys.stderr)
        return 2


def main_of(methods: Sequence[str], args: list[str] | None) -> int:
    """`main` of a script of one method, or of some of which the first is trained unless another is
    given."""
    args = sys.argv[1:] if args is None else args
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--method", "--config", "--out"):
        finder.add_argument(name, nargs="?")
    finder.add_argument("--resume", action="store_true")
    given = finder.parse_known_args(args)[0]
    file = given.config or (given.resume and given.out and Path(given.out) / config.FILE)
    found = given.method
    if found is None and file and os.path.isfile(file):
        try:
            found = config.read(Path(file)).get("method")
        except config.ConfigError:
            return main(args)  # which says so
        if found in methods:
            return main(args)
    if found is None:
        return main(["--method", methods[0], *args])
    if found in methods and len(methods) > 1:
        return main(args)
    wanted = f"--method {', '.join(methods)}"
    if len(methods) == 1:
        wanted = f"no --method, which is {methods[0]} here"
    print(
        f"error: expected {wanted}, found {found}; use train_deep_kmeans.py for others",
        file=sys.stderr,
    )
    return 2


def train_and_report(given: config.Options, options: config.Options) -> int:
    """Load, train, write and print; options as given, and resolved without data. -> exit code."""
    try:
        check_folder(options)
    except OSError as error:
        raise config.ConfigError(f"cannot read --out {options.run.out}: {error.strerror}") from None
    check_number(options)
    start_jax(options)
    from deepclust_jax import phases, run
    from deepclust_jax.data import arrays
    from deepclust_jax.report import film, logs, run_directory, tables

    loaded = run_directory.load(options.data)
    dataset, labels = loaded.dataset, loaded.labels
    check_kind(options, dataset)
    made = run_directory.made_for(options.data, dataset)
    rows = rows_to_train(options, dataset, made)
    options = with_parts(config.resolve(given, rows.shape[0]), dataset)
    options = with_clusters(options, dataset, rows)
    phases.of(options, tuple(rows.shape))  # refuses what does not fit the data
    phases.check(options, rows, is_begun=options.run.resume)
    if not options.run.resume:  # of which most is there
        check_space(options, tuple(dataset.x.shape))
    checksums = {config.CHECKSUM: dataset.checksum}
    if made is not None:
        checksums[config.MADE] = f"{len(made)} {arrays.checksum(made)}"
    with held(options.run.out):  # before --overwrite removes what another process trains
        folder = prepare_folder(given, options, checksums)
    print(facts(options, dataset, labels), flush=True)
    if options.run.resume:
        for dropped in run.drop_damaged(folder / "checkpoint", options):
            print(f"damaged checkpoint removed: {dropped}; going on from what is sound")
    done = run.epochs_done(folder / "checkpoint", options, rows.shape[0])
    resume = done if options.run.resume else None
    log_file = logs.open_log(folder, resume=resume)
    try:
        with held(folder), noted_stop() as stopped:
            with log_file as log, progress() as report_epoch:

                def on_epoch(phase, epoch, epochs, metrics):
                    if stopped:
                        raise KeyboardInterrupt
                    log.epoch(phase, epoch - 1, metrics)
                    report_epoch(phase, epoch, epochs, metrics)

                store = folder / "checkpoint"
                watch = film.watcher(folder, options, dataset.x, dataset.kind)
                trained = run.execute(
                    options, rows, folder=store, on_epoch=on_epoch, on_state=watch
                )
            with status(f"writing the report to {folder}"):
                report = run_directory.write(folder, options, trained, loaded)
    except KeyboardInterrupt:
        print(f"interrupted; go on with --resume --out {folder}", file=sys.stderr)
        return command.INTERRUPTED
    print(tables.score_table(report))
    print(f"Run directory: {folder}")
    return 0


def check_number(options: config.Options) -> None:
    """Raise ConfigError where nobody says how many clusters there are: before rows are read, which
    of sounds takes long."""
    from deepclust_jax.data import named

    source = options.data.data
    known = options.data.n_clusters is not None or source in named.NAMED
    if known or not os.path.exists(source) or config.run_of(source) is not None:
        return
    way = "give it; scripts/select_k.py shows what speaks for which"
    if options.method.method in config.MERGED:
        way = "give it, or let --merge find it"
    raise config.ConfigError(f"--n-clusters is needed for {source}; {way}")


def check_kind(options: config.Options, dataset) -> None:
    """Raise ConfigError for data of another kind than a method or its changes are for."""
    method, augment = options.method.method, options.method.augment
    for flag, value, is_of, kind in (
        ("--method", method, ("rotation", "mmdc", "deep_cluster"), "image"),
        ("--augment", augment, ("affine", "photo"), "image"),
        ("--augment", augment, ("speech",), "audio"),
    ):
        if value in is_of and dataset.kind != kind:
            needs = {"image": "images", "audio": "sounds"}[kind]
            raise config.ConfigError(f"{flag} {value} needs {needs}, found {dataset.kind} data")


def facts(options: config.Options, dataset, labels) -> str:
    """One line on what is clustered, how and on what, so that a wrong guess is seen at once."""
    import jax

    named, shape = options.data.data, " x ".join(map(str, dataset.x.shape))
    own = [dataset.preprocessing] + [dataset.partner] * (dataset.partner is not None)
    kinds = " and ".join(
        f"{one.kind}, scaling {one.settings.get('scaling', 'own features')}" for one in own
    )
    if dataset.partner is not None:
        named = f"{named} and {options.data.partner}"
    scored = "no labels" if labels is None else f"{len(set(labels.tolist()))} classes for scores"
    device = jax.devices()[0].device_kind  # the one that trains
    k = f"k {'<=' if options.method.merge else '='} {options.data.n_clusters}"
    seeds = "1 seed" if options.run.seeds == 1 else f"{options.run.seeds} seeds"
    return (
        f"{named}: {shape} ({kinds}, {scored}); "
        f"{options.method.method}, {k}, {seeds}; "
        f"jax {jax.__version__}, {device}"
    )


def rows_to_train(options: config.Options, dataset, made=None):
    """The rows but for the last --held-out, and the made ones of --made or None.

    Raises ConfigError where too few are left, or where they stay on disk.
    """
    import numpy as np

    from deepclust_jax.data import preprocessing

    held_out, n = options.data.held_out, dataset.x.shape[0]
    if not held_out and made is None:
        return dataset.x
    k = options.data.n_clusters or dataset.n_clusters
    left, k = n - held_out, 2 if options.method.merge or k is None else k
    if left < k:
        raise config.ConfigError(
            f"expected --held-out <= {n - k}, which leaves a row for each cluster, found {held_out}"
        )
    if isinstance(dataset.x, preprocessing.Rows):
        raise config.ConfigError(
            "expected rows that fit in memory beside --held-out and --made; use --limit, or leave "
            "them out"
        )
    return dataset.x[:left] if made is None else np.concatenate([dataset.x[:left], made])


def with_parts(options: config.Options, dataset) -> config.Options:
    """The options with the shapes of the modalities of paired rows."""
    if not dataset.parts:
        return options
    if options.method.augment == "each":
        check_changes(dataset)
    parts = config.written(dataset.parts)
    if options.data.parts not in (None, parts):
        raise config.ConfigError(
            f"expected no --parts beside --partner, whose rows have {' '.join(parts)}, found "
            f"{' '.join(options.data.parts)}"
        )
    return dataclasses.replace(options, data=dataclasses.replace(options.data, parts=parts))


def check_changes(dataset) -> None:
    """Raise ConfigError where a modality looks like what `--augment each` changes, and is not."""
    from deepclust_jax import augment, phases

    for part, own in zip(dataset.parts, (dataset.preprocessing, dataset.partner), strict=True):
        is_word = own.settings.get("scaling") == "speech"
        wanted = "speech" if is_word else "affine" if own.kind == "image" else None
        found = phases.change_of(part)
        if found is not None and wanted != ("speech" if found is augment.speech else "affine"):
            way = "take none, or other sizes"
            if own.kind == "audio":
                way = "of sounds give --scaling speech, or of the second modality --partner-scaling"
                way += " speech"
            raise config.ConfigError(
                f"--augment each takes {own.kind} rows of shape {part} for others; {way}"
            )


def with_clusters(options: config.Options, dataset, rows) -> config.Options:
    """The options with `n_clusters`, from the documentation of a named set if not given; what
    --merge begins with is no more than the distinct rows trained on."""
    k = options.data.n_clusters or dataset.n_clusters
    n = dataset.x.shape[0]
    if options.method.merge:
        k = max(count_distinct(rows, k), 2)
    if n < 2:
        raise config.ConfigError(f"expected 2 rows or more, found {n} in {options.data.data}")
    if not 2 <= k <= n:
        raise config.ConfigError(
            f"expected 2 <= --n-clusters <= {n} (the rows), found {k}; "
            "give fewer clusters or more rows"
        )
    distinct = count_distinct(dataset.x, k)
    if distinct < k:
        raise config.ConfigError(
            f"expected --n-clusters <= {distinct} (the distinct rows), found {k}; "
            "give fewer clusters"
        )
    return dataclasses.replace(options, data=dataclasses.replace(options.data, n_clusters=k))


def count_distinct(x, enough: int) -> int:
    """How many distinct rows x [n, ...] has; no more are counted than are enough."""
    import numpy as np

    seen: set[bytes] = set()
    for start in range(0, x.shape[0], 4096):
        rows = np.asarray(x[start : start + 4096]) + 0.0  # -0 is 0
        seen.update(row.tobytes() for row in rows)
        if len(seen) >= enough:
            return enough
    return len(seen)


def check_folder(options: config.Options) -> None:
    """Raise ConfigError if --out cannot take this run; nothing is written or removed."""
    out = options.run.out
    # os.path: unlike Path's methods, these are False where one may not look.
    if os.path.exists(out) and not os.path.isdir(out):
        raise config.ConfigError(
            f"expected a folder as --out, found the file {out}; choose another --out"
        )
    known = config.is_run(out)
    if options.run.resume and not known:
        raise config.ConfigError(
            f"--resume: no run in {out}; give its --out, or leave --resume out"
        )
    given = config.lineage(options.data)
    for path in (p for d in given for p in (d.data, d.partner, d.labels, d.nuisance, d.made)):
        inside = (
            path and os.path.exists(path) and Path(path).resolve().is_relative_to(out.resolve())
        )
        if options.run.overwrite and inside:
            raise config.ConfigError(f"--overwrite would delete {path}; choose another --out")
    if os.path.isdir(out) and any(out.iterdir()):
        if not known:
            raise config.ConfigError(f"--out {out} holds other files; choose an empty folder")
        if not (options.run.resume or options.run.overwrite):
            raise config.ConfigError(
                f"--out {out} holds another run; add --resume or --overwrite, or choose another "
                "--out"
            )
        others = sorted({path.name.removesuffix(".tmp") for path in out.iterdir()} - OF_A_RUN)
        if options.run.overwrite and others:
            raise config.ConfigError(
                f"--overwrite would delete {out / others[0]}, which is not of the run; move it or "
                "choose another --out"
            )
    parent = nearest_folder(out)
    if not os.access(parent, os.W_OK):
        raise config.ConfigError(f"no permission to write --out {out}; choose another folder")
    if shutil.disk_usage(parent).total == 0:  # such as /proc
        raise config.ConfigError(f"no files can be written to --out {out}; choose another folder")


def nearest_folder(out: Path) -> Path:
    """The folder itself, or the one above it that is there."""
    return next(p for p in (out, *out.absolute().parents) if os.path.exists(p))


def check_space(options: config.Options, shape: tuple[int, ...]) -> None:
    """Raise ConfigError if the run would not fit on the disk of --out; nothing is written."""
    from deepclust_jax import run

    out = options.run.out
    report = 8 * shape[0] * (options.run.seeds + 4 * options.network.embed_dim) + 2**26
    need = run.checkpoint_bytes(options, shape) + report
    # With --overwrite, what is there will be deleted.
    held = sum(os.path.getsize(file) for file in out.rglob("*") if os.path.isfile(file))
    free = shutil.disk_usage(nearest_folder(out)).free + held
    if free < need:
        raise config.ConfigError(
            f"expected {need / 2**20:,.0f} MiB free for --out {out}, found {free / 2**20:,.0f} "
            "MiB; make room or choose another folder"
        )


def prepare_folder(
    given: config.Options, options: config.Options, checksums: Mapping[str, str]
) -> Path:
    """Make the run directory, or check that the one there is the run to go on with; `checksums`,
    by the file that keeps them, are of all rows that are trained on."""
    from deepclust_jax import run

    out, file = options.run.out, given.run.config
    before = {} if file is None else config.read(file)  # now: --overwrite may remove it
    if options.run.resume:
        run.check_same(out, options)
        for name, checksum in checksums.items():
            # A run that was killed as it began has none.
            if not (out / name).is_file():
                (out / name).write_text(checksum)
            elif (out / name).read_text() != checksum:
                source = options.data.made if name == config.MADE else options.data.data
                raise config.ConfigError(
                    f"--resume: the rows of {source} are not those the run in {out} began with; "
                    "use --overwrite or another --out"
                )
        return out
    try:
        if options.run.overwrite and out.exists():
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)
        run.write_options(out, options, given, before)  # makes the folder a run
        for name, checksum in checksums.items():
            (out / name).write_text(checksum)
    except FileExistsError:
        raise config.ConfigError(
            f"another run began in --out {out} meanwhile; choose another folder"
        ) from None
    except OSError as error:
        raise config.ConfigError(f"cannot write --out {out}: {error.strerror or error}") from None
    return out


def start_jax(options: config.Options) -> None:
    """Find the device, and set the cache of compiled programs."""
    import jax

    from deepclust_jax import run

    platform = run.platform()
    cache = options.run.compilation_cache
    chosen = jax.config.jax_compilation_cache_dir  # JAX_COMPILATION_CACHE_DIR
    if (cache == "on" or (cache == "auto" and platform != "cpu")) and not chosen:
        folder = Path.home() / ".cache" / "deepclust_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@contextlib.contextmanager
def held(folder: Path):
    """Where there is a run, keep other processes from it.

    Raises ConfigError if one trains there. File systems that know no locks are left alone.
    """
    if not folder.is_dir() or not config.is_run(folder):
        yield
        return
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise config.ConfigError(
                f"another process trains the run in {folder}; wait for it or stop it, or choose "
                "another --out"
            ) from None
        except OSError:
            pass
        yield


@contextlib.contextmanager
def noted_stop():
    """Ctrl-C as ever, SIGTERM, which schedulers send, the same, and a list in which it is noted.

    JAX runs code of its own when Python collects garbage, and an exception there goes nowhere.
    """
    seen: list[int] = []

    def note(number, frame):
        seen.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def status(text: str):
    """The text beside a spinner on a terminal, and silence elsewhere."""
    from rich.console import Console

    return Console().status(text) if sys.stdout.isatty() else contextlib.nullcontext()


@contextlib.contextmanager
def progress(every: float = 60.0):
    """A bar with epoch, loss and time left on a terminal; elsewhere, as in the log of a scheduler,
    a line every so many seconds, and none of a run that is shorter."""
    from rich import progress as bars

    said = time.monotonic()
    display = bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TextColumn("loss {task.fields[loss]}"),
        bars.TimeRemainingColumn(),
        disable=not sys.stdout.isatty(),
    )
    # Before the first epoch of a phase and after the last one there is no other sign of life.
    waiting, tasks = display.add_task("compiling", total=None, loss=""), {}

    def report_epoch(phase, epoch, epochs, metrics):
        nonlocal said
        if phase not in tasks:
            tasks[phase] = display.add_task(phase, total=epochs, loss="")
        is_last = epoch == epochs
        display.update(waiting, description="clustering, compiling", visible=is_last)
        values = metrics.get("loss", [])
        values = [value for value in values if math.isfinite(value)]  # one seed may have diverged
        loss = f"{statistics.fmean(values):.4g}" if values else ""
        if "clusters" in metrics:  # where their number is found
            loss += f", {statistics.fmean(metrics['clusters']):.3g} clusters"
        display.update(tasks[phase], completed=epoch, loss=loss)
        if display.disable and time.monotonic() - said >= every:
            said = time.monotonic()
            print(f"{phase}: epoch {epoch} of {epochs}{loss and f', loss {loss}'}", flush=True)

    with display:
        try:
            yield report_epoch
        finally:
            display.update(waiting, visible=False)


if __name__ == "__main__":
    sys.exit(command.to_reader(main))
