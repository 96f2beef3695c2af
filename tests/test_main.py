"""The real command, shrunken: what it leaves, how it stops and goes on."""

import csv
import gzip
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from draem_jax.networks import models
from draem_jax.workdir import checkpoint, claim

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 60
FLAGS = (
  '--config=configs/demo.py',
  '--config.image_size=32',
  '--config.model.reconstructive_width=4',
  '--config.model.discriminative_width=2',
  '--config.batch_size=4',
  f'--config.num_steps={STEPS}',
  '--config.checkpoint_every=7',
  '--config.panel_every=1000',
  '--config.log_every=1',
)


def start(folder, cache, *flags):
  environment = os.environ | {
    'XLA_FLAGS': '',
    'JAX_PLATFORMS': 'cpu',
    # Compiled as it is for users.
    'JAX_DISABLE_MOST_OPTIMIZATIONS': 'false',
    'JAX_COMPILATION_CACHE_DIR': str(cache),
  }
  command = [sys.executable, '-m', 'draem_jax.main', f'--workdir={folder}']
  return subprocess.Popen(
    [*command, *flags],
    cwd=ROOT,
    env=environment,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )


def finish(folder, cache, *flags):
  process = start(folder, cache, *flags)
  out, err = process.communicate(timeout=600)
  return process.returncode, out, err


def wait_for_step(process, folder, step):
  path = folder / 'metrics.jsonl'
  while process.poll() is None:
    lines = path.read_text().splitlines() if path.exists() else []
    if len(lines) >= step:
      return
    time.sleep(0.005)
  raise AssertionError(process.communicate()[1])


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def whole(tmp_path_factory, cache):
  folder = tmp_path_factory.mktemp('whole') / 'run'
  # Others go on without the trace and end in the same bytes.
  status, out, err = finish(folder, cache, *FLAGS, '--config.profile_steps=2')
  assert status == 0, err
  return folder, out


def test_the_run_ends_with_a_table_and_the_pictures(whole):
  folder, out = whole
  assert '| demo ' in out and 'image AUROC' in out
  assert str(folder / 'figures') in out


def test_every_file_is_there(whole):
  folder, _ = whole
  found = json.loads((folder / 'results.json').read_text())
  for name in ('image_auroc', 'image_ap', 'pixel_auroc', 'pixel_ap', 'aupro'):
    assert 0 <= found[name] <= 1
  assert found['category'] == 'demo' and found['steps'] == STEPS
  timing = json.loads((folder / 'timing.json').read_text())
  assert timing['images_per_second'] > 0 and timing['train_seconds'] > 0
  assert 'cpu' in timing['device'].lower()
  assert not timing.keys() & found.keys()
  with (folder / 'predictions.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert rows[0].keys() == {'file', 'defect', 'score', 'is_anomalous'}
  assert all((folder / 'data' / 'demo' / row['file']).exists() for row in rows)
  for row in rows:
    panel = pathlib.Path(row['file']).relative_to('test')
    assert (folder / 'figures' / 'panels' / panel).exists()
  for name in ('curves', 'histogram', 'mistakes', 'simulated'):
    assert (folder / 'figures' / f'{name}.png').stat().st_size > 1000
  steps = [
    json.loads(line)['step']
    for line in (folder / 'metrics.jsonl').read_text().splitlines()
  ]
  assert steps == list(range(1, STEPS + 1))
  assert list((folder / 'tensorboard').glob('events*'))
  (trace,) = (folder / 'profile').rglob('*.trace.json.gz')
  with gzip.open(trace) as file:
    events = json.load(file)['traceEvents']
  traced = [e['args']['step_num'] for e in events if e.get('name') == 'train']
  assert traced == ['11', '12']


def test_stopped_while_loading_it_says_so_and_leaves(cache, tmp_path):
  process = start(tmp_path / 'run', cache, *FLAGS)
  assert process.stderr.readline().startswith('loading ')
  process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 128 + signal.SIGINT
  assert err.splitlines()[-2:] == [
    'stopping',
    'stopped: the same command goes on from there',
  ]


def test_stopped_and_killed_it_ends_in_the_same_bytes(whole, cache, tmp_path):
  folder = tmp_path / 'run'
  process = start(folder, cache, *FLAGS)
  wait_for_step(process, folder, 9)
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=100)
  assert process.returncode == 128 + signal.SIGTERM
  assert 'the same command goes on' in err and 'Traceback' not in err
  stopped = max(int(p.name) for p in (folder / 'checkpoints').iterdir())
  assert stopped % 7 or stopped > 9  # Saved because of the signal.

  process = start(folder, cache, *FLAGS)
  wait_for_step(process, folder, stopped + 12)
  process.kill()
  process.communicate()
  assert process.returncode == -signal.SIGKILL

  status, _, err = finish(folder, cache, *FLAGS)
  assert status == 0 and 'going on from' in err, err
  assert_same_run(folder, whole[0])


def assert_same_run(folder, expected):
  for name in ('predictions.csv', 'results.json', 'thresholds.json'):
    assert (folder / name).read_bytes() == (expected / name).read_bytes()
  ours, theirs = restore(folder), restore(expected)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def restore(folder):
  model = models.make(claim.read_config(folder))
  shapes = models.abstract_variables(model)
  return checkpoint.restore_variables(folder / 'checkpoints', shapes)


def test_another_config_is_refused_and_nothing_changes(whole, cache):
  folder, _ = whole
  before = (folder / 'config.json').read_bytes()
  status, _, err = finish(folder, cache, *FLAGS, '--config.seed=9')
  assert status == 2
  assert err.splitlines()[-1].startswith('error: ') and 'config.seed=9' in err
  assert 'Traceback' not in err
  assert (folder / 'config.json').read_bytes() == before


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    ((), '--config is missing'),
    (('--config=configs/none.py',), 'configs/none.py'),
    (('--config=configs/mvtec.py:bottle,fast',), "unknown preset 'fast'"),
    (('--config=configs/demo.py:best,small',), "preset 'best,small'"),
    (('--config=configs/demo.py', '--config.sed=1'), '--config.sed'),
    (('--config=configs/demo.py', '--config.image_size=100'), 'take 96'),
    (('--config=configs/mvtec.py', '--config.data.dir=none'), 'none'),
  ],
)
def test_a_mistake_is_one_line(flags, words, cache, tmp_path):
  status, out, err = finish(tmp_path / 'run', cache, *flags)
  assert status == 2 and not out
  assert words in err.splitlines()[-1] and 'Traceback' not in err
