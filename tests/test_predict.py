import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image
from small import random_images
from untrained import write_workdir

COUNT = 60


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A run, a folder of images, and a cache of compiled programs."""
  folder = tmp_path_factory.mktemp('predict')
  # One at a time, so that there is something left to interrupt, and one
  # program to compile.
  write_workdir(folder / 'run', **{'eval.batch_size': 1})
  for index, image in enumerate(random_images(COUNT, 32)):
    path = folder / 'photos' / f'{index % 2}' / f'{index:03}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).resize((40 + index, 50)).save(path)
  return folder


def start(place, **flags):
  flags = {'workdir': 'run', 'images': 'photos', 'output': 'out'} | flags
  command = [sys.executable, '-m', 'draem_jax.predict']
  command += [f'--{name}={value}' for name, value in flags.items()]
  environment = {
    'XLA_FLAGS': '',
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(place / 'cache'),
  }
  return subprocess.Popen(
    command,
    cwd=place,
    env=os.environ | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(place, **flags):
  process = start(place, **flags)
  out, err = process.communicate(timeout=120)
  return process.returncode, out, err


def rows(place, output):
  with (place / output / 'predictions.csv').open(newline='') as file:
    return {row['file']: row for row in csv.DictReader(file)}


def stop_after_some_rows(process, table, number, count):
  deadline = time.monotonic() + 100
  while time.monotonic() < deadline and process.poll() is None:
    if table.exists() and table.read_bytes().count(b'\n') > count:
      process.send_signal(number)
      break
    time.sleep(0.002)
  return process.communicate(timeout=100)


def test_an_interrupted_run_goes_on(place):
  status, out, err = finish(place, output='whole')
  assert status == 0, err
  assert f'{COUNT} images, ' in out
  expected = rows(place, 'whole')
  assert len(expected) == COUNT
  assert len({row['score'] for row in expected.values()}) > COUNT // 2

  table = place / 'out' / 'predictions.csv'
  process = start(place)
  _, err = stop_after_some_rows(process, table, signal.SIGTERM, 3)
  assert process.returncode == 128 + signal.SIGTERM, err
  assert 'the same command goes on' in err and 'Traceback' not in err
  first = rows(place, 'out')
  assert 3 <= len(first) < COUNT

  process = start(place)
  stop_after_some_rows(process, table, signal.SIGKILL, len(first) + 4)
  assert process.returncode == -signal.SIGKILL
  assert len(first) < table.read_bytes().count(b'\n') - 1 < COUNT

  status, out, err = finish(place)
  assert status == 0 and f'of {COUNT} images' in err
  found = rows(place, 'out')
  assert table.read_bytes().count(b'\n') == COUNT + 1
  assert found == expected
  for name in ('predictions.json', 'regions.jsonl'):
    whole = (place / 'whole' / name).read_bytes()
    assert (place / 'out' / name).read_bytes() == whole, name
  regions = json.loads((place / 'out' / 'predictions.json').read_bytes())
  assert [image['file_name'] for image in regions['images']] == list(expected)
  anomalous = [row['is_anomalous'] == 'true' for row in expected.values()]
  assert [image['is_anomalous'] for image in regions['images']] == anomalous
  assert any(anomalous) and regions['annotations']
  for name in found:
    for folder in ('overlays', 'maps'):
      with (
        Image.open(place / 'photos' / name) as image,
        Image.open(place / 'out' / folder / name) as picture,
      ):
        assert picture.size == image.size
  leftovers = [
    path for path in (place / 'out').rglob('*') if path.suffix == '.part'
  ]
  assert not leftovers


def test_a_broken_file_shows_in_the_status(place):
  folder = place / 'some'
  folder.mkdir()
  Image.fromarray(random_images(1, 32)[0]).save(folder / 'good.png')
  (folder / 'bad.png').write_bytes(b'no image')
  (folder / 'phone.HEIC').write_bytes(b'of no use')
  # What is written inside the folder of images is not scored itself.
  for _ in range(2):
    status, out, err = finish(
      place, images='some/**', output='some/out', threshold=0
    )
    assert status == 1
    assert '1 images, 1 anomalous' in out
    assert 'bad.png cannot be read' in err and 'Traceback' not in err
    assert '1 files' in err and '1 .heic' in err and 'phone.HEIC' in err
    assert err.strip().splitlines()[-1].endswith(': 1')
  assert list(rows(place, 'some/out')) == ['good.png']
  status, _, err = finish(
    place, images='some/**', output='some/out', threshold=0.5
  )
  assert status == 2 and 'another threshold 0.5 (there 0.0)' in err


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    ({'workdir': 'photos'}, 'photos/config.json does not exist'),
    ({'images': 'none', 'workdir': 'none'}, '--images=none does not exist'),
    ({'output': 'run'}, 'folder of the run'),
    ({'threshold': '1.5'}, '--threshold'),
    ({'output': ''}, '--output is missing'),
  ],
)
def test_a_mistake_is_one_line(place, flags, words):
  status, out, err = finish(place, **flags)
  assert status == 2
  assert err.startswith('error: ') and err.count('\n') == 1, err
  assert words.lstrip('-') in err and not out
