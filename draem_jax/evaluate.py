"""A detector and a test split in; an evaluation, which is a value, out."""

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from draem_jax import counted, metrics
from draem_jax.curves import Curves, Region
from draem_jax.data import roi
from draem_jax.data.category import Category
from draem_jax.detection.detector import Detector, Scored, Whole
from draem_jax.pictures import shrink
from draem_jax.workdir.thresholds import Thresholds

_log = logging.getLogger(__name__)

# After these, networks that see no difference will not learn to.
_ENOUGH_STEPS = 1000
# Pixels of the longer side of what is kept of a picture that was scored by
# tiles: no panel shows more.
_DRAWN_SIDE = 512


@dataclasses.dataclass(frozen=True)
class Drawn:
  """What there is to see of a test image, all of one size.

  Attributes:
    image: as the networks saw it.
    anomaly_map: its map.
    mask: True for anomalous pixels; None when there is no ground truth.
    reconstruction: None where the networks have none.
  """

  image: UInt8[np.ndarray, 'h w 3']
  anomaly_map: Float[np.ndarray, 'h w']
  mask: Bool[np.ndarray, 'h w'] | None
  reconstruction: Float[np.ndarray, 'h w 3'] | UInt8[np.ndarray, 'h w 3'] | None


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """All there is to say of a test split; files are made of it elsewhere.

  Attributes:
    category: with the test images as they are looked at.
    labels: True for anomalous images.
    masks: True for anomalous pixels; None when there is no ground truth. Of
      images that were scored by tiles those of `drawn`.
    thresholds: of the detector.
    scored: what the networks say of the images; None when there are none.
    drawn: what there is to see of each image. By tiles it is scored at its
      size, and this is small: a pixel of an image is the mean, and one of a map
      or a mask the highest, of those that it stands for.
    image: the curves of the images, with every corner; None where the split
      does not define them.
    pixel: the same of all pixels.
    rates: what the detector's threshold does; None when there are no images.
    best_f1: the highest F1 that any threshold reaches, None without an
      anomalous image.
    best_f1_threshold: that threshold.
    best_f1_rates: what that threshold does, None where there is none.
    metrics: by key, as in `metrics.METRICS` and, as far as the category is
      known by them, in `metrics.EXTRA`; None where undefined.
    reasons: why a metric is None, in words, by key.
  """

  category: Category
  labels: Bool[np.ndarray, 'n']
  masks: Bool[np.ndarray, 'n h w'] | list[Bool[np.ndarray, '_ _']] | None
  thresholds: Thresholds
  scored: Scored | None
  drawn: Sequence[Drawn]
  image: Curves | None
  pixel: Curves | None
  rates: metrics.Rates | None
  best_f1: float | None
  best_f1_threshold: float | None
  best_f1_rates: metrics.Rates | None
  metrics: Mapping[str, float | None]
  reasons: Mapping[str, str]

  @property
  def is_anomalous(self) -> Bool[np.ndarray, 'n']:
    """The verdict on each image."""
    if self.scored is None:
      return np.zeros(0, bool)
    # In float64, as the detector compares.
    return self.scored.score.astype(np.float64) > self.thresholds.image

  @property
  def curves(self) -> dict[str, Curves | None]:
    """The curves to draw: of the images and, with exact truth, the pixels."""
    levels = {'images': self.image}
    if self.masks is not None and not self.category.coarse_masks:
      levels['pixels'] = self.pixel
    return levels

  def results(self) -> dict[str, Any]:
    """What `results.json` says of the test split, as plain values.

    Without test images it has nothing but the metrics, which are None.
    """
    content = {'category': self.category.name, **self.metrics}
    if self.rates is not None:
      content |= {
        'threshold': self.thresholds.image,
        'threshold_source': self.thresholds.source,
        **{key: getattr(self.rates, key) for key in metrics.RATES},
        'best_f1': self.best_f1,
        'best_f1_threshold': self.best_f1_threshold,
      }
      content |= {
        metrics.at_best_f1(key): getattr(self.best_f1_rates, key, None)
        for key in metrics.PAPER_RATES
      }
    return content


