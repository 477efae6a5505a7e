"""Training throughput of the autoencoder beside ClustPy and a plain PyTorch loop, in one run.

    python scripts/benchmark_training.py --data mnist --torch-python /path/to/python-with-torch
    python scripts/benchmark_training.py --table              # rewrites its table

Autoencoder 784-500-500-2000-10, batch 256, Adam 1e-3. Every contender runs in a process of its own,
with all cores, one after another in rounds, so that a drift of the machine meets all of them.
Compilation and the first epoch are outside the time; examples per second are medians over rounds.
The row "limit" is a yardstick: the products of the same training and nothing else, at the rate of
one large product in float32.
Last comes the most memory that a whole run of ten seeds on all rows of the data set takes.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent.parent / "results" / "training_speed.json"
BATCH, WIDTHS, RATE = 256, (500, 500, 2000, 10), 1e-3
OURS = ("jax", "jax, 4 seeds", "jax, bfloat16", "limit, float32")
PEERS = ("pytorch", "clustpy")


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare training throughput, or write the table."""

    data: str = "mnist"
    """Data set by name, flattened to rows."""

    rounds: int = 5
    """Times that every contender runs."""

    epochs: int = 2
    """Timed epochs per run."""

    limit: int = 25_600
    """Rows, 100 batches."""

    torch_python: str = sys.executable
    """Python with PyTorch and ClustPy: pip install -e ".[bench]"."""

    table: bool = False
    """Measure nothing; rewrite the table in results/README.md."""


def main(args: list[str] | None = None) -> int:
    """Run the script, or in a child process one contender."""
    args = sys.argv[1:] if args is None else args
    if args[:1] == ["--contender"]:
        name, file, epochs = args[1:4]
        print(json.dumps({"seconds": contend(name, file, int(epochs))}))
        return 0
    import tyro

    options = tyro.cli(Options, args=args, config=(tyro.conf.FlagCreatePairsOff,))
    if options.table:
        import reproduce

        reproduce.rewrite("speed", table())
        return 0
    measure(options)
    print(table())
    return 0


def measure(options: Options) -> None:
    """Run all contenders in rounds and write the result file."""
    import numpy as np

    from deepclust_jax import data
    from deepclust_jax.report import environment, scores

    used = memory(options.data)  # first: if this fails no measurement is lost
    dataset, _ = data.load(options.data, limit=options.limit)
    x = np.asarray(dataset.x).reshape(len(dataset.x), -1)
    seconds: dict[str, list[float]] = {name: [] for name in (*OURS, *PEERS)}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.npy"
        np.save(file, x)
        for round_ in range(options.rounds):
            for name in seconds:
                python = sys.executable if name in OURS else options.torch_python
                took = run_contender(python, name, file, options.epochs)
                if took is not None:
                    seconds[name].append(took)
                    print(f"round {round_ + 1}: {name} {took:.2f} s", flush=True)
    rows = len(x) * options.epochs
    result = {
        "command": " ".join(["python scripts/benchmark_training.py", *_shown(options)]),
        "rows": len(x),
        "features": x.shape[1],
        "epochs": options.epochs,
        "examples_per_second": {
            name: [rows * (4 if "4 seeds" in name else 1) / s for s in times]
            for name, times in seconds.items()
            if times
        },
        "memory": used,
        "environment": environment.environment(),
        "peers": peer_versions(options.torch_python),
    }
    RESULT.parent.mkdir(exist_ok=True)
    scores.write_report(RESULT, result)


def memory(name: str) -> dict[str, Any]:
    """Peak memory of a run of ten seeds; how long it trains makes no difference to it."""
    args = f"--data {name} --seeds 10 --pretrain-epochs 1 --epochs 1 --precision bfloat16"
    script = Path(__file__).parent / "train_deep_kmeans.py"
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(script), *args.split(), "--out", folder]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"error: {args} failed: {done.stderr.strip()}")
        report = json.loads((Path(folder) / "report.json").read_text())
    return {
        "command": f"python scripts/train_deep_kmeans.py {args}",
        "peak_bytes": report["peak_memory_bytes"],
    }


