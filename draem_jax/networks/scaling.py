"""Halving and doubling of height and width, by ways that suit the processor.

Each operation has a plain way, which CPUs and GPUs take and which is what the
other is tested against, and one for TPUs. There gathers go row by row, and
pixels lie such that what is next to one another along the width is not in
memory: windows and products with matrices are quicker, though they compute
many times as much.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

# Weights of so many parts are exact in bfloat16, and so is one minus a weight.
_PARTS = 256


def max_pool(x: Float[Array, 'b h w c']) -> Float[Array, 'b h/2 w/2 c']:
  """Takes the maximum of each square of 2x2 pixels."""
  return lax.platform_dependent(
    x, tpu=max_pool_by_windows, default=_max_pool_by_pairs
  )


def _max_pool_by_pairs(
  x: Float[Array, 'b h w c'],
) -> Float[Array, 'b h/2 w/2 c']:
  # The gradient of a windowed maximum would take five times as long on a CPU.
  batch, height, width, channels = x.shape
  x = x.reshape(batch, height // 2, 2, width, channels)
  x = jnp.maximum(x[:, :, 0], x[:, :, 1])
  x = x.reshape(batch, height // 2, width // 2, 2, channels)
  return jnp.maximum(x[:, :, :, 0], x[:, :, :, 1])


@jax.custom_vjp
def max_pool_by_windows(
  x: Float[Array, 'b h w c'],
) -> Float[Array, 'b h/2 w/2 c']:
  """`max_pool` for a TPU; pixels that share the maximum share its gradient."""
  return _over_squares(x, -np.inf, lax.max)


def _max_pool_forward(x):
  y = max_pool_by_windows(x)
  return y, (x, y)


def _max_pool_backward(residuals, gradient):
  x, y = residuals
  is_largest = x == _repeat(y)
  count = _over_squares(is_largest.astype(jnp.float32), 0, lax.add)
  share = (gradient / count).astype(x.dtype)
  return (jnp.where(is_largest, _repeat(share), 0),)


max_pool_by_windows.defvjp(_max_pool_forward, _max_pool_backward)


def _over_squares(
  x: Float[Array, 'b h w c'], start: float, combine
) -> Float[Array, 'b h/2 w/2 c']:
  """Combines the four pixels of each square."""
  square = (1, 2, 2, 1)
  start = np.asarray(start, x.dtype)
  return lax.reduce_window(x, start, combine, square, square, 'VALID')


def _repeat(x: Float[Array, 'b h w c']) -> Float[Array, 'b 2*h 2*w c']:
  """Makes a square of 2x2 of each pixel."""
  # Of pixels moved apart each window holds one, which is its maximum.
  return lax.reduce_window(
    x,
    np.asarray(-np.inf, x.dtype),
    lax.max,
    window_dimensions=(1, 2, 2, 1),
    window_strides=(1, 1, 1, 1),
    padding=((0, 0), (1, 1), (1, 1), (0, 0)),
    base_dilation=(1, 2, 2, 1),
  )


def upsample(x: Float[Array, 'b h w c']) -> Float[Array, 'b 2*h 2*w c']:
  """Doubles height and width, bilinearly, corner pixels onto corner pixels.

  PyTorch's `Upsample(scale_factor=2, mode='bilinear', align_corners=True)`.
  """
  return lax.platform_dependent(
    x, tpu=upsample_by_products, default=_upsample_by_gathers
  )


def upsample_by_products(
  x: Float[Array, 'b h w c'],
) -> Float[Array, 'b 2*h 2*w c']:
  """`upsample` for a TPU; in bfloat16 weights are rounded to 1/256."""
  batch, height, width, _ = x.shape
  narrow = jnp.finfo(x.dtype).bits < 32
  precision = None if narrow else lax.Precision.HIGHEST

  def matrix(size: int, *others: int) -> Float[Array, '*others n {size}']:
    weights = upsample_matrix(size)
    if narrow:
      weights = np.round(weights * _PARTS) / _PARTS
    # A matrix for each image or row, all the same and never stored: with a
    # single one, whole images would be turned around in memory.
    shape = (*others, *weights.shape)
    return jnp.broadcast_to(jnp.asarray(weights, x.dtype), shape)

  x = jnp.einsum(
    'boh,bhwc->bowc', matrix(height, batch), x, precision=precision
  )
  return jnp.einsum(
    'bhow,bhwc->bhoc',
    matrix(width, batch, 2 * height),
    x,
    precision=precision,
  )


@jax.custom_vjp
def _upsample_by_gathers(
  x: Float[Array, 'b h w c'],
) -> Float[Array, 'b 2*h 2*w c']:
  x = _resample(x, 1, *_upsample_taps(x.shape[1]))
  return _resample(x, 2, *_upsample_taps(x.shape[2]))


def _upsample_transpose(_, y):
  # Derived automatically, this would scatter and be ten times slower.
  y = _resample(y, 2, *_upsample_transpose_taps(y.shape[2] // 2))
  return (_resample(y, 1, *_upsample_transpose_taps(y.shape[1] // 2)),)


_upsample_by_gathers.defvjp(
  lambda x: (_upsample_by_gathers(x), None), _upsample_transpose
)


def _resample(
  x: Float[Array, 'b h w c'],
  axis: int,
  indices: Int[np.ndarray, 'k n'],
  weights: Float[np.ndarray, 'k n'],
) -> Float[Array, 'b h2 w2 c']:
  """Sums `weights[k] * x[indices[k]]` over k along an axis.

  Gathers with constant indices fuse into one pass over the result.
  """
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  shape = np.where(np.arange(x.ndim) == axis, -1, 1)
  total = sum(
    jnp.asarray(w.reshape(shape), dtype) * jnp.take(x, i, axis).astype(dtype)
    for i, w in zip(indices, weights, strict=True)
  )
  return total.astype(x.dtype)


def _upsample_taps(
  size: int,
) -> tuple[Int[np.ndarray, '2 2*{size}'], Float[np.ndarray, '2 2*{size}']]:
  """Returns source pixels and weights of doubling a line."""
  target = np.arange(2 * size)
  low = target * (size - 1) // (2 * size - 1)
  high = np.minimum(low + 1, size - 1)
  weight = target * (size - 1) / (2 * size - 1) - low
  return np.stack([low, high]), np.stack([1 - weight, weight])


def upsample_matrix(size: int) -> Float[np.ndarray, '2*{size} {size}']:
  """The matrix that doubles a line as `upsample` does, in float64."""
  matrix = np.zeros((2 * size, size))
  for source, weight in zip(*_upsample_taps(size), strict=True):
    np.add.at(matrix, (np.arange(2 * size), source), weight)
  return matrix


def _upsample_transpose_taps(
  size: int,
) -> tuple[Int[np.ndarray, '4 {size}'], Float[np.ndarray, '4 {size}']]:
  """Returns the same for the transposed map: at most 4 taps."""
  matrix = upsample_matrix(size)
  pixel = np.arange(size)
  target = 2 * pixel + np.array([-1, 0, 1, 2])[:, None]
  inside = (target >= 0) & (target < 2 * size)
  target = np.clip(target, 0, 2 * size - 1)
  return target, np.where(inside, matrix[target, pixel], 0)
