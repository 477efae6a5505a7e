"""k-means beside its peers, in one run: time per iteration, of whole calls, of seeding; memory.

    pip install -e ".[bench]"
    python scripts/benchmark_kmeans.py                # all workloads, in rounds; half an hour
    python scripts/benchmark_kmeans.py --quick        # small rows, one round: 5 minutes
    python scripts/benchmark_kmeans.py --table        # rewrites its table

Every contender runs in a process of its own, with all cores and its best settings, from the same
first centroids and for the same iterations, one after another in rounds, so that a drift of the
machine meets all of them. Milliseconds per iteration are slopes between a short and a long run:
copies, compilation and the last assignment are outside. Calls are timed whole, from NumPy rows to
labels, at the second call; compilation is what the first one took longer. A solution is an inertia
within 0.1 % of scikit-learn's best of ten converged runs: calls with one seed after another until
it is there, each with its library's defaults, and one restart a call where all restarts would cost
the peer more. Balanced clusters are all of one size, from the centroids of one run of k-means that
both begin with; the eps of DBSCAN is the median distance to the fifth nearest row. Neighbours are
the k nearest of every row; scikit-learn takes a tree for ten features, and else brute force.
`extra` is the most memory beyond the rows themselves.

On a GPU those contenders run that can use it, flash-kmeans among them (its products are TF32, with
11 bits); their figures have a file and a table of their own.
"""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "results"
FILES = {"cpu": RESULTS / "kmeans_speed.json", "gpu": RESULTS / "kmeans_speed_gpu.json"}
OURS = ("jax", "jax, 2 devices")
PEERS = (
    "scikit-learn", "scikit-learn-intelex", "faiss", "superkmeans", "torch", "k-means-constrained",
    "flash-kmeans",
)  # fmt: skip
ON_DEVICE = ("jax", "jax, k-means||", "torch", "flash-kmeans")  # that use a GPU


@dataclasses.dataclass(frozen=True)
class Workload:
    """Rows, clusters and what is timed."""

    rows: str
    n: int
    d: int
    k: int
    task: str  # one of TASKS
    iterations: tuple[int, int] = (0, 0)  # of the short run and of the long one
    restarts: int = 1


