"""Halving and doubling of height and width, by ways that suit the processor.

Each operation has a plain way, which CPUs and GPUs take and which is what the
other is tested against, and one for TPUs. There gathers go row by row, and
pixels lie such that what is next to one another along the width is not in
memory: windows and products with matrices are quicker, though they compute
many times as much.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from draem_jax import platforms
from draem_jax.networks import layers, pairs

# Weights of so many parts are exact in bfloat16, and so is one minus a weight.
_PARTS = 256
_SQUARES, _ROWS = (1, 2, 2, 1), (1, 2, 1, 1)


def max_pool(
  x: Float[Array, 'b h w c'], *, in_pairs: bool = False
) -> Float[Array, 'b h/2 w/2 c']:
  """Takes the maximum of each square of 2x2 pixels.

  Args:
    x: height and width are even.
    in_pairs: whether `x` comes of `pairs`, if a TPU's way is that.
  """
  in_pairs = in_pairs and pairs.are_worth([x.shape[-1]], x.shape[2])
  of_a_tpu = max_pool_in_pairs if in_pairs else max_pool_by_windows
  return platforms.choose(x, tpu=of_a_tpu, default=_max_pool_by_reshaping)


def _max_pool_by_reshaping(
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
  return _over_windows(x, _SQUARES, -np.inf, lax.max)


def _max_pool_forward(x):
  y = max_pool_by_windows(x)
  return y, (x, y)


def _max_pool_backward(residuals, gradient):
  x, y = residuals
  is_largest = x == _repeat(y, _SQUARES)
  count = _over_windows(is_largest.astype(jnp.float32), _SQUARES, 0, lax.add)
  share = (gradient / count).astype(x.dtype)
  return (jnp.where(is_largest, _repeat(share, _SQUARES), 0),)


max_pool_by_windows.defvjp(_max_pool_forward, _max_pool_backward)


def max_pool_in_pairs(
  x: Float[Array, 'b h w c'],
) -> Float[Array, 'b h/2 w/2 c']:
  """`max_pool_by_windows` where a TPU takes pixels by twos."""
  return _max_pool_joined(pairs.join(x))


@jax.custom_vjp
def _max_pool_joined(
  x: Float[Array, 'b h w c'],
) -> Float[Array, 'b h/2 w c/2']:
  return _over_windows(jnp.maximum(*_halves(x)), _ROWS, -np.inf, lax.max)


def _max_pool_joined_forward(x):
  y = _max_pool_joined(x)
  return y, (x, y)


def _max_pool_joined_backward(residuals, gradient):
  x, y = residuals
  largest = _repeat(y, _ROWS)
  is_largest = [half == largest for half in _halves(x)]
  count = sum(each.astype(jnp.float32) for each in is_largest)
  count = _over_windows(count, _ROWS, 0, lax.add)
  share = _repeat((gradient / count).astype(x.dtype), _ROWS)
  return (
    jnp.concatenate(
      [jnp.where(each, share, 0) for each in is_largest], axis=-1
    ),
  )


_max_pool_joined.defvjp(_max_pool_joined_forward, _max_pool_joined_backward)


def _halves(x: Float[Array, 'b h w c']) -> list[Float[Array, 'b h w c/2']]:
  return jnp.split(x, 2, axis=-1)


def _over_windows(
  x: Float[Array, 'b h w c'],
  window: tuple[int, ...],
  start: float,
  combine: Callable[[Array, Array], Array],
) -> Float[Array, 'b h2 w2 c']:
  """Combines the pixels of each window, which lie side by side."""
  start = np.asarray(start, x.dtype)
  return lax.reduce_window(x, start, combine, window, window, 'VALID')


def _repeat(
  x: Float[Array, 'b h w c'], window: tuple[int, ...]
) -> Float[Array, 'b h2 w2 c']:
  """Fills a window with each pixel."""
  # Of pixels moved apart each window holds one, which is its maximum.
  return lax.reduce_window(
    x,
    np.asarray(-np.inf, x.dtype),
    lax.max,
    window_dimensions=window,
    window_strides=(1, 1, 1, 1),
    padding=tuple((side - 1, side - 1) for side in window),
    base_dilation=window,
  )


def upsample(x: Float[Array, 'b h w c']) -> Float[Array, 'b 2*h 2*w c']:
  """Doubles height and width, bilinearly, corner pixels onto corner pixels.

  PyTorch's `Upsample(scale_factor=2, mode='bilinear', align_corners=True)`.
  """
  return platforms.choose(
    x, tpu=upsample_by_products, default=_upsample_by_gathers
  )


def upsample_by_products(
  x: Float[Array, 'b h w c'],
) -> Float[Array, 'b 2*h 2*w c']:
  """`upsample` for a TPU; in bfloat16 weights are rounded to 1/256."""
  batch, height, width, _ = x.shape

  # A number of images that is not known yet is no int.
  def matrices(size: int, *leading: Any) -> Float[Array, '*_ n s']:
    # One for each image or row, all the same and never stored: with a single
    # one, whole images would be turned around in memory.
    matrix = jnp.asarray(_rounded_upsample_matrix(size, x.dtype), x.dtype)
    return jnp.broadcast_to(matrix, (*leading, *matrix.shape))

  product = functools.partial(jnp.einsum, precision=layers.precision(x))
  x = product('bnh,bhwc->bnwc', matrices(height, batch), x)
  return product('bhnw,bhwc->bhnc', matrices(width, batch, 2 * height), x)


def _rounded_upsample_matrix(
  size: int, dtype: DTypeLike
) -> Float[np.ndarray, '2*{size} {size}']:
  """`upsample_matrix` with weights that the dtype has exactly."""
  matrix = upsample_matrix(size)
  if jnp.finfo(dtype).bits < 32:
    return np.round(matrix * _PARTS) / _PARTS
  return matrix


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
