"""The two networks of DRÆM, their resampling and the scores read off them.

Images are `[b h w 3]` in [0, 1]; height and width are multiples of 32. A
network's variables are `{'params': ..., 'batch_stats': ...}`; in training call
`apply` with `mutable=['batch_stats']` to receive the new running statistics.
"""

from collections.abc import Sequence

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

_STRIDE = 32  # Five poolings in the discriminative encoder.
_EPSILON = 1e-5
_KEEP = 0.9  # What a running average keeps of its old value in one step.


@flax.struct.dataclass
class DraemOutput:
  """What DRÆM says about a batch of images.

  Attributes:
    reconstruction: The image without its anomalies, about in [0, 1].
    logits: Normal (channel 0) against anomalous (channel 1), for each pixel.
  """

  reconstruction: Float[Array, 'b h w 3']
  logits: Float[Array, 'b h w 2']


class ConvNormRelu(nn.Module):
  """3x3 convolution, batch norm and ReLU.

  Statistics and normalisation are computed in float32 at least, whatever the
  computation's dtype; parameters and running averages have `param_dtype`.
  Under jit a batch sharded over devices is normalised as one batch.
  """

  features: int
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], *, train: bool
  ) -> Float[Array, 'b h w d']:
    """Returns the activations, in the dtype of `x`."""
    kernel, conv_bias = _conv_params(self, x.shape[-1], self.features)
    shape, param_dtype = (self.features,), self.param_dtype
    scale = self.param('norm_scale', _normal(1.0), shape, param_dtype)
    bias = self.param('norm_bias', nn.initializers.zeros, shape, param_dtype)
    running_mean = self.variable(
      'batch_stats', 'mean', jnp.zeros, shape, param_dtype
    )
    running_var = self.variable(
      'batch_stats', 'var', jnp.ones, shape, param_dtype
    )

    x = _conv3x3(x, kernel)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    if train:
      # The bias would cancel in the normalisation. Left out, its gradient is
      # exactly zero, not rounding noise that Adam would blow up to full steps.
      mean, var = _moments(x.astype(dtype))
      if not self.is_initializing():
        n = x.size // self.features
        _keep_average(running_mean, mean + conv_bias)
        _keep_average(running_var, var * (n / (n - 1)))
    else:
      mean = (running_mean.value - conv_bias).astype(dtype)
      var = running_var.value.astype(dtype)
    factor = scale * lax.rsqrt(var + _EPSILON)
    return nn.relu((x - mean) * factor + bias).astype(x.dtype)


class Conv(nn.Module):
  """3x3 convolution with bias; the result is float32 at least."""

  features: int
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w d']:
    """Returns the convolution of `x`."""
    kernel, bias = _conv_params(self, x.shape[-1], self.features)
    x = _conv3x3(x, kernel)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)) + bias


class ReconstructiveSubNetwork(nn.Module):
  """Removes anomalies from an image (section 3.1; layers as in the release)."""

  width: int = 128
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, image: Float[Array, 'b h w 3'], *, train: bool
  ) -> Float[Array, 'b h w 3']:
    """Returns the reconstruction, float32 or float64."""
    _check_shape(image.shape, train=train)
    types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
    w = self.width
    x = image.astype(_computation_dtype(image, self))
    for i, features in enumerate((w, 2 * w, 4 * w, 8 * w, 8 * w), start=1):
      x = _max_pool(x) if i > 1 else x
      for j in (1, 2):
        name = f'encoder_block{i}_conv{j}'
        x = ConvNormRelu(features, name=name, **types)(x, train=train)
    stages = (8 * w, 4 * w), (4 * w, 2 * w), (2 * w, w), (w, w)
    for i, (a, b) in enumerate(stages, start=1):
      x = upsample(x)
      for j, features in enumerate((a, a, b), start=1):
        name = f'decoder_block{i}_conv{j}'
        x = ConvNormRelu(features, name=name, **types)(x, train=train)
    return Conv(3, name='last_conv', **types)(x)


