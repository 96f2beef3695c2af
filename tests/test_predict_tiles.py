"""Pictures that are scored by tiles, from files to predictions and answers."""

import base64
import contextlib
import csv
import io
import json

import numpy as np
import pytest
from PIL import Image
from redness import Redness
from serving import running

from draem_jax.data import images
from draem_jax.data.files import find_images
from draem_jax.detection import stream, tiles
from draem_jax.detection.detector import Detector
from draem_jax.detection.predictions import Predictions
from draem_jax.pictures import panels, shrink
from draem_jax.workdir.thresholds import Thresholds


def make_detector(resolution=0, batch_size=4):
  return Detector(
    Redness(),
    {},
    image_size=32,
    score_window=5,
    thresholds=Thresholds(0.5, 0.5, '8 good images', 0.99, 0.9999),
    batch_size=batch_size,
    resolution=resolution,
  )


def write_image(path, size, squares=()):
  image = np.full((*size, 3), 40, np.uint8)
  image[::3, ::2, 2] = 90
  for top, left, side in squares:
    image[top : top + side, left : left + side] = (255, 0, 0)
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(image).save(path)
  return image


def run(detector, folder, output, **options):
  found = find_images(str(folder))
  with contextlib.closing(Predictions(output, {})) as predictions:
    broken = stream.score_files(detector, found, predictions, **options)
    predictions.write_regions()
  with (output / 'predictions.csv').open(newline='') as file:
    rows = {row['file']: row for row in csv.DictReader(file)}
  return broken, rows


@pytest.fixture
def photos(tmp_path):
  folder = tmp_path / 'in'
  write_image(folder / 'strip.png', (40, 500), [(10, 20, 10), (28, 480, 12)])
  write_image(folder / 'clean.png', (90, 70))
  write_image(folder / 'small.png', (20, 25), [(5, 5, 9)])
  (folder / 'broken.png').write_bytes(b'no picture')
  return folder


@pytest.mark.parametrize('resolution', [0, (48, 96)])
@pytest.mark.parametrize('in_memory', [0, 1 << 20])
def test_what_is_written_is_what_the_detector_says(
  photos, tmp_path, monkeypatch, resolution, in_memory
):
  monkeypatch.setattr(tiles, '_IN_MEMORY', in_memory)
  monkeypatch.setattr(stream, '_STRIP', 1000)
  detector, output = make_detector(resolution), tmp_path / 'out'
  broken, rows = run(detector, photos, output, with_boxes=True)
  assert broken == 1 and set(rows) == {'strip.png', 'clean.png', 'small.png'}
  for name, row in rows.items():
    image = images.read_image(photos / name)
    found = detector(image)
    assert np.float32(row['score']) == found.score[0]
    assert (row['is_anomalous'] == 'true') == found.is_anomalous[0]
    assert float(row['area']) == pytest.approx(found.mask.mean(), rel=1e-5)
    levels = np.asarray(Image.open(output / 'maps' / name))
    np.testing.assert_allclose(levels / 65535, found.anomaly_map[0], 0, 1e-5)
    overlay = np.asarray(Image.open(output / 'overlays' / name))
    expected = panels.heat_map_overlay(image, found.anomaly_map[0])
    if found.is_anomalous[0]:
      expected = panels.draw_outline(expected, found.mask[0])
    boxes = [region.box for region in found.regions[0]]
    panels.draw_boxes(expected, boxes)
    np.testing.assert_array_equal(overlay, expected)
  table = json.loads((output / 'predictions.json').read_bytes())
  if resolution == 0:
    boxes = [one['bbox'] for one in table['annotations'] if one['area'] < 150]
    assert [20, 10, 10, 10] in boxes and [480, 28, 12, 12] in boxes
  # No file of a map is left behind.
  assert {path.name for path in output.iterdir()} == {
    'maps',
    'overlays',
    'predict.json',
    'predictions.csv',
    'predictions.json',
    'regions.jsonl',
  }


