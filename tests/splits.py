"""A test split as an evaluation has it at hand, made up in no time."""

import numpy as np

from draem_jax import evaluate, report
from draem_jax.data.category import Category
from draem_jax.detection.detector import Detector, Scored
from draem_jax.report import results
from draem_jax.workdir.thresholds import Thresholds


def make_category(*, count=24, size=32, masks=True):
  """A category whose test images are colored tiles, a third of them good."""
  rng = np.random.default_rng(0)
  defects = [('good', 'crack', 'scratch')[index % 3] for index in range(count)]
  coverage = np.zeros((count, size, size), np.float32)
  for index, defect in enumerate(defects):
    if defect != 'good':
      coverage[index, 4 : 12 + index % 8, 6:14] = 1
  tiles = rng.integers(0, 256, (count, size // 8, size // 8, 3), np.uint8)
  images = tiles.repeat(8, axis=1).repeat(8, axis=2)
  return Category(
    name='bottle',
    train_images=images[:0],
    train_files=[],
    test_images=images,
    test_masks=coverage if masks else None,
    test_files=[
      f'test/{defect}/{index:03}.png' for index, defect in enumerate(defects)
    ],
    test_defects=defects,
    labels=np.array([defect != 'good' for defect in defects], bool),
  )


def make_scored(category, *, reconstruction=True):
  """Scores that overlap, so that a threshold has something to decide."""
  rng = np.random.default_rng(0)
  labels = category.labels
  score = rng.uniform(0.0, 0.6, len(labels)) + 0.3 * labels
  anomaly_map = rng.uniform(0, 0.3, category.test_images.shape[:3])
  if category.test_masks is not None:
    anomaly_map += 0.5 * category.test_masks
  return Scored(
    reconstruction=np.float32(category.test_images / 255)
    if reconstruction
    else None,
    anomaly_map=np.float32(anomaly_map),
    score=np.float32(score),
  )


class _Detector(Detector):
  """One without networks, that says the same of whatever it is given."""

  def __init__(self, thresholds, scored):
    self.thresholds, self.resolution = thresholds, ''
    self.score_all = lambda images: scored


def make_evaluation(category, scored):
  """What `evaluate` makes of these scores."""
  thresholds = Thresholds(
    image=0.375,
    pixel=0.3,
    source='12 <good> images held out of the training',
    quantile=0.99,
    pixel_quantile=0.9999,
  )
  detector = _Detector(thresholds, scored)
  return evaluate.evaluate(detector, category, mask_threshold=0.5)


def make_report(folder, category, scored):
  """Evaluates as the command does; returns the report's path and the row.

  The PNG files are left out: they take long and have their own tests.
  """
  evaluation = make_evaluation(category, scored)
  row = results.write(
    folder,
    evaluation,
    steps=1200,
    timing={
      'train_seconds': 4000.0,
      'images_per_second': 71.25,
      'device': '1 x <device>',
    },
  )
  return report.write_report(folder, evaluation, row), row
