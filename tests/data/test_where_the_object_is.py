"""Where the object is in a picture, by itself or by a mask."""

import numpy as np
import pytest
from PIL import Image

from draem_jax.data import roi
from draem_jax.errors import UserError

ROWS, COLUMNS = np.mgrid[:96, :128]


def disk(radius, row=45, column=70):
  return (ROWS - row) ** 2 + (COLUMNS - column) ** 2 < radius**2


def photo(inside, *, levels=(40, 190), noise=8.0):
  """A part on a background, gray, as a camera sees it."""
  rng = np.random.default_rng(0)
  gray = np.where(inside, levels[1], levels[0])[..., None]
  return np.clip(rng.normal(gray, noise, (*inside.shape, 3)), 0, 255).astype(
    np.uint8
  )


def save(path, mask):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(mask).save(path)
  return path


@pytest.mark.parametrize('levels', [(40, 190), (220, 60)])
def test_a_part_is_found_whole_with_a_little_around(levels):
  ring = disk(30) & ~disk(18)
  found = roi.automatic(photo(ring, levels=levels))
  assert found[disk(30)].all()
  assert not found[~disk(35)].any()


def test_parts_count_and_specks_do_not():
  two = disk(12, 30, 30) | disk(12, 60, 90)
  found = roi.automatic(photo(two | disk(2, 80, 20)))
  assert found[two].all() and not found[disk(2, 80, 20)].any()


def test_a_color_is_enough():
  colors = np.where(disk(30)[..., None], (150, 90, 90), (90, 110, 150))
  assert roi.automatic(colors.astype(np.uint8))[disk(30)].all()


@pytest.mark.parametrize(
  'picture',
  [
    np.full((64, 64, 3), 77, np.uint8),
    photo(disk(0), noise=30.0),
    photo(np.pad(np.ones((92, 124), bool), 2)),
    photo(disk(3)),
  ],
  ids=['flat', 'texture', 'next to everything', 'next to nothing'],
)
def test_where_nothing_stands_out_everything_counts(picture):
  assert roi.automatic(picture).all()


def test_one_line_says_so_and_names_the_first(caplog):
  found = roi.read('auto')
  for name in ('a.png', 'b.png'):
    prepared = photo(disk(0))
    added = found.add(prepared, name)
    np.testing.assert_array_equal(added[..., :3], prepared)
    assert (added[..., 3] == 255).all()
  (line,) = [each.getMessage() for each in caplog.records]
  assert 'border of a.png' in line and 'b.png' not in line


def test_a_mask_of_any_kind_and_size(tmp_path):
  inside = disk(30)
  painted = np.dstack([np.zeros((*inside.shape, 3)), 255 * inside])
  files = [
    save(tmp_path / 'white.png', np.uint8(255 * inside)),
    save(tmp_path / 'ones.png', np.uint8(inside)),
    save(tmp_path / 'alpha.png', np.uint8(painted)),
    save(tmp_path / 'color.bmp', np.uint8(inside[..., None] * (255, 0, 0))),
  ]
  prepared = np.zeros((48, 64, 3), np.uint8)
  half = inside.reshape(48, 2, 64, 2).mean(axis=(1, 3)) >= 0.5
  for file in files:
    added = roi.read(str(file)).add(prepared, 'any')
    np.testing.assert_array_equal(added[..., 3], np.where(half, 255, 0))
  images, inside = roi.split(added)
  np.testing.assert_array_equal(images, prepared)
  np.testing.assert_array_equal(inside, half)
  assert roi.split(prepared)[1] is None


def test_a_mask_for_each_picture_by_its_name(tmp_path):
  masks = {
    'test/crack/000.jpg': (10, 20),
    '000.png': (30, 40),
    '001.tif': (50, 60),
  }
  for name, place in masks.items():
    mask = np.uint8(255 * disk(9, *place))
    if name.endswith('.jpg'):
      (tmp_path / 'test/crack').mkdir(parents=True)
      Image.fromarray(mask).save(tmp_path / name, quality=95)
    else:
      save(tmp_path / name, mask)
  found = roi.read(str(tmp_path))
  assert found.is_by_name
  prepared = np.zeros((96, 128, 3), np.uint8)
  for name, place in {
    'test/crack/000.png': (10, 20),
    'train/good/000.png': (30, 40),
    '001.png': (50, 60),
  }.items():
    inside = roi.region(found.add(prepared, name))
    assert (inside & disk(9, *place)).sum() > 0.9 * inside.sum() > 0
  with pytest.raises(UserError, match=f'x/9.jpg has no mask in .*{tmp_path}'):
    found.add(prepared, 'x/9.jpg')
  with pytest.raises(UserError, match=r'Detector\.with_roi'):
    found.add(prepared, '')
  with pytest.raises(UserError, match='region of its own'):
    found.fixed((32, 32))


def test_what_is_no_region_is_refused(tmp_path):
  black = save(tmp_path / 'black.png', np.zeros((8, 8), np.uint8))
  with pytest.raises(UserError, match=r'black\.png is black'):
    roi.read(str(black))
  with pytest.raises(UserError, match='is not there: name an image'):
    roi.read(str(tmp_path / 'gone.png'))
  (tmp_path / 'text.png').write_text('no image')
  with pytest.raises(UserError, match=r'text\.png'):
    roi.read(str(tmp_path / 'text.png'))
  assert roi.read('') is None


def test_a_run_keeps_its_mask(tmp_path):
  source = save(tmp_path / 'mask.png', np.uint8(255 * disk(30)))
  kept = roi.read(str(source))
  roi.store(kept, tmp_path)
  source.unlink()
  for again in (
    roi.of_run(str(source), tmp_path),
    roi.read(str(source), stored=tmp_path / roi.FILE),
  ):
    np.testing.assert_array_equal(again.mask, kept.mask)
    assert again.fingerprint() == kept.fingerprint()
  # One of before counts no more when the region is told in another way.
  assert roi.of_run('auto', tmp_path).mask is None
  roi.store(roi.read('auto'), tmp_path)
  assert not (tmp_path / roi.FILE).exists()
  # Its pictures may come with another folder.
  assert roi.of_run(str(tmp_path / 'gone'), tmp_path).is_by_name
  assert roi.of_run('', tmp_path) is None
