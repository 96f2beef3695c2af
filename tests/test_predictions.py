import contextlib
import csv
import json
import os

import numpy as np
import pytest
from PIL import Image

from draem_jax.data import files
from draem_jax.detection.predictions import Predictions, leave_out_own
from draem_jax.detection.regions import Region
from draem_jax.errors import UserError

SETTINGS = {'model': '01234567', 'threshold': 0.02 + 0.05}


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


@pytest.mark.parametrize(
  'name', ['ä, b.png', 'two "quotes".png', 'x\ny.png', 'x\ry.png', '=1+1.png']
)
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
  with pytest.raises(UserError, match=r'another threshold 0.5 \(there 0.07'):
    Predictions(tmp_path, SETTINGS | {'threshold': 0.5})
  with pytest.raises(UserError, match='another model'):
    Predictions(tmp_path, SETTINGS | {'model': '89abcdef'})
  with begin(tmp_path):
    pass


@pytest.mark.parametrize('target', ['predict.json', 'nowhere'])
def test_a_link_that_leads_nowhere_is_named(tmp_path, target):
  with begin(tmp_path):
    pass
  (tmp_path / 'predict.json').unlink()
  (tmp_path / 'predict.json').symlink_to(target)
  with pytest.raises(UserError, match='predict.json.*take another --output'):
    begin(tmp_path)


@pytest.mark.parametrize(
  'name',
  ['predictions.csv', 'overlays', 'maps', 'predictions.json', 'regions.jsonl'],
)
def test_what_others_wrote_is_left_alone(tmp_path, name):
  (tmp_path / name).mkdir()
  with pytest.raises(UserError, match=f'{name} was not written by'):
    Predictions(tmp_path, SETTINGS)
  assert [path.name for path in tmp_path.iterdir()] == [name]


HEADER = 'file,score,is_anomalous,area\n'


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('a,b\n', 'its columns are a, b'),
    (f'{HEADER}a.png,0.5\n', 'line 2 has 2 cells'),
    (f'{HEADER}a.png,0.5,true,1,x\n', 'line 2 has 5 cells'),
    (f'{HEADER}a.png,0.5,true,1\nb.png,0.5,WAHR,1\n', "line 3: 'WAHR' is not"),
    (f'{HEADER}a.png,0.5,,1\n', "line 2: '' is not true or false"),
    (
      f'{HEADER}"a\nb.png",0.5,true,1\nb,433.198.661,true,1\n',
      'line 4: the sc',
    ),
    (f'{HEADER}a.png,433198661,true,1\n', "the score is '433198661'"),
    (f'{HEADER}a.png,nan,false,1\n', "the score is 'nan'"),
    (f'{HEADER}a.png,0.5,true,-1\n', "the area is '-1'"),
    (f'{HEADER},0.5,true,1\n', 'line 2 names no file'),
    (f'{HEADER}a.png,0.5,false,0\n', 'line 2: false contradicts the score 0.5'),
    (f'{HEADER}a.png,0.01,TRUE,0\n', 'TRUE contradicts the score 0.01'),
    (
      f'{HEADER}a.png,0.5,true,1\na.png,0.6,true,1\n',
      "line 3 differs from another of 'a.png'",
    ),
    ('\r'.join((HEADER.strip(), 'a.png,0.5,true,1')), 'names of its columns'),
  ],
)
def test_a_damaged_table_is_named(tmp_path, text, words):
  with begin(tmp_path):
    pass
  path = tmp_path / 'predictions.csv'
  path.write_bytes(text.encode())
  with pytest.raises(UserError) as error:
    Predictions(tmp_path, SETTINGS)
  message = str(error.value)
  assert message.startswith(f'{path} is damaged (') and '\n' not in message
  assert words in message and 'take another --output' in message
  assert path.read_bytes() == text.encode()


TABLE = f'{HEADER}a.png,0.100000001,true,0.333333\nb.png,1.5e-05,false,0\n'


