"""Rotation of images and noise about their center.

There is a plain way, which CPUs and GPUs take and which is what the other is
tested against, and one for TPUs, where pixels are gathered one by one.
"""

import functools
import itertools

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num

from draem_jax import platforms

# The release rotates with OpenCV, which keeps places to 1/1024 of a pixel and
# interpolates at multiples of 1/32.
_PLACE_BITS = 10
_INTERPOLATION_BITS = 5
_STEPS = 1 << _INTERPOLATION_BITS

# Products: where the pixels of a line of the result lie in one column (or row)
# of the image, at most so many one above the other. A slope has so many bits,
# with which a line ends less than a fifth of a pixel away in the largest image.
_WINDOW = 5
_SLOPE_BITS = 13
_LARGEST = 2048
_BFLOAT16_BITS = 8  # Of its significand.
_MIDDLE = 128  # Of levels.


def rotate(
  image: Float[Array, 'h w *c'],
  *,
  degrees: Float[Array, ''] | float,
  size: tuple[int, int] | None = None,
  of_levels: bool = False,
) -> Float[Array, 'h2 w2 *c']:
  """Rotates clockwise about the center, bilinear, zero outside.

  The center is that of the pixel grid, ((w - 1) / 2, (h - 1) / 2), and source
  places are rounded as OpenCV's `warpAffine` rounds them.

  Args:
    image: an image of any number of channels, or a map without channels.
    degrees: the angle, positive from the axis of columns to that of rows.
    size: height and width of the result, if the image has a margin around
      that, equal on opposite sides: what turns into view is taken from there.
    of_levels: whether all values are whole numbers from 0 to 255.

  Returns:
    The rotated image, or its middle.
  """
  height, width, *_ = image.shape
  size = size or (height, width)
  row, column = _source_places(*size, degrees)
  row += (height - size[0]) // 2 * _STEPS
  column += (width - size[1]) // 2 * _STEPS
  by_products = None
  if max(height, width) <= _LARGEST:
    by_products = functools.partial(rotate_by_products, of_levels=of_levels)
  return platforms.choose(
    *(image, jnp.asarray(degrees, jnp.float32), row, column),
    tpu=by_products,
    default=_rotate_by_gathers,
  )


def _rotate_by_gathers(
  image: Float[Array, 'h w *c'],
  degrees: Float[Array, ''],
  row: Int[Array, 'h2 w2'],
  column: Int[Array, 'h2 w2'],
) -> Float[Array, 'h2 w2 *c']:
  del degrees
  height, width, *channels = image.shape
  size = row.shape
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


def rotate_by_products(
  image: Float[Array, 'h w *c'],
  degrees: Float[Array, ''],
  row: Int[Array, 'h2 w2'],
  column: Int[Array, 'h2 w2'],
  of_levels: bool = False,
) -> Float[Array, 'h2 w2 *c']:
  """`rotate` for a TPU, to given places in the image.

  A line of the result is a line in the image, too, here one that goes along a
  row rather than along a column (else the image is transposed). Of each column
  it needs some pixels one above the other, those from `_bases` on. One product
  with a matrix of zeros and ones finds these for all lines, another one finds
  the columns of each pixel of the result.

  Args:
    image: the image, with its margin.
    degrees: the angle.
    row: the row that each pixel of the result comes from, in steps.
    column: the column, likewise.
    of_levels: see `rotate`.
  """
  height, width, *channels = image.shape
  side = max(height, width, _WINDOW)
  image = jnp.moveaxis(image.reshape(height, width, -1), -1, 0)
  image = jnp.pad(image, ((0, 0), (0, side - height), (0, side - width)))
  sin, cos = (f(jnp.deg2rad(degrees)) for f in (jnp.sin, jnp.cos))
  is_steep = jnp.abs(sin) > jnp.abs(cos)
  image = jnp.where(is_steep, image.swapaxes(1, 2), image)
  row, column = (
    jnp.where(is_steep, *both) for both in ((column, row), (row, column))
  )
  slope = jnp.where(is_steep, -cos, -sin) / jnp.where(is_steep, sin, cos)
  bases = functools.partial(_bases, row[:, :1], column[:, :1], slope, side)
  parts, middle = _parts(image, of_levels), _MIDDLE if of_levels else 0
  num, num_parts = len(parts), len(parts) // len(image)
  is_at = functools.partial(_is_at, places=jnp.arange(side), dtype=parts.dtype)
  # Of ones and zeros all products are exact, and sums of them.
  sums = jnp.int32 if of_levels else jnp.float32
  product = functools.partial(jnp.einsum, preferred_element_type=sums)
  parts = jnp.pad(parts, ((0, 0), (0, _WINDOW - 1), (0, 0)))
  windows = [parts[:, k : k + side] for k in range(_WINDOW)]
  found = product(
    'kuv,vuh->vkh',
    jnp.concatenate(windows),
    is_at(bases(jnp.arange(side)[None]).T),
  ).astype(parts.dtype)
  first = jnp.clip(column >> _INTERPOLATION_BITS, 0, side - 2)
  rotated = [0] * len(image)
  for place in (first, first + 1):
    pixels = product('vkh,hvw->hkw', found, is_at(place))
    base, weight = bases(place), _weight(column, place)
    # One by one: they would be stored for a sum over an axis.
    for k in range(_WINDOW):
      share = (weight * _weight(row, base + k)).astype(sums)
      for channel in range(len(image)):
        first_part = k * num + channel
        pixel = sum(
          pixels[:, first_part + part * len(image)] for part in range(num_parts)
        )
        rotated[channel] += share * (pixel + middle)
  rotated = jnp.stack(rotated, axis=-1).astype(image.dtype) / _STEPS**2
  return rotated.reshape(*row.shape, *channels)


