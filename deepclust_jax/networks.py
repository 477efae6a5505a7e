"""Networks as pairs of pure functions. The only file that imports flax.linen."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deepclust_jax import bfloat16
from deepclust_jax.data.tokens import PAD, START
from deepclust_jax.types import Array, Key, Network, Params

_CONVOLUTIONS = ((32, 5), (64, 5), (128, 3))  # channels and size, each of stride 2 (ConvDEC-DA)
_WIDE = 0.5  # `start_variance` of wide networks, and of convolutions
# Of the topic of a text: the variance of its first weights, as a mean of small numbers is smaller;
# and how many words that say nothing it begins with, so that the first one does not decide it.
_OF_TOPIC, _DOUBT = 64.0, 3.0


def start_variance(widths: Sequence[int]) -> float:
    """Variance of the first weights of a perceptron, times the inputs of their layer.

    1/2, and up to 1 where the narrowest hidden layer has fewer than 256 units; the published value
    is 1/3 (DEC-keras). A small start clusters better. But the signal dies over eight layers, and as
    a step moves the output of a layer the less the narrower it is, narrow networks leave a small
    start late or never: on digits 128-128-512-10 can stay at the mean of the data.
    """
    return min(1.0, max(_WIDE, 128 / min(widths[:-1], default=256)))


def _kernel_init(variance: float) -> nn.initializers.Initializer:
    return nn.initializers.variance_scaling(variance, "fan_in", "uniform")


def _dense(
    width: int, precision: str, variance: float = _WIDE, *, use_bias: bool = True
) -> nn.Module:
    dot_general = bfloat16.dot_general if precision == "bfloat16" else None
    return nn.Dense(width, use_bias, kernel_init=_kernel_init(variance), dot_general=dot_general)


class _MLP(nn.Module):
    widths: tuple[int, ...]
    precision: str

    @nn.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], -1)
        variance = start_variance(self.widths)
        for width in self.widths[:-1]:
            x = nn.relu(_dense(width, self.precision, variance)(x))
        return _dense(self.widths[-1], self.precision, variance)(x)


def _conv(features: int, size: int, **more) -> nn.Module:
    return nn.Conv(features, (size, size), conv_general_dilated=_convolve, **more)


def _convolve(x: Array, kernel: Array, strides: Sequence[int], padding: str, **more) -> Array:
    """`lax.conv_general_dilated` of pictures [b, h, w, c] with padding "SAME", no dilation."""
    stride, other = strides
    if padding != "SAME" or stride != other:
        raise ValueError(f"expected padding SAME and one stride, found {padding} and {strides}")
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=partial(_convolve_by_product, stride=stride),
        default=lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, strides, padding, **more),
    )


def _convolve_by_product(x: Array, kernel: Array, *, stride: int) -> Array:
    """The same as one product of patches and kernel.

    XLA's own convolutions run without threads in the loops of a CPU, 20 times slower than this
    (jax issue 12868), and an epoch is a loop.
    """
    height, width, inputs, outputs = kernel.shape
    size = [-(-n // stride) for n in x.shape[1:3]]
    reach = [(m - 1) * stride + 1 for m in size]
    missing = [
        max(r - 1 + k - n, 0) for r, k, n in zip(reach, (height, width), x.shape[1:3], strict=True)
    ]
    border = [(m // 2, m - m // 2) for m in missing]
    return _by_product(jnp.pad(x, ((0, 0), *border, (0, 0))), kernel, size, stride)


def _by_product(x: Array, kernel: Array, size: Sequence[int], stride: int = 1) -> Array:
    """Sums over the kernel of pictures with a border, as one product of patches and kernel, for
    `size` places. [b, h', w', c], [a, a', c, o] -> [b, *size, o]."""
    height, width, inputs, outputs = kernel.shape
    reach = [(m - 1) * stride + 1 for m in size]
    places = [
        x[:, i : i + reach[0] : stride, j : j + reach[1] : stride]
        for i in range(height)
        for j in range(width)
    ]
    patches = jnp.concatenate(places, axis=-1).reshape(-1, height * width * inputs)
    return jnp.dot(patches, kernel.reshape(-1, outputs)).reshape(len(x), *size, outputs)


def _double_by_product(x: Array, kernel: Array) -> Array:
    """`lax.conv_transpose` with stride 2 and padding "SAME", of a square kernel of 2 or wider, as
    one product for all four pixels that each becomes: the taps of the kernel on zeros between
    pixels are left out, three in four."""
    size, outputs = len(kernel), kernel.shape[-1]
    # Pixel i is at 2 i + 1 among the zeros, and pixel 2 i + r of the output begins to see there at
    # 2 i + r - (size - 1) // 2: its tap a is on pixel i + offset.
    taps = [
        (r, a, (r - (size - 1) // 2 + a - 1) // 2)
        for r in (0, 1)
        for a in range(size)
        if (r - (size - 1) // 2 + a) % 2
    ]
    before, behind = -min(offset for *_, offset in taps), max(offset for *_, offset in taps)
    reach = before + behind + 1
    index = np.full((2, reach), size)  # of the tap; `size` is none
    for r, a, offset in taps:
        index[r, before + offset] = a
    none = ((0, 1), (0, 1), (0, 0), (0, 0))
    parts = jnp.pad(kernel, none)[index][:, :, index]  # [2, reach, 2, reach, inputs, outputs]
    parts = parts.transpose(1, 3, 4, 0, 2, 5).reshape(reach, reach, x.shape[-1], 4 * outputs)
    border = (before, behind)
    found = _by_product(jnp.pad(x, ((0, 0), border, border, (0, 0))), parts, x.shape[1:3])
    found = found.reshape(*found.shape[:3], 2, 2, outputs).transpose(0, 1, 3, 2, 4, 5)
    return found.reshape(len(x), 2 * x.shape[1], 2 * x.shape[2], outputs)


class ConvTranspose(nn.Module):
    """`nn.ConvTranspose` with stride 2, which has no place for another product. Its class has the
    same name, as that is the name of its parameters."""

    features: int
    size: int

    @nn.compact
    def __call__(self, x):
        shape = self.size, self.size, x.shape[-1], self.features
        kernel = self.param("kernel", _kernel_init(_WIDE), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))

        x = jax.lax.platform_dependent(
            x,
            kernel,
            cpu=_double_by_product,
            default=lambda x, kernel: jax.lax.conv_transpose(x, kernel, (2, 2), "SAME"),
        )
        return x + bias[None, None, None]


class _ConvEncoder(nn.Module):
    embed_dim: int

    @nn.compact
    def __call__(self, x):
        for features, size in _CONVOLUTIONS:
            x = nn.relu(_conv(features, size, strides=2, kernel_init=_kernel_init(_WIDE))(x))
        return _dense(self.embed_dim, "float32")(x.reshape(x.shape[0], -1))


class _ConvDecoder(nn.Module):
    shape: tuple[int, int, int]

    @nn.compact
    def __call__(self, z):
        height, width, channels = self.shape
        start = (math.ceil(height / 8), math.ceil(width / 8), 128)
        x = nn.relu(_dense(math.prod(start), "float32")(z)).reshape(z.shape[0], *start)
        for features, size in ((64, 3), (32, 5)):
            x = nn.relu(ConvTranspose(features, size)(x))
        x = ConvTranspose(channels, 5)(x)
        return x[:, :height, :width, :]  # three doublings may overshoot by a few pixels


class _Blocks(nn.Module):
    """Blocks of two 3x3 convolutions, of which the second halves the picture."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        found = []
        for width in self.widths:
            for stride in (1, 2):
                x = _conv(width, 3, strides=stride, use_bias=False, kernel_init=_kernel_init(2.0))(
                    x
                )
                # By groups of channels of one image: an image's features depend on no other's.
                groups = math.gcd(width, max(1, width // 8))
                x = nn.relu(nn.GroupNorm(num_groups=groups)(x))
            found.append(x)
        return tuple(found)


class _Normalised(nn.Module):
    """An encoder with batch normalisation; `widths` are those of the hidden layers of a perceptron,
    of the hidden layer behind convolutions or of the stages of a residual network, then that of the
    code."""

    widths: tuple[int, ...]
    precision: str
    kind: str

    @nn.compact
    def __call__(self, x, mask, use_statistics):
        def norm(x):
            # Momentum 0: what it keeps are the statistics of the rows it saw last.
            norm = nn.BatchNorm(use_statistics, momentum=0.0, use_fast_variance=False)
            counts = None if mask is None else mask.reshape(-1, *[1] * (x.ndim - 1)) > 0
            return norm(x, mask=counts)

        def conv(x, width, size, stride, **more):
            # No bias before a normalisation, which takes it away again: its gradient would be
            # rounding, which Adam makes as large as any.
            return norm(_conv(width, size, strides=stride, use_bias=False, **more)(x))

        hidden, spread = self.widths[:-1], {"kernel_init": _kernel_init(2.0)}
        if self.kind == "conv":
            for width in (64, 128, 256):
                x = nn.relu(conv(x, width, 3, 2, **spread))
        if self.kind == "resnet":
            x = nn.relu(conv(x, hidden[0], 3, 1, **spread))
            for i, width in enumerate(hidden):
                for stride in (1 if i == 0 else 2, 1):
                    change = nn.relu(conv(x, width, 3, stride, **spread))
                    change = conv(change, width, 3, 1, **spread)
                    if x.shape != change.shape:
                        x = conv(x, width, 1, stride, **spread)
                    x = nn.relu(x + change)
        if self.kind != "mlp":  # what is in a picture, wherever it is
            x, hidden = jnp.mean(x, axis=(1, 2)), hidden[-1:]
        x = x.reshape(x.shape[0], -1)
        for width in hidden:
            x = nn.relu(norm(_dense(width, self.precision, use_bias=False)(x)))
        return _dense(self.widths[-1], self.precision)(x)


class _Discriminator(nn.Module):
    kind: str
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        slope = partial(nn.leaky_relu, negative_slope=0.2)
        widths = self.widths
        if self.kind == "conv":
            for width, size in _CONVOLUTIONS:
                x = slope(_conv(width, size, strides=2, kernel_init=_kernel_init(2.0))(x))
            widths = widths[-1:]
        x = x.reshape(x.shape[0], -1)
        for width in widths:
            x = slope(_dense(width, "float32", 2.0)(x))
        return x, _dense(1, "float32")(x)[:, 0]


class _PairDiscriminator(nn.Module):
    kind: str
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x, code):
        slope = partial(nn.leaky_relu, negative_slope=0.2)
        features, _ = _Discriminator(self.kind, self.widths)(x)
        x = jnp.concatenate([features, code], axis=1)
        for width in (self.widths[-1], self.widths[-1]):
            x = slope(_dense(width, "float32", 2.0)(x))
        return _dense(1, "float32")(x)[:, 0]


class _Generator(nn.Module):
    kind: str
    shape: tuple[int, ...]
    widths: tuple[int, ...]
    is_bounded: bool

    @nn.compact
    def __call__(self, z):
        widths = self.widths[:1] if self.kind == "conv" else self.widths
        for width in widths:
            z = nn.relu(_dense(width, "float32", 2.0)(z))
        if self.kind == "conv":
            x = _ConvDecoder(self.shape)(z)
        else:
            x = _dense(math.prod(self.shape), "float32")(z).reshape(len(z), *self.shape)
        return nn.sigmoid(x) if self.is_bounded else x


class Normalised(NamedTuple):
    """A network with batch normalisation as pure functions."""

    init: Callable[..., Params]  # (key, x) -> params
    apply: Callable[..., Array]  # (params, x, mask=None) -> output; by the rows that count
    measure: Callable[[Params, Array], Params]  # (params, x) -> statistics of the layers for x
    fixed: Callable[[Params, Params, Array], Array]  # (params, statistics, x) -> output; by those


class _GRU(nn.Module):
    """A layer of gated recurrent units (Cho et al. 2014), whose memory ends where a text starts.

    The products of all inputs are one; a step has only that of the memory.
    """

    width: int

    @nn.compact
    def __call__(self, x, starts):
        gates = nn.Dense(3 * self.width)(x)
        kernel = self.param("kernel", nn.initializers.orthogonal(), (self.width, 3 * self.width))
        bias = self.param("bias", nn.initializers.zeros, (self.width,))

        def step(h, now):
            gates, start = now
            h = jnp.where(start[:, None], 0.0, h)
            reset, update, new = jnp.split(gates, 3, axis=-1)
            of_reset, of_update, of_new = jnp.split(h @ kernel, 3, axis=-1)
            reset, update = nn.sigmoid(reset + of_reset), nn.sigmoid(update + of_update)
            new = jnp.tanh(new + reset * (of_new + bias[None, :]))
            h = (1.0 - update) * new + update * h
            return h, h

        first = jnp.zeros((len(x), self.width), x.dtype)
        states = jax.lax.scan(step, first, (gates.swapaxes(0, 1), starts.T))[1]
        return states.swapaxes(0, 1)


def _reading_layers(kind: str, widths: Sequence[int]) -> list[nn.Module]:
    if kind == "gru":
        return [_GRU(width) for width in widths]
    return [_Attention(max(width // 64, 1)) for width in widths]


class _Frames(nn.Module):
    kind: str
    widths: tuple[int, ...]
    length: int
    outputs: int

    def setup(self):
        width = self.widths[0]
        if self.kind != "gru":
            self.inputs = nn.Dense(width)
            self.places = self.param(
                "places", nn.initializers.normal(width**-0.5), (self.length, width)
            )
        self.layers = _reading_layers(self.kind, self.widths)
        self.head = nn.Dense(self.outputs)

    def __call__(self, x):
        return self.told(self.states(x))

    def states(self, x):
        starts = jnp.zeros(x.shape[:2], bool)
        if self.kind != "gru":
            x = self.inputs(x) + self.places[None, : x.shape[1]]
        for layer in self.layers:
            x = layer(x, starts)
        return x

    def told(self, states):
        return self.head(states)


def _own_past(starts: Array) -> Array:
    """Which tokens of its window each one sees: itself, and those of its text before it. bool
    [m, t] -> bool [m, t, t]."""
    text = jnp.cumsum(starts, axis=1)
    return (text[:, :, None] == text[:, None, :]) & jnp.tri(starts.shape[1], dtype=bool)[None]


class _Attention(nn.Module):
    """A block of a transformer: every token looks at those before it in its text."""

    heads: int

    @nn.compact
    def __call__(self, x, starts):
        b, t, width = x.shape
        query, key, value = (
            a.reshape(b, t, self.heads, -1)
            for a in jnp.split(nn.Dense(3 * width)(nn.LayerNorm()(x)), 3, axis=-1)
        )
        found = jax.nn.dot_product_attention(query, key, value, mask=_own_past(starts)[:, None])
        x = x + nn.Dense(width, kernel_init=_kernel_init(0.1))(found.reshape(b, t, width))
        hidden = nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x)))
        return x + nn.Dense(width, kernel_init=_kernel_init(0.1))(hidden)


def _so_far(values: Array, starts: Array) -> Array:
    """Sums over the tokens of a text up to each, this one too. Windows follow one another, and a
    text goes on from one to the next until another starts. [m, t, d], bool [m, t] -> [m, t, d]."""
    own = _own_past(starts).astype(values.dtype) @ values
    text = jnp.cumsum(starts, axis=1)

    def join(one, other):
        return one[0] | other[0], jnp.where(other[0], other[1], one[1] + other[1])

    last = own[:, -1]
    begins = jnp.broadcast_to((text[:, -1] > 0)[:, None], last.shape)
    ends = jax.lax.associative_scan(join, (begins, last))[1]
    before = jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]])
    return own + jnp.where(text[:, :, None] == 0, before[:, None], 0.0)


def _doubted(total: Array, weight: Array) -> Array:
    """A mean of words that is small for few of them. [..., d], [..., 1] -> [..., d]."""
    return total / (weight + _DOUBT)


class _Language(nn.Module):
    vocabulary: int
    kind: str
    widths: tuple[int, ...]
    length: int
    topics: int

    def setup(self):
        width = self.widths[0]
        self.embedding = nn.Embed(
            self.vocabulary, width, embedding_init=nn.initializers.normal(width**-0.5)
        )
        if self.kind != "gru":
            self.places = self.param(
                "places", nn.initializers.normal(width**-0.5), (self.length, width)
            )
        self.layers = _reading_layers(self.kind, self.widths)
        self.topic = self.param(
            "topic", nn.initializers.normal(0.1), (self.vocabulary, self.topics)
        )
        self.weight = self.param("weight", nn.initializers.zeros, (self.vocabulary,))
        self.of_topic = nn.Dense(
            self.widths[-1],
            use_bias=False,
            kernel_init=nn.initializers.variance_scaling(_OF_TOPIC, "fan_in", "normal"),
        )
        self.head = nn.Sequential([nn.LayerNorm(), nn.Dense(width)])
        self.bias = self.param("bias", nn.initializers.zeros, (self.vocabulary,))

    def __call__(self, tokens):
        return self.logits(self.states(tokens))

    def topic_of(self, amounts):
        weights = amounts * jnp.exp(self.weight)[None, :]
        return _doubted(weights @ self.topic, weights.sum(axis=1, keepdims=True))

    def states(self, tokens):
        starts = tokens == START
        is_word = (tokens != START) & (tokens != PAD)
        weights = jnp.where(is_word, jnp.exp(self.weight[tokens]), 0.0)[:, :, None]
        sums = _so_far(jnp.concatenate([weights * self.topic[tokens], weights], axis=2), starts)
        topic = _doubted(sums[:, :, :-1], sums[:, :, -1:])
        x = self.embedding(tokens)
        if self.kind != "gru":
            x = x + self.places[None, : tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, starts)
        return jnp.concatenate([x, topic], axis=2)

    def logits(self, states):
        x, topic = states[..., : -self.topics], states[..., -self.topics :]
        # The embedding is the last layer too: rare words learn from both ends.
        found = self.embedding.attend(self.head(x + self.of_topic(topic)))
        return found + self.bias.reshape(*[1] * (found.ndim - 1), -1)


class Frames(NamedTuple):
    """A network that reads the frames of a sound in order, as pure functions."""

    init: Callable[[Key, Array], Params]  # (key, frames [b, t, c]) -> params
    states: Callable[[Params, Array], Array]  # (params, frames [b, t, c]) -> [b, t, m], after each
    told: Callable[[Params, Array], Array]  # (params, states [..., m]) -> frames [..., c]


class Language(NamedTuple):
    """A network that reads tokens in order, as pure functions."""

    init: Callable[[Key, Array], Params]  # (key, tokens [b, t]) -> params
    # (params, tokens [b, t]) -> [b, t, m + topics], after each: what it remembers, and the topic
    states: Callable[[Params, Array], Array]
    logits: Callable[[Params, Array], Array]  # (params, states [..., m + topics]) -> [..., v]
    topic: Callable[[Params, Array], Array]  # (params, amounts of words [b, v]) -> [b, topics]


def _network(module: nn.Module) -> Network:
    return Network(init=lambda key, *example: module.init(key, *example), apply=module.apply)


def mlp(widths: Sequence[int], *, precision: str = "float32") -> Network:
    """A perceptron, ReLU between the layers and a linear last one. [b, ...] -> [b, widths[-1]].

    Inputs are flattened. `precision="bfloat16"` rounds both factors of every product, forward and
    backward, and sums in float32; weights and activations stay float32.
    """
    _check_precision(precision)
    return _network(_MLP(tuple(widths), precision))


def conv_encoder(embed_dim: int) -> Network:
    """Three strided convolutions and a linear layer (ConvDEC-DA). [b, h, w, c] -> [b, d]."""
    return _network(_ConvEncoder(embed_dim))


def conv_decoder(shape: tuple[int, int, int]) -> Network:
    """The mirror image of `conv_encoder`. [b, d] -> [b, *shape]."""
    return _network(_ConvDecoder(shape))


def discriminator(kind: str, shape: tuple[int, ...], hidden: Sequence[int]) -> Network:
    """What tells rows from made ones. [b, *shape] -> features [b, m], logits [b] of being real.

    `kind` is "mlp" (widths `hidden`) or "conv": images, the convolutions of `conv_encoder` and a
    hidden layer of the last width. Its last hidden layer are the features. No normalisation by the
    batch: a penalty on the gradient of a row's logit would be of the other rows too.

    Raises:
        ValueError: as `autoencoder`.
    """
    _check_kind(kind, shape, "float32", known=("mlp", "conv"))
    return _network(_Discriminator(kind, tuple(hidden)))


def pair_discriminator(kind: str, shape: tuple[int, ...], hidden: Sequence[int]) -> Network:
    """What tells rows beside their codes from made ones beside theirs. [b, *shape], [b, m] ->
    logits [b] of being real.

    The features of `discriminator` and the code, then two layers of the last width.

    Raises:
        ValueError: as `autoencoder`.
    """
    _check_kind(kind, shape, "float32", known=("mlp", "conv"))
    return _network(_PairDiscriminator(kind, tuple(hidden)))


def generator(
    kind: str, shape: tuple[int, ...], hidden: Sequence[int], *, is_bounded: bool
) -> Network:
    """What makes rows. [b, m] -> [b, *shape], in 0..1 where `is_bounded`.

    `kind` is "mlp" (widths `hidden`) or "conv": images, a hidden layer of the first width, then
    `conv_decoder`.

    Raises:
        ValueError: as `autoencoder`.
    """
    _check_kind(kind, shape, "float32", known=("mlp", "conv"))
    return _network(_Generator(kind, tuple(shape), tuple(hidden), is_bounded))


def conv_blocks(widths: Sequence[int]) -> Network:
    """Convolutional blocks, with the output of each. [b, h, w, c] -> tuple of [b, h', w', width].

    Each block halves height and width, rounded up, and has group normalisation and ReLU.
    """
    return _network(_Blocks(tuple(widths)))


def outputs(network: Network, shape: tuple[int, ...]) -> Any:
    """What a network gives for one row of `shape`, as shapes: nothing is computed."""

    def of_one(x):
        return network.apply(network.init(jax.random.key(0), x), x)

    return jax.eval_shape(of_one, jax.ShapeDtypeStruct((1, *shape), jnp.float32))


def pooled(x: Array, size: int = 1) -> Array:
    """Means over a grid of `size` x `size` parts of a picture, no finer than its pixels.

    Parts overlap where the size does not divide that of the picture. [b, h, w, c] -> [b, m].
    """

    def parts(n: int) -> list[slice]:
        m = min(size, n)
        return [slice(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]

    means = [
        jnp.mean(x[:, rows, columns], axis=(1, 2))
        for rows in parts(x.shape[1])
        for columns in parts(x.shape[2])
    ]
    return jnp.concatenate(means, axis=-1)


def autoencoder(
    kind: str,
    shape: tuple[int, ...],
    hidden: Sequence[int],
    embed_dim: int,
    *,
    precision: str = "float32",
) -> tuple[Network, Network]:
    """Encoder and decoder for rows of the given shape: [b, *shape] -> [b, embed_dim] and back.

    `kind` is "mlp" (widths `hidden`, mirrored in the decoder) or "conv" (images, fixed widths).

    Raises:
        ValueError: unknown kind, or "conv" for rows that are no images.
    """
    _check_kind(kind, shape, precision)
    if kind == "conv":
        return conv_encoder(embed_dim), conv_decoder(tuple(shape))
    encoder = mlp((*hidden, embed_dim), precision=precision)
    flat = mlp((*reversed(hidden), math.prod(shape)), precision=precision)
    decoder = Network(flat.init, lambda params, z: flat.apply(params, z).reshape(-1, *shape))
    return encoder, decoder


def normalised_encoder(
    kind: str,
    shape: tuple[int, ...],
    hidden: Sequence[int],
    embed_dim: int,
    *,
    precision: str = "float32",
) -> Normalised:
    """An encoder with batch normalisation after each hidden layer. [b, *shape] -> [b, embed_dim].

    `kind` is "mlp" (widths `hidden`) or for images "conv" (three strided convolutions of fixed
    widths) or "resnet": two residual blocks of each of the widths `hidden`, of which all but the
    first begin by halving the picture. Behind both come their mean over the picture and a hidden
    layer of the last width. 64, 128, 256, 512 is ResNet-18 as for pictures
    of 32 x 32 (He et al. 2016, with the first layer of Chen et al. 2020, appendix B.9).

    Statistics are those of the batch, without its padding; no running means. `measure` takes those
    of given rows, all at once, and with them a row has a code of its own.

    Raises:
        ValueError: as `autoencoder`.
    """
    _check_kind(kind, shape, precision, known=("mlp", "conv", "resnet"))
    module = _Normalised((*hidden, embed_dim), precision, kind)

    def init(key, x):
        return {"params": module.init(key, x, None, False)["params"]}

    def train(params, x, mask):
        return module.apply(params, x, mask, False, mutable=["batch_stats"])

    def fixed(params, statistics, x):
        return module.apply(params | statistics, x, None, True)

    return Normalised(
        init,
        lambda params, x, mask=None: train(params, x, mask)[0],
        lambda params, x: train(params, x, None)[1],
        fixed,
    )


def frames(kind: str, widths: Sequence[int], length: int, outputs: int) -> Frames:
    """A network that tells one of the next frames, of `outputs` numbers, of up to `length`, none of
    which sees those behind it; kinds and widths as of `language`.

    Raises:
        ValueError: as `language`.
    """
    _check_reader(kind, widths)
    module = _Frames(kind, tuple(widths), length, outputs)
    return Frames(
        module.init,
        lambda params, x: module.apply(params, x, method="states"),
        lambda params, states: module.apply(params, states, method="told"),
    )


def language(
    kind: str, vocabulary: int, widths: Sequence[int], length: int, *, topics: int
) -> Language:
    """A network that tells the next of up to `length` tokens, none of which sees those behind it
    nor those of another text: a text begins with START.

    `kind` is "gru", layers of gated recurrent units of these widths, or "transformer", as many
    blocks of one width. Tokens are embedded in as many numbers as the first layer has. What these
    remember ends with a window. Beside it is the topic of the text, `topics` numbers: a mean over
    all its words so far, weighted by how telling each is, which is learnt. It goes on in the next
    window, if no other text starts there, so windows of a text follow one another. `topic` is that
    mean for any amounts of words.

    Raises:
        ValueError: another kind, or a transformer of several widths.
    """
    _check_reader(kind, widths)
    module = _Language(vocabulary, kind, tuple(widths), length, topics)
    return Language(
        module.init,
        lambda params, tokens: module.apply(params, tokens, method="states"),
        lambda params, states: module.apply(params, states, method="logits"),
        lambda params, amounts: module.apply(params, amounts, method="topic_of"),
    )


def _check_reader(kind: str, widths: Sequence[int]) -> None:
    if kind not in ("gru", "transformer"):
        raise ValueError(f"expected network 'gru' or 'transformer', found {kind!r}")
    if kind == "transformer" and (len(set(widths)) > 1 or (widths[0] > 64 and widths[0] % 64)):
        raise ValueError(
            f"expected one width for all layers of a transformer, below 64 or a multiple of it, "
            f"found {tuple(widths)}"
        )


def change_code(encoder: Params, decoder: Params, matrix: Array) -> tuple[Params, Params]:
    """The autoencoder whose code is the old code times `matrix` [d, d], reconstructing as before.

    The code is linear and so is what the decoder does with it first, so that the matrix goes into
    the last layer of the one and its inverse into the first layer of the other.
    """
    last = last_layer(encoder)
    times = partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
    coded = {name: times(leaf, matrix) for name, leaf in encoder["params"][last].items()}
    kernel = times(jnp.linalg.inv(matrix), decoder["params"]["Dense_0"]["kernel"])
    decoded = decoder["params"]["Dense_0"] | {"kernel": kernel}
    return (
        encoder | {"params": encoder["params"] | {last: coded}},
        decoder | {"params": decoder["params"] | {"Dense_0": decoded}},
    )


def last_layer(encoder: Params) -> str:
    """Name of the linear layer that makes the code."""
    layers = [name for name in encoder["params"] if name.startswith("Dense_")]
    return max(layers, key=lambda name: int(name.removeprefix("Dense_")))


def with_more_outputs(encoder: Params, wider: Params) -> Params:
    """The encoder with the further outputs of a wider one of else the same shape."""
    last = last_layer(encoder)
    joined = {
        name: jnp.concatenate([leaf, wider["params"][last][name][..., leaf.shape[-1] :]], axis=-1)
        for name, leaf in encoder["params"][last].items()
    }
    return encoder | {"params": encoder["params"] | {last: joined}}


def with_constant_outputs(encoder: Params, values: Array) -> Params:
    """The encoder with its last outputs constant, at `values` [m], and free to be learned."""
    last = last_layer(encoder)
    layer = encoder["params"][last]
    first = layer["bias"].shape[-1] - values.shape[-1]
    layer = layer | {
        "kernel": layer["kernel"].at[..., first:].set(0.0),
        "bias": layer["bias"].at[..., first:].set(values),
    }
    return encoder | {"params": encoder["params"] | {last: layer}}


def apply_in_blocks(
    apply: Callable[[Params, Array], Array], params: Params, x: Array, *, block: int = 4096
) -> Array:
    """`apply(params, x)` without holding the hidden layers of all rows. [n, ...] -> [n, d]."""
    n = x.shape[0]
    block = min(block, n)
    n_blocks = -(-n // block)
    # The last block overlaps its neighbour instead of being padded: one compiled shape, no copy.
    starts = jnp.minimum(jnp.arange(n_blocks) * block, n - block)
    blocks = jax.lax.map(
        lambda start: apply(params, jax.lax.dynamic_slice_in_dim(x, start, block)), starts
    )
    flat = blocks.reshape(n_blocks * block, *blocks.shape[2:])
    overlap = n_blocks * block - n
    if overlap == 0:
        return flat
    head = (n_blocks - 1) * block
    return jnp.concatenate([flat[:head], flat[head + overlap :]])


def _check_kind(
    kind: str, shape: tuple[int, ...], precision: str, *, known: Sequence[str] = ("mlp", "conv")
) -> None:
    if kind not in known:
        raise ValueError(f"expected network {' or '.join(map(repr, known))}, found {kind!r}")
    if kind != "mlp" and len(shape) != 3:
        raise ValueError(f"expected rows [h, w, c] for a {kind} network, found {list(shape)}")
    if kind != "mlp" and precision != "float32":
        raise ValueError(f"expected precision float32 for a {kind} network, found {precision}")
    _check_precision(precision)


def _check_precision(precision: str) -> None:
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"expected precision 'float32' or 'bfloat16', found {precision!r}")
