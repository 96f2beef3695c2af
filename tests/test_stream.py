import contextlib
import csv
import errno
import threading
import time

import numpy as np
import pytest
from PIL import Image
from redness import Redness

from draem_jax.data import images
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


def run(detector, folder, output):
  with contextlib.closing(Predictions(output, {})) as predictions:
    return stream.score_files(detector, find_images(str(folder)), predictions)


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
  overlay = np.asarray(Image.open(tmp_path / 'out' / 'overlays/x/a.png'))
  expected = panels.heat_map_overlay(image, found.anomaly_map[0])
  expected = panels.draw_outline(expected, found.mask[0])
  np.testing.assert_array_equal(overlay, expected)
  with Image.open(tmp_path / 'out' / 'maps' / 'x' / 'a.bmp.png') as levels:
    assert levels.size == (33, 70)


def test_strips_do_not_show(detector, tmp_path, monkeypatch):
  write_image(tmp_path / 'in' / 'a.png', square=(10, 20, 20))
  run(detector, tmp_path / 'in', tmp_path / 'whole')
  monkeypatch.setattr(stream, '_STRIP', 7 * 60)
  run(detector, tmp_path / 'in', tmp_path / 'strips')
  whole, strips = (
    (tmp_path / name / 'overlays' / 'a.png').read_bytes()
    for name in ('whole', 'strips')
  )
  assert whole == strips


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


class Watch:
  """How many images are under way, from reading until their row."""

  def __init__(self, monkeypatch, delay):
    self.lock = threading.Lock()
    self.now = self.most = 0
    read, add = images.read_image, Predictions.add
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

    monkeypatch.setattr(images, 'read_image', reading)
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
  encode = images.encode_png
  calls = iter(range(100))

  def fail_later(picture):
    if next(calls) >= 10:
      raise OSError(errno.ENOSPC, 'No space left on device')
    return encode(picture)

  monkeypatch.setattr(images, 'encode_png', fail_later)
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
