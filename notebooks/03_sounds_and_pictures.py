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
# # Sounds, and sounds with pictures
#
# Three thousand recordings of spoken digits by six speakers, clustered by what is said: from raw
# samples to clusters that can be listened to. Then the same recordings with a handwritten digit
# each: what a picture and a sound share is the digit, and a network that makes both agree finds it.
#
# The Free Spoken Digit Dataset is read from the folder `DEEPCLUST_DATA_DIR`; a folder of `.wav`
# files of yours works in place of its name. It takes about three minutes on a laptop's CPU.

# %%
import os
import tempfile
from pathlib import Path

import jax
import numpy as np
from IPython.display import Audio, Image, display

from deepclust_jax import augment, data, metrics, run, train
from deepclust_jax.algorithms import contrastive, cross_modal
from deepclust_jax.clustering import kmeans
from deepclust_jax.data import audio
from deepclust_jax.report import figures, scores

FAST = "DEEPCLUST_FAST" in os.environ  # set by the tests, which only check that all cells run
N_SEEDS, EPOCHS, PAIR_EPOCHS = (2, 2, 2) if FAST else (3, 150, 60)
LIMIT = 300 if FAST else None

# %% [markdown]
# ## From samples to rows
# `load` gives features of spoken words: cepstral coefficients from the first loud frame to the
# last, stretched to one length, without what is constant in a voice. The clips themselves stay in
# `raw`. The speakers come apart, as the labels do: clusters should follow neither, and are scored
# against both at the end.

# %%
dataset, labels = data.load("fsdd", limit=LIMIT)
speakers = data.nuisance("fsdd", dataset.whole, limit=LIMIT)
x = dataset.x
print(f"{len(dataset.raw)} clips at {dataset.raw.sample_rate} Hz -> rows {x.shape}")
display(Audio(audio.as_float(dataset.raw[0]), rate=dataset.raw.sample_rate))

# %% [markdown]
# ## Features that another voice does not change
# Each clip is paired with one of its nearest neighbours, and both are changed as another voice, or
# another day, would change them (`augment.speech`). The network tells pairs from other clips;
# `refresh` clusters the neighbour graph of its features.

# %%
keys = jax.random.split(jax.random.key(0), N_SEEDS)
sounds = contrastive.build(contrastive.Config(n_clusters=10), x.shape[1:], augment=augment.speech)
fitted = train.fit(
    keys, sounds, x, epochs=EPOCHS, neighbors=run.partners(x), refresh_every=0, refresh_at_end=True
)
z, clusters = train.embed(sounds, fitted.state, x)
print("alignment of pairs, first epoch", fitted.metrics["alignment"][0].round(3))
print("alignment of pairs, last epoch ", fitted.metrics["alignment"][-1].round(3))

# %% [markdown]
# ## Listen to the clusters
# Of the run that agrees best with the others, the clip nearest to the mean of each cluster.

# %%
chosen, reason = scores.choose(clusters, fitted.metrics["loss"][-1])
print(reason)


def distances(z, clusters):
    """Squared distance of each code to the mean of its cluster."""
    means = np.stack([z[clusters == c].mean(axis=0) for c in clusters])
    return np.sum((z - means) ** 2, axis=1)


for cluster, rows in enumerate(
    figures.nearest(clusters[chosen], distances(z[chosen], clusters[chosen]), 1)
):
    for row in rows:
        print(f"cluster {cluster}: clip {row}")
        display(Audio(audio.as_float(dataset.raw[row]), rate=dataset.raw.sample_rate))

# %% [markdown]
# ## A picture for each sound
# `mnist_of_fsdd` has a handwritten digit for each clip, of the same class. `paired` puts both into
# one row, and `cross_modal` trains an encoder for each, so that the two of a row agree and others
# do not. Which picture goes with which sound is what it is told; that is more than the methods
# above know, and no class.

# %%
pictures, _ = data.load("mnist_of_fsdd", limit=LIMIT)
both = data.paired(pictures, dataset)
change = augment.each(both.parts, [augment.affine, augment.speech])
pairs = cross_modal.build(
    cross_modal.Config(n_clusters=10, parts=both.parts), both.x.shape[1:], augment=change
)
agreed = train.fit(keys, pairs, both.x, epochs=PAIR_EPOCHS, refresh_every=0, refresh_at_end=True)
joint, joint_clusters = train.embed(pairs, agreed.state, both.x)
print("rows", both.x.shape, "of", both.parts)

# %% [markdown]
# The pictures nearest to the mean of each cluster, one row for each:

# %%
with tempfile.TemporaryDirectory() as folder:
    picture = Path(folder) / "samples.png"
    figures.sample_images(
        picture, pictures.raw, joint_clusters[0], distances(joint[0], joint_clusters[0])
    )
    display(Image(picture.read_bytes()))

# %% [markdown]
# ## Scores
# Now, and only now, the labels: accuracy in percent, mean ± standard deviation over the seeds. The
# second column is against the speakers: clusters that know nothing of them have one in ten right,
# as six of the ten are matched, and a sixth of each is of one speaker.

# %%
rows = x.reshape(len(x), -1)
baseline = jax.vmap(lambda key: kmeans.fit(key, rows, 10).labels)(keys)
half = joint.shape[-1] // 2
alone = [
    jax.vmap(lambda key, own: kmeans.fit(key, own, 10).labels)(keys, part)
    for part in (joint[..., :half], joint[..., half:])
]
results = {
    "k-means on the rows": baseline,
    "contrastive": clusters,
    "cross_modal, pictures": alone[0],
    "cross_modal, sounds": alone[1],
    "cross_modal, both": joint_clusters,
}
print(f"{'':22}{'digits':>14}{'speakers':>14}")
for name, by_seed in results.items():
    line = f"{name:22}"
    for truth in (labels, speakers):
        values = [100 * metrics.accuracy(truth, np.asarray(one)) for one in by_seed]
        line += f"{np.mean(values):7.1f} ± {np.std(values, ddof=1):4.1f}"
    print(line)

# %% [markdown]
# ## From the command line
# ```bash
# python scripts/train_audio.py --seeds 3
# python scripts/train_deep_kmeans.py --data mnist_of_fsdd --partner fsdd \
#     --method cross_modal --augment each --seeds 3
# ```