def table() -> str:
    """The table in Markdown; ratios are of medians."""
    result = json.loads(RESULT.read_text())
    speeds = result["examples_per_second"]
    median = {name: statistics.median(values) for name, values in speeds.items()}
    lines = [
        "| training | examples per second, median (range) | times ClustPy | times PyTorch |",
        "|---|---|---|---|",
    ]
    for name, values in speeds.items():
        ratios = [
            f"{median[name] / median[peer]:.2f}" if peer in median else "not run"
            for peer in ("clustpy", "pytorch")
        ]
        lines.append(
            f"| {name} | {median[name]:,.0f} ({min(values):,.0f}–{max(values):,.0f}) | "
            f"{' | '.join(ratios)} |"
        )
    versions, peers = result["environment"]["versions"], result["peers"]
    lines += [
        "",
        f"{result['rows']:,} rows × {result['features']}, batch {BATCH}, Adam, float32 but for the "
        f"bfloat16 row, {result['environment']['cores']} CPU cores; jax {versions['jax']}, torch "
        f"{peers['torch']}, clustpy {peers['clustpy']}. limit: the products of the training and "
        "nothing else, at the rate of one product of 2048 × 2048 matrices. "
        f"`{result['command']}`",
        "",
        f"Peak memory of `{result['memory']['command']}`: "
        f"{result['memory']['peak_bytes'] / 1e9:.1f} GB.",
    ]
    return "\n".join(lines)


def run_contender(python: str, name: str, file: Path, epochs: int) -> float | None:
    """Seconds that a contender takes for the timed epochs, in a process of its own.

    None, and a line that says why, for a peer that does not run under that Python.
    """
    from deepclust_jax import command  # here: a peer's Python need not have the project

    args = [python, __file__, "--contender", name, str(file), str(epochs)]
    found, reason = command.run_apart(args)
    if reason and name not in PEERS:
        raise SystemExit(f"error: {name} failed: {reason}")
    if reason:
        print(f"{name} does not run here: {reason}", flush=True)
        return None
    return found["seconds"]


def contend(name: str, file: str, epochs: int) -> float:
    """Train one contender on the rows of a file. -> seconds of the timed epochs."""
    import numpy as np

    x = np.load(file, allow_pickle=False)
    if name == "pytorch":
        return train_pytorch(x, epochs)
    if name == "clustpy":
        return train_clustpy(x, epochs)
    if name == "limit, float32":
        return products_alone(x, epochs)
    return train_jax(x, epochs, seeds=4 if "4 seeds" in name else 1, bfloat16="bfloat16" in name)


def train_jax(x: Any, epochs: int, *, seeds: int, bfloat16: bool) -> float:
    """This project's `train.fit`; the first epoch is not timed."""
    import jax
    import optax

    from deepclust_jax.algorithms import autoencoder

    precision = "bfloat16" if bfloat16 else "float32"
    config = autoencoder.Config(hidden=WIDTHS[:-1], embed_dim=WIDTHS[-1], precision=precision)
    algorithm = autoencoder.build(config, x.shape[1:], optimizer=optax.adam(RATE))
    keys = jax.random.split(jax.random.key(0), seeds)
    return time_fit(keys, algorithm, x, epochs, batch_size=BATCH)


def time_fit(keys: Any, algorithm: Any, x: Any, epochs: int, **options: Any) -> float:
    """Seconds of all epochs of `train.fit` but a first one, without refreshes."""
    import jax

    from deepclust_jax import train

    starts = []

    def on_epoch(epoch, state, metrics):
        if epoch == 1:
            jax.block_until_ready(state)
            starts.append(time.perf_counter())

    found = train.fit(
        keys, algorithm, x, epochs=1 + epochs, refresh_every=0, on_epoch=on_epoch, **options
    )
    jax.block_until_ready(found.state)
    return time.perf_counter() - starts[0]


