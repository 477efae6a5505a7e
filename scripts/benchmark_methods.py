"""Accuracy and time of the deep methods beside ClustPy's, at the defaults of both.

    python scripts/benchmark_methods.py --seeds 5             # what results/ lacks; needs [bench]
    python scripts/benchmark_methods.py --table               # rewrites its table

A cell is one method, data set and seed; both libraries train it from nothing on the same rows, in
processes of their own, one after the other, with all cores. An autoencoder is trained once for a
seed and library, and its seconds are counted to each method that starts from it. ClustPy's VaDE has
one of its own, and its N2D gets a t-SNE in two dimensions: by default it has as many as clusters,
and t-SNE refuses more than three. Ours is the practical profile in float32; compilation is reported
apart. Labels are seen by this process alone.
"""

import copy
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np

RESULTS = Path(__file__).parent.parent / "results" / "methods"
LIBRARIES = ("deepclust_jax", "clustpy")
METHODS = ("dcn", "dkm", "dec", "idec", "vade", "n2d")
LIMITS = {"mnist": 10_000}  # rows: all would take ClustPy hours


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare methods, or write the table."""

    data: tuple[str, ...] = ("usps", "mnist")
    """Data sets by name; of mnist a fixed random part of 10,000 rows."""

    methods: tuple[Literal["dcn", "dkm", "dec", "idec", "vade", "n2d"], ...] = METHODS
    """Methods."""

    seeds: int = 5
    """Seeds 0 to this number less one."""

    table: bool = False
    """Measure nothing; rewrite the table in results/README.md."""


def main(args: list[str] | None = None) -> int:
    """Run the script, or in a child process one library."""
    args = sys.argv[1:] if args is None else args
    if args[:1] == ["--library"]:
        library, folder, seed, k, methods = args[1:6]
        train = train_clustpy if library == "clustpy" else train_ours
        train(Path(folder), int(seed), int(k), methods.split(","))
        return 0
    import tyro

    options = tyro.cli(Options, args=args, config=(tyro.conf.FlagCreatePairsOff,))
    if options.table:
        import reproduce

        reproduce.rewrite("methods", table())
        return 0
    from deepclust_jax import data

    for seed in range(options.seeds):
        for name in options.data:
            dataset, labels = data.load(name, limit=LIMITS.get(name))
            for library in LIBRARIES:
                todo = [
                    m for m in options.methods if not cell_file(name, m, library, seed).exists()
                ]
                if todo:
                    measure(dataset, labels, library, seed, todo)
    print(table())
    return 0


def cell_file(data: str, method: str, library: str, seed: int) -> Path:
    """The file of one cell."""
    return RESULTS / data / method / f"{library}-seed{seed}.json"


def measure(dataset: Any, labels: Any, library: str, seed: int, methods: list[str]) -> None:
    """Train methods of one library and write their cells."""
    from deepclust_jax import command, metrics
    from deepclust_jax.report import environment, scores

    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "x.npy", np.asarray(dataset.x))
        child = [folder, str(seed), str(dataset.n_clusters), ",".join(methods)]
        done = subprocess.run(
            [sys.executable, __file__, "--library", library, *child],
            stderr=subprocess.PIPE, text=True, env=command.unheld_environment(),
        )  # fmt: skip
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise SystemExit(f"error: {library} failed: {reason}; pip install -e '.[bench]'")
        for method in methods:
            found = np.load(Path(folder) / f"{method}.npy", allow_pickle=False)
            cell = json.loads((Path(folder) / f"{method}.json").read_text())
            cell |= {
                "seed": seed,
                "rows": len(labels),
                "checksum": dataset.checksum,
                "external": metrics.external_scores(labels, found),
                "environment": environment.environment(),
            }
            file = cell_file(dataset.name, method, library, seed)
            file.parent.mkdir(parents=True, exist_ok=True)
            scores.write_report(file, cell)
            took = sum(cell["seconds"].values())
            accuracy = 100 * cell["external"]["accuracy"]
            print(f"{dataset.name} {method} {library} {seed}: {accuracy:.1f} %, {took:.0f} s")
            sys.stdout.flush()


def write(folder: Path, method: str, labels: Any, **known: Any) -> None:
    """What a child hands to the process that knows the labels."""
    np.save(folder / f"{method}.npy", np.asarray(labels).astype(np.int32))
    (folder / f"{method}.json").write_text(json.dumps(known))


def train_ours(folder: Path, seed: int, k: int, methods: list[str]) -> None:
    """This project's methods on the rows of a folder."""
    from deepclust_jax import config, run, train

    x = np.load(folder / "x.npy", allow_pickle=False)

    def options(method):
        own = config.Data(data="rows", n_clusters=k), config.Method(method=method)
        return config.resolve(config.Options(*own, run=config.Run(seeds=1)), len(x))

    start = run.execute(options("autoencoder"), x, seeds=[seed])
    for method in methods:
        found = run.execute(options(method), x, seeds=[seed], pretrained=start.state)
        _, labels = train.embed(found.algorithm, found.state, x)
        write(
            folder, method, labels[0],
            seconds={"pretrain": start.seconds["train"], "train": found.seconds["train"]},
            compile_seconds={
                "pretrain": start.compile_seconds["train"],
                "train": found.compile_seconds["train"],
            },
        )  # fmt: skip


