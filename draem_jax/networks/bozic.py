"""The two-stage network of Božič et al., which table 3 compares with.

Božič, Tabernik, Skočaj: Mixed supervision for surface-defect detection: from
weakly to fully supervised learning, Computers in Industry 129, 2021,
doi:10.1016/j.compind.2021.103459. Layers, normalization and initialization are
those of the authors' public code; so is what the paper leaves open:

- Mean and standard deviation (with n - 1) are those of each image and channel
  alone, and it is the root of the standard deviation that is divided by. So
  nothing differs between training and prediction, and there are no running
  statistics.
- A cell of the segmentation stands for the 17x17 pixels about every eighth,
  borders mirrored: its target is the share of them that is anomalous.

Two things are different:

- The code normalizes the segmentation, too, with a scale but without a bias, so
  that its logits have the mean 0 in every image, a good one included. Their
  cross-entropy cannot fall below log 2 there, and without the authors' weights
  of the pixels training hardly leaves it. Here the segmentation is the 1x1
  convolution alone.
- A pooling of the decision that would leave less than 2 pixels a side is left
  out, for over a single pixel the deviation is not defined (NaN in PyTorch):
  this concerns images below 128 pixels, which the authors do not have.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from draem_jax.networks.scaling import max_pool

CELL = 8  # Pixels from one value of the segmentation to the next.
_RADIUS = 8  # Of the window that a target is the mean of.
_EPSILON = 1e-3
_FULL_WIDTH = 64
# A kernel of this side over less than these channels is no convolution to XLA.
_LARGE_SIDE, _FEW_CHANNELS = 15, 16
_LEAST_POOLED = 4  # Pixels a side that are still pooled in the decision.

_xavier_normal = nn.initializers.variance_scaling(1.0, 'fan_avg', 'normal')


def normalize_each(
  x: Float[Array, 'b h w c'],
  scale: Float[Array, 'c'],
  bias: Float[Array, 'c'],
) -> Float[Array, 'b h w c']:
  """Normalizes each channel of each image, scales and shifts.

  Args:
    x: what to normalize.
    scale: of each channel.
    bias: of each channel.

  Returns:
    (x - mean) / sqrt(std + 0.001) · scale + bias, float32 at least.
  """
  x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  pixels, count = (1, 2), x.shape[1] * x.shape[2]
  centered = x - x.mean(pixels, keepdims=True)
  square = jnp.square(centered).sum(pixels, keepdims=True)
  # The root has no slope at 0; as in PyTorch no gradient flows there.
  positive = square > 0
  std = jnp.sqrt(jnp.where(positive, square, 1) / max(count - 1, 1))
  std = jnp.where(positive, std, 0)
  return centered * lax.rsqrt(std + _EPSILON) * scale + bias


def convolve(
  x: Float[Array, 'b h w c'], kernel: Float[Array, 'side side c d']
) -> Float[Array, 'b h w d']:
  """Convolves with stride 1 and zeros beyond the border.

  Args:
    x: what to convolve.
    kernel: of the dtype of `x`, with an odd side.
  """
  side, _, channels, features = kernel.shape
  if side < _LARGE_SIDE or channels >= _FEW_CHANNELS:
    return lax.conv_general_dilated(
      x,
      kernel,
      window_strides=(1, 1),
      padding='SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
  # What narrow networks are run for is a CPU, where XLA's way takes many times
  # as long as a product with the neighbors of each pixel side by side.
  radius, (_, height, width, _) = side // 2, x.shape
  x = jnp.pad(x, ((0, 0), (radius, radius), (radius, radius), (0, 0)))
  x = jnp.concatenate([x[:, :, j : j + width] for j in range(side)], axis=-1)
  x = jnp.concatenate([x[:, i : i + height] for i in range(side)], axis=-1)
  return x @ kernel.reshape(-1, features)


class Layer(nn.Module):
  """Convolution without bias, normalization of each image, and ReLU.

  Attributes:
    features: channels of the result.
    side: of the kernel, odd.
    param_dtype: of the parameters. The convolution is computed in that of the
      input, the normalization in float32 at least.
  """

  features: int
  side: int = 5
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w d']:
    """Returns the activations, in the dtype of `x`."""
    channels = (self.features,)
    shape = (self.side, self.side, x.shape[-1], self.features)
    kernel = self.param('kernel', _xavier_normal, shape, self.param_dtype)
    scale = self.param(
      'scale', nn.initializers.ones, channels, self.param_dtype
    )
    y = convolve(x, kernel.astype(x.dtype))
    bias = self.param('bias', nn.initializers.zeros, channels, self.param_dtype)
    return nn.relu(normalize_each(y, scale, bias)).astype(x.dtype)


class SegmentationNetwork(nn.Module):
  """The first stage: where the anomaly is.

  Attributes:
    width: a measure of its channels, 32, 64, 64 and 1024 at 64, to which others
      are proportional.
    dtype: of the convolutions; None takes that of image and parameters.
    param_dtype: of the parameters.
  """

  width: int = _FULL_WIDTH
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, image: Float[Array, 'b h w 3']
  ) -> tuple[Float[Array, 'b h/8 w/8 c'], Float[Array, 'b h/8 w/8 1']]:
    """Returns the features that it ends with, and the logits."""
    w, param_dtype = self.width, self.param_dtype
    x = image.astype(self.dtype or jnp.promote_types(image.dtype, param_dtype))
    blocks = [max(1, w // 2)], [w] * 3, [w] * 4
    for i, block in enumerate(blocks, start=1):
      for j, features in enumerate(block, start=1):
        name = f'block{i}_conv{j}'
        x = Layer(features, param_dtype=param_dtype, name=name)(x)
      x = max_pool(x)
    x = Layer(16 * w, side=15, param_dtype=param_dtype, name='last_conv')(x)
    kernel = self.param(
      'logits_kernel', _xavier_normal, (1, 1, x.shape[-1], 1), param_dtype
    )
    logits = convolve(x, kernel.astype(x.dtype))
    return x, logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


class DecisionNetwork(nn.Module):
  """The second stage: whether there is an anomaly.

  Its gradient does not reach the first stage.

  Attributes:
    param_dtype: of the parameters.
  """

  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    features: Float[Array, 'b h w c'],
    logits: Float[Array, 'b h w 1'],
  ) -> Float[Array, 'b']:
    """Returns a logit for each image, float32 at least."""
    features, logits = lax.stop_gradient((features, logits))
    x = jnp.concatenate([features, logits.astype(features.dtype)], axis=-1)
    for i, channels in enumerate((8, 16, 32), start=1):
      x = Layer(channels, param_dtype=self.param_dtype, name=f'conv{i}')(
        _pool(x)
      )
    x = x.astype(logits.dtype)
    seen = []
    for each in (x, logits):
      seen += [_highest(each), each.mean(axis=(1, 2))]
    seen = jnp.concatenate(seen, axis=-1)
    shape, bound = (seen.shape[-1], 1), seen.shape[-1] ** -0.5
    kernel = self.param('kernel', _uniform(bound), shape, self.param_dtype)
    bias = self.param('bias', _uniform(bound), (1,), self.param_dtype)
    product = jnp.matmul(seen, kernel, precision=lax.Precision.HIGHEST)
    return (product + bias)[:, 0]


def _highest(x: Float[Array, 'b h w c']) -> Float[Array, 'b c']:
  """Takes the maximum of each channel; one pixel gets its gradient.

  That of `jnp.max` is shared by all pixels that equal the maximum, and is NaN
  where a compiler computes them once more, rounds otherwise and finds none.
  """
  x = x.reshape(x.shape[0], -1, x.shape[-1])
  where = x.argmax(axis=1, keepdims=True)
  return jnp.take_along_axis(x, where, axis=1)[:, 0]


def _pool(x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 c']:
  """Halves the image, rounding down, unless it would be too small then."""
  _, height, width, _ = x.shape
  if min(height, width) < _LEAST_POOLED:
    return x
  return max_pool(x[:, : height // 2 * 2, : width // 2 * 2])


def _uniform(bound: float) -> nn.initializers.Initializer:
  """Uniform in ±`bound`, PyTorch's default for a linear layer."""

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def cell_means(mask: Float[Array, 'b h w']) -> Float[Array, 'b h/8 w/8']:
  """Takes the mean of a mask about every eighth pixel: the targets.

  Of 17x17 pixels, borders mirrored. The authors' way.
  """
  return _along_both(mask, *(_mean_matrix(n) for n in mask.shape[1:]))