def _bases(
  row: Int[Array, 'h 1'],
  column: Int[Array, 'h 1'],
  slope: Float[Array, ''],
  side: int,
  place: Int[Array, '#h n'],
) -> Int[Array, 'h n']:
  """The first row that a line needs of a column.

  In whole numbers: it comes out the same wherever it is computed.

  Args:
    row: where each line begins, in steps.
    column: likewise.
    slope: rows for each column, at most 1.
    side: of the image.
    place: columns.
  """
  slope = _round(slope * (1 << _SLOPE_BITS))
  line = (row << _SLOPE_BITS) + slope * (place * _STEPS - column)
  # Pixels left and right of the column need it, too; a quarter of a pixel is
  # more than all rounding.
  line -= _STEPS * jnp.abs(slope) + (_STEPS << _SLOPE_BITS) // 4
  base = line >> (_SLOPE_BITS + _INTERPOLATION_BITS)
  return jnp.clip(base, 0, side - _WINDOW)


def _parts(
  image: Float[Array, 'c h w'], of_levels: bool
) -> Num[Array, '_ h w']:
  """Values as a TPU multiplies them, in parts that it has exactly.

  Args:
    image: by channels.
    of_levels: whether they are whole numbers from 0 to 255.

  Returns:
    Levels less `_MIDDLE` in int8; else some bfloat16 the sum of which they are.
  """
  if of_levels:
    return (image - _MIDDLE).astype(jnp.int8)
  digits = jnp.finfo(image.dtype).nmant + 1
  parts = []
  for _ in range(-(-digits // _BFLOAT16_BITS)):
    part = lax.reduce_precision(image, 8, _BFLOAT16_BITS - 1)
    parts.append(part.astype(jnp.bfloat16))
    image = image - part
  return jnp.concatenate(parts)


def _is_at(
  index: Int[Array, 'm n'], places: Int[Array, 's'], dtype: DTypeLike
) -> Num[Array, 'm s n']:
  """1 where a place is the index, else 0."""
  return (index[:, None] == places[:, None]).astype(dtype)


def _weight(
  place: Int[Array, 'h w'], pixel: Int[Array, 'h w']
) -> Int[Array, 'h w']:
  """What a pixel weighs at a place, in steps: 0 from a pixel's distance on."""
  return jnp.maximum(_STEPS - jnp.abs(place - pixel * _STEPS), 0)


def _neighbors(
  place: Int[Array, 'h w'], size: int, dtype: jnp.dtype
) -> tuple[tuple[Int[Array, 'h w'], ...], tuple[Float[Array, 'h w'], ...]]:
  """The two pixels of an axis that a place lies between, and their weights."""
  before = place >> _INTERPOLATION_BITS
  fraction = (place % _STEPS).astype(dtype) / _STEPS
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
