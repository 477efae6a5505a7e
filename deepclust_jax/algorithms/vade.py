"""VaDE: a variational autoencoder whose prior is a mixture of Gaussians (Jiang et al. 2017,
"Variational Deep Embedding").

    p(c) = pi_c,   p(z | c) = N(mu_c, sigma_c^2),   q(z | x) = N(m, s^2),   q(c | x) = p(c | z)

    minimise  -log p(x | z)
              + 1/2 sum_c q_c sum_j [log sigma_cj^2 + (s_j^2 + (m_j - mu_cj)^2) / sigma_cj^2]
              - 1/2 sum_j (1 + log s_j^2) - sum_c q_c log pi_c + sum_c q_c log q_c       (eq. 9)

with one draw z = m + s e a row and step, from which q_c = p(c | z) is computed (eq. 16). Rows are
assigned by m, without a draw.

`likelihood` is of the rows given the code: "bernoulli" for rows in 0..1, as in the paper; or
"gaussian" with one variance for all features, which at its best value makes the term
d/2 log(mean squared error) and serves data of any scale (Rybkin et al. 2021). Parametrised so that
nothing can leave its range: pi by a softmax, variances by logarithms that are kept within 8 of that
of the variance within the clusters that the prior starts with, whatever the scale of the code.

The mixture starts as that of the codes, with diagonal covariances and restarts chosen by
likelihood: the first `refresh` fits it, and starts the draws with a small part of the variance
within its clusters. Deviations: the paper starts from one fit of a mixture to
the codes of an autoencoder that was pretrained layer by layer, here from the common one
(`warm_start`), whose code becomes the mean m; and its rate of 0.002 falls by a tenth every 10
epochs. From random weights the clusters are poor.
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
from deepclust_jax.algorithms import autoencoder
from deepclust_jax.clustering import mixture
from deepclust_jax.types import Algorithm, Array, Batch, Key, Metrics, Network, Params

_LARGEST = 8.0  # distance of the logarithm of a variance from its level
# Variance of the draws at the start, as a share of that within the clusters: an untrained layer
# gives about 1, which blurs the clusters of a narrow code until one of them has all rows.
_FIRST_NOISE = 0.1


@dataclasses.dataclass(frozen=True)
class Config:
    n_clusters: int = 10  # k
    embed_dim: int = 10  # width of the code
    network: str = "mlp"  # or "conv", for images
    hidden: tuple[int, ...] = (500, 500, 2000)  # encoder widths; the decoder mirrors them
    precision: str = "float32"  # of products; "bfloat16" keeps sums and weights in float32
    learning_rate: float = 2e-3  # of Adam
    likelihood: str = "gaussian"  # of the rows given the code, or "bernoulli" for rows in 0..1
    n_init: int = 10  # restarts of the mixture that the prior starts with


@flax.struct.dataclass
class State:
    step: Array  # [] int32
    params: Params  # {"encoder", "decoder", "prior": {"logits", "means", "log_variances"}}
    opt_state: optax.OptState
    has_prior: Array  # [] bool, whether the prior was fitted to codes
    level: Array  # [d], logarithm of the variance within the clusters that it started with


class Nets(NamedTuple):
    encoder: Network  # -> [b, 2 embed_dim], mean and logarithm of the variance
    decoder: Network


def build_nets(config: Config, shape: tuple[int, ...]) -> Nets:
    """Encoder and decoder for rows of the given shape."""
    kind, hidden = config.network, config.hidden
    encoder, _ = networks.autoencoder(
        kind, shape, hidden, 2 * config.embed_dim, precision=config.precision
    )
    _, decoder = networks.autoencoder(
        kind, shape, hidden, config.embed_dim, precision=config.precision
    )
    return Nets(encoder, decoder)


def encode(params: Params, x: Array, nets: Nets, level: Array) -> tuple[Array, Array]:
    """Mean and logarithm of the variance of the code. [b, ...], level [d] -> [b, d] twice."""
    mean, log_variance = jnp.split(nets.encoder.apply(params["encoder"], x), 2, axis=-1)
    return mean, _near(log_variance, level)


def prior(params: Params, level: Array) -> mixture.Mixture:
    """The prior as a mixture, with diagonal covariances."""
    own = params["prior"]
    variances = jnp.exp(_near(own["log_variances"], level))
    weights = jnp.maximum(jax.nn.softmax(own["logits"]), 1e-12)  # 0 has no logarithm
    return mixture.Mixture(weights, own["means"], variances)


def _near(log_variance: Array, level: Array) -> Array:
    level = level[None, :]
    return level + jnp.clip(log_variance - level, -_LARGEST, _LARGEST)


def loss(
    params: Params, state: State, batch: Batch, key: Key, *, nets: Nets, config: Config
) -> tuple[Array, Metrics]:
    """The negative evidence bound (eq. 9) but for constants, mean over rows. -> [], metrics."""
    mean, log_variance = encode(params, batch.x, nets, state.level)
    z = mean + jnp.exp(0.5 * log_variance) * _noise(key, mean.shape)
    decoded = nets.decoder.apply(params["decoder"], z)
    is_bernoulli = config.likelihood == "bernoulli"
    x_hat = jax.nn.sigmoid(decoded) if is_bernoulli else decoded
    error = losses.masked_mean(losses.reconstruction(batch.x, x_hat), batch.mask)
    if is_bernoulli:
        cost = losses.masked_mean(losses.binary_cross_entropy(batch.x, decoded), batch.mask)
    else:
        floor = 1e-6 * losses.total_variance(batch.x, batch.mask)
        cost = 0.5 * np.prod(batch.x.shape[1:]) * jnp.log(error + floor)
    own = prior(params, state.level)
    apart = losses.masked_mean(divergence(mean, log_variance, z, own), batch.mask)
    return cost + apart, {"reconstruction": error, "divergence": apart}


def divergence(mean: Array, log_variance: Array, z: Array, prior: mixture.Mixture) -> Array:
    """Divergence of q(z | x) q(c | x) from the prior, for codes of that mean and variance and the
    draws z: all of eq. 9 but its first term, up to a constant. [b, d] three times -> [b]."""
    log_q = jax.nn.log_softmax(mixture.log_joint(z, prior), axis=-1)
    variances = prior.covariances[None, :, :]
    apart = (mean[:, None, :] - prior.means[None, :, :]) ** 2 + jnp.exp(log_variance)[:, None, :]
    cross = 0.5 * jnp.sum(jnp.log(variances) + apart / variances, axis=-1)
    entropy = 0.5 * jnp.sum(1.0 + log_variance, axis=-1)
    log_weights = jnp.log(prior.weights)[None, :]
    return jnp.sum(jnp.exp(log_q) * (cross - log_weights + log_q), axis=-1) - entropy


def _noise(key: Key, shape: tuple[int, int]) -> Array:
    """Standard normal, row by row: padding changes no other row's draw."""
    keys = jax.random.split(key, shape[0])
    return jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(keys)


