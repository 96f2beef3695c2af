"""Faults of a run of two processes: both end soon, and say why in one line."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from PIL import Image
from small import random_images

pytestmark = pytest.mark.clusters
ROOT = pathlib.Path(__file__).parents[1]
STEPS = 40
# What each process runs, by its argument.
PROGRAM = """
import importlib.metadata, sys, time
from draem_jax import cluster, command, devices
from draem_jax.errors import PassingError, UserError

def main(argv):
  cluster.start()
  mine = devices.max_over_processes(0)
  print('ready', flush=True)
  mode, second = sys.argv[1], not devices.is_main_process()
  if mode == 'version':
    found = importlib.metadata.version
    importlib.metadata.version = lambda name: (
      '9.9' if second and name == 'optax' else found(name)
    )
    cluster.compare(cluster.versions())
  if mode in ('fail', 'pass'):
    with cluster.together():
      if second:
        kind = UserError if mode == 'fail' else PassingError
        raise kind('no cups here')
  if mode == 'wait':
    time.sleep(1000)
  if mode == 'work':
    while True:
      devices.max_over_processes(1)
      time.sleep(0.05)
  if mode == 'bug':
    raise TypeError('a bug')

command.wrap(main)([])
"""


def free_port():
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return free.getsockname()[1]


def start(index, port, *arguments, host='localhost', prefix=(), **variables):
  return subprocess.Popen(
    [*prefix, sys.executable, *arguments],
    cwd=ROOT,
    env=os.environ
    | {
      'XLA_FLAGS': '',
      'JAX_PLATFORMS': 'cpu',
      'JAX_COORDINATOR_ADDRESS': f'{host}:{port}',
      'JAX_NUM_PROCESSES': '2',
      'JAX_PROCESS_ID': str(index),
    }
    | variables,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )


@contextlib.contextmanager
def pair(*arguments, prefixes=((), ()), **options):
  """Two processes that have found each other."""
  port = free_port()
  both = [
    start(index, port, *arguments, prefix=prefixes[index], **options)
    for index in range(2)
  ]
  try:
    yield both
  finally:
    for process in both:
      process.kill()
      process.communicate()


def wait_until_ready(both):
  for process in both:
    line = process.stdout.readline()
    while line and 'ready' not in line:
      line = process.stdout.readline()
    assert line, process.communicate()[1]


def end(process, seconds=240):
  """The status of a process, and the one line that it ends with."""
  _, err = process.communicate(timeout=seconds)
  assert 'Traceback' not in err and '***' not in err, err
  lines = [line for line in err.splitlines() if line.startswith('error: ')]
  assert len(lines) == 1 and err.endswith(lines[0] + '\n'), err
  return process.returncode, lines[0]


@pytest.mark.parametrize('killed', [0, 1])
def test_a_killed_process_takes_the_other_along(killed):
  with pair('-c', PROGRAM, 'work') as both:
    wait_until_ready(both)
    both[killed].kill()
    status, line = end(both[1 - killed])
  assert status == 75
  assert 'of the run is gone' in line and 'go on from the last' in line


def test_a_process_that_is_silent_takes_the_other_along():
  with pair('-c', PROGRAM, 'wait', DRAEM_FAULT_TIMEOUT='6') as both:
    wait_until_ready(both)
    begun = time.monotonic()
    both[1].send_signal(signal.SIGSTOP)
    status, line = end(both[0])
    assert status == 75 and 'process 1 of the run no longer answers' in line
    assert time.monotonic() - begun > 3
    both[1].send_signal(signal.SIGCONT)
    assert end(both[1])[0] == 75


@pytest.mark.parametrize('index', [0, 1])
def test_processes_that_do_not_find_each_other_say_so(index):
  port = free_port()
  alone = start(index, port, '-c', PROGRAM, 'wait', DRAEM_START_TIMEOUT='2')
  status, line = end(alone)
  assert status == 75
  assert f'within 2 s at localhost:{port}' in line
  assert 'DRAEM_START_TIMEOUT' in line


def test_a_port_that_is_taken_is_named():
  with socket.socket(socket.AF_INET6) as taken:
    taken.bind(('::', 0))
    taken.listen()
    port = taken.getsockname()[1]
    status, line = end(start(0, port, '-c', PROGRAM, 'wait'))
  assert status == 2 and f'cannot listen at localhost:{port}' in line


def test_a_wait_that_is_no_number_is_refused():
  alone = start(1, 1, '-c', PROGRAM, 'wait', DRAEM_START_TIMEOUT='soon')
  status, line = end(alone)
  assert status == 2 and 'DRAEM_START_TIMEOUT=soon' in line


@pytest.mark.parametrize(
  ('mode', 'expected', 'words'),
  [
    ('version', 2, r'process 1 on \S+ differs from the first, .* optax 9.9'),
    ('fail', 2, 'no cups here'),
    ('pass', 75, 'no cups here'),
  ],
)
def test_what_is_wrong_with_one_is_said_by_both(mode, expected, words):
  with pair('-c', PROGRAM, mode) as both:
    for process in both:
      status, line = end(process)
      assert status == expected
      assert re.search(words, line)


def test_a_bug_keeps_its_trace():
  with pair('-c', PROGRAM, 'bug') as both:
    for process in both:
      _, err = process.communicate(timeout=240)
      assert 'Traceback' in err and 'TypeError: a bug' in err


@pytest.fixture
def data(tmp_path):
  """Two folders of data that differ in one picture."""
  for name in ('first', 'second'):
    write_images(tmp_path / name / 'pens')
  image = random_images(1, seed=9)[0]
  Image.fromarray(image).save(tmp_path / 'second/pens/train/good/2.png')
  return tmp_path


def write_images(category):
  for split, count in (('train/good', 4), ('test/good', 1), ('test/bent', 1)):
    folder = category / split
    folder.mkdir(parents=True)
    for index, image in enumerate(random_images(count, seed=count)):
      Image.fromarray(image).save(folder / f'{index}.png')


def start_runs(data, *, folders, rates):
  port = free_port()
  return [
    start(
      index,
      port,
      *('-m', 'draem_jax.main', f'--workdir={data / "run"}'),
      '--config=configs/mvtec.py:pens,release',
      f'--config.data.dir={data / folders[index]}',
      f'--config.data.tfds_dir={data / "tfds"}',
      f'--config.data.textures={data / "first"}',
      f'--config.learning_rate={rates[index]}',
      *('--config.image_size=32', '--config.batch_size=2'),
      '--config.num_steps=2',
    )
    for index in range(2)
  ]


def test_other_data_are_refused_by_name(data):
  both = start_runs(data, folders=('first', 'second'), rates=(1e-3, 1e-3))
  for process in both:
    status, line = end(process)
    assert status == 2 and 'process 1 on' in line and 'training images' in line
  assert not (data / 'run/config.json').exists()


def test_another_config_is_refused_by_name(data):
  both = start_runs(data, folders=('first', 'first'), rates=(1e-3, 2e-3))
  for process in both:
    status, line = end(process)
    assert status == 2
    assert 'config.learning_rate 0.002 (there 0.001)' in line


class Place:
  """Where two processes train together, over and over, on the same."""

  def __init__(self, folder):
    self.folder = folder
    write_images(folder / 'data/pens')

  @contextlib.contextmanager
  def training(self, name, *, prefixes=((), ()), **variables):
    """Both processes, while they train in the folder of this name."""
    fields = {
      'data.dir': self.folder / 'data',
      'data.tfds_dir': self.folder / 'tfds',
      'data.textures': self.folder / 'data',
      'image_size': 32,
      'batch_size': 4,
      'num_steps': STEPS,
      'model.reconstructive_width': 2,
      'model.discriminative_width': 2,
      'log_every': 5,
      'checkpoint_every': 20,
      'panel_every': 1000,
    }
    with pair(
      *('-m', 'draem_jax.main', f'--workdir={self.folder / name}'),
      '--config=configs/mvtec.py:pens,release',
      *(f'--config.{field}={value}' for field, value in fields.items()),
      prefixes=prefixes,
      JAX_COMPILATION_CACHE_DIR=os.environ.get(
        'JAX_COMPILATION_CACHE_DIR', str(self.folder / 'cache')
      ),
      **variables,
    ) as both:
      yield both

  def losses(self, name):
    """Steps and losses that a run has logged by now."""
    path = self.folder / name / 'metrics.jsonl'
    text = path.read_text() if path.exists() else ''
    found = map(json.loads, text.splitlines())
    return [(line['step'], line['loss']) for line in found]

  def check(self, name, other):
    """Sees that two runs have come to the same, to the last bit."""
    for file in ('predictions.csv', 'results.json', 'thresholds.json'):
      one, two = (self.folder / run / file for run in (name, other))
      assert one.read_bytes() == two.read_bytes(), file
    assert self.losses(name) == self.losses(other)
    assert self.losses(name)[-1][0] == STEPS


def finish(both):
  for process in both:
    _, err = process.communicate(timeout=1800)
    assert process.returncode == 0, err


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """Where a run has ended, `whole`, to which nothing happened."""
  made = Place(tmp_path_factory.mktemp('pair'))
  with made.training('whole') as both:
    finish(both)
  return made


@pytest.mark.parametrize('stopped', [0, 1])
def test_a_process_that_is_slow_is_waited_for(place, stopped):
  name = f'slow-{stopped}'
  with place.training(name, DRAEM_FAULT_TIMEOUT='120') as both:
    while not place.losses(name):
      assert both[stopped].poll() is None, both[stopped].communicate()[1]
      time.sleep(0.02)
    both[stopped].send_signal(signal.SIGSTOP)
    time.sleep(10)
    assert place.losses(name)[-1][0] < STEPS
    both[stopped].send_signal(signal.SIGCONT)
    finish(both)
  place.check(name, 'whole')


@pytest.mark.parametrize('ahead', [0, 1])
def test_clocks_that_differ_change_nothing(place, ahead):
  if not shutil.which('faketime'):
    pytest.skip('no faketime: apt-get install faketime')
  prefixes = [(), ()]
  prefixes[ahead] = ('faketime', '-f', '+1h')
  name = f'clocks-{ahead}'
  # Only what tells the hour differs from host to host.
  with place.training(name, prefixes=prefixes, DONT_FAKE_MONOTONIC='1') as both:
    finish(both)
  place.check(name, 'whole')


@pytest.fixture
def hosts():
  """Two network namespaces with a cable between them: what starts in each."""
  if os.getuid() != 0 or not shutil.which('ip'):
    pytest.skip('network namespaces are for root, and for ip')
  names = [f'draem{os.getpid()}{letter}' for letter in 'ab']
  with contextlib.ExitStack() as stack:
    for number, name in enumerate(names):
      if subprocess.run(['ip', 'netns', 'add', name], check=False).returncode:
        pytest.skip('this machine has no network namespaces')
      stack.callback(subprocess.run, ['ip', 'netns', 'del', name], check=True)
      # Where collectives find the other host: by its name.
      folder = pathlib.Path('/etc/netns') / name
      folder.mkdir(parents=True)
      stack.callback(shutil.rmtree, folder)
      (folder / 'hosts').write_text(
        f'127.0.0.1 localhost\n10.77.0.{number + 1} {socket.gethostname()}\n'
      )
    ends = [f'v{os.getpid()}{letter}' for letter in 'ab']
    ip('link', 'add', ends[0], 'type', 'veth', 'peer', 'name', ends[1])
    for number, (name, end_) in enumerate(zip(names, ends, strict=True)):
      ip('link', 'set', end_, 'netns', name)
      ip('-n', name, 'addr', 'add', f'10.77.0.{number + 1}/24', 'dev', end_)
      ip('-n', name, 'link', 'set', end_, 'up')
      ip('-n', name, 'link', 'set', 'lo', 'up')
    yield names, ends


def ip(*arguments):
  subprocess.run(['ip', *arguments], check=True)


def test_both_end_when_the_network_is_cut(hosts):
  names, ends = hosts
  prefixes = [('ip', 'netns', 'exec', name) for name in names]
  with pair(
    *('-c', PROGRAM, 'work'),
    prefixes=prefixes,
    host='10.77.0.1',
    DRAEM_FAULT_TIMEOUT='6',
  ) as both:
    wait_until_ready(both)
    ip('-n', names[1], 'link', 'set', ends[1], 'down')
    for process in both:
      status, line = end(process)
      assert status == 75 and 'of the run' in line