def test_overlays_are_bounded_and_defects_stay_visible(
  photos, tmp_path, monkeypatch
):
  whole, strips = tmp_path / 'whole', tmp_path / 'strips'
  run(make_detector(), photos, whole, overlay_side=64, with_boxes=True)
  monkeypatch.setattr(stream, '_STRIP', 600)
  run(make_detector(), photos, strips, overlay_side=64, with_boxes=True)
  for name in ('strip', 'clean', 'small'):
    one, other = (
      (folder / f'overlays/{name}.png').read_bytes()
      for folder in (whole, strips)
    )
    assert one == other
  overlay = np.asarray(Image.open(whole / 'overlays/strip.png'))
  assert overlay.shape == (5, 63, 3)  # Blocks of eight.
  found = make_detector()(images.read_image(photos / 'strip.png'))
  peaks = shrink.peaks(found.mask[0], 8)
  assert peaks[1, 2] and peaks.sum() < 20
  assert overlay[1, 2, 0] > 120 > overlay[2, 30, 0]
  with Image.open(whole / 'maps/strip.png') as levels:
    assert levels.size == (500, 40)
  with Image.open(whole / 'overlays/small.png') as small:
    assert small.size == (25, 20)


@pytest.mark.parametrize('shape', [(64, 48), (7, 5), (33, 100)])
@pytest.mark.parametrize('block', [1, 2, 5, 40])
def test_blocks_are_means_and_peaks(shape, block):
  rng = np.random.default_rng(0)
  picture = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
  anomaly_map = rng.uniform(size=shape).astype(np.float32)
  means, peaks = (
    shrink.means(picture, block),
    shrink.peaks(anomaly_map, block),
  )
  rows, columns = (range(0, length, block) for length in shape)
  assert means.shape[:2] == peaks.shape == (len(rows), len(columns))
  for i, top in enumerate(rows):
    for j, left in enumerate(columns):
      part = slice(top, top + block), slice(left, left + block)
      mean = picture[part].astype(float).mean(axis=(0, 1))
      assert (np.abs(means[i, j] - mean) <= 0.5).all()
      assert peaks[i, j] == anomaly_map[part].max()
  side = max(shape) // block + 1
  assert max(peaks.shape) <= side
  assert shrink.factor(shape, None) == shrink.factor(shape, 0) == 1


def test_networks_that_fail_stop_all_rather_than_count_as_broken(
  photos, tmp_path, monkeypatch
):
  def fail(*unused):
    raise RuntimeError('out of memory')

  monkeypatch.setattr(Detector, 'scan', fail)
  with pytest.raises(RuntimeError, match='out of memory'):
    run(make_detector(), photos, tmp_path / 'out')


@pytest.fixture(scope='module')
def client():
  with running(detector=make_detector(batch_size=1)) as client:
    client.service.batcher.warm_up()
    yield client


def test_a_service_answers_as_the_detector(client, photos, monkeypatch):
  monkeypatch.setattr(tiles, '_IN_MEMORY', 1000)
  names = ['strip.png', 'clean.png', 'broken.png', 'small.png']
  files = [(name, (photos / name).read_bytes()) for name in names]
  before = client.service.batcher.num_pictures
  status, answer = client.predict(*files, query='?map=100')
  assert status == 200 and len(answer['results']) == 4
  assert 'cannot be read' in answer['results'][2]['error']
  for result in answer['results']:
    if 'error' in result:
      continue
    found = make_detector()(images.read_image(photos / result['file']))
    assert result['score'] == pytest.approx(float(found.score[0]), abs=1e-7)
    assert result['is_anomalous'] == found.is_anomalous[0]
    assert len(result['regions']) == len(found.regions[0])
    levels = np.asarray(Image.open(io.BytesIO(base64.b64decode(result['map']))))
    assert max(levels.shape) <= 100
    np.testing.assert_allclose(
      levels.max() / 65535, found.anomaly_map.max(), 0, 1e-4
    )
  assert client.service.batcher.num_pictures == before + 3


def test_a_device_that_fails_is_told(client, photos, monkeypatch):
  def fail(*unused):
    raise RuntimeError('RESOURCE_EXHAUSTED: out of memory\nallocating')

  content = (photos / 'clean.png').read_bytes()
  with monkeypatch.context() as patch:
    patch.setattr(Detector, 'scan', fail)
    status, answer = client.predict(('a.png', content))
  assert (status, answer['error']) == (500, 'the service failed: see its log')
  assert client.predict(('a.png', content))[0] == 200
