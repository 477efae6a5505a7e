"""Gates on real data: what a broken method does not reach.

    DEEPCLUST_DATA_DIR=... python -m pytest tests/gates.py

Means over three seeds with the practical profile, shortened. Not collected by a plain `pytest`: it
takes minutes, with `-n 2 --dist loadgroup` fewer, where those that start from one autoencoder stay
in one process. The last two tests break the methods and show that the gates notice.
"""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest

from deepclust_jax import config, data, losses, metrics, phases, run, train
from deepclust_jax.algorithms import dcn
from deepclust_jax.clustering import graph_embedding

SEEDS, PRETRAIN, JOINT = 3, 25, 8
HIDDEN = (256, 256, 512)  # a third of the time of the paper's widths
LIMIT = {"usps": None, "mnist": 10_000}
START = {name: pytest.mark.xdist_group(name) for name in LIMIT}  # that they share
NAMES = [pytest.param(name, marks=mark) for name, mark in START.items()]

# Lowest mean accuracy that passes: about three standard errors or more below what the sound methods
# reach in so short a training (0.73 and 0.73, 0.66 and 0.65); untrained networks reach 0.41, 0.31,
# and a DCN that pulls to a wrong centroid 0.32. DEC and IDEC (0.756 and 0.755) must beat their
# start; VaDE has 0.69 to 0.73 and one seed in five that joins two digits.
GATES = {
    ("usps", "autoencoder"): 0.70,
    ("usps", "dcn"): 0.70,
    ("usps", "dec"): 0.74,
    ("usps", "idec"): 0.74,
    ("usps", "vade"): 0.60,
    ("mnist", "autoencoder"): 0.63,
    ("mnist", "dcn"): 0.62,
}


def options(name: str, method: str, epochs: int) -> config.Options:
    is_first = method == "autoencoder"
    return config.resolve(
        config.Options(
            data=config.Data(data=name, n_clusters=10),
            method=config.Method(method=method),
            network=config.Network(hidden=HIDDEN),
            training=config.Training(epochs=epochs, pretrain_epochs=None if is_first else PRETRAIN),
            run=config.Run(seeds=SEEDS),
        )
    )


@functools.cache
def loaded(name: str):
    return data.load(name, limit=LIMIT[name])


@functools.cache
def pretrained(name: str) -> run.Trained:
    return run.execute(options(name, "autoencoder", PRETRAIN), loaded(name)[0].x)


def mean_accuracy(name: str, algorithm, state) -> float:
    dataset, truth = loaded(name)
    _, found = train.embed(algorithm, state, dataset.x)
    scores = [metrics.accuracy(truth, labels) for labels in found]
    print(f"{name}: {np.mean(scores):.4f} ± {np.std(scores, ddof=1):.4f}")
    return float(np.mean(scores))


@pytest.mark.parametrize("name", NAMES)
def test_autoencoder(data_dir, name):
    found = pretrained(name)
    assert mean_accuracy(name, found.algorithm, found.state) >= GATES[name, "autoencoder"]


@pytest.mark.parametrize("name", NAMES)
def test_dcn(data_dir, name):
    x = loaded(name)[0].x
    found = run.execute(options(name, "dcn", JOINT), x, pretrained=pretrained(name).state)
    assert mean_accuracy(name, found.algorithm, found.state) >= GATES[name, "dcn"]


@START["usps"]
@pytest.mark.parametrize("method", ["dec", "idec", "vade"])
def test_other_joint_methods(data_dir, method):
    x = loaded("usps")[0].x
    found = run.execute(options("usps", method, JOINT), x, pretrained=pretrained("usps").state)
    assert mean_accuracy("usps", found.algorithm, found.state) >= GATES["usps", method]


def test_pictures_and_sounds_agree(data_dir):
    pictures, truth = data.load("mnist_of_fsdd")
    pairs = data.paired(pictures, data.load("fsdd")[0])
    own = config.resolve(
        config.Options(
            data=config.Data(
                data="mnist_of_fsdd", partner="fsdd", parts=config.written(pairs.parts),
                n_clusters=10,
            ),
            method=config.Method(method="cross_modal", augment="each"),
            training=config.Training(epochs=20),
            run=config.Run(seeds=1),
        )
    )  # fmt: skip
    found = run.execute(own, pairs.x)
    score = metrics.accuracy(truth, train.embed(found.algorithm, found.state, pairs.x)[1][0])
    print(f"mnist_of_fsdd cross_modal: {score:.4f}")
    assert score >= 0.95  # 0.987 to 0.991 for three seeds; k-means has 0.54 and 0.62 of each alone


