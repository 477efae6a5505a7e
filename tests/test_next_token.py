"""Next-token prediction: the network sees nothing behind a token, batches are packed, the vector of
a document is its topic."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deepclust_jax import networks, train
from deepclust_jax.algorithms import next_token
from deepclust_jax.clustering import kmeans, whitening
from deepclust_jax.data.tokens import PAD, START, WINDOW
from deepclust_jax.types import Batch

KEY = jax.random.key(0)
SMALL = next_token.Config(3, 8, hidden=(16,), vocabulary=30, n_init=2)
KINDS = {"gru": (16,), "two layers": (16, 8), "transformer": (16, 16)}


@pytest.fixture(scope="module", params=KINDS)
def language(request):
    """States of a network, compiled once, and its params."""
    kind = "transformer" if request.param == "transformer" else "gru"
    net = networks.language(kind, 30, KINDS[request.param], WINDOW, topics=4)
    params = jax.jit(net.init)(KEY, jnp.zeros((1, WINDOW), jnp.int32))
    noise = np.asarray(jax.random.normal(KEY, (100_000,)))  # biases start at 0, places small
    shaken = jax.tree.map(lambda p: np.asarray(p) + 0.3 * noise[: p.size].reshape(p.shape), params)
    return jax.jit(net.states), shaken


def documents(n, t, seed=0, vocabulary=30):
    rng = np.random.default_rng(seed)
    rows = rng.integers(2, vocabulary, size=(n, t))
    rows[:, 0] = START
    for row, length in zip(rows, rng.integers(1, t + 1, size=n), strict=True):
        row[length:] = PAD
    return np.float32(rows)


def test_no_token_is_seen_before_its_turn(language):
    """Trap: a model that sees what it is asked has a wonderful perplexity."""
    states_of, params = language
    tokens = np.int32(documents(2, WINDOW))
    tokens[:, 1:] = 5
    states = np.asarray(states_of(params, tokens))
    for t in (1, 20, WINDOW - 1):
        changed = tokens.copy()
        changed[:, t:] = 9
        other = np.asarray(states_of(params, changed))
        np.testing.assert_array_equal(states[:, :t], other[:, :t])
        assert (states[:, t] != other[:, t]).any()


def test_an_empty_document_is_at_the_mean():
    """Trap: zeros minus the mean are a direction, and empty documents a cluster of their own."""
    algorithm = next_token.build(SMALL, (WINDOW,))
    x = documents(40, WINDOW)
    x[:3, 1:] = PAD
    state = train.refresh(KEY, algorithm, train.init(KEY, algorithm, x), x)
    z = train.embed(algorithm, state, x)[0]
    np.testing.assert_array_equal(z[:3], 0.0)
    np.testing.assert_allclose(np.linalg.norm(z[x[:, 1] != PAD], axis=1), 1.0, atol=1e-5)


def test_no_text_is_seen_by_another_in_its_window(language):
    states_of, params = language
    both = np.full((2, WINDOW), 7, np.int32)
    both[:, 0], both[0, 1:20], both[:, 20], both[:, 21:40] = START, 3, START, 4
    states = np.asarray(states_of(params, both))
    assert (states[0, 1:20] != states[1, 1:20]).any()
    np.testing.assert_allclose(states[0, 20:], states[1, 20:], atol=1e-6)


def test_the_unit_is_that_of_flax():
    """Where a text starts the memory is 0; else it is nn.GRUCell with the same weights."""
    own, cell = networks._GRU(6), nn.GRUCell(6)
    x = jax.random.normal(KEY, (2, 5, 4))
    params = jax.jit(own.init)(KEY, x, jnp.zeros((2, 5), bool))["params"]
    params["bias"] = jax.random.normal(KEY, (6,))
    params["Dense_0"]["bias"] = jax.random.normal(KEY, (18,))
    kernels = jnp.split(params["Dense_0"]["kernel"], 3, axis=1)
    biases = jnp.split(params["Dense_0"]["bias"], 3)
    memory = jnp.split(params["kernel"], 3, axis=1)
    same = {
        f"i{n}": {"kernel": k, "bias": b} for n, k, b in zip("rzn", kernels, biases, strict=True)
    }
    same |= {f"h{n}": {"kernel": k} for n, k in zip("rzn", memory, strict=True)}
    same["hn"]["bias"] = params["bias"]
    starts = jnp.zeros((2, 5), bool).at[1, 3].set(True)
    found = np.asarray(jax.jit(own.apply)({"params": params}, x, starts))
    h, apply, x, starts = (
        np.zeros((2, 6), np.float32),
        jax.jit(cell.apply),
        *map(np.asarray, (x, starts)),
    )
    for t in range(5):
        h = np.where(starts[:, t, None], np.float32(0), h)
        h, _ = apply({"params": same}, h, x[:, t])
        np.testing.assert_allclose(found[:, t], h, atol=1e-6)


def test_packing_keeps_every_token_in_order():
    x = documents(5, 100)
    mask = jnp.array([1.0, 1.0, 0.0, 1.0, 1.0])
    kept = np.concatenate([row[row != PAD] for i, row in enumerate(x) if i != 2])
    packed = np.asarray(next_token.pack(jnp.asarray(x), mask, 1.0))
    assert packed.shape == (8, WINDOW)  # 500 numbers
    np.testing.assert_array_equal(packed.reshape(-1)[: len(kept)], kept)
    assert (packed.reshape(-1)[len(kept) :] == PAD).all()
    # Of a usual share of a fifth there is place for 168 tokens; those over are left out.
    few = np.asarray(next_token.pack(jnp.asarray(x), mask, 0.2))
    np.testing.assert_array_equal(few.reshape(-1), np.pad(kept, (0, 192))[: 3 * WINDOW])


def test_the_share_that_is_filled():
    x = np.zeros((4, 50))
    x[:, :11] = 3.0
    assert next_token.filled(x) == pytest.approx(0.22)
    x[0, 11] = 3.0
    assert next_token.filled(x) == pytest.approx(0.23)


@pytest.fixture(scope="module")
def small():
    """Networks for documents of 100 places, and their params."""
    nets = next_token.build_nets(SMALL, (100,))
    return nets, jax.jit(nets.encoder.init)(KEY, jnp.asarray(documents(4, 100)))


def test_the_loss_is_the_mean_over_all_tokens_that_are_told(small):
    nets, params = small
    x = jnp.asarray(documents(4, 100))
    batch = Batch(x, jnp.arange(4), jnp.ones(4))
    loss = jax.jit(functools.partial(next_token.loss, nets=nets, config=SMALL))
    value, metrics = loss({"encoder": params}, None, batch, KEY)
    packed = np.asarray(next_token.pack(x, batch.mask, 1.0))

    @jax.jit
    def log_probabilities(params, tokens):
        logits = nets.language.logits(params, nets.language.states(params, tokens))
        return jax.nn.log_softmax(logits)

    log_p = np.asarray(log_probabilities(params, packed))
    told = [
        -log_p[w, t - 1, packed[w, t]]
        for w in range(len(packed))
        for t in range(1, WINDOW)
        if packed[w, t] not in (PAD, START)
    ]
    np.testing.assert_allclose(value, np.mean(told), rtol=1e-5)
    np.testing.assert_allclose(metrics["told"], len(told) / packed.size, rtol=1e-6)


def test_logits_in_parts_are_all_of_them(small, monkeypatch):
    nets, params = small
    x = documents(4, 100)

    def told():
        return jax.jit(lambda params, x: next_token.told(params, x, nets.language))(params, x)

    whole = told()
    monkeypatch.setattr(next_token, "_TOGETHER", 50)
    for a, b in zip(whole, told(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_topic_is_the_weighted_mean_of_words_and_padding_changes_nothing(small):
    nets, params = small
    x = documents(6, 100)
    x[0, 1:] = PAD  # a document without a word
    topic = jax.jit(lambda *args: next_token.topic(*args, nets.language))
    weight = jax.random.normal(KEY, (30,))
    params = {"params": params["params"] | {"weight": weight}}
    rarity = jnp.linspace(1.0, 2.0, 30)
    found = np.asarray(topic(params, x, rarity))
    assert found.shape == (6, 8) and (found[0] == 0).all()
    for row, own in zip(x[1:], found[1:], strict=True):
        words, times = np.unique(row[(row != PAD) & (row != START)].astype(int), return_counts=True)
        w = (np.exp(weight) * np.asarray(rarity))[words] * (1 + np.log(times))
        wanted = w @ np.asarray(params["params"]["topic"])[words] / (3 + w.sum())
        np.testing.assert_allclose(own, wanted, rtol=1e-4, atol=1e-6)
    _, told = jax.jit(lambda params, x: next_token.told(params, x, nets.language))(params, x)
    assert told[0] == 0
    wider = np.pad(x, ((0, 0), (0, 3 * WINDOW)))
    np.testing.assert_allclose(topic(params, wider, rarity), found, rtol=1e-5, atol=1e-6)
    plain = topic(params, wider, jnp.ones(30))
    np.testing.assert_array_equal(jax.jit(nets.encoder.apply)(params, wider), plain)


@pytest.mark.parametrize("n", [7, 128, 300])
def test_rare_words_weigh_as_in_scikit_learn(n):
    from sklearn.feature_extraction.text import TfidfTransformer

    x = documents(n, 50)
    counts = np.stack([np.bincount(row.astype(int), minlength=30) for row in x])
    wanted = TfidfTransformer().fit(counts).idf_
    found = next_token.rarity(jnp.asarray(x), 30)
    np.testing.assert_allclose(found[2:], wanted[2:], rtol=1e-6)
    np.testing.assert_array_equal(next_token.counts(jnp.asarray(x), 30)[:, 2:], counts[:, 2:])
    np.testing.assert_array_equal(next_token.counts(jnp.asarray(x), 30)[:, :2], 0)


def test_a_topic_goes_on_in_the_next_window_and_ends_with_its_text():
    """Trap: a sum over all windows, by which the words of one document tell those of another."""
    net = networks.language("gru", 30, (16,), 4, topics=2)
    params = jax.jit(net.init)(KEY, jnp.zeros((1, 4), jnp.int32))
    e = np.asarray(params["params"]["topic"])
    rows = [[START, 5, 6, 7], [8, 9, START, 10], [11, 12, 13, 14], [START, 15, PAD, PAD]]
    found = np.asarray(jax.jit(net.states)(params, jnp.array(rows)))[..., -2:]
    texts = {
        (0, 3): [5, 6, 7], (1, 1): [5, 6, 7, 8, 9], (1, 2): [], (1, 3): [10],
        (2, 3): [10, 11, 12, 13, 14], (3, 0): [], (3, 3): [15],
    }  # fmt: skip
    for place, words in texts.items():
        wanted = e[words].sum(axis=0) / (3 + len(words))
        np.testing.assert_allclose(found[place], wanted, rtol=1e-5, atol=1e-7)


def test_words_far_behind_are_told_by_the_topic():
    """A word of the second window, where what was read in the first is forgotten."""
    rng = np.random.default_rng(0)
    kind = rng.integers(2, size=200)
    x = np.full((200, 2 * WINDOW), 2.0, np.float32)
    x[:, 0], x[:, 1:WINDOW], x[:, 100] = START, 3 + kind[:, None], 5 + kind
    config = dataclasses.replace(SMALL, vocabulary=8, learning_rate=0.02)
    nets = next_token.build_nets(config, x.shape[1:])
    found = train.fit(
        KEY, next_token.build(config, x.shape[1:]), x, epochs=20, batch_size=20, refresh_every=0
    )
    params = found.state.params["encoder"]
    tokens = next_token.windows(jnp.asarray(x[:20])).reshape(-1, WINDOW)
    states = jax.jit(nets.language.states)(params, tokens)
    logits = jax.jit(nets.language.logits)(params, states)
    at = 100 - WINDOW - 1
    told = np.asarray(logits)[1::2, at, 5:7].argmax(axis=1)
    np.testing.assert_array_equal(told, kind[:20])


@pytest.fixture(scope="module")
def trained():
    """Documents of three kinds, each with words of its own: the next one, or the one after."""
    rng = np.random.default_rng(0)
    kind = np.arange(90) % 3
    words = 2 + 8 * kind[:, None] + np.cumsum(rng.integers(1, 3, size=(90, 40)), axis=1) % 8
    x = np.float32(np.pad(words, ((0, 0), (1, 23)), constant_values=((0, 0), (1, 0))))
    config = dataclasses.replace(SMALL, learning_rate=0.02, embed_dim=4, hidden=(32,), filled=0.65)
    algorithm = next_token.build(config, (64,))
    found = train.fit(
        KEY, algorithm, x, epochs=30, batch_size=10, refresh_every=0, refresh_at_end=True
    )
    return x, kind, config, algorithm, found


def _angles(z):
    """Cosines between rows of unit length: the same from all axes."""
    return np.asarray(jnp.dot(z, z.T, precision="highest"))


def test_what_goes_on_is_learnt_and_clustered(trained):
    x, kind, config, algorithm, found = trained
    nets = next_token.build_nets(config, (64,))
    params = found.state.params["encoder"]
    count = jax.jit(lambda params, x: next_token.told(params, x, nets.language))
    total, told = map(np.asarray, count(params, x))
    assert told.sum() == 90 * 40
    # The first word is one of 24, all others one of two.
    best = np.exp((np.log(24) + 39 * np.log(2)) / 40)
    assert 0.9 * best < np.exp(total.sum() / told.sum()) < 1.2 * best
    z, labels = train.embed(algorithm, found.state, x)
    assert all(len(set(labels[kind == k].tolist())) == 1 for k in range(3))
    assert len(set(labels.tolist())) == 3
    np.testing.assert_allclose(found.state.rarity, next_token.rarity(jnp.asarray(x), 30), rtol=1e-6)
    topic = jax.jit(lambda *args: next_token.topic(*args, nets.language))
    topics = topic(params, x, found.state.rarity)
    view = whitening.fit(topics, 4, power=0.5)
    np.testing.assert_allclose(z @ z.T, _angles(whitening.apply(view, topics)), atol=1e-3)
    np.testing.assert_array_equal(labels, kmeans.assign(z, found.state.centroids)[0])


def test_texts_go_on_as_they_were_learnt(trained):
    x, _, config, _, found = trained
    nets = next_token.build_nets(config, (64,))
    begun = next_token.windows(jnp.asarray(x[:6]))[:, 0]
    written = next_token.generate(KEY, found.state, begun.at[:, 8:].set(PAD), nets, given=8)
    assert written.shape == (6, WINDOW)
    np.testing.assert_array_equal(written[:, :8], begun[:, :8])
    assert (np.asarray(written)[:, 1:] > START).all()
    words = np.asarray(written)[:, 8:41] - 2
    before = np.asarray(written)[:, 7:40] - 2
    follows = (words // 8 == before // 8) & np.isin((words - before) % 8, (1, 2))
    assert np.mean(follows) > 0.9
    sure = [
        next_token.generate(key, found.state, begun, nets, given=8, temperature=1e-4)
        for key in jax.random.split(KEY)
    ]
    np.testing.assert_array_equal(*sure)


def test_a_text_shorter_than_what_is_given_goes_on_where_it_ends(trained):
    _, _, config, _, found = trained
    nets = next_token.build_nets(config, (64,))
    begun = jnp.zeros((1, WINDOW), jnp.int32).at[0, :3].set(jnp.array([START, 5, 6]))
    written = next_token.generate(KEY, found.state, begun, nets, given=8)
    same = next_token.generate(KEY, found.state, begun, nets, given=3)
    np.testing.assert_array_equal(written, same)
    assert (np.asarray(written)[0, 1:] > START).all()


@pytest.mark.parametrize(
    "change, shape, words",
    [
        ({}, (8, 8, 1), r"expected documents \[t\] of tokens, found rows of shape \(8, 8, 1\)"),
        ({"network": "mlp"}, (64,), "expected network 'gru' or 'transformer', found 'mlp'"),
        ({"network": "transformer", "hidden": (8, 16)}, (64,), "expected one width for all layers"),
    ],
)
def test_what_cannot_work_is_refused(change, shape, words):
    with pytest.raises(ValueError, match=words):
        next_token.build(dataclasses.replace(SMALL, **change), shape)
