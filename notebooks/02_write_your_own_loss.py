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
# # Write your own loss
#
# A loss is a function, and swapping it is passing another one to `build`: no subclass, no name in a
# list. This notebook adds a term to the loss of DCN, and then asks over five seeds whether it
# helped. It takes about half a minute on a laptop's CPU.

# %%
import os
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from IPython.display import Image, display
from jax.flatten_util import ravel_pytree
from scipy import stats

from deepclust_jax import data, losses, metrics, train
from deepclust_jax.algorithms import autoencoder, dcn
from deepclust_jax.report import figures
from deepclust_jax.types import Batch

FAST = "DEEPCLUST_FAST" in os.environ  # set by the tests, which only check that all cells run
N_SEEDS, PRETRAIN_EPOCHS, EPOCHS = (2, 2, 2) if FAST else (5, 100, 50)

dataset, labels = data.load("digits")  # labels: for the scores at the end
x, shape = dataset.x, dataset.x.shape[1:]
keys = jax.random.split(jax.random.key(0), N_SEEDS)

# %% [markdown]
# ## The loss, in five lines
# The published loss is called and a term is added: the absolute values of the code, which should
# make it sparse. Terms are one number per row, and `masked_mean` averages them over the rows that
# count. What is returned beside the value becomes a metric.

# %%
SPARSITY = 0.01  # the first value tried; not tuned


def sparse_loss(params, state, batch, key, **static):
    """DCN's loss plus the L1 norm of the code, mean over rows. -> [], metrics."""
    value, terms = dcn.loss(params, state, batch, key, **static)
    z = static["nets"].encoder.apply(params["encoder"], batch.x)
    sparsity = losses.masked_mean(jnp.sum(jnp.abs(z), axis=-1), batch.mask)
    return value + SPARSITY * sparsity, terms | {"sparsity": sparsity}


config = dcn.Config(n_clusters=10, hidden=(128, 64))
algorithms = {
    "published": dcn.build(config, shape),
    "own": dcn.build(config, shape, loss=sparse_loss),
}

# %% [markdown]
# ## One pretraining for both
# DCN starts from trained autoencoders. They are trained once, and both losses start from the same
# ones, so that seed by seed the loss is all that differs.

# %%
encoder = autoencoder.build(autoencoder.Config(n_clusters=10, hidden=(128, 64)), shape)
pretrained = train.fit(keys, encoder, x, epochs=PRETRAIN_EPOCHS, refresh_every=0).state
pretrained = train.refresh(keys, encoder, pretrained, x)
# A fresh state does not depend on the loss, so either algorithm may make it.
start = jax.vmap(dcn.warm_start)(train.init(keys, algorithms["own"], x), pretrained)

# %% [markdown]
# ## The loss is a plain function
# So it can be called, differentiated, compiled and mapped before anything is trained with it, which
# is the quickest way to find a mistake. What never changes, networks and config, is passed by name.
# A batch holds rows, their numbers and a mask, and no labels.

# %%
batch = Batch(jnp.asarray(x[:64]), jnp.arange(64), jnp.ones(64))
bound = partial(sparse_loss, nets=dcn.build_nets(config, shape), config=config)
one = jax.tree.map(lambda leaf: leaf[0], start)  # the state of the first seed

value, terms = bound(one.params, one, batch, keys[0])
grads, _ = jax.grad(bound, has_aux=True)(one.params, one, batch, keys[0])
compiled, _ = jax.jit(bound)(one.params, one, batch, keys[0])
mapped, _ = jax.vmap(bound, in_axes=(0, 0, None, 0))(start.params, start, batch, keys)

print("value   ", f"{value:.4f}", {name: f"{term:.4f}" for name, term in terms.items()})
print("gradient", f"norm {jnp.linalg.norm(ravel_pytree(grads)[0]):.4f}, of {' and '.join(grads)}")
print("jit     ", f"{compiled:.4f}")
print("vmap    ", np.asarray(mapped).round(4), "over the seeds")

# %% [markdown]
# ## Train both
# The same keys, rows, order of rows and starting states.

# %%
found = {
    name: train.fit(keys, algorithm, x, epochs=EPOCHS, state=start)
    for name, algorithm in algorithms.items()
}
for name, fitted in found.items():
    print(f"{name:10} metrics {sorted(fitted.metrics)}")

# %% [markdown]
# ## The new metric
# `sparsity`, returned by the loss, is in `metrics` by its name, [epochs, seeds], like every other.
# The bands are ± one standard deviation over the seeds.

# %%
print("sparsity, first epoch", found["own"].metrics["sparsity"][0].round(3))
print("sparsity, last epoch ", found["own"].metrics["sparsity"][-1].round(3))
with tempfile.TemporaryDirectory() as folder:
    picture = Path(folder) / "curves.png"
    figures.training_curves(picture, {name: fitted.metrics for name, fitted in found.items()})
    display(Image(picture.read_bytes()))

# %% [markdown]
# ## What the term did to the code
# Before asking whether it helped: did it do what it says? The L1 norm also falls if a code only
# shrinks, while L1 / L2 is free of scale: from 1, a single entry, to √10, all ten alike.

# %%
codes, clusters = {}, {}
for name, algorithm in algorithms.items():
    codes[name], clusters[name] = train.embed(algorithm, found[name].state, x)
    l1, l2 = (np.linalg.norm(codes[name], order, axis=-1) for order in (1, 2))
    for term, values in (("L1", l1), ("L1 / L2", l1 / l2)):
        by_seed = values.mean(axis=-1)
        print(f"{name:10} {term:8} {by_seed.mean():.3f} ± {by_seed.std(ddof=1):.3f} over seeds")

# %% [markdown]
# ## Did it help?
# Accuracy in percent, mean ± standard deviation over the seeds. The seeds are paired, so the spread
# of the *difference* counts, not the spread of each. The last cell forms a 95 % interval of its
# mean by Student's t, and prints what follows from it; nobody typed the verdict.

# %%
clusters["start"] = train.embed(encoder, pretrained, x)[1]
accuracy = {
    name: np.array([100 * metrics.accuracy(labels, clusters[name][s]) for s in range(N_SEEDS)])
    for name in ("start", "published", "own")
}
for name, values in accuracy.items():
    print(f"{name:10} {values.round(1)}  mean {values.mean():.1f} ± {values.std(ddof=1):.1f}")


# %%
def compare(name: str, than: str) -> None:
    """Print the paired difference of two losses and what it shows."""
    difference = accuracy[name] - accuracy[than]
    mean, std = difference.mean(), difference.std(ddof=1)
    half = stats.t.ppf(0.975, N_SEEDS - 1) * std / np.sqrt(N_SEEDS)
    print(f"{name} - {than}: {difference.round(1)}, mean {mean:+.2f} ± {std:.2f}")
    print(f"  95 % interval of the mean {mean - half:+.2f} to {mean + half:+.2f}:", end=" ")
    if mean - half > 0:
        print(f"over these seeds {name} is better than {than}.")
    elif mean + half < 0:
        print(f"over these seeds {name} is worse than {than}.")
    else:
        print(f"{N_SEEDS} seeds show no difference between {name} and {than}.")


compare("published", "start")
compare("own", "start")
compare("own", "published")

# %% [markdown]
# ## Next
# One data set, one small network and one weight say little in general: vary them, and take more
# seeds, before you believe a difference. And mind the trap: whoever tries ten weights and keeps the
# best by accuracy has trained on the labels. The functions in `deepclust_jax/losses.py` are made
# for combining, and `autoencoder.build`, `dcn.build` and `dkm.build` all take a `loss`.
