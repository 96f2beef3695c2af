"""Workdirs in buckets, against stores of S3 and Google's on this machine."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import buckets
import numpy as np
import pytest
from PIL import Image
from small import random_images
from untrained import write_workdir

from draem_jax import command
from draem_jax.detection.detector import Detector
from draem_jax.errors import PassingError, UserError
from draem_jax.workdir import bucket, lease, lock, mirror
from draem_jax.workdir.bucket import ABSENT, Bucket

ROOT = pathlib.Path(__file__).parents[1]
GS, S3 = f'gs://{buckets.BUCKET}', f's3://{buckets.BUCKET}'
MARKER = '_CHECKPOINT_METADATA'


@pytest.fixture(scope='module')
def environment():
  """What a process needs to find both stores."""
  return {}


@pytest.fixture(scope='module')
def google(environment):
  with buckets.google() as (server, settings), _set(settings):
    environment |= settings
    yield server


@pytest.fixture(scope='module')
def amazon(environment):
  pytest.importorskip('moto.server', reason="moto's server is not installed")
  with buckets.amazon() as (server, settings), _set(settings):
    environment |= settings
    yield server


@contextlib.contextmanager
def _set(settings):
  with pytest.MonkeyPatch.context() as patch:
    for name, value in settings.items():
      patch.setenv(name, value)
    yield


@pytest.fixture(params=['gs', 's3'])
def root(request, google):
  """A place of its own for a test, in each of the stores."""
  if request.param == 's3':
    request.getfixturevalue('amazon')
  name = ''.join(c if c.isalnum() else '-' for c in request.node.name)
  return f'{request.param}://{buckets.BUCKET}/{name}'


@pytest.fixture
def gs(request, google):
  """The same in the store that tells what it is asked."""
  google.refuses, google.before = None, lambda method, name: None
  yield f'{GS}/{request.node.name}'
  google.refuses, google.before = None, lambda method, name: None
  google.is_down = False


@pytest.fixture
def impatient(monkeypatch):
  """What a store fails at is tried once more, at once."""
  quick = bucket._RETRIES | {'max_retries': 1, 'initial_delay': '1ms'}
  monkeypatch.setattr(bucket, '_RETRIES', quick)
  bucket._context.cache_clear()
  yield
  bucket._context.cache_clear()


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
  """Where mirrors lie; leases are quick, and the store is asked once more."""
  (tmp_path / 'tmp').mkdir()
  monkeypatch.setattr(mirror.tempfile, 'tempdir', str(tmp_path / 'tmp'))
  monkeypatch.setattr(lease, '_SETTLE', 0.1)
  return tmp_path / 'tmp'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return write_workdir(tmp_path_factory.mktemp('run') / 'run')


@pytest.fixture(scope='module')
def fingerprint(run):
  return Detector.load(run).fingerprint()


def upload(folder, url):
  """As people copy folders, with no order and no lease."""
  there = Bucket(url)
  for name, content in contents(folder).items():
    there.write(name, content)


def contents(folder):
  return {
    path.relative_to(folder).as_posix(): path.read_bytes()
    for path in folder.rglob('*')
    if path.is_file() and path.name != lock.FILE
  }


def objects(url):
  there = Bucket(url)
  return {name: there.read(name)[0] for name in there.list()}


# --- The objects ---


def test_objects_are_written_read_listed_and_deleted(root):
  there = Bucket(root + '/')
  assert there.url == root and there.list() == []
  many = {f'a/{index} é #?.png': b'%d' % index for index in range(23)}
  for name, content in (many | {'empty': b''}).items():
    there.write(name, content)
  Bucket(root + '-beside').write('x', b'not below')
  assert sorted(there.list()) == sorted([*many, 'empty'])
  assert there.read('a/7 é #?.png')[0] == b'7'
  content, generation = there.read('empty')
  assert content == b'' and generation != ABSENT
  assert there.read('none') == (b'', ABSENT)
  there.delete('empty')
  there.delete('empty')
  assert sorted(there.list()) == sorted(many)


def test_an_exchange_is_for_the_first_only(root):
  there = Bucket(root)
  first = there.exchange('x', b'1', ABSENT)
  assert first and there.exchange('x', b'2', ABSENT) is None
  second = there.exchange('x', b'3', first)
  assert second and there.exchange('x', b'4', first) is None
  assert there.read('x') == (b'3', second)
  assert there.exchange('x', None, first) is None
  assert there.exchange('x', None, second)
  assert there.read('x') == (b'', ABSENT)


def test_what_no_file_can_be_called_is_left_out(google, gs):
  there = Bucket(gs)
  for name in ('folder/', 'a/../../b', '/c', 'fine'):
    there.write(name, b'x')
  assert there.list() == ['fine']


@pytest.mark.parametrize(
  ('path', 'expected'),
  [
    ('gs://b/run', True),
    ('s3://b', True),
    # As pathlib writes it.
    (pathlib.Path('s3://b/run'), True),
    ('runs/gs', False),
    ('/gs://b', False),
    ('gs', False),
    ('http://b/run', False),
  ],
)
def test_what_is_a_url(path, expected):
  assert bucket.is_url(path) is expected


def test_a_url_takes_names_behind_it():
  assert str(bucket.parse('gs://b/runs/') / 'pens') == 'gs://b/runs/pens'
  assert str(bucket.parse(pathlib.Path('s3://b/run'))) == 's3://b/run'
  assert str(bucket.parse('s3://b')) == 's3://b'
  for wrong in ('gs://', 's3://b/../c', 'gs://b//c', 's3://b/./c'):
    with pytest.raises(UserError, match='take (gs|s3)://bucket/name'):
      bucket.parse(wrong)


@pytest.mark.parametrize(
  ('url', 'words'),
  [
    ('gs://no-such-bucket/run', 'there is no such bucket .*: create it'),
    ('s3://no-such-bucket/run', 'there is no such bucket .*: create it'),
    ('gs://x/run', 'this can be no name .*: name another'),
    ('s3://x/run', 'this can be no name .*: name another'),
  ],
)
def test_a_bucket_that_is_not_there_is_one_line(google, amazon, url, words):
  with (
    pytest.raises(UserError, match=f'^{url}: {words}') as caught,
    mirror.written(url),
  ):
    pass
  assert '\n' not in str(caught.value) and len(str(caught.value)) < 300
  assert caught.value.status == 2


def test_a_refusal_is_one_line(google, gs):
  there = Bucket(gs)
  there.write('x', b'')
  for method, do in (
    ('POST', lambda: there.write('x', b'')),
    ('GET', lambda: there.read('x')),
    ('DELETE', lambda: there.delete('x')),
  ):
    google.refuses = method, 'x'
    with pytest.raises(UserError, match='denied .*docs/workdirs') as caught:
      do()
    assert caught.value.status == 2


def test_a_list_that_is_refused_is_not_an_empty_one(google, gs, run):
  upload(run, gs)
  google.refuses = 'GET', None
  with pytest.raises(UserError, match='access is denied .*listed'):
    Bucket(gs).list()
  with (
    pytest.raises(UserError, match='access is denied .*listed'),
    mirror.written(gs),
  ):
    pass
  with pytest.raises(UserError, match='access is denied .*listed'):
    Detector.load(gs)


@pytest.mark.usefixtures('impatient')
def test_a_store_out_of_reach_is_one_line(amazon, monkeypatch, capsys):
  monkeypatch.setenv('AWS_ENDPOINT_URL', 'http://127.0.0.1:1')
  with pytest.raises(PassingError, match='it cannot be reached .* network'):
    Bucket(f'{S3}/run').list()

  # A command ends with the status on which clusters start it again.
  def train(argv):
    with mirror.written(f'{S3}/run'):
      pass

  with pytest.raises(SystemExit) as ended:
    command.wrap(train)([])
  assert ended.value.code == 75
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f'error: {S3}/run: it cannot be reached (')


@pytest.mark.usefixtures('impatient')
def test_a_store_that_is_down_at_the_end_is_tried_again(google, gs):
  with (
    pytest.raises(PassingError, match='reached.*not sent is kept in') as caught,
    mirror.written(gs) as folder,
  ):
    (folder / 'x').write_bytes(b'1')
    google.is_down = True
  kept = pathlib.Path(str(caught.value).rpartition(' kept in ')[2])
  assert contents(kept) == {'x': b'1'}
  google.is_down = False
  Bucket(gs).delete(lock.FILE)
  # The block's own mistake is one that no new start mends.
  with pytest.raises(UserError, match='is wrong') as caught, mirror.written(gs):
    google.is_down = True
    raise UserError('a field is wrong')
  assert caught.value.status == 2


def test_a_store_that_is_silent_is_not_waited_for_for_ever():
  code = """