def train_clustpy(folder: Path, seed: int, k: int, methods: list[str]) -> None:
    """ClustPy's methods on the rows of a folder, flattened."""
    import importlib.metadata

    from clustpy.deep import DCN, DEC, DKM, IDEC, N2D, VaDE
    from clustpy.deep.neural_networks import FeedforwardAutoencoder

    x = np.load(folder / "x.npy", allow_pickle=False)
    x = x.reshape(len(x), -1)
    begin = time.perf_counter()
    network = FeedforwardAutoencoder([x.shape[1], 500, 500, 2000, 10], random_state=seed)
    network.fit(n_epochs=100, optimizer_params={"lr": 1e-3}, batch_size=256, data=x)
    pretrain = time.perf_counter() - begin
    known = {"dcn": DCN, "dkm": DKM, "dec": DEC, "idec": IDEC, "n2d": N2D}
    versions = {name: importlib.metadata.version(name) for name in ("clustpy", "torch")}
    for method in methods:
        begin = time.perf_counter()
        if method == "vade":
            found, before = VaDE(k, random_state=seed), 0.0  # with a network of its own
        else:
            own = copy.deepcopy(network)
            more = {"manifold_params": {"n_components": 2}} if method == "n2d" else {}
            found = known[method](k, neural_network=own, random_state=seed, **more)
            before = pretrain
        labels = found.fit(x).labels_
        seconds = {"pretrain": before, "train": time.perf_counter() - begin}
        write(folder, method, labels, seconds=seconds, versions=versions)


def table() -> str:
    """The table in Markdown: both libraries, method by method."""
    lines = [
        "| data | method | ACC | ACC of ClustPy | NMI | NMI of ClustPy | seconds a seed | "
        "seconds of ClustPy | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    machines, versions = set(), set()
    for data in sorted(path.name for path in RESULTS.glob("*")):
        for method in METHODS:
            own = {library: _cells(data, method, library) for library in LIBRARIES}
            # Of one machine and hour: the seeds that both have.
            both = set.intersection(*({cell["seed"] for cell in cells} for cells in own.values()))
            if not both:
                continue
            ours, theirs = (
                [cell for cell in cells if cell["seed"] in both] for cells in own.values()
            )
            columns = [
                _mean(100 * np.array([cell["external"][name] for cell in cells]))
                for name in ("accuracy", "nmi")
                for cells in (ours, theirs)
            ]
            times = [
                statistics.median(sum(cell["seconds"].values()) for cell in cells)
                for cells in (ours, theirs)
            ]
            compiled = statistics.median(sum(cell["compile_seconds"].values()) for cell in ours)
            lines.append(
                f"| {data} | {method} | {' | '.join(columns)} | {times[0]:,.0f} and "
                f"{compiled:,.0f} to compile | {times[1]:,.0f}, {times[1] / times[0]:.1f}× | "
                f"{len(both)} |"
            )
            for cell in (*ours, *theirs):
                made = cell["environment"]
                machines.add(f"{made['cores']} cores of {made['processor']}")
                versions |= {f"{name} {v}" for name, v in cell.get("versions", {}).items()}
            versions |= {f"jax {cell['environment']['versions']['jax']}" for cell in ours}
    lines += [
        "",
        "float32, ours by the practical profile, ClustPy at its defaults; mnist is a fixed random "
        f"part of 10,000 rows. {'; '.join(sorted(machines))}; {', '.join(sorted(versions))}. "
        "`python scripts/benchmark_methods.py`",
    ]
    return "\n".join(lines)


def _cells(data: str, method: str, library: str) -> list[dict[str, Any]]:
    files = sorted((RESULTS / data / method).glob(f"{library}-seed*.json"))
    return [json.loads(file.read_text()) for file in files]


def _mean(values: np.ndarray) -> str:
    mean = f"{values.mean():.1f}"
    return f"{mean} ± {values.std(ddof=1):.1f}" if len(values) > 1 else mean


if __name__ == "__main__":
    sys.exit(main())
