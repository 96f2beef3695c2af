"""A detector and a test split in; an evaluation, which is a value, out."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool

from draem_jax import metrics
from draem_jax.curves import Curves, Region
from draem_jax.data.category import Category
from draem_jax.detection.detector import Detector, Scored
from draem_jax.workdir.thresholds import Thresholds

_log = logging.getLogger(__name__)

# After these, networks that see no difference will not learn to.
_ENOUGH_STEPS = 1000


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """All there is to say of a test split; files are made of it elsewhere.

  Attributes:
    category: with the test images at the size of the networks.
    labels: True for anomalous images.
    masks: True for anomalous pixels; None when there is no ground truth.
    thresholds: of the detector.
    scored: what the networks say of the images; None when there are none.
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
  masks: Bool[np.ndarray, 'n h w'] | None
  thresholds: Thresholds
  scored: Scored | None
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
  masks = None
  if category.test_masks is not None:
    masks = category.test_masks >= mask_threshold
  if not len(labels):
    _log.info('%s has no test images: nothing to evaluate', category.name)
    return Evaluation(
      category=category,
      labels=labels,
      masks=masks,
      thresholds=detector.thresholds,
      scored=None,
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
  scored = detector.score_all(category.test_images)
  split = metrics.measure(
    scores=scored.score,
    labels=labels,
    maps=scored.anomaly_map,
    masks=masks,
    coarse_masks=category.coarse_masks,
    threshold=detector.thresholds.image,
    kinds=category.test_defects,
    regions=_regions(category, mask_threshold),
    map_threshold=_map_threshold(detector, category),
  )
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
    masks=masks,
    thresholds=detector.thresholds,
    scored=scored,
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
  batches = detector.score(category.validation_images)
  return metrics.map_threshold(batch.anomaly_map for batch in batches)


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
  if np.ptp(scored.score) or (images == images[0]).all():
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