WORKLOADS = {
    "a": Workload("mnist", 70_000, 784, 10, "iterations", (5, 25)),
    "usps": Workload("usps", 9_298, 256, 10, "iterations", (5, 25)),
    "b": Workload("blobs", 1_000_000, 10, 10, "iterations", (5, 25)),
    "c": Workload("blobs", 1_000_000, 64, 256, "iterations", (2, 8)),
    "d": Workload("blobs", 200_000, 128, 1024, "iterations", (2, 8)),
    "e": Workload("codes", 70_000, 10, 10, "call", (30, 30), 10),
    "mnist, solution": Workload("mnist", 70_000, 784, 10, "solution", (300, 300)),
    "codes, solution": Workload("codes", 70_000, 10, 10, "solution", (300, 300)),
    "c, solution": Workload("blobs", 1_000_000, 64, 256, "solution", (300, 300)),
    "b, seeding": Workload("blobs", 1_000_000, 10, 10, "seeding"),
    "c, seeding": Workload("blobs", 1_000_000, 64, 256, "seeding"),
    "d, seeding": Workload("blobs", 200_000, 128, 1024, "seeding"),
    "usps, balanced": Workload("usps", 9_298, 256, 10, "balanced"),
    "mnist, balanced": Workload("mnist", 70_000, 784, 10, "balanced"),
    "pendigits, dbscan": Workload("pendigits", 10_992, 16, 0, "dbscan"),
    "usps, dbscan": Workload("usps", 9_298, 256, 0, "dbscan"),
    "codes, dbscan": Workload("codes", 70_000, 10, 0, "dbscan"),
    "mnist, neighbours": Workload("mnist", 70_000, 784, 20, "neighbours"),
    "codes, neighbours": Workload("codes", 70_000, 10, 20, "neighbours"),
}
TASKS = {
    "iterations": ("ms per iteration", (*OURS, *PEERS[:5], "flash-kmeans")),
    "call": ("ms", (*OURS, "scikit-learn", "scikit-learn-intelex", "faiss")),
    "solution": ("ms to within 0.1 %", (*OURS, "scikit-learn", "scikit-learn-intelex", "faiss")),
    "seeding": ("ms", ("jax", "jax, k-means||", "scikit-learn")),
    "balanced": ("ms", ("jax", "k-means-constrained")),
    "dbscan": ("ms", ("jax", "scikit-learn")),
    "neighbours": ("ms", ("jax", "scikit-learn", "faiss")),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare k-means with its peers, or write the table."""

    workloads: tuple[str, ...] = tuple(WORKLOADS)
    """Of which: a, usps, b, c, d, e, the solutions, seedings, balanced, dbscan and neighbours."""

    rounds: int = 5
    """Times that every contender runs."""

    peer_python: str = sys.executable
    """Python with the peers: pip install -e ".[bench]"."""

    quick: bool = False
    """Small rows and one round, and nothing written: a test that all of it runs."""

    table: bool = False
    """Measure nothing; rewrite the table in results/README.md."""


def main(args: list[str] | None = None) -> int:
    """Run the script, or in a child process one contender."""
    args = sys.argv[1:] if args is None else args
    if args[:1] == ["--contender"]:
        name, file, workload, target, seed = args[1:6]
        work = Workload(**json.loads(workload))
        print(json.dumps(contend(name, Path(file), work, float(target), int(seed))))
        return 0
    import tyro

    options = tyro.cli(Options, args=args, config=(tyro.conf.FlagCreatePairsOff,))
    unknown = [name for name in options.workloads if name not in WORKLOADS]
    if unknown:
        known = ", ".join(map(repr, WORKLOADS))
        print(f"error: expected workloads of {known}; found {unknown[0]!r}", file=sys.stderr)
        return 2
    if options.rounds < 1 or shutil.which(options.peer_python) is None:
        print(
            f"error: expected --rounds >= 1 and a Python as --peer-python, found {options.rounds} "
            f"and {options.peer_python}", file=sys.stderr,
        )  # fmt: skip
        return 2
    if options.table:
        import reproduce

        files = [file for file in FILES.values() if file.is_file()]
        tables = [table(json.loads(file.read_text())) for file in files]
        reproduce.rewrite("kmeans", "\n\n".join([*tables, "\n".join(roofline())]))
        return 0
    # Contenders share the memory of an accelerator with this process.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    result = measure(options)
    print(table(result))
    return 0


def measure(options: Options) -> dict[str, Any]:
    """Run all contenders in rounds; the result file is written after every workload."""
    import numpy as np

    from deepclust_jax.report import environment, scores

    result: dict[str, Any] = {"workloads": {}}
    machine = environment.environment()
    platform = machine["device"]["platform"]
    file = FILES.get(platform, RESULTS / f"kmeans_speed_{platform}.json")
    if file.is_file() and not options.quick:
        result = json.loads(file.read_text())
    result["environment"] = machine
    device = environment.processor() if platform == "cpu" else machine["device"]["kind"]
    # Other workloads may be beside others.
    result["peers"] = result.get("peers", {}) | peer_versions(options.peer_python)
    for name in options.workloads:
        work = WORKLOADS[name]
        if options.quick:
            small = {"n": min(work.n, 1000), "k": min(work.k, 20)}
            work = dataclasses.replace(work, **small, restarts=min(work.restarts, 2))
        found: dict[str, list[dict[str, float]]] = {}
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder) / "x.npy", rows_of(work))
            target = 0.0
            if work.task == "solution":
                reference = run_contender(options.peer_python, "reference", folder, work)
                if reference is None:
                    continue
                target = reference["inertia"]
                print(f"{name}: scikit-learn's best of ten {reference}", flush=True)
            for round_ in range(1 if options.quick else options.rounds):
                for contender in TASKS[work.task][1]:
                    if platform != "cpu" and contender not in ON_DEVICE:
                        continue
                    is_ours = contender.startswith("jax")
                    python = sys.executable if is_ours else options.peer_python
                    one = run_contender(python, contender, folder, work, target, 100 * round_)
                    if one is not None:
                        found.setdefault(contender, []).append(one)
                        print(f"{name}, round {round_ + 1}: {contender} {one}", flush=True)
        entry = {"workload": dataclasses.asdict(work), "rounds": found, "cpu": device}
        result["workloads"][name] = entry
        if not options.quick:
            file.parent.mkdir(exist_ok=True)
            scores.write_report(file, result)
    return result


def rows_of(work: Workload) -> Any:
    """Rows float32 [n, d] of a workload."""
    import numpy as np

    if work.rows in ("mnist", "usps", "pendigits"):
        from deepclust_jax import data

        limit = None if work.n in (70_000, 9_298, 10_992) else work.n
        dataset, _ = data.load(work.rows, limit=limit)
        return np.asarray(dataset.x, np.float32).reshape(len(dataset.x), -1)
    if work.rows == "codes":
        return codes(work)
    rng = np.random.default_rng(0)
    centres = 2 * rng.normal(size=(work.k, work.d))
    noise = 1.5 * rng.standard_normal((work.n, work.d), np.float32)
    return (centres[rng.integers(work.k, size=work.n)] + noise).astype(np.float32)


def codes(work: Workload) -> Any:
    """Codes of MNIST by an autoencoder that was trained for three epochs."""
    import jax
    import numpy as np

    from deepclust_jax import data, train
    from deepclust_jax.algorithms import autoencoder

    dataset, _ = data.load("mnist", limit=None if work.n == 70_000 else work.n)
    algorithm = autoencoder.build(autoencoder.Config(embed_dim=work.d), dataset.x.shape[1:])
    keys = jax.random.split(jax.random.key(0), 1)
    found = train.fit(keys, algorithm, dataset.x, epochs=3, refresh_every=0)
    return np.asarray(train.embed(algorithm, found.state, dataset.x)[0][0])


def run_contender(
    python: str, name: str, folder: str, work: Workload, target: float = 0.0, seed: int = 0
) -> dict | None:
    """What a contender measured, in a process of its own; None, and a line why, for a peer that
    does not run under that Python."""
    from deepclust_jax import command  # here: a peer's Python need not have the project

    args = [python, __file__, "--contender", name, str(Path(folder) / "x.npy")]
    args += [json.dumps(dataclasses.asdict(work)), str(target), str(seed)]
    found, reason = command.run_apart(args)
    if reason and name not in (*PEERS, "reference"):
        raise SystemExit(f"error: {name} failed: {reason}")
    if reason:
        print(f"{name} does not run here: {reason}", flush=True)
    return found


def contend(
    name: str, file: Path, work: Workload, target: float = 0.0, seed: int = 0
) -> dict[str, float]:
    """Time one contender on the rows of a file."""
    import numpy as np

    x = np.load(file, allow_pickle=False)
    first = x[np.random.default_rng(1).choice(len(x), work.k, replace=False)].copy()
    if work.task == "balanced":
        return time_calls(BALANCED[name](x, work.k), lambda labels: scatter(x, labels))
    if work.task == "dbscan":
        return time_calls(DBSCANS[name](x, fifth_distance(x)), lambda labels: scatter(x, labels))
    if work.task == "neighbours":
        return time_calls(NEAREST[name](x, work.k), lambda index: reach(x, index))
    if work.task == "seeding":
        return time_calls(SEEDINGS[name](x, work.k), lambda centroids: inertia(x, centroids))
    if name == "reference":
        return reference(x, work.k)
    if work.task == "solution":
        return time_to_target(SOLVERS[name], x, work.k, 1.001 * target, seed)
    run = CONTENDERS[name](x, first, work)
    if work.task == "call":
        return time_calls(lambda: run(work.iterations[1]), lambda centroids: inertia(x, centroids))
    short, long = work.iterations
    run(short)
    free = reset_peak_memory()
    slopes, centroids = [], first
    for _ in range(5):
        start = time.perf_counter()
        run(short)
        middle = time.perf_counter()
        centroids = run(long)
        took = time.perf_counter() - middle - (middle - start)
        slopes.append(1e3 * took / (long - short))
    memory = device_memory(x) if on_device() else peak_memory() - free
    found = {"ms": statistics.median(slopes), "inertia": inertia(x, centroids)}
    return found if memory is None else found | {"extra_mib": memory / 2**20}


def time_calls(call: Callable[[], Any], judge: Callable[[Any], float]) -> dict[str, float]:
    """The second call, and what the first took longer."""
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    start = time.perf_counter()
    centroids = call()
    second = time.perf_counter() - start
    return {"ms": 1e3 * second, "first_ms": 1e3 * (first - second), "inertia": judge(centroids)}


def reference(x: Any, k: int) -> dict[str, float]:
    """scikit-learn's best of ten converged runs."""
    from sklearn.cluster import KMeans

    start = time.perf_counter()
    model = KMeans(k, n_init=10, random_state=0).fit(x)
    return {"ms": 1e3 * (time.perf_counter() - start), "inertia": float(model.inertia_)}


def time_to_target(
    solver: Callable[[Any, int, int], Any], x: Any, k: int, target: float, seed: int
) -> dict[str, float]:
    """Milliseconds of calls with one seed after another until the inertia is low enough; compiled
    before. At most twenty calls or five minutes: what does not get there is not a number."""
    solver(x, k, seed + 99)
    took, calls = 0.0, 0
    while calls < 20 and took < 300:
        start = time.perf_counter()
        centroids = solver(x, k, seed + calls)
        took += time.perf_counter() - start
        calls += 1
        found = inertia(x, centroids)
        if found <= target:
            return {"ms": 1e3 * took, "calls": calls, "inertia": found}
    return {"ms": math.nan, "calls": calls, "inertia": found}


def inertia(x: Any, centroids: Any) -> float:
    """Sum of squared distances of rows to the nearest centroid, in float64."""
    import numpy as np

    c = np.asarray(centroids, np.float64)
    total = 0.0
    for start in range(0, len(x), 20_000):
        rows = x[start : start + 20_000].astype(np.float64)
        scores = np.sum(c**2, axis=1)[None, :] - 2.0 * rows @ c.T
        total += float(np.sum(rows**2) + np.sum(scores.min(axis=1)))
    return total


def scatter(x: Any, labels: Any) -> float:
    """Sum of squared distances of rows to the mean of their cluster; noise is one of its own."""
    import numpy as np

    labels = np.asarray(labels)
    rows = (x[labels == j].astype(np.float64) for j in np.unique(labels))
    return float(sum(((part - part.mean(axis=0)) ** 2).sum() for part in rows))


def reach(x: Any, index: Any) -> float:
    """Sum of squared distances of 1,000 rows to the neighbours [n, k] found for them."""
    import numpy as np

    some = np.random.default_rng(0).permutation(len(x))[:1000]
    apart = x[some][:, None, :].astype(np.float64) - x[np.asarray(index)[some]]
    return float((apart**2).sum())


def fifth_distance(x: Any) -> float:
    """Median distance of 1,000 rows to the fifth nearest row, itself among them."""
    import numpy as np
    from sklearn.neighbors import NearestNeighbors

    some = x[np.random.default_rng(0).permutation(len(x))[:1000]]
    return float(np.median(NearestNeighbors(n_neighbors=5).fit(x).kneighbors(some)[0][:, -1]))


def reset_peak_memory() -> int:
    """Make the peak that Linux keeps the memory held now, which is returned in bytes."""
    with contextlib.suppress(OSError):  # elsewhere the peak is that of the whole process
        Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def peak_memory() -> int:
    """Most memory held since it was reset, in bytes; 0 where there is no /proc."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def on_device() -> bool:
    """Whether there is an accelerator, as far as the library in use tells."""
    if "jax" in sys.modules:
        return sys.modules["jax"].default_backend() != "cpu"
    return "torch" in sys.modules and sys.modules["torch"].cuda.is_available()


def device_memory(x: Any) -> int | None:
    """Most memory held on the accelerator beyond the rows, in bytes, where it is told."""
    if "jax" in sys.modules:
        told = sys.modules["jax"].devices()[0].memory_stats() or {}
        return told["peak_bytes_in_use"] - x.nbytes if "peak_bytes_in_use" in told else None
    return sys.modules["torch"].cuda.max_memory_allocated() - x.nbytes


def _jax(x: Any, first: Any, work: Workload) -> Callable[[int], Any]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from deepclust_jax.clustering import kmeans

    key = jax.random.key(0)
    # Iterations are timed on rows that are on the device, calls from NumPy rows on.
    rows = jnp.array(x) if work.task == "iterations" else x
    settings = {"init": first} if work.task == "iterations" else {"n_init": work.restarts}

    def run(iterations):
        found = kmeans.fit(key, rows, work.k, max_iter=iterations, tol=0.0, **settings)
        return np.asarray(jax.block_until_ready(found).centroids)

    return run


def _jax_sharded(x: Any, first: Any, work: Workload) -> Callable[[int], Any]:
    import jax

    jax.config.update("jax_num_cpu_devices", 2)  # cores, where there is no accelerator
    import numpy as np

    from deepclust_jax.clustering import sharded

    key, rows = jax.random.key(0), x
    if work.task == "iterations":
        whole = len(x) - len(x) % 2
        mesh = jax.make_mesh((2,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
        spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
        rows = jax.device_put(x[:whole], spec)
    settings = {"init": first} if work.task == "iterations" else {"n_init": work.restarts}

    def run(iterations):
        found = sharded.fit(key, rows, work.k, max_iter=iterations, tol=0.0, **settings)
        return np.asarray(jax.block_until_ready(found).centroids)

    return run


def _sklearn(x: Any, first: Any, work: Workload, *, intel: bool = False) -> Callable[[int], Any]:
    if intel:
        from sklearnex.cluster import KMeans
    else:
        from sklearn.cluster import KMeans
    start = {"init": first, "n_init": 1}
    if work.task == "call":
        start = {"init": "k-means++", "n_init": work.restarts, "random_state": 0}

    def run(iterations):
        model = KMeans(work.k, max_iter=iterations, tol=0, algorithm="lloyd", **start)
        return model.fit(x).cluster_centers_

    return run


def _intelex(x: Any, first: Any, work: Workload) -> Callable[[int], Any]:
    return _sklearn(x, first, work, intel=True)


def _faiss(x: Any, first: Any, work: Workload) -> Callable[[int], Any]:
    import faiss

    def run(iterations):
        model = faiss.Kmeans(
            x.shape[1],
            work.k,
            niter=iterations,
            nredo=work.restarts,
            min_points_per_centroid=1,
            max_points_per_centroid=len(x),
        )
        model.train(x, init_centroids=first if work.task == "iterations" else None)
        return model.centroids

    return run


def _superkmeans(x: Any, first: Any, work: Workload) -> Callable[[int], Any]:
    from superkmeans import SuperKMeans  # chooses its own first centroids

    def run(iterations):
        model = SuperKMeans(
            work.k,
            x.shape[1],
            hierarchical=False,
            iters=iterations,
            sampling_fraction=1.0,
            max_points_per_cluster=len(x),
            use_blas_only=True,  # faster than its pruning on all workloads but `a`
            early_termination=False,
        )
        return model.train(x)

    return run


def _torch(x: Any, first: Any, work: Workload) -> Callable[[int], Any]:
    import torch

    device, scores = ("cuda", 2**28) if torch.cuda.is_available() else ("cpu", 2**20)
    rows, block = torch.from_numpy(x).to(device), max(scores // max(work.k, work.d), 256)

    def run(iterations):
        c = torch.from_numpy(first).to(device)
        for _ in range(iterations):
            sums = torch.zeros_like(c)
            counts = torch.zeros(work.k, device=device)
            squares = (c**2).sum(1)
            for part in rows.split(block):
                labels = torch.addmm(squares[None], part, c.T, alpha=-2.0).argmin(1)
                sums.index_add_(0, labels, part)
                counts += torch.bincount(labels, minlength=work.k)
            c = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], c)
        return c.cpu().numpy()

    return run


def _flash(x: Any, first: Any, work: Workload) -> Callable[[int], Any]:
    import torch
    from flash_kmeans import batch_kmeans_Euclid

    if not torch.cuda.is_available():
        raise RuntimeError("flash-kmeans needs a GPU")
    rows, start = torch.from_numpy(x).cuda()[None], torch.from_numpy(first).cuda()[None]

    def run(iterations):
        # A negative tolerance: all iterations, as everybody else.
        found = batch_kmeans_Euclid(
            rows, work.k, max_iters=iterations, tol=-1.0, init_centroids=start.clone()
        )
        return found[1][0].cpu().numpy()

    return run


def _seed_jax(x: Any, k: int, name: str = "k-means++") -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from deepclust_jax.clustering import kmeans

    rows, weights = jnp.array(x), jnp.ones(len(x))
    seed = jax.jit(kmeans.SEEDINGS[name], static_argnums=2)
    return lambda: np.asarray(seed(jax.random.key(0), rows, k, weights))


def _seed_sklearn(x: Any, k: int) -> Callable[[], Any]:
    from sklearn.cluster import kmeans_plusplus

    return lambda: kmeans_plusplus(x, k, random_state=0)[0]


def _solve_jax(x: Any, k: int, seed: int) -> Any:
    import jax
    import numpy as np

    from deepclust_jax.clustering import kmeans

    return np.asarray(kmeans.fit(jax.random.key(seed), x, k).centroids)


def _solve_sharded(x: Any, k: int, seed: int) -> Any:
    import jax

    if seed % 100 == 99:  # the first call
        jax.config.update("jax_num_cpu_devices", 2)
    import numpy as np

    from deepclust_jax.clustering import sharded

    return np.asarray(sharded.fit(jax.random.key(seed), x, k).centroids)


def _solve_sklearn(x: Any, k: int, seed: int) -> Any:
    from sklearn.cluster import KMeans

    return KMeans(k, n_init=1, random_state=seed).fit(x).cluster_centers_


def _solve_intelex(x: Any, k: int, seed: int) -> Any:
    from sklearnex.cluster import KMeans

    return KMeans(k, n_init=1, random_state=seed).fit(x).cluster_centers_


def _solve_faiss(x: Any, k: int, seed: int) -> Any:
    import faiss

    model = faiss.Kmeans(x.shape[1], k, niter=100, seed=seed, max_points_per_centroid=len(x))
    model.train(x)
    return model.centroids


def _balance_jax(x: Any, k: int) -> Callable[[], Any]:
    import jax
    import numpy as np

    from deepclust_jax.clustering import balanced

    start = first_by_sklearn(x, k)
    return lambda: np.asarray(balanced.fit(jax.random.key(0), x, k, init=start).labels)


def _balance_constrained(x: Any, k: int) -> Callable[[], Any]:
    from k_means_constrained import KMeansConstrained

    model = KMeansConstrained(
        k, size_min=len(x) // k, size_max=-(-len(x) // k), init=first_by_sklearn(x, k), n_init=1
    )
    return lambda: model.fit(x).labels_


def first_by_sklearn(x: Any, k: int) -> Any:
    """Centroids of one run of scikit-learn's k-means."""
    from sklearn.cluster import KMeans

    return KMeans(k, n_init=1, random_state=0).fit(x).cluster_centers_


def _dbscan_jax(x: Any, eps: float) -> Callable[[], Any]:
    import numpy as np

    from deepclust_jax.clustering import dbscan

    return lambda: np.asarray(dbscan.fit(x, eps).labels)


def _dbscan_sklearn(x: Any, eps: float) -> Callable[[], Any]:
    from sklearn.cluster import DBSCAN

    return lambda: DBSCAN(eps=eps, n_jobs=-1).fit_predict(x)


def _nearest_jax(x: Any, k: int) -> Callable[[], Any]:
    import numpy as np

    from deepclust_jax.clustering import neighbors

    return lambda: np.asarray(neighbors.nearest(x, k).index)


def _nearest_sklearn(x: Any, k: int) -> Callable[[], Any]:
    from sklearn.neighbors import NearestNeighbors

    model = NearestNeighbors(n_neighbors=k, n_jobs=-1)
    return lambda: model.fit(x).kneighbors(return_distance=False)


def _nearest_faiss(x: Any, k: int) -> Callable[[], Any]:
    import faiss

    def search():
        index = faiss.IndexFlatL2(x.shape[1])
        index.add(x)
        return index.search(x, k + 1)[1][:, 1:]  # the first is mostly the row itself

    return search


BALANCED = {"jax": _balance_jax, "k-means-constrained": _balance_constrained}
DBSCANS = {"jax": _dbscan_jax, "scikit-learn": _dbscan_sklearn}
NEAREST = {"jax": _nearest_jax, "scikit-learn": _nearest_sklearn, "faiss": _nearest_faiss}
SOLVERS = {
    "jax": _solve_jax,
    "jax, 2 devices": _solve_sharded,
    "scikit-learn": _solve_sklearn,
    "scikit-learn-intelex": _solve_intelex,
    "faiss": _solve_faiss,
}

CONTENDERS = {
    "jax": _jax,
    "jax, 2 devices": _jax_sharded,
    "scikit-learn": _sklearn,
    "scikit-learn-intelex": _intelex,
    "faiss": _faiss,
    "superkmeans": _superkmeans,
    "torch": _torch,
    "flash-kmeans": _flash,
}
SEEDINGS = {
    "jax": _seed_jax,
    "jax, k-means||": lambda x, k: _seed_jax(x, k, "k-means||"),
    "scikit-learn": _seed_sklearn,
}


def table(result: dict[str, Any]) -> str:
    """The tables in Markdown: median, range, and how many times the median of jax that is."""
    groups = ("iterations", "call", "solution"), ("seeding", "balanced", "dbscan", "neighbours")
    machine, peers = result["environment"], result["peers"]
    cpus = cpus_of(result["workloads"])
    shown = ", ".join(f"{name} {version}" for name, version in sorted(peers.items()))
    where = f"{machine['cores']} cores of {'; '.join(cpus)}"
    if machine["device"]["platform"] != "cpu":
        where = f"one {'; '.join(cpus)}"
    counts = {len(times) for e in result["workloads"].values() for times in e["rounds"].values()}
    rounds = "–".join(str(count) for count in sorted({min(counts), max(counts)}))
    rounds += " round" if rounds == "1" else " rounds"
    return "\n".join(
        [
            *(line for tasks in groups for line in _table(result["workloads"], tasks, cpus)),
            f"float32, {where}; {rounds}, jax "
            f"{machine['versions']['jax']}; {shown}. `python scripts/benchmark_kmeans.py`",
        ]
    )


def cpus_of(workloads: dict[str, Any]) -> list[str]:
    """Processors of the workloads; from the second on with a dagger for each, which marks rows."""
    found = dict.fromkeys(
        entry.get("cpu", "a processor not recorded") for entry in workloads.values()
    )
    return [f"{name}{(' ' + '†' * i) * (i > 0)}".strip() for i, name in enumerate(found)]


def _table(workloads: dict[str, Any], tasks: tuple[str, ...], cpus: list[str]) -> list[str]:
    """Lines of the table of workloads with these tasks; none where there is no such workload."""
    entries = {name: e for name, e in workloads.items() if e["workload"]["task"] in tasks}
    found = [entry["rounds"] for entry in entries.values()]
    every = CONTENDERS | SEEDINGS | BALANCED
    names = [name for name in every if any(name in rounds for rounds in found)]
    heads = [name.replace("||", " parallel") for name in names]  # a bar parts the columns
    has_memory = any("extra_mib" in rounds["jax"][0] for rounds in found)
    heads += ["extra MiB of jax, least and most of the peers"] if has_memory else []
    lines = [f"| workload | {' | '.join(heads)} |", "|" + "---|" * (len(heads) + 1)]
    for name, entry in entries.items():
        work, rounds = Workload(**entry["workload"]), entry["rounds"]
        cpu = entry.get("cpu", "a processor not recorded")
        marks = next(other[len(cpu) :].strip() for other in cpus if other.split(" †")[0] == cpu)
        what = f"{name}{marks}: {work.rows} {work.n:,} × {work.d}"
        what += f", k {work.k:,}" if work.k else ""
        what += f", {work.restarts} restarts" if work.restarts > 1 else ""
        cells = [_cell(rounds.get(contender), rounds["jax"]) for contender in names]
        cells += [_memory(rounds)] if has_memory else []
        lines.append(f"| {what}, {TASKS[work.task][0]} | {' | '.join(cells)} |")
    return [*lines, ""] if entries else []


def _memory(rounds: dict[str, list[dict]]) -> str:
    medians = {
        contender: statistics.median(one["extra_mib"] for one in times)
        for contender, times in rounds.items()
        if "extra_mib" in times[0]
    }
    peers = [mib for contender, mib in medians.items() if contender in PEERS]
    return f"{medians['jax']:,.0f}, {min(peers):,.0f}–{max(peers):,.0f}" if peers else ""


# By its maker's data sheet: float32 products, each of six of bfloat16, and memory.
CHIPS = {"TPU v5e": (197e12 / 6, 0.82e12)}


def roofline() -> list[str]:
    """Least milliseconds of an iteration where nothing was measured, from shapes."""
    lines = ["| on paper, ms per iteration | blocks by XLA | fused kernel |", "|---|---|---|"]
    for chip, (flops, memory) in CHIPS.items():
        for name in ("c", "d"):
            work = WORKLOADS[name]
            product = 2 * work.n * work.d * work.k / flops
            rows, scores = (4 * work.n * m / memory for m in (work.d, 2 * work.k))
            update = max(product, rows)  # the product with one-hot labels
            times = (1e3 * t for t in (max(product, rows) + scores + update,
                                       max(product, rows) + update))  # fmt: skip
            cells = " | ".join(f"{t:.2f}" for t in times)
            lines.append(f"| {name} on {chip} | {cells} |")
    return lines


def _cell(rounds: list[dict] | None, ours: list[dict]) -> str:
    if not rounds:
        return ""
    times = [math.nan if one["ms"] is None else one["ms"] for one in rounds]
    median = statistics.median(times)
    if math.isnan(median):
        return "not reached"
    digits = 2 if median < 10 else 1 if median < 100 else 0
    cell = f"{median:,.{digits}f} ({min(times):,.{digits}f}–{max(times):,.{digits}f})"
    ratio = median / statistics.median(one["ms"] for one in ours)
    return cell if rounds is ours else f"{cell} {ratio:.2f}×"


def peer_versions(python: str) -> dict[str, str]:
    """Versions of the peers under a Python, of those that are installed."""
    code = "import importlib.metadata as m; print(m.version({!r}))"
    versions = {}
    for package in ("faiss-cpu" if name == "faiss" else name for name in PEERS):
        done = subprocess.run([python, "-c", code.format(package)], capture_output=True, text=True)
        if done.returncode == 0:
            versions[package] = done.stdout.strip()
    return versions


if __name__ == "__main__":
    sys.exit(main())
