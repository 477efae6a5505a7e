# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Pictures: which way is up, and what is shown
#
# Clothes, and no labels. A network is asked how each picture was turned, a question it makes the
# answers to itself; to tell it must see what the picture shows. Its features go to k-means, and
# then, in MMDC, features and clusters are trained together.
#
# Fashion-MNIST is read from the folder `DEEPCLUST_DATA_DIR` or downloaded once; a folder of square
# pictures of yours works in place of its name. It takes about five minutes on a laptop's CPU.

# %%
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from IPython.display import Image, display

from deepclust_jax import augment, data, metrics, train
from deepclust_jax.algorithms import mmdc, rotation
from deepclust_jax.clustering import kmeans
from deepclust_jax.report import figures, scores

FAST = "DEEPCLUST_FAST" in os.environ  # set by the tests, which only check that all cells run
N_SEEDS, EPOCHS, LIMIT, WIDTHS = (2, 1, 200, (8, 8)) if FAST else (3, 8, 2000, (16, 32, 64))

# %% [markdown]
# ## From pictures to rows
# `load` gives pictures in 0..1. The labels come apart, and nothing below sees them before the last
# cell.

# %%
dataset, labels = data.load("fashion_mnist", limit=LIMIT)
x = dataset.x
print(f"{len(x)} pictures {x.shape[1:]} of {dataset.kind} data")


def show(pictures, clusters, distances):
    """The pictures nearest to the mean of each cluster, a row for each."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples.png"
        figures.sample_images(path, pictures, clusters, distances)
        display(Image(path.read_bytes()))


def distances(z, clusters):
    """Squared distance of each code to the mean of its cluster."""
    means = np.stack([z[clusters == c].mean(axis=0) for c in clusters])
    return np.sum((z - means) ** 2, axis=1)


# %% [markdown]
# ## The question
# All four quarter turns of a picture are in one batch. Here of eight pictures, a row for each turn:

# %%
turned = np.asarray(rotation.turns(jnp.asarray(dataset.raw[:8])))
show(turned, np.repeat(np.arange(4), 8), np.tile(np.arange(8.0), 4))

# %% [markdown]
# ## Learn to answer it
# Three seeds train in one program. How often a turn is found says whether the question can be
# answered; it is no score of clusters.

# %%
keys = jax.random.split(jax.random.key(0), N_SEEDS)
config = rotation.Config(hidden=WIDTHS, embed_dim=16, n_init=3)
turns = rotation.build(config, x.shape[1:])
fitted = train.fit(keys, turns, x, epochs=EPOCHS, refresh_every=0, refresh_at_end=True)
print("turns found, first epoch", fitted.metrics["rotation_accuracy"][0].round(3))
print("turns found, last epoch ", fitted.metrics["rotation_accuracy"][-1].round(3))

# %% [markdown]
# ## Which block?
# The last block knows about turns, those before it about shapes. Features of every block are
# clustered, and the block that labels is the one whose clusters are found again most surely in
# other rows; no label decides.

# %%
blocks = {}
for block in range(len(WIDTHS)):
    state = fitted.state.replace(block=jnp.full(N_SEEDS, block))
    blocks[block] = train.embed(turns, state, x)[1]
z, clusters = train.embed(turns, fitted.state, x)
print("block that labels, by seed:", 1 + np.asarray(fitted.state.block))

# %%
chosen, reason = scores.choose(clusters, fitted.metrics["loss"][-1])
print(reason)
show(dataset.raw, clusters[chosen], distances(z[chosen], clusters[chosen]))

# %% [markdown]
# ## Clusters and turns together
# MMDC goes on from there: half of its steps are turns alone, then each picture is also given a
# point of a mixture with one component for each cluster, so that all points are taken and the
# pictures have to move as little as possible. Pictures are turned and shifted a little at random.

# %%
half = EPOCHS * -(-len(x) // 256)
joint = mmdc.build(
    mmdc.Config(hidden=WIDTHS, turns_first=half), x.shape[1:], augment=augment.affine
)
both = train.fit(keys, joint, x, epochs=2 * EPOCHS, refresh_every=0)
codes, groups = train.embed(joint, both.state, x)
chosen, reason = scores.choose(groups, both.metrics["loss"][-1])
print(reason)
show(dataset.raw, groups[chosen], distances(codes[chosen], groups[chosen]))

# %% [markdown]
# ## Scores
# Now, and only now, the labels: accuracy and normalised mutual information in percent, mean ±
# standard deviation over the seeds.

# %%
rows = x.reshape(len(x), -1)
baseline = jax.vmap(lambda key: kmeans.fit(key, rows, 10).labels)(keys)
results = {"k-means on the pixels": baseline}
results |= {f"rotation, block {1 + block}": found for block, found in blocks.items()}
results |= {"rotation, block of its own": clusters, "mmdc": groups}
print(f"{'':26}{'accuracy':>14}{'NMI':>14}")
for name, by_seed in results.items():
    line = f"{name:26}"
    for score in ("accuracy", "nmi"):
        values = [100 * metrics.external_scores(labels, np.asarray(c))[score] for c in by_seed]
        line += f"{np.mean(values):7.1f} ± {np.std(values, ddof=1):4.1f}"
    print(line)

# %% [markdown]
# ## From the command line
# A finished run is data for the next one: its features, with the same labels and pictures.
# ```bash
# python scripts/train_rotation.py --data fashion_mnist --seeds 3
# python scripts/train_deep_kmeans.py --data runs/fashion_mnist-rotation --method n2d --seeds 3
# python scripts/train_deep_kmeans.py --data fashion_mnist --method mmdc --augment affine --seeds 3
# ```
