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

from draem_jax.data import dtd, on_demand, resizing, textures
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


@pytest.fixture
def log(caplog, monkeypatch):
  monkeypatch.setattr(textures._log, 'handlers', [])
  caplog.set_level('INFO', logger=textures._log.name)
  return caplog


def message(source, tmp_path, **options):
  with pytest.raises(UserError) as error:
    load(source, tmp_path, **options)
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

  def read_image(path, size, way):
    decoded.append(path)
    return np.full((*size, 3), len(decoded), np.uint8)

  monkeypatch.setattr(resizing, 'read_image', read_image)
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


def test_no_flipped_bit_of_what_is_kept_is_silent(folder, tmp_path):
  expected = load(folder, tmp_path).copy()
  (cache,) = (tmp_path / 'tfds' / 'textures').iterdir()
  sound = cache.read_bytes()
  rng = np.random.default_rng(0)
  for place in rng.integers(0, len(sound), 40):
    harmed = bytearray(sound)
    harmed[place] ^= 1 << rng.integers(8)
    cache.write_bytes(harmed)
    np.testing.assert_array_equal(load(folder, tmp_path), expected)
    assert cache.read_bytes() == sound
  # As earlier versions kept it, without a checksum.
  cache.write_bytes(sound[:-4])
  np.testing.assert_array_equal(load(folder, tmp_path), expected)
  assert cache.read_bytes() == sound


def test_a_picture_of_the_same_size_and_time_is_another(folder, tmp_path):
  load(folder, tmp_path)
  path = folder / 'z.png'
  stat = path.stat()
  Image.fromarray(picture(11)).save(path)
  os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  assert path.stat().st_size == stat.st_size
  assert 11 in load(folder, tmp_path)[:, 0, 0, 0]


def test_folder_loads_where_nothing_can_be_kept(folder, tmp_path):
  (tmp_path / 'tfds').write_text('a file')
  assert len(load(folder, tmp_path)) == 3


def test_bad_folders(folder, tmp_path):
  assert 'config.data.textures' in message(tmp_path / 'nowhere', tmp_path)
  assert 'config.data.textures' in message(folder / 'z.png', tmp_path)
  (tmp_path / 'empty').mkdir()
  assert 'holds no images' in message(tmp_path / 'empty', tmp_path)
  (tmp_path / 'empty' / 'bad.png').write_bytes(b'not a picture')
  (tmp_path / 'empty' / 'gone.png').symlink_to(tmp_path / 'gone')
  text = message(tmp_path / 'empty', tmp_path)
  assert 'none of its 2 images' in text and 'bad.png' in text
  assert 'none of the 2' in message(tmp_path / 'empty', tmp_path, max_bytes=1)
  assert not (tmp_path / 'tfds' / 'textures').exists()


def test_what_cannot_be_decoded_is_passed_over_and_named(folder, tmp_path, log):
  (folder / 'b' / 'bad.png').write_bytes(b'not a picture')
  (folder / 'b' / 'bad2.png').symlink_to(tmp_path / 'gone')
  (folder / 'notes.txt').write_text('x')
  assert list(load(folder, tmp_path)[:, 0, 0, 0]) == [30, 20, 10]
  assert 'passed over 2 textures' in log.text
  assert 'b/bad.png cannot be read as an image' in log.text
  assert 'b/bad2.png cannot be read' in log.text
  assert 'passed over 2 files' in log.text and 'license.txt' in log.text
  assert '3 of the 5 textures' in log.text
  # A repaired file counts again.
  Image.fromarray(picture(50)).save(folder / 'b' / 'bad.png')
  assert list(load(folder, tmp_path)[:, 0, 0, 0]) == [30, 50, 20, 10]


@pytest.fixture
def many(tmp_path):
  """A folder of 30 textures of all different levels, in three classes."""
  for index in range(30):
    path = tmp_path / 'many' / f'class{index % 3}' / f'{index:02d}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(8 * index)).save(path)
  return tmp_path / 'many'


