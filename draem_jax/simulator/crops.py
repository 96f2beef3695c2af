"""Crops: where they lie in an image, and what a rotation shows around them.

A crop is cut out with a margin on every side, so that the image goes on where a
rotated crop looks beyond its own edges.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, UInt8

from draem_jax.simulator import simulate
from draem_jax.simulator.options import Options


def margin(size: tuple[int, int], options: Options) -> tuple[int, int]:
  """Rows above and below, columns left and right, that a rotation may show.

  Args:
    size: height and width of the crop.
    options: what the simulator is told to do.
  """
  if not options.rotation_probability:
    return 0, 0
  # Half of the diagonal is as far as a corner turns; one more pixel is what it
  # is interpolated with.
  reach = math.hypot(*size) / 2 + 1
  return tuple(math.ceil(reach - side / 2) for side in size)


def sample_corner(
  key: Key[Array, ''], size: Int[Array, '2'], crop: tuple[int, int]
) -> Int[Array, '2']:
  """The first row and column of a crop, anywhere inside an image.

  Args:
    key: of the example.
    size: height and width of the image.
    crop: those of the crop, neither greater.
  """
  return jax.random.randint(
    simulate.part_key(key, 'crop'), (2,), 0, size - jnp.array(crop) + 1
  )


def cut(
  images: UInt8[Array, 'n h w 3'],
  index: Int[Array, ''],
  corner: Int[Array, '2'],
  size: tuple[int, int],
) -> UInt8[Array, '{size[0]} {size[1]} 3']:
  """A part of one of many images; what lies beyond its edges is black.

  Args:
    images: all of them.
    index: which one.
    corner: the part's first row and column, which may be beyond.
    size: its height and width.
  """
  rows, columns = (
    start + jnp.arange(side) for start, side in zip(corner, size, strict=True)
  )
  height, width = images.shape[1:3]
  inside = ((rows >= 0) & (rows < height))[:, None] & (
    (columns >= 0) & (columns < width)
  )
  pixels = images.at[
    index,
    jnp.clip(rows, 0, height - 1)[:, None],
    jnp.clip(columns, 0, width - 1),
  ].get(mode='promise_in_bounds')
  return jnp.where(inside[..., None], pixels, jnp.uint8(0))