@pytest.mark.parametrize(
  'text',
  [
    TABLE.replace('true', 'TRUE').replace('false', 'False'),
    TABLE.replace('\n', '\r\n'),
    '\ufeff' + TABLE,
    TABLE.replace(',', ';'),
    'sep=;\r\n'
    + TABLE.replace(',', ';').replace('.1', ',1').replace('1.5', '1,5'),
    TABLE.replace(',', '\t').replace('1.5e-05', '1.5E-05'),
    ''.join(
      ','.join(f'"{cell}"' for cell in line.split(',')) + '\n'
      for line in TABLE.splitlines()
    ),
    TABLE + ',,,\r\n\r\n',
    TABLE + TABLE.splitlines()[1] + '\n',
    TABLE.replace('\n', ',,\n'),
    '\n'.join([TABLE.splitlines()[0], *TABLE.splitlines()[:0:-1], '']),
    ''.join(
      ','.join(line.split(',')[::-1]) + '\n' for line in TABLE.splitlines()
    ),
  ],
)
def test_a_table_from_a_spreadsheet_counts_as_before(tmp_path, text):
  with begin(tmp_path):
    pass
  path = tmp_path / 'predictions.csv'
  path.write_text(text, newline='')
  expected = {'a.png': True, 'b.png': False}
  with begin(tmp_path) as predictions:
    assert predictions.verdicts == expected
    add(predictions, 'c.png')
  # What comes behind is of the same kind.
  lines = path.read_bytes().decode().lower().splitlines(keepends=True)
  assert sorted(lines) == sorted(
    (TABLE + 'c.png,0.25,true,0.333333\n').splitlines(keepends=True)
  )
  with begin(tmp_path) as predictions:
    assert predictions.verdicts == expected | {'c.png': True}


