"""The detector: weights, preprocessing, score and threshold in one object.

What `evaluate`, `predict` and `export` share. Maps and scores are those of
section 3.4 of the paper.

Images are resized on the host, and only then go to the device: one compiled
program serves every size, and scores are the same to the last bit whether the
images come from a prepared data set or from a folder.

With a `resolution` the networks see pictures at that size, or at their own, in
overlapping tiles of `image_size` (`detection.tiles`).
"""

import copy
import dataclasses
import functools
import logging
import os
import pathlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from draem_jax import counted, sizes
from draem_jax.data import encoded, resizing
from draem_jax.data import roi as roi_lib
from draem_jax.data.images import resize_bilinear
from draem_jax.detection import parts, scanner, tiles
from draem_jax.detection.regions import Region, find_regions
from draem_jax.errors import UserError
from draem_jax.networks import folding, models
from draem_jax.score import IMAGE_SCORES, map_and_score
from draem_jax.workdir import claim, mirror
from draem_jax.workdir.thresholds import FILE as THRESHOLDS_FILE
from draem_jax.workdir.thresholds import Thresholds, read_thresholds

_log = logging.getLogger(__name__)


# What pictures are resized to: '', the size of the networks' input; 0, nothing,
# they are scored at their own size; or height and width.
Resolution = Literal['', 0] | sizes.Size


@dataclasses.dataclass(frozen=True)
class Scored:
  """What the networks say of a batch, at the networks' size.

  Of pictures that were scored by tiles there are only the scores.
  """

  reconstruction: Float[np.ndarray, 'b h w 3'] | None
  anomaly_map: Float[np.ndarray, 'b h w'] | None
  score: Float[np.ndarray, 'b']


