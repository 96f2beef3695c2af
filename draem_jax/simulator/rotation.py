"""Rotation of images and noise about their centre."""

import jax.numpy as jnp
from jaxtyping import Array, Float

# The release rotates with OpenCV, which keeps places to 1/1024 of a pixel and
# interpolates at multiples of 1/32.
_PLACE_BITS = 10
_INTERPOLATION_BITS = 5


def rotate(
  image: Float[Array, 'h w *c'], *, degrees: Float[Array, ''] | float
) -> Float[Array, 'h w *c']:
  """Rotates clockwise about the centre, bilinear, zero outside.

  The centre is that of the pixel grid, ((w - 1) / 2, (h - 1) / 2), and source
  places are rounded as OpenCV's `warpAffine` rounds them.

  Args:
    image: an image of any number of channels, or a map without channels.
    degrees: the angle, positive from the axis of columns to that of rows.

  Returns:
    The rotated image, of the same shape.
  """
  image = jnp.asarray(image)
  height, width = image.shape[:2]
  row, column = _source_places(height, width, degrees)
  step = 1 << _INTERPOLATION_BITS
  dtype = image.dtype
  row_fraction = ((row % step) / step).astype(dtype)
  column_fraction = ((column % step) / step).astype(dtype)
  row, column = row >> _INTERPOLATION_BITS, column >> _INTERPOLATION_BITS
  channels = image.shape[2:]
  result = jnp.zeros(image.shape, dtype)
  flat = image.reshape(height * width, *channels)
  for row_step in (0, 1):
    for column_step in (0, 1):
      r, c = row + row_step, column + column_step
      inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
      weight = jnp.where(row_step, row_fraction, 1 - row_fraction)
      weight *= jnp.where(column_step, column_fraction, 1 - column_fraction)
      weight = jnp.where(inside, weight, 0)
      index = jnp.clip(r, 0, height - 1) * width + jnp.clip(c, 0, width - 1)
      value = flat.at[index].get(mode='promise_in_bounds')
      result += weight.reshape(weight.shape + (1,) * len(channels)) * value
  return result


def _source_places(height: int, width: int, degrees: Float[Array, '']):
  """Rows and columns to read for each pixel, in 1/32 of a pixel."""
  angle = jnp.deg2rad(degrees)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  centre_row, centre_column = (height - 1) / 2, (width - 1) / 2
  rows = jnp.arange(height, dtype=cos.dtype) - centre_row
  columns = jnp.arange(width, dtype=cos.dtype)
  scale = 1 << _PLACE_BITS

  def place(per_column, per_row, centre):
    along_row = _round(per_column * columns * scale)
    start = rows * per_row - per_column * centre_column + centre
    shift = _PLACE_BITS - _INTERPOLATION_BITS
    half = 1 << (shift - 1)
    down = _round(start * scale) + half
    return (down[:, None] + along_row[None, :]) >> shift

  return place(-sin, cos, centre_row), place(cos, sin, centre_column)


def _round(x):
  return jnp.round(x).astype(jnp.int32)