class DiscriminativeSubNetwork(nn.Module):
  """Segments anomalies (section 3.2; layers as in the release)."""

  width: int = 64
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    reconstruction: Float[Array, 'b h w 3'],
    image: Float[Array, 'b h w 3'],
    *,
    train: bool,
  ) -> Float[Array, 'b h w 2']:
    """Returns the logits, float32 or float64."""
    _check_shape(image.shape, train=train)
    types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
    w = self.width
    x = jnp.concatenate([reconstruction, image], axis=-1)
    x = x.astype(_computation_dtype(x, self))
    skips = []
    encoder = (w, 2 * w, 4 * w, 8 * w, 8 * w, 8 * w)
    for i, features in enumerate(encoder, start=1):
      x = _max_pool(x) if i > 1 else x
      for j in (1, 2):
        name = f'encoder_block{i}_conv{j}'
        x = ConvNormRelu(features, name=name, **types)(x, train=train)
      skips.append(x)
    skips.pop()
    for i, features in enumerate((8 * w, 4 * w, 2 * w, w, w), start=1):
      x = upsample(x)
      for j in (1, 2, 3):
        x = jnp.concatenate([x, skips.pop()], axis=-1) if j == 2 else x
        name = f'decoder_block{i}_conv{j}'
        x = ConvNormRelu(features, name=name, **types)(x, train=train)
    return Conv(2, name='last_conv', **types)(x)


class Draem(nn.Module):
  """The reconstructive and the discriminative sub-network in a row.

  Attributes:
    reconstructive_width: Channels of the first block, reconstructive.
    discriminative_width: Channels of the first block, discriminative.
    dtype: Of the convolutions; None takes that of image and parameters.
      Parameters, batch statistics and outputs stay float32 under bfloat16.
    param_dtype: Of the parameters and running averages.
  """

  reconstructive_width: int = 128
  discriminative_width: int = 64
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32

  def setup(self):
    """Builds both sub-networks."""
    types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
    self.reconstructive = ReconstructiveSubNetwork(
      self.reconstructive_width, **types
    )
    self.discriminative = DiscriminativeSubNetwork(
      self.discriminative_width, **types
    )

  def __call__(
    self, image: Float[Array, 'b h w 3'], *, train: bool
  ) -> DraemOutput:
    """Reconstructs and segments a batch.

    Args:
      image: RGB in [0, 1].
      train: Normalise by the batch's own statistics and update the running
        averages, rather than normalise by these.

    Returns:
      Reconstruction and logits, float32 (float64 where the computation is).

    Raises:
      ValueError: The shape is not `[b h w 3]`, height or width is no multiple
        of 32, or a training batch is too small for batch norm.
    """
    reconstruction = self.reconstructive(image, train=train)
    logits = self.discriminative(reconstruction, image, train=train)
    return DraemOutput(reconstruction, logits)


def upsample(x: Float[Array, 'b h w c']) -> Float[Array, 'b 2*h 2*w c']:
  """Doubles height and width, bilinearly, corner pixels onto corner pixels.

  PyTorch's `Upsample(scale_factor=2, mode='bilinear', align_corners=True)`.
  """
  return _upsample(x)


def anomaly_map(logits: Float[Array, '*b h w 2']) -> Float[Array, '*b h w']:
  """Returns the probability in [0, 1] that a pixel is anomalous.

  Channel 1 of the softmax over both channels, in float32 at least.
  """
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  return nn.sigmoid(logits[..., 1] - logits[..., 0])


def image_score(
  anomaly_map: Float[Array, '*b h w'], *, window: int = 21
) -> Float[Array, '*b']:
  """Scores images: the maximum of the locally averaged anomaly map.

  Args:
    anomaly_map: Probabilities in [0, 1].
    window: Side of the square averaged over, odd. Beyond the border the map
      counts as 0, so that the mean is always over `window**2` values
      (section 3.3 leaves the border open; this is the release's choice).

  Returns:
    Scores in [0, 1].

  Raises:
    ValueError: `window` is even or not positive.
  """
  if window < 1 or window % 2 == 0:
    raise ValueError(f'window is {window}; it must be odd and positive')
  height, width = anomaly_map.shape[-2:]
  means = jnp.einsum(
    'ih,...hw,jw->...ij',
    _window_mean(height, window, anomaly_map.dtype),
    anomaly_map,
    _window_mean(width, window, anomaly_map.dtype),
    precision=lax.Precision.HIGHEST,
  )
  return means.max(axis=(-2, -1))


