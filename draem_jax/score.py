"""From the networks' output to anomaly map and image score (section 3.4)."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from draem_jax import losses
from draem_jax.networks import bozic
from draem_jax.networks.models import Output


def softmax_map(
  output: Output, image: Float[Array, 'b h w 3']
) -> Float[Array, 'b h w']:
  """The probability that a pixel is anomalous, by the logits."""
  del image
  return anomaly_map(output.logits)


def ssim_map(
  output: Output, image: Float[Array, 'b h w 3']
) -> Float[Array, 'b h w']:
  """1 - SSIM of image and reconstruction (table 3, Recon.-AE).

  The mean over the channels; what is less alike than unrelated counts as 1.
  """
  similarity = losses.ssim(output.reconstruction, image, data_range=1.0)
  return jnp.clip(1 - similarity.mean(axis=-1), 0, 1)


def msgms_map(
  output: Output, image: Float[Array, 'b h w 3']
) -> Float[Array, 'b h w']:
  """The MSGMS distance of image and reconstruction (table 3)."""
  distance = losses.msgms_distance(output.reconstruction, image)
  return jnp.clip(distance, 0, 1)  # Where it is 0, rounding may go below.


def segmentation_map(
  output: Output, image: Float[Array, 'b h w 3']
) -> Float[Array, 'b h w']:
  """The segmentation of Božič et al. (table 3) as probabilities, enlarged."""
  del image
  return bozic.enlarge(_probability(output.segmentation))


def riad_map(
  output: Output, image: Float[Array, 'b h w 3']
) -> Float[Array, 'b h w']:
  """The MSGMS distance of image and restoration, the mean over these (RIAD)."""
  distances = jax.vmap(losses.msgms_distance, in_axes=(0, None))(
    output.restorations, image
  )
  return jnp.clip(distances.mean(axis=0), 0, 1)


class Map(NamedTuple):
  """A way to make an anomaly map.

  Attributes:
    compute: the function of output and image [b h w 3] in [0, 1] that gives
      the map [b h w], in [0, 1].
    reads: what it reads of the output: the name of a field.
    is_smoothed: whether the map is what becomes of `compute` by the mean filter
      of the score, rather than that filter being for the score alone.
  """

  compute: Callable[..., Float[Array, 'b h w']]
  reads: str
  is_smoothed: bool = False


MAPS = {
  'softmax': Map(softmax_map, 'logits'),
  'ssim': Map(ssim_map, 'reconstruction'),
  'msgms': Map(msgms_map, 'reconstruction'),
  'segmentation': Map(segmentation_map, 'segmentation'),
  'riad': Map(riad_map, 'restorations', is_smoothed=True),
}


def anomaly_map(logits: Float[Array, '*b h w 2']) -> Float[Array, '*b h w']:
  """Returns the probability in [0, 1] that a pixel is anomalous.

  Channel 1 of the softmax over both channels, in float32 at least.
  """
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  return nn.sigmoid(logits[..., 1] - logits[..., 0])


def _probability(logits: Float[Array, '*b']) -> Float[Array, '*b']:
  return nn.sigmoid(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))


def image_score(
  anomaly_map: Float[Array | np.ndarray, '*b h w'],
  *,
  window: int = 21,
) -> Float[Array, '*b']:
  """Scores images: the maximum of the locally averaged map (eq. (5)).

  Args:
    anomaly_map: the maps, in [0, 1].
    window: see `local_means`.

  Returns:
    Scores in [0, 1].
  """
  return local_means(anomaly_map, window=window).max(axis=(-2, -1))


def local_means(
  anomaly_map: Float[Array | np.ndarray, '*b h w'],
  *,
  window: int,
) -> Float[Array, '*b h w']:
  """Averages maps over a square around each pixel.

  Args:
    anomaly_map: the maps, in [0, 1].
    window: the side of the square averaged over, odd. Beyond the border the
      map counts as 0, so that the mean is always over `window**2` values
      (section 3.4 leaves the border open; this is the release's choice).

  Raises:
    ValueError: `window` is even or not positive.
  """
  if window < 1 or window % 2 == 0:
    raise ValueError(f'window is {window}; it must be odd and positive')
  height, width = anomaly_map.shape[-2:]
  return jnp.einsum(
    'ih,...hw,jw->...ij',
    window_mean(height, window, anomaly_map.dtype),
    anomaly_map,
    window_mean(width, window, anomaly_map.dtype),
    precision=lax.Precision.HIGHEST,
  )


def make_map(
  output: Output,
  image: Float[Array, 'b h w 3'],
  *,
  map_name: str,
  window: int,
  region: Shaped[Array | np.ndarray, '#b h w'] | None = None,
) -> Float[Array, 'b h w']:
  """The anomaly maps of a batch; the arguments are those of `map_and_score`."""
  way = MAPS[map_name]
  maps = _inside(way.compute(output, image), region)
  if not way.is_smoothed:
    return maps
  # One by one: a product of matrices rounds as the batch's shape wants it.
  maps = lax.map(lambda each: local_means(each, window=window), maps)
  return _inside(maps, region)


def _inside(
  maps: Float[Array, 'b h w'],
  region: Shaped[Array | np.ndarray, '#b h w'] | None,
) -> Float[Array, 'b h w']:
  # A product: what is no number stays none, and is noticed.
  return maps if region is None else maps * region


def score_map(
  anomaly_map: Float[Array | np.ndarray, '*b h w'],
  *,
  map_name: str,
  window: int,
) -> Float[Array, '*b']:
  """Scores images by maps of `make_map`.

  Args:
    anomaly_map: the maps, in [0, 1].
    map_name: a key of `MAPS`: how they were made.
    window: the side of the square averaged over.
  """
  if MAPS[map_name].is_smoothed:
    return anomaly_map.max(axis=(-2, -1))
  return image_score(anomaly_map, window=window)


class ImageScore(NamedTuple):
  """A way to score images.

  Attributes:
    compute: the function of the output that gives the scores [*b], in [0, 1];
      None if `score_map` does it, so that scores and map values are of one
      scale.
    reads: what it reads of the output: the name of a field, or None.
  """

  compute: Callable[[Output], Float[Array, '*b']] | None
  reads: str | None


IMAGE_SCORES = {
  'window': ImageScore(None, None),
  # The second stage of Božič et al.
  'decision': ImageScore(
    lambda output: _probability(output.decision), 'decision'
  ),
}


def map_and_score(
  output: Output,
  image: Float[Array, 'b h w 3'],
  *,
  map_name: str,
  window: int,
  image_score_name: str = 'window',
  region: Shaped[Array | np.ndarray, '#b h w'] | None = None,
) -> tuple[Float[Array, 'b h w'], Float[Array, 'b']]:
  """The anomaly maps of a batch and the scores of its images.

  Args:
    output: the networks' output.
    image: what they saw, in [0, 1].
    map_name: a key of `MAPS`.
    window: the side of the square averaged over.
    image_score_name: a key of `IMAGE_SCORES`.
    region: 1 where anomalies count, 0 where maps are 0 whatever the networks
      say, before the score is read of them; None for the whole image.
  """
  maps = make_map(
    output, image, map_name=map_name, window=window, region=region
  )
  way = IMAGE_SCORES[image_score_name]
  if way.compute:
    return maps, way.compute(output)
  # One by one: a product of matrices rounds as the batch's shape wants it.
  return maps, lax.map(
    lambda each: score_map(each, map_name=map_name, window=window), maps
  )


def window_mean(
  size: int, window: int, dtype: DTypeLike
) -> Float[Array, '{size} {size}']:
  """Returns the matrix that averages a line of `size` over a window."""
  distance = np.abs(np.arange(size)[:, None] - np.arange(size))
  return jnp.asarray((distance <= window // 2) / window, dtype)
