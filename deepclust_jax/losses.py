"""Losses: arrays in, one number per example out. No parameters, no mean; `masked_mean` averages.

Sums run over features, as the papers write them, so the weight of one term against another depends
on it: dividing a reconstruction by the number of features divides its weight by that number.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepclust_jax.types import Array

SIZES = ("free", "even", "prior")  # how a batch is assigned; see `prices`
ADVERSARIAL = ("logistic", "hinge", "wasserstein")  # see `of_discriminator`
_STAGES, _SINKHORN = 16, 20  # temperatures, and iterations at each


def masked_mean(per_example: Array, mask: Array) -> Array:
    """Mean over the rows that count. [b], [b] of 0/1 -> []; 0 where no row counts."""
    if per_example.shape != mask.shape:
        raise ValueError(
            f"expected one number for each row of the mask {list(mask.shape)}, found shape "
            f"{list(per_example.shape)}; sum over the features first"
        )
    # `where`, not a product: padding that overflows would give 0 * inf = nan.
    kept = jnp.where(mask > 0, per_example * mask, 0.0)
    return jnp.sum(kept) / jnp.maximum(jnp.sum(mask), 1.0)


def reconstruction(x: Array, x_hat: Array) -> Array:
    """Squared error summed over all features. [b, ...], [b, ...] -> [b]."""
    if x.shape != x_hat.shape:
        raise ValueError(f"expected a reconstruction of shape {x.shape}, found {x_hat.shape}")
    return jnp.sum((x - x_hat) ** 2, axis=tuple(range(1, x.ndim)))


def total_variance(x: Array, mask: Array) -> Array:
    """Variance of the rows that count, summed over features. [b, ...], [b] of 0/1 -> [], > 0."""
    rows = jnp.where(mask[:, None] > 0, x.reshape(x.shape[0], -1), 0.0)
    mean = jnp.sum(rows, axis=0, keepdims=True) / jnp.maximum(jnp.sum(mask), 1.0)
    variance = masked_mean(jnp.sum((rows - mean) ** 2, axis=-1), mask)
    # A batch of equal rows, such as a last batch of one, has none but rounding; its mean square
    # serves, and for rows of zeros 1.
    square = jnp.sum(mean**2)
    spare = jnp.where(square > 0, square, 1.0)
    return jnp.where(variance > 1e-12 * square, variance, spare)


def squared_distances(z: Array, centroids: Array) -> Array:
    """Squared distance of every code to every centroid. [b, d], [k, d] -> [b, k].

    By direct differences: exact for near points, and its gradient is finite at distance zero. For
    batches; `clustering.kmeans.assign` is the blocked form for whole data sets.
    """
    return jnp.sum((z[:, None, :] - centroids[None, :, :]) ** 2, axis=-1)


def prices(sqdist: Array, mask: Array, width: int, sizes: str, frequency: Array | None) -> Array:
    """What to add to squared distances [b, k] so that clusters get their sizes. -> [k].

    A row belongs to the cluster with the lowest sum of distance and price. In a mixture of
    Gaussians of one variance s in all `width` dimensions the price is -2 s log(share of the
    cluster), with s from the distances to the nearest centroid. No gradient passes. `sizes` says
    which shares are meant:

    - "free": prices of 0, every row to its nearest centroid;
    - "prior": the shares are `frequency` [k], which sum to 1;
    - "even": shares for which the soft sizes in the batch are equal, by Sinkhorn's iterations
      (Caron et al. 2020, SwAV, eq. 3; Asano et al. 2020), see `even_shares`.
    """
    if sizes == "free":
        return jnp.zeros(sqdist.shape[1])
    sqdist = jax.lax.stop_gradient(sqdist)
    nearest = masked_mean(jnp.min(sqdist, axis=1), mask)
    temperature = jnp.maximum(2.0 * nearest / width, 1e-12)
    if sizes == "prior":
        log_shares = jnp.log(jnp.maximum(jax.lax.stop_gradient(frequency), 1e-6))
        return -temperature * (log_shares - jnp.max(log_shares))
    return -temperature * _even_log_shares(-sqdist / temperature, mask)


def check_sizes(sizes: str) -> None:
    """Raise ValueError for sizes that `prices` does not know."""
    if sizes not in SIZES:
        raise ValueError(f"expected sizes {', '.join(SIZES)}, found {sizes!r}")


def even_shares(scores: Array, mask: Array) -> Array:
    """Shares proportional to exp(scores) times what makes the sizes of the clusters in the batch
    equal, by Sinkhorn's iterations. [b, k], [b] of 0/1 -> [b, k], rows sum to 1.

    Nearly equal: where every row is sure, sizes can miss by a few rows. A batch with fewer rows
    than clusters is left as it is, for it has no even sizes.
    """
    return jax.nn.softmax(scores + _even_log_shares(scores, mask)[None, :], axis=1)


def _even_log_shares(scores: Array, mask: Array) -> Array:
    """What to add to scores [b, k] for equal sizes; at most 0. -> [k]."""
    # In the domain of logarithms: exp of scores over a low temperature is 0 or overflows. Sharp
    # scores take thousands of iterations, unless one begins at a temperature where they are soft.
    log_mask = jnp.where(mask > 0, 0.0, -jnp.inf)
    spread = jnp.max(scores, axis=1) - jnp.min(scores, axis=1)
    hottest = jnp.maximum(jnp.max(jnp.where(mask > 0, spread, 0.0)) / 4.0, 1.0)

    def stage(i, price):
        heat = hottest ** (1.0 - i / (_STAGES - 1))

        def even(_, log_shares):
            log_p = jax.nn.log_softmax(scores / heat + log_shares[None, :], axis=1)
            size = jax.nn.logsumexp(log_p + log_mask[:, None], axis=0)
            log_shares = log_shares - size
            return log_shares - jnp.max(log_shares)

        return heat * jax.lax.fori_loop(0, _SINKHORN, even, price / heat)

    price = jax.lax.fori_loop(0, _STAGES, stage, jnp.zeros(scores.shape[1]))
    return jnp.where(jnp.sum(mask) >= scores.shape[1], price, 0.0)


def to_own_centroid(z: Array, centroids: Array, labels: Array) -> Array:
    """Squared distance to a given centroid (DCN, eq. 4). [b, d], [k, d], [b] int -> [b]."""
    return jnp.sum((z - centroids[labels]) ** 2, axis=-1)


def soft_kmeans(
    z: Array,
    centroids: Array,
    alpha: Array | float,
    *,
    clean: Array | None = None,
    price: Array | None = None,
) -> Array:
    """Squared distance weighted by a softmin over clusters (DKM, eq. 3). [b, d], [k, d] -> [b].

    `alpha` >= 0 is the inverse temperature: 0 weighs all clusters alike, and towards
    infinity it is k-means.
    Where `z` are codes of augmented rows, `clean` [b, d] are those of the rows as they were, and
    the weights are theirs: fixed targets, without a gradient. `price` [k] is added to the distances
    that the weights come from; see `prices`.
    """
    sqdist = squared_distances(z, centroids)
    by = sqdist if clean is None else squared_distances(clean, centroids)
    by = by if price is None else by + price[None, :]
    weights = jax.nn.softmax(-alpha * by, axis=-1)  # subtracts the row's largest exponent
    if clean is not None:
        # Between two clusters the gradient of a weight is alpha times a difference of distances,
        # which is 0 there for one row but not for two: it would burst at alpha = 1000.
        weights = jax.lax.stop_gradient(weights)
    return jnp.sum(weights * sqdist, axis=-1)


def log_student_t(z: Array, centroids: Array) -> Array:
    """Logarithm of the share of each cluster in a code by Student's t with one degree of freedom
    (DEC, eq. 1). [b, d], [k, d] -> [b, k]."""
    return jax.nn.log_softmax(-jnp.log1p(squared_distances(z, centroids)), axis=-1)


def sharpened(log_shares: Array, frequency: Array) -> Array:
    """Shares squared, over the frequency of the cluster (DEC, eq. 3). [b, k], [k] -> [b, k].

    Rows sum to 1. The frequency is a sum or a mean over all rows, not over the batch.
    """
    log_frequency = jnp.log(jnp.maximum(frequency, 1e-30))
    return jax.nn.softmax(2.0 * log_shares - log_frequency[None, :], axis=-1)


def divergence(p: Array, log_q: Array) -> Array:
    """Kullback-Leibler divergence of q from p over clusters, nats. [b, k], [b, k] -> [b]."""
    log_p = jnp.log(jnp.where(p > 0, p, 1.0))  # 0 log 0 = 0, and its gradient is no NaN
    return jnp.sum(p * (log_p - log_q), axis=-1)


def binary_cross_entropy(x: Array, logits: Array) -> Array:
    """Negative logarithm of the probability of rows in 0..1 under Bernoulli variables, summed over
    features, nats. [b, ...], [b, ...] -> [b]."""
    if x.shape != logits.shape:
        raise ValueError(f"expected logits of shape {x.shape}, found {logits.shape}")
    cost = jnp.maximum(logits, 0.0) - x * logits + jnp.log1p(jnp.exp(-jnp.abs(logits)))
    return jnp.sum(cost, axis=tuple(range(1, x.ndim)))


def of_discriminator(real: Array, made: Array, objective: str) -> Array:
    """What the discriminator of a GAN minimises, by its logits of rows and of made ones.

    [b], [b] -> [b].

    - "logistic": -log D(x) - log(1 - D(G(z))), D the sigmoid of the logit, nats (Goodfellow et al.
      2014, eq. 1);
    - "hinge": max(0, 1 - logit(x)) + max(0, 1 + logit(G(z))) (Lim & Ye 2017);
    - "wasserstein": logit(G(z)) - logit(x) (Arjovsky et al. 2017).
    """
    if objective == "logistic":
        return jax.nn.softplus(-real) + jax.nn.softplus(made)
    if objective == "hinge":
        return jax.nn.relu(1.0 - real) + jax.nn.relu(1.0 + made)
    return made - real


def of_generator(made: Array, objective: str) -> Array:
    """What the generator of a GAN minimises, by the logits of what it made. [b] -> [b].

    "logistic": -log D(G(z)), nats, whose gradient does not vanish where the discriminator is sure
    (Goodfellow et al. 2014, section 3); the others: -logit.
    """
    return jax.nn.softplus(-made) if objective == "logistic" else -made


def unit_length(z: Array) -> Array:
    """Codes over their length. [n, d] -> [n, d]; a code of zeros stays, and has a gradient."""
    return z / jnp.sqrt(jnp.sum(z**2, axis=-1, keepdims=True) + 1e-12)


def contrast(one: Array, other: Array, mask: Array, temperature: float) -> Array:
    """NT-Xent: how hard each view of a row is to tell from the views of all other rows, nats, mean
    of its two views (Chen et al. 2020, eq. 1). [b, d], [b, d], [b] of 0/1 -> [b].

    Views are brought to unit length; those of rows that do not count are none that others are told
    from.
    """
    b = one.shape[0]
    views = unit_length(jnp.concatenate([one, other]))
    scores = jnp.dot(views, views.T) / temperature
    is_other = (jnp.concatenate([mask, mask]) > 0)[None, :] & ~jnp.eye(2 * b, dtype=bool)
    # The own partner stays, so that a row without others has a finite loss of 0.
    partner = (jnp.arange(2 * b) + b) % (2 * b)
    is_partner = jax.nn.one_hot(partner, 2 * b, dtype=bool)
    total = jax.nn.logsumexp(jnp.where(is_other | is_partner, scores, -jnp.inf), axis=-1)
    cost = total - jnp.sum(jnp.where(is_partner, scores, 0.0), axis=-1)
    return 0.5 * (cost[:b] + cost[b:])


def mutual_information(one: Array, other: Array, mask: Array) -> Array:
    """Information that the cluster of one view has of that of the other, nats (IIC, eq. 3).

    Shares [b, k] twice, rows that sum to 1, and [b] of 0/1 -> []. At most log k: every row sure,
    both views in one cluster, all clusters of one size. The joint distribution is that of the
    batch, made symmetric.
    """
    one = one * mask[:, None]
    joint = jnp.dot(one.T, other, precision=jax.lax.Precision.HIGHEST)
    joint = (joint + joint.T) / (2.0 * jnp.maximum(jnp.sum(mask), 1.0))
    log_joint = jnp.log(jnp.maximum(joint, 1e-12))
    log_own = jnp.log(jnp.maximum(jnp.sum(joint, axis=1), 1e-12))
    return jnp.sum(joint * (log_joint - log_own[:, None] - log_own[None, :]))


def agreement(one: Array, other: Array) -> Array:
    """Negative logarithm of the chance that both views are in one cluster (SCAN, eq. 2).

    Shares [b, k] twice -> [b], nats; at most 16, so that a pair of sure rows that disagree has a
    gradient that is finite.
    """
    return -jnp.log(jnp.sum(one * other, axis=-1) + 1e-7)


def entropy(shares: Array) -> Array:
    """Entropy over the last axis, nats. [..., k] -> [...], 0 to log k."""
    log_shares = jnp.log(jnp.where(shares > 0, shares, 1.0))
    return -jnp.sum(shares * log_shares, axis=-1)


def value_and_grad(loss: Callable[..., tuple[Array, dict[str, Array]]]) -> Callable[..., Any]:
    """`jax.value_and_grad` of an algorithm's loss: (params, ...) -> ((value, metrics), gradients).

    Raises:
        TypeError: the loss returns something else than (value [], dict of metrics []), or the
            metric "loss", which is the value's own.
    """

    def checked(*args, **static):
        found = loss(*args, **static)
        wanted = "expected a loss to return (value [], dict of metrics [])"
        if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], dict)):
            raise TypeError(f"{wanted}, found {_kind(found)}; return both, {{}} for no metrics")
        for name, value in (("value", found[0]), *found[1].items()):
            if not isinstance(name, str):
                raise TypeError(f"{wanted}, found a metric called {name!r}; give it a name")
            if not isinstance(value, jax.Array | np.ndarray | np.generic | float | int):
                raise TypeError(f"{wanted}, found {name} as {_kind(value)}; return an array")
            if jnp.shape(value):
                found_shape = f"{name} {list(jnp.shape(value))}"
                raise TypeError(f"{wanted}, found {found_shape}; use losses.masked_mean")
        if "loss" in found[1]:
            raise TypeError(f"{wanted}, found a metric 'loss', the name of the value; rename it")
        return jnp.asarray(found[0], float), found[1]

    return jax.value_and_grad(checked, has_aux=True)


def _kind(found: Any) -> str:
    if isinstance(found, tuple):
        return f"({', '.join(_kind(item) for item in found)})"
    return "an array" if isinstance(found, jax.Array) else f"a {type(found).__name__}"
