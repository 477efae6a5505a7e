"""Next-token prediction: a network that reads texts and tells how they go on, then k-means on what
they are about (Bengio et al. 2003, "A Neural Probabilistic Language Model";
here a recurrent network or a transformer).

    minimise  mean_t -log p(w_t | w_1 .. w_{t-1})                  exp of which is the perplexity

Rows are documents as numbers of sub-words (data/tokens.py). For training those of a batch are
packed, one behind the other and cut into windows, so that no step is spent on padding; a window may
have several documents, and none sees another.

Beside what it remembers of the words just read the network has the topic of the text so far, a mean
of its words

    c_t = sum_{s<=t} g(w_s) e(w_s) / (3 + sum_{s<=t} g(w_s)),       g > 0

whose vectors e and weights g are learnt with all else, and which is added to the memory before the
next word is told: what a text is about helps to tell words far behind it, which a recurrent network
forgets (Mikolov & Zweig 2012, "Context Dependent Recurrent Neural Network Language Model"; Dieng et
al. 2017, "TopicRNN", whose topic is of the words behind, too). Words that say nothing about others
get small weights, as by an inverse document frequency.

The vector of a document is the topic of its words, of which those that are in few documents weigh
more, and those that come again less each time, as in TF-IDF:

    d = sum_w g(w) r(w) (1 + log n_w) e(w) / (3 + sum_w g(w) r(w) (1 + log n_w))
    r(w) = 1 + log((1 + N) / (1 + N_w))

where w is n_w times in this document, and in N_w of N documents.

From vectors the mean is taken; along principal axes, few of which have most of the variance, they
are divided by the root of the deviation, halfway to whitening (clustering/whitening.py); and they
are brought to unit length, for k-means. (The mean of what recurrent units remember clusters far
worse, by surprise too.) `refresh` counts documents and clusters; call it once, after training.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from deepclust_jax import augment as augmentation
from deepclust_jax import losses, networks
from deepclust_jax.clustering import kmeans, whitening
from deepclust_jax.data.tokens import PAD, START, VOCABULARY, WINDOW
from deepclust_jax.types import Algorithm, Array, Batch, Key, Metrics, Network, Params

_TOGETHER = 1024  # tokens whose logits are held at once, at most
_BLOCK = 128  # documents whose counts of words are


@dataclasses.dataclass(frozen=True)
class Config:
    n_clusters: int = 20  # k
    embed_dim: int = 64  # numbers of a topic
    network: str = "gru"  # or "transformer"
    hidden: tuple[int, ...] = (128,)  # widths of the layers
    learning_rate: float = 3e-3  # of Adam
    vocabulary: int = VOCABULARY  # tokens are numbers below it
    filled: float = 1.0  # share of the rows' numbers that are no padding; the rest is not computed
    n_init: int = 10  # restarts of the k-means


@flax.struct.dataclass
class State:
    step: Array  # [] int32
    params: Params  # {"encoder"}
    opt_state: optax.OptState
    rarity: Array  # [vocabulary], r(w); 1 before `refresh`
    view: whitening.View  # of the topics of documents
    centroids: Array  # [k, embed_dim]


class Nets(NamedTuple):
    encoder: Network  # documents [b, t] -> topics [b, d] as if r were 1; of no words 0
    language: networks.Language  # the same parameters: windows -> states -> logits


def build_nets(config: Config, shape: tuple[int, ...]) -> Nets:
    """The network for documents of `shape` (t,), which it reads in windows of 64 tokens.

    Raises:
        ValueError: rows that are no documents, or another network.
    """
    if len(shape) != 1:
        raise ValueError(f"expected documents [t] of tokens, found rows of shape {tuple(shape)}")
    language = networks.language(
        config.network, config.vocabulary, config.hidden, WINDOW, topics=config.embed_dim
    )
    as_rare = jnp.ones(config.vocabulary)

    def init(key, x):
        return language.init(key, windows(x)[:1, 0])

    return Nets(Network(init, lambda params, x: topic(params, x, as_rare, language)), language)


def counts(x: Array, vocabulary: int) -> Array:
    """How often each word is in documents; 0 for PAD and START. [n, t] -> [n, vocabulary]."""
    found = jnp.zeros((len(x), vocabulary))
    found = found.at[jnp.arange(len(x))[:, None], x.astype(jnp.int32)].add(1.0)
    return found.at[:, jnp.array([PAD, START])].set(0.0)


def rarity(x: Array, vocabulary: int) -> Array:
    """r(w) of all words by the documents [n, t] that have them. -> [vocabulary]."""
    blocks = jnp.pad(x, ((0, -len(x) % _BLOCK), (0, 0)), constant_values=PAD)
    blocks = blocks.reshape(-1, _BLOCK, x.shape[1])
    having = jax.lax.map(lambda block: (counts(block, vocabulary) > 0).sum(axis=0), blocks)
    return 1.0 + jnp.log((1.0 + len(x)) / (1.0 + having.sum(axis=0)))


def topic(params: Params, x: Array, rarity: Array, language: networks.Language) -> Array:
    """The vectors d of documents, as they are. [n, t], [vocabulary] -> [n, embed_dim]."""
    count = counts(x, len(rarity))
    often = jnp.where(count > 0, 1.0 + jnp.log(jnp.maximum(count, 1.0)), 0.0)
    return language.topic(params, often * rarity[None, :])


def windows(x: Array) -> Array:
    """Documents [n, t] cut into windows, the last one filled with PAD. -> int32 [n, t / 64, 64]."""
    x = jnp.pad(x.astype(jnp.int32), ((0, 0), (0, -x.shape[1] % WINDOW)), constant_values=PAD)
    return x.reshape(len(x), -1, WINDOW)


def pack(x: Array, mask: Array, filled: float) -> Array:
    """Documents [b, t] one behind the other without padding, cut into windows. -> int32 [m, 64].

    Windows for `filled`, the usual share of numbers that are no padding, and more the fewer the
    rows, whose lengths differ; what is over is left out of this step. Rows outside the mask are
    padding.
    """
    room = min((1.0 + 1.5 / np.sqrt(len(x))) * filled, 1.0)
    tokens = jnp.where(mask[:, None] > 0, x.astype(jnp.int32), PAD).reshape(-1)
    m = -(-int(np.ceil(room * tokens.size)) // WINDOW)
    tokens = tokens[jnp.argsort(tokens == PAD, stable=True)][: m * WINDOW]
    return jnp.pad(tokens, (0, m * WINDOW - len(tokens)), constant_values=PAD).reshape(m, WINDOW)


def filled(x: np.ndarray) -> float:
    """Share of the numbers of documents [n, t] that are no padding, rounded up to hundredths."""
    return float(np.ceil(100.0 * np.mean(np.asarray(x) != PAD)) / 100.0)


def states_of(params: Params, tokens: Array, language: networks.Language) -> Array:
    """States of documents that do not see each other. int32 [n, w, t] -> [n, w, t, m]."""
    return jax.vmap(lambda own: language.states(params, own))(tokens)


def is_told(tokens: Array) -> Array:
    """Whether a token of a window is predicted: not padding, a start or the first, which no state
    of its window is before. [m, t] -> bool [m, t]."""
    is_first = jnp.arange(tokens.shape[1]) == 0
    return (tokens != PAD) & (tokens != START) & ~is_first[None, :]


def surprises(params: Params, tokens: Array, states: Array, language: networks.Language) -> Array:
    """-log p of each token given those before it, nats, 0 where none is told.

    [m, t], states [m, t, d] -> [m, t].
    """
    flat, true = states[:, :-1].reshape(-1, states.shape[-1]), tokens[:, 1:].reshape(-1)
    n = len(flat)
    size = -(-n // -(-n // _TOGETHER))  # parts alike, so that the last one is not mostly padding
    flat, true = jnp.pad(flat, ((0, -n % size), (0, 0))), jnp.pad(true, (0, -n % size))

    @jax.checkpoint  # logits are computed again, not kept: they are most of the memory
    def of_some(pair):
        logits = language.logits(params, pair[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, pair[1])

    found = jax.lax.map(of_some, (flat.reshape(-1, size, flat.shape[-1]), true.reshape(-1, size)))
    found = jnp.pad(found.reshape(-1)[:n].reshape(len(tokens), -1), ((0, 0), (1, 0)))
    return jnp.where(is_told(tokens), found, 0.0)


def told(params: Params, x: Array, language: networks.Language) -> tuple[Array, Array]:
    """Sums of -log p of documents, nats, and their numbers of tokens that are told. [n, t] -> [n],
    [n]."""
    tokens = windows(x)
    states = states_of(params, tokens, language)
    tokens = tokens.reshape(-1, WINDOW)
    found = surprises(params, tokens, states.reshape(len(tokens), WINDOW, -1), language)
    return found.reshape(len(x), -1).sum(axis=1), is_told(tokens).reshape(len(x), -1).sum(axis=1)


def loss(
    params: Params, state: State, batch: Batch, key: Key, *, nets: Nets, config: Config
) -> tuple[Array, Metrics]:
    """Mean of -log p over the tokens of a batch, nats. -> [], metrics.

    The metric `told` is the share of the packed numbers that are predicted, 0 to 1.
    """
    del state, key
    params, language = params["encoder"], nets.language
    tokens = pack(batch.x, batch.mask, config.filled)
    found = surprises(params, tokens, language.states(params, tokens), language)
    counts = is_told(tokens).astype(found.dtype)
    mean = losses.masked_mean(found.reshape(-1), counts.reshape(-1))
    return mean, {"told": jnp.mean(counts)}


def generate(
    key: Key, state: State, tokens: Array, nets: Nets, *, given: int, temperature: float = 0.7
) -> Array:
    """Windows whose first `given` tokens stay, but for padding; the others are drawn in turn.

    int32 [m, 64] -> int32 [m, 64]; none sees another. PAD and START are not drawn. At a temperature
    near 0 it is always the most probable token.
    """
    params, language = state.params["encoder"], nets.language

    def draw(t, tokens):
        states = states_of(params, tokens[:, None], language)[:, 0]
        before = jax.lax.dynamic_index_in_dim(states, t - 1, axis=1, keepdims=False)
        logits = language.logits(params, before) / temperature
        logits = logits.at[:, jnp.array([PAD, START])].set(-jnp.inf)
        drawn = jax.random.categorical(jax.random.fold_in(key, t), logits)
        stays = (t < given) & (tokens[:, t] != PAD)
        return tokens.at[:, t].set(jnp.where(stays, tokens[:, t], drawn))

    return jax.lax.fori_loop(1, tokens.shape[1], draw, tokens)


def build(
    config: Config,
    shape: tuple[int, ...],
    *,
    loss: Callable[..., tuple[Array, Metrics]] = loss,
    optimizer: optax.GradientTransformation | None = None,
    augment: Callable[[Key, Array], Array] | None = None,
) -> Algorithm:
    """The algorithm for documents of `shape` (t,) tokens.

    `optimizer` replaces the Adam of the config. `augment` (key, one document) -> document changes
    every document before a step.

    Raises:
        ValueError: rows that are no documents, or another network.
    """
    nets = build_nets(config, shape)
    tx = optimizer or optax.adam(config.learning_rate)

    def init(key: Key, batch: Batch) -> State:
        encoder_key, centroid_key = jax.random.split(key)
        params = {"encoder": nets.encoder.init(encoder_key, batch.x)}
        centroids = jax.random.normal(centroid_key, (config.n_clusters, config.embed_dim))
        return State(
            jnp.int32(0), params, tx.init(params), jnp.ones(config.vocabulary),
            whitening.unfitted(config.embed_dim, config.embed_dim), kmeans.unit(centroids),
        )  # fmt: skip

    def step(key: Key, state: State, batch: Batch) -> tuple[State, Metrics]:
        augment_key, loss_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch = augmentation.batch(augment_key, batch, augment)
        (value, metrics), grads = losses.value_and_grad(loss)(
            state.params, state, batch, loss_key, nets=nets, config=config
        )
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
        return state, {"loss": value, **metrics}

    def topics(state: State, x: Array) -> Array:
        return networks.apply_in_blocks(
            lambda params, x: topic(params, x, state.rarity, nets.language),
            state.params["encoder"], x, block=_BLOCK,
        )  # fmt: skip

    def seen(view: whitening.View, found: Array) -> Array:
        # A document without tokens says nothing: it is at the mean.
        is_empty = jnp.all(found == 0, axis=1, keepdims=True)
        return jnp.where(is_empty, 0.0, whitening.apply(view, found))

    def refresh(key: Key, state: State, x: Array) -> State:
        state = state.replace(rarity=rarity(x, config.vocabulary))
        found = topics(state, x)
        view = whitening.fit(found, config.embed_dim, power=0.5)
        z = seen(view, found)
        centroids = kmeans.fit(key, z, config.n_clusters, n_init=config.n_init).centroids
        return state.replace(view=view, centroids=centroids)

    def embed(state: State, x: Array) -> Array:
        return seen(state.view, topics(state, x))

    def assign(state: State, z: Array) -> Array:
        return kmeans.assign(z, state.centroids)[0]

    return Algorithm(init, step, refresh, embed, assign)
