"""The pictures of an evaluation: which files there are, and what is in them."""

import numpy as np
import pytest
from PIL import Image
from splits import make_category, make_evaluation, make_scored

from draem_jax.pictures import panels
from draem_jax.report import drawings


def draw(folder, category, **given):
  evaluation = make_evaluation(category, make_scored(category, **given))
  drawings.draw(folder, evaluation)
  return evaluation


def read(path):
  return np.asarray(Image.open(path))


@pytest.mark.parametrize('masks', [True, False])
def test_every_image_has_its_panel(tmp_path, masks):
  category = make_category(count=3, masks=masks)
  draw(tmp_path, category)
  files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*.png')}
  assert files == {
    *('panels/good/000.png', 'panels/crack/001.png'),
    *('panels/scratch/002.png', 'mistakes.png', 'curves.png'),
    'histogram.png',
  }
  outline = tuple(bytes.fromhex(panels.OUTLINE_COLOR[1:]))
  crack = read(tmp_path / 'panels' / 'crack' / '001.png')
  assert np.any(np.all(crack == outline, axis=-1)) == masks


def test_images_of_one_stem_have_a_panel_each(tmp_path):
  category = make_category(count=4)
  category.test_files = [
    'test/a/0.png',
    'test/a/0.jpg',
    'test/b/0.png',
    '0.tif',
  ]
  draw(tmp_path / 'one', category)
  files = {path.name for path in (tmp_path / 'one/panels').rglob('*.png')}
  assert files == {'0.png', '0.jpg.png', '0.tif.png'}
  assert len(list((tmp_path / 'one/panels').rglob('*.png'))) == 4
  # Whatever stands in a name, it is one line in a picture.
  category.test_files = [
    'test/a/two\nlines.png',
    'test/a/\udce9.png',
    'test/a/' + 'x' * 251 + '.jpg',
    'test/\x1b[31m/0.png',
  ]
  draw(tmp_path / 'odd', category)
  assert len(list((tmp_path / 'odd/panels').rglob('*.png'))) == 4


def test_without_a_reconstruction_a_panel_is_a_tile_shorter(tmp_path):
  category = make_category(count=3)
  draw(tmp_path / 'with', category)
  draw(tmp_path / 'without', category, reconstruction=False)
  name = 'panels/crack/001.png'
  whole, shorter = (
    read(tmp_path / kind / name) for kind in ('with', 'without')
  )
  assert whole.shape[1] - shorter.shape[1] == 256 + 12
  np.testing.assert_array_equal(whole[40:, :272], shorter[40:, :272])
  # The others have nothing of it.
  for name in ('mistakes.png', 'curves.png', 'histogram.png'):
    one, other = (tmp_path / kind / name for kind in ('with', 'without'))
    assert one.read_bytes() == other.read_bytes()


def test_without_test_images_there_is_nothing_to_draw(tmp_path):
  category = make_category(count=0)
  draw(tmp_path, category)
  assert not list(tmp_path.iterdir())
