"""Speed of pretext training beside a plain PyTorch loop over the same networks, in one run.

    python scripts/benchmark_pretext.py --torch-python /path/to/python-with-torch
    python scripts/benchmark_pretext.py --table               # rewrites its table

rotation: three blocks of convolutions, all four turns of 256 images of Fashion-MNIST a step.
contrastive: a perceptron with batch normalisation, 256 rows of MNIST and their partners a step.
next_token: a GRU of 128 units with 4,096 sub-words, 32 texts of AG News a step, without padding.
All by Adam in float32. Every contender runs in a process of its own, with all cores, one after
another in rounds, so that a drift of the machine meets all of them. Compilation and the first epoch
are outside the time.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from benchmark_training import RATE, time_fit, time_torch

RESULT = Path(__file__).parent.parent / "results" / "pretext_speed.json"
DATA = {"rotation": "fashion_mnist", "contrastive": "mnist", "next_token": "ag_news"}
ROWS = {"rotation": 2560, "contrastive": 25_600, "next_token": 1920}  # whole batches of each
BATCH = {"rotation": 256, "contrastive": 256, "next_token": 32}
WIDTHS, PARTNERS = (16, 32, 64), 5


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare the speed of pretext training, or write the table."""

    tasks: tuple[Literal["rotation", "contrastive", "next_token"], ...] = tuple(DATA)
    """Pretext tasks."""

    rounds: int = 5
    """Times that every contender runs."""

    epochs: int = 2
    """Timed epochs per run."""

    torch_python: str = sys.executable
    """Python with PyTorch: pip install -e ".[bench]"."""

    table: bool = False
    """Measure nothing; rewrite the table in results/README.md."""


def main(args: list[str] | None = None) -> int:
    """Run the script, or in a child process one contender."""
    args = sys.argv[1:] if args is None else args
    if args[:1] == ["--contender"]:
        name, task, file, epochs = args[1:5]
        loop = train_jax if name == "jax" else TORCH[task]
        print(json.dumps({"seconds": loop(task, np.load(file), int(epochs))}))
        return 0
    import tyro

    options = tyro.cli(Options, args=args, config=(tyro.conf.FlagCreatePairsOff,))
    if options.table:
        import reproduce

        reproduce.rewrite("pretext_speed", table())
        return 0
    if options.rounds < 1 or options.epochs < 1:
        found = f"{options.rounds} and {options.epochs}"
        print(f"error: expected --rounds and --epochs >= 1, found {found}", file=sys.stderr)
        return 2
    measure(options)
    print(table())
    return 0


def measure(options: Options) -> None:
    """Run all contenders in rounds and write the result file."""
    from deepclust_jax import data
    from deepclust_jax.report import environment, scores

    torch = torch_version(options.torch_python)  # first: without it nothing can be compared
    seconds: dict[str, dict[str, list[float]]] = {
        task: {"jax": [], "pytorch": []} for task in options.tasks
    }
    with tempfile.TemporaryDirectory() as folder:
        for task in options.tasks:
            scaling = "tokens" if task == "next_token" else "auto"
            x = data.load(DATA[task], limit=ROWS[task], scaling=scaling)[0].x
            x = x.reshape(len(x), -1) if task == "contrastive" else x
            np.save(Path(folder) / f"{task}.npy", x)
        for round_ in range(options.rounds):
            for task, found in seconds.items():
                for name, times in found.items():
                    python = sys.executable if name == "jax" else options.torch_python
                    file = str(Path(folder) / f"{task}.npy")
                    times.append(run_contender(python, name, task, file, options.epochs))
                    print(f"round {round_ + 1}: {task} {name} {times[-1]:.2f} s", flush=True)
    result = {
        "epochs": options.epochs,
        "seconds": seconds,
        "environment": environment.environment(),
        "torch": torch,
    }
    RESULT.parent.mkdir(exist_ok=True)
    scores.write_report(RESULT, result)


def run_contender(python: str, name: str, task: str, file: str, epochs: int) -> float:
    """Seconds that a contender takes for the timed epochs, in a process of its own."""
    from deepclust_jax import command  # here: a peer's Python need not have JAX

    args = [python, __file__, "--contender", name, task, file, str(epochs)]
    found, reason = command.run_apart(args)
    if reason:
        raise SystemExit(f"error: {task} by {name} failed: {reason}")
    return found["seconds"]


def torch_version(python: str) -> str:
    """The version of torch under a Python."""
    code = "import importlib.metadata as m; print(m.version('torch'))"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise SystemExit(
            f'error: expected a Python with PyTorch, found {python}; pip install -e ".[bench]" '
            "there, or give another --torch-python"
        ) from None
    return done.stdout.strip()


def table() -> str:
    """The table in Markdown; ratios are of medians, above 1 this project is faster."""
    if not RESULT.exists():
        raise SystemExit(f"error: expected {RESULT}, which the script writes; run it first")
    result = json.loads(RESULT.read_text())
    lines = [
        "| pretext | rows per second, median (range) | PyTorch | times PyTorch |",
        "|---|---|---|---|",
    ]
    for task, found in result["seconds"].items():
        rows = ROWS[task] * result["epochs"]
        speeds = [[rows / s for s in found[name]] for name in ("jax", "pytorch")]
        shown = (f"{statistics.median(s):,.0f} ({min(s):,.0f}–{max(s):,.0f})" for s in speeds)
        ratio = statistics.median(speeds[0]) / statistics.median(speeds[1])
        lines.append(f"| {task} | {' | '.join(shown)} | {ratio:.2f} |")
    made = result["environment"]
    lines += [
        "",
        f"The same networks, losses and batches in both (logits of next_token twice in jax, which "
        f"saves memory), Adam, float32, {made['cores']} CPU cores; "
        f"jax {made['versions']['jax']}, torch {result['torch']}; compilation and the first epoch "
        "apart. `python scripts/benchmark_pretext.py`",
    ]
    return "\n".join(lines)