def levels(loaded):
  return [int(level) for level in loaded[np.arange(len(loaded))][:, 0, 0, 0]]


def test_a_sample_is_nested_and_decodes_nothing_else(
  many, tmp_path, monkeypatch
):
  decoded, read_image = [], resizing.read_image

  def count(path, *options):
    decoded.append(path)
    return read_image(path, *options)

  monkeypatch.setattr(resizing, 'read_image', count)
  sample = lambda number, seed=3, **options: levels(
    load(many, tmp_path, num_textures=number, seed=seed, **options)
  )
  ten = sample(10)
  assert len(set(ten)) == 10 and len(decoded) == 10
  assert sample(10) == ten and len(decoded) == 10
  for number in (1, 3, 30):
    assert sample(number)[:10] == ten[:number]
  assert sorted(sample(30)) == sorted(levels(load(many, tmp_path)))
  assert sample(10, seed=4) != ten
  # On demand it is the same.
  decoded.clear()
  bank = load(many, tmp_path, num_textures=10, seed=3, max_bytes=10 * 192 - 1)
  assert isinstance(bank, on_demand.OnDemand) and len(bank) == 10
  assert len(decoded) == 1
  assert levels(bank) == ten
  bank = load(many, tmp_path, num_textures=10, seed=3, max_bytes=10 * 192)
  assert isinstance(bank, np.ndarray)


def test_a_sample_replaces_what_cannot_be_decoded(many, tmp_path, log):
  whole = levels(load(many, tmp_path, num_textures=30, seed=3))
  bad = many / f'class{whole[1] // 8 % 3}' / f'{whole[1] // 8:02d}.png'
  bad.write_bytes(b'x')
  for number in (1, 3, 10):
    sample = levels(load(many, tmp_path, num_textures=number, seed=3))
    assert sample == (whole[:1] + whole[2:])[:number]
  assert str(bad) in log.text
  # From another place of the list, where it is decoded on demand.
  bank = load(many, tmp_path, num_textures=5, seed=3, max_bytes=1)
  assert levels(bank) == [whole[0], whole[2], *whole[2:5]]


def test_a_sample_of_too_few(many, tmp_path):
  text = message(many, tmp_path, num_textures=31)
  assert 'config.data.num_textures=31' in text and '30 textures' in text
  (many / 'class0' / '00.png').write_bytes(b'x')
  text = message(many, tmp_path, num_textures=30)
  assert 'config.data.num_textures=30' in text and 'only 29' in text
  text = message('builtin', tmp_path, num_textures=10_000)
  assert 'config.data.num_textures=10000' in text and 'builtin' in text


def test_a_sample_of_the_builtin_pieces(tmp_path):
  everything = {piece.tobytes() for piece in load('builtin', tmp_path, 32)}
  ten = load('builtin', tmp_path, 32, num_textures=10, seed=1)
  assert {piece.tobytes() for piece in ten} < everything
  three = load('builtin', tmp_path, 32, num_textures=3, seed=1)
  np.testing.assert_array_equal(three, ten[:3])
  other = load('builtin', tmp_path, 32, num_textures=3, seed=2)
  assert (other != three).any()


def test_a_large_file_of_textures_is_mapped(folder, tmp_path, monkeypatch):
  first = load(folder, tmp_path)
  monkeypatch.setattr(textures, '_MAPPED_FROM', 100)
  again = load(folder, tmp_path)
  assert isinstance(again, np.memmap)
  np.testing.assert_array_equal(first, again)


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
  four = load('dtd', tmp_path, num_textures=4, seed=2)
  order = np.random.default_rng(2).permutation(6)[:4]
  np.testing.assert_array_equal(four, loaded[order])
  bank = load('dtd', tmp_path, num_textures=4, seed=2, max_bytes=1)
  np.testing.assert_array_equal(bank[np.arange(4)], four)
  assert 'dtd holds only 6' in message('dtd', tmp_path, num_textures=7)
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
