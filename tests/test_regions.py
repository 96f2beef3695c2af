"""Regions of a mask, against ones drawn by hand and scikit-image's polygons."""

import numpy as np
import pytest
from skimage import draw, measure

from draem_jax.detection import regions as regions_lib
from draem_jax.detection.regions import Finder, find_regions


def test_two_regions_the_higher_peak_first():
  mask, anomaly_map = np.zeros((20, 30), bool), np.zeros((20, 30), np.float32)
  mask[2:5, 3:9] = True
  mask[10:16, 20:22] = True
  anomaly_map[mask] = 0.5
  anomaly_map[12, 21] = 0.75
  anomaly_map[0, 0] = 1.0  # Outside of the mask.
  first, second = find_regions(anomaly_map, mask)
  assert first.box == (20, 10, 2, 6) and second.box == (3, 2, 6, 3)
  assert (first.area, second.area) == (12, 18)
  assert (first.peak, second.peak) == (0.75, 0.5)
  assert first.as_dict()['bbox'] == [20, 10, 2, 6]
  assert len(first.as_dict()['segmentation'][0]) == 2 * len(first.polygon)


def test_pixels_that_touch_at_a_corner_are_one():
  mask = np.eye(6, dtype=bool)
  (region,) = find_regions(mask.astype(np.float32), mask)
  assert region.box == (0, 0, 6, 6) and region.area == 6


def test_no_pixel_is_no_region():
  assert find_regions(np.ones((4, 4), np.float32), np.zeros((4, 4), bool)) == []


def test_the_whole_image_is_one_region():
  mask = np.ones((8, 5), bool)
  (region,) = find_regions(mask.astype(np.float32), mask)
  assert region.box == (0, 0, 5, 8) and region.area == 40
  x, y = np.transpose(region.polygon)
  assert (x.min(), x.max(), y.min(), y.max()) == (0, 5, 0, 8)


def test_a_polygon_drawn_again_is_the_region():
  rng = np.random.default_rng(0)
  mask = np.zeros((120, 160), bool)
  for _ in range(6):
    rows, columns = draw.ellipse(
      *rng.uniform((20, 20), (100, 140)),
      *rng.uniform(4, 16, 2),
      shape=mask.shape,
    )
    mask[rows, columns] = True
  regions = find_regions(mask.astype(np.float32), mask)
  again = np.zeros_like(mask)
  for region in regions:
    x, y = np.transpose(region.polygon)
    again |= draw.polygon2mask(mask.shape, np.stack([y - 0.5, x - 0.5], axis=1))
  assert sum(region.area for region in regions) == mask.sum()
  assert (again ^ mask).sum() <= 0.06 * mask.sum()


@pytest.mark.parametrize('share', [0.02, 0.3, 0.45, 0.7])
def test_boxes_areas_and_peaks_are_those_of_scikit_image(share):
  rng = np.random.default_rng(0)
  mask = rng.random((50, 67)) < share
  anomaly_map = rng.random(mask.shape).astype(np.float32)
  expected = []
  labels = measure.label(mask, connectivity=2)
  for found in measure.regionprops(labels, intensity_image=anomaly_map):
    top, left, bottom, right = found.bbox
    box = left, top, right - left, bottom - top
    expected.append((-found.intensity_max, box, found.area))
  found = find_regions(anomaly_map, mask)
  assert [(-r.peak, r.box, r.area) for r in found] == sorted(expected)
  for region in found:
    # Fewer corners enclose nothing.
    x, y = np.transpose(region.polygon)
    assert len(x) >= 3
    # The outer outline, not that of a hole: it reaches every side of the box.
    left, top, width, height = region.box
    assert (x.min(), y.min()) == pytest.approx((left, top), abs=0.4)
    assert np.ptp(x) == pytest.approx(width, abs=0.8)
    assert np.ptp(y) == pytest.approx(height, abs=0.8)


@pytest.mark.parametrize('step', [1, 3, 7, 50])
def test_strips_do_not_show(step):
  rng = np.random.default_rng(1)
  mask = rng.random((50, 30)) < 0.4
  anomaly_map = rng.random(mask.shape).astype(np.float32)
  finder = Finder()
  for top in range(0, 50, step):
    finder.add(anomaly_map[top : top + step], mask[top : top + step])
  assert finder.regions() == find_regions(anomaly_map, mask)


def test_a_hole_whose_border_is_longer_than_the_outline_is_no_outline():
  mask = np.ones((21, 21), bool)
  mask[1:-1:2, 1:-1] = False
  mask[1:-1, 1] = False  # A comb, of which the outside is a frame.
  (region, *_) = sorted(
    find_regions(mask.astype(np.float32), mask), key=lambda r: -r.area
  )
  assert region.box == (0, 0, 21, 21)
  x, y = np.transpose(region.polygon)
  assert (np.ptp(x), np.ptp(y)) == (21, 21)


def test_a_large_region_is_traced_by_blocks(monkeypatch):
  rows, columns = draw.ellipse(100, 150, 70, 120, shape=(200, 300))
  mask = np.zeros((200, 300), bool)
  mask[rows, columns] = True
  (exact,) = find_regions(mask.astype(np.float32), mask)
  monkeypatch.setattr(regions_lib, '_MOST_TRACED', 2000)
  (coarse,) = find_regions(mask.astype(np.float32), mask)
  assert (coarse.box, coarse.area) == (exact.box, exact.area)
  assert len(coarse.polygon) < len(exact.polygon)
  x, y = np.transpose(coarse.polygon)
  again = draw.polygon2mask(mask.shape, np.stack([y - 0.5, x - 0.5], axis=1))
  assert (again ^ mask).sum() < 0.05 * mask.sum()
  left, top, width, height = exact.box
  assert x.min() >= left and x.max() <= left + width
  assert y.min() >= top and y.max() <= top + height


def test_of_very_many_regions_the_last_have_their_box(monkeypatch):
  monkeypatch.setattr(regions_lib, '_MOST_OUTLINES', 2)
  mask = np.zeros((9, 9), bool)
  mask[::4, ::4] = True
  found = find_regions(mask.astype(np.float32), mask)
  assert len(found) == 9
  assert found[1].polygon != found[2].polygon
  assert found[2].box == (0, 8, 1, 1)
  assert found[2].polygon == ((0, 8), (1, 8), (1, 9), (0, 9))
