import copy
import json
import pathlib
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest
from small import random_images
from untrained import write_workdir

from draem_jax import import_torch
from draem_jax.detection.detector import Detector
from draem_jax.errors import UserError
from draem_jax.export import stablehlo, torch
from draem_jax.torch_weights import convert
from draem_jax.workdir import storage

GOLDEN = pathlib.Path(__file__).parent / 'golden'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return write_workdir(tmp_path_factory.mktemp('export') / 'run')


@pytest.fixture(scope='module')
def detector(run):
  return Detector.load(run)


def call(module, **flags):
  return subprocess.run(
    [sys.executable, '-m', f'draem_jax.{module}']
    + [f'--{name}={value}' for name, value in flags.items()],
    capture_output=True,
    text=True,
    timeout=120,
  )


def assert_equal(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, dict(expected))


@pytest.mark.parametrize('channel_order', convert.CHANNEL_ORDERS)
def test_torch_files_hold_the_same_bits(tmp_path, detector, channel_order):
  torch.write(detector, tmp_path, channel_order=channel_order, category='pens')
  found = convert.load_torch_checkpoint(
    tmp_path / 'DRAEM_pens_.pckl',
    tmp_path / 'DRAEM_pens__seg.pckl',
    channel_order=channel_order,
  )
  assert_equal(found, detector.variables)


def test_torch_wants_both_networks(tmp_path, detector):
  alone = copy.copy(detector)
  params = detector.variables['params']
  alone.variables = {'params': {'reconstructive': params['reconstructive']}}
  with pytest.raises(UserError, match='needs a discriminative network'):
    torch.write(alone, tmp_path / 'out', channel_order='bgr', category='pens')
  assert not list(tmp_path.iterdir())


def test_a_published_pair_goes_through_a_workdir_and_back(tmp_path):
  pair = {
    'reconstructive': GOLDEN / 'DRAEM_golden_part_.pckl',
    'discriminative': GOLDEN / 'DRAEM_golden_part__seg.pckl',
  }
  imported = call('import_torch', workdir=tmp_path / 'run', **pair)
  assert imported.returncode == 0, imported.stderr
  expected = convert.load_torch_checkpoint(**pair)
  assert_equal(Detector.load(tmp_path / 'run').variables, expected)

  exported = call(
    'export', workdir=tmp_path / 'run', format='torch', output=tmp_path / 'out'
  )
  assert exported.returncode == 0, exported.stderr
  paths = (
    tmp_path / 'out' / 'DRAEM_model_.pckl',
    tmp_path / 'out' / 'DRAEM_model__seg.pckl',
  )
  assert all(str(path) in exported.stdout for path in paths)
  assert_equal(convert.load_torch_checkpoint(*paths), expected)


def test_an_import_that_was_killed_is_begun_anew(tmp_path, monkeypatch):
  variables = convert.load_torch_checkpoint(
    GOLDEN / 'DRAEM_golden_part_.pckl', GOLDEN / 'DRAEM_golden_part__seg.pckl'
  )

  def kill(*unused):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(storage, 'write_json', kill)
    with pytest.raises(KeyboardInterrupt):
      import_torch.write_workdir(variables, tmp_path)
  half = tmp_path / 'checkpoints' / '0.orbax-checkpoint-tmp'
  half.mkdir()
  import_torch.write_workdir(variables, tmp_path)
  assert not half.exists()
  assert Detector.load(tmp_path).score_window == 21
  with pytest.raises(UserError, match='holds a run already'):
    import_torch.write_workdir(variables, tmp_path)


@pytest.mark.parametrize('channel_order', convert.CHANNEL_ORDERS)
def test_stablehlo_is_the_detector(tmp_path, detector, channel_order):
  pytest.importorskip('flatbuffers', reason='JAX saves programs with it')
  lines = stablehlo.write(
    detector, tmp_path, channel_order=channel_order, category='pens'
  )
  assert 'largest difference' in lines[-1]
  assert float(lines[-1].split()[-1]) < 1e-5
  exported = jax.export.deserialize(
    bytearray((tmp_path / 'detector.stablehlo').read_bytes())
  )
  assert exported.platforms == ('cpu', 'cuda', 'tpu')
  for count, height, width in ((1, 32, 32), (3, 90, 61)):
    images = random_images(count, 96)[:, :height, :width]
    expected = detector(images)
    if channel_order == 'bgr':
      images = images[..., ::-1]
    anomaly_map, score = exported.call(images)
    np.testing.assert_allclose(anomaly_map, expected.anomaly_map, 0, 1e-5)
    np.testing.assert_allclose(score, expected.score, 0, 1e-5)
  description = json.loads((tmp_path / 'detector.json').read_text())
  assert description['channel_order'] == channel_order
  assert description['image_size'] == 32
  assert description['image_threshold'] == detector.thresholds.image
  assert description['pixel_threshold'] == detector.thresholds.pixel


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    ({'format': 'caffe'}, 'value should be one of <torch|stablehlo|onnx>'),
    ({'workdir': 'nowhere'}, 'nowhere/config.json does not exist'),
    ({'output': __file__}, 'is a file: name a folder'),
    ({'output': ''}, '--output is missing'),
  ],
)
def test_mistakes_are_one_line(run, tmp_path, flags, message):
  given = {'workdir': run, 'format': 'torch', 'output': tmp_path} | flags
  found = call('export', **given)
  assert found.returncode == 2
  assert message in found.stderr
  assert len(found.stderr.splitlines()) == 1
  assert not list(tmp_path.iterdir())
