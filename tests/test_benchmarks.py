"""The benchmarks, shrunken until they take seconds: they run and add up."""

import contextlib
import json
import pathlib
import re
import shlex
import types

import jax
import pytest
import serving

from benchmarks import (
  contest,
  cost,
  deploy,
  evaluation,
  inference,
  memory,
  serve,
  simulator,
  startup,
  train_step,
)
from draem_jax import command
from draem_jax.configs import mvtec


@pytest.fixture(autouse=True)
def compile_quickly(monkeypatch):
  monkeypatch.setattr(command, 'use_compilation_cache', lambda: None)
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


def run(benchmark, capsys, *arguments):
  """Runs `main`; returns the table's rows by name and the record."""
  benchmark.main(
    ['--size=32', '--widths', '4', '2', '--rounds=1', '--seconds=0', *arguments]
  )
  lines = capsys.readouterr().out.splitlines()
  rows = [line.split('|')[1].strip() for line in lines if line.startswith('|')]
  record = json.loads(lines[-1])
  assert record['machine']['platform'] and record['versions']['jax']
  assert record['command'].endswith(' '.join(arguments))
  return rows[2:], record['results']


@pytest.mark.slow
def test_training(capsys, monkeypatch):
  config = mvtec.get_config('bottle,release')
  # Ten operations take most of the time to compile.
  config.simulator.augmentations = ('invert',)
  config.simulator.num_augmentations = 1
  monkeypatch.setattr(mvtec, 'get_config', lambda _: config)
  names, results = run(train_step, capsys, '--batch=2')
  assert names == [train_step.WHOLE, train_step.FIXED]
  whole, fixed = results['rows']
  for row in whole, fixed:
    seconds = row['milliseconds'] / 1000
    assert row['images_per_second'] == pytest.approx(2 / seconds, rel=1e-3)
  share = 1 - fixed['milliseconds'] / whole['milliseconds']
  assert results['simulator_share'] == pytest.approx(share, abs=1e-3)


def test_inference(capsys):
  names, cases = run(inference, capsys, '--batch', '1')
  assert names == [inference.OURS]
  assert [case['batch'] for case in cases] == [1]


def test_the_cost_of_an_image():
  assert cost.multiply_adds(256, (128, 64)) == pytest.approx(197.95e9, rel=1e-4)
  assert cost.flop(256, (128, 64), 'training') == pytest.approx(
    1.18e12, rel=0.01
  )


def test_contenders_take_turns():
  turns = []

  def contender(name, seconds):
    def run(calls):
      turns.append((name, calls))
      return seconds * calls

    return run

  timings = contest.measure(
    {'slow': contender('slow', 0.5), 'quick': contender('quick', 0.1)},
    rounds=2,
    seconds=1.0,
  )
  assert turns[2:] == [('slow', 2), ('quick', 10)] * 2
  assert timings['slow'].best == timings['slow'].median == 0.5
  assert timings['quick'].calls == 10


def test_a_peer_that_cannot_run_is_left_out(capfd):
  peers, failed = contest.start_peers(
    ['sideways'], task='training', size=32, widths=[4, 2], batch=1
  )
  assert not peers and failed == ['PyTorch, sideways']
  assert 'sideways: exit status 1' in capfd.readouterr().err


def test_a_start_that_fails_says_why(tmp_path):
  with pytest.raises(RuntimeError, match='take 96'):
    startup.measure(tmp_path, 'run', ['--config.image_size=100'])


def test_the_service_under_load(capsys, monkeypatch, tmp_path):
  detector = serving.make_detector(batch_size=2)
  monkeypatch.setattr(serve.Detector, 'load', lambda *_, **__: detector)

  @contextlib.contextmanager
  def service(flags):
    assert '--batch_size=2' in flags
    with serving.running(detector) as client:
      yield client.port, types.SimpleNamespace(returncode=0)

  monkeypatch.setattr(serve, 'service', service)
  for index in range(6):
    square = (index, index, 20) if index % 2 else None
    (tmp_path / f'{index}.png').write_bytes(serving.picture(square=square))
  arguments = ['--workdir=run', f'--images={tmp_path}', '--requests=24']
  serve.main([*arguments, '--clients=3', '--broken=0.25', '--turns=2'])
  results = json.loads(capsys.readouterr().out.splitlines()[-1])['results']
  assert results['statuses'] == {'200': 18, '422': 6}
  assert (results['answered'], results['wrong']) == (24, 0)
  assert results['requests_per_second'] > 0
  assert results['mebibytes']['quarter 1'] > 100
  assert results['exit_status'] == 0
  # Another detector than the one that answers.
  other = detector.with_thresholds(image=1.0)
  monkeypatch.setattr(serve.Detector, 'load', lambda *_, **__: other)
  with pytest.raises(SystemExit):
    serve.main([*arguments, '--broken=0'])
  assert 'is_anomalous is True, not False' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('status', 'result', 'words'),
  [
    (200, {'file': 'a', 'score': 0.5}, None),
    (200, {'file': 'a', 'score': 0.5000001}, 'score is 0.5000001'),
    (422, {'file': 'a', 'error': 'broken'}, 'answered by 422'),
    (500, {}, 'answered by 500'),
  ],
)
def test_a_wrong_answer_of_the_service_is_a_fault(status, result, words):
  text = json.dumps({'results': [result]}).encode()
  sound = serve._File('a', b'', {'file': 'a', 'score': 0.5})
  found = serve._find_fault(sound, status, text)
  assert words in found if words else found is None
  broken = serve._File('a', b'', None)
  assert bool(serve._find_fault(broken, status, text)) == (status != 422)


@pytest.mark.parametrize(
  'benchmark',
  [deploy, evaluation, inference, serve, simulator, startup, train_step],
)
def test_what_the_docs_tell_to_type_is_understood(benchmark):
  name = benchmark.__name__.rpartition('.')[2]
  page = pathlib.Path(benchmark.__file__).parent / 'README.md'
  texts = benchmark.__doc__, page.read_text(encoding='utf-8')
  found = []
  for text in texts:
    text = re.sub(r'\\?\n +', ' ', text)
    found += re.findall(rf'python -m benchmarks\.{name}([^|`\n]*)', text)
  assert found
  for arguments in found:
    words = [
      word.replace('$dtype', 'bfloat16').replace('$batch', '8')
      for word in shlex.split(arguments)
    ]
    benchmark.make_parser().parse_args(words)


def test_memory_of_a_large_picture(capsys, tmp_path):
  memory.main(['--side=120', '--tile=32', f'--folder={tmp_path}'])
  before, most = re.findall(r'(\d+) MiB', capsys.readouterr().out)
  assert 0 < int(before) <= int(most)
  assert 'large.jpg,' in (tmp_path / 'out/predictions.csv').read_text()
