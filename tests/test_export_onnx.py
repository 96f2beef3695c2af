import sys

import numpy as np
import pytest
from small import random_images
from untrained import write_workdir

from draem_jax import convert
from draem_jax.detector import Detector
from draem_jax.errors import UserError
from draem_jax.export import onnx as export_onnx

# Batches of other numbers and sizes than any that it was traced or tried with.
SHAPES = [(1, 32, 32), (3, 90, 61), (2, 20, 40)]


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  return Detector.load(write_workdir(folder, thresholds=(0.25, 0.0)))


@pytest.fixture(scope='module', params=convert.CHANNEL_ORDERS)
def channel_order(request):
  return request.param


@pytest.fixture(scope='module')
def written(detector, channel_order, tmp_path_factory):
  """The file, and what the writer says."""
  pytest.importorskip('jax2onnx', reason='it writes ONNX files')
  folder = tmp_path_factory.mktemp('onnx')
  lines = export_onnx.write(
    detector, folder, channel_order=channel_order, category='pens'
  )
  assert [path.name for path in folder.iterdir()] == ['detector.onnx']
  return folder / 'detector.onnx', lines


@pytest.mark.parametrize(
  ('package', 'runtime'),
  [('onnxruntime', 'ONNX Runtime'), ('openvino', 'OpenVINO')],
)
def test_runtimes_agree_with_the_detector(
  detector, channel_order, written, package, runtime
):
  pytest.importorskip(package)
  path, lines = written
  (line,) = (line for line in lines if runtime in line)
  assert float(line.split()[-1]) < 1e-5
  run = export_onnx.RUNTIMES[runtime](path.read_bytes())
  for count, height, width in SHAPES:
    images = random_images(count, 96)[:, 3 : 3 + height, 1 : 1 + width]
    expected = detector(images)
    if channel_order == 'bgr':
      images = images[..., ::-1]
    anomaly_map, score = run(np.ascontiguousarray(images))
    assert anomaly_map.dtype == score.dtype == np.float32
    np.testing.assert_allclose(anomaly_map, expected.anomaly_map, 0, 1e-5)
    np.testing.assert_allclose(score, expected.score, 0, 1e-5)
    assert anomaly_map.std() > 1e-3


def test_the_file_says_what_it_takes_gives_and_decides_by(
  detector, channel_order, written
):
  onnxruntime = pytest.importorskip('onnxruntime')
  session = onnxruntime.InferenceSession(written[0])
  (images,) = session.get_inputs()
  assert (images.name, images.type) == ('images', 'tensor(uint8)')
  assert images.shape == ['b', 'h', 'w', 3]
  outputs = {each.name: each.shape for each in session.get_outputs()}
  assert outputs == {'anomaly_map': ['b', 'h', 'w'], 'score': ['b']}
  metadata = session.get_modelmeta().custom_metadata_map
  assert float(metadata['image_threshold']) == detector.thresholds.image
  assert float(metadata['pixel_threshold']) == detector.thresholds.pixel
  assert metadata['channel_order'] == channel_order
  assert (metadata['category'], metadata['score_window']) == ('pens', '5')


def test_a_missing_exporter_is_named(detector, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'jax2onnx', None)
  with pytest.raises(UserError, match='jax2onnx: pip install jax2onnx'):
    export_onnx.write(detector, tmp_path, channel_order='rgb', category='pens')
  assert not list(tmp_path.iterdir())