def enlarge(cells: Float[Array, 'b h w']) -> Float[Array, 'b 8*h 8*w']:
  """Interpolates bilinearly to pixels; each value stays where it belongs.

  That is at every eighth pixel, as in `cell_means`. Behind the last, values are
  continued.
  """
  return _along_both(cells, *(_enlarge_matrix(n) for n in cells.shape[1:]))


def _along_both(
  x: Float[Array, 'b h w'],
  rows: Float[np.ndarray, 'i h'],
  columns: Float[np.ndarray, 'j w'],
) -> Float[Array, 'b i j']:
  rows, columns = (jnp.asarray(each, x.dtype) for each in (rows, columns))
  highest = lax.Precision.HIGHEST
  return jnp.einsum('ih,bhw,jw->bij', rows, x, columns, precision=highest)


def _mean_matrix(size: int) -> Float[np.ndarray, '{size}//8 {size}']:
  matrix = np.zeros((size // CELL, size))
  for cell, row in enumerate(matrix):
    pixel = np.abs(cell * CELL + np.arange(-_RADIUS, _RADIUS + 1))
    pixel = size - 1 - np.abs(size - 1 - pixel)
    np.add.at(row, pixel, 1 / len(pixel))
  return matrix


def _enlarge_matrix(size: int) -> Float[np.ndarray, '8*{size} {size}']:
  matrix = np.zeros((size * CELL, size))
  pixel = np.arange(size * CELL)
  lower = pixel // CELL
  weight = pixel % CELL / CELL
  np.add.at(matrix, (pixel, lower), 1 - weight)
  np.add.at(matrix, (pixel, np.minimum(lower + 1, size - 1)), weight)
  return matrix
