import contextlib
import csv

import numpy as np
import pytest
from PIL import Image

from draem_jax.detection.predictions import Predictions
from draem_jax.errors import UserError

SETTINGS = {'model': '01234567', 'threshold': 0.1 + 0.2}


def begin(folder, **changed):
  return contextlib.closing(Predictions(folder, SETTINGS | changed))


def add(predictions, name, score=0.25):
  predictions.add(name, score=score, is_anomalous=True, area=1 / 3)


def rows(folder):
  with (folder / 'predictions.csv').open(newline='') as file:
    return list(csv.reader(file))


def test_the_table_goes_on(tmp_path):
  folder = tmp_path / 'deep' / 'out'
  with begin(folder) as predictions:
    assert predictions.verdicts == {}
    add(predictions, 'a.png', float(np.float32(0.1)))
  with begin(folder) as predictions:
    assert predictions.verdicts == {'a.png': True}
    predictions.add('b.png', score=0.0, is_anomalous=False, area=0.0)
  assert rows(folder) == [
    ['file', 'score', 'is_anomalous', 'area'],
    ['a.png', '0.100000001', 'true', '0.333333'],
    ['b.png', '0', 'false', '0'],
  ]


@pytest.mark.parametrize('name', ['ä, b.png', 'two "quotes".png', 'x\ny.png'])
def test_whatever_a_file_is_called(tmp_path, name):
  with begin(tmp_path) as predictions:
    add(predictions, name)
  with begin(tmp_path) as predictions:
    assert predictions.verdicts == {name: True}


def test_a_name_that_is_no_text(tmp_path):
  name = b'\xff.png'.decode('utf-8', 'surrogateescape')
  with begin(tmp_path) as predictions:
    add(predictions, name)
  assert b'\xff.png,' in (tmp_path / 'predictions.csv').read_bytes()
  with begin(tmp_path) as predictions:
    assert name in predictions.verdicts


def test_a_row_cut_short_is_dropped(tmp_path):
  with begin(tmp_path) as predictions:
    add(predictions, 'a.png')
    add(predictions, 'x\n"y".png')
  path = tmp_path / 'predictions.csv'
  whole = path.read_bytes()
  header, first = whole.index(b'a.png'), whole.index(b'"x')
  for length in range(len(whole)):
    path.write_bytes(whole[:length])
    with begin(tmp_path) as predictions:
      assert list(predictions.verdicts) == ['a.png'] * (length >= first)
    kept = first if length >= first else header
    assert path.read_bytes() == whole[:kept], length


def test_other_settings_are_refused(tmp_path):
  with begin(tmp_path):
    pass
  with pytest.raises(UserError, match=r'another threshold 0.5 \(there 0.3'):
    Predictions(tmp_path, SETTINGS | {'threshold': 0.5})
  with pytest.raises(UserError, match='another model'):
    Predictions(tmp_path, SETTINGS | {'model': '89abcdef'})
  with begin(tmp_path):
    pass


@pytest.mark.parametrize('name', ['predictions.csv', 'overlays', 'maps'])
def test_what_others_wrote_is_left_alone(tmp_path, name):
  (tmp_path / name).mkdir()
  with pytest.raises(UserError, match=f'{name} was not written by'):
    Predictions(tmp_path, SETTINGS)
  assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
  'text', ['a,b\n', 'file,score,is_anomalous,area\na.png,0.5\n']
)
def test_a_damaged_table_is_named(tmp_path, text):
  with begin(tmp_path):
    pass
  (tmp_path / 'predictions.csv').write_text(text)
  with pytest.raises(UserError, match='predictions.csv is damaged'):
    Predictions(tmp_path, SETTINGS)


def test_damaged_settings_are_named(tmp_path):
  (tmp_path / 'predict.json').write_text('{"model": ')
  with pytest.raises(UserError, match='predict.json is damaged'):
    Predictions(tmp_path, SETTINGS)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
  (tmp_path / 'file').touch()
  for folder in (tmp_path / 'file', tmp_path / 'file' / 'out'):
    with pytest.raises(UserError, match='--output='):
      Predictions(folder, SETTINGS)


def test_only_one_at_a_time(tmp_path):
  with (
    begin(tmp_path),
    pytest.raises(UserError, match='another process is writing'),
  ):
    Predictions(tmp_path, SETTINGS)
  with begin(tmp_path):
    pass


def test_pictures_keep_their_place_and_their_values(tmp_path):
  rng = np.random.default_rng(0)
  overlay = rng.integers(0, 256, (6, 9, 3)).astype(np.uint8)
  levels = rng.integers(0, 65536, (6, 9)).astype(np.uint16)
  with begin(tmp_path) as predictions:
    predictions.write_pictures('x/y.jpg', overlay=overlay, levels=levels)
  with Image.open(tmp_path / 'overlays' / 'x' / 'y.jpg.png') as image:
    np.testing.assert_array_equal(image, overlay)
  with Image.open(tmp_path / 'maps' / 'x' / 'y.jpg.png') as image:
    assert image.mode.startswith('I;16')
    np.testing.assert_array_equal(image, levels)
  assert len([path for path in tmp_path.rglob('*y.jpg*')]) == 2
