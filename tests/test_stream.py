import contextlib
import csv
import errno
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image
from redness import Redness

from draem_jax.data import encoded, png
from draem_jax.data.files import find_images
from draem_jax.detection import stream
from draem_jax.detection.detector import Detector
from draem_jax.detection.predictions import Predictions
from draem_jax.pictures import panels
from draem_jax.workdir.thresholds import Thresholds


@pytest.fixture(scope='module')
def detector():
  return Detector(
    Redness(),
    {},
    image_size=32,
    score_window=5,
    thresholds=Thresholds(0.5, 0.5, 'a test', 0.99, 0.9999),
    batch_size=4,
  )


def write_image(path, *, size=(40, 60), square=None):
  image = np.full((*size, 3), 40, np.uint8)
  if square is not None:
    top, left, side = square
    image[top : top + side, left : left + side] = (255, 0, 0)
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(image).save(path)
  return image


def run(detector, folder, output, **options):
  found = find_images(str(folder))
  with contextlib.closing(Predictions(output, {})) as predictions:
    broken = stream.score_files(detector, found, predictions, **options)
    predictions.write_regions()
    return broken


def rows(output):
  with (output / 'predictions.csv').open(newline='') as file:
    return list(csv.DictReader(file))


def test_what_is_written_of_an_image(detector, tmp_path):
  image = write_image(tmp_path / 'in' / 'x' / 'a.png', square=(10, 20, 20))
  write_image(tmp_path / 'in' / 'x' / 'a.bmp', size=(70, 33))
  assert run(detector, tmp_path / 'in', tmp_path / 'out') == 0
  clean, spot = rows(tmp_path / 'out')
  assert clean['file'] == 'x/a.bmp' and spot['file'] == 'x/a.png'
  assert clean['is_anomalous'] == 'false' and float(clean['area']) == 0
  assert spot['is_anomalous'] == 'true'
  assert float(spot['area']) == pytest.approx(20 * 20 / (40 * 60), rel=0.1)
  # To the last digit what the detector says of the same pixels.
  found = detector(image)
  assert np.float32(spot['score']) == found.score[0]
  levels = np.asarray(Image.open(tmp_path / 'out' / 'maps' / 'x' / 'a.png'))
  np.testing.assert_allclose(
    levels / 65535, found.anomaly_map[0], rtol=0, atol=0.51 / 65535
  )
  table = json.loads((tmp_path / 'out' / 'predictions.json').read_bytes())
  (region,) = found.regions[0]
  (annotation,) = table['annotations']
  assert annotation.items() >= region.as_dict().items()
  assert region.area == found.mask.sum()
  left, top, width, height = region.box
  assert (left, top) == pytest.approx((20, 10), abs=1)
  assert (width, height) == pytest.approx((20, 20), abs=1)
  assert [image['id'] for image in table['images']] == [1, 2]
  assert annotation['image_id'] == 2
  assert np.float32(table['images'][1]['score']) == found.score[0]
  overlay = np.asarray(Image.open(tmp_path / 'out' / 'overlays/x/a.png'))
  expected = panels.heat_map_overlay(image, found.anomaly_map[0])
  expected = panels.draw_outline(expected, found.mask[0])
  np.testing.assert_array_equal(overlay, expected)
  with Image.open(tmp_path / 'out' / 'maps' / 'x' / 'a.bmp.png') as levels:
    assert levels.size == (33, 70)


@pytest.mark.parametrize('boxes', [False, True])
def test_strips_do_not_show(detector, tmp_path, monkeypatch, boxes):
  write_image(tmp_path / 'in' / 'a.png', square=(10, 20, 20))
  run(detector, tmp_path / 'in', tmp_path / 'whole', with_boxes=boxes)
  monkeypatch.setattr(stream, '_STRIP', 7 * 60)
  run(detector, tmp_path / 'in', tmp_path / 'strips', with_boxes=boxes)
  for name in ('overlays/a.png', 'predictions.json', 'predictions.csv'):
    whole, strips = (
      (tmp_path / folder / name).read_bytes() for folder in ('whole', 'strips')
    )
    assert whole == strips


