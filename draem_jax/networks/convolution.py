"""The 3x3 convolution, with a kernel gradient that suits the processor.

On a CPU, XLA takes the gradient of a kernel over many pixels and channels at
less than half the speed of a matrix product. There it is written as one.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

# Below either limit XLA's own way is as fast or faster (benchmarks/README.md).
_MIN_CHANNELS = 32
_MIN_NUMBERS = 2**19  # In the larger of the two arrays.
_BLOCK_PIXELS = 2048  # Pixels whose shifted copies stay in the cache.


@jax.custom_vjp
def conv3x3(
  x: Float[Array, 'b h w c'], kernel: Float[Array, '3 3 c d']
) -> Float[Array, 'b h w d']:
  """Convolves with stride 1 and zeros beyond the border.

  Args:
    x: What to convolve.
    kernel: Of the dtype of `x`.

  Returns:
    The convolution, of the same dtype and size.
  """
  return _convolve(x, kernel)


def _forward(x, kernel):
  return _convolve(x, kernel), (x, kernel)


def _backward(residuals, y):
  x, kernel = residuals
  transpose = jax.linear_transpose(lambda x: _convolve(x, kernel), x)
  return transpose(y)[0], kernel_gradient(x, kernel, y)


conv3x3.defvjp(_forward, _backward)


def _convolve(
  x: Float[Array, 'b h w c'], kernel: Float[Array, '3 3 c d']
) -> Float[Array, 'b h w d']:
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(1, 1),
    padding='SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def kernel_gradient(
  x: Float[Array, 'b h w c'],
  kernel: Float[Array, '3 3 c d'],
  y: Float[Array, 'b h w d'],
) -> Float[Array, '3 3 c d']:
  """Returns the gradient of the kernel.

  Args:
    x: What was convolved.
    kernel: By which.
    y: The gradient of the result.
  """
  if (
    x.shape[-1] < _MIN_CHANNELS
    or max(x.size, y.size) < _MIN_NUMBERS
    or x.dtype not in (jnp.float32, jnp.float64)
    or any(jax.typeof(x).sharding.spec)  # Axes that are sharded explicitly.
  ):
    return _by_convolution(x, kernel, y)
  return lax.platform_dependent(
    x,
    kernel,
    y,
    cpu=lambda x, kernel, y: by_products(x, y),
    default=_by_convolution,
  )


def _by_convolution(x, kernel, y):
  transpose = jax.linear_transpose(lambda kernel: _convolve(x, kernel), kernel)
  return transpose(y)[0]


def by_products(
  x: Float[Array, 'b h w c'], y: Float[Array, 'b h w d']
) -> Float[Array, '3 3 c d']:
  """Returns the gradient of the kernel as a sum of matrix products.

  Entry [i, j] sums the products of `x`, i - 1 down and j - 1 right of a pixel,
  with `y` at the pixel. Shifting `x` only sideways and `y` only up and down
  gives all nine from one product of three times as many channels each. It is
  summed over blocks of rows, whose copies stay in the cache.
  """
  batch, height, width, channels = x.shape
  rows = _block_rows(batch, height, width)
  padded = jnp.pad(y, ((0, 0), (1, 1), (0, 0), (0, 0)))

  def add_block(i, total):
    x_rows = lax.dynamic_slice_in_dim(x, i * rows, rows, axis=1)
    y_rows = lax.dynamic_slice_in_dim(padded, i * rows, rows + 2, axis=1)
    return total + lax.dot_general(
      _shift_sideways(x_rows),
      _shift_vertically(y_rows),
      (((0,), (0,)), ((), ())),
      precision=lax.Precision.HIGHEST,
    )

  total = jnp.zeros((3 * channels, 3 * y.shape[-1]), x.dtype)
  total = lax.fori_loop(0, height // rows, add_block, total)
  total = total.reshape(3, channels, 3, y.shape[-1])
  return total.transpose(2, 0, 1, 3)


def _block_rows(batch: int, height: int, width: int) -> int:
  """Returns a divisor of the height, near the best size of a block."""
  rows = max(1, min(height, _BLOCK_PIXELS // (batch * width)))
  while height % rows:
    rows -= 1
  return rows


def _shift_sideways(x: Float[Array, 'b h w c']) -> Float[Array, 'b*h*w 3*c']:
  """Lines up each pixel with its left and right neighbor, or with zeros."""
  width, channels = x.shape[2:]
  column = np.arange(width)[:, None] + np.array([-1, 0, 1])
  inside = ((column >= 0) & (column < width)).reshape(-1, 1)
  # Gathers with constant indices are copied faster than shifted slices.
  x = jnp.take(x, np.clip(column, 0, width - 1).ravel(), axis=2)
  x = jnp.where(inside, x, 0)
  return x.reshape(-1, 3 * channels)


def _shift_vertically(
  y: Float[Array, 'b h w d'],
) -> Float[Array, 'b*(h-2)*w 3*d']:
  """Lines up each pixel of the inner rows with those below and above."""
  batch, height, width, channels = y.shape
  row = np.arange(height - 2)[:, None, None] + np.array([2, 1, 0])
  pixel = row * width + np.arange(width)[:, None]
  y = jnp.take(y.reshape(batch, -1, channels), pixel.ravel(), axis=1)
  return y.reshape(-1, 3 * channels)
