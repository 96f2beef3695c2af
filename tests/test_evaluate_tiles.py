"""A test split whose images are scored by tiles, from scores to report."""

import json
import re

import numpy as np
import pytest
from PIL import Image
from redness import Redness
from splits import make_category
from untrained import write_workdir

from draem_jax import curves, evaluate, figures, metrics, report
from draem_jax.data import regions
from draem_jax.detection.detector import Detector
from draem_jax.report import drawings, results
from draem_jax.workdir.thresholds import Thresholds

SHAPES = [(40, 100), (33, 32), (90, 70), (40, 600), (20, 24), (64, 700)]


class Lazy:
  """Images that are there when they are asked for, as a category has them."""

  def __init__(self, items):
    self._items = items

  def __len__(self):
    return len(self._items)

  def __iter__(self):
    return iter(self._items)

  def __getitem__(self, index):
    assert isinstance(index, int)
    return self._items[index]


def make_images():
  """Reddish images with defects that are redder, and how far they cover."""
  rng = np.random.default_rng(0)
  images, masks = [], []
  for number, shape in enumerate(SHAPES):
    image = rng.integers(0, 120, (*shape, 3)).astype(np.uint8)
    mask = np.zeros(shape, np.float32)
    if number % 3:
      mask[7:12, 5 : 15 + number] = 1
      mask[7, 5 : 15 + number] = 0.3
    image[mask == 1, 0] += rng.integers(60, 130, int((mask == 1).sum())).astype(
      np.uint8
    )
    images.append(image)
    masks.append(mask)
  return images, masks


@pytest.fixture
def category():
  images, masks = make_images()
  category = make_category(count=len(SHAPES))
  category.test_images, category.test_masks = Lazy(images), Lazy(masks)
  return category


def detector(**options):
  return Detector(
    Redness(),
    {},
    image_size=32,
    score_window=5,
    thresholds=Thresholds(0.5, 0.5, '4 good images', 0.99, 0.9999),
    batch_size=4,
    resolution=0,
    **options,
  )


@pytest.fixture
def evaluation(category):
  return evaluate.evaluate(detector(), category, mask_threshold=0.5)


def test_metrics_are_those_of_all_pixels_at_their_size(evaluation, category):
  maps = [np.float32(image[..., 0]) / 255 for image in category.test_images]
  masks = [mask >= 0.5 for mask in category.test_masks]
  values = np.concatenate([each.ravel() for each in maps])
  labels = np.concatenate([each.ravel() for each in masks])
  exact = curves.of_scores(values, labels)
  assert evaluation.metrics['pixel_auroc'] == pytest.approx(
    exact.auroc, abs=1e-4
  )
  assert evaluation.metrics['pixel_ap'] == pytest.approx(
    exact.average_precision, abs=1e-4
  )
  assert 0.6 < evaluation.metrics['pixel_auroc'] < 0.9999
  assert evaluation.metrics['aupro'] > 0.5
  scores = [
    detector().score_whole(image).score for image in category.test_images
  ]
  np.testing.assert_allclose(evaluation.scored.score, scores, 1e-6)
  assert evaluation.metrics['image_auroc'] == metrics.auroc(
    np.array(scores), category.labels
  )


def test_what_is_kept_of_an_image_is_small_and_shows_its_peaks(
  evaluation, category
):
  for index, drawn in enumerate(evaluation.drawn):
    image = category.test_images[index]
    block = -(-max(image.shape) // 512)
    assert max(drawn.image.shape) <= 512
    assert drawn.image.shape[:2] == drawn.anomaly_map.shape == drawn.mask.shape
    assert drawn.image.shape[0] == -(-image.shape[0] // block)
    np.testing.assert_allclose(
      drawn.anomaly_map.max(), image[..., 0].max() / 255, rtol=1e-4
    )
    assert drawn.mask.any() == category.labels[index]
    np.testing.assert_allclose(drawn.image.mean(), image.mean(), rtol=0.02)
  assert evaluation.scored.anomaly_map is None
  assert evaluate.find_blindness(evaluation, steps=5000) is None


def test_extra_metrics_and_validation_images(category):
  category.metrics = tuple(metrics.EXTRA)
  category.validation_images = Lazy(make_images()[0][:1])
  category.test_regions = [
    [
      regions.Region(
        np.flatnonzero(m), np.full((m > 0).sum(), 255, np.uint8), 1.0
      )
    ]
    if m.any()
    else []
    for m in category.test_masks
  ]
  evaluation = evaluate.evaluate(detector(), category, mask_threshold=0.5)
  assert set(metrics.EXTRA) <= set(evaluation.metrics)
  for key in metrics.EXTRA:
    assert 0 < evaluation.metrics[key] < 1


def test_the_report_and_the_pictures(evaluation, tmp_path):
  row = results.write(
    tmp_path,
    evaluation,
    steps=1200,
    timing={
      'train_seconds': 4000.0,
      'images_per_second': 71.25,
      'device': '1 x <device>',
    },
  )
  drawings.draw(tmp_path / 'figures', evaluation)
  assert len(list((tmp_path / 'figures/panels').rglob('*.png'))) == len(SHAPES)
  with Image.open(tmp_path / 'figures/mistakes.png') as gallery:
    assert gallery.size[0] > 500
  page = report.write_report(tmp_path, evaluation, row).read_text()
  data = re.search(r'<script[^>]*id="data"[^>]*>(.*?)</script>', page, re.S)
  data = json.loads(data[1])
  sizes = [
    (one.get('height', data['height']), one.get('width', data['width']))
    for one in data['images']
  ]
  assert sizes == [drawn.image.shape[:2] for drawn in evaluation.drawn]
  assert all('reconstruction' in one for one in data['images'])


def test_a_category_without_truth_or_without_images(category):
  category.test_masks = None
  evaluation = evaluate.evaluate(detector(), category, mask_threshold=0.5)
  assert evaluation.masks is None and evaluation.metrics['pixel_ap'] is None
  assert evaluation.reasons['pixel_ap'].endswith('no ground truth masks')
  category.test_images, category.labels = Lazy([]), np.zeros(0, bool)
  category.test_files = category.test_defects = []
  evaluation = evaluate.evaluate(detector(), category, mask_threshold=0.5)
  assert evaluation.scored is None and not evaluation.drawn


def test_figure_8_shows_them_small(category, tmp_path, monkeypatch):
  run = write_workdir(tmp_path / 'run', **{'data.resolution': 0})
  (run / 'results.json').write_text('{}')
  monkeypatch.setattr(
    figures.experiment, 'load_category', lambda *unused: category
  )
  columns = figures._test_columns(run, 2)
  assert len(columns) == 2
  for image, anomaly_map, mask, _ in columns:
    assert image.shape[:2] == anomaly_map.shape == mask.shape
    assert max(image.shape) <= 512
