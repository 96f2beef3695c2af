"""The 3x3 convolution, by ways that suit a CPU.

There XLA has a quick convolution, which it leaves alone where there are few
channels: several pixels side by side make more of them. It takes the gradient
of a kernel over many pixels and channels at less than half the speed of a
matrix product, and is written as one. Others stay convolutions, but for what
XLA would put before them. Each way gives what the plain one does.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import xla_metadata
from jaxtyping import Array, Float

from draem_jax import platforms

# Below either limit a product is no faster (benchmarks/README.md).
_MIN_CHANNELS = 32
_MIN_NUMBERS = 2**19  # In the larger of the two arrays.
_BLOCK_PIXELS = 2048  # Pixels whose shifted copies stay in the cache.
_FEW_CHANNELS = 16  # XLA's quick convolution is for more than these.
_MAX_PIXELS = 4  # Side by side: more would multiply by too many zeros.


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
  return _forward(x, kernel)[0]


def _forward(x, kernel):
  pixels = _pixels_side_by_side(x, kernel)
  if pixels == 1:
    return _convolve(x, kernel), (x, kernel)
  y = platforms.choose(
    x,
    kernel,
    cpu=lambda x, kernel: convolve_side_by_side(x, kernel, pixels),
    default=_convolve,
  )
  return y, (x, kernel)


def _backward(residuals, y):
  x, kernel = residuals
  pixels = _pixels_side_by_side(x, kernel)

  def input_gradient(y, kernel):
    return jax.linear_transpose(lambda x: _convolve(x, kernel), x)(y)[0]

  if pixels == 1:
    gradient = input_gradient(y, kernel)
  else:
    gradient = platforms.choose(
      y,
      kernel,
      cpu=lambda y, kernel: convolve_side_by_side(y, _turned(kernel), pixels),
      default=input_gradient,
    )
  return gradient, kernel_gradient(x, kernel, y)


conv3x3.defvjp(_forward, _backward)


def _convolve(
  x: Float[Array, 'b h w c'],
  kernel: Float[Array, 'i j c d'],
  padding: str | tuple[tuple[int, int], tuple[int, int]] = 'SAME',
) -> Float[Array, 'b h2 w2 d']:
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides=(1, 1),
    padding=padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def _turned(kernel: Float[Array, '3 3 c d']) -> Float[Array, '3 3 d c']:
  """The kernel of what the convolution by `kernel` is the gradient of."""
  return kernel[::-1, ::-1].swapaxes(2, 3)


def _has_ways(x: Float[Array, 'b h w c']) -> bool:
  """Whether there are ways of a CPU for an array of its kind."""
  is_split = any(jax.typeof(x).sharding.spec)  # Sharded explicitly.
  return x.dtype in (jnp.float32, jnp.float64) and not is_split


def _pixels_side_by_side(
  x: Float[Array, 'b h w c'], kernel: Float[Array, '3 3 c d']
) -> int:
  """How many pixels a CPU takes at once; 1: the convolution is as it is."""
  channels = max(kernel.shape[2:])
  if not _has_ways(x) or channels > _FEW_CHANNELS:
    return 1
  pixels = 2
  while channels * pixels <= _FEW_CHANNELS and pixels < _MAX_PIXELS:
    pixels *= 2
  return 1 if x.shape[2] % pixels else pixels


def convolve_side_by_side(
  x: Float[Array, 'b h w c'], kernel: Float[Array, '3 3 c d'], pixels: int
) -> Float[Array, 'b h w d']:
  """Convolves several neighbors in a row at once.

  A group of them reads a pixel more on either side. Where groups begin a pixel
  early, that is a group and the next one, so the kernel is two groups wide.

  Args:
    x: what to convolve.
    kernel: by which.
    pixels: how many make a group; the width is a multiple.
  """
  batch, height, width, channels = x.shape
  groups, features = width // pixels, kernel.shape[-1]
  x = _apart(lambda x: jnp.pad(x, ((0, 0), (0, 0), (1, pixels - 1), (0, 0))))(x)
  x = x.reshape(batch, height, groups + 1, pixels * channels)
  # What each pixel of a group reads of the two groups.
  zeros = ((0, 0), (0, 0), (0, 0))
  kernels = [
    jnp.pad(kernel, (zeros[0], (i, 2 * pixels - 3 - i), *zeros[1:]))
    for i in range(pixels)
  ]
  kernel = jnp.stack(kernels, axis=3)
  kernel = kernel.reshape(3, 2, pixels * channels, pixels * features)
  y = _convolve(x, kernel, ((1, 1), (0, 0)))
  return y.reshape(batch, height, width, features)


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
  if not _has_ways(x):
    return _by_convolution(x, kernel, y)
  is_large = max(x.size, y.size) >= _MIN_NUMBERS
  if x.shape[-1] >= _MIN_CHANNELS and is_large:
    of_a_cpu = by_products
  else:
    of_a_cpu = by_channels
  return platforms.choose(
    x,
    kernel,
    y,
    cpu=lambda x, kernel, y: of_a_cpu(x, y),
    default=_by_convolution,
  )


def _by_convolution(x, kernel, y):
  transpose = jax.linear_transpose(lambda kernel: _convolve(x, kernel), kernel)
  return transpose(y)[0]


def by_channels(
  x: Float[Array, 'b h w c'], y: Float[Array, 'b h w d']
) -> Float[Array, '3 3 c d']:
  """Returns the gradient of the kernel as a convolution of channels.

  One array's channels are the images, the pixels of the other the kernel, and
  the batch is what is summed over. XLA does so with `x` as the images; it takes
  less where these are the fewer.
  """
  if x.shape[-1] > y.shape[-1]:
    return _turned(by_channels(y, x))
  images = _apart(lambda x: x.transpose(3, 1, 2, 0))(x)
  kernel = _apart(lambda y: y.transpose(1, 2, 0, 3))(y)
  return _convolve(images, kernel, ((1, 1), (1, 1))).transpose(1, 2, 0, 3)


def _apart(function: Callable) -> Callable:
  """The function as a call that XLA does not look into.

  Else it would compute what is transposed once more, number by number in the
  order of the result.
  """
  function = jax.jit(function)

  def call(x):
    with xla_metadata.set_xla_metadata(inlineable='false'):
      return function(x)

  return call


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
  padded_x = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
  padded_y = jnp.pad(y, ((0, 0), (1, 1), (0, 0), (0, 0)))

  def add_block(i, total):
    x_rows = lax.dynamic_slice_in_dim(padded_x, i * rows, rows, axis=1)
    y_rows = lax.dynamic_slice_in_dim(padded_y, i * rows, rows + 2, axis=1)
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


def _shift_sideways(
  x: Float[Array, 'b h w c'],
) -> Float[Array, 'b*h*(w-2) 3*c']:
  """Lines up each pixel of the inner columns with both its neighbors."""
  batch, height, width, channels = x.shape
  # The three lie one after the other: gathers with constant indices copy them
  # at once, and faster than shifted slices.
  x = lax.gather(
    x.reshape(batch, height, width * channels),
    channels * np.arange(width - 2)[:, None],
    lax.GatherDimensionNumbers(
      offset_dims=(0, 1, 3), collapsed_slice_dims=(), start_index_map=(2,)
    ),
    slice_sizes=(batch, height, 3 * channels),
    mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS,
  )
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
