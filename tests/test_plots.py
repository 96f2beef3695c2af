"""Properties of the curves and the histogram, in the files as written."""

import os

import matplotlib
import numpy as np
import pytest
from matplotlib import _pylab_helpers
from PIL import Image

from draem_jax import metrics
from draem_jax.pictures import plots


def has_color(array, color):
  rgb = [int(color[index : index + 2], 16) for index in (1, 3, 5)]
  return np.any(np.all(array == rgb, axis=-1))


def split():
  rng = np.random.default_rng(0)
  labels = np.arange(20) >= 8
  masks = np.zeros((20, 16, 16), bool)
  masks[labels, 4:9, 4:9] = True
  maps = rng.random(masks.shape, dtype=np.float32) * 0.6 + 0.4 * masks
  return {
    'scores': rng.random(20) * 0.7 + 0.3 * labels,
    'labels': labels,
    'maps': maps,
    'masks': masks,
  }


def measure(data):
  """The levels and the rates of a split, as an evaluation has them."""
  found = metrics.measure(**data)
  levels = {'images': found.image}
  if data['masks'] is not None:
    levels['pixels'] = found.pixel
  rates = metrics.rates_at_threshold(data['scores'], data['labels'], 0.5)
  return levels, rates


def test_curves_show_pixels_only_when_there_are_masks(tmp_path):
  data = split()
  levels, rates = measure(data)
  plots.draw_curves(tmp_path / 'all.png', levels, rates=rates, threshold=0.5)
  data['masks'] = None
  levels, _ = measure(data)
  plots.draw_curves(tmp_path / 'images.png', levels)
  both, images = (
    np.asarray(Image.open(tmp_path / f'{name}.png'))
    for name in ('all', 'images')
  )
  assert both.shape == images.shape
  assert has_color(both, plots.IMAGE_COLOR)
  assert has_color(both, plots.PIXEL_COLOR)
  assert has_color(images, plots.IMAGE_COLOR)
  assert not has_color(images, plots.PIXEL_COLOR)


@pytest.mark.parametrize('kind', [False, True])
def test_one_kind_of_image_alone_can_be_drawn(tmp_path, kind):
  data = split()
  data['labels'] = np.full(20, kind)
  levels, rates = measure(data)
  assert levels['images'] is None
  plots.draw_curves(tmp_path / 'curves.png', levels, rates=rates, threshold=0.5)
  plots.draw_histogram(
    tmp_path / 'scores.png',
    scores=data['scores'],
    labels=data['labels'],
    threshold=0.5,
  )
  assert sorted(os.listdir(tmp_path)) == ['curves.png', 'scores.png']


def test_drawing_leaves_matplotlib_as_it_was(tmp_path):
  settings = dict(matplotlib.rcParams)
  data = split()
  plots.draw_histogram(
    tmp_path / 'scores.png', scores=data['scores'], labels=data['labels']
  )
  assert dict(matplotlib.rcParams) == settings
  assert not _pylab_helpers.Gcf.figs