def test_boxes_stand_around_what_is_anomalous(detector, tmp_path):
  image = write_image(tmp_path / 'in' / 'a.png', square=(10, 20, 20))
  run(detector, tmp_path / 'in', tmp_path / 'plain')
  run(detector, tmp_path / 'in', tmp_path / 'boxes', with_boxes=True)
  plain, boxes = (
    np.asarray(Image.open(tmp_path / name / 'overlays' / 'a.png')).astype(int)
    for name in ('plain', 'boxes')
  )
  changed = (plain != boxes).any(axis=2)
  rows, columns = np.nonzero(changed)
  ((left, top, width, height),) = [
    region.box for region in detector(image).regions[0]
  ]
  # Two pixels off, and one wide.
  assert (columns.min(), columns.max()) == (left - 3, left + width + 2)
  assert (rows.min(), rows.max()) == (top - 3, top + height + 2)
  assert changed.sum() == 2 * (width + height + 10)


def test_of_many_boxes_those_of_the_highest_peaks_are_drawn(detector):
  anomaly_map = np.zeros((40, 60), np.float32)
  # Far enough apart that no frame hides another: one faint, two others.
  spots = {(6, 6): 0.6, (20, 30): 0.9, (32, 50): 0.8}
  for place, value in spots.items():
    anomaly_map[place] = value
  drawing = stream.Drawing(detector, anomaly_map, 0.9, (40, 60))
  assert len(drawing.regions) == 3
  image = np.full((40, 60, 3), 40, np.uint8)

  def overlay(**options):
    strips = drawing.overlay(lambda top, bottom: image[top:bottom], **options)
    return np.concatenate(list(strips)).astype(int)

  plain, every = overlay(), overlay(with_boxes=True)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(stream, '_BOXES', 2)
    highest = overlay(with_boxes=True)
  changed = (highest != plain).any(axis=2)
  assert changed[14:].any() and not changed[:14].any()
  np.testing.assert_array_equal(highest[14:], every[14:])


def test_broken_files_are_told_counted_and_passed_over(
  detector, tmp_path, caplog
):
  for index in range(9):
    write_image(tmp_path / 'in' / f'{index}.png')
  (tmp_path / 'in' / '3.png').write_bytes(b'')
  (tmp_path / 'in' / '4.png').write_bytes(b'no image')
  good = (tmp_path / 'in' / '5.png').read_bytes()
  (tmp_path / 'in' / '5.png').write_bytes(good[:-30])
  (tmp_path / 'in' / '9.png').symlink_to(tmp_path / 'nowhere')
  with caplog.at_level('WARNING', 'draem_jax'):
    assert run(detector, tmp_path / 'in', tmp_path / 'out') == 4
  for name in ('3.png', '4.png', '5.png', '9.png'):
    assert sum(name in message for message in caplog.messages) == 1
  files = [row['file'] for row in rows(tmp_path / 'out')]
  assert files == ['0.png', '1.png', '2.png', '6.png', '7.png', '8.png']
  # Mended, it is scored the next time, and the others are not again.
  (tmp_path / 'in' / '5.png').write_bytes(good)
  (tmp_path / 'in' / '0.png').unlink()
  assert run(detector, tmp_path / 'in', tmp_path / 'out') == 3
  files = [row['file'] for row in rows(tmp_path / 'out')]
  assert files[-1] == '5.png' and len(files) == 7


def test_only_broken_files(detector, tmp_path):
  (tmp_path / 'in').mkdir()
  (tmp_path / 'in' / 'a.png').write_bytes(b'no image')
  assert run(detector, tmp_path / 'in', tmp_path / 'out') == 1
  assert rows(tmp_path / 'out') == []


def test_scores_do_not_depend_on_where_a_run_was_cut(detector, tmp_path):
  for index in range(7):
    write_image(tmp_path / 'in' / f'{index}.png', square=(index, index, 20))
  run(detector, tmp_path / 'in', tmp_path / 'out')
  expected = (tmp_path / 'out' / 'predictions.csv').read_bytes()
  lines = expected.splitlines(keepends=True)
  (tmp_path / 'out' / 'predictions.csv').write_bytes(
    b''.join(lines[:4]) + lines[4][:9]
  )
  run(detector, tmp_path / 'in', tmp_path / 'out')
  assert (tmp_path / 'out' / 'predictions.csv').read_bytes() == expected


