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
# # Texts: how they go on, and what they are about
#
# News in four sections, and no labels. The usual way is to count words: TF-IDF, its principal
# directions, k-means. Here a small network also reads the texts and tells the next sub-word. What a
# text is about helps it: a mean of the words so far, by weights that are learnt. This topic, of all
# words, where those that few texts have weigh more, is clustered. Both are printed side by side.
#
# AG News is read from the folder `DEEPCLUST_DATA_DIR`; a `.jsonl` or `.txt` file of yours works in
# place of its name. It takes about five minutes on a laptop's CPU.

# %%
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from IPython.display import Image, display

from deepclust_jax import data, metrics, train
from deepclust_jax.algorithms import next_token
from deepclust_jax.clustering import kmeans
from deepclust_jax.data import tokens
from deepclust_jax.report import figures, scores, words

FAST = "DEEPCLUST_FAST" in os.environ  # set by the tests, which only check that all cells run
N_SEEDS, EPOCHS, LIMIT = (2, 1, 120) if FAST else (2, 6, 3000)
K = 4

# %% [markdown]
# ## From texts to rows
# For k-means a text is a row of TF-IDF features; for the network it is a row of numbers of
# sub-words, of a vocabulary that is learnt from these texts.

# %%
counted, labels = data.load("ag_news", limit=LIMIT)
dataset, _ = data.load("ag_news", limit=LIMIT, scaling="tokens")
vocabulary = dataset.preprocessing.settings["vocabulary"]
print(dataset.raw[0])
print(f"{len(counted.x)} texts -> TF-IDF rows {counted.x.shape}, tokens {dataset.x.shape}")
pieces = tokens.decode(dataset.preprocessing.settings, dataset.x[0, 1:12, None])
print(f"of {vocabulary} sub-words, the first text begins {'|'.join(pieces)}")

# %% [markdown]
# ## Learn how texts go on
# Two seeds train in one program. The perplexity is between how many sub-words the network wavers;
# a guess by frequency alone wavers between many more.

# %%
keys = jax.random.split(jax.random.key(0), N_SEEDS)
config = next_token.Config(n_clusters=K, filled=next_token.filled(dataset.x))
reader = next_token.build(config, dataset.x.shape[1:])
fitted = train.fit(
    keys, reader, dataset.x, epochs=EPOCHS, batch_size=32, refresh_every=0, refresh_at_end=True
)
z, clusters = train.embed(reader, fitted.state, dataset.x)
share = np.bincount(dataset.x[dataset.x > tokens.START].astype(int))
share = share[share > 0] / share.sum()
print("perplexity by frequency  ", np.exp(-np.sum(share * np.log(share))).round())
print("perplexity, first epoch  ", np.exp(fitted.metrics["loss"][0]).round())
print("perplexity, last epoch   ", np.exp(fitted.metrics["loss"][-1]).round())

# %% [markdown]
# ## What the clusters are about
# Of the run kept: the words that tell each cluster from the others, and the text nearest to its
# mean.

# %%
chosen, reason = scores.choose(clusters, fitted.metrics["loss"][-1])
print(reason)
found = clusters[chosen]
means = np.stack([z[chosen][found == c].mean(axis=0) for c in found])
distance = np.sum((z[chosen] - means) ** 2, axis=1)
nearest = figures.nearest(found, distance, 1)
for cluster, (told, rows) in enumerate(
    zip(words.telling(dataset.raw, found), nearest, strict=True)
):
    print(f"cluster {cluster}, {np.sum(found == cluster)} texts: {' '.join(told)}")
    for row in rows:
        print(f"    {dataset.raw[row][:120]}")

# %% [markdown]
# ## What the network writes
# From the first eight sub-words of that text on, one word drawn after another: what it has learnt
# of the language, and how little a network of this size can.

# %%
nets = next_token.build_nets(config, dataset.x.shape[1:])
begun = np.concatenate([rows for rows in nearest if len(rows)])
first = next_token.windows(jnp.asarray(dataset.x[begun]))[:, 0]
state = jax.tree.map(lambda leaf: leaf[chosen], fitted.state)
written = next_token.generate(jax.random.key(1), state, first, nets, given=8)
for text in tokens.decode(dataset.preprocessing.settings, np.asarray(written)):
    print("-", " ".join(text.split())[:160])

# %% [markdown]
# ## A map
# Every point is a text, at what it is about: the topic of its words.

# %%
with tempfile.TemporaryDirectory() as folder:
    picture = Path(folder) / "map.png"
    figures.embedding_map(picture, z[chosen], found)
    display(Image(picture.read_bytes()))

# %% [markdown]
# ## Scores
# Now, and only now, the labels: accuracy and normalised mutual information in percent, mean ±
# standard deviation over the seeds. On few long texts, such as BBC news, counting words is still
# ahead.

# %%
baseline = jax.vmap(lambda key: kmeans.fit(key, counted.x, K).labels)(keys)
results = {"k-means on TF-IDF": baseline, "next_token": clusters}
print(f"{'':20}{'accuracy':>14}{'NMI':>14}")
for name, by_seed in results.items():
    line = f"{name:20}"
    for score in ("accuracy", "nmi"):
        values = [100 * metrics.external_scores(labels, np.asarray(c))[score] for c in by_seed]
        line += f"{np.mean(values):7.1f} ± {np.std(values, ddof=1):4.1f}"
    print(line)

# %% [markdown]
# ## From the command line
# ```bash
# python scripts/train_next_token.py --data ag_news --seeds 5
# python scripts/train_deep_kmeans.py --data ag_news --method dcn --seeds 5   # on TF-IDF
# ```
