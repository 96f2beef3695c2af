"""The operations that make a texture stranger.

Images are float [h w 3], RGB, in [0, 1] and on the grid k / 255. Each operation
follows the uint8 arithmetic of the library that the release calls (imgaug,
OpenCV or PIL), its rounding or truncation included, and returns to the grid.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from draem_jax import platforms
from draem_jax.simulator import rotation

Image = Float[Array, 'h w 3']
Scalar = Float[Array, ''] | float
# What becomes of each of the 256 values of each channel, on the grid.
Table = Float[Array, '256 3']

# The operations by name: the release has all but `color`, the paper seven.
AUGMENTATIONS = (
  'autocontrast',
  'brightness',
  'color',
  'equalize',
  'gamma_contrast',
  'hue_saturation',
  'invert',
  'posterize',
  'rotate',
  'sharpness',
  'solarize',
)


def gamma_contrast(image: Image, *, gamma: Float[Array, '3']) -> Image:
  """Raises each channel to a power of its own.

  Args:
    image: the texture.
    gamma: exponents of the channels; above 1 darkens.

  Returns:
    The texture with another contrast.
  """
  return _to_grid(_truncate((_levels(image) / 255) ** gamma * 255))


def brightness(image: Image, *, scale: Scalar, offset: Scalar) -> Image:
  """Scales and shifts V of HSV.

  Args:
    image: the texture.
    scale: factor of V, applied first.
    offset: what is added to V, in units of its range.

  Returns:
    The brighter or darker texture.
  """
  hue, saturation, value = _hsv_levels(image)
  value = _truncate(value * scale) + jnp.round(offset * 255)
  return _from_hsv_levels(hue, saturation, jnp.clip(value, 0, 255))


def sharpness(image: Image, *, factor: Scalar) -> Image:
  """Moves away from a smoothed copy, as PIL's `ImageEnhance.Sharpness`.

  Args:
    image: the texture.
    factor: 0 gives the smoothed copy, 1 the image, more sharpens.

  Returns:
    The smoother or sharper texture; the border is not smoothed.
  """
  height, width, channels = image.shape
  # With the channels in the rows, neighbors are three places apart and sums of
  # shifted copies are plain vector additions, quicker than a convolution.
  levels = _levels(image).reshape(height, width * channels)
  padded = jnp.pad(levels, ((1, 1), (channels, channels)))
  sums = padded[:-2] + padded[1:-1] + padded[2:]
  sums = (
    sums[:, : -2 * channels]
    + sums[:, channels:-channels]
    + sums[:, 2 * channels :]
  )
  smooth = jnp.floor((sums + 4 * levels) / 13 + 0.5)
  row, place = jnp.arange(height)[:, None], jnp.arange(width * channels)
  inside = (row > 0) & (row < height - 1)
  inside &= (place >= channels) & (place < (width - 1) * channels)
  smooth = jnp.where(inside, smooth, levels)
  return _blend(smooth, levels, factor).reshape(image.shape)


def hue_saturation(
  image: Image, *, hue_shift: Scalar, saturation_shift: Scalar
) -> Image:
  """Turns the hue and shifts the saturation.

  Args:
    image: the texture.
    hue_shift: in units of the circle.
    saturation_shift: in units of the range of S.

  Returns:
    The texture in other colors.
  """
  hue, saturation, value = _hsv_levels(image)
  hue += jnp.mod(jnp.trunc(hue_shift * 180), 180)
  hue = jnp.where(hue >= 180, hue - 180, hue)
  saturation = jnp.clip(saturation + jnp.round(saturation_shift * 255), 0, 255)
  return _from_hsv_levels(hue, saturation, value)


def color(image: Image, *, factor: Scalar) -> Image:
  """Moves away from a gray copy, as PIL's `ImageEnhance.Color`.

  Args:
    image: the texture.
    factor: 0 gives the gray copy, 1 the image, more saturates.

  Returns:
    The paler or more colorful texture.
  """
  levels = _levels(image)
  red, green, blue = (levels[..., c].astype(jnp.int32) for c in range(3))
  # ITU-R 601 luma in 16 bits of fraction.
  gray = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
  return _blend(gray[..., None].astype(levels.dtype), levels, factor)


def solarize(image: Image, *, threshold: Scalar) -> Image:
  """Inverts the values from a threshold on.

  Args:
    image: the texture.
    threshold: in [0, 1].

  Returns:
    The solarized texture.
  """
  levels = _levels(image)
  return _to_grid(jnp.where(image < threshold, levels, 255 - levels))


def posterize(image: Image, *, bits: Scalar) -> Image:
  """Keeps the leading bits of each value.

  Args:
    image: the texture.
    bits: how many of the eight to keep, a whole number.

  Returns:
    The texture in fewer levels.
  """
  dropped = 8 - jnp.asarray(bits, jnp.int32)
  levels = _levels(image).astype(jnp.int32) >> dropped << dropped
  return _to_grid(levels.astype(image.dtype))


def invert(image: Image) -> Image:
  """Inverts every value.

  Args:
    image: the texture.

  Returns:
    Its negative.
  """
  return _to_grid(255 - _levels(image))


def autocontrast(image: Image, *, cutoff: Scalar) -> Image:
  """Stretches each channel to the full range, as PIL's `ImageOps.autocontrast`.

  Args:
    image: the texture.
    cutoff: per cent of the pixels to leave out at either end, below 50.

  Returns:
    The stretched texture; a channel of one value stays as it is.
  """
  return look_up(image, autocontrast_table(image, cutoff=cutoff))


def equalize(image: Image) -> Image:
  """Flattens each channel's histogram, as imgaug's `pillike.Equalize`.

  That is PIL's `ImageOps.equalize` where a channel has white. Of others PIL
  leaves out the highest level that occurs, imgaug only white.

  Args:
    image: the texture.

  Returns:
    The equalized texture; a channel of one value stays as it is.
  """
  return look_up(image, equalize_table(image))


def rotate(
  image: Float[Array, 'h w c'],
  *,
  degrees: Scalar,
  size: tuple[int, int] | None = None,
) -> Float[Array, 'h2 w2 c']:
  """Rotates clockwise about the center, bilinear, black outside.

  Args:
    image: the texture, or any image, of any number of channels.
    degrees: the angle.
    size: height and width of the result, see `rotation.rotate`.

  Returns:
    The rotated texture, of the same size by default.
  """
  levels = rotation.rotate(
    _levels(image), degrees=degrees, size=size, of_levels=True
  )
  return _to_grid(jnp.floor(levels + 0.5))


def autocontrast_table(image: Image, *, cutoff: Scalar) -> Table:
  """What `autocontrast` makes of each value."""
  histogram = _histogram(image)
  num_pixels = image.shape[0] * image.shape[1]
  left_out = jnp.floor(num_pixels * cutoff / 100).astype(jnp.int32)
  up_to = _running_sum(histogram)
  down_to = num_pixels - up_to + histogram
  lowest = jnp.argmax(up_to > left_out, axis=0)
  highest = 255 - jnp.argmax(down_to[::-1] > left_out, axis=0)
  span = highest - lowest
  levels = jnp.arange(256)[:, None]
  stretched = (levels - lowest) * 255 // jnp.maximum(span, 1)
  stretched = jnp.where(span > 0, jnp.clip(stretched, 0, 255), levels)
  return _to_grid(stretched.astype(image.dtype))


def equalize_table(image: Image) -> Table:
  """What `equalize` makes of each value."""
  histogram = _histogram(image)
  num_pixels = image.shape[0] * image.shape[1]
  below = _running_sum(histogram) - histogram
  # What is white already does not count for the steps.
  step = (num_pixels - histogram[-1]) // 255
  equalized = (below + step // 2) // jnp.maximum(step, 1)
  stays = (step == 0) | (jnp.max(histogram, axis=0) == num_pixels)
  levels = jnp.arange(256)[:, None]
  equalized = jnp.where(stays, levels, jnp.minimum(equalized, 255))
  return _to_grid(equalized.astype(image.dtype))


def look_up(image: Image, table: Table) -> Image:
  """Replaces each value by what a table, on the grid, has for it."""
  return platforms.choose(
    image, table, tpu=look_up_by_products, default=_look_up_by_gathers
  )


def _look_up_by_gathers(image: Image, table: Table) -> Image:
  indices = _levels(image).astype(jnp.int32) * 3 + jnp.arange(3)
  return table.reshape(-1).at[indices].get(mode='promise_in_bounds')


def look_up_by_products(image: Image, table: Table) -> Image:
  """`look_up` for a TPU, which gathers one value after the other.

  The first hexadecimal digit of a value chooses a row of 16 by a product, the
  second one the place in it.
  """
  first, second = _digits(image)
  levels = _levels(table).T.reshape(3, 16, 16)
  # Whole numbers to 255 are exact in bfloat16, and no two of them are added.
  rows = jnp.einsum('cfs,cfhw->cshw', levels.astype(first.dtype), first)
  chosen = jnp.where(second > 0, rows, 0).sum(axis=1)
  return jnp.moveaxis(_to_grid(chosen.astype(table.dtype)), 0, -1)


def _histogram(image: Image) -> Int[Array, '256 3']:
  return platforms.choose(
    image, tpu=histogram_by_products, default=_histogram_by_scatter
  )


def _histogram_by_scatter(image: Image) -> Int[Array, '256 3']:
  indices = _levels(image).astype(jnp.int32) * 3 + jnp.arange(3)
  counts = jnp.zeros(256 * 3, jnp.int32)
  return counts.at[indices].add(1, mode='promise_in_bounds').reshape(256, 3)


def histogram_by_products(image: Image) -> Int[Array, '256 3']:
  """Counts the values of each channel on a TPU, which scatters one by one.

  A pair of hexadecimal digits is counted by a product of what marks the first
  with what marks the second.
  """
  first, second = _digits(image)
  counts = jnp.einsum(
    'cfhw,cshw->cfs', first, second, preferred_element_type=jnp.float32
  )
  return counts.astype(jnp.int32).reshape(3, 256).T


def _digits(
  image: Image,
) -> tuple[Float[Array, '3 16 h w'], Float[Array, '3 16 h w']]:
  """Marks the first and the second hexadecimal digit of each value by a 1."""
  levels = jnp.moveaxis(_levels(image).astype(jnp.int32), -1, 0)[:, None]
  digits = jnp.arange(16)[:, None, None]
  return (
    (levels >> 4 == digits).astype(jnp.bfloat16),
    (levels & 15 == digits).astype(jnp.bfloat16),
  )


def _running_sum(histogram: Int[Array, '256 3']) -> Int[Array, '256 3']:
  # By halves: jnp.cumsum may become a loop, which an accelerator waits for.
  return lax.associative_scan(jnp.add, histogram)


def _levels(image: Float[Array, '*n']) -> Float[Array, '*n']:
  return jnp.round(image * 255)


def _to_grid(levels: Float[Array, '*n']) -> Float[Array, '*n']:
  return levels / 255


def _truncate(levels: Float[Array, '*n']) -> Float[Array, '*n']:
  return jnp.clip(jnp.floor(levels), 0, 255)


def _blend(
  start: Float[Array, '*#n'], levels: Float[Array, '*#n'], factor: Scalar
) -> Float[Array, '*n']:
  """PIL's `Image.blend`, which truncates."""
  return _to_grid(_truncate(start + factor * (levels - start)))


