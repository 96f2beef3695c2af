"""The detector: weights, preprocessing, score and threshold in one object.

What `evaluate`, `predict` and `export` share. Maps and scores are those of
section 3.4 of the paper.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from draem_jax import checkpoint, models, train
from draem_jax import workdir as workdir_lib
from draem_jax.data.images import resize_bilinear
from draem_jax.errors import UserError

THRESHOLDS_FILE = 'thresholds.json'


@dataclasses.dataclass(frozen=True)
class Thresholds:
  """Above which score an image, and which map value a pixel, is anomalous.

  Attributes:
    image: an image is anomalous when its score is greater.
    pixel: in an anomalous image a pixel is anomalous when its map value is
      greater. Never above `image`, so that an anomalous image, whose score is
      a mean of its map, has at least one anomalous pixel.
    source: the good images they were chosen from, in words.
    quantile: of the scores of these images, at which `image` stands. One minus
      it is the false alarm rate aimed at.
    pixel_quantile: the same for the map values of their pixels.
  """

  image: float
  pixel: float
  source: str
  quantile: float
  pixel_quantile: float


@dataclasses.dataclass(frozen=True)
class Scored:
  """What the networks say of a batch, at the networks' size."""

  reconstruction: Float[np.ndarray, 'b h w 3']
  anomaly_map: Float[np.ndarray, 'b h w']
  score: Float[np.ndarray, 'b']


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What the detector says of a batch, at the size of the input."""

  anomaly_map: Float[np.ndarray, 'b h w']
  score: Float[np.ndarray, 'b']
  is_anomalous: Bool[np.ndarray, 'b']
  mask: Bool[np.ndarray, 'b h w']


class Detector:
  """Finds anomalies in images of any size."""

  def __init__(
    self,
    model: models.Draem,
    variables: Mapping[str, Any],
    *,
    image_size: int,
    score_window: int,
    thresholds: Thresholds | None = None,
    batch_size: int = 16,
  ):
    """Takes trained networks; `load` takes a workdir.

    Args:
      model: the networks.
      variables: their `params` and `batch_stats`.
      image_size: pixels a side at which the networks see every image.
      score_window: pixels a side of the mean filter of the image score.
      thresholds: None until they are chosen.
      batch_size: images a call of the networks; the last batch is padded.
    """
    self.image_size = image_size
    self.thresholds = thresholds
    self._variables = variables
    self._batch_size = batch_size

    def score(
      variables: Mapping[str, Any], images: UInt8[jax.Array, 'b h w 3']
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
      output = model.apply(
        variables, images.astype(jnp.float32) / 255, train=False
      )
      anomaly_map = models.anomaly_map(output.logits)
      score = models.image_score(anomaly_map, window=score_window)
      return output.reconstruction, anomaly_map, score

    self._score = jax.jit(score)

  @classmethod
  def load(cls, workdir: str | pathlib.Path) -> 'Detector':
    """The detector that a run in `workdir` has trained.

    Raises:
      UserError: if the folder holds no run or no checkpoint that fits it.
    """
    workdir = pathlib.Path(workdir)
    config = workdir_lib.read_config(workdir)
    model = train.make_model(config)
    size = config['image_size']
    shapes = jax.eval_shape(
      lambda key: model.init(key, jnp.zeros((1, size, size, 3)), train=False),
      jax.random.key(0),
    )
    variables = checkpoint.restore_variables(workdir / 'checkpoints', shapes)
    return cls(
      model,
      variables,
      image_size=size,
      score_window=config['score_window'],
      thresholds=read_thresholds(workdir),
      batch_size=config['eval']['batch_size'],
    )

  def score(self, images: UInt8[np.ndarray, 'n h w 3']) -> Iterator[Scored]:
    """Scores images of the networks' size, one batch after the other.

    Args:
      images: uint8 [n, image_size, image_size, 3], RGB.

    Yields:
      Batches of at most `batch_size`, in order, without the padding.
    """
    for start in range(0, len(images), self._batch_size):
      batch = images[start : start + self._batch_size]
      count = len(batch)
      if count < self._batch_size:
        padding = np.repeat(batch[-1:], self._batch_size - count, axis=0)
        batch = np.concatenate([batch, padding])
      outputs = jax.device_get(self._score(self._variables, batch))
      yield Scored(*(output[:count] for output in outputs))

  def score_all(self, images: UInt8[np.ndarray, 'n h w 3']) -> Scored:
    """As `score`, with all batches joined."""
    batches = list(self.score(images))
    return Scored(
      *(
        np.concatenate([getattr(batch, field.name) for batch in batches])
        for field in dataclasses.fields(Scored)
      )
    )

  def choose_thresholds(
    self,
    good_images: UInt8[np.ndarray, 'n h w 3'],
    *,
    source: str,
    quantile: float,
    pixel_quantile: float,
  ) -> Thresholds:
    """Chooses, and from now on uses, thresholds from good images.

    Args:
      good_images: uint8 [n, image_size, image_size, 3], without anomalies.
      source: what these images are, in words.
      quantile: share of the good images that shall pass as good.
      pixel_quantile: share of the good pixels that shall pass as good.
    """
    maps, scores = [], []
    for scored in self.score(good_images):
      maps.append(scored.anomaly_map)
      scores.append(scored.score)
    image = float(np.quantile(np.concatenate(scores), quantile))
    pixel = float(np.quantile(np.concatenate(maps), pixel_quantile))
    self.thresholds = Thresholds(
      image=image,
      pixel=min(pixel, image),
      source=source,
      quantile=quantile,
      pixel_quantile=pixel_quantile,
    )
    return self.thresholds

  def is_anomalous(
    self, score: Float[np.ndarray, 'n']
  ) -> Bool[np.ndarray, 'n']:
    """The verdict on image scores."""
    return score > self.thresholds.image

  def __call__(
    self, images: UInt8[np.ndarray, '...'] | Float[np.ndarray, '...']
  ) -> Prediction:
    """Finds anomalies.

    Args:
      images: [b, h, w, 3], or one image [h, w, 3] or [h, w] (gray), of any
        size; uint8, or float in [0, 1]; RGB.

    Returns:
      Maps in the size of the input, scores and verdicts.

    Raises:
      UserError: if the detector has no thresholds.
      ValueError: if `images` has another shape or type.
    """
    if self.thresholds is None:
      raise UserError(
        f'the workdir has no {THRESHOLDS_FILE}: run draem_jax.main there to'
        ' the end, which chooses them'
      )
    batch = _as_uint8_batch(images)
    size = (self.image_size, self.image_size)
    small = np.stack([resize_bilinear(image, size) for image in batch])
    scored = self.score_all(small)
    maps = np.stack(
      [
        resize_bilinear(m[..., None], batch.shape[1:3])[..., 0]
        for m in scored.anomaly_map
      ]
    )
    is_anomalous = self.is_anomalous(scored.score)
    # Resizing can flatten the only peak of a map: its top counts all the same.
    top = maps.max(axis=(1, 2), keepdims=True)
    mask = (maps > self.thresholds.pixel) | (maps == top)
    mask &= is_anomalous[:, None, None]
    return Prediction(maps, scored.score, is_anomalous, mask)


def write_thresholds(
  workdir: str | pathlib.Path, thresholds: Thresholds
) -> None:
  """Stores thresholds beside the checkpoints of a run."""
  workdir_lib.write_json(
    pathlib.Path(workdir) / THRESHOLDS_FILE, dataclasses.asdict(thresholds)
  )


def read_thresholds(workdir: str | pathlib.Path) -> Thresholds | None:
  """The thresholds of a run, or None if it has not chosen them yet."""
  path = pathlib.Path(workdir) / THRESHOLDS_FILE
  if not path.exists():
    return None
  try:
    return Thresholds(**json.loads(path.read_text(encoding='utf-8')))
  except (ValueError, TypeError) as error:
    raise UserError(
      f'{path} is damaged ({error}): run draem_jax.main in this workdir again'
    ) from error


def _as_uint8_batch(images: np.ndarray) -> UInt8[np.ndarray, 'b h w 3']:
  images = np.asarray(images)
  if images.ndim == 2:
    images = np.repeat(images[..., None], 3, axis=-1)
  if images.ndim == 3:
    images = images[None]
  if images.ndim != 4 or images.shape[-1] != 3:
    raise ValueError(
      f'images have the shape {images.shape}: [b, h, w, 3] is wanted, or one'
      ' image [h, w, 3] or [h, w]'
    )
  if np.issubdtype(images.dtype, np.floating):
    if images.size and (images.min() < 0 or images.max() > 1):
      raise ValueError('float images must lie in [0, 1]')
    images = np.round(images * 255).astype(np.uint8)
  if images.dtype != np.uint8:
    raise ValueError(f'images are {images.dtype}: uint8 or float is wanted')
  return images