def train_jax(task: str, x: np.ndarray, epochs: int) -> float:
    """This project's `train.fit`; the first epoch is not timed."""
    import jax

    from deepclust_jax.algorithms import contrastive, next_token, rotation

    more: dict[str, Any] = {"learning_rate": RATE}
    if task == "next_token":
        more |= {"filled": next_token.filled(x)}
    module = {"rotation": rotation, "contrastive": contrastive, "next_token": next_token}[task]
    algorithm = module.build(module.Config(**more), x.shape[1:])
    near = {"neighbors": partners(len(x))} if task == "contrastive" else {}
    key = jax.random.key(0)
    return time_fit(key, algorithm, x, epochs, batch_size=BATCH[task], **near)


def partners(n: int) -> np.ndarray:
    """Rows that may be the partner of each; which they are makes no difference to the time."""
    return np.random.default_rng(0).integers(0, n, (n, PARTNERS))


def rotation_torch(task: str, x: np.ndarray, epochs: int) -> float:
    """The blocks of networks.conv_blocks, and the turns."""
    import math

    import torch
    from torch import nn

    layers: list[nn.Module] = []
    channels = x.shape[3]
    for width in WIDTHS:
        for stride in (1, 2):
            groups = math.gcd(width, max(1, width // 8))
            layers += [nn.Conv2d(channels, width, 3, stride, 1, bias=False)]
            layers += [nn.GroupNorm(groups, width), nn.ReLU()]
            channels = width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4))
    # Channels last is the faster one on a CPU.
    model = model.to(memory_format=torch.channels_last)
    rows = torch.from_numpy(x).permute(0, 3, 1, 2)

    def loss(batch):
        images = rows[batch]
        turned = torch.cat([torch.rot90(images, turn, (2, 3)) for turn in range(4)])
        turned = turned.contiguous(memory_format=torch.channels_last)
        true = torch.arange(4).repeat_interleave(len(images))
        return nn.functional.cross_entropy(model(turned), true)

    return time_torch(model, len(rows), BATCH[task], epochs, loss)


def contrastive_torch(task: str, x: np.ndarray, epochs: int) -> float:
    """The perceptron of networks.normalised_encoder, and NT-Xent."""
    import torch
    from torch import nn

    layers: list[nn.Module] = []
    for a, b in ((x.shape[1], 512), (512, 512)):
        layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(512, 64))
    rows, near = torch.from_numpy(x), torch.from_numpy(partners(len(x)))

    def loss(batch):
        own = near[batch, torch.randint(PARTNERS, (len(batch),))]
        z = nn.functional.normalize(model(torch.cat([rows[batch], rows[own]])))
        logits = (z @ z.T / 0.5).fill_diagonal_(-torch.inf)
        pair = torch.arange(len(z)).roll(len(batch))
        return nn.functional.cross_entropy(logits, pair)

    return time_torch(model, len(rows), BATCH[task], epochs, loss)


def next_token_torch(task: str, x: np.ndarray, epochs: int) -> float:
    """The recurrent network of networks.language on windows without padding, and the topic.

    Its memory does not end where a text does, which saves it that; the topic does.
    """
    import torch
    from torch import nn

    from deepclust_jax.data.tokens import PAD, START, VOCABULARY, WINDOW

    class Language(nn.Module):
        def __init__(self, width=128, topics=64):
            super().__init__()
            self.topic = nn.Parameter(0.1 * torch.randn(VOCABULARY, topics))
            self.weight = nn.Parameter(torch.zeros(VOCABULARY))
            self.of_topic = nn.Linear(topics, width, bias=False)
            self.embedding = nn.Embedding(VOCABULARY, width)
            self.memory = nn.GRU(width, width, batch_first=True)
            self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
            self.bias = nn.Parameter(torch.zeros(VOCABULARY))

        def forward(self, tokens, told):
            flat = tokens.flatten()
            weights = torch.exp(self.weight[flat]) * ((flat != PAD) & (flat != START))
            values = torch.cat([weights[:, None] * self.topic[flat], weights[:, None]], 1)
            places = torch.where(flat == START, torch.arange(len(flat)), 0)
            sums = values.cumsum(0)
            sums = sums - sums[places.cummax(0).values]
            topic = (sums[:, :-1] / (sums[:, -1:] + 3)).reshape(*tokens.shape, -1)
            states = self.memory(self.embedding(tokens))[0] + self.of_topic(topic)
            states = states[:, :-1][told]
            return nn.functional.linear(self.head(states), self.embedding.weight, self.bias)

    model, rows = Language(), torch.from_numpy(x).long()

    def loss(batch):
        tokens = rows[batch].flatten()
        tokens = tokens[tokens != PAD]
        tokens = nn.functional.pad(tokens, (0, -len(tokens) % WINDOW), value=PAD)
        tokens = tokens.reshape(-1, WINDOW)
        true = tokens[:, 1:]
        told = (true != PAD) & (true != START)
        return nn.functional.cross_entropy(model(tokens, told), true[told])

    return time_torch(model, len(rows), BATCH[task], epochs, loss)


TORCH = {
    "rotation": rotation_torch, "contrastive": contrastive_torch, "next_token": next_token_torch
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
