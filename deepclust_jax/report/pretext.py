"""What a network has learnt from labels that it made itself, beside the clusters it is used for."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepclust_jax import config, run, train
from deepclust_jax.algorithms import rotation
from deepclust_jax.report import scores

_BLOCK = 4096


def of_rotation(
    options: config.Options, x: Any, trained: run.Trained, labels: np.ndarray | None
) -> dict[str, Any]:
    """How often each run finds how an image was turned, and the clusters of every block.

    Of rows held out of training, where there are some; else of those trained on. By class where
    there are labels: one that looks alike however it is turned shows there.
    """
    nets = rotation.build_nets(rotation.Config(hidden=options.network.hidden), x.shape[1:])
    held_out = options.data.held_out
    rows = x[-held_out:] if held_out else x
    found = jax.jit(lambda state, x: rotation.accuracy(state, x, nets))

    def of_run(s):
        state = jax.tree.map(lambda leaf: leaf[s], trained.state)
        blocks = [rows[i : i + _BLOCK] for i in range(0, len(rows), _BLOCK)]
        return np.concatenate([found(state, jnp.asarray(block)) for block in blocks])

    by_image = np.stack([of_run(s) for s in range(len(trained.state.step))])
    report: dict[str, Any] = {
        "rows": "rows held out" if held_out else "rows trained on",
        "accuracy": scores.summary(by_image.mean(axis=1)),
        "blocks": [],
    }
    if labels is not None:
        own = labels[-held_out:] if held_out else labels
        mean = by_image.mean(axis=0)
        report["by_class"] = {str(c): float(mean[own == c].mean()) for c in np.unique(own)}
    chosen = np.asarray(trained.state.block)
    for block in range(len(options.network.hidden)):
        entry: dict[str, Any] = {"chosen": int((chosen == block).sum())}
        if labels is not None:
            state = trained.state.replace(block=jnp.full_like(trained.state.block, block))
            clusters = train.embed(trained.algorithm, state, x)[1]
            entry["external"] = scores.external(clusters, labels)
        report["blocks"].append(entry)
    return report