def test_what_is_not_kept_is_read_again(detector, tmp_path, monkeypatch):
  for index, square in enumerate([None, (10, 20, 20), (3, 4, 5)]):
    write_image(tmp_path / 'in' / f'{index}.png', square=square)
  write_image(tmp_path / 'in' / '3.jpg', size=(90, 33), square=(50, 5, 20))
  run(detector, tmp_path / 'in', tmp_path / 'kept')
  monkeypatch.setattr(stream, '_KEPT', 40 * 60)  # Room for one of them.
  monkeypatch.setattr(stream, '_STRIP', 500)
  run(detector, tmp_path / 'in', tmp_path / 'again')
  kept, again = (
    {
      path.relative_to(tmp_path / name): path.read_bytes()
      for path in (tmp_path / name).rglob('*')
      if path.is_file()
    }
    for name in ('kept', 'again')
  )
  assert kept == again and len(kept) == 12


def test_a_file_that_changes_meanwhile_is_told(
  detector, tmp_path, monkeypatch, caplog
):
  monkeypatch.setattr(stream, '_KEPT', 0)
  for name in ('a.png', 'b.png', 'c.png'):
    write_image(tmp_path / 'in' / name)
  score_all = Detector.score_all

  def change(self, images):
    write_image(tmp_path / 'in' / 'a.png', square=(0, 0, 30))
    (tmp_path / 'in' / 'b.png').unlink(missing_ok=True)
    return score_all(self, images)

  monkeypatch.setattr(Detector, 'score_all', change)
  with caplog.at_level('WARNING', 'draem_jax'):
    assert run(detector, tmp_path / 'in', tmp_path / 'out') == 2
  assert sum('a.png has changed' in line for line in caplog.messages) == 1
  assert sum('b.png cannot be read' in line for line in caplog.messages) == 1
  assert [row['file'] for row in rows(tmp_path / 'out')] == ['c.png']


def test_a_peak_elsewhere_decides_for_every_strip(detector, monkeypatch):
  """Where no pixel passes, those that reach the score do, wherever they lie."""
  low = np.full((8, 8), 0.2, np.float32)
  low[6:, :3] = 0.45
  faint = detector.with_thresholds(image=0.3, pixel=0.3)
  faint.thresholds = Thresholds(0.3, 0.5, 'a test', 0.99, 0.9999)
  whole = faint.find_mask(low, 0.4)
  assert whole.any() and not whole[:6].any()
  for top in range(0, 8, 2):
    part = faint.find_mask(low[top : top + 2], 0.4, peak=float(low.max()))
    np.testing.assert_array_equal(part, whole[top : top + 2])


_LARGE = """
import contextlib, pathlib, resource, sys
import numpy as np
from redness import Redness
from draem_jax.data import png
from draem_jax.data.files import find_images
from draem_jax.detection import stream
from draem_jax.detection.detector import Detector
from draem_jax.detection.predictions import Predictions
from draem_jax.workdir.thresholds import Thresholds

folder = pathlib.Path(sys.argv[1])
detector = Detector(
  Redness(), {}, image_size=32, score_window=5, batch_size=4,
  thresholds=Thresholds(0.5, 0.5, 'a test', 0.99, 0.9999),
)

def score(name):
  found = find_images(str(folder / name))
  with contextlib.closing(Predictions(folder / f'out-{name}', {})) as table:
    assert stream.score_files(detector, found, table) == 0
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

for name, side, count in (('small', 64, 1), ('large', 4000, 1)):
  (folder / name).mkdir()
  for index in range(count):
    with open(folder / name / f'{index}.png', 'wb') as file:
      strip = np.full((side // 8, side, 3), 9, np.uint8)
      png.write(file, [strip] * 8)
stream._KEPT = 0
base = score('small')
print(base, score('large'))
"""