def products_alone(x: Any, epochs: int) -> float:
    """Seconds of the products of the same training, at the rate of one of 2048 x 2048 matrices."""
    import jax
    import jax.numpy as jnp

    size, repeats = 2048, 30
    a = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(lambda a, b: jnp.dot(a, b) / size)  # stays of one size when repeated
    b = jax.block_until_ready(product(a, a))
    start = time.perf_counter()
    for _ in range(repeats):
        b = product(a, b)
    jax.block_until_ready(b)
    rate = repeats * 2 * size**3 / (time.perf_counter() - start)
    widths = [x.shape[1], *WIDTHS, *reversed(WIDTHS[:-1]), x.shape[1]]
    layers = [2 * a * b for a, b in zip(widths, widths[1:], strict=False)]
    # Forward, and two backward: but nobody needs the gradient of the rows.
    flops = 3 * sum(layers) - layers[0]
    return flops * len(x) * epochs / rate


def train_pytorch(x: Any, epochs: int) -> float:
    """A plain loop over shuffled slices of a tensor, without a data loader's costs."""
    import torch

    widths = [x.shape[1], *WIDTHS, *reversed(WIDTHS[:-1]), x.shape[1]]
    layers: list[torch.nn.Module] = []
    for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False)):
        layers.append(torch.nn.Linear(a, b))
        if i not in (len(WIDTHS) - 1, len(widths) - 2):  # the code and the output are linear
            layers.append(torch.nn.ReLU())
    model, rows = torch.nn.Sequential(*layers), torch.from_numpy(x)

    def loss(numbers):
        batch = rows[numbers]
        return torch.nn.functional.mse_loss(model(batch), batch)

    return time_torch(model, len(rows), BATCH, epochs, loss)


def time_torch(model: Any, n: int, size: int, epochs: int, loss: Callable[[Any], Any]) -> float:
    """Seconds of all epochs but a first one of a plain loop, by Adam, over shuffled slices of n
    rows; `loss` is that of the rows of these numbers."""
    import torch

    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    start = 0.0
    for epoch in range(1 + epochs):
        order = torch.randperm(n)
        for first in range(0, n, size):
            optimizer.zero_grad(set_to_none=True)
            loss(order[first : first + size]).backward()
            optimizer.step()
        if epoch == 0:
            start = time.perf_counter()
    return time.perf_counter() - start


def train_clustpy(x: Any, epochs: int) -> float:
    """ClustPy's `FeedforwardAutoencoder.fit`, its own loader and loss."""
    import torch
    from clustpy.deep.neural_networks import FeedforwardAutoencoder

    def fit(n_epochs):
        model = FeedforwardAutoencoder([x.shape[1], *WIDTHS])
        settings = {"optimizer_params": {"lr": RATE}, "optimizer_class": torch.optim.Adam}
        model.fit(n_epochs, batch_size=BATCH, data=x, **settings)

    fit(1)
    start = time.perf_counter()
    fit(epochs)
    return time.perf_counter() - start


def peer_versions(python: str) -> dict[str, str]:
    """Versions of torch and clustpy under a Python; "not installed" where they are not."""
    code = "import importlib.metadata as m; print(m.version({!r}))"
    versions = {}
    for package in ("torch", "clustpy"):
        done = subprocess.run([python, "-c", code.format(package)], capture_output=True, text=True)
        versions[package] = done.stdout.strip() if done.returncode == 0 else "not installed"
    return versions


def _shown(options: Options) -> list[str]:
    """The options that differ from their defaults, but for the path of a Python."""
    shown = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value != field.default and field.name not in ("torch_python", "table"):
            shown += [f"--{field.name.replace('_', '-')}", str(value)]
    return shown


if __name__ == "__main__":
    sys.exit(main())
