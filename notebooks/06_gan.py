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
# # A game: to make rows, and to tell them
#
# A generator makes rows of noise; a discriminator tells them from real ones; each learns from the
# other. What the discriminator sees to tell them goes to k-means. First eight Gaussians on a ring,
# where one can watch the density; then digits.
#
# It needs no data of yours, and takes about seven minutes on a laptop's CPU.

# %%
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from IPython.display import Image, display

from deepclust_jax import data, game, metrics, train
from deepclust_jax.algorithms import gan
from deepclust_jax.report import figures, scores

FAST = "DEEPCLUST_FAST" in os.environ  # set by the tests, which only check that all cells run
N_SEEDS, RING, DIGITS, LIMIT = (2, 2, 1, 200) if FAST else (3, 300, 200, 1797)


# %% [markdown]
# ## Eight modes
# 8,192 points about eight centres. The penalty holds the discriminator's slope where the points
# are; the finer they are beside their whole, the lower it has to be. The rate falls to 0.

# %%
dataset, modes = data.load("ring_8", limit=400 if FAST else 8192)
points = dataset.x
print(f"{len(points)} points about {dataset.n_clusters} centres")
small = gan.Config(
    n_clusters=8,
    embed_dim=8,
    hidden=(64, 64),
    latent_dim=8,
    penalty=0.003,
    learning_rate=3e-3,
)
steps = RING * -(-len(points) // 512)
falling = game.adam(optax.linear_schedule(small.learning_rate, 0.0, steps))
players = gan.build(small, points.shape[1:], optimizer=falling)
nets = gan.build_nets(small, points.shape[1:])
keys = jax.random.split(jax.random.key(0), N_SEEDS)
made = {}


def drawn(draw, *args):
    """What a function of report/figures draws."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        draw(path, *args)
        display(Image(path.read_bytes()))


def watch(epoch, state, terms):
    """Keep what the generator of the first seed makes, now and then."""
    if epoch in (1, RING // 10, RING):
        first = jax.tree.map(lambda leaf: leaf[0], state)
        made[epoch] = np.asarray(
            gan.generate(first, gan.latents(keys[0], len(points), small), nets)
        )


ring = train.fit(
    keys, players, points, epochs=RING, batch_size=512, refresh_every=0, on_epoch=watch
)

# %% [markdown]
# Real points beside made ones, after the first epoch, after a tenth of the training, and at its
# end:

# %%
for found in made.values():
    drawn(figures.made_points, points, found)

# %% [markdown]
# In numbers: are made points where real ones are (precision, density), and real ones where made
# ones are (recall, coverage)? Of every seed:

# %%
for s in range(N_SEEDS):
    own = jax.tree.map(lambda leaf, s=s: leaf[s], ring.state)
    rows = np.asarray(gan.generate(own, gan.latents(keys[s], len(points), small), nets))
    shown = {name: round(value, 2) for name, value in metrics.fidelity(points, rows).items()}
    print(f"seed {s}: {shown}, Fréchet distance {metrics.frechet(points, rows):.4f}")

# %% [markdown]
# ## Digits
# Perceptrons on both sides, and a penalty for pictures. `loss` is the sum of both players' losses,
# which says little about the game; `told`, the share of rows that the discriminator tells right,
# and `spread`, the deviation of made rows over that of real ones, say more. A spread near 0 is a
# collapse.

# %%
digits, labels = data.load("digits", limit=LIMIT)
x = digits.x
config = gan.Config(is_bounded=True, embed_dim=16)
pictures = gan.build(config, x.shape[1:])
nets = gan.build_nets(config, x.shape[1:])
played = train.fit(
    keys, pictures, x, epochs=DIGITS, batch_size=128, refresh_every=0, refresh_at_end=True
)
for name in ("told", "spread"):
    print(f"{name} at the end: {played.metrics[name][-1].round(2)}")

# %% [markdown]
# What the first seed makes, by the clusters that it finds in it: the ten made pictures nearest to
# the mean of each cluster.

# %%
first = jax.tree.map(lambda leaf: leaf[0], played.state)
fakes = np.asarray(gan.generate(first, gan.latents(keys[0], len(x), config), nets))
z = pictures.embed(first, jnp.asarray(fakes))
clusters = np.asarray(pictures.assign(first, z))
sqdist = np.min(np.sum((np.asarray(z)[:, None] - first.centroids[None]) ** 2, axis=2), axis=1)
print(f"made pictures by cluster: {np.bincount(clusters, minlength=config.n_clusters)}")
drawn(figures.sample_images, fakes, clusters, sqdist)

# %% [markdown]
# A walk from one made picture to another, row by row: where the network has learnt what lies
# between, digits turn into others and none is a blend of two.

# %%
ends = jax.random.normal(jax.random.key(1), (2, 8, config.latent_dim))
share = jnp.linspace(0.0, 1.0, 10)[None, :, None]
steps = (ends[0][:, None] * jnp.sqrt(1.0 - share) + ends[1][:, None] * jnp.sqrt(share)).reshape(
    -1, config.latent_dim
)
walk = np.asarray(nets.generator.apply(first.average, steps))
drawn(figures.sample_images, walk, np.repeat(np.arange(8), 10), np.tile(np.arange(10.0), 8))

# %% [markdown]
# ## How good are the clusters?
# Labels are opened here, and nowhere before.

# %%
found = train.embed(pictures, played.state, x)[1]
external = scores.external(found, labels)
for name in ("accuracy", "nmi", "ari"):
    score = external[name]
    print(f"{name}: {100 * score['mean']:.1f} ± {100 * score['std']:.1f} %")
