"""Properties of the pictures: what is drawn where, and that files are whole."""

import os

import numpy as np
import pytest
from PIL import Image

from draem_jax.pictures import panels


def picture(height, width, *, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def square_mask(height, width):
  mask = np.zeros((height, width), bool)
  mask[height // 4 : height // 2, width // 4 : width // 2] = True
  return mask


def has_color(array, color):
  rgb = [int(color[index : index + 2], 16) for index in (1, 3, 5)]
  return np.any(np.all(array == rgb, axis=-1))


def test_overlay_leaves_the_image_alone_where_the_map_is_zero():
  image = picture(40, 30)
  anomaly_map = square_mask(40, 30).astype(np.float32)
  overlay = panels.heat_map_overlay(image, anomaly_map)
  assert overlay.dtype == np.uint8 and overlay.shape == image.shape
  np.testing.assert_array_equal(
    overlay[anomaly_map == 0], image[anomaly_map == 0]
  )
  assert np.all(np.any(overlay != image, axis=-1)[anomaly_map == 1])


def test_overlay_covers_more_the_higher_the_map():
  black, white = np.zeros((1, 256, 3)), np.ones((1, 256, 3))
  ramp = np.linspace(0, 1, 256)[None]
  # What the image still contributes is the difference between the two.
  through = panels.heat_map_overlay(white, ramp).astype(int)
  through -= panels.heat_map_overlay(black, ramp)
  assert np.all(np.diff(through[0, :, 0]) <= 1)
  assert through[0, 0, 0] == 255 and 0 < through[0, -1, 0] < 128


def test_overlay_takes_float_images_and_clips_maps():
  image = picture(8, 8)
  wild = np.linspace(-1, 2, 64).reshape(8, 8)
  np.testing.assert_array_equal(
    panels.heat_map_overlay(image / np.float32(255), wild),
    panels.heat_map_overlay(image, np.clip(wild, 0, 1)),
  )
  with pytest.raises(ValueError, match='do not fit'):
    panels.heat_map_overlay(image, np.zeros((4, 4)))


def test_outline_runs_around_the_mask_and_nowhere_else():
  image = np.zeros((20, 20, 3), np.uint8)
  mask = np.zeros((20, 20), bool)
  mask[5:9, 6:12] = True
  expected = np.zeros((20, 20), bool)
  expected[4:10, 5:13] = True
  expected &= ~mask
  drawn = np.any(panels.draw_outline(image, mask) != image, axis=-1)
  np.testing.assert_array_equal(drawn, expected)
  assert not np.any(image)


def test_brightness_of_the_map_grows_with_its_value():
  colors = panels.colorize(np.linspace(0, 1, 256)[None])[0].astype(float)
  luminance = colors @ [0.2126, 0.7152, 0.0722]
  assert np.all(np.diff(luminance) > -0.5)
  assert luminance[0] < 5 and luminance[-1] > 220


@pytest.mark.parametrize('size', [(64, 64), (256, 256), (100, 37), (1024, 768)])
def test_panel_is_a_row_of_tiles(size):
  image, mask = picture(*size), square_mask(*size)
  given = dict(image=image, anomaly_map=mask * 0.5, score=0.7, name='a.png')
  without = panels.panel(**given)
  panel = panels.panel(
    **given,
    reconstruction=image / 255,
    mask=mask,
    label=True,
    defect='crack',
    threshold=0.5,
  )
  tile = min(max(*size, 256), 512)
  assert panel.dtype == np.uint8 and panel.ndim == 3
  assert panel.shape[0] == without.shape[0] >= tile * size[0] / max(size)
  column = max(round(tile * size[1] / max(size)), 256)
  assert panel.shape[1] - without.shape[1] == pytest.approx(column + 12)
  assert has_color(panel, panels.OUTLINE_COLOR)
  assert not has_color(without, panels.OUTLINE_COLOR)


def test_panel_shows_input_and_overlay_as_they_are():
  image = picture(256, 256)
  panel = panels.panel(
    image=image, anomaly_map=np.zeros((256, 256)), score=0.0, name='a.png'
  )
  top, left = panel.shape[0] - 256 - 16, 16
  for column in range(2):
    start = left + column * (256 + 12)
    np.testing.assert_array_equal(
      panel[top : top + 256, start : start + 256], image
    )


@pytest.mark.parametrize(
  ('score', 'color', 'absent'),
  [
    (0.6, panels.ANOMALOUS_COLOR, panels.GOOD_COLOR),
    (0.5, panels.GOOD_COLOR, panels.ANOMALOUS_COLOR),
  ],
)
def test_panel_tells_the_verdict_by_color(score, color, absent):
  panel = panels.panel(
    image=np.full((64, 64, 3), 255, np.uint8),
    anomaly_map=np.zeros((64, 64)),
    score=score,
    name='a.png',
    threshold=0.5,
  )
  assert has_color(panel, color) and not has_color(panel, absent)


def test_panel_judges_by_the_label_whatever_the_defect_is_called():
  given = dict(
    image=np.full((64, 64, 3), 255, np.uint8),
    anomaly_map=np.zeros((64, 64)),
    score=0.6,
    name='a.png',
    threshold=0.5,
    defect='good',
  )
  headline = lambda label: panels.panel(label=label, **given)[:40]
  unknown, alarm, found = map(headline, (None, False, True))
  # What the verdict is worth stands behind it, so that it moves to the left.
  first = lambda array: np.flatnonzero(
    np.any(array != [255] * 3, axis=-1)[:, 200:].any(axis=0)
  )[0]
  assert first(alarm) < first(found) < first(unknown)


def test_a_long_name_stays_clear_of_the_score():
  given = dict(
    image=np.full((64, 64, 3), 255, np.uint8),
    anomaly_map=np.zeros((64, 64)),
    score=0.25,
    threshold=0.5,
  )
  short = panels.panel(name='', **given)
  long = panels.panel(name='folder/' * 60 + 'a.png', **given)
  changed = np.flatnonzero(np.any(short != long, axis=(0, 2)))
  score = np.flatnonzero(np.any(short[:40] < 255, axis=(0, 2)))
  assert changed.max() + 8 < score.min()


def gallery(labels, scores, **given):
  count = len(labels)
  shades = np.arange(count, dtype=np.uint8) * 10 + 50
  images = np.broadcast_to(shades[:, None, None, None], (count, 32, 32, 3))
  return panels.mistakes_gallery(
    images=images,
    anomaly_maps=np.zeros((count, 32, 32), np.float32),
    scores=np.array(scores),
    labels=np.array(labels),
    names=[f'{index}.png' for index in range(count)],
    **given,
  )


def test_gallery_shows_the_worst_first():
  labels = [False, True, False, True, False, True]
  array = gallery(labels, [0.1, 0.9, 0.8, 0.2, 0.3, 0.4], count=2)
  gray = array[..., 0].astype(int)
  shades = gray[np.all(array == array[..., :1], axis=-1)]
  sizes = np.bincount(shades, minlength=256)
  tile = 176**2
  shown = [index for index in range(6) if sizes[50 + 10 * index] >= 2 * tile]
  assert shown == [2, 3, 4, 5]
  # Of the good images number 2 comes first, of the anomalous number 3.
  first_column = array[:, 16 + 88, 0]
  assert 70 in first_column and 80 in first_column
  assert 90 not in first_column and 100 not in first_column


def test_gallery_without_one_of_the_kinds_is_shorter():
  both = gallery([False, True], [0.2, 0.8], threshold=0.5)
  one = gallery([False, False], [0.2, 0.8], threshold=0.5)
  assert one.shape[0] < both.shape[0] and one.shape[1] == both.shape[1]
  # The one that scores 0.8 is a false alarm; both verdicts above are correct.
  assert has_color(one, panels.ANOMALOUS_COLOR)
  assert not has_color(both, panels.ANOMALOUS_COLOR)


def test_simulated_sheet_has_a_row_an_example_and_a_column_a_kind():
  images = np.stack([picture(64, 64, seed=seed) / 255 for seed in range(3)])
  masks = np.stack([square_mask(64, 64)] * 3).astype(np.float32)
  given = dict(images=images, augmented=images, masks=masks)
  small = panels.simulated_sheet(**given, max_examples=2)
  full = panels.simulated_sheet(
    **given, reconstructions=images, anomaly_maps=masks
  )
  cell = 176 + 12
  assert full.shape[0] - small.shape[0] == cell
  assert full.shape[1] - small.shape[1] == 2 * cell
  assert has_color(full, panels.OUTLINE_COLOR)


@pytest.mark.parametrize('lacking', ['reconstructions', 'anomaly_maps'])
def test_simulated_sheet_has_no_column_of_what_there_is_not(lacking):
  images = np.stack([picture(64, 64) / 255] * 2)
  masks = np.stack([square_mask(64, 64)] * 2).astype(np.float32)
  given = dict(images=images, augmented=images, masks=masks)
  given |= dict(reconstructions=images, anomaly_maps=masks)
  full = panels.simulated_sheet(**given)
  sheet = panels.simulated_sheet(**given | {lacking: None})
  cell = 176 + 12
  assert sheet.shape == (full.shape[0], full.shape[1] - cell, 3)
  # The last column is a tile, no empty space.
  assert np.any(sheet[100:, -16 - 176 : -16] != 255)
  has_outline = lacking == 'reconstructions'
  assert has_color(sheet, panels.OUTLINE_COLOR) == has_outline


def test_save_png_creates_folders_and_keeps_every_pixel(tmp_path):
  array = picture(30, 20)
  path = tmp_path / 'new' / 'folder' / 'a.png'
  panels.save_png(path, array)
  np.testing.assert_array_equal(np.asarray(Image.open(path)), array)
  assert os.listdir(path.parent) == ['a.png']


def test_save_png_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'a.png'
  panels.save_png(path, picture(8, 8))
  before = path.read_bytes()

  def write_half(self, file, **_):
    file.write(b'half')
    raise OSError('No space left on device')

  monkeypatch.setattr(Image.Image, 'save', write_half)
  with pytest.raises(OSError, match='No space'):
    panels.save_png(path, picture(9, 9))
  assert path.read_bytes() == before
  assert os.listdir(tmp_path) == ['a.png']
