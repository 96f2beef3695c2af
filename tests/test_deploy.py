"""The page on deployment, its examples and its benchmark."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from small import random_images
from untrained import write_workdir

from benchmarks import deploy
from draem_jax import command
from draem_jax.detection.detector import Detector
from draem_jax.export import onnx, stablehlo

DOCS = pathlib.Path(__file__).parents[1] / 'docs'
EXAMPLES = sorted((DOCS / 'examples').glob('*.py'))
# What writes what each example runs.
WRITERS = {
  'onnxruntime_consumer': onnx,
  'openvino_consumer': onnx,
  'stablehlo_consumer': stablehlo,
}


@pytest.mark.parametrize('example', EXAMPLES, ids=lambda path: path.stem)
def test_the_page_shows_the_example(example):
  page = (DOCS / 'deploy.md').read_text()
  assert f'```python\n{example.read_text()}```' in page
  assert f'(examples/{example.name})' in page


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
  """Its threshold lies between the scores of the photos."""
  detector = Detector.load(write_workdir(tmp_path_factory.mktemp('run')))
  scores = detector(photos()).score
  assert np.ptp(scores) > 1e-3
  return detector.with_thresholds(image=float(scores.mean()))


def photos():
  return random_images(2, 64)[:, :50, :41]


@pytest.fixture(scope='module')
def exported(detector, tmp_path_factory):
  """Writes a format once, and returns the folder."""
  folder = tmp_path_factory.mktemp('exported')

  def write(writer):
    if not (folder / program_file(writer)).exists():
      writer.write(detector, folder, channel_order='rgb', category='pens')
    return folder / program_file(writer)

  return write


def program_file(writer):
  return onnx.FILE if writer is onnx else stablehlo.PROGRAM_FILE


@pytest.mark.parametrize('example', EXAMPLES, ids=lambda path: path.stem)
def test_the_example_gives_the_verdict(example, detector, exported, tmp_path):
  program = exported(WRITERS[example.stem])
  expected = detector(photos())
  assert expected.is_anomalous.sum() == 1
  for index, photo in enumerate(photos()):
    Image.fromarray(photo).save(tmp_path / 'photo.png')
    found = subprocess.run(
      [sys.executable, example, program, 'photo.png', 'heat_map.png'],
      capture_output=True,
      text=True,
      cwd=tmp_path,
      env=os.environ | {'CI': 'true'},  # Keeps OpenVINO's report at home.
    )
    assert found.returncode == 0, found.stderr
    verdict = 'anomalous' if expected.is_anomalous[index] else 'good'
    assert found.stdout.startswith(f'score {expected.score[index]:.4f}')
    assert found.stdout.endswith(f': {verdict}\n')
    overlay = np.asarray(Image.open(tmp_path / 'heat_map.png'))
    red = expected.anomaly_map[index][..., None]
    # One level for rounding.
    painted = photo + red * (np.array([255, 0, 0]) - photo)
    np.testing.assert_allclose(overlay, painted, rtol=0, atol=1)


def test_the_benchmark_measures_every_runtime(capsys, monkeypatch):
  monkeypatch.setenv('CI', 'true')  # Keeps OpenVINO's report at home.
  monkeypatch.setattr(command, 'use_compilation_cache', lambda: None)
  jax.config.update('jax_disable_most_optimizations', True)
  try:
    deploy.main(
      ['--size=32', '--widths', '4', '2', '--batch', '1', '3', '--rounds=1']
      + ['--seconds=0']
    )
  finally:
    jax.config.update('jax_disable_most_optimizations', False)
  lines = capsys.readouterr().out.splitlines()
  names = [line.split('|')[1].strip() for line in lines if line[:1] == '|'][2:]
  assert names == [deploy.DETECTOR, deploy.STABLEHLO, *onnx.RUNTIMES]
  record = json.loads(lines[-1])
  assert record['versions'].keys() >= {'jax', 'onnxruntime', 'openvino'}
  assert [case['batch'] for case in record['results']['cases']] == [1, 3]
  for case in record['results']['cases']:
    assert all(row['milliseconds'] > 0 for row in case['rows'])
