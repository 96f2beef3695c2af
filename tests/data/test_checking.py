"""What is said of a folder before anyone trains."""

import shutil

import numpy as np
import pytest
from absl import flags
from trees import TREES, mask, picture, write

from draem_jax import command, config
from draem_jax.data import __main__ as data_command
from draem_jax.data import checking, layouts
from draem_jax.errors import UserError


@pytest.fixture
def check(capsys):
  """Runs the command on a folder; returns its exit status and its lines."""
  values = flags.FlagValues()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(flags, 'FLAGS', values)
    flags.DEFINE_string('check', None, '', flag_values=values)
    flags.DEFINE_string('layout', 'auto', '', flag_values=values)

    def run(folder, layout='auto'):
      values(['data', f'--check={folder}', f'--layout={layout}'])
      status = 0
      try:
        data_command.main(['data'])
      except command.Stopped as stop:
        status = stop.status
      return status, capsys.readouterr().out.splitlines()

    yield run


@pytest.fixture
def root(tmp_path):
  folder = tmp_path / 'data'
  folder.mkdir()
  return folder


@pytest.mark.parametrize('layout', TREES)
def test_a_sound_tree_is_neither_broken_nor_odd(root, check, layout):
  name = TREES[layout](root)
  if layout == 'visa':
    (root / 'pcb1').rmdir()  # Which has no images.
  status, lines = check(root)
  assert status == 0
  assert lines[0].startswith(f'{name}: layout {layout}, ')
  assert lines[-1] == '1 category, 0 odd, 0 broken'
  text = '\n'.join(lines)
  assert '  train: ' in text and ' good' in text and '  size: 32x24' in text
  has_validation = layout in ('mvtec_loco', 'mvtec_ad_2', 'csv')
  assert ('  validation: ' in text) == has_validation
  assert ('  left out: 1 ' in text) == (layout in ('dagm', 'ksdd', 'ksdd2'))
  if layout == 'mvtec_loco':
    assert '  masks: 2 of 2 anomalous images have one, in 3 files' in lines
  if layout == 'mvtec_ad_2':
    assert 'passed over 2 images' in text


def test_large_images_are_advised_on(root, check):
  assert config.default().image_size == checking.SEEN
  for number, size in enumerate([(1300, 900), (1300, 900), (200, 300)]):
    image = np.zeros((*size, 3), np.uint8)
    image[number] = 1
    write(root / f'tubes/train/good/{number}.png', image)
  status, lines = check(root)
  advice = [line for line in lines if line.startswith('  advice: ')]
  assert status == 0 and len(advice) == 1
  assert '10 pixels across in an image of 900x1300 has 2.4;' in advice[0]
  assert '--config.data.resolution=0' in advice[0]
  # Not where most are no larger than those of the data sets.
  write(root / 'tubes/train/good/9.png', np.zeros((1024, 1024, 3), np.uint8))
  assert not any('advice' in line for line in check(root)[1])


def odd(lines):
  return [line[7:] for line in lines if line.startswith('  odd: ')]


def broken(lines):
  return [line[10:] for line in lines if line.startswith('  broken: ')]


def test_what_is_odd(root, check):
  TREES['mvtec'](root)
  part = root / 'tubes'
  for number in range(2, 20):
    write(part / f'train/good/{number:03}.png', picture(100 + number))
  write(part / 'train/good/large.png', np.tile(picture(30), (2, 2, 1)))
  write(part / 'train/good/gray.png', picture(31)[..., 0])
  write(part / 'ground_truth/anomalous/000_mask.png', mask(0))
  shutil.copy(part / 'train/good/000.png', part / 'test/good/same.png')
  write(part / 'test/good/alike.png', picture(1) ^ 1)
  (part / 'test/good/raw.dng').write_bytes(b'x')
  status, lines = check(root)
  assert status == 0
  found = '\n'.join(odd(lines))
  for words in (
    'have the size 64x48: train/good/large.png',
    'have the mode gray: train/good/gray.png',
    'of 1 anomalous images are empty',
    'test/good/same.png is train/good/000.png',
    'test/good/alike.png is like train/good/001.png',
    'raw.dng',
  ):
    assert words in found, words
  assert len(odd(lines)) == 6
  assert lines[-1] == '1 category, 6 odd, 0 broken'


