"""Rotation of images and noise about their center."""

import itertools

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# The release rotates with OpenCV, which keeps places to 1/1024 of a pixel and
# interpolates at multiples of 1/32.
_PLACE_BITS = 10
_INTERPOLATION_BITS = 5


def rotate(
  image: Float[Array, 'h w *c'],
  *,
  degrees: Float[Array, ''] | float,
  size: tuple[int, int] | None = None,
) -> Float[Array, 'h2 w2 *c']:
  """Rotates clockwise about the center, bilinear, zero outside.

  The center is that of the pixel grid, ((w - 1) / 2, (h - 1) / 2), and source
  places are rounded as OpenCV's `warpAffine` rounds them.

  Args:
    image: an image of any number of channels, or a map without channels.
    degrees: the angle, positive from the axis of columns to that of rows.
    size: height and width of the result, if the image has a margin around
      that, equal on opposite sides: what turns into view is taken from there.

  Returns:
    The rotated image, or its middle.
  """
  height, width, *channels = image.shape
  size = size or (height, width)
  row, column = _source_places(*size, degrees)
  if size != (height, width):
    steps = 1 << _INTERPOLATION_BITS
    row += (height - size[0]) // 2 * steps
    column += (width - size[1]) // 2 * steps
  row_pixels, row_weights = _neighbors(row, height, image.dtype)
  column_pixels, column_weights = _neighbors(column, width, image.dtype)
  pixels = image.reshape(height * width, *channels)
  rotated = jnp.zeros((*size, *channels), image.dtype)
  for i, j in itertools.product((0, 1), (0, 1)):
    index = row_pixels[i] * width + column_pixels[j]
    value = pixels.at[index].get(mode='promise_in_bounds')
    weight = row_weights[i] * column_weights[j]
    rotated += jnp.expand_dims(weight, range(2, image.ndim)) * value
  return rotated


def _neighbors(
  place: Int[Array, 'h w'], size: int, dtype: jnp.dtype
) -> tuple[tuple[Int[Array, 'h w'], ...], tuple[Float[Array, 'h w'], ...]]:
  """The two pixels of an axis that a place lies between, and their weights."""
  before = place >> _INTERPOLATION_BITS
  steps = 1 << _INTERPOLATION_BITS
  fraction = (place % steps).astype(dtype) / steps
  pixels = (before, before + 1)
  weights = tuple(
    jnp.where((pixel >= 0) & (pixel < size), weight, 0)
    for pixel, weight in zip(pixels, (1 - fraction, fraction), strict=True)
  )
  return tuple(jnp.clip(pixel, 0, size - 1) for pixel in pixels), weights


def _source_places(
  height: int, width: int, degrees: Float[Array, ''] | float
) -> tuple[Int[Array, '{height} {width}'], Int[Array, '{height} {width}']]:
  """Rows and columns to read for each pixel, in 1/32 of a pixel."""
  angle = jnp.deg2rad(degrees)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  center_row, center_column = (height - 1) / 2, (width - 1) / 2
  rows = jnp.arange(height, dtype=cos.dtype) - center_row
  columns = jnp.arange(width, dtype=cos.dtype)
  scale = 1 << _PLACE_BITS

  def place(
    per_row: Float[Array, ''], per_column: Float[Array, ''], center: float
  ) -> Int[Array, 'h w']:
    # OpenCV rounds a row's start and each column's share on their own.
    start = per_row * rows - per_column * center_column + center
    along_row = _round(per_column * columns * scale)
    shift = _PLACE_BITS - _INTERPOLATION_BITS
    half = 1 << (shift - 1)
    return (_round(start * scale)[:, None] + along_row + half) >> shift

  return place(cos, -sin, center_row), place(sin, cos, center_column)


def _round(x: Float[Array, '*n']) -> Int[Array, '*n']:
  return jnp.round(x).astype(jnp.int32)