@dataclasses.dataclass(frozen=True)
class Whole:
  """What the networks say of one prepared picture, at its size.

  Attributes:
    anomaly_map: how anomalous each pixel is, in [0, 1].
    score: how anomalous the picture is, in [0, 1].
    reconstruction: as levels; None if it was not asked for, or there is none.
  """

  anomaly_map: Float[np.ndarray, 'h w']
  score: float
  reconstruction: UInt8[np.ndarray, 'h w 3'] | None


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
    resize: how images are brought to another size, of `resizing.WAYS`.
    resolution: the size that is: `''`, that of the networks' input; 0, their
      own; or height and width.
    roi: where the object is: outside maps are 0; None for the whole image.
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
    resolution: Resolution = '',
    roi: roi_lib.Roi | None = None,
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
    self.roi = roi
    self.resolution = resolution
    if resolution not in ('', 0):
      self.resolution = sizes.pair(resolution)

    def look(
      variables: Mapping[str, Any], images: UInt8[Array, 'b h w c']
    ) -> tuple[
      Float[Array, 'b h w 3'] | None, Float[Array, 'b h w'], Float[Array, 'b']
    ]:
      images, region = roi_lib.split(images)
      images = images.astype(jnp.float32) / 255
      output = model.apply(variables, images, train=False)
      maps, scores = map_and_score(
        output,
        images,
        map_name=score_map,
        window=score_window,
        image_score_name=score_image,
        region=region,
      )
      return output.reconstruction, maps, scores

    self._score = parts.compiled(look)
    self._scanner = scanner.Scanner(
      model,
      self.folded,
      image_size=self.image_size,
      score_map=score_map,
      score_image=score_image,
      score_window=score_window,
    )

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
      resolution=config['data']['resolution'],
      roi=roi_lib.of_run(config['data']['roi'], workdir),
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

  def with_roi(self, source: str | os.PathLike[str]) -> 'Detector':
    """The same detector, of pictures where the object is elsewhere.

    The thresholds stay.

    Args:
      source: as `config.data.roi`: an image that is white where the object is,
        a folder with one per picture, by name, or `'auto'`.

    Raises:
      UserError: if there is nothing of that name, or this detector looks at
        pictures by tiles or decides about them whole.
    """
    if self.is_tiled or not self._scores_by_map:
      raise UserError(
        'a region of interest is for networks that see pictures resized to'
        " config.image_size (config.data.resolution='') and score them by their"
        " map (config.score.image='window'): leave it out"
      )
    changed = copy.copy(self)
    changed.roi = roi_lib.read(os.fspath(source))
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
    if self.is_tiled:
      scoring += f' at {self.resolution}'
    if self.roi is not None:
      scoring += f' inside {self.roi.fingerprint()}'
    checksum = zlib.crc32(scoring.encode())
    for leaf in jax.tree.leaves(self.variables):
      checksum = zlib.crc32(np.ascontiguousarray(leaf), checksum)
    return f'{checksum:08x}'

  @property
  def is_tiled(self) -> bool:
    """Whether pictures may be larger than what the networks see at a time."""
    return self.resolution != '' and self.resolution != self.image_size

  def size_of(self, shape: Sequence[int]) -> tuple[int, int]:
    """Height and width at which a picture is looked at.

    Args:
      shape: its own height and width first.
    """
    if not self.is_tiled:
      return self.image_size
    return self.resolution or (shape[0], shape[1])

  @property
  def channels(self) -> int:
    """Channels of prepared images: a fourth one says where the object is."""
    return 3 if self.roi is None else 4

  def prepare(
    self, image: UInt8[np.ndarray, 'h w 3'], name: str = ''
  ) -> UInt8[np.ndarray, 'h2 w2 c']:
    """An image of any size as the networks see it, of the size `size_of`.

    Args:
      image: RGB.
      name: of its file, where each image has a region of its own.

    Raises:
      UserError: if there is no region of that name.
    """
    prepared = resizing.resize(image, self.size_of(image.shape), self.resize)
    return self.roi.add(prepared, name) if self.roi else prepared

  def prepare_picture(
    self, picture: encoded.Picture, name: str = ''
  ) -> UInt8[np.ndarray, 'h2 w2 c']:
    """The same of a picture that is never whole in memory."""
    size = self.size_of(picture.shape)
    prepared = resizing.resize_picture(picture, size, self.resize)
    return self.roi.add(prepared, name) if self.roi else prepared

  def prepared_rows(self, picture: encoded.Picture) -> tiles.Rows:
    """The same, of which rows are made when they are asked for, if it can be.

    Only a picture that is looked at in its own size need not be whole.
    """
    if self.size_of(picture.shape) == picture.shape:
      return picture.rows
    prepared = self.prepare_picture(picture)
    return lambda top, bottom: prepared[top:bottom]

  def score(self, images: UInt8[np.ndarray, 'n h w c']) -> Iterator[Scored]:
    """Scores prepared images, one batch after the other.

    Args:
      images: uint8 [n, *image_size, channels], as `prepare` gives them.

    Yields:
      Batches of `batch_size`, in order. The networks see the last one padded,
      so that they are compiled once; the padding does not come out.

    Raises:
      UserError: if the networks give no numbers, which would be called good.
      ValueError: if the images do not say where the object is, but `roi` does.
    """
    if images.shape[-1] != self.channels:
      raise ValueError(
        f'images have {images.shape[-1]} channels: {self.channels} are wanted,'
        ' as Detector.prepare gives them'
      )
    for start in range(0, max(len(images), 1), self.batch_size):
      batch = images[start : start + self.batch_size]
      padded = np.zeros((self.batch_size, *images.shape[1:]), np.uint8)
      padded[: len(batch)] = batch
      outputs = jax.device_get(self._score(self.folded, padded))
      scanner.check_numbers(outputs[1:])
      yield Scored(
        *(
          None if output is None else output[: len(batch)] for output in outputs
        )
      )

  def score_all(self, images: UInt8[np.ndarray, 'n h w c']) -> Scored:
    """As `score`, with all batches joined."""
    batches = list(self.score(images))
    fields = [
      [getattr(batch, field.name) for batch in batches]
      for field in dataclasses.fields(Scored)
    ]
    return Scored(
      *(None if each[0] is None else np.concatenate(each) for each in fields)
    )

  def score_whole(
    self,
    prepared: UInt8[np.ndarray, 'h w 3'],
    *,
    with_reconstruction: bool = False,
  ) -> Whole:
    """Scores one prepared picture, by tiles if it is not a tile.

    Args:
      prepared: as `prepare` gives it.
      with_reconstruction: whether that is wanted, too.

    Raises:
      UserError: if the networks give no numbers.
    """
    maps, seen = [], []
    score = self.scan(
      lambda top, bottom: prepared[top:bottom],
      prepared.shape[:2],
      maps.append,
      see=seen.append if with_reconstruction else None,
    )
    return Whole(
      np.concatenate(maps), score, np.concatenate(seen) if seen else None
    )

  def scan(
    self,
    rows: tiles.Rows,
    shape: tuple[int, int],
    take: Callable[[Float[np.ndarray, '_ w']], Any],
    *,
    see: Callable[[UInt8[np.ndarray, '_ w 3']], Any] | None = None,
  ) -> float:
    """The same of a picture that need never be whole in memory.

    Tiles are scored `batch_size` at a time, of a picture with fewer of them the
    power of two that they fit in.

    Args:
      rows: gives rows of the prepared picture from one to before another.
      shape: its height and width.
      take: is given its map, in strips from top to bottom.
      see: is given its reconstruction in the same way, if there is one.

    Returns:
      The score: of the whole map; or, of networks that decide, the highest of
      any tile.

    Raises:
      UserError: if the networks give no numbers.
    """
    if shape == self.image_size:
      scored = self.with_batch_size(1).score_all(rows(0, shape[0])[None])
      take(scored.anomaly_map[0])
      if see is not None and scored.reconstruction is not None:
        see(scanner.as_levels(scored.reconstruction[0]))
      return float(scored.score[0])
    return self._scanner.scan(
      rows, shape, take, see=see, batch_size=self.batch_size
    )

  def compile_tiles(self) -> None:
    """Compiles the programs that scan pictures of whatever size."""
    self.score_all(np.zeros((1, *self.image_size, 3), np.uint8))
    self._scanner.compile(self.batch_size)

  def choose_thresholds(
    self,
    good_images: UInt8[np.ndarray, 'n h w c']
    | Iterable[UInt8[np.ndarray, '_ _ 3']],
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
      good_images: prepared, without anomalies. By tiles they are scored one
        after the other, and the quantile of the pixels is rounded up by some
        ten-thousandths of itself.
      source: what these images are, in words.
      quantile: share of the good images that shall pass as good.
      pixel_quantile: share of the good pixels that shall pass as good, of those
        where the object is.
    """
    maps, scores = [], []
    if self.is_tiled:
      counts = counted.Counts()
      for good in good_images:
        rows = lambda top, bottom, good=good: good[top:bottom]
        scores.append(self.scan(rows, good.shape[:2], counts.add))
      image = float(np.quantile(scores, quantile))
      pixel = counts.quantile(pixel_quantile)
    else:
      for scored in self.score(good_images):
        maps.append(scored.anomaly_map)
        scores.append(scored.score)
      image = float(np.quantile(np.concatenate(scores), quantile))
      pixels = np.concatenate(maps)
      if self.roi is not None:
        pixels = pixels[roi_lib.region(good_images)]
      pixel = float(np.quantile(pixels, pixel_quantile))
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
    maps, scores = self.map_and_score(_as_uint8_batch(images))
    mask = np.zeros(maps.shape, bool)
    for index, score in enumerate(scores.tolist()):
      mask[index] = self.find_mask(maps[index], score)
    return Prediction(maps, scores, self.is_anomalous(scores), mask)

  def map_and_score(
    self, images: UInt8[np.ndarray, 'b h w 3']
  ) -> tuple[Float[np.ndarray, 'b h w'], Float[np.ndarray, 'b']]:
    """The maps, in the size of the images, and the scores.

    Args:
      images: of any size.
    """
    count, size = len(images), images.shape[1:3]
    maps = np.zeros((count, *size), np.float32)
    if self.is_tiled:
      scores = np.zeros(count, np.float32)
      for index, image in enumerate(images):
        whole = self.score_whole(self.prepare(image))
        maps[index] = resize_map(whole.anomaly_map, size)
        scores[index] = whole.score
      return maps, scores
    small = np.zeros((count, *self.image_size, self.channels), np.uint8)
    for index, image in enumerate(images):
      small[index] = self.prepare(image)
    scored = self.with_batch_size(min(count, self.batch_size)).score_all(small)
    for index, small_map in enumerate(scored.anomaly_map):
      maps[index] = resize_map(small_map, size)
    return maps, scored.score


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