def test_what_is_broken(root, check):
  TREES['mvtec'](root)
  TREES['csv'](root)
  part = root / 'tubes'
  data = (part / 'train/good/001.png').read_bytes()
  (part / 'train/good/001.png').write_bytes(data[: len(data) // 2])
  write(part / 'ground_truth/anomalous/000_mask.png', mask()[:-1])
  (root / 'masks/e.png').unlink()
  status, lines = check(root)
  assert status == 1
  assert len(broken(lines)) == 3
  found = '\n'.join(broken(lines))
  assert 'train/good/001.png cannot be read as an image' in found
  assert '000_mask.png is 32x23 pixels' in found
  assert 'parts.csv line 6, field mask' in found
  assert lines[-1] == '2 categories, 0 odd, 3 broken'


def test_what_pixels_and_masks_hold(root, check):
  TREES['mvtec'](root)
  part = root / 'tubes'
  deep = picture(7)[..., 0].astype(np.uint16) * 16
  for name in ('train/good/000', 'test/good/000'):
    write(part / f'{name}.png', deep + (name[:4] == 'test'))
  write(part / 'test/anomalous/001.png', picture(21))
  write(part / 'ground_truth/anomalous/001_mask.png', mask(2) + mask(1, 14))
  write(part / 'test/anomalous/002.png', picture(22))
  ramp = np.tile(np.arange(100, 132, dtype=np.uint8), (24, 1))
  write(part / 'ground_truth/anomalous/002_mask.png', ramp)
  status, lines = check(root)
  assert status == 0
  assert '  in use: 12 of 16 bits' in lines
  (modes,) = (line for line in lines if line.startswith('  mode: '))
  assert '16 bits (2)' in modes
  (taken,) = (line for line in lines if line.startswith('  masks are taken'))
  assert set(taken.partition(': ')[2].split(', ')) == {
    'two values in 1',
    'class numbers in 1',
    'no normal pixel in 1',
  }
  found = '\n'.join(odd(lines))
  assert '2 images of 16 bits use at most 12' in found
  assert 'hold no 0' in found and 'test/anomalous/002.png' in found


def test_a_defect_of_no_kind_is_broken(root, check):
  part = root / TREES['mvtec_loco'](root)
  write(part / 'ground_truth/logical_anomalies/000/001.png', mask(17))
  status, lines = check(root)
  assert status == 1 and 'pixels of the value 17' in broken(lines)[0]


def test_a_category_itself_and_none(root, check):
  TREES['ksdd2'](root)
  status, lines = check(root / 'KolektorSDD2')
  assert status == 0 and lines[0].startswith('KolektorSDD2: layout ksdd2')
  (root / 'empty').mkdir()
  status, lines = check(root / 'empty')
  assert status == 1 and 'holds no category' in lines[0]
  status, lines = check(root / 'KolektorSDD2', 'visa')
  assert status == 1 and 'split_csv/1cls.csv' in lines[0]
  with pytest.raises(UserError, match='is not a folder'):
    check(root / 'nowhere')
  # One that is in doubt does not keep the others from being looked at.
  TREES['mvtec'](root)
  (root / 'tubes.csv').write_text('file,split,label\n')
  status, lines = check(root)
  assert status == 1 and lines[-1].startswith('2 categories, ')
  assert 'could have the layout csv or mvtec' in broken(lines)[0]


def test_a_split_that_lacks_something(root, check):
  TREES['mvtec'](root)
  part = root / 'tubes'
  shutil.rmtree(part / 'ground_truth')
  assert 'no masks' in odd(check(root)[1])[0]
  shutil.rmtree(part / 'test/good')
  assert 'no test image is good' in odd(check(root)[1])[0]
  shutil.rmtree(part / 'test')
  assert 'there are no test images' in odd(check(root)[1])[0]


def test_many_are_compared_in_parts(monkeypatch, root):
  name = TREES['mvtec'](root)
  write(root / name / 'test/good/alike.png', picture(1) ^ 1)
  monkeypatch.setattr(checking, '_ROWS', 1)
  place = layouts.find(root, name, layout='auto')
  assert 'is like train/good/001.png' in checking.check(name, place).odd[0]


def test_the_data_beside_the_checkout(example_data):
  place = layouts.find(example_data, 'bottle', layout='auto')
  assert place.layout == 'mvtec'
  findings = checking.check('bottle', place)
  assert findings.odd == findings.broken == []
  assert '  train: 209 images: 209 good' in findings.lines
  assert '  size: 256x256 (292)' in findings.lines