def _window_mean(size: int, window: int, dtype: DTypeLike) -> Array:
  """Returns the matrix `[size size]` that averages a line over a window."""
  distance = np.abs(np.arange(size)[:, None] - np.arange(size))
  return jnp.asarray((distance <= window // 2) / window, dtype)


def _check_shape(shape: Sequence[int], *, train: bool) -> None:
  if len(shape) != 4 or shape[-1] != 3:
    raise ValueError(f'images have shape [b h w 3], not {list(shape)}')
  batch, height, width, _ = shape
  if height % _STRIDE or width % _STRIDE or not height or not width:
    raise ValueError(
      f'image is {height}x{width}; height and width must be multiples of '
      f'{_STRIDE}'
    )
  if train and batch * height * width == _STRIDE**2:
    raise ValueError(
      f'batch norm needs more than one value: train on more than one '
      f'{height}x{width} image at a time'
    )


def _computation_dtype(image: Array, module: nn.Module) -> DTypeLike:
  return module.dtype or jnp.promote_types(image.dtype, module.param_dtype)


def _normal(mean: float) -> nn.initializers.Initializer:
  """N(mean, 0.02), as the release initialises."""

  def init(key, shape, dtype=jnp.float32):
    return mean + 0.02 * jax.random.normal(key, shape, dtype)

  return init


def _conv_params(module: nn.Module, inputs: int, features: int):
  """Declares the kernel `[3 3 c d]` and the bias `[d]` of a convolution."""

  def bias_init(key, shape, dtype):
    bound = (9 * inputs) ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  shape = (3, 3, inputs, features)
  kernel = module.param('kernel', _normal(0.0), shape, module.param_dtype)
  bias = module.param('bias', bias_init, (features,), module.param_dtype)
  return kernel, bias


def _conv3x3(
  x: Float[Array, 'b h w c'], kernel: Float[Array, '3 3 c d']
) -> Float[Array, 'b h w d']:
  return lax.conv_general_dilated(
    x,
    kernel.astype(x.dtype),
    window_strides=(1, 1),
    padding='SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def _moments(
  x: Float[Array, 'b h w c'],
) -> tuple[Float[Array, 'c'], Float[Array, 'c']]:
  """Returns each channel's mean and biased variance."""
  mean = x.mean(axis=(0, 1, 2))
  return mean, jnp.square(x - mean).mean(axis=(0, 1, 2))


def _keep_average(average: nn.Variable, value: Float[Array, 'c']) -> None:
  new = _KEEP * average.value + (1 - _KEEP) * lax.stop_gradient(value)
  average.value = new.astype(average.value.dtype)


def _max_pool(x: Float[Array, 'b h w c']) -> Float[Array, 'b h/2 w/2 c']:
  # The gradient of a windowed maximum would take five times as long on a CPU.
  batch, height, width, channels = x.shape
  x = x.reshape(batch, height // 2, 2, width, channels)
  x = jnp.maximum(x[:, :, 0], x[:, :, 1])
  x = x.reshape(batch, height // 2, width // 2, 2, channels)
  return jnp.maximum(x[:, :, :, 0], x[:, :, :, 1])


@jax.custom_vjp
def _upsample(x):
  x = _resample(x, 1, *_upsample_taps(x.shape[1]))
  return _resample(x, 2, *_upsample_taps(x.shape[2]))


def _upsample_transpose(_, y):
  # Derived automatically, this would scatter and be ten times slower.
  y = _resample(y, 2, *_upsample_transpose_taps(y.shape[2] // 2))
  return (_resample(y, 1, *_upsample_transpose_taps(y.shape[1] // 2)),)


_upsample.defvjp(lambda x: (_upsample(x), None), _upsample_transpose)


def _resample(x: Array, axis: int, indices, weights) -> Array:
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


def _upsample_taps(size: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns source pixels and weights `[2 2*size]` of doubling a line."""
  target = np.arange(2 * size)
  low = target * (size - 1) // (2 * size - 1)
  high = np.minimum(low + 1, size - 1)
  weight = target * (size - 1) / (2 * size - 1) - low
  return np.stack([low, high]), np.stack([1 - weight, weight])


def _upsample_transpose_taps(size: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the same as `[4 size]` for the transposed map: at most 4 taps."""
  matrix = np.zeros((2 * size, size))
  for source, weight in zip(*_upsample_taps(size), strict=True):
    np.add.at(matrix, (np.arange(2 * size), source), weight)
  pixel = np.arange(size)
  target = 2 * pixel + np.array([-1, 0, 1, 2])[:, None]
  inside = (target >= 0) & (target < 2 * size)
  target = np.clip(target, 0, 2 * size - 1)
  return target, np.where(inside, matrix[target, pixel], 0)