def evaluate(
  detector: Detector, category: Category, *, mask_threshold: float
) -> Evaluation:
  """Scores the test split of a category; writes and draws nothing.

  Args:
    detector: trained, with thresholds.
    category: with images at the size of the detector.
    mask_threshold: the share of a pixel that the ground truth must cover for
      the pixel to count as anomalous.
  """
  labels = category.labels
  if not len(labels):
    _log.info('%s has no test images: nothing to evaluate', category.name)
    return Evaluation(
      category=category,
      labels=labels,
      masks=None if category.test_masks is None else [],
      thresholds=detector.thresholds,
      scored=None,
      drawn=[],
      image=None,
      pixel=None,
      rates=None,
      best_f1=None,
      best_f1_threshold=None,
      best_f1_rates=None,
      metrics=dict.fromkeys(metrics.chosen(category.metrics)),
      reasons=dict.fromkeys(
        metrics.chosen(category.metrics), 'there are no test images'
      ),
    )
  look = _look_by_tiles if detector.is_tiled else _look_at_once
  scored, split, drawn = look(detector, category, mask_threshold)
  values, reasons = metrics.compute(split, category.metrics)
  for reason in dict.fromkeys(reasons.values()):
    missing = ', '.join(key for key in reasons if reasons[key] == reason)
    _log.info('%s: no %s: %s', category.name, missing, reason)
  best_f1, best_f1_threshold = metrics.best_f1(scored.score, labels)
  best_f1_rates = None
  if best_f1_threshold is not None:
    best_f1_rates = metrics.rates_at_threshold(
      scored.score, labels, best_f1_threshold
    )
  return Evaluation(
    category=category,
    labels=labels,
    masks=None if drawn[0].mask is None else [one.mask for one in drawn],
    thresholds=detector.thresholds,
    scored=scored,
    drawn=drawn,
    image=split.image,
    pixel=split.pixel,
    rates=metrics.rates_at_threshold(
      scored.score, labels, detector.thresholds.image
    ),
    best_f1=best_f1,
    best_f1_threshold=best_f1_threshold,
    best_f1_rates=best_f1_rates,
    metrics=values,
    reasons=reasons,
  )


_Looked = tuple[Scored, metrics.Split, list[Drawn]]


def _look_at_once(
  detector: Detector, category: Category, mask_threshold: float
) -> _Looked:
  """Scores a test split whose images and maps all are in memory."""
  masks = None
  if category.test_masks is not None:
    masks = category.test_masks >= mask_threshold
    _tell_of_outside(category, masks)
  scored = detector.score_all(category.test_images)
  split = metrics.measure(
    scores=scored.score,
    labels=category.labels,
    maps=scored.anomaly_map,
    masks=masks,
    coarse_masks=category.coarse_masks,
    threshold=detector.thresholds.image,
    kinds=category.test_defects,
    regions=_regions(category, mask_threshold),
    map_threshold=_map_threshold(detector, category),
  )
  drawn = [
    Drawn(
      image[..., :3],
      scored.anomaly_map[index],
      None if masks is None else masks[index],
      None if scored.reconstruction is None else scored.reconstruction[index],
    )
    for index, image in enumerate(category.test_images)
  ]
  return scored, split, drawn


def _tell_of_outside(
  category: Category, masks: Bool[np.ndarray, 'n h w']
) -> None:
  """Says how much of the ground truth lies where maps are 0."""
  region = roi.region(category.test_images)
  if region is None or not masks.any():
    return
  outside = masks & ~region
  whole = outside.any(axis=(1, 2)) & ~(masks & region).any(axis=(1, 2))
  _log.log(
    logging.WARNING if whole.any() else logging.INFO,
    '%s: %d of %d anomalous pixels lie outside of config.data.roi, where maps'
    ' are 0, and count as missed%s',
    category.name,
    outside.sum(),
    masks.sum(),
    f'; all of those of {whole.sum()} images do' if whole.any() else '',
  )