def test_heads_on_contrastive_features(data_dir):
    dataset, truth = loaded("usps")
    own = config.resolve(
        config.Options(
            data=config.Data(data="usps", n_clusters=10),
            method=config.Method(method="info_max", augment="affine"),
            training=config.Training(pretrain_epochs=30, epochs=10),
            run=config.Run(seeds=1),
        )
    )
    found = run.execute(own, dataset.x)
    score = metrics.nmi(truth, train.embed(found.algorithm, found.state, dataset.x)[1][0])
    print(f"usps info_max: nmi {score:.4f}")
    # 0.92 and more where no two digits are joined, 0.89 where two are; the graph of raw pixels has
    # 0.85 to 0.89, k-means 0.62.
    assert score >= 0.87


def test_the_number_of_clusters_of_a_graph(data_dir):
    dataset, truth = loaded("usps")
    x = dataset.x.reshape(len(truth), -1)
    found = graph_embedding.cluster(jax.random.key(0), x, 35, n_layouts=3, merge=True)
    labels = np.asarray(found.labels)
    count, score = len(np.unique(labels)), metrics.nmi(truth, labels)
    print(f"usps merged: {count} clusters, nmi {score:.4f}")
    # 10 to 12 for three keys, with 0.868 to 0.873; not merged they are 35 with 0.75.
    assert 9 <= count <= 14 and score >= 0.83


@START["usps"]
def test_the_number_of_clusters_while_a_network_trains(data_dir):
    dataset, truth = loaded("usps")
    given = options("usps", "dcn", 3)
    given = dataclasses.replace(given, method=dataclasses.replace(given.method, merge=True))
    given = dataclasses.replace(given, data=dataclasses.replace(given.data, n_clusters=35))
    found = run.execute(given, dataset.x, pretrained=pretrained("usps").state)
    _, labels_all = train.embed(found.algorithm, found.state, dataset.x)
    counts = [len(np.unique(labels)) for labels in labels_all]
    scores = [metrics.nmi(truth, labels) for labels in labels_all]
    print(f"usps merged: {counts} clusters, nmi {np.mean(scores):.4f}")
    # 11 to 13 with 0.737; not merged they are 35.
    assert min(counts) >= 9 and max(counts) <= 16 and np.mean(scores) >= 0.7


@pytest.mark.parametrize("name", NAMES)
def test_an_untrained_autoencoder_fails(data_dir, name):
    found = run.execute(options(name, "autoencoder", 0), loaded(name)[0].x)
    assert mean_accuracy(name, found.algorithm, found.state) < GATES[name, "autoencoder"]


@START["usps"]
def test_a_broken_dcn_fails(data_dir):
    """Broken: codes are pulled to the first centroid, not to their own."""
    x = loaded("usps")[0].x
    own = options("usps", "dcn", JOINT)

    def loss(params, state, batch, key, *, nets, config):
        z = nets.encoder.apply(params["encoder"], batch.x)
        x_hat = nets.decoder.apply(params["decoder"], z)
        error = losses.reconstruction(batch.x, x_hat)
        pull = losses.to_own_centroid(z, state.centroids, np.zeros(len(z), np.int32))
        value = losses.masked_mean(error + 0.5 * config.weight * pull, batch.mask)
        return value, {}

    sound = dcn.Config(weight=own.method.weight, hidden=HIDDEN)
    steps = -(-len(x) // own.training.batch_size)
    rate = phases.falling_rate(own.training.learning_rate, steps * JOINT, own.training.decay)
    algorithm = dcn.build(sound, x.shape[1:], loss=loss, optimizer=optax.adam(rate))
    keys = run.seed_keys(own)
    state = jax.vmap(dcn.warm_start)(train.init(keys, algorithm, x), pretrained("usps").state)
    found = train.fit(keys, algorithm, x, epochs=JOINT, state=state)
    assert mean_accuracy("usps", algorithm, found.state) < GATES["usps", "dcn"]