def _hsv_levels(image: Image) -> tuple[Float[Array, 'h w'], ...]:
  """OpenCV's whole HSV: hue in [0, 180), saturation and value in [0, 255].

  In planes: stacked into an image they are slow on a CPU.
  """
  levels = _levels(image)
  red, green, blue = (levels[..., channel] for channel in range(3))
  value = jnp.maximum(jnp.maximum(red, green), blue)
  chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
  sector = jnp.where(
    value == red,
    green - blue,
    jnp.where(
      value == green,
      blue - red + 2 * chroma,
      red - green + 4 * chroma,
    ),
  )
  # OpenCV divides by tables in 12 bits of fraction.
  saturation = _fixed_point(chroma, jnp.round((255 << 12) / _positive(value)))
  hue = _fixed_point(sector, jnp.round((180 << 12) / 6 / _positive(chroma)))
  return jnp.where(hue < 0, hue + 180, hue), saturation, value


def _positive(divisor: Float[Array, 'h w']) -> Float[Array, 'h w']:
  return jnp.maximum(divisor, 1)


def _fixed_point(
  number: Float[Array, 'h w'], factor: Float[Array, 'h w']
) -> Float[Array, 'h w']:
  product = number.astype(jnp.int32) * factor.astype(jnp.int32)
  return ((product + (1 << 11)) >> 12).astype(number.dtype)


def _from_hsv_levels(
  hue: Float[Array, 'h w'],
  saturation: Float[Array, 'h w'],
  value: Float[Array, 'h w'],
) -> Image:
  # Each channel is the same tent of the hue, shifted by a third of the circle.
  shift = jnp.array([5.0, 3.0, 1.0], hue.dtype)
  distance = hue[..., None] / 30 + shift
  distance = jnp.where(distance >= 6, distance - 6, distance)
  tent = jnp.clip(jnp.minimum(distance, 4 - distance), 0, 1)
  lost = value * saturation / 255
  # OpenCV truncates here. The margin is above the error of float32 and below
  # the distance, 1 / 7650, of a number that is not whole from one that is.
  levels = value[..., None] - lost[..., None] * tent
  return _to_grid(jnp.floor(levels + 1e-4))
