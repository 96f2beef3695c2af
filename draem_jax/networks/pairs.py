"""Two neighboring pixels side by side in the channels, for a TPU.

Where there are at most 64 channels, half of a TPU's 128 lanes or more would lie
idle, in memory, too. With the channels of a pixel and of the one to its right
in a row, [b h w c] becomes [b h w/2 2c], which the same operations are written
for here: they give what those for single pixels do. Each joins what it is given
and splits what it returns; between two of them the compiler drops both.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from draem_jax.networks import layers

_LANES = 128


def are_worth(channels: Sequence[int], width: int) -> bool:
  """Whether to take the operations here where a TPU computes.

  Args:
    channels: of all that is read and written.
    width: of the images.
  """
  return 2 * max(channels) <= _LANES and width % 2 == 0


def join(x: Float[Array, 'b h w c']) -> Float[Array, 'b h w/2 2*c']:
  """Puts the channels of each pair of pixels side by side."""
  batch, height, width, channels = x.shape
  return x.reshape(batch, height, width // 2, 2 * channels)


def split(x: Float[Array, 'b h w c']) -> Float[Array, 'b h 2*w c/2']:
  """Undoes `join`."""
  batch, height, width, channels = x.shape
  return x.reshape(batch, height, 2 * width, channels // 2)


def _joined_kernel(
  kernel: Float[Array, '3 3 c d'],
) -> Float[Array, '3 3 2*c 2*d']:
  """The 3x3 kernel that does to pairs what `kernel` does to pixels."""
  taken = np.zeros((3, 2, 2, 3))  # From pair, pixel of it, to pixel, by tap.
  for to_pixel in range(2):
    for tap in range(3):
      pair, pixel = divmod(to_pixel + tap - 1, 2)
      taken[pair + 1, pixel, to_pixel, tap] = 1
  taken = jnp.asarray(taken, kernel.dtype)
  # Each entry is one of the kernel's or 0, in any precision.
  joined = jnp.einsum(
    'nptk,ikcd->inpctd', taken, kernel, precision=layers.precision(kernel)
  )
  channels, features = kernel.shape[2:]
  return joined.reshape(3, 3, 2 * channels, 2 * features)


def _convolve(
  parts: Sequence[Float[Array, 'b h w _']], kernel: Float[Array, '3 3 c d']
) -> Float[Array, 'b h w/2 2*d']:
  ends = np.cumsum([part.shape[-1] for part in parts])[:-1]
  kernels = [_joined_kernel(k) for k in jnp.split(kernel, ends, axis=2)]
  return lax.conv_general_dilated(
    jnp.concatenate([join(part) for part in parts], axis=-1),
    jnp.concatenate(kernels, axis=2),
    window_strides=(1, 1),
    padding='SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def convolve(
  parts: Sequence[Float[Array, 'b h w _']], kernel: Float[Array, '3 3 c d']
) -> Float[Array, 'b h w d']:
  """Convolves with stride 1 and zeros beyond the border.

  Args:
    parts: arrays whose channels, one after the other, are what to convolve.
    kernel: of their dtype.
  """
  return split(_convolve(parts, kernel))


def convolve_and_normalize(
  parts: Sequence[Float[Array, 'b h w _']],
  kernel: Float[Array, '3 3 c d'],
  scale: Float[Array, 'd'],
  bias: Float[Array, 'd'],
  guess: Float[Array, 'd'],
) -> tuple[Float[Array, 'b h w d'], Float[Array, 'd'], Float[Array, 'd']]:
  """`convolve`, and `layers.batch_normalize` of it."""
  y, mean, var = layers.batch_normalize(
    _convolve(parts, kernel), scale, bias, guess, copies=2
  )
  return split(y), mean, var
