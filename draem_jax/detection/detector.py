"""The detector: weights, preprocessing, score and threshold in one object.

What `evaluate`, `predict` and `export` share. Maps and scores are those of
section 3.4 of the paper.

Images are resized on the host, and only then go to the device: one compiled
program serves every size, and scores are the same to the last bit whether the
images come from a prepared data set or from a folder.
"""

import copy
import dataclasses
import functools
import logging
import pathlib
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from draem_jax import sizes
from draem_jax.data import encoded, resizing
from draem_jax.data.images import resize_bilinear
from draem_jax.detection.regions import Region, find_regions
from draem_jax.errors import UserError
from draem_jax.networks import folding, models
from draem_jax.score import IMAGE_SCORES, map_and_score
from draem_jax.workdir import claim, mirror
from draem_jax.workdir.thresholds import FILE as THRESHOLDS_FILE
from draem_jax.workdir.thresholds import Thresholds, read_thresholds

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Scored:
  """What the networks say of a batch, at the networks' size."""

  reconstruction: Float[np.ndarray, 'b h w 3'] | None
  anomaly_map: Float[np.ndarray, 'b h w']
  score: Float[np.ndarray, 'b']


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What the detector says of a batch, at the size of the input.

  Attributes:
    anomaly_map: how anomalous each pixel is, in [0, 1].
    score: how anomalous each image is, in [0, 1].
    is_anomalous: whether the score is greater than the threshold.
    mask: the anomalous pixels; there is one if, and only if, `is_anomalous`.
  """

  anomaly_map: Float[np.ndarray, 'b h w']
  score: Float[np.ndarray, 'b']
  is_anomalous: Bool[np.ndarray, 'b']
  mask: Bool[np.ndarray, 'b h w']

  @functools.cached_property
  def regions(self) -> list[list[Region]]:
    """Of each image those of its mask, the one of the highest peak first."""
    return list(map(find_regions, self.anomaly_map, self.mask))


class Detector:
  """Finds anomalies in images of any size.

  Attributes:
    model: the networks.
    variables: their `params` and `batch_stats`, on the host.
    folded: the same with batch norm folded, on the device: what is run.
    image_size: height and width at which the networks see every image.
    score_window: pixels a side of the mean filter of the image score.
    score_map: how maps are made, a key of `score.MAPS`.
    score_image: how images are scored, a key of `score.IMAGE_SCORES`.
    thresholds: None until they are chosen.
    batch_size: images a call of the networks.
    resize: how images are brought to `image_size`, of `resizing.WAYS`.
  """

  def __init__(
    self,
    model: models.Networks,
    variables: Mapping[str, Any],
    *,
    image_size: sizes.Size,
    score_window: int,
    score_map: str = 'softmax',
    score_image: str = 'window',
    thresholds: Thresholds | None = None,
    batch_size: int = 16,
    resize: resizing.Way = 'bilinear',
  ):
    """Takes trained networks; `load` takes a workdir."""
    self.model = model
    self.variables = jax.device_get(variables)
    self.folded = jax.device_put(folding.fold(self.variables))
    self.image_size = sizes.pair(image_size)
    self.score_window = score_window
    self.score_map = score_map
    self.score_image = score_image
    self.thresholds = thresholds
    self.batch_size = batch_size
    self.resize = resize

    def score(
      variables: Mapping[str, Any], images: UInt8[Array, 'b h w 3']
    ) -> tuple[
      Float[Array, 'b h w 3'] | None, Float[Array, 'b h w'], Float[Array, 'b']
    ]:
      images = images.astype(jnp.float32) / 255
      output = model.apply(variables, images, train=False)
      maps, scores = map_and_score(
        output,
        images,
        map_name=score_map,
        window=score_window,
        image_score_name=score_image,
      )
      return output.reconstruction, maps, scores

    self._score = jax.jit(score)

  @classmethod
  def load(
    cls, workdir: str | pathlib.PurePath, *, batch_size: int | None = None
  ) -> 'Detector':
    """The detector that a run in `workdir` has trained.

    Args:
      workdir: the folder of the run, or the URL of one in a bucket.
      batch_size: images a call of the networks; by default as the run was
        evaluated (`config.eval.batch_size`).

    Of a training that came to nothing a warning says so.

    Raises:
      UserError: if the folder holds no run or no checkpoint that fits it.
    """
    with mirror.read(workdir) as folder:
      return cls._load(folder, batch_size=batch_size)

  @classmethod
  def _load(
    cls, workdir: pathlib.Path, *, batch_size: int | None
  ) -> 'Detector':
    """Does what `load` says, from a folder."""
    # Orbax takes a while to import, and only a workdir needs it.
    from draem_jax.workdir import checkpoint

    config = claim.read_config(workdir)
    failure = claim.failure(workdir)
    if failure:
      _log.warning('%s is of no use: %s', workdir, failure)
    model = models.make(config)
    shapes = models.abstract_variables(model)
    variables = checkpoint.restore_variables(workdir / 'checkpoints', shapes)
    return cls(
      model,
      variables,
      image_size=config['image_size'],
      score_window=config['score_window'],
      score_map=config['score']['map'],
      score_image=config['score']['image'],
      thresholds=read_thresholds(workdir),
      batch_size=batch_size or config['eval']['batch_size'],
      resize=config['data']['resize'],
    )

  def with_thresholds(
    self, *, image: float | None = None, pixel: float | None = None
  ) -> 'Detector':
    """The same detector with another threshold, or two.

    Args:
      image: an image is anomalous when its score is greater.
      pixel: in an anomalous image a pixel is anomalous when its map value is
        greater. If not given it stays, unless scores are means of map values
        and it would be above that of images.

    Raises:
      UserError: if a threshold is not in [0, 1], or there is none for images.
    """
    if image is None:
      self.check_thresholds()
    old = self.thresholds
    image = old.image if image is None else image
    if pixel is None:
      pixel = image if old is None else self._cap(old.pixel, image)
    changed = copy.copy(self)
    changed.thresholds = Thresholds(
      image=image,
      pixel=pixel,
      source='set by hand',
      quantile=None,
      pixel_quantile=None,
    )
    return changed

  def with_batch_size(self, batch_size: int) -> 'Detector':
    """The same detector with another number of images a call, at least 1."""
    changed = copy.copy(self)
    changed.batch_size = max(1, batch_size)
    return changed

  def for_scoring(self) -> 'Detector':
    """The same detector without the weights that nothing but export reads."""
    changed = copy.copy(self)
    changed.variables = {}
    return changed

  def check_thresholds(self) -> None:
    """Raises a `UserError` if there are no thresholds yet."""
    if self.thresholds is None:
      raise UserError(
        f'the run has no {THRESHOLDS_FILE} yet: train it to the end with'
        ' draem_jax.main, which chooses them, or give one for images'
      )

  def fingerprint(self) -> str:
    """Eight hex digits that tell these scores from those of another run."""
    size = sizes.short(self.image_size)
    scoring = f'{size} {self.score_map} {self.score_window}'
    if not self._scores_by_map:
      scoring += f' {self.score_image}'
    if self.resize != 'bilinear':
      scoring += f' {self.resize}'
    checksum = zlib.crc32(scoring.encode())
    for leaf in jax.tree.leaves(self.variables):
      checksum = zlib.crc32(np.ascontiguousarray(leaf), checksum)
    return f'{checksum:08x}'

  def prepare(
    self, image: UInt8[np.ndarray, 'h w 3']
  ) -> UInt8[np.ndarray, '{self.image_size[0]} {self.image_size[1]} 3']:
    """An image of any size as the networks see it."""
    return resizing.resize(image, self.image_size, self.resize)

  def prepare_picture(
    self, picture: encoded.Picture
  ) -> UInt8[np.ndarray, '{self.image_size[0]} {self.image_size[1]} 3']:
    """The same of a picture that is never whole in memory."""
    return resizing.resize_picture(picture, self.image_size, self.resize)

  def score(self, images: UInt8[np.ndarray, 'n h w 3']) -> Iterator[Scored]:
    """Scores prepared images, one batch after the other.

    Args:
      images: uint8 [n, *image_size, 3], RGB.

    Yields:
      Batches of `batch_size`, in order. The networks see the last one padded,
      so that they are compiled once; the padding does not come out.

    Raises:
      UserError: if the networks give no numbers, which would be called good.
    """
    for start in range(0, max(len(images), 1), self.batch_size):
      batch = images[start : start + self.batch_size]
      padded = np.zeros((self.batch_size, *images.shape[1:]), np.uint8)
      padded[: len(batch)] = batch
      outputs = jax.device_get(self._score(self.folded, padded))
      if not all(np.isfinite(output).all() for output in outputs[1:]):
        raise UserError(
          'the networks give maps or scores that are no numbers: their weights'
          ' are damaged, or the training has diverged: restore them from a'
          ' backup, or train again with a lower config.learning_rate'
        )
      yield Scored(
        *(
          None if output is None else output[: len(batch)] for output in outputs
        )
      )

  def score_all(self, images: UInt8[np.ndarray, 'n h w 3']) -> Scored:
    """As `score`, with all batches joined."""
    batches = list(self.score(images))
    parts = [
      [getattr(batch, field.name) for batch in batches]
      for field in dataclasses.fields(Scored)
    ]
    return Scored(
      *(None if part[0] is None else np.concatenate(part) for part in parts)
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

    Where scores are means of map values, the threshold of pixels is at most
    that of images. While the maps of a briefly trained run are still soft, the
    quantile of the pixels alone would leave but the core of each defect.

    Args:
      good_images: uint8 [n, *image_size, 3], without anomalies.
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
      pixel=self._cap(pixel, image),
      source=source,
      quantile=quantile,
      pixel_quantile=pixel_quantile,
    )
    return self.thresholds

  def is_anomalous(
    self, score: Float[np.ndarray, 'n']
  ) -> Bool[np.ndarray, 'n']:
    """The verdict on image scores."""
    self.check_thresholds()
    # In float64 whatever comes, so that one score has one verdict.
    return np.asarray(score, np.float64) > self.thresholds.image

  def find_mask(
    self,
    anomaly_map: Float[np.ndarray, 'h w'],
    score: float,
    *,
    peak: float | None = None,
  ) -> Bool[np.ndarray, 'h w']:
    """The anomalous pixels of one image; none if its score does not pass.

    Args:
      anomaly_map: its map, at the networks' size or resized.
      score: its score.
      peak: the highest value of the map, where only a part of it is given.
    """
    if not self.is_anomalous(np.array([score])).all():
      return np.zeros(anomaly_map.shape, bool)
    # Of the map's own precision, in which it is compared.
    peak = anomaly_map.max() if peak is None else anomaly_map.dtype.type(peak)
    if peak > self.thresholds.pixel:
      return anomaly_map > self.thresholds.pixel
    # A faint but wide anomaly. The score is a mean of map values, so some reach
    # it, unless resizing has flattened the only peak.
    return anomaly_map >= (min(score, peak) if self._scores_by_map else peak)

  @property
  def _scores_by_map(self) -> bool:
    """Whether a score is a mean of map values, and so of their scale."""
    return IMAGE_SCORES[self.score_image].reads is None

  def _cap(self, pixel: float, image: float) -> float:
    """The threshold of pixels, not above that of images if they compare."""
    return min(pixel, image) if self._scores_by_map else pixel

  def __call__(
    self,
    images: UInt8[Array | np.ndarray, '...'] | Float[Array | np.ndarray, '...'],
  ) -> Prediction:
    """Finds anomalies.

    The networks are compiled once for each number of images up to
    `batch_size`; of more, the last batch is padded.

    Args:
      images: [b, h, w, 3] or gray [b, h, w, 1], or one image [h, w, 3],
        [h, w, 1] or [h, w], of any size; uint8, or float in [0, 1]; RGB.

    Returns:
      Maps in the size of the input, scores and verdicts, all with the batch
      axis.

    Raises:
      UserError: if the detector has no thresholds.
      ValueError: if `images` has another shape, type or range.
    """
    self.check_thresholds()
    batch = _as_uint8_batch(images)
    count, size = len(batch), batch.shape[1:3]
    small = np.zeros((count, *self.image_size, 3), np.uint8)
    for index, image in enumerate(batch):
      small[index] = self.prepare(image)
    fitted = self.with_batch_size(min(count, self.batch_size))
    scored = fitted.score_all(small)
    maps = np.zeros((count, *size), np.float32)
    mask = np.zeros((count, *size), bool)
    for index, score in enumerate(scored.score.tolist()):
      maps[index] = resize_map(scored.anomaly_map[index], size)
      mask[index] = self.find_mask(maps[index], score)
    return Prediction(maps, scored.score, self.is_anomalous(scored.score), mask)


def resize_map(
  anomaly_map: Float[np.ndarray, 'h w'], size: tuple[int, int]
) -> Float[np.ndarray, 'h2 w2']:
  """An anomaly map at another height and width, bilinearly."""
  return resize_bilinear(anomaly_map[..., None], size)[..., 0]


def _as_uint8_batch(
  images: UInt8[Array | np.ndarray, '...'] | Float[Array | np.ndarray, '...'],
) -> UInt8[np.ndarray, 'b h w 3']:
  images = np.asarray(images)
  shape = images.shape
  if images.ndim == 2:
    images = images[..., None]
  if images.ndim == 3:
    images = images[None]
  if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in shape[-3:]:
    raise ValueError(
      f'images have the shape {shape}: [b, h, w, 3] is wanted, or one image'
      ' [h, w, 3] or [h, w]; of gray images [b, h, w, 1]'
    )
  if np.issubdtype(images.dtype, np.floating):
    # NaN fails this comparison, too.
    if not np.all((images >= 0) & (images <= 1)):
      raise ValueError('float images must lie in [0, 1]')
    images = np.round(images * 255).astype(np.uint8)
  if images.dtype != np.uint8:
    raise ValueError(f'images are {images.dtype}: uint8 or float is wanted')
  return np.repeat(images, 3 // images.shape[-1], axis=-1)
