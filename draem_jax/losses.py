"""The losses (equations 1 to 3): squared error, SSIM, MSGMS and focal loss.

And the two of Božič et al., with the schedule of their weights.

All are computed in float32, or float64 where an input is.
"""

import types
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from draem_jax.networks import bozic
from draem_jax.networks.models import Output

_SSIM_RADIUS = 5  # A window of 11x11 pixels.
_SSIM_SIGMA = 1.5
_FOCAL_GAMMA = 2.0  # Of the paper and the release.
_FOCAL_SMOOTH = 1e-5
_MSGMS_SCALES = 4
_MSGMS_C = 0.0026  # For images in [0, 1].
# The release clips its one-hot targets in float32, whatever the logits are.
_FOCAL_TARGET = np.float32([_FOCAL_SMOOTH, 1 - _FOCAL_SMOOTH])

DataRange = Literal['one', 'from_batch']


class Term(NamedTuple):
  """A term of the training loss.

  Attributes:
    compute: the function of output, image and mask, and by name of
      `level_range`, which is L of SSIM, and of `gamma` of the focal loss, that
      gives a value for each example [b].
    reads: what it reads of the output: the name of a field.
  """

  compute: Callable[..., Float[Array, 'b']]
  reads: str


TERMS = {
  'l2': Term(
    lambda output, image, mask, **_: l2_loss(output.reconstruction, image),
    'reconstruction',
  ),
  'ssim': Term(
    lambda output, image, mask, *, level_range, **_: ssim_loss(
      output.reconstruction, image, data_range=level_range
    ),
    'reconstruction',
  ),
  'msgms': Term(
    lambda output, image, mask, **_: msgms_distance(
      output.reconstruction, image
    ).mean(axis=(1, 2)),
    'reconstruction',
  ),
  'focal': Term(
    lambda output, image, mask, *, gamma, **_: focal_loss(
      output.logits, mask, gamma=gamma
    ),
    'logits',
  ),
  'segmentation': Term(
    lambda output, image, mask, **_: segmentation_loss(
      output.segmentation, mask
    ),
    'segmentation',
  ),
  'decision': Term(
    lambda output, image, mask, **_: decision_loss(output.decision, mask),
    'decision',
  ),
}

# What a term's weight is multiplied by, from the share of the training that is
# done; 1 for a term that is not named.
SCHEDULES: dict[str, Callable[..., dict[str, Float[Array, '']]]] = {
  'constant': lambda progress: {},
  # Božič et al.: first where, then whether.
  'segmentation_first': lambda progress: {
    'segmentation': 1 - progress,
    'decision': progress,
  },
}


def training_loss(
  output: Output,
  image: Float[Array, 'b h w 3'],
  mask: Float[Array, 'b h w'],
  *,
  weights: Mapping[str, float],
  data_range: DataRange,
  gamma: float = _FOCAL_GAMMA,
  factors: Mapping[str, Float[Array, ''] | float] = types.MappingProxyType({}),
) -> tuple[Float[Array, ''], dict[str, Float[Array, '']]]:
  """Computes the training loss (eq. (3); all weights are 1 in the paper).

  Args:
    output: the networks' output on the augmented image.
    image: the image without its anomaly, in [0, 1].
    mask: 1 where the augmented image is anomalous, else 0.
    weights: the weight of each of `TERMS`; one of weight 0 is left out.
    data_range: L of SSIM: 'one', or 'from_batch' for the release's rule
      (`ssim_data_range`).
    gamma: of the focal loss.
    factors: what the weights of some terms are multiplied by at this step.

  Returns:
    The weighted sum of the terms, and each term as it is: means over the batch.

  Raises:
    ValueError: `data_range` is neither.
  """
  if data_range not in ('one', 'from_batch'):
    raise ValueError(
      f"data_range is {data_range!r}; it must be 'one' or 'from_batch'"
    )
  level_range = 1.0
  if data_range == 'from_batch' and weights.get('ssim'):
    level_range = ssim_data_range(output.reconstruction)
  terms = {
    name: term.compute(
      output, image, mask, level_range=level_range, gamma=gamma
    ).mean()
    for name, term in TERMS.items()
    if weights.get(name)
  }
  total = sum(
    weights[name] * factors.get(name, 1) * value
    for name, value in terms.items()
  )
  return total, terms


def l2_loss(
  reconstruction: Float[Array, 'b h w c'], image: Float[Array, 'b h w c']
) -> Float[Array, 'b']:
  """Computes the mean squared error of each image (the l2 of eq. (2))."""
  x, y = _at_least_float32(reconstruction, image)
  return jnp.square(x - y).mean(axis=(1, 2, 3))


def ssim_loss(
  reconstruction: Float[Array, 'b h w c'],
  image: Float[Array, 'b h w c'],
  *,
  data_range: float | Float[Array, ''],
) -> Float[Array, 'b']:
  """Computes 1 - SSIM, the mean over each image (eq. (1)); see `ssim`."""
  similarity = ssim(reconstruction, image, data_range=data_range)
  return 1 - similarity.mean(axis=(1, 2, 3))