import os, socket
from draem_jax.workdir import bucket
silent = socket.create_server(('127.0.0.1', 0))
os.environ['AWS_ENDPOINT_URL'] = f'http://127.0.0.1:{silent.getsockname()[1]}'
assert all(int(seconds) < 30 for seconds in bucket._PATIENCE.values())
os.environ.update(dict.fromkeys(bucket._PATIENCE, '1'))
bucket._RETRIES |= {'max_retries': 1, 'initial_delay': '1ms'}
bucket.Bucket('s3://bucket/run').read('x')
"""
  done = subprocess.run(
    [sys.executable, '-c', code],
    text=True,
    capture_output=True,
    cwd=ROOT,
    env=os.environ | {'AWS_ACCESS_KEY_ID': 'a', 'AWS_SECRET_ACCESS_KEY': 'b'},
    timeout=300,
  )
  assert 'PassingError: s3://bucket/run: it cannot be reached' in done.stderr


# --- The lease ---


def test_a_lease_keeps_others_out_until_it_ends(root, monkeypatch):
  monkeypatch.setattr(lease, '_RENEW', 0.1)
  held = lease.Lease(Bucket(root))
  held.check()
  with pytest.raises(UserError, match=f'process {os.getpid()} on .*--workdir'):
    lease.Lease(Bucket(root))
  held.release()
  lease.Lease(Bucket(root)).release()
  assert Bucket(root).list() == []


OTHER = b'process 7 on far\nx\n1\n'


@pytest.mark.parametrize('content', [OTHER, b'', b'\xff', b'process 7 on far'])
def test_one_that_is_not_renewed_is_taken_over(gs, monkeypatch, content):
  monkeypatch.setattr(lease, '_RENEW', 0.1)
  monkeypatch.setattr(lease, '_DEAD', 0.3)
  Bucket(gs).write(lock.FILE, content)
  since = time.monotonic()
  lease.Lease(Bucket(gs)).release()
  assert time.monotonic() - since > 0.3


def test_a_lost_answer_is_no_lost_lease(gs):
  held = lease.Lease(Bucket(gs))
  # As the store has it, and nobody was told.
  written = held._write(held._generation)
  assert held._write(held._generation) == written
  held._generation = written
  held.release()
  assert Bucket(gs).list() == []


def test_who_was_taken_over_stops_writing(gs, monkeypatch):
  monkeypatch.setattr(lease, '_RENEW', 0.05)
  told = []
  before = signal.signal(signal.SIGTERM, lambda *caught: told.append(caught))
  try:
    held = lease.Lease(Bucket(gs))
    time.sleep(0.2)
    held.check()  # It was renewed.
    assert not Bucket(gs).read(lock.FILE)[0].endswith(b'\n1\n')
    Bucket(gs).write(lock.FILE, OTHER)
    deadline = time.monotonic() + 5
    while not told and time.monotonic() < deadline:
      time.sleep(0.01)
    assert told
    with pytest.raises(UserError, match='taken it over'):
      held.check()
    held.release()
    assert b'far' in Bucket(gs).read(lock.FILE)[0]  # It is left to them.
  finally:
    signal.signal(signal.SIGTERM, before)


def test_who_cannot_renew_stops_writing(google, gs, monkeypatch):
  monkeypatch.setattr(lease, '_RENEW', 0.05)
  monkeypatch.setattr(lease, '_STALE', 0.3)
  held = lease.Lease(Bucket(gs))
  google.refuses = 'POST', lock.FILE
  time.sleep(0.5)
  with pytest.raises(PassingError, match='could not be reached for'):
    held.check()
  google.refuses = None
  time.sleep(0.2)
  held.check()
  held.release()


# --- The mirror ---


def test_a_folder_is_given_back_as_it_is(tmp_path):
  with mirror.written(tmp_path / 'x') as folder:
    assert folder == tmp_path / 'x' and not folder.exists()
  with mirror.read(str(tmp_path / 'x')) as folder:
    assert folder == tmp_path / 'x'


def test_what_is_written_is_there_and_comes_back(root, run, scratch):
  with mirror.written(root) as folder:
    shutil.copytree(run, folder, dirs_exist_ok=True)
    (folder / 'figures').mkdir()
    (folder / 'figures' / 'é #.png').write_bytes(b'picture')
    # What stays on the machine.
    for name in ('data/demo/x.png', 'tfds/x', '.12345678.part'):
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      (folder / name).write_bytes(b'x')
    first = contents(folder)
  assert not list(scratch.iterdir())
  stay = {'data/demo/x.png', 'tfds/x', '.12345678.part'}
  sent = {name: first[name] for name in first.keys() - stay}
  assert objects(root) == sent

  with mirror.written(root) as folder:
    assert contents(folder) == sent
    (folder / 'figures' / 'é #.png').unlink()
    (folder / 'thresholds.json').write_bytes(b'{}')
  del sent['figures/é #.png']
  assert objects(root) == sent | {'thresholds.json': b'{}'}


def test_what_is_not_wanted_stays_as_it_is(gs):
  Bucket(gs).write('maps/a.png', b'a')
  Bucket(gs).write('table', b'1')
  with mirror.written(gs, wanted=lambda name: name == 'table') as folder:
    assert contents(folder) == {'table': b'1'}
    (folder / 'table').write_bytes(b'22')
  assert objects(gs) == {'maps/a.png': b'a', 'table': b'22'}


def test_cut_short_anywhere_it_leaves_whole_checkpoints(google, gs, run):
  """Step 1 gives way to step 2, and step 2 to another one of that number."""
  place = gs.removeprefix(f'{GS}/') + '/'
  states = []

  def note(method, name):
    if method != 'GET':
      states.append(
        {
          name.removeprefix(place): content
          for name, (_, content) in list(google.objects.items())
          if name.startswith(place)
        }
      )

  one = contents(run)
  versions = [{name: content[::-1] for name, content in one.items()}, one]
  allowed = {}
  with mirror.written(gs, alone=False) as folder:
    made = mirror._Mirror(Bucket(gs), folder, None)
    google.before = note
    steps = folder / 'checkpoints'

    def put(step, version):
      shutil.rmtree(steps / step, ignore_errors=True)
      for name, content in versions[version].items():
        if name.startswith('checkpoints/1/'):
          path = steps / step / name.removeprefix('checkpoints/1/')
          path.parent.mkdir(parents=True, exist_ok=True)
          path.write_bytes(content)
      found = contents(steps / step)
      allowed.setdefault(step, []).append(found)

    put('1', 0)
    made.send()
    put('2', 0)
    shutil.rmtree(steps / '1')
    made.send()
    put('2', 1)
    made.send()
    shutil.rmtree(steps / '2' / 'state')
    made.send()
    google.before = lambda method, name: None
    shutil.rmtree(steps)
    made.send()
  whole = 0
  for state in states:
    for step in ('1', '2'):
      prefix = f'checkpoints/{step}/'
      found = {
        name.removeprefix(prefix): content
        for name, content in state.items()
        if name.startswith(prefix)
      }
      if MARKER in found:
        whole += 1
        parts = [dict(each) for each in allowed[step]]
        assert any(each.items() <= found.items() for each in parts)
  assert whole > 10 and len(states) > 100
  assert states[-1].keys() <= {f'checkpoints/2/{n}' for n in allowed['2'][1]}


def test_a_checkpoint_that_was_cut_short_is_deleted(gs, run):
  whole = contents(run)
  upload(run, gs)
  for name, content in whole.items():
    if name.startswith('checkpoints/1/') and not name.endswith(MARKER):
      Bucket(gs).write(name.replace('/1/', '/7/'), content)
  with mirror.written(gs) as folder:
    assert contents(folder) == whole
    assert objects(gs).keys() - {lock.FILE} == whole.keys()


def test_a_checkpoint_is_sent_at_once_and_the_rest_later(gs, run, monkeypatch):
  monkeypatch.setattr(mirror, '_LOOK', 0.05)
  with mirror.written(gs) as folder:
    (folder / 'metrics.jsonl').write_bytes(b'1')
    time.sleep(0.3)
    assert objects(gs).keys() == {lock.FILE}
    shutil.copytree(run / 'checkpoints', folder / 'new')
    (folder / 'new').rename(folder / 'checkpoints')
    deadline = time.monotonic() + 10
    while f'checkpoints/1/{MARKER}' not in objects(gs):
      assert time.monotonic() < deadline
      time.sleep(0.02)
    assert objects(gs)['metrics.jsonl'] == b'1'


def test_a_row_is_sent_behind_its_pictures(google, gs):
  with mirror.written(gs, alone=False) as folder:
    made = mirror._Mirror(Bucket(gs), folder, None)

    def score(number):
      for place in ('maps', 'overlays'):
        (folder / place).mkdir(exist_ok=True)
        (folder / place / f'{number}.png').write_bytes(b'picture')
      with (folder / 'predictions.csv').open('ab') as file:
        file.write(b'%d\n' % number)

    def go_on(method, name):
      if method == 'POST' and name.endswith('1.png'):
        google.before = lambda method, name: None
        score(2)

    score(1)
    google.before = go_on
    made.send()
    names = {'maps/1.png', 'overlays/1.png', 'predictions.csv'}
    assert objects(gs).keys() == names
    assert objects(gs)['predictions.csv'] == b'1\n'
    google.refuses = 'POST', 'maps/2.png'
    with pytest.raises(UserError, match='denied'):
      made.send()
    assert objects(gs)['predictions.csv'] == b'1\n'
    google.refuses = None
    made.send()
    assert objects(gs).keys() == names | {'maps/2.png', 'overlays/2.png'}
    assert objects(gs)['predictions.csv'] == b'1\n2\n'


def test_what_cannot_be_sent_is_kept_and_said(google, gs, scratch):
  with (
    pytest.raises(UserError, match='denied.*not sent is kept in') as caught,
    mirror.written(gs) as folder,
  ):
    (folder / 'x').write_bytes(b'1')
    google.refuses = 'POST', '/x'
  kept = pathlib.Path(str(caught.value).rpartition(' kept in ')[2])
  assert contents(kept) == {'x': b'1'}


def test_a_moment_without_a_network_is_made_up_for(
  google, gs, monkeypatch, caplog
):
  monkeypatch.setattr(mirror, '_LOOK', 0.05)
  monkeypatch.setattr(mirror, '_SEND', 0.05)
  with mirror.written(gs) as folder:
    google.refuses = 'POST', '/x'
    (folder / 'x').write_bytes(b'1')
    time.sleep(0.5)
    assert 'x' not in objects(gs)
    google.refuses = None
  assert objects(gs) == {'x': b'1'}
  assert caplog.text.count('what is not sent is sent later') == 1


def test_the_error_of_the_block_is_told_by_the_url(gs):
  with (
    pytest.raises(UserError, match=f'^{gs}/config.json is'),
    mirror.written(gs) as folder,
  ):
    (folder / 'config.json').write_bytes(b'1')
    raise UserError(f'{folder}/config.json is damaged')
  assert objects(gs) == {'config.json': b'1'}


def test_what_a_killed_process_left_on_the_disk_is_swept(gs, scratch):
  for name, age in (('old', 100), ('new', 0)):
    place = scratch / f'draem_jax-mirror-{name}'
    (place / 'run').mkdir(parents=True)
    os.utime(place, (time.time() - age,) * 2)
  with lock.hold(scratch / 'draem_jax-mirror-old'):
    os.utime(scratch / 'draem_jax-mirror-old', (time.time() - 100,) * 2)
    with mirror.read(gs):
      pass
    assert (scratch / 'draem_jax-mirror-old').exists()
  os.utime(scratch / 'draem_jax-mirror-old', (time.time() - 100,) * 2)
  with mirror.read(gs):
    pass
  assert [p.name for p in scratch.iterdir()] == ['draem_jax-mirror-new']


# --- The detector ---


def test_a_detector_takes_no_more_than_it_needs(google, gs, run, fingerprint):
  upload(run, gs)
  read, place = [], gs.removeprefix(f'{GS}/')
  for name in ('checkpoints/0/variables/x', 'figures/x.png', 'predictions.csv'):
    Bucket(gs).write(name, b'x')
  Bucket(gs).write(f'checkpoints/0/{MARKER}', b'{}')
  google.before = lambda method, name: read.append(name)
  assert Detector.load(gs).fingerprint() == fingerprint
  wanted = {
    f'{place}/{name}'
    for name in contents(run)
    if not name.startswith('checkpoints/1/state/')
  }
  # What a list is checked by is asked for, too.
  landmarks = {f'{place}/{name}' for name in bucket._LANDMARKS}
  assert {name for name in read if name} - landmarks == wanted - landmarks


def test_a_checkpoint_that_goes_away_gives_way_to_the_next(google, gs, run):
  whole = contents(run)
  upload(run, gs)
  there = []

  def replace(method, name):
    if method == 'GET' and name and name.endswith(f'/1/{MARKER}') and not there:
      there.append(name)
      google.before = lambda method, name: None
      for each, content in whole.items():
        if each.startswith('checkpoints/1/'):
          Bucket(gs).write(each.replace('/1/', '/2/'), content)
      for each in whole:
        if each.startswith('checkpoints/1/'):
          Bucket(gs).delete(each)

  google.before = replace
  with mirror.read(gs) as folder:
    found = contents(folder)
  assert there
  assert found == {
    name.replace('/1/', '/2/'): content
    for name, content in whole.items()
    if not name.startswith('checkpoints/1/state/')
  }


def test_a_place_without_a_run_is_one_line(root):
  with pytest.raises(UserError, match=f'^{root}/config.json does not exist'):
    Detector.load(root)


def test_places_that_commands_take(tmp_path):
  assert str(command.expand_place('gs://b/x', '--workdir')) == 'gs://b/x'
  assert command.expand_place(str(tmp_path), '--output') == tmp_path
  with pytest.raises(UserError, match='--workdir=s3://b/x is in a bucket'):
    command.expand_workdir('s3://b/x')


# --- The commands ---

STEPS = 8
TRAIN = (
  'draem_jax.main',
  '--config=configs/demo.py',
  '--config.image_size=32',
  '--config.model.reconstructive_width=4',
  '--config.model.discriminative_width=2',
  '--config.batch_size=4',
  f'--config.num_steps={STEPS}',
  '--config.checkpoint_every=3',
  '--config.log_every=1',
)


@pytest.fixture(scope='module')
def start(tmp_path_factory, environment):
  """Starts a command, with programs and data sets of all in one place."""
  folder = tmp_path_factory.mktemp('shared')

  def started(module, *flags, **more):
    settings = more | {
      'XLA_FLAGS': '',
      'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': str(folder / 'cache'),
      'TMPDIR': str(folder),
    }
    if module == 'draem_jax.main':
      flags += (f'--config.data.tfds_dir={folder / "tfds"}',)
    return subprocess.Popen(
      [sys.executable, '-m', module, *flags],
      cwd=ROOT,
      env=os.environ | environment | settings,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
    )

  return started


def finish(process):
  out, err = process.communicate(timeout=1800)
  return process.returncode, out, err


@pytest.fixture(scope='module')
def whole(start, tmp_path_factory):
  """A run in a folder that was never stopped."""
  folder = tmp_path_factory.mktemp('whole') / 'run'
  status, _, err = finish(start(*TRAIN, f'--workdir={folder}'))
  assert status == 0, err
  return folder


SAME = ('results.json', 'thresholds.json', 'predictions.csv')


@pytest.mark.slow
def test_killed_and_resumed_it_ends_in_the_same_bytes(root, start, whole):
  process = start(*TRAIN, f'--workdir={root}')
  while f'checkpoints/3/{MARKER}' not in Bucket(root).list():
    assert process.poll() is None, process.communicate()[1]
    time.sleep(0.02)
  process.kill()
  process.communicate()
  there = Bucket(root)
  assert lock.FILE in there.list()
  # Whenever that was, it has got no further.
  for name in there.list():
    if name.startswith(('checkpoints/6/', 'checkpoints/8/')):
      there.delete(name)

  status, out, err = finish(start(*TRAIN, f'--workdir={root}'))
  assert status == 0 and f'going on from {root}/checkpoints/3' in err, err
  assert f'results:  {root}\n' in out and 'draem_jax-mirror' not in out + err
  found, expected = objects(root), contents(whole)
  for name in SAME:
    assert found[name] == expected[name]
  ours, theirs = Detector.load(root), Detector.load(whole)
  assert ours.fingerprint() == theirs.fingerprint()
  # But for the names of events, and of the files of the checkpoints.
  local = {n for n in expected if n.split('/')[0] in ('data', 'profile')}
  assert {n for n in found if '/' not in n or n.startswith('figures/')} == {
    n for n in expected.keys() - local if '/' not in n or n.startswith('fig')
  }
  steps = {n.split('/')[1] for n in found if n.startswith('checkpoints/')}
  assert steps == {'3', '6', '8'}
  assert lock.FILE not in found
  # In these orbax notes where it has written, which nobody reads.
  read = {n for n in found if not n.endswith('/commit_success.txt')}
  assert not {n for n in read if b'draem_jax-mirror' in found[n]}

  # Another config, then, is refused, and nothing changes.
  process = start(*TRAIN, '--config.seed=9', f'--workdir={root}')
  status, _, err = finish(process)
  assert status == 2
  last = err.splitlines()[-1]
  assert last.startswith(f'error: {root} holds a run with another config')
  assert objects(root) == found


@pytest.mark.slow
def test_a_run_without_its_store_asks_to_be_started_again(start):
  status, _, err = finish(
    start(
      *(*TRAIN, f'--workdir={S3}/run'),
      AWS_ENDPOINT_URL='http://127.0.0.1:1',
      AWS_ACCESS_KEY_ID='key',
      AWS_SECRET_ACCESS_KEY='secret',
    )
  )
  assert status == 75
  last = err.splitlines()[-1]
  assert last.startswith(f'error: {S3}/run: it cannot be reached (')
  assert 'Traceback' not in err


@pytest.mark.slow
def test_a_second_writer_is_refused(gs, start):
  held = lease.Lease(Bucket(gs))
  status, _, err = finish(start(*TRAIN, f'--workdir={gs}'))
  held.release()
  assert status == 2
  assert err.splitlines()[-1] == (
    f'error: {gs} is being written by process {os.getpid()} on'
    f' {socket.gethostname()}: wait until it ends, or take another --workdir'
  )
  assert objects(gs) == {}


@pytest.mark.slow
def test_predictions_and_exports_are_those_of_a_folder(
  root, start, run, tmp_path
):
  upload(run, f'{root}/run')
  for index, image in enumerate(random_images(3, 32)):
    path = tmp_path / 'photos' / f'{index}.png'
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(image).save(path)
  for place, output in (
    (run, tmp_path / 'out'),
    (f'{root}/run', f'{root}/out'),
  ):
    status, out, err = finish(
      start(
        'draem_jax.predict',
        *(f'--workdir={place}', f'--images={tmp_path / "photos"}'),
        f'--output={output}',
      )
    )
    assert status == 0 and f'{output}/predictions.csv' in out, err
  assert objects(f'{root}/out') == contents(tmp_path / 'out')

  export = ('draem_jax.export', '--format=torch')
  for place, output in ((run, tmp_path / 'ex'), (f'{root}/run', f'{root}/ex')):
    status, out, err = finish(
      start(*export, f'--workdir={place}', f'--output={output}')
    )
    assert status == 0 and f'{output}/DRAEM_pens_.pckl' in out, err
  assert objects(f'{root}/ex') == contents(tmp_path / 'ex')


@pytest.mark.clusters
def test_two_processes_of_a_run_share_a_bucket(gs, start, whole):
  def finish_both():
    with socket.socket() as free:
      free.bind(('localhost', 0))
      address = f'localhost:{free.getsockname()[1]}'
    both = [
      start(
        *(*TRAIN, f'--workdir={gs}'),
        JAX_COORDINATOR_ADDRESS=address,
        JAX_NUM_PROCESSES='2',
        JAX_PROCESS_ID=str(index),
      )
      for index in range(2)
    ]
    return list(map(finish, both))

  ended = finish_both()
  assert [status for status, _, _ in ended] == [0, 0], ended
  first = objects(gs)
  for name in first:
    if name.startswith(('checkpoints/6/', 'checkpoints/8/')):
      Bucket(gs).delete(name)
  ended = finish_both()
  assert [status for status, _, _ in ended] == [0, 0], ended
  assert f'going on from {gs}/checkpoints/3' in ended[0][2]
  assert objects(gs)['results.json'] == first['results.json']
  # In the steps that follow two processes differ from one by the order of sums,
  # in a folder as much.
  losses = [
    json.loads(text.splitlines()[0])['loss']
    for text in (
      objects(gs)['metrics.jsonl'].decode(),
      (whole / 'metrics.jsonl').read_text(),
    )
  ]
  np.testing.assert_allclose(*losses, rtol=1e-3)
