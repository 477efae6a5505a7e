"""Every front end goes with every clusterer: the codes of one are rows of the other."""

import dataclasses

import jax
import numpy as np
import pytest
from test_contract import ALGORITHMS, KEY, TOKENS, X, fit

from deepclust_jax import run, train
from deepclust_jax.algorithms import cross_modal, next_token
from deepclust_jax.clustering import graph_embedding, kmeans, mixture

WIDTH, K = 4, 3
FRONT_ENDS = (
    "autoencoder", "contrastive", "rotation", "mmdc", "deep_cluster", "next_token",
    "next_frame", "cross_modal", "gan", "info_gan", "cluster_gan", "bi_gan",
)  # fmt: skip
TRAINED = ("dcn", "dkm", "idec", "vade", "n2d", "contrastive", "info_max")
# Built once: each program is compiled once, for the codes of all front ends.
BUILT = {
    name: ALGORITHMS[name][0].build(dataclasses.replace(ALGORITHMS[name][1], embed_dim=2), (WIDTH,))
    for name in TRAINED
}
FITTED = {
    "kmeans": lambda key, z: kmeans.fit(key, z, K, n_init=2).labels,
    "mixture": lambda key, z: mixture.fit(key, z, K, n_init=2).labels,
    "graph": lambda key, z: graph_embedding.cluster(key, z, K, n_neighbors=5).labels,
}


@pytest.fixture(scope="module", params=FRONT_ENDS)
def codes(request):
    """What a front end of all kinds of rows makes of them, [n, WIDTH]; before it learns, as the
    contract trains them all."""
    module, config = ALGORITHMS[request.param]
    sides = len(config.parts) if module is cross_modal else 1  # codes stand side by side
    config = dataclasses.replace(config, embed_dim=WIDTH // sides)
    x = {next_token: TOKENS, cross_modal: X.reshape(len(X), -1)}.get(module, X)
    algorithm = module.build(config, x.shape[1:])
    viewed = request.param in ("rotation", "deep_cluster", "next_token", "next_frame", "gan")
    state = train.init(KEY, algorithm, x, batch_size=16)
    if viewed:  # of the others the code is there without
        state = train.refresh(KEY, algorithm, state, x)
    z = train.embed(algorithm, state, x)[0]
    assert z.shape == (len(x), WIDTH) and np.ptp(z, axis=0).max() > 0
    return z


@pytest.mark.parametrize("clusterer", FITTED)
def test_codes_are_clustered(codes, clusterer):
    labels = np.asarray(FITTED[clusterer](KEY, codes))
    assert labels.shape == (len(codes),)
    assert set(np.unique(labels)) == set(range(K))


@pytest.mark.parametrize("method", TRAINED)
def test_networks_train_on_codes(codes, method):
    module, algorithm = ALGORITHMS[method][0], BUILT[method]
    near = run.partners(codes) if method in ("contrastive", "info_max") else None
    begun = train.init(KEY, algorithm, codes, batch_size=16)
    found = fit(
        module, KEY, algorithm, codes, epochs=2, batch_size=16, neighbors=near, refresh_at_end=True
    )
    assert np.isfinite(found.metrics["loss"]).all()
    one, other = (jax.tree.leaves(state.params["encoder"]) for state in (begun, found.state))
    assert all((a != b).any() for a, b in zip(one, other, strict=True))
    z, labels = train.embed(algorithm, jax.tree.map(lambda leaf: leaf[None], found.state), codes)
    assert np.isfinite(z).all() and z.shape[1] == len(codes)
    assert labels.min() >= 0 and labels.max() < K
