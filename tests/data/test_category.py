"""Categories: layout, preparation, loading, and what goes wrong with them."""

import os
import shutil
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from draem_jax import paper
from draem_jax.data import builder, layouts, resizing
from draem_jax.data import category as category_lib
from draem_jax.data.category import load_category
from draem_jax.data.layouts import contents, mvtec
from draem_jax.errors import UserError


def write(path, image, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(image).save(path, **options)


def picture(level, height=20, width=30):
  image = np.full((height, width, 3), level, np.uint8)
  image[:, : width // 2, 0] = 0
  return image


def defect_mask(height=20, width=30):
  mask = np.zeros((height, width), np.uint8)
  mask[: height // 2] = 255
  return mask


@pytest.fixture
def data_dir(tmp_path):
  """One category `part` with two defects, as users bring them."""
  root = tmp_path / 'data'
  part = root / 'part'
  write(part / 'train/good/b.JPG', picture(200), quality=95)
  write(part / 'train/good/a.png', picture(100, 40, 24))
  write(part / 'train/good/c.bmp', picture(50)[..., 1])
  write(part / 'test/good/000.png', picture(100))
  write(part / 'test/dent/000.png', picture(120))
  write(part / 'test/dent/001.PNG', picture(130, 50, 60))
  write(part / 'test/crack/000.tif', picture(140))
  write(part / 'ground_truth/dent/000_mask.png', defect_mask())
  write(part / 'ground_truth/dent/001.png', defect_mask(50, 60) // 255)
  crack = np.stack([defect_mask()] * 3, axis=2)
  write(part / 'ground_truth/crack/000_mask.jpg', crack, quality=70)
  # Left there by systems and archives.
  (part / 'train/good/.DS_Store').write_bytes(b'x')
  (part / 'train/good/Thumbs.db').write_bytes(b'x')
  (part / 'license.txt').write_text('x')
  (part / 'test/readme.txt').write_text('x')
  (part / 'test/dent/.hidden.png').write_bytes(b'x')
  return root


def load(data_dir, name='part', size=16, **options):
  return load_category(
    data_dir,
    name,
    image_size=size,
    tfds_dir=data_dir.parent / 'tfds',
    **options,
  )


def test_loads_every_format_and_size(data_dir):
  part = load(data_dir)
  assert part.name == 'part'
  assert part.train_files == [
    f'train/good/{n}' for n in ('a.png', 'b.JPG', 'c.bmp')
  ]
  assert part.train_images.shape == (3, 16, 16, 3)
  assert part.train_images.dtype == np.uint8
  levels = part.train_images[:, 8, 12, 1]
  np.testing.assert_allclose(levels, (100, 200, 50), atol=3)
  assert part.test_files == [
    'test/crack/000.tif',
    'test/dent/000.png',
    'test/dent/001.PNG',
    'test/good/000.png',
  ]
  assert part.test_defects == ['crack', 'dent', 'dent', 'good']
  assert part.labels.tolist() == [True, True, True, False]
  np.testing.assert_array_equal(
    part.test_images[:, 8, 12], np.array([(140, 120, 130, 100)] * 3).T
  )
  assert part.test_masks.dtype == np.float32
  # The upper half, whichever way the mask came.
  assert (part.test_masks[:3, :7] == 1).all()
  assert (part.test_masks[:3, 9:] == 0).all()
  assert (part.test_masks[3] == 0).all()


def test_second_load_reads_what_was_prepared(data_dir, monkeypatch):
  first = load(data_dir)
  monkeypatch.setattr(builder, '_encode', None)
  again = load(data_dir)
  np.testing.assert_array_equal(first.test_images, again.test_images)
  np.testing.assert_array_equal(first.test_masks, again.test_masks)
  assert load(data_dir, size=32).train_images.shape == (3, 32, 32, 3)


def test_names_of_any_bytes(data_dir):
  part, gbk = data_dir / 'part', os.fsdecode('瓶'.encode('gbk'))
  odd = [gbk, 'two\nlines', 'x' * 246, 'a, "b"']
  for name in odd:
    write(part / f'train/good/{name}.png', picture(100))
    write(part / f'test/{gbk}/{name}.png', picture(100))
    write(part / f'ground_truth/{gbk}/{name}_mask.png', defect_mask())
  loaded = load(data_dir)
  assert {f'train/good/{name}.png' for name in odd} < set(loaded.train_files)
  assert {f'test/{gbk}/{name}.png' for name in odd} < set(loaded.test_files)
  assert loaded.test_defects.count(gbk) == len(odd)
  assert loaded.test_masks.any(axis=(1, 2)).sum() == 3 + len(odd)
  # And of the category itself.
  for name in (gbk, 'y' * 255, 'two\nlines'):
    shutil.copytree(part, data_dir / name)
    assert len(load(data_dir, name).train_files) == 3 + len(odd)


def test_a_mask_that_came_by_way_of_another_system(data_dir):
  composed, split = (
    unicodedata.normalize(form, 'é') for form in ('NFC', 'NFD')
  )
  part = data_dir / 'part'
  write(part / f'test/dent/{composed}.png', picture(100))
  write(part / f'ground_truth/dent/{split}_mask.png', defect_mask())
  loaded = load(data_dir)
  place = loaded.test_files.index(f'test/dent/{composed}.png')
  assert loaded.test_masks[place].any()


def test_changed_files_are_prepared_anew(data_dir):
  folder = data_dir / 'part' / 'train' / 'good'
  assert load(data_dir).train_images.shape[0] == 3
  write(folder / 'd.png', picture(10))
  assert load(data_dir).train_files[-1] == 'train/good/d.png'
  (folder / 'a.png').unlink()
  assert load(data_dir).train_files[0] == 'train/good/b.JPG'
  # The same name and size, other pixels.
  stat = (folder / 'c.bmp').stat()
  write(folder / 'c.bmp', picture(90)[..., 1])
  os.utime(folder / 'c.bmp', ns=(0, stat.st_mtime_ns + 10**9))
  assert load(data_dir).train_images[1, 8, 12, 1] == 90
  # Another folder with a category of the same name.
  other = data_dir.parent / 'other'
  shutil.copytree(data_dir, other)
  write(other / 'part/train/good/c.bmp', picture(70)[..., 1])
  shutil.copystat(folder / 'c.bmp', other / 'part/train/good/c.bmp')
  assert load(other).train_images[1, 8, 12, 1] == 70
  assert load(data_dir).train_images[1, 8, 12, 1] == 90


def test_an_image_of_the_same_size_and_time_is_another(data_dir):
  path = data_dir / 'part/train/good/c.bmp'
  load(data_dir)
  stat = path.stat()
  write(path, picture(90)[..., 1])
  os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  assert path.stat().st_size == stat.st_size
  assert load(data_dir).train_images[2, 8, 12, 1] == 90
  truth = data_dir / 'part/ground_truth/dent/000_mask.png'
  stat = truth.stat()
  other = truth.with_name('other')
  other.write_bytes(truth.read_bytes())
  os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  os.replace(other, truth)
  before = len(list((data_dir.parent / 'tfds/category').glob('part-*')))
  load(data_dir)
  after = len(list((data_dir.parent / 'tfds/category').glob('part-*')))
  assert after == before + 1


def test_train_alone_and_unknown_masks(data_dir):
  shutil.rmtree(data_dir / 'part' / 'ground_truth')
  part = load(data_dir)
  assert part.test_masks is None
  assert len(part.test_images) == 4
  shutil.rmtree(data_dir / 'part' / 'test')
  part = load(data_dir)
  assert part.test_images.shape == (0, 16, 16, 3)
  assert part.test_masks.shape == (0, 16, 16)
  assert part.test_files == part.test_defects == []
  assert part.labels.shape == (0,) and part.labels.dtype == bool


def test_a_name_of_the_benchmark_and_a_strange_one(data_dir):
  shutil.copytree(data_dir / 'part', data_dir / 'bottle')
  shutil.copytree(data_dir / 'part', data_dir / 'my [part] ü*%')
  assert layouts.list_categories(data_dir) == [
    'bottle',
    'my [part] ü*%',
    'part',
  ]
  for category in layouts.list_categories(data_dir):
    assert len(load(data_dir, category).train_images) == 3


def test_builder_has_a_config_for_each_of_the_fifteen():
  assert len(paper.CATEGORIES) == 15
  assert set(builder.CategoryBuilder.builder_configs) == set(paper.CATEGORIES)


def test_another_version_of_the_features_is_prepared_beside(
  data_dir, monkeypatch
):
  # Whoever changes the features changes the version as well.
  features = builder.CategoryBuilder(
    config='bottle', data_dir=data_dir.parent
  ).info.features
  assert str(builder.CategoryBuilder.VERSION) == '4.0.0'
  assert sorted(features) == [
    'bits_in_use',
    'defect',
    'file',
    'has_mask',
    'image',
    'is_anomalous',
    'mask',
    'mask_meaning',
    'regions',
    'saturations',
  ]
  load(data_dir)
  prepared = data_dir.parent / 'tfds' / 'category'
  (older,) = prepared.glob('part-*/4.0.0/*test*')
  content = older.read_bytes()
  monkeypatch.setattr(
    builder.CategoryBuilder, 'VERSION', tfds.core.Version('5.0.0')
  )
  assert load(data_dir).labels.sum() == 3
  assert list(prepared.glob('part-*/5.0.0/*test*'))
  assert older.read_bytes() == content


class Flat:
  """A made-up layout: folders `ok` and `nok`, and a list of what is which."""

  EXPECTED = '<category>/ok/*'

  @staticmethod
  def is_category(folder):
    return (folder / 'ok').is_dir()

  @staticmethod
  def read(folder):
    names = contents.list_images(folder / 'ok')
    kinds = (folder / 'kinds.csv').read_text().split()
    ok = [contents.Member(f'ok/{name}', 'fine', False) for name in names]
    nok = [
      contents.Member(f'nok/{file}', kind, True, mask=f'truth/{file}')
      for file, kind in (line.split(',') for line in kinds)
    ]
    return contents.Contents(ok[1:], [*nok, ok[0]])


def test_a_layout_is_one_entry(tmp_path, monkeypatch):
  monkeypatch.setitem(layouts.LAYOUTS, 'flat', Flat)
  root = tmp_path / 'data'
  for name, level in (('a', 10), ('b', 20), ('c', 30)):
    write(root / 'cup' / 'ok' / f'{name}.png', picture(level))
  write(root / 'cup' / 'nok' / 'd.png', picture(40))
  write(root / 'cup' / 'truth' / 'd.png', defect_mask())
  kinds = root / 'cup' / 'kinds.csv'
  kinds.write_text('d.png,good\n')
  assert layouts.list_categories(root, layout='flat') == ['cup']
  cup = load(root, 'cup', layout='flat')
  assert cup.train_files == ['ok/b.png', 'ok/c.png']
  assert cup.test_files == ['nok/d.png', 'ok/a.png']
  # What is anomalous is the layout's to say, whatever its kind is called.
  assert cup.test_defects == ['good', 'fine']
  assert cup.labels.tolist() == [True, False]
  assert cup.test_masks[0].any() and not cup.test_masks[1].any()
  # It may say so from a file that is no image's.
  kinds.write_text('d.png,dent\n')
  assert load(root, 'cup', layout='flat').test_defects == ['dent', 'fine']
  assert 'train/good' in message(root, 'cup')
  assert '<category>/ok/*' in message(tmp_path, 'cup', layout='flat')
  unknown = message(root, 'cup', layout='flt')
  assert "config.data.layout='flt'" in unknown and 'flat, ksdd' in unknown


def test_folders_below_the_defects_count_too(data_dir):
  part = data_dir / 'part'
  write(part / 'train/good/monday/a.png', picture(7))
  write(part / 'test/dent/monday/000.png', picture(8))
  write(part / 'ground_truth/dent/monday/000_mask.png', 255 - defect_mask())
  loaded = load(data_dir)
  assert loaded.train_files[-1] == 'train/good/monday/a.png'
  index = loaded.test_files.index('test/dent/monday/000.png')
  assert loaded.test_defects[index] == 'dent' and loaded.labels[index]
  # Its own, and not that of test/dent/000.png.
  assert not loaded.test_masks[index, :7].any()
  assert loaded.test_masks[index, 9:].all()
  shutil.rmtree(part / 'ground_truth/dent/monday')
  assert 'add' in (text := message(data_dir))
  assert str(part / 'ground_truth/dent/monday/000_mask.png') in text


def test_a_folder_that_cannot_be_read(data_dir, monkeypatch):
  scandir = os.scandir

  def refuse(path):
    if os.fspath(path).endswith('locked'):
      raise PermissionError(13, 'Permission denied', path)
    return scandir(path)

  (data_dir / 'part/train/good/locked').mkdir()
  monkeypatch.setattr(os, 'scandir', refuse)
  assert 'train/good/locked cannot be read' in message(data_dir)


def message(data_dir, category='part', **options):
  with pytest.raises(UserError) as error:
    load(data_dir, category, **options)
  assert '\n' not in str(error.value)
  return str(error.value)


def test_wrong_folders(data_dir, tmp_path):
  assert 'config.data.dir' in message(tmp_path / 'nowhere')
  (tmp_path / 'empty').mkdir()
  assert 'holds no category' in message(tmp_path / 'empty')
  assert 'there are part' in message(data_dir, 'prt')
  assert 'there are part' in message(data_dir, '../data/part')
  assert 'there are part' in message(data_dir, '')
  inside = message(data_dir / 'part')
  assert f'config.data.dir to {data_dir}' in inside and 'to part' in inside
  (data_dir / 'half' / 'test').mkdir(parents=True)
  assert 'train/good' in message(data_dir, 'half')
  shutil.rmtree(data_dir / 'part/train/good')
  (data_dir / 'part/train/good').mkdir()
  assert 'train/good holds no images' in message(data_dir)


def test_partners_must_be_there(data_dir):
  truth = data_dir / 'part' / 'ground_truth'
  (truth / 'dent/000_mask.png').rename(truth / 'dent/007_mask.png')
  assert 'dent/007_mask.png is a mask without an image' in message(data_dir)
  (truth / 'dent/007_mask.png').unlink()
  assert 'test/dent/000.png has no mask' in message(data_dir)
  write(truth / 'dent/000_mask.png', defect_mask(20, 29))
  text = message(data_dir)
  assert 'dent/000_mask.png is 29x20' in text and '30x20' in text
  write(truth / 'dent/000_mask.png', defect_mask())
  write(truth / 'dent/000.png', defect_mask())
  assert 'has two masks' in message(data_dir)
  (truth / 'dent/000.png').unlink()
  write(truth / 'scratch/000_mask.png', defect_mask())
  assert 'scratch/000_mask.png is a mask without' in message(data_dir)
  shutil.rmtree(truth / 'scratch')
  write(data_dir / 'part/test/dent/000.bmp', picture(3))
  assert 'would share a mask' in message(data_dir)


def test_broken_file_leaves_nothing_behind(data_dir):
  broken = data_dir / 'part/test/good/000.png'
  data = broken.read_bytes()
  broken.write_bytes(data[: len(data) // 2])
  assert 'test/good/000.png cannot be read as an image' in message(data_dir)
  broken.write_bytes(b'')
  assert 'test/good/000.png is empty' in message(data_dir)
  prepared = data_dir.parent / 'tfds' / 'category'
  assert not list(prepared.rglob('*.array_record*'))
  broken.write_bytes(data)
  assert len(load(data_dir).test_images) == 4


def test_tfds_dir_that_cannot_be_written(data_dir):
  (data_dir.parent / 'tfds').write_text('a file')
  assert 'tfds cannot be written' in message(data_dir)


def test_full_disk_is_said_so(data_dir, monkeypatch):
  # As the record writer puts it.
  def fail(*args, **kwargs):
    raise RuntimeError('write() failed: No space left on device; writing x')

  monkeypatch.setattr(builder.CategoryBuilder, 'download_and_prepare', fail)
  assert 'cannot be written (No space left on device)' in message(data_dir)


def test_entries_passed_over_are_reported(data_dir, caplog, monkeypatch):
  monkeypatch.setattr(contents._log, 'handlers', [])
  caplog.set_level('WARNING', logger=contents._log.name)
  (data_dir / 'part/train/good/raw.dng').write_bytes(b'x')
  assert len(load(data_dir).train_images) == 3
  assert 'raw.dng' in caplog.text


_PREPARE = """
import sys
from draem_jax.data.category import load_category
part = load_category(
  sys.argv[1], 'part', image_size=16, tfds_dir=sys.argv[2]
)
assert part.train_images.shape == (3, 16, 16, 3)
assert 'tensorflow' not in sys.modules
"""


def test_two_processes_at_once_and_no_tensorflow(data_dir, tmp_path):
  command = [sys.executable, '-c', _PREPARE, data_dir, tmp_path / 'tfds']
  processes = [
    subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    for _ in range(2)
  ]
  for process in processes:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    assert output == errors == b''
  assert len(load(data_dir).train_images) == 3


def test_bottle(example_data, tmp_path):
  bottle = load_category(
    example_data, 'bottle', image_size=256, tfds_dir=tmp_path
  )
  assert bottle.train_images.shape == (209, 256, 256, 3)
  assert bottle.test_images.shape == (83, 256, 256, 3)
  file = bottle.test_files.index('test/contamination/003.png')
  with Image.open(example_data / 'bottle' / bottle.test_files[file]) as image:
    np.testing.assert_array_equal(bottle.test_images[file], np.asarray(image))
  assert bottle.labels.sum() == 63
  np.testing.assert_array_equal(
    (bottle.test_masks == 1).any(axis=(1, 2)), bottle.labels
  )


def test_original_size_and_lossy_masks(example_data, tmp_path):
  original = load_category(
    example_data, 'bottle_original', image_size=64, tfds_dir=tmp_path
  )
  assert original.test_images.shape == (3, 64, 64, 3)
  boards = load_category(
    example_data, 'sawn_timber', image_size=256, tfds_dir=tmp_path
  )
  assert len(boards.train_images) == 70 and len(boards.test_images) == 141
  # Loaded at their own size, lossy masks have two values and no fringe.
  assert set(np.unique(boards.test_masks)) == {0.0, 1.0}
  assert boards.test_masks[boards.labels].any(axis=(1, 2)).all()


def prepared_files(data_dir):
  folder = data_dir.parent / 'tfds' / 'category'
  return sorted(p for p in folder.glob('part-*/*/*') if p.is_file())


@pytest.mark.parametrize('harm', ['flip', 'cut', 'empty', 'remove', 'fifo'])
def test_what_is_damaged_is_prepared_anew(data_dir, harm, caplog):
  caplog.set_level('WARNING')
  expected = load(data_dir)
  for path in prepared_files(data_dir):
    if path.name == 'checksums.json' and harm == 'remove':
      continue
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    caplog.clear()
    path.unlink()
    if harm == 'fifo':
      os.mkfifo(path)
    elif harm != 'remove':
      cut = {'flip': len(data), 'cut': len(data) // 2, 'empty': 0}[harm]
      path.write_bytes(data[:cut])
    found = load(data_dir)
    np.testing.assert_array_equal(found.train_images, expected.train_images)
    np.testing.assert_array_equal(found.test_images, expected.test_images)
    assert found.test_files == expected.test_files
    assert 'is damaged' in caplog.text
  assert len(prepared_files(data_dir)) == 5


def test_what_an_earlier_version_prepared_is_taken_or_named(data_dir):
  expected = load(data_dir)
  for path in prepared_files(data_dir):
    if path.name == 'checksums.json':
      path.unlink()
  found = load(data_dir)
  np.testing.assert_array_equal(found.train_images, expected.train_images)
  (records,) = (p for p in prepared_files(data_dir) if 'train.' in p.name)
  data = bytearray(records.read_bytes())
  data[100:200] = bytes(100)
  records.write_bytes(data)
  for _ in range(2):
    assert 'is damaged' in message(data_dir)
    assert 'delete it, and it is prepared anew' in message(data_dir)
    records.unlink(missing_ok=True)
  # Without its description it would be taken for one of no images.
  (records.parent / 'dataset_info.json').unlink()
  found = load(data_dir)
  np.testing.assert_array_equal(found.train_images, expected.train_images)


def test_what_a_killed_preparation_left_is_cleared(data_dir):
  load(data_dir)
  (version,) = {path.parent for path in prepared_files(data_dir)}
  left = version.parent / f'incomplete.ABC123_{version.name}'
  left.mkdir()
  shutil.rmtree(version)
  load(data_dir)
  assert not left.exists() and version.is_dir()


def test_of_many_categories_the_nearest_are_named(tmp_path):
  for number in range(300):
    write(tmp_path / f'part{number}/train/good/000.png', picture(0))
  with pytest.raises(UserError) as error:
    layouts.find_category(tmp_path, 'part17x')
  assert 'part17' in str(error.value) and len(str(error.value)) < 300
  with pytest.raises(UserError) as error:
    layouts.find_category(tmp_path, 'something')
  assert 'of the 300' in str(error.value) and len(str(error.value)) < 300


@pytest.fixture
def log(caplog, monkeypatch):
  for module in (category_lib, contents, mvtec):
    monkeypatch.setattr(module._log, 'handlers', [])
    caplog.set_level('INFO', logger=module._log.name)
  return caplog


def test_masks_are_understood_and_what_they_mean_is_said(data_dir, log):
  truth = data_dir / 'part' / 'ground_truth'
  numbers = defect_mask() // 255 * np.uint8(240)
  numbers[:3] = 255
  write(truth / 'dent/000_mask.png', numbers)
  (truth / 'crack/000_mask.jpg').unlink()
  classes = np.zeros((20, 30), np.uint8)
  classes[:8] = 1
  write(truth / 'crack/000_mask.jpg', classes, quality=95)
  write(truth / 'dent/001.png', np.zeros((50, 60), np.uint8))
  for _ in range(2):  # Of what was prepared, too.
    log.clear()
    part = load(data_dir)
    assert (part.test_masks[0, :6] == 1).all()
    assert (part.test_masks[1, :7] == 1).all()
    assert (part.test_masks[1, 9:] == 0).all()
    (line,) = [m for m in log.messages if m.startswith('masks of part')]
    assert line == 'masks of part: class numbers in 2, two values in 1'
    (line,) = [m for m in log.messages if 'are empty' in m]
    assert 'the masks of 1 defect images' in line
    assert 'test/dent/001.PNG' in line


def test_masks_that_are_plain_need_no_word(data_dir, log):
  (data_dir / 'part/ground_truth/crack/000_mask.jpg').unlink()
  write(data_dir / 'part/ground_truth/crack/000_mask.png', defect_mask())
  load(data_dir)
  assert not [line for line in log.messages if 'mask' in line]
  inverted = np.where(defect_mask(), np.uint8(20), np.uint8(235))
  write(data_dir / 'part/ground_truth/crack/000_mask.png', inverted)
  load(data_dir)
  (line,) = [m for m in log.messages if 'hold no 0' in m]
  assert 'test/crack/000.tif' in line


def test_images_of_few_of_their_16_bits_are_told_once(data_dir, log):
  part = data_dir / 'part'
  levels = np.linspace(100, 4000, 600).astype(np.uint16).reshape(20, 30)
  write(part / 'train/good/deep.png', levels)
  write(part / 'test/good/deep.png', levels)
  for _ in range(2):
    log.clear()
    load(data_dir)
    (line,) = [m for m in log.messages if '16 bits' in m]
    assert '2 images of 16 bits use at most 12' in line and 'deep.png' in line
  write(part / 'test/good/deep.png', levels * 16)
  log.clear()
  load(data_dir)  # Those to train on are still dark, and the others are not.
  (line,) = [m for m in log.messages if '16 bits' in m]
  assert '1 images' in line
  write(part / 'train/good/deep.png', levels * 16)
  log.clear()
  load(data_dir)
  assert not [m for m in log.messages if '16 bits' in m]


@pytest.mark.parametrize(
  'name', ['ok', 'Good', 'OK_2', 'normal', 'defect-free']
)
def test_good_images_belong_in_a_folder_called_good(data_dir, name):
  part = data_dir / 'part'
  (part / 'test' / name).mkdir()
  load(data_dir)  # Empty, it harms nobody.
  write(part / 'test' / name / '000.png', picture(100))
  text = message(data_dir)
  assert f'{part}/test/{name} ' in text and f'to {part}/test/good' in text
  shutil.rmtree(part / 'test/good')
  assert f'rename it to {part}/test/good' in message(data_dir)
  shutil.rmtree(part / 'test')
  write(part / 'train' / name / '000.png', picture(100))
  text = message(data_dir)
  assert f'{part}/train/{name} ' in text and 'left out' in text
  # No other folder stands there: for itself and among others.
  shutil.rmtree(part / 'train/good')
  remedy = (
    f'good images belong in {part}/train/good: rename {part}/train/{name}'
  )
  assert remedy in message(data_dir)
  write(data_dir / 'other/train/good/a.png', picture(1))
  assert remedy in message(data_dir)
  with pytest.raises(UserError, match='rename'):
    layouts.list_categories(data_dir)
  assert len(load(data_dir, 'other').train_images) == 1


def test_parts_in_other_cases_and_images_beside_the_folders(data_dir, log):
  part = data_dir / 'part'
  write(part / 'test/stray.png', picture(1))
  write(part / 'train/good.png', picture(1))
  write(part / 'train/worn/0.png', picture(1))
  load(data_dir)
  (line,) = [m for m in log.messages if 'train/worn' in m]
  assert 'passed over 1 images' in line
  assert [m for m in log.messages if 'stray.png' in m and 'passed over 1' in m]
  assert [m for m in log.messages if 'such as good.png' in m]
  (part / 'ground_truth').rename(part / 'Ground Truth')
  assert f'rename it to {part}/ground_truth' in message(data_dir)
  (part / 'Ground Truth').rename(part / 'ground_truth')
  (part / 'test').rename(part / 'Test')
  assert f'rename it to {part}/test' in message(data_dir)
  (part / 'Test').rename(part / 'test')
  (part / 'train').rename(part / 'Train')
  assert f'rename it to {part}/train' in message(data_dir)
  (part / 'Train').rename(part / 'train')
  for path in (part / 'train/good').iterdir():
    path.rename(part / 'train' / path.name)
  (part / 'train/good').rmdir()
  assert f'move those there that lie in {part}/train' in message(data_dir)


def test_what_is_no_file_is_an_error(data_dir):
  path = data_dir / 'part/train/good/pipe.png'
  os.mkfifo(path)
  assert f'{path} cannot be read (it is a pipe' in message(data_dir)
  path.unlink()
  path.symlink_to('nowhere')
  assert f'{path} cannot be read (No such file' in message(data_dir)


def test_pictures_keep_their_size_until_they_are_looked_at(data_dir):
  resized, own = load(data_dir), load(data_dir, resolution=0)
  assert own.train_images.sizes.tolist() == [[40, 24], [20, 30], [20, 30]]
  assert own.test_images.common_size is None
  for name in ('train_files', 'test_files', 'test_defects', 'name'):
    assert getattr(own, name) == getattr(resized, name)
  np.testing.assert_array_equal(own.labels, resized.labels)
  assert own.test_images.names == own.test_files
  for image, mask, small, small_mask in zip(
    *(own.test_images, own.test_masks),
    *(resized.test_images, resized.test_masks),
    strict=True,
  ):
    assert mask.shape == image.shape[:2] and mask.dtype == np.float32
    again = resizing.resize(image, (16, 16), 'bilinear')
    np.testing.assert_array_equal(again, small)
    # In the middle of each half.
    assert (mask[len(mask) // 4] == small_mask[4, 0]).all()
    assert (mask[3 * len(mask) // 4] == small_mask[12, 0]).all()
  assert own.validation_images is None and own.test_regions is None


def test_pictures_of_a_given_size(data_dir):
  resized = load(data_dir, size=(16, 32))
  own = load(data_dir, resolution=(16, 32))
  for name in ('train_images', 'test_images', 'test_masks'):
    found = list(getattr(own, name))
    np.testing.assert_array_equal(found, getattr(resized, name))
  assert own.train_images.common_size == (16, 32)
  shutil.rmtree(data_dir / 'part/ground_truth')
  assert load(data_dir, resolution=0).test_masks is None
  shutil.rmtree(data_dir / 'part/test')
  assert not len(load(data_dir, resolution=0).test_images)
