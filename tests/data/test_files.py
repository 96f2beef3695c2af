import os

import pytest

from draem_jax.data import files, images
from draem_jax.data.files import find_images, list_images
from draem_jax.errors import UserError


@pytest.fixture
def tree(tmp_path):
  for name in (
    'a.png',
    'A.JPG',
    'notes.txt',
    '.hidden.png',
    '.cache/x.png',
    'deep/er/b.tif',
    'deep/a.png',
    'out/maps/a.png',
    'odd [1]/c.png',
  ):
    path = tmp_path / 'photos' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  return tmp_path / 'photos'


def test_a_folder_at_any_depth(tree):
  found = find_images(f'{tree}/', excluded=[tree / 'out' / 'maps'])
  assert found.root == tree
  assert found.names == [
    'A.JPG',
    'a.png',
    'deep/a.png',
    'deep/er/b.tif',
    'odd [1]/c.png',
  ]
  assert found.unreadable == []
  assert found.others == ['notes.txt']


@pytest.mark.parametrize(
  ('pattern', 'root', 'names'),
  [
    ('*.png', '', ['a.png']),
    ('deep/*', 'deep', ['a.png', 'er/b.tif']),
    ('d*/**/*.*', '', ['deep/a.png', 'deep/er/b.tif']),
    ('**', '', ['A.JPG', 'a.png', 'deep/a.png', 'deep/er/b.tif']),
    ('deep/../[aA].*', '', ['A.JPG', 'a.png']),
    ('a.png', '', ['a.png']),
    ('notes.txt', '', ['notes.txt']),
    ('odd [1]', 'odd [1]', ['c.png']),
    ('odd [1]/c.png', 'odd [1]', ['c.png']),
  ],
)
def test_files_and_globs(tree, pattern, root, names):
  excluded = [tree / 'out', tree / 'odd [1]'] if '**' in pattern else []
  found = find_images(str(tree / pattern), excluded=excluded)
  assert found.root == tree / root
  assert found.names == names


def test_relative_paths_and_the_home_folder(tree, monkeypatch):
  monkeypatch.chdir(tree)
  assert find_images('deep').root == tree / 'deep'
  monkeypatch.setenv('HOME', str(tree))
  assert find_images('~/deep').names == ['a.png', 'er/b.tif']


def test_links_are_followed_but_not_in_circles(tree):
  other = tree.parent / 'other'
  other.mkdir()
  (other / 'd.png').touch()
  (tree / 'link').symlink_to(other)
  (tree / 'deep' / 'up').symlink_to(tree)
  # Excluded by another name.
  alias = tree.parent / 'alias'
  alias.symlink_to(tree)
  found = find_images(str(tree), excluded=[alias / 'out', alias / 'odd [1]'])
  assert found.names == [
    'A.JPG',
    'a.png',
    'deep/a.png',
    'deep/er/b.tif',
    'link/d.png',
  ]


def test_folders_that_cannot_be_read_are_told(tree, monkeypatch):
  scandir = os.scandir

  def refuse(path):
    if os.fspath(path).endswith('er'):
      raise PermissionError(13, 'Permission denied', path)
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', refuse)
  found = find_images(str(tree / 'deep'))
  assert found.names == ['a.png']
  assert found.unreadable == [str(tree / 'deep' / 'er')]


def test_a_list_goes_folder_by_folder_and_tells_what_is_no_image(tree):
  (tree / 'deep-1.png').touch()
  (tree / 'deep' / '.notes').touch()
  found = list_images(tree)
  assert found.root == tree
  # Neither the order of whole paths, in which '-' comes before '/', nor the
  # disk's: textures are numbered by it.
  assert found.names == [
    'A.JPG',
    'a.png',
    'deep/a.png',
    'deep/er/b.tif',
    'deep-1.png',
    'odd [1]/c.png',
    'out/maps/a.png',
  ]
  assert found.others == ['notes.txt']
  assert list_images(tree / 'nowhere').unreadable == [str(tree / 'nowhere')]


@pytest.mark.parametrize(
  ('pattern', 'words'),
  [
    ('nothing', 'does not exist'),
    ('*.gif', 'holds no image'),
    ('.cache/er*', 'holds no image'),
    ('out', 'holds no image'),
    ('notes.*', '1 files that are no images by their names .1 .txt., such as'),
  ],
)
def test_no_images_are_a_mistake(tree, pattern, words):
  with pytest.raises(UserError, match=words) as error:
    find_images(str(tree / pattern), excluded=[tree / 'out'])
  assert '--images=' in str(error.value)


def test_a_link_named_as_an_image_is_not_looked_at(tree):
  """To follow a million of them would take minutes."""
  for name, target in (
    ('gone.png', 'nowhere.png'),
    ('folder.png', 'odd [1]'),
    ('link', 'odd [1]'),
    ('lost', 'nowhere'),
  ):
    (tree / 'deep' / name).symlink_to(tree / target)
  found = list_images(tree / 'deep')
  assert found.names == [
    'a.png',
    'er/b.tif',
    'folder.png',
    'gone.png',
    'link/c.png',
  ]
  assert found.others == ['lost']


def test_what_jpeg_and_its_kind_are_called(tmp_path):
  taken = ['a.jfif', 'b.JPE', 'c.TIF', 'd.dib', 'e.pnm', 'f.jif', 'g.pbm']
  others = ['h.HEIC', 'i.gif', 'j.avif', 'k.jp2', 'l.gif', 'm', 'n.svg']
  for name in (*taken, *others):
    (tmp_path / name).touch()
  for found in (find_images(str(tmp_path)), list_images(tmp_path)):
    assert found.names == taken and found.others == others
  line = files.passed_over(others)
  assert line.startswith('7 files') and line.endswith('such as h.HEIC')
  assert '2 .gif, 1 .heic' in line and '...' in line
  assert files.passed_over(['x.txt', 'y.db'], expected=('.txt', '.db')) is None
  assert files.passed_over([]) is None
  assert all(map(images.is_image, taken))
  assert not any(map(images.is_image, others))


def test_whatever_is_done_to_a_file_shows(tmp_path):
  path, other = tmp_path / 'a.png', tmp_path / 'b.png'

  def put(content):
    path.write_bytes(content)
    os.utime(path, ns=(0, 10**18))
    return files.stamp(path)

  first = put(b'abc')
  assert files.stamp(path) == first
  second = put(b'abd')
  assert second != first
  # Another one, with its size and time, moves in its place.
  other.write_bytes(b'abe')
  os.utime(other, ns=(0, 10**18))
  os.replace(other, path)
  assert files.stamp(path) not in (first, second)
