"""`launch/slurm.sh` on a Slurm of two nodes: to agree, stop, go on and fail."""

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest
import slurm as slurm_lib
from PIL import Image
from small import random_images

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = 'launch/slurm.sh'
STEPS = 60


pytestmark = pytest.mark.clusters


@pytest.fixture(scope='module')
def slurm():
  with slurm_lib.running() as running:
    yield running


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder of data, and what every run here has in common."""
  folder = tmp_path_factory.mktemp('slurm')
  write_category(folder / 'data/pens')
  return folder


def write_category(folder):
  for split, count in (('train/good', 6), ('test/good', 2), ('test/bent', 2)):
    (folder / split).mkdir(parents=True)
    for index, image in enumerate(random_images(count, seed=count)):
      Image.fromarray(image).save(folder / split / f'{index}.png')


def flags(place):
  fields = {
    'data.tfds_dir': place / 'tfds',
    'data.textures': place / 'data/pens/train',
    'image_size': 32,
    'batch_size': 4,
    'num_steps': STEPS,
    'learning_rate': 1e-3,
    'model.reconstructive_width': 2,
    'model.discriminative_width': 2,
    'log_every': 1,
    'checkpoint_every': 1000,
    'panel_every': 1000,
  }
  return [f'--config.{name}={value}' for name, value in fields.items()]


def environment(place, workdir):
  return {
    'WORKDIR': str(workdir),
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': '',
    'JAX_COMPILATION_CACHE_DIR': os.environ.get(
      'JAX_COMPILATION_CACHE_DIR', str(place / 'cache')
    ),
  }


@pytest.fixture(scope='module')
def whole(place):
  """The folder of a run that one process makes, and nobody stops."""
  workdir = place / 'whole'
  subprocess.run(
    [
      *(sys.executable, '-m', 'draem_jax.main', f'--workdir={workdir}'),
      '--config=configs/mvtec.py:pens,release',
      f'--config.data.dir={place / "data"}',
      *flags(place),
    ],
    cwd=ROOT,
    env=os.environ | environment(place, workdir),
    check=True,
    capture_output=True,
  )
  return workdir


def lines(workdir):
  path = workdir / 'metrics.jsonl'
  if not path.exists():
    return []
  return [json.loads(line) for line in path.read_text().splitlines()]


def submit(slurm, place, workdir, log, *options):
  return slurm.submit(
    *(*options, SCRIPT, place / 'data', 'pens,release'),
    *flags(place),
    log=log,
    **environment(place, workdir),
  )


def wait_for_steps(slurm, job, workdir, log):
  while not lines(workdir):
    slurm.wait(job, log, 'PENDING', 'CONFIGURING', 'RUNNING')
    time.sleep(0.05)


def test_two_nodes_agree_with_one(slurm, place, whole):
  workdir, log = place / 'two', place / 'two.log'
  job = submit(slurm, place, workdir, log, '--nodes=2')
  (found,) = slurm.wait(job, log, 'COMPLETED', 'FAILED')
  text = slurm_lib.read(log)
  assert found['ExitCode'] == '0:0' and found['NodeList'] == 'n[1-2]', text
  assert 'on 2 x cpu' in text and text.count('| pens') == 1
  two, one = lines(workdir), lines(whole)
  assert [line['step'] for line in two] == [line['step'] for line in one]
  # Adam's first step, the sign of the gradient, blows rounding up.
  for ours, theirs, rtol in zip(two, one, (1e-5, 1e-2), strict=False):
    for name in ('loss', 'l2', 'ssim', 'focal'):
      np.testing.assert_allclose(ours[name], theirs[name], rtol, err_msg=name)
  assert (workdir / 'results.json').exists()


def test_a_signal_from_slurm_saves(slurm, place):
  workdir, log = place / 'signal', place / 'signal.log'
  job = submit(slurm, place, workdir, log)
  wait_for_steps(slurm, job, workdir, log)
  slurm.run('scancel', '--signal=TERM', job)
  (found,) = slurm.wait(job, log, 'FAILED', 'COMPLETED')
  assert found['ExitCode'] == '143:0' and found['Restarts'] == '0'
  (saved,) = os.listdir(workdir / 'checkpoints')
  assert 0 < int(saved) < STEPS
  assert f'stopped and saved at step {saved}' in slurm_lib.read(log)


def test_a_requeued_job_ends_in_the_same_bytes(slurm, place, whole):
  workdir, log = place / 'requeued', place / 'requeued.log'
  job = submit(slurm, place, workdir, log)
  wait_for_steps(slurm, job, workdir, log)
  # What Slurm does by itself before the time limit.
  slurm.run('scancel', '--batch', '--signal=USR1', job)
  while slurm.jobs(job)[0]['Restarts'] == '0':
    time.sleep(0.1)
  # Slurm would let it wait for two minutes. A node takes no start that was
  # granted in the second of the cancellation for a new one.
  slurm.wait(job, log, 'PENDING')
  slurm.run('scontrol', 'update', f'jobid={job}', 'StartTime=now+2seconds')
  (found,) = slurm.wait(job, log, 'COMPLETED', 'FAILED')
  text = slurm_lib.read(log)
  assert found['ExitCode'] == '0:0' and found['Restarts'] == '1', text
  assert 'queued again' in text and 'going on from' in text
  for name in ('predictions.csv', 'results.json', 'thresholds.json'):
    assert (workdir / name).read_bytes() == (whole / name).read_bytes()


def test_a_job_whose_store_is_out_of_reach_is_queued_again(slurm, place):
  log = place / 'bucket.log'
  job = slurm.submit(
    *(SCRIPT, place / 'data', 'pens,release', *flags(place)),
    log=log,
    **environment(place, 's3://bucket/run'),
    AWS_ENDPOINT_URL='http://127.0.0.1:1',
    AWS_ACCESS_KEY_ID='key',
    AWS_SECRET_ACCESS_KEY='secret',
  )
  deadline = time.monotonic() + 900
  while (found := slurm.jobs(job)[0])['Restarts'] == '0':
    text = slurm_lib.read(log)
    assert found['JobState'] not in ('COMPLETED', 'FAILED'), text
    assert time.monotonic() < deadline, text
    time.sleep(0.1)
  slurm.run('scancel', job)
  text = slurm_lib.read(log)
  assert 's3://bucket/run: it cannot be reached' in text
  assert 'queued again' in text


def test_an_array_of_categories_has_a_table_that_tells_of_failures(
  slurm, tmp_path, place
):
  for name in ('cups', 'pens', 'rags'):
    write_category(tmp_path / 'data' / name)
  broken = tmp_path / 'data/pens/train/good/3.png'
  broken.write_text('no picture')
  workdir, log = tmp_path / 'all', tmp_path / 'array-%a.log'
  job = slurm.submit(
    *('--array=1-3', SCRIPT, tmp_path / 'data', 'all,release'),
    # As many as all, so that nothing is compiled anew.
    *flags(place),
    log=log,
    **environment(place, workdir),
  )
  found = slurm.wait(job, log, 'COMPLETED', 'FAILED')
  statuses = {each['ArrayTaskId']: each['ExitCode'] for each in found}
  assert statuses == {'1': '0:0', '2': '2:0', '3': '0:0'}, slurm_lib.read(log)
  table = (workdir / 'results.md').read_text()
  assert '| cups' in table and '| rags' in table and '| pens' not in table
  (line,) = (line for line in table.splitlines() if line.startswith('- '))
  assert line.startswith('- pens failed: ') and str(broken) in line
  report = (workdir / 'report.html').read_text()
  assert 'pens failed: ' in report and 'href="cups/report.html"' in report
  for name in ('cups', 'rags'):
    assert (workdir / name / 'results.json').exists()