def test_memory_is_that_of_one_large_picture(tmp_path):
  """One of 16 million pixels, of which whatever is made of it is a strip."""
  here = pathlib.Path(__file__).parent
  environment = {'XLA_FLAGS': '', 'PYTHONPATH': str(here)}
  done = subprocess.run(
    [sys.executable, '-c', _LARGE, str(tmp_path)],
    env=os.environ | environment,
    capture_output=True,
    text=True,
    check=True,
  )
  base, large = map(int, done.stdout.split())
  # Decoded it takes 61 MB, and its map would take as much.
  assert large - base < 61 + 80


def test_images_of_few_of_their_16_bits_are_told_once(
  detector, tmp_path, caplog
):
  levels = np.linspace(100, 4000, 1200).astype(np.uint16).reshape(30, 40)
  (tmp_path / 'in').mkdir()
  for index in range(3):
    Image.fromarray(levels).save(tmp_path / 'in' / f'{index}.png')
  write_image(tmp_path / 'in' / '3.png')
  with caplog.at_level('WARNING', 'draem_jax'):
    run(detector, tmp_path / 'in', tmp_path / 'out')
  (line,) = [line for line in caplog.messages if '16 bits' in line]
  assert line.startswith('3 images of 16 bits use at most 12')
  assert '0.png' in line


class Watch:
  """How many images are under way, from reading until their row."""

  def __init__(self, monkeypatch, delay):
    self.lock = threading.Lock()
    self.now = self.most = 0
    read, add = encoded.open_picture, Predictions.add
    write = Predictions.write_pictures

    def reading(path):
      self.count(1)
      return read(path)

    def adding(*args, **kwargs):
      self.count(-1)
      return add(*args, **kwargs)

    def writing(*args, **kwargs):
      time.sleep(delay)
      return write(*args, **kwargs)

    monkeypatch.setattr(encoded, 'open_picture', reading)
    monkeypatch.setattr(Predictions, 'add', adding)
    monkeypatch.setattr(Predictions, 'write_pictures', writing)

  def count(self, change):
    with self.lock:
      self.now += change
      self.most = max(self.most, self.now)


def test_only_some_batches_are_under_way(detector, tmp_path, monkeypatch):
  write_image(tmp_path / 'in' / '000.png')
  for index in range(1, 120):
    (tmp_path / 'in' / f'{index:03}.png').symlink_to('000.png')
  watch = Watch(monkeypatch, delay=0.005)
  run(detector, tmp_path / 'in', tmp_path / 'out')
  assert len(rows(tmp_path / 'out')) == 120
  assert watch.now == 0
  # More than the batch that is scored, or nothing is read ahead; and not more
  # the more images there are.
  assert detector.batch_size < watch.most <= 6 * detector.batch_size


def test_a_full_disk_ends_the_run_and_names_the_file(
  detector, tmp_path, monkeypatch
):
  for index in range(20):
    write_image(tmp_path / 'in' / f'{index:02}.png')
  write = png.write
  calls = iter(range(100))

  def fail_later(file, strips):
    if next(calls) >= 10:
      raise OSError(errno.ENOSPC, 'No space left on device')
    return write(file, strips)

  monkeypatch.setattr(png, 'write', fail_later)
  with pytest.raises(OSError, match='No space left') as error:
    run(detector, tmp_path / 'in', tmp_path / 'out')
  assert str(tmp_path / 'out') in error.value.filename
  for row in rows(tmp_path / 'out'):
    assert (tmp_path / 'out' / 'maps' / row['file']).exists()
  monkeypatch.undo()
  assert run(detector, tmp_path / 'in', tmp_path / 'out') == 0
  assert len(rows(tmp_path / 'out')) == 20


def test_lines_where_there_is_no_terminal(
  detector, tmp_path, caplog, monkeypatch
):
  monkeypatch.setattr(stream, '_LINE_EVERY', 0)
  for index in range(3):
    write_image(tmp_path / 'in' / f'{index}.png', square=(5, 5, 30))
  with caplog.at_level('INFO', 'draem_jax'):
    run(detector, tmp_path / 'in', tmp_path / 'out')
  assert 'scoring 3 of 3 images' in caplog.messages[0]
  assert caplog.messages[-1].startswith('3 of 3 images, ')
  assert '3 anomalous, 0 unreadable' in caplog.messages[-1]
