"""The three losses of DRÆM: mean squared error, SSIM and focal loss.

All are computed in float32, or float64 where an input is.
"""

from typing import Literal

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from draem_jax.models import DraemOutput

_SSIM_RADIUS = 5  # A window of 11x11 pixels.
_SSIM_SIGMA = 1.5
_FOCAL_GAMMA = 2
_FOCAL_SMOOTH = 1e-5
# The release clips its one-hot targets in float32, whatever the logits are.
_FOCAL_TARGET = np.float32([_FOCAL_SMOOTH, 1 - _FOCAL_SMOOTH])

DataRange = Literal['one', 'from_batch']


@flax.struct.dataclass
class Losses:
  """The terms of the training loss, each a mean over the batch.

  Attributes:
    total: The sum of the other three.
    l2: Mean squared error of the reconstruction.
    ssim: 1 - SSIM of the reconstruction.
    focal: Focal loss of the segmentation.
  """

  total: Float[Array, '']
  l2: Float[Array, '']
  ssim: Float[Array, '']
  focal: Float[Array, '']


def draem_loss(
  output: DraemOutput,
  image: Float[Array, 'b h w 3'],
  mask: Float[Array, 'b h w'],
  *,
  data_range: DataRange,
) -> Losses:
  """Computes the training loss (equations 2, 3 and 4 with weights 1).

  Args:
    output: Of the networks on the augmented image.
    image: The image without its anomaly, in [0, 1].
    mask: 1 where the augmented image is anomalous, else 0.
    data_range: Of SSIM: 'one', or 'from_batch' for the release's rule
      (`ssim_data_range`).

  Returns:
    The terms and their sum.

  Raises:
    ValueError: `data_range` is neither.
  """
  if data_range not in ('one', 'from_batch'):
    raise ValueError(
      f"data_range is {data_range!r}; it must be 'one' or 'from_batch'"
    )
  reconstruction, image = _at_least_float32(output.reconstruction, image)
  if data_range == 'one':
    level_range = 1.0
  else:
    level_range = ssim_data_range(reconstruction)
  l2 = jnp.square(reconstruction - image).mean()
  similarity = ssim(reconstruction, image, data_range=level_range)
  ssim_loss = 1 - similarity.mean()
  focal = focal_loss(output.logits, mask).mean()
  return Losses(l2 + ssim_loss + focal, l2, ssim_loss, focal)


def ssim(
  reconstruction: Float[Array, 'b h w c'],
  image: Float[Array, 'b h w c'],
  *,
  data_range: float | Float[Array, ''],
) -> Float[Array, 'b h w c']:
  """Computes the structural similarity at each pixel, each channel alone.

  Window: a Gaussian of sigma 1.5 on 11x11 pixels. Beyond the border both images
  count as 0, as in the release, which lowers the local means there.

  Args:
    reconstruction: One image.
    image: The other.
    data_range: L of the constants (0.01 L)² and (0.03 L)².

  Returns:
    The similarity, at most 1.
  """
  x, y = _at_least_float32(reconstruction, image)
  c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
  blurred = _gaussian_blur(jnp.stack([x, y, x * x, y * y, x * y]))
  mean_x, mean_y, mean_xx, mean_yy, mean_xy = blurred
  var_x, var_y = mean_xx - mean_x**2, mean_yy - mean_y**2
  covariance = mean_xy - mean_x * mean_y
  luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
  return luminance * (2 * covariance + c2) / (var_x + var_y + c2)


def ssim_data_range(
  reconstruction: Float[Array, 'b h w c'],
) -> Float[Array, '']:
  """Chooses L of SSIM as the release does: by the batch's reconstruction.

  Returns:
    2 if the minimum is below -0.5, else 1.
  """
  return jnp.where(reconstruction.min() < -0.5, 2.0, 1.0)


def focal_loss(
  logits: Float[Array, 'b h w 2'], mask: Float[Array, 'b h w']
) -> Float[Array, 'b']:
  """Computes the focal loss of a segmentation, gamma 2, unweighted.

  As the release smooths it: the one-hot target is clipped to
  [1e-5, 1 - 1e-5] and 1e-5 is added to the probability of the true class.

  Args:
    logits: Normal against anomalous.
    mask: 1 where anomalous, else 0.

  Returns:
    Each image's mean over its pixels.
  """
  logits, mask = _at_least_float32(logits, mask)
  anomalous = jnp.clip(mask, *_FOCAL_TARGET)
  normal = jnp.clip(1 - mask, *_FOCAL_TARGET)
  # The softmax of two classes is a sigmoid of the difference of their logits.
  difference = logits[..., 1] - logits[..., 0]
  probability = (
    anomalous * jax.nn.sigmoid(difference)
    + normal * jax.nn.sigmoid(-difference)
    + _FOCAL_SMOOTH
  )
  loss = -((1 - probability) ** _FOCAL_GAMMA) * jnp.log(probability)
  return loss.mean(axis=(-2, -1))


def _at_least_float32(*arrays: Array) -> list[Array]:
  dtype = jnp.result_type(jnp.float32, *arrays)
  return [jnp.asarray(array, dtype) for array in arrays]


def _gaussian_blur(x: Float[Array, '*b h w c']) -> Float[Array, '*b h w c']:
  """Blurs by SSIM's window, zeros beyond the border.

  Written as a product with two banded matrices: on a CPU a depthwise
  convolution takes some thirty times as long.
  """
  x = jnp.moveaxis(x, -1, -3)
  rows, columns = (_gaussian_matrix(n, x.dtype) for n in x.shape[-2:])
  highest = lax.Precision.HIGHEST
  x = jnp.matmul(x, columns, precision=highest)
  return jnp.moveaxis(jnp.matmul(rows, x, precision=highest), -3, -1)


def _gaussian_matrix(size: int, dtype) -> Float[Array, 'n n']:
  distance = np.abs(np.arange(size)[:, None] - np.arange(size))
  weight = _gaussian_window()[np.minimum(distance, _SSIM_RADIUS)]
  return jnp.asarray(np.where(distance <= _SSIM_RADIUS, weight, 0), dtype)


def _gaussian_window() -> np.ndarray:
  """Returns SSIM's window along an axis, from its centre `[radius + 1]`.

  The release rounds the window and its outer square to float32, and the loss
  is sensitive to their sum. In float64 this window has the sums of that square.
  """
  offset = np.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1)
  window = np.exp(-(offset**2) / (2 * _SSIM_SIGMA**2)).astype(np.float32)
  window /= np.float32(window.sum(dtype=np.float64))
  square = np.outer(window, window).astype(np.float64)
  return (square.sum(axis=0) / np.sqrt(square.sum()))[_SSIM_RADIUS:]
