"""The benchmarks, shrunken until they take seconds: they run and add up."""

import contextlib
import json
import pathlib
import re
import shlex
import types

import jax
import jax.numpy as jnp
import pytest
import serving

from benchmarks import (
  compiled,
  contest,
  cost,
  deploy,
  evaluation,
  inference,
  memory,
  recipes,
  serve,
  simulator,
  startup,
  train_step,
)
from draem_jax import command
from draem_jax.configs import mvtec
from draem_jax.workdir import lock


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
  [
    compiled,
    deploy,
    evaluation,
    inference,
    recipes,
    serve,
    simulator,
    startup,
    train_step,
  ],
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


def instruction(text, name='', cycles=''):
  """A line as XLA prints it."""
  name = name and f', metadata={{op_name="jit(step)/{name}"}}'
  cycles = cycles and f', backend_config={{"estimated_cycles":"{cycles}"}}'
  return f'  %x = {text}{name}{cycles}'


PROGRAM = [
  '%inside (p: f32[8]) -> f32[8] {',
  instruction('f32[8]{0} sort(%p), dimensions={0}'),
  '}',
  # The start and the end of one that goes on beside other work.
  instruction('bf16[100]{0} all-reduce(%p), channel_id=3, to_apply=%add'),
  instruction('bf16[100]{0} all-reduce(%p), channel_id=3, to_apply=%add'),
  'ENTRY %main (x: f32[8]) -> f32[8] {',
  instruction('f32[8]{0} parameter(0)'),
  instruction(
    '(bf16[2,4]{1,0:T(8,128)(2,1)}, f32[8]{0}) fusion(%x), calls=%inside',
    'jvp(Draem)/conv_general_dilated',
    3_000_000,
  ),
  instruction('f32[8] copy(%x)', 'transpose(jvp(Draem))/reshape', 1_500_000),
  instruction('f32[8]{0} copy(%x)', cycles=750_000),
  instruction('(bf16[1000,2]{1,0}, f32[3]{0}) all-reduce(%a), channel_id=1'),
  instruction('f32[8]{0} fusion(%x), calls=%inside', 'vmap()/gather'),
  instruction('f32[8]{0} fusion(%x)', 'mul', 1_500_000),
  '}',
]


def test_a_compiled_program_is_told_by_part():
  found = compiled.analyze('\n'.join(PROGRAM), compiled.CHIPS['v5e'])
  assert found['milliseconds'] == {
    'convolutions, forward': 2.0,
    'networks, backward: copies': 1.0,
    'optimizer and sampling': 1.0,
    'copies without a name': 0.5,
  }
  assert found['total_milliseconds'] == 4.5
  assert found['without_an_estimate'] == {'all-reduce': 1, 'fusion': 1}
  assert found['counts']['sort'] == 1 and found['counts']['while'] == 0
  assert found['collectives'] == {
    'all-reduce': {'count': 1, 'bytes': 4012},
    'hidden all-reduce': {'count': 1, 'bytes': 200},
  }


def test_the_time_of_collectives():
  collectives = {'all-reduce': {'count': 10, 'bytes': 200_000_000}}
  chip = compiled.CHIPS['v5e']
  arguments = collectives, chip
  # 3/4 of the bytes go out twice at 100 GB/s, and 10 times 4 hops.
  expected = 3.0 + 10 * 4e-3
  assert compiled.collective_milliseconds(*arguments, (2, 2)) == expected
  assert compiled.collective_milliseconds(*arguments, (1, 1)) == 0
  collectives['hidden all-reduce'] = {'count': 5, 'bytes': 10**9}
  assert compiled.collective_milliseconds(*arguments, (2, 2)) == expected
  assert (
    compiled.collective_milliseconds({}, compiled.CHIPS['h100'], (1,)) is None
  )


def test_what_xla_prints_is_read():
  """Of a program with a loop, a branch and a sum over two devices."""
  auto = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((2,), ('data',), axis_types=auto)
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))

  def step(x):
    x = jax.lax.fori_loop(0, jnp.int32(x[0, 0]), lambda i, x: jnp.sin(x), x)
    x = jax.lax.cond(x[0, 0] > 0, jnp.cos, jnp.tan, x)
    return jnp.sort(x.sum(axis=0))

  x = jax.ShapeDtypeStruct((4, 300), jnp.float32, sharding=split)
  text = jax.jit(step).lower(x).compile().as_text()
  found = compiled.analyze(text, compiled.CHIPS['h100'])
  assert min(found['counts'][name] for name in ('while', 'conditional', 'sort'))
  assert found['collectives']['all-reduce']['bytes'] >= 1200
  assert found['total_milliseconds'] is None


