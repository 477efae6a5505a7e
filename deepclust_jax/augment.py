"""Random changes of one row, (key, x) -> x; `batch` applies one to all rows of a batch, `pair` to
two views of each.

Images are [h, w, c], rows of several modalities one behind the other [d]. Nothing here knows
labels, and nothing but `photo(size=)` changes a shape.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from deepclust_jax.data import audio
from deepclust_jax.data import speech as spoken
from deepclust_jax.types import Array, Batch, Key


def batch(key: Key, batch: Batch, augment: Callable[[Key, Array], Array] | None) -> Batch:
    """The batch with every row changed by a draw of its own; unchanged where `augment` is None.

    The rows as they were stay in `clean`, from which targets are computed (as in DEC-DA).
    """
    if augment is None:
        return batch
    return batch._replace(x=every(key, batch.x, augment), clean=batch.x)


def pair(
    key: Key,
    batch: Batch,
    augment: Callable[[Key, Array], Array] | None = None,
    noise_share: float = 0.0,
) -> Batch:
    """The batch with a second view of every row as its `partner`, both changed independently.

    The second view is of the row's neighbour, or of the row itself where there are no neighbours.
    `noise_share` adds Gaussian noise to both views, as large as that share of the distance between
    a row and its partner, root mean square over the batch: a change for rows of any kind and scale.
    The rows as they were stay in `clean`, as in `batch`.

    Raises:
        ValueError: noise_share without partners: a row is at no distance from itself.
    """
    if noise_share and batch.partner is None:
        raise ValueError(
            f"expected a batch with partners for noise_share {noise_share}, found none; give "
            "train.fit neighbors="
        )
    one_key, other_key = jax.random.split(key)
    other = batch.x if batch.partner is None else batch.partner
    if augment is None and not noise_share:
        return batch._replace(partner=other)
    deviation = noise_share * _gap(batch.x, other, batch.mask) if noise_share else None

    def change(key: Key, x: Array) -> Array:
        x = x if augment is None else augment(key, x)
        # fold_in: the draws of `augment` are from the same key.
        return x if deviation is None else noise(jax.random.fold_in(key, 1), x, scale=deviation)

    one = every(one_key, batch.x, change)
    return batch._replace(x=one, clean=batch.x, partner=every(other_key, other, change))


def _gap(x: Array, partner: Array, mask: Array) -> Array:
    """Root mean square difference of rows and their partners, over rows that count and features."""
    squared = jnp.mean((x - partner).reshape(len(x), -1) ** 2, axis=1)
    mean = jnp.sum(jnp.where(mask > 0, squared, 0.0)) / jnp.maximum(jnp.sum(mask), 1.0)
    return jnp.sqrt(mean)


def parts_of(x: Array, parts: Sequence[tuple[int, ...]]) -> list[Array]:
    """The modalities of rows, by their shapes. [..., d] -> a [..., *shape] for each."""
    ends = [sum(math.prod(p) for p in parts[: i + 1]) for i in range(len(parts) - 1)]
    pieces = jnp.split(x, ends, axis=-1)
    return [a.reshape(*x.shape[:-1], *p) for a, p in zip(pieces, parts, strict=True)]


def each(
    parts: Sequence[tuple[int, ...]],
    changes: Sequence[Callable[[Key, Array], Array] | None],
) -> Callable[[Key, Array], Array]:
    """What changes every modality of a row by a draw of its own; None leaves one as it is.

    -> (key, [d]) -> [d].
    """

    def change(key: Key, x: Array) -> Array:
        keys = jax.random.split(key, len(parts))
        found = [
            part if own is None else own(k, part)
            for part, own, k in zip(parts_of(x, parts), changes, keys, strict=True)
        ]
        return jnp.concatenate([part.reshape(-1) for part in found])

    return change


def clean(batch: Batch) -> Array:
    """The rows of a batch without augmentation. -> [b, ...]."""
    return batch.x if batch.clean is None else batch.clean


def affine(
    key: Key,
    x: Array,
    *,
    degrees: float = 10.0,
    shift: float = 0.1,
    scale: float = 0.0,
    shear: float = 0.0,
) -> Array:
    """A rotated, shifted, scaled and sheared image, zero outside. [h, w, c] -> [h, w, c].

    Each amount is drawn uniformly from plus/minus its bound: `degrees`; `shift` as a share of
    height and width; `scale` as a share of the size; `shear` as a slope. The defaults are those of
    DEC-DA (Guo et al. 2018). Bilinear interpolation.

    Raises:
        ValueError: x is no image [h, w, c].
    """
    if x.ndim != 3:
        raise ValueError(f"expected an image [h, w, c], found shape {x.shape}")
    height, width, _ = x.shape
    draw = jax.random.uniform(key, (5,), minval=-1.0, maxval=1.0)
    angle = draw[0] * jnp.deg2rad(degrees)
    zoom, slope = 1.0 + draw[3] * scale, draw[4] * shear
    cos, sin = jnp.cos(angle) / zoom, jnp.sin(angle) / zoom
    # Each pixel of the result looks up its source, so this is the inverse of the motion.
    row = jnp.arange(height, dtype=x.dtype)[:, None] - (height - 1) / 2
    column = jnp.arange(width, dtype=x.dtype)[None, :] - (width - 1) / 2
    source_row = cos * row + sin * column + (height - 1) / 2 + draw[1] * shift * height
    source_column = (slope - sin) * row + cos * column + (width - 1) / 2 + draw[2] * shift * width
    return jax.vmap(_sample, in_axes=(2, None, None), out_axes=2)(x, source_row, source_column)


# Red, green and blue as brightness and two axes of colour (NTSC's Y, I and Q), in which a hue is an
# angle.
_TO_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def photo(
    key: Key,
    x: Array,
    *,
    area: float = 0.2,
    aspect: float = 4 / 3,
    light: float = 0.4,
    hue: float = 0.1,
    plain: float = 0.2,
    grey: float = 0.2,
    size: float = 1.0,
) -> Array:
    """A part of a photograph in other light. [h, w, c] -> [size h, size w, c].

    The views of SimCLR (Chen et al. 2020, appendix A, without blur, as for CIFAR-10), but for what
    is named below: a part of at least `area` of the picture, its sides in a ratio of up to
    `aspect`, at random flipped left to right; brightness, contrast and saturation changed by a
    factor of up to 1 +- `light` and the hue by up to `hue` of a full turn, but for a share `plain`
    of all; a share `grey` loses its colours. Pictures of one channel have neither hue nor
    saturation. Bilinear interpolation.

    A part shows things larger than the whole does, so an encoder that learns of parts as large as
    pictures sees things in pictures at sizes that it did not learn. With a `size` below 1 they come
    closer (Touvron et al. 2019, "Fixing the train-test resolution discrepancy"), and a step costs
    size squared as much.

    Deviations: parts are no smaller than 0.2 (SimCLR: 0.08), no filter comes before pixels are left
    out, changes come in one order, contrast is about the mean of each channel, values are not cut
    off at 0 and 1, and hue and saturation are those of NTSC's YIQ.

    Raises:
        ValueError: x is no image of one or three channels, or size is not in 0..1.
    """
    if x.ndim != 3 or x.shape[2] not in (1, 3):
        raise ValueError(f"expected an image of 1 or 3 channels [h, w, c], found shape {x.shape}")
    if not 0.0 < size <= 1.0:
        raise ValueError(f"expected a size above 0 and up to 1, found {size}")
    height, width, channels = x.shape
    draw = jax.random.uniform(key, (11,))
    share = area + (1.0 - area) * draw[0]
    ratio = aspect ** (2.0 * draw[1] - 1.0)
    rows = _part(draw[2], jnp.minimum(jnp.sqrt(share / ratio), 1.0), height, size)
    columns = _part(draw[3], jnp.minimum(jnp.sqrt(share * ratio), 1.0), width, size)
    columns = jnp.where(draw[4] < 0.5, columns[::-1], columns)
    x = jnp.einsum("hi,ijc,wj->hwc", rows, x, columns, precision=jax.lax.Precision.HIGHEST)
    is_plain = draw[9] < plain
    factors = jnp.where(is_plain, 1.0, 1.0 + light * (2.0 * draw[5:8] - 1.0))
    brightness, contrast, saturation = factors
    if channels == 3:
        saturation = jnp.where(draw[10] < grey, 0.0, saturation)
        angle = jnp.where(is_plain, 0.0, hue * 2.0 * jnp.pi * (2.0 * draw[8] - 1.0))
        cos, sin = saturation * jnp.cos(angle), saturation * jnp.sin(angle)
        turn = jnp.array([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])
        to_yiq = jnp.array(_TO_YIQ)
        change = jnp.linalg.inv(to_yiq) @ turn @ to_yiq
        x = jnp.einsum("hwi,ci->hwc", x, change, precision=jax.lax.Precision.HIGHEST)
    x = brightness * x
    mean = jnp.mean(x, axis=(0, 1), keepdims=True)
    return mean + contrast * (x - mean)


def _part(place: Array, share: Array, n: int, size: float) -> Array:
    """Matrix [size n, n] that stretches a share of n pixels to size n, `place` of the way along."""
    m = max(round(size * n), 1)
    first = place * (1.0 - share) * n
    places = first + share * n / m * (jnp.arange(m) + 0.5) - 0.5
    near = jnp.clip(places, 0.0, n - 1.0)  # half a pixel beyond the border is the border
    return jnp.maximum(0.0, 1.0 - jnp.abs(near[:, None] - jnp.arange(n)[None, :]))


def quarter_turn(key: Key, x: Array) -> Array:
    """The image turned by 0, 90, 180 or 270 degrees, exactly. [h, h, c] -> [h, h, c]."""
    if x.ndim != 3 or x.shape[0] != x.shape[1]:
        raise ValueError(f"expected a square image [h, h, c], found shape {x.shape}")
    turns = [lambda x, n=n: jnp.rot90(x, n) for n in range(4)]
    return jax.lax.switch(jax.random.randint(key, (), 0, 4), turns, x)


def speech(
    key: Key,
    x: Array,
    *,
    tempo: float = 0.2,
    ends: float = 0.1,
    tract: float = 0.15,
    hidden: float = 0.2,
    noise: float = 0.6,
) -> Array:
    """A word of `--scaling speech` as another voice may say it. [t, c, 1] -> [t, c, 1].

    Each amount is drawn uniformly from plus/minus its bound. Both `ends` move by a share of the
    length, and its middle by half of `tempo` against them, so that one part is faster and one
    slower; frequencies are stretched by a factor of 1 + `tract`, the length of a vocal tract
    (Jaitly & Hinton 2013, "Vocal Tract Length Perturbation"). What this leaves is normalised again.
    Then up to a share `hidden` of the frames, side by side, is set to the mean, 0 (Park et al.
    2019, "SpecAugment"), and Gaussian `noise` is added, against deviations of 1.

    Raises:
        ValueError: x is no word [t, c, 1].
    """
    if x.ndim != 3 or x.shape[2] != 1:
        raise ValueError(f"expected a word [t, c, 1] of coefficients, found shape {x.shape}")
    x = jnp.asarray(x)
    (n, c, _), keys = x.shape, jax.random.split(key, 4)
    transform = spoken.cosines(audio.BANDS, c)
    draw = jax.random.uniform(keys[0], (4,), minval=-1.0, maxval=1.0)
    first, last = ends * draw[0], 1.0 - ends * draw[1]
    share = jnp.linspace(0.0, 1.0, n)
    share = share + 0.5 * tempo * draw[2] * jnp.sin(jnp.pi * share)
    bands = spoken.at_places(x[:, :, 0] @ transform.T, (n - 1) * (first + (last - first) * share))
    places = (1.0 + tract * draw[3]) * jnp.arange(audio.BANDS)
    word = spoken.normalised(spoken.at_places(bands.T, places).T @ transform)
    length = hidden * n * jax.random.uniform(keys[1])
    begin = jax.random.uniform(keys[2]) * (n - length)
    frames = jnp.arange(n)
    is_hidden = (frames >= begin) & (frames < begin + length)
    word = jnp.where(is_hidden[:, None], 0.0, word)
    return (word + noise * jax.random.normal(keys[3], word.shape, word.dtype))[:, :, None]


def masks(key: Key, x: Array, *, time: float = 0.3, bands: float = 0.3) -> Array:
    """A sound with some of it hidden. [t, bands, 1] -> [t, bands, 1].

    Up to a share `time` of the frames, side by side, and up to a share `bands` of the bands are set
    to 0, the mean of each band (Park et al. 2019, "SpecAugment", without the warp of time).

    Raises:
        ValueError: x is no spectrogram [t, bands, 1].
    """
    if x.ndim != 3 or x.shape[2] != 1:
        raise ValueError(f"expected a spectrogram [t, bands, 1], found shape {x.shape}")
    of_time, of_bands = jax.random.split(key, (2, 2))
    is_hidden = _span(of_time, x.shape[0], time)[:, None] | _span(of_bands, x.shape[1], bands)[None]
    return jnp.where(is_hidden[:, :, None], 0.0, x)


def _span(keys: Key, n: int, most: float) -> Array:
    """Places side by side, from none to a share `most` of n, anywhere. Keys [2] -> bool [n]."""
    size = jax.random.randint(keys[0], (), 0, int(most * n) + 1)
    begin = jax.random.randint(keys[1], (), 0, n - size + 1)
    places = jnp.arange(n)
    return (places >= begin) & (places < begin + size)


def noise(key: Key, x: Array, *, scale: Array | float = 0.1) -> Array:
    """The row plus Gaussian noise of standard deviation `scale`."""
    return x + scale * jax.random.normal(key, x.shape, x.dtype)


def mask(key: Key, x: Array, *, rate: float = 0.2) -> Array:
    """The row with each feature set to 0 with probability `rate`, in 0..1."""
    return jnp.where(jax.random.bernoulli(key, rate, x.shape), 0.0, x)


def every(key: Key, x: Array, augment: Callable[[Key, Array], Array]) -> Array:
    """Every row changed by a draw of its own."""
    # Keys by place in the batch: padding changes no other row's draw.
    return jax.vmap(augment)(jax.random.split(key, x.shape[0]), x)


def _sample(x: Array, row: Array, column: Array) -> Array:
    """Bilinear values of one channel at real-valued places. [h, w], [h, w], [h, w] -> [h, w]."""
    height, width = x.shape
    # A frame of zeros, and places clipped to it: outside the image every neighbour is zero.
    padded, stride = jnp.pad(x, ((1, 2), (1, 2))).reshape(-1), width + 3
    row, column = jnp.clip(row + 1, 0, height + 1), jnp.clip(column + 1, 0, width + 1)
    top, left = jnp.floor(row), jnp.floor(column)
    down, right = row - top, column - left
    start = top.astype(jnp.int32) * stride + left.astype(jnp.int32)
    upper = padded[start] * (1 - right) + padded[start + 1] * right
    lower = padded[start + stride] * (1 - right) + padded[start + stride + 1] * right
    return upper * (1 - down) + lower * down
