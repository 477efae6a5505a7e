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
# # Quickstart: from rows to clusters, with a mean and a spread
#
# This notebook clusters scikit-learn's 1,797 handwritten digits: it trains an autoencoder, starts
# DCN (an autoencoder and k-means trained together) from it, and compares both with k-means on the
# pixels. Everything runs for three seeds at once, and the labels are looked at once, at the end.
# It takes about half a minute on a laptop's CPU.

# %%
import os
import tempfile
from pathlib import Path

import jax
import numpy as np
from IPython.display import Image, display

from deepclust_jax import data, metrics, train
from deepclust_jax.algorithms import autoencoder, dcn
from deepclust_jax.clustering import kmeans
from deepclust_jax.report import figures, scores

FAST = "DEEPCLUST_FAST" in os.environ  # set by the tests, which only check that all cells run
N_SEEDS, PRETRAIN_EPOCHS, EPOCHS = (2, 2, 2) if FAST else (3, 100, 50)

# %% [markdown]
# ## Data
# `load` returns two things: the data set, and the labels *apart* from it. Nothing below takes
# `labels` until the last section. A path to a file of yours works in place of the name.

# %%
dataset, labels = data.load("digits")
x, shape = dataset.x, dataset.x.shape[1:]
print(f"{dataset.name}: {dataset.kind} rows {x.shape}, {x.dtype}, {x.min():g} to {x.max():g}")

# %% [markdown]
# ## A population of autoencoders
# An algorithm is five pure functions, made by `build` from a `Config`. `train.fit` with several
# keys trains several runs in one compiled program. `refresh` is the k-means on the code; it is
# called once, after training. Metrics have the shape [epochs, seeds].

# %%
config = autoencoder.Config(n_clusters=10, hidden=(128, 64))
encoder = autoencoder.build(config, shape)
keys = jax.random.split(jax.random.key(0), N_SEEDS)

fitted = train.fit(keys, encoder, x, epochs=PRETRAIN_EPOCHS, refresh_every=0)
pretrained = train.refresh(keys, encoder, fitted.state, x)
print("squared error of a digit, by seed:")
print("first epoch", fitted.metrics["reconstruction"][0].round(2))
print("last epoch ", fitted.metrics["reconstruction"][-1].round(2))

# %% [markdown]
# ## DCN from a warm start
# DCN goes on from trained networks and their centroids. A state is a tree of arrays with a leading
# seed axis, so `vmap` of `warm_start` serves all seeds.

# %%
joint = dcn.build(dcn.Config(n_clusters=10, hidden=(128, 64)), shape)
start = jax.vmap(dcn.warm_start)(train.init(keys, joint, x), pretrained)
found = train.fit(keys, joint, x, epochs=EPOCHS, state=start)
print("distance to the own centroid, by seed:")
print("first epoch", found.metrics["pull"][0].round(3))
print("last epoch ", found.metrics["pull"][-1].round(3))

# %% [markdown]
# ## Codes and clusters
# `train.embed` gives the codes [seeds, n, d] and the clusters [seeds, n] of every run.

# %%
_, first_clusters = train.embed(encoder, pretrained, x)
z, clusters = train.embed(joint, found.state, x)
print("codes", z.shape, "clusters", clusters.shape)

# %% [markdown]
# ## Which run to keep, without labels
# The run that agrees best with the others. The map is its code, projected to two dimensions by PCA
# (clusters that overlap here may be apart in the code) and coloured by cluster.

# %%
chosen, reason = scores.choose(clusters, found.metrics["loss"][-1])
print(reason)
with tempfile.TemporaryDirectory() as folder:
    picture = Path(folder) / "map.png"
    figures.embedding_map(picture, z[chosen], clusters[chosen])
    display(Image(picture.read_bytes()))

# %% [markdown]
# ## k-means alone
# `kmeans.fit` and `kmeans.assign` work on any rows [n, d]. Both are pure, so `vmap` over keys gives
# the baseline of every seed.

# %%
rows = x.reshape(len(x), -1)
baseline = jax.vmap(lambda key: kmeans.fit(key, rows, 10))(keys)
nearest, sqdist = kmeans.assign(rows[:5], baseline.centroids[0])
print("inertia by seed", np.asarray(baseline.inertia).round(1))
print("clusters of the first five rows", nearest, "at squared distance", sqdist.round(1))

# %% [markdown]
# ## Scores
# Now, and only now, the labels: mean ± standard deviation over the seeds, in percent. Accuracy is
# under the best one-to-one matching of clusters to classes. On pictures as small as these, k-means
# on the pixels is a strong baseline, so it belongs into the table.

# %%
results = {
    "k-means on the pixels": np.asarray(baseline.labels),
    "k-means on the code": first_clusters,
    "DCN": clusters,
}
print(f"{'':22}" + "".join(f"{name:>14}" for name in ("accuracy", "NMI", "ARI")))
accuracy = {}
for name, by_seed in results.items():
    row = f"{name:22}"
    for score in (metrics.accuracy, metrics.nmi, metrics.ari):
        values = [100 * score(labels, one) for one in by_seed]
        row += f"{np.mean(values):7.1f} ± {np.std(values, ddof=1):4.1f}"
    accuracy[name] = np.mean([100 * metrics.accuracy(labels, one) for one in by_seed])
    print(row)
kept = 100 * metrics.accuracy(labels, clusters[chosen])
print(f"DCN, accuracy of the run chosen without labels: {kept:.1f}")
print(f"highest mean accuracy: {max(accuracy, key=accuracy.get)}")

# %% [markdown]
# ## From the command line
# ```bash
# python scripts/train_deep_kmeans.py --data digits --method dcn --seeds 3
# ```
# does the same with the wide networks of the papers, and leaves all it found in
# `runs/digits-dcn`:
#
# | file | content |
# |---|---|
# | `report.json` | scores of every seed, mean and deviation, options, versions, device |
# | `labels.npy`, `embeddings.npy`, `centroids.npy` | of the run chosen without labels |
# | `labels_all.npy` | clusters of every run [seeds, n] |
# | `labels_vote.npy` | what most of three runs or more say of each row [n] |
# | `metrics.csv`, `tensorboard/` | metrics of every epoch; the embedding projector |
# | `*.png` | map, cluster sizes, training curves, samples, confusion if there are labels |
# | `config.json` | repeats the run: `--config runs/digits-dcn/config.json` |
# | `checkpoint/` | for `--resume`, and for `scripts/cluster.py`, which assigns new data |
#
# Next: [write your own loss](02_write_your_own_loss.ipynb).