def test_a_score_that_a_spreadsheet_rounded_keeps_its_verdict(tmp_path):
  with begin(tmp_path):
    pass
  # It was 0.0704 or so, and the threshold is 0.07.
  text = f'{HEADER}a.png,0.07,TRUE,0.1\r\n'
  (tmp_path / 'predictions.csv').write_text(text, newline='')
  with begin(tmp_path) as predictions:
    assert predictions.verdicts == {'a.png': True}


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('{"model": ', 'is damaged'),
    ('[]', 'holds no object'),
    ('{"model": "01234567", "threshold": true}', 'threshold is True'),
    ('{"model": "01234567", "threshold": NaN}', r'\(there nan\)'),
    ('{"model": "01234567"}', 'threshold is None'),
    ('{"a": ' * 100_000, 'nested without end'),
    ('{"a": ' * 50 + '1' + '}' * 50, 'nested without end'),
    ('{"model": "01234567", "model": "01234567"}', "'model' twice"),
  ],
)
def test_damaged_settings_are_named(tmp_path, text, words):
  (tmp_path / 'predict.json').write_text(text)
  with pytest.raises(UserError, match=words) as error:
    Predictions(tmp_path, SETTINGS)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'name', ['predictions.csv', 'predict.json', 'regions.jsonl']
)
@pytest.mark.parametrize('make', [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_named(tmp_path, name, make):
  with begin(tmp_path):
    pass
  (tmp_path / name).unlink()
  make(tmp_path / name)
  with pytest.raises(UserError, match=f'{name} is not a file'):
    Predictions(tmp_path, SETTINGS)


def test_what_we_wrote_ourselves_is_left_out(tmp_path, caplog):
  caplog.set_level('INFO')
  for name in (
    'a.png',
    'maps/b.png',
    'old/predict.json',
    'old/overlays/a.png',
    'old/maps/x/a.png',
    'old/c.png',
    'run/config.json',
    'run/checkpoints/1/x',
    'run/figures/curves.png',
    'run/data/demo/train/good/0.png',
    'figures/d.png',
  ):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  found = leave_out_own(files.find_images(str(tmp_path)))
  assert found.names == ['a.png', 'figures/d.png', 'maps/b.png', 'old/c.png']
  (line,) = caplog.messages
  assert line.startswith('left out 4 pictures') and 'old/maps/x/a.png' in line
  # Of a run itself: what it was made of may be scored, its figures not.
  found = leave_out_own(files.find_images(str(tmp_path / 'run')))
  assert found.names == ['data/demo/train/good/0.png']
  with pytest.raises(UserError, match='holds no image but 2 that draem_jax'):
    leave_out_own(files.find_images(str(tmp_path / 'old' / '*' / '**')))


@pytest.mark.parametrize('umask', [0o022, 0o077, 0o002])
def test_all_is_as_readable_as_the_umask_says(tmp_path, umask):
  before = os.umask(umask)
  try:
    with begin(tmp_path / 'out') as predictions:
      add(predictions, 'a.png')
      predictions.write_pictures(
        'x/a.png',
        overlay=[np.zeros((2, 3, 3), np.uint8)],
        levels=[np.zeros((2, 3), np.uint16)],
      )
  finally:
    os.umask(before)
  found = list((tmp_path / 'out').rglob('*'))
  assert len(found) == 9
  for path in found:
    most = 0o777 if path.is_dir() else 0o666
    assert path.stat().st_mode & 0o777 == most & ~umask, path


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
    predictions.write_pictures(
      'x/y.jpg', overlay=[overlay], levels=[levels[:2], levels[2:]]
    )
  with Image.open(tmp_path / 'overlays' / 'x' / 'y.jpg.png') as image:
    np.testing.assert_array_equal(image, overlay)
  with Image.open(tmp_path / 'maps' / 'x' / 'y.jpg.png') as image:
    assert image.mode.startswith('I;16')
    np.testing.assert_array_equal(image, levels)
  assert len([path for path in tmp_path.rglob('*y.jpg*')]) == 2


REGION = Region(
  box=(3, 4, 2, 1),
  area=2,
  peak=0.75,
  polygon=((3.0, 4.5), (4.0, 4.0), (5.0, 4.5)),
)
NAMES = ['a.png', 'x\n"y".png', b'\xff.png'.decode('utf-8', 'surrogateescape')]


def add_all(predictions, names=NAMES, *, first=0):
  for index, name in enumerate(names, first):
    score = 0.25 * index
    regions = [REGION] * index
    predictions.notes.add(name, size=(6, 9), score=score, regions=regions)
    predictions.add(
      name, score=score, is_anomalous=index > 0, area=2 * index / 54
    )


def test_regions_are_written_as_coco_has_them(tmp_path):
  with begin(tmp_path) as predictions:
    add_all(predictions)
    predictions.write_regions()
  found = json.loads((tmp_path / 'predictions.json').read_bytes())
  assert found['info'] == SETTINGS
  assert [image['file_name'] for image in found['images']] == NAMES
  assert found['images'][1] == {
    'id': 2,
    'file_name': NAMES[1],
    'height': 6,
    'width': 9,
    'score': 0.25,
    'is_anomalous': True,
  }
  places = [(one['id'], one['image_id']) for one in found['annotations']]
  assert places == [(1, 2), (2, 3), (3, 3)]
  assert found['annotations'][0] == {
    'id': 1,
    'image_id': 2,
    'category_id': 1,
    'bbox': [3, 4, 2, 1],
    'area': 2,
    'peak': 0.75,
    'segmentation': [[3, 4.5, 4, 4, 5, 4.5]],
    'iscrowd': 0,
  }
  assert found['categories'] == [{'id': 1, 'name': 'anomaly'}]


def test_regions_are_the_same_wherever_a_run_was_cut(tmp_path):
  with begin(tmp_path) as predictions:
    add_all(predictions)
    predictions.write_regions()
  written = [
    tmp_path / name
    for name in ('predictions.csv', 'regions.jsonl', 'predictions.json')
  ]
  whole = [path.read_bytes() for path in written]
  rows = []
  for count in range(len(NAMES) + 1):
    with begin(tmp_path / str(count)) as predictions:
      add_all(predictions, NAMES[:count])
    rows.append((tmp_path / str(count) / 'predictions.csv').read_bytes())
  for length in range(len(whole[1]) + 1):
    notes = whole[1][:length]
    lines = notes.count(b'\n')
    # A note is written before its row.
    for count in {lines, max(0, lines - 1)}:
      written[0].write_bytes(rows[count])
      written[1].write_bytes(notes)
      written[2].unlink()
      with begin(tmp_path) as predictions:
        assert len(predictions.verdicts) == count
        add_all(predictions, NAMES[count:], first=count)
        predictions.write_regions()
      assert [path.read_bytes() for path in written] == whole, length


def test_rows_without_regions_are_told(tmp_path, caplog):
  with begin(tmp_path) as predictions:
    add(predictions, 'old.png')
    add_all(predictions)
    predictions.write_regions()
  (line,) = caplog.messages
  assert 'predictions.json lacks 1 of 4 images' in line
  found = json.loads((tmp_path / 'predictions.json').read_bytes())
  assert len(found['images']) == 3


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('{"file_name": \n', 'line 2'),
    ('[]\n', 'line 2: it holds no object'),
    ('{"file_name": "b.png"}\n', 'line 2: it has the fields file_name'),
    (
      '{"file_name": "b.png", "height": "6", "width": 9, "score": 0.5,'
      ' "annotations": []}\n',
      "line 2: height is '6'",
    ),
    (
      '{"file_name": "b.png", "height": 6, "width": 9, "score": 0.5,'
      ' "annotations": [{"bbox": []}]}\n',
      'line 2: a region is',
    ),
  ],
)
def test_damaged_notes_are_named(tmp_path, text, words):
  with begin(tmp_path) as predictions:
    add_all(predictions, NAMES[:1])
  path = tmp_path / 'regions.jsonl'
  with path.open('a') as file:
    file.write(text)
  before = path.read_bytes()
  with pytest.raises(UserError, match=r'regions.jsonl is damaged') as error:
    Predictions(tmp_path, SETTINGS)
  assert words in str(error.value) and '\n' not in str(error.value)
  assert path.read_bytes() == before