def _look_by_tiles(
  detector: Detector, category: Category, mask_threshold: float
) -> _Looked:
  """The same, image by image: of each the scores, counts and a small one stay.

  The images may differ in size.
  """
  regions = _regions(category, mask_threshold)
  pixels = None
  if category.test_masks is not None:
    pixels = counted.Pixels(map_threshold=_map_threshold(detector, category))
  scores, drawn = [], []
  for index, image in enumerate(category.test_images):
    whole, mask = detector.score_whole(image, with_reconstruction=True), None
    if pixels is not None:
      mask = category.test_masks[index] >= mask_threshold
      pixels.add(
        whole.anomaly_map,
        mask,
        kind=category.test_defects[index] if category.labels[index] else None,
        regions=None if regions is None else regions[index],
      )
    scores.append(whole.score)
    drawn.append(shrink_whole(image, whole, mask))
  scores = np.array(scores, np.float32)
  split = metrics.measure_counted(
    scores=scores,
    labels=category.labels,
    pixels=pixels,
    coarse_masks=category.coarse_masks,
    threshold=detector.thresholds.image,
  )
  return Scored(None, None, scores), split, drawn


def shrink_whole(
  image: UInt8[np.ndarray, 'h w 3'],
  whole: Whole,
  mask: Bool[np.ndarray, 'h w'] | None,
) -> Drawn:
  """What is to be seen of a picture that was scored by tiles.

  Args:
    image: as the networks saw it.
    whole: what they say of it.
    mask: its anomalous pixels, if they are known.
  """
  block = shrink.factor(image.shape, _DRAWN_SIDE)
  seen = whole.reconstruction
  return Drawn(
    shrink.means(image, block),
    shrink.peaks(whole.anomaly_map, block),
    None if mask is None else shrink.peaks(mask, block),
    None if seen is None else shrink.means(seen, block),
  )


def _regions(
  category: Category, mask_threshold: float
) -> list[list[Region]] | None:
  """The defects of each test image that cover any pixel enough."""
  if category.test_regions is None:
    return None
  found, lost = [], 0
  for regions in category.test_regions:
    own = []
    for region in regions:
      pixels = region.pixels[region.coverage / 255 >= mask_threshold]
      own.append(Region(pixels, region.saturation))
    found.append([region for region in own if region.pixels.size])
    lost += len(own) - len(found[-1])
  if lost:
    _log.warning(
      '%s: %d defects cover no pixel at the size of the networks, and do not'
      ' count: take a larger config.image_size',
      category.name,
      lost,
    )
  return found


def _map_threshold(detector: Detector, category: Category) -> float | None:
  """Where SegF1 cuts the maps, if the category is known by it."""
  if 'seg_f1' not in category.metrics or category.validation_images is None:
    return None
  return metrics.map_threshold(_maps(detector, category.validation_images))


def _maps(
  detector: Detector,
  images: UInt8[np.ndarray, 'n h w c'] | Iterable[UInt8[np.ndarray, '_ _ 3']],
) -> Iterator[Float[np.ndarray, '_ h w']]:
  """The maps of prepared images, in batches."""
  if not detector.is_tiled:
    for batch in detector.score(images):
      yield batch.anomaly_map
    return
  for image in images:
    yield detector.score_whole(image).anomaly_map[None]


def find_blindness(evaluation: Evaluation, *, steps: int) -> str | None:
  """Why networks are of no use, in words: that they see no difference.

  Those that were trained for some steps only may see none yet, and are not at
  fault, unless they are as sure as can be.

  Args:
    evaluation: of the test split.
    steps: number of steps of the training; 0 if there was none.

  Returns:
    What is wrong; None if nothing is.
  """
  labels, scored = evaluation.labels, evaluation.scored
  if scored is None or labels.all() or not labels.any():
    return None
  images = evaluation.category.test_images
  if np.ptp(scored.score):
    return None
  if all(np.array_equal(image, images[0]) for image in images):
    return None
  score = float(scored.score[0])
  words = (
    f'the detector tells nothing apart: each of {len(labels)} test images has'
    f' the score {score:.3g}'
  )
  if steps and (score in (0, 1) or steps >= _ENOUGH_STEPS):
    return (
      f'{words}: train in another --workdir, with another config.learning_rate'
    )
  _log.warning('%s', words)
  return None
