"""What a command says of the devices that it wants and does not get."""

import logging
import os
import subprocess
import sys

import jax
import pytest

from draem_jax import devices


@pytest.mark.parametrize(
  ('platform', 'words'),
  [
    ('cuda', "pip install 'jax[cuda13]'"),
    ('tpu', "pip install 'jax[tpu]'"),
    ('abacus', 'install what it needs'),
  ],
)
def test_a_device_that_is_not_there_is_named(tmp_path, platform, words):
  (tmp_path / 'a.png').touch()
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'draem_jax.predict', f'--workdir={tmp_path}'),
      *(f'--images={tmp_path}', f'--output={tmp_path / "out"}'),
    ],
    env=os.environ | {'JAX_PLATFORMS': platform},
    capture_output=True,
    text=True,
    check=False,
  )
  if platform != 'abacus' and 'config.json does not exist' in done.stderr:
    pytest.skip(f'this machine has {platform}')
  assert done.returncode == 2 and not done.stdout
  line = done.stderr.splitlines()[-1]
  assert line.startswith(f'error: JAX_PLATFORMS={platform}: JAX finds no such')
  assert words in line and 'Traceback' not in done.stderr


@pytest.mark.parametrize(
  ('environment', 'gpu', 'said'),
  [
    ({}, True, True),
    ({}, False, False),
    ({'JAX_PLATFORMS': 'cpu'}, True, False),
    ({'CUDA_VISIBLE_DEVICES': ''}, True, False),
  ],
)
def test_a_gpu_that_is_not_used_is_mentioned(
  monkeypatch, caplog, environment, gpu, said
):
  if jax.default_backend() != 'cpu':
    pytest.skip('JAX uses what this machine has')
  caplog.set_level(logging.INFO)
  for name in ('JAX_PLATFORMS', 'CUDA_VISIBLE_DEVICES'):
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  monkeypatch.setattr(devices, '_has_gpu', lambda: gpu)
  devices.find()
  assert ('has an NVIDIA GPU that JAX does not see' in caplog.text) is said