def test_no_changed_digit_of_a_note_goes_unnoticed(tmp_path):
  with begin(tmp_path) as predictions:
    add_all(predictions, NAMES[:2])
  path = tmp_path / 'regions.jsonl'
  whole = path.read_bytes()
  for place, byte in enumerate(whole):
    if chr(byte).isdigit():
      other = ord('1') if byte == ord('0') else ord('0')
      path.write_bytes(whole[:place] + bytes([other]) + whole[place + 1 :])
      with pytest.raises(UserError, match=r'regions.jsonl is damaged'):
        Predictions(tmp_path, SETTINGS)


def test_notes_of_before_had_no_checksum(tmp_path):
  with begin(tmp_path) as predictions:
    add_all(predictions, NAMES[:2])
    predictions.write_regions()
  path = tmp_path / 'regions.jsonl'
  before = (tmp_path / 'predictions.json').read_bytes()
  lines = path.read_bytes().splitlines()
  path.write_bytes(b''.join(line.split(b'\t')[0] + b'\n' for line in lines))
  with begin(tmp_path) as predictions:
    predictions.write_regions()
  assert (tmp_path / 'predictions.json').read_bytes() == before


def test_a_folder_of_before_goes_on_without_boxes(tmp_path):
  with begin(tmp_path):
    pass
  with begin(tmp_path, **{'choice of boxes': False}):
    pass
  with pytest.raises(
    UserError, match=r'another choice of boxes True \(there F'
  ):
    Predictions(tmp_path, SETTINGS | {'choice of boxes': True})
