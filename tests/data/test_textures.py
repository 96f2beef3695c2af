"""Textures from scikit-image, from folders and from DTD's archive."""

import io
import os
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from draem_jax.data import dtd, images, textures
from draem_jax.errors import UserError


def picture(level):
  return np.full((12, 18, 3), level, np.uint8)


@pytest.fixture
def folder(tmp_path):
  root = tmp_path / 'textures'
  (root / 'b' / 'deep').mkdir(parents=True)
  Image.fromarray(picture(10)).save(root / 'z.png')
  Image.fromarray(picture(20)).save(root / 'b' / 'deep' / 'x.BMP')
  Image.fromarray(picture(30)[..., 0]).save(root / 'b' / 'a.tif')
  (root / 'license.txt').write_text('x')
  (root / '.cache').mkdir()
  (root / '.cache' / 'broken.png').write_bytes(b'x')
  (root / '._z.png').write_bytes(b'x')
  return root


def load(source, tmp_path, size=8, **options):
  return textures.load_textures(
    source, image_size=size, tfds_dir=tmp_path / 'tfds', **options
  )


def message(source, tmp_path):
  with pytest.raises(UserError) as error:
    load(source, tmp_path)
  assert '\n' not in str(error.value)
  return str(error.value)


def test_folder_at_any_depth_in_order_of_names(folder, tmp_path):
  loaded = load(folder, tmp_path)
  assert loaded.shape == (3, 8, 8, 3) and loaded.dtype == np.uint8
  assert list(loaded[:, 0, 0, 0]) == [30, 20, 10]
  assert load(str(folder), tmp_path, size=16).shape == (3, 16, 16, 3)


def test_folder_follows_links_but_not_in_circles(folder, tmp_path):
  elsewhere = tmp_path / 'elsewhere'
  elsewhere.mkdir()
  Image.fromarray(picture(40)).save(elsewhere / 'y.png')
  (folder / 'link').symlink_to(elsewhere)
  (elsewhere / 'back').symlink_to(folder)
  assert list(load(folder, tmp_path)[:, 0, 0, 0]) == [30, 20, 40, 10]


def test_folder_is_decoded_once_until_it_changes(folder, tmp_path, monkeypatch):
  decoded = []

  def read_image(path):
    decoded.append(path)
    return picture(len(decoded))

  monkeypatch.setattr(images, 'read_image', read_image)
  first = load(folder, tmp_path)
  np.testing.assert_array_equal(first, load(folder, tmp_path))
  assert len(decoded) == 3
  os.utime(folder / 'z.png', ns=(0, 0))
  load(folder, tmp_path)
  assert len(decoded) == 6
  (folder / 'z.png').unlink()
  assert len(load(folder, tmp_path)) == 2
  # What a crash of the machine left of the file is not trusted.
  for cache in (tmp_path / 'tfds' / 'textures').iterdir():
    cache.write_bytes(cache.read_bytes()[:100])
  decoded.clear()
  assert len(load(folder, tmp_path)) == 2
  assert len(decoded) == 2


def test_folder_loads_where_nothing_can_be_kept(folder, tmp_path):
  (tmp_path / 'tfds').write_text('a file')
  assert len(load(folder, tmp_path)) == 3


def test_bad_folders(folder, tmp_path):
  assert 'config.data.textures' in message(tmp_path / 'nowhere', tmp_path)
  assert 'config.data.textures' in message(folder / 'z.png', tmp_path)
  (tmp_path / 'empty').mkdir()
  assert 'holds no images' in message(tmp_path / 'empty', tmp_path)
  (folder / 'b' / 'bad.png').write_bytes(b'not a picture')
  assert 'b/bad.png cannot be read as an image' in message(folder, tmp_path)
  assert not (tmp_path / 'tfds' / 'textures').exists()


def test_builtin_pieces_are_many_varied_and_the_same_each_time(tmp_path):
  loaded = load('builtin', tmp_path, size=32)
  assert len(loaded) > 150
  assert len(np.unique(loaded.reshape(len(loaded), -1), axis=0)) == len(loaded)
  assert (loaded.std(axis=(1, 2)).max(axis=-1) > 4).all()
  again = load('builtin', tmp_path, size=32)
  np.testing.assert_array_equal(loaded, again)
  assert len(load('builtin', tmp_path, size=64)) == len(loaded)


def test_builtin_leaves_out_what_it_is_told_to(tmp_path):
  everything = load('builtin', tmp_path, size=32)
  without = load('builtin', tmp_path, size=32, exclude=('brick', 'grass'))
  only = load(
    'builtin',
    tmp_path,
    size=32,
    exclude=set(textures.BUILTIN) - {'brick', 'grass'},
  )
  assert 0 < len(only) == len(everything) - len(without)
  rows = {piece.tobytes() for piece in without}
  assert not rows & {piece.tobytes() for piece in only}
  with pytest.raises(ValueError, match='nope'):
    load('builtin', tmp_path, exclude=('nope',))


@pytest.fixture
def archive(tmp_path, monkeypatch):
  """A small archive in the layout of DTD's, where a user would put it."""
  path = tmp_path / 'tfds' / 'downloads' / 'manual' / 'dtd-r1.0.1.tar.gz'
  path.parent.mkdir(parents=True)
  contents = {}
  for index, name in enumerate(('train1', 'val1', 'test1')):
    files = [f'banded/banded_{index}{j}.jpg' for j in range(2)]
    contents[f'dtd/labels/{name}.txt'] = '\n'.join(files).encode() + b'\n'
    for j, file in enumerate(files):
      buffer = io.BytesIO()
      Image.fromarray(picture(40 * index + 20 * j)).save(buffer, 'JPEG')
      contents[f'dtd/images/{file}'] = buffer.getvalue()
  with tarfile.open(path, 'w') as tar:
    for name, content in contents.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      tar.addfile(member, io.BytesIO(content))
  info = tfds.core.download.checksums.compute_url_info(path)
  monkeypatch.setitem(dtd.Dtd.url_infos, dtd.URL, info)
  return path


def test_dtd_is_prepared_from_its_archive(archive, tmp_path):
  loaded = load('dtd', tmp_path)
  assert loaded.shape == (6, 8, 8, 3)
  levels = np.sort(loaded[:, 4, 4, 0])
  np.testing.assert_allclose(levels, np.arange(0, 120, 20), atol=2)
  archive.unlink()
  np.testing.assert_array_equal(load('dtd', tmp_path), loaded)
  assert load('dtd', tmp_path, size=16).shape == (6, 16, 16, 3)


def test_dtd_without_a_connection(tmp_path, monkeypatch):
  def fail(*args, **kwargs):
    raise OSError('no route to host')

  monkeypatch.setattr('urllib.request.urlopen', fail)
  text = message('dtd', tmp_path)
  assert dtd.URL in text and 'config.data.textures' in text
  assert str(tmp_path / 'tfds' / 'downloads' / 'manual') in text


def test_dtd_needs_no_tensorflow(archive, tmp_path):
  code = (
    'import sys; from draem_jax.data import dtd\n'
    'assert "tensorflow" not in sys.modules'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