def ssim(
  reconstruction: Float[Array, 'b h w c'],
  image: Float[Array, 'b h w c'],
  *,
  data_range: float | Float[Array, ''],
) -> Float[Array, 'b h w c']:
  """Computes the structural similarity at each pixel, each channel alone.

  Wang et al., IEEE Transactions on Image Processing 13(4), 2004,
  doi:10.1109/TIP.2003.819861.

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
  logits: Float[Array, 'b h w 2'],
  mask: Float[Array, 'b h w'],
  *,
  gamma: float = _FOCAL_GAMMA,
) -> Float[Array, 'b']:
  """Computes the focal loss of a segmentation, unweighted (L_seg).

  Lin et al., ICCV 2017, doi:10.1109/ICCV.2017.324.

  As the release smooths it: the one-hot target is clipped to
  [1e-5, 1 - 1e-5] and 1e-5 is added to the probability of the true class.

  Args:
    logits: Normal against anomalous.
    mask: 1 where anomalous, else 0.
    gamma: how much less a pixel counts that is classified well; 2 in the paper.

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
  missing = 1 - probability
  if gamma == 2:
    focus = missing**2
  else:  # The smoothing may take `missing` below 0.
    focus = jnp.maximum(missing, np.finfo(np.float32).eps) ** gamma
  loss = -focus * jnp.log(probability)
  return loss.mean(axis=(-2, -1))


def segmentation_loss(
  logits: Float[Array, 'b rows columns'], mask: Float[Array, 'b h w']
) -> Float[Array, 'b']:
  """Computes the cross-entropy of a segmentation at an eighth of the size.

  As Božič et al. do, but without their weights of the pixels, which make up for
  masks drawn coarsely by hand.

  Args:
    logits: of being anomalous.
    mask: 1 where anomalous, else 0. The targets are its `bozic.cell_means`.

  Returns:
    Each image's mean.
  """
  logits, mask = _at_least_float32(logits, mask)
  return _cross_entropy(logits, bozic.cell_means(mask)).mean(axis=(1, 2))


def decision_loss(
  logit: Float[Array, 'b'], mask: Float[Array, 'b h w']
) -> Float[Array, 'b']:
  """Computes the cross-entropy of a decision for each image.

  Args:
    logit: of there being an anomaly.
    mask: 1 where anomalous, else 0. A single such pixel makes one.
  """
  logit, mask = _at_least_float32(logit, mask)
  return _cross_entropy(logit, mask.max(axis=(1, 2)))


def _cross_entropy(
  logits: Float[Array, '*shape'], targets: Float[Array, '*shape']
) -> Float[Array, '*shape']:
  return jax.nn.softplus(logits) - logits * targets


def msgms_distance(
  reconstruction: Float[Array, 'b h w c'], image: Float[Array, 'b h w c']
) -> Float[Array, 'b h w']:
  """Computes how much the gradients of two images differ, over four scales.

  One minus the mean of the gradient magnitude similarities (Xue et al., IEEE
  Transactions on Image Processing 23(2), 2014, doi:10.1109/TIP.2013.2293423) of
  the images and of their 2x2, 4x4 and 8x8 means, as RIAD uses it (Zavrtanik et
  al., Pattern Recognition 112, 2021, doi:10.1016/j.patcog.2020.107706).

  Args:
    reconstruction: one image, in [0, 1].
    image: the other; height and width are multiples of 8.

  Returns:
    The distance in [0, 1], 0 where they are equal.
  """
  shape = image.shape[:3]
  x, y = (
    each.mean(axis=-1) for each in _at_least_float32(reconstruction, image)
  )
  similarities = []
  for scale in range(_MSGMS_SCALES):
    if scale:
      x, y = _half(x), _half(y)
    g1, g2 = _gradient_magnitude(x), _gradient_magnitude(y)
    similarity = (2 * g1 * g2 + _MSGMS_C) / (g1**2 + g2**2 + _MSGMS_C)
    similarities.append(jax.image.resize(similarity, shape, 'bilinear'))
  return 1 - sum(similarities) / _MSGMS_SCALES


def _half(x: Float[Array, 'b h w']) -> Float[Array, 'b h/2 w/2']:
  """Takes the mean of each square of 2x2 pixels."""
  batch, height, width = x.shape
  return x.reshape(batch, height // 2, 2, width // 2, 2).mean(axis=(2, 4))


def _gradient_magnitude(x: Float[Array, 'b h w']) -> Float[Array, 'b h w']:
  """Takes the length of Prewitt's gradient; zeros beyond the border."""
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1)))
  along = lambda x: (x[:, :-2] + x[:, 1:-1] + x[:, 2:]) / 3
  across = along(x)
  horizontal = across[:, :, 2:] - across[:, :, :-2]
  difference = x[:, 2:] - x[:, :-2]
  vertical = (
    difference[:, :, :-2] + difference[:, :, 1:-1] + difference[:, :, 2:]
  ) / 3
  square = horizontal**2 + vertical**2
  # The root has no slope at 0, where there is no gradient to follow.
  positive = square > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def _at_least_float32(
  *arrays: Float[Array, '...'],
) -> list[Float[Array, '...']]:
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


def _gaussian_matrix(
  size: int, dtype: DTypeLike
) -> Float[Array, '{size} {size}']:
  distance = np.abs(np.arange(size)[:, None] - np.arange(size))
  weight = gaussian_window()[np.minimum(distance, _SSIM_RADIUS)]
  return jnp.asarray(np.where(distance <= _SSIM_RADIUS, weight, 0), dtype)


def gaussian_window() -> Float[np.ndarray, '6']:
  """Returns SSIM's window along an axis, from its center.

  The release rounds the window and its outer square to float32, and the loss
  is sensitive to their sum. In float64 this window has the sums of that square.
  """
  offset = np.arange(-_SSIM_RADIUS, _SSIM_RADIUS + 1)
  window = np.exp(-(offset**2) / (2 * _SSIM_SIGMA**2)).astype(np.float32)
  window /= np.float32(window.sum(dtype=np.float64))
  square = np.outer(window, window).astype(np.float64)
  return (square.sum(axis=0) / np.sqrt(square.sum()))[_SSIM_RADIUS:]