def warm_start(state: State, pretrained: autoencoder.State) -> State:
    """`state` with the networks of a trained autoencoder, whose code is the mean of the new one.

    The prior is fitted by the next `refresh`.
    """
    params, centroids = autoencoder.starting_point(pretrained)
    encoder = networks.with_more_outputs(params["encoder"], state.params["encoder"])
    own = {"encoder": encoder, "decoder": params["decoder"], "prior": state.params["prior"]}
    own["prior"] = own["prior"] | {"means": centroids}
    return state.replace(params=own, has_prior=jnp.zeros_like(state.has_prior))


def build(
    config: Config,
    shape: tuple[int, ...],
    *,
    loss: Callable[..., tuple[Array, Metrics]] = loss,
    optimizer: optax.GradientTransformation | None = None,
    augment: Callable[[Key, Array], Array] | None = None,
) -> Algorithm:
    """The algorithm for rows of the given shape.

    `optimizer` replaces the Adam of the config. `augment` (key, one row) -> row changes every row
    before a step. The first `refresh` fits the prior to the codes, later ones do nothing.
    """
    if config.likelihood not in ("gaussian", "bernoulli"):
        raise ValueError(f"expected likelihood gaussian or bernoulli, found {config.likelihood!r}")
    nets = build_nets(config, shape)
    tx = optimizer or optax.adam(config.learning_rate)
    k, d = config.n_clusters, config.embed_dim

    def init(key: Key, batch: Batch) -> State:
        encoder_key, decoder_key, prior_key = jax.random.split(key, 3)
        encoder = nets.encoder.init(encoder_key, batch.x)
        decoder = nets.decoder.init(decoder_key, jnp.zeros((len(batch.x), d)))
        own = {
            "logits": jnp.zeros(k),
            "means": jax.random.normal(prior_key, (k, d)),
            "log_variances": jnp.zeros((k, d)),
        }
        params = {"encoder": encoder, "decoder": decoder, "prior": own}
        return State(jnp.int32(0), params, tx.init(params), jnp.bool_(False), jnp.zeros(d))

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

    def refresh(key: Key, state: State, x: Array) -> State:
        def fitted():
            z = embed(state, x)
            found = mixture.fit(key, z, k, covariance="diagonal", n_init=config.n_init).mixture
            level = jnp.log((found.weights[None, :] @ found.covariances)[0])
            own = {  # where a variance is beyond its bounds it has no gradient to come back
                "logits": jnp.log(jnp.maximum(found.weights, 1e-6)),
                "means": found.means,
                "log_variances": _near(jnp.log(found.covariances), level),
            }
            encoder = networks.with_constant_outputs(
                state.params["encoder"], level + np.log(_FIRST_NOISE)
            )
            return {**state.params, "encoder": encoder, "prior": own}, level

        kept = state.params, state.level
        params, level = jax.lax.cond(state.has_prior, lambda: kept, fitted)
        return state.replace(params=params, has_prior=jnp.ones_like(state.has_prior), level=level)

    def embed(state: State, x: Array) -> Array:
        def mean(params, x):
            return encode(params, x, nets, state.level)[0]

        return networks.apply_in_blocks(mean, state.params, x)

    def assign(state: State, z: Array) -> Array:
        return mixture.assign(z, prior(state.params, state.level))

    return Algorithm(init, step, refresh, embed, assign)
