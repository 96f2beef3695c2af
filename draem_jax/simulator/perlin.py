"""Perlin noise over a lattice whose resolution may be traced."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

MAX_RESOLUTION = 32
LATTICE_SIZE = MAX_RESOLUTION + 1


def perlin_noise(
  angles: Float[Array, 'ly lx'],
  resolution: Int[Array, '2'] | tuple[int, int],
  *,
  shape: tuple[int, int],
) -> Float[Array, '{shape[0]} {shape[1]}']:
  """Gradient noise with quintic fade, scaled by sqrt(2) as in the release.

  Perlin, "An image synthesizer", SIGGRAPH 1985, doi:10.1145/325334.325247.

  The noise at a pixel is bilinear in what depends on its row and what depends
  on its column, so the whole field is a product of small matrices. No pixel
  looks anything up, and the resolution is data: one compiled program serves
  all of them.

  Args:
    angles: directions of the gradients at the lattice's nodes, in radians,
      counted from the axis of rows. Only the first `resolution + 1` nodes of
      each axis are used.
    resolution: cells along the height and the width, each less than the number
      of nodes; may be traced.
    shape: height and width of the noise in pixels; the resolution need not
      divide them.

  Returns:
    The noise, about in [-1, 1].
  """
  height, width = shape
  rows, row_slopes = _lattice_weights(height, resolution[0], angles.shape[0])
  columns, column_slopes = _lattice_weights(
    width, resolution[1], angles.shape[1]
  )
  left = jnp.concatenate([row_slopes, rows], axis=1)
  right = jnp.concatenate(
    [
      _matmul(jnp.cos(angles), columns.T),
      _matmul(jnp.sin(angles), column_slopes.T),
    ]
  )
  return jnp.sqrt(2.0).astype(angles.dtype) * _matmul(left, right)


def _lattice_weights(
  size: int, resolution: Int[Array, ''] | int, num_nodes: int
) -> tuple[
  Float[Array, '{size} {num_nodes}'], Float[Array, '{size} {num_nodes}']
]:
  """What each node of one axis contributes to each pixel of that axis.

  Returns:
    The faded weights, and the weights times the signed distance of the pixel
    from the node in cells.
  """
  # Whole numbers keep the pixel's place in its cell exact for every size.
  position = jnp.arange(size) * resolution
  cell, offset = position // size, (position % size) / size
  fade = offset**3 * (offset * (offset * 6 - 15) + 10)
  distance_in_nodes = jnp.arange(num_nodes) - cell[:, None]
  before, after = distance_in_nodes == 0, distance_in_nodes == 1
  fade, offset = fade[:, None], offset[:, None]
  weights = before * (1 - fade) + after * fade
  slopes = before * (1 - fade) * offset + after * fade * (offset - 1)
  return weights, slopes


def _matmul(
  a: Float[Array, 'n k'], b: Float[Array, 'k m']
) -> Float[Array, 'n m']:
  # Accelerators would round the factors to fewer bits by default.
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
