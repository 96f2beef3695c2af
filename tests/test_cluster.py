"""Two processes of one run: what they write, and how they stop together."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from small import random_images, small_config

from draem_jax import experiment

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 30


@pytest.fixture
def settings(tmp_path):
  """Config fields of a short run on pictures of its own."""
  for folder, count in (('train/good', 6), ('test/good', 2), ('test/bent', 2)):
    (tmp_path / 'data/pens' / folder).mkdir(parents=True)
    for index, image in enumerate(random_images(count, seed=count)):
      path = tmp_path / 'data/pens' / folder / f'{index}.png'
      Image.fromarray(image).save(path)
  return {
    'data.dir': str(tmp_path / 'data'),
    'data.tfds_dir': str(tmp_path / 'tfds'),
    'data.textures': str(tmp_path / 'data/pens/train'),
    'image_size': 32,
    'batch_size': 4,
    'num_steps': STEPS,
    'learning_rate': 1e-3,
    'model.reconstructive_width': 2,
    'model.discriminative_width': 2,
    'log_every': 1,
    'panel_every': 20,
    'eval.every': 15,
    'stop_when_flat': 2,
  }


def start_both(workdir, settings):
  return start_pair(
    workdir.parent,
    *('-m', 'draem_jax.main', f'--workdir={workdir}'),
    '--config=configs/mvtec.py:pens,release',
    *(f'--config.{name}={value}' for name, value in settings.items()),
  )


def start_pair(folder, *arguments):
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  return [
    subprocess.Popen(
      [sys.executable, *arguments],
      cwd=ROOT,
      env=os.environ
      | {
        'XLA_FLAGS': '',
        'JAX_PLATFORMS': 'cpu',
        'JAX_COMPILATION_CACHE_DIR': str(folder / 'cache'),
        'JAX_COORDINATOR_ADDRESS': address,
        'JAX_NUM_PROCESSES': '2',
        'JAX_PROCESS_ID': str(index),
      },
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
    )
    for index in range(2)
  ]


def finish(processes):
  texts = [process.communicate(timeout=300) for process in processes]
  return [process.returncode for process in processes], texts


def losses(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line)['loss'] for line in lines]


@pytest.mark.clusters
def test_two_processes_stop_together_and_agree_with_one(tmp_path, settings):
  workdir = tmp_path / 'two'
  processes = start_both(workdir, settings)
  while not (workdir / 'metrics.jsonl').exists() or not losses(workdir):
    assert processes[0].poll() is None, processes[0].communicate()[1]
    time.sleep(0.01)
  processes[1].send_signal(signal.SIGTERM)
  statuses, texts = finish(processes)
  assert statuses == [128 + signal.SIGTERM] * 2, texts
  stopped = len(losses(workdir))
  assert stopped < STEPS and stopped % 10 == 0
  for _, err in texts:
    assert f'saved at step {stopped}' in err

  # It goes on with batches that are fed, of textures decoded on demand.
  fed = {'data.max_device_share': 0, 'data.max_host_share': 0}
  statuses, texts = finish(start_both(workdir, settings | fed))
  assert statuses == [0, 0], texts
  assert '| pens' in texts[0][0] and '|' not in texts[1][0]
  assert 'step' not in texts[1][1]
  assert 'textures are decoded when they are drawn' in texts[0][1]

  one = tmp_path / 'one'
  config = small_config(**settings, score_window=21)
  experiment.train_and_evaluate(config.to_dict(), one)
  assert len(losses(workdir)) == STEPS
  np.testing.assert_allclose(losses(workdir)[:5], losses(one)[:5], 1e-4)
  for name in ('results.json', 'report.html', 'thresholds.json'):
    assert (workdir / name).exists()


# What each process of a pair runs: it prints a line for each of four attempts.
RESTORE = """
import pathlib, shutil, sys
import flax.struct, jax, numpy as np
from draem_jax import cluster, devices
from draem_jax.workdir import checkpoint
from draem_jax.errors import UserError

@flax.struct.dataclass
class State:
  step: jax.Array
  params: dict
  batch_stats: dict

def make_state(step):
  array = jax.device_put(np.full((3,), step, np.float32), everywhere)
  return State(step=array, params={'a': array}, batch_stats={'b': array})

def attempt():
  try:
    step, state = checkpointer.restore_latest(
      jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        make_state(0),
      )
    )
    print('restored', step, np.asarray(state.params['a'])[0])
  except (TypeError, UserError) as error:
    print('restored', type(error).__name__, error)

cluster.start()
everywhere = devices.replicated(devices.make_mesh(2))
folder = pathlib.Path(sys.argv[1])
checkpointer = checkpoint.Checkpointer(folder, keep=9)
for step in (1, 2, 3):
  state = make_state(step)
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  checkpointer.save(step, state, variables)
checkpointer.wait()
second = jax.process_index() == 1

# The folder of the second process lags behind: the first one decides.
steps = checkpoint.list_steps
checkpoint.list_steps = lambda folder: steps(folder)[:-second or None]
attempt()
checkpoint.list_steps = steps

# The second one has a bug: the first one does not run on without it.
read = checkpoint._read_state
def fail(path, abstract):
  if second and path.name == '3':
    raise error
  return read(path, abstract)
checkpoint._read_state = fail
error = TypeError('a bug')
attempt()

# The second one cannot read the newest: both take the one before.
error = ValueError('DATA_LOSS')
attempt()
checkpointer.save(3, make_state(4), variables)
checkpointer.wait()
checkpoint._read_state = read
attempt()
checkpointer.close()
"""


@pytest.mark.clusters
def test_two_processes_restore_the_same_step(tmp_path):
  folder = tmp_path / 'checkpoints'
  statuses, texts = finish(start_pair(tmp_path, '-c', RESTORE, str(folder)))
  assert statuses == [0, 0], texts
  first, second = (
    [line[9:] for line in out.splitlines() if line.startswith('restored ')]
    for out, _ in texts
  )
  assert first[0] == second[0] == '3 3.0'
  assert second[1] == 'TypeError a bug'
  assert first[1].startswith('UserError') and 'another process' in first[1]
  assert first[2] == second[2] == '2 2.0'
  assert first[3] == second[3] == '3 4.0'
  assert sorted(path.name for path in folder.iterdir()) == [
    *('1', '2', '3', '3.damaged')
  ]