def test_an_unknown_chip_is_refused(capsys):
  with pytest.raises(SystemExit):
    compiled.make_parser().parse_args(['--topology=v1'])
  assert 'take one of v5e' in capsys.readouterr().err


def test_memory_of_a_large_picture(capsys, tmp_path):
  memory.main(['--side=120', '--tile=32', f'--folder={tmp_path}'])
  before, most = re.findall(r'(\d+) MiB', capsys.readouterr().out)
  assert 0 < int(before) <= int(most)
  assert 'large.jpg,' in (tmp_path / 'out/predictions.csv').read_text()


def recipe_arguments(folder):
  return recipes.make_parser().parse_args(
    [f'--folder={folder}', '--data=DATA', '--seeds=0,1']
  )


def test_the_curves_of_recipes_are_told_by_category_and_preset(tmp_path):
  found = {'image_auroc': 90.0, 'pixel_auroc': 80.0, 'pixel_ap': 10.0}
  runs = [
    {
      **{'preset': preset, 'category': category, 'seed': seed},
      'curve': {
        '100': found | {'loss': 1.0, 'pixel_ap': 5.0},
        '3000': found | {'loss': 0.5, 'pixel_ap': 10.0 + seed + add},
      },
    }
    for seed in (1, 0)
    for category in ('cup', 'pen')
    for preset, add in (('release', 0), ('best', 6))
  ]
  for run in runs[:2]:  # Of masks that are none.
    for values in run['curve'].values():
      values['pixel_ap'] = None
  header, _, *rows = recipes.table(runs).splitlines()
  assert header.endswith('pixel AP |')
  assert rows[3] == (
    '| pen | best | 0, 1 | **90.0** (90.0, 90.0) | **80.0** (80.0, 80.0) |'
    ' **16.5** (16.0, 17.0) |'
  )
  recipes.draw_curves(tmp_path / 'curves.png', runs)
  assert (tmp_path / 'curves.png').stat().st_size > 10_000


def test_a_run_of_recipes_is_made_once(tmp_path, monkeypatch):
  args, made = recipe_arguments(tmp_path), []

  def train(args, *run):
    made.append(run)
    if len(made) == 1:
      raise KeyboardInterrupt
    return {'seed': run[-1]}

  monkeypatch.setattr(recipes, 'train_and_evaluate', train)
  with pytest.raises(KeyboardInterrupt):
    recipes._run_if_missing(args, 'best', 'pen', 0)
  for seed in (0, 1, 0):
    recipes._run_if_missing(args, 'best', 'pen', seed)
  with lock.hold(tmp_path / 'best-pen-1'):  # As another process would.
    (tmp_path / 'best-pen-1' / 'run.json').rename(tmp_path / 'kept')
    recipes._run_if_missing(args, 'best', 'pen', 1)
    (tmp_path / 'kept').rename(tmp_path / 'best-pen-1' / 'run.json')
  assert [run[-1] for run in made] == [0, 0, 1]
  assert recipes.read(tmp_path) == [{'seed': 0}, {'seed': 1}]


def test_recipes_differ_in_nothing_but_the_preset(tmp_path):
  args = recipe_arguments(tmp_path)
  args.set = ['simulator.noise=0.5', 'loss.gamma=1.0']
  configs = [
    recipes.make_config(args, preset, 'bottle', 3)
    for preset in ('release', 'best')
  ]
  for config in configs:
    assert (config['seed'], config['score_window']) == (3, 5)
    assert config['eval']['mask_threshold'] == 0.5
    assert config['simulator']['noise'] == 0.5 and config['loss']['gamma'] == 1
  assert [each['optimizer'] for each in configs] == ['adam', 'muon']


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    (['--presets=better'], "unknown preset 'better'"),
    (['--seeds=x'], "'x'"),
    (['--set=loss.gama=1'], 'did you mean config.loss.gamma?'),
    (['--set=loss.gamma=one'], 'a value as JSON'),
    (['--set=loss.gamma=-1'], 'config.loss.gamma'),
    (['--size=63'], 'config.image_size'),
    (['--steps=7'], 'take another --folder'),
  ],
)
def test_what_recipes_cannot_run_is_one_line(
  arguments, words, tmp_path, monkeypatch, capsys
):
  recipes._keep_setting(recipe_arguments(tmp_path))
  command = ['recipes', f'--folder={tmp_path}', '--data=DATA', *arguments]
  monkeypatch.setattr('sys.argv', command)
  with pytest.raises(SystemExit):
    recipes.main()
  assert words in capsys.readouterr().err.splitlines()[-1]
