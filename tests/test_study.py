"""Studies: their runs, the processes that run them, and their tables."""

import csv
import importlib
import json
import logging
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import textwrap
import time

import pytest

from draem_jax import config as config_lib
from draem_jax import interrupt, paper, study
from draem_jax.configs import ablations, figure9, mvtec, recipes, table3
from draem_jax.errors import UserError
from draem_jax.studies import cells, plan, state, tables, workers
from draem_jax.studies import figure9 as figure9_plot
from draem_jax.studies.state import State
from draem_jax.workdir import lock

NAMES = 'table1', 'table2', 'table3', 'table4', 'figure9', 'recipes'


def small_study(rows=('a', 'b'), categories=('cup', 'pen'), trained_by=None):
  config = mvtec.shared('small')
  values = {row: {'learning_rate': 1e-3 + n} for n, row in enumerate(rows)}
  return plan.make(
    config,
    name='small',
    tables=('table3',),
    rows=values,
    categories=categories,
    trained_by=trained_by,
  )


@pytest.mark.parametrize('name', NAMES)
def test_the_studies_of_the_package_can_run(name):
  module = importlib.import_module(f'draem_jax.configs.{name}')
  full = plan.list_runs(module.get_config().to_dict())
  small = plan.list_runs(module.get_config('small').to_dict())
  assert [run.name for run in full] == [run.name for run in small]
  assert {run.config['image_size'] for run in full} == {256}
  assert {run.config['image_size'] for run in small} == {64}
  with pytest.raises(ValueError, match='take small'):
    module.get_config('tiny')


@pytest.mark.parametrize('row', ablations.ROWS)
def test_a_row_is_its_assignments_and_nothing_else(row):
  config = config_lib.flatten(ablations.get_config(f'{row},screw').to_dict())
  paper_config = config_lib.flatten(mvtec.get_config('screw,paper').to_dict())
  config_lib.check(ablations.get_config(f'{row},screw').to_dict())
  assigned = config_lib.flatten(ablations.ROWS[row])
  assert config == paper_config | assigned
  assert all(paper_config[name] != value for name, value in assigned.items())


def test_table_3_has_every_row_of_the_paper_in_its_order():
  runs = plan.list_runs(table3.get_config().to_dict(), categories=['bottle'])
  assert set(ablations.ROWS) == set(paper.TABLE3)
  rows = table3.get_config().study.order
  assert list(rows) == [row for row in paper.TABLE3 if row in rows]
  # Whoever takes networks comes behind whoever trains them.
  order = [run.row for run in runs]
  assert order.index('recon_ae') < order.index('recon_ae_msgms')


@pytest.mark.parametrize('setting', ['', 'small'])
def test_each_row_of_the_recipes_takes_one_part_out(setting):
  runs = plan.list_runs(recipes.get_config(setting).to_dict(), categories=['x'])
  rows = {run.row: config_lib.flatten(run.config) for run in runs}
  for name in ('paper', 'release', 'best'):
    preset = mvtec.get_config(f'x,{name},{setting}').to_dict()
    same = {'eval.mask_threshold': 0.5}
    assert rows[name] == config_lib.flatten(preset) | same
  taken = set()
  for name, fields in recipes.PARTS.items():
    changed = {
      field for field in rows[name] if rows[name][field] != rows['best'][field]
    }
    differ = {
      each for each in fields if rows['release'][each] != rows['best'][each]
    }
    assert changed == differ and differ
    assert all(rows[name][each] == rows['release'][each] for each in fields)
    taken |= changed
  # Nothing of the recipe is left without a row.
  differ = {
    name for name in rows['best'] if rows['best'][name] != rows['release'][name]
  }
  assert differ == taken


def test_an_unknown_row_of_table_3_names_those_that_exist():
  with pytest.raises(ValueError, match='rectangle.*rect.*draem'):
    ablations.get_config('rectangle,bottle')


def test_figure_9_has_both_kinds_at_every_number_of_textures():
  runs = plan.list_runs(figure9.get_config().to_dict(), categories=['bottle'])
  kinds = {
    (
      run.config['data']['num_textures'],
      run.config['simulator']['num_augmentations'],
      run.config['simulator']['opacity'],
    )
    for run in runs
  }
  counts = (1, 3, 10, 30, 100, 300, 1000, 0)
  assert kinds == {(count, 3, (0.1, 1.0)) for count in counts} | {
    (count, 0, (1.0, 1.0)) for count in counts
  }


def test_runs_are_rows_by_categories_by_seeds():
  config = small_study()
  config.image_size = 96  # As from the command line: for all runs.
  runs = plan.list_runs(config.to_dict(), seeds=['1', '4'])
  assert [run.name for run in runs] == [
    f'{row}/{category}/seed{seed}'
    for seed in (1, 4)
    for category in ('cup', 'pen')
    for row in ('a', 'b')
  ]
  for run in runs:
    assert run.config['image_size'] == 96
    assert run.config['category'] == run.category
    assert run.config['seed'] == run.seed
    assert run.config['learning_rate'] == {'a': 1e-3, 'b': 1 + 1e-3}[run.row]
    assert 'study' not in run.config
  chosen = plan.list_runs(config.to_dict(), rows=['b'], categories=['pen'])
  assert [run.name for run in chosen] == ['b/pen/seed0']
  # A category of one's own, which the folder has to have.
  own = plan.list_runs(config.to_dict(), rows=['b'], categories=['nut'])
  assert [run.name for run in own] == ['b/nut/seed0']


@pytest.mark.parametrize(
  ('choice', 'words'),
  [
    ({'rows': ['c']}, "unknown row 'c'.*a, b"),
    ({'seeds': ['x']}, '--seeds=x'),
    ({'seeds': ['-1']}, '--seeds=-1'),
  ],
)
def test_a_wrong_choice_names_what_there_is(choice, words):
  with pytest.raises(UserError, match=words) as error:
    plan.list_runs(small_study().to_dict(), **choice)
  assert '\n' not in str(error.value)


def test_a_row_that_cannot_work_is_named():
  config = small_study()
  config.study.rows.b.learning_rate = -1.0
  with pytest.raises(UserError, match="row 'b': config.learning_rate=-1"):
    plan.list_runs(config.to_dict())


def test_a_field_that_is_none_is_named_with_its_row():
  config = small_study().to_dict()
  config['study']['rows']['b'] = {'simulator': {'opaqueness': 1.0}}
  with pytest.raises(UserError, match="row 'b': simulator.opaqueness is no"):
    plan.list_runs(config)


def test_rows_that_fit_no_table_together_are_refused():
  config = small_study().to_dict()
  config['study']['rows']['b'] = {'data': {'layout': 'dagm'}}
  with pytest.raises(UserError, match="'a' .*'b' .*data.layout"):
    plan.list_runs(config)
  config = small_study().to_dict()
  config['study']['tables'] = ('table7',)
  with pytest.raises(UserError, match='table7.*table3'):
    plan.list_runs(config)


def test_a_row_without_whoever_trains_its_networks_is_refused():
  config = small_study(trained_by={'b': 'a'}).to_dict()
  with pytest.raises(UserError, match="'b' takes the networks of 'a'"):
    plan.list_runs(config, rows=['b'])
  runs = plan.list_runs(config, categories=['cup'])
  assert [run.trainer for run in runs] == ['a/cup/seed0', 'a/cup/seed0']


def test_another_study_keeps_its_folder(tmp_path):
  config = small_study().to_dict()
  plan.claim(tmp_path, config)
  plan.claim(tmp_path, config)
  config['study']['name'] = 'large'
  with pytest.raises(UserError, match="the study 'small', not 'large'"):
    plan.claim(tmp_path, config)
  (tmp_path / plan.FILE).write_text('{"stu')
  with pytest.raises(UserError, match='study.json is damaged'):
    plan.claim(tmp_path, config)


def test_what_differs_from_the_paper_is_said():
  assert plan.differences(table3.get_config().to_dict()) == []
  words = plan.differences(small_study().to_dict())
  assert 'image_size=64' in words and 'num_steps=3000' in words
  assert not any(word.startswith('seed') for word in words)


# Tables.

CATEGORIES = ('bottle', 'wood')


def make_results(rows=('draem', 'rect'), seeds=(0, 1, 2)):
  return {
    (row, category, seed): {
      'image_auroc': 0.9 + 0.01 * number - 0.02 * place + 0.003 * seed**2,
      'pixel_auroc': 0.8,
      'pixel_ap': 0.5 + 0.01 * seed,
    }
    for number, row in enumerate(rows)
    for place, category in enumerate(CATEGORIES)
    for seed in seeds
  }


def test_a_cell_is_the_mean_of_categories_then_of_seeds():
  results = make_results()
  averages = [
    statistics.mean(
      results['rect', category, seed]['image_auroc'] for category in CATEGORIES
    )
    for seed in range(3)
  ]
  found = cells.cell(results, 'rect', CATEGORIES, 'image_auroc')
  assert found.mean == pytest.approx(statistics.mean(averages))
  assert found.deviation == pytest.approx(statistics.stdev(averages))
  assert (found.seeds, found.categories) == (3, 2)


def test_a_seed_that_lacks_a_category_does_not_count():
  results = make_results()
  del results['rect', 'wood', 2]
  whole = {key: value for key, value in results.items() if key[2] != 2}
  assert cells.cell(results, 'rect', CATEGORIES, 'pixel_ap') == cells.cell(
    whole, 'rect', CATEGORIES, 'pixel_ap'
  )


def test_without_a_whole_seed_the_categories_that_are_there_count():
  results = {
    ('rect', 'bottle', seed): {'image_auroc': value}
    for seed, value in enumerate((0.8, 0.9))
  }
  found = cells.cell(results, 'rect', CATEGORIES, 'image_auroc')
  assert found.mean == pytest.approx(0.85)
  assert found.deviation is None
  assert (found.seeds, found.categories) == (2, 1)
  assert cells.cell({}, 'rect', CATEGORIES, 'image_auroc').mean is None
  none = {('rect', 'bottle', 0): {'image_auroc': None}}
  assert cells.cell(none, 'rect', CATEGORIES, 'image_auroc').mean is None


def write_tables(folder, results, names=('table3',), rows=('draem', 'rect')):
  return tables.write(
    folder,
    results,
    tables=names,
    rows=rows,
    categories=CATEGORIES,
    differences=['image_size=64'],
    count=12,
  )


def test_the_files_of_a_table_agree(tmp_path):
  text = write_tables(tmp_path, make_results(), rows=('draem', 'rect', 'disc'))
  assert (tmp_path / 'table.md').read_text() == f'{text}\n'
  # Row, ours, deviation, and the paper's averages.
  assert '| DRÆM rect (rect) | 90.5 ± 0.6 (96.9) | 80.0 ± 0.0 (96.8) |' in text
  assert '| Disc. (disc) | – (93.9) | – (92.7) | – (62.5) |' in text
  assert '12 runs' in text and 'image_size=64' in text
  # By category the paper's average has no place.
  assert '## wood' in text and '| DRÆM rect (rect) | 89.5 ± 0.6 |' in text
  with open(tmp_path / 'table.csv', newline='') as file:
    lines = list(csv.DictReader(file))
  line = next(
    line
    for line in lines
    if (line['row'], line['category'], line['metric'])
    == ('rect', 'average', 'image_auroc')
  )
  assert line['published'] == '0.969' and line['seeds'] == '3'
  assert float(line['mean']) == pytest.approx(0.905)
  html = (tmp_path / 'table.html').read_text()
  assert '90.5 ± 0.6 (96.9)' in html and 'http' not in html.split('<body>')[1]


def test_tables_1_and_2_set_the_systems_beside_ours(tmp_path):
  text = write_tables(
    tmp_path, make_results(), names=('table1', 'table2'), rows=('draem',)
  )
  bottle = next(line for line in text.splitlines() if '| bottle |' in line)
  published = [f'{paper.TABLE1[name]["bottle"]:.1f}' for name in paper.TABLE1]
  assert bottle.split(' | ')[1:-1] == published
  assert bottle.endswith('| 90.5 ± 0.6 |')
  assert '| 98.4 / 76.4 |' in text.split('Table 2')[1]
  # The printed averages are over all 15, ours here over two.
  average = next(line for line in text.splitlines() if '| average |' in line)
  assert average.count('–') == len(paper.TABLE1)


def test_table_4_has_both_thresholds(tmp_path):
  results = {
    ('draem', 'bottle', 0): {
      'image_auroc': 0.9,
      'true_positive_rate': 0.8,
      'true_negative_rate': 0.7,
      'accuracy': 0.75,
      'best_f1_true_positive_rate': 0.6,
      'best_f1_true_negative_rate': 0.5,
      'best_f1_accuracy': 0.55,
    }
  }
  text = write_tables(tmp_path, results, names=('table4',), rows=('draem',))
  assert '| 90.0 (99.0) | 80.0 (96.5) | 70.0 (99.4) | 75.0 (98.5) |' in text
  assert '| 90.0 (99.0) | 60.0 (96.5) | 50.0 (99.4) | 55.0 (98.5) |' in text
  assert '| CADN (published) | – | – | – | 89.1 |' in text
  assert 'of 1 of 2 categories' in text
  assert paper.NOTES[4] in text


def test_figure_9_is_drawn_of_what_is_there(tmp_path):
  rows = ['augmented_1', 'augmented_all', 'plain_1', 'plain_all']
  results = {
    (row, 'bottle', seed): {'image_auroc': 0.5 + 0.1 * seed, 'pixel_ap': 0.4}
    for row in rows[:3]
    for seed in range(2)
  }
  path = tmp_path / 'figure9.png'
  figure9_plot.draw(path, results, rows=rows, categories=['bottle'])
  text = tables.write(
    tmp_path,
    results,
    tables=('figure9',),
    rows=rows,
    categories=['bottle'],
    differences=[],
    count=8,
    picture=path,
  )
  assert '| augmented_1 | 55.0 ± 7.1 | – | 40.0 ± 0.0 |' in text
  assert '![figure9](figure9.png)' in text
  assert 'src="data:image/png;base64,' in (tmp_path / 'table.html').read_text()


# States and processes. A stand-in for the command runs a run in no time.

FAKE = """
  import json, pathlib, sys, time
  from draem_jax.workdir import lock
  plan = json.loads(pathlib.Path(sys.argv[1]).read_text())
  number = int(sys.argv[-1].removeprefix('--only='))
  name, deed = plan[number - 1]
  folder = pathlib.Path(sys.argv[2]) / name
  with lock.hold(folder):
    with open(folder.parents[2] / 'order.txt', 'a') as file:
      file.write(f'{name}\\n')
    if deed == 'fail':
      sys.exit('error: the disk is full')
    if deed == 'sleep':
      time.sleep(600)
    (folder / 'results.json').write_text('{}')
    (folder / 'report.html').write_text('')
"""


@pytest.fixture
def crew(tmp_path):
  """Makes a crew whose runs do as they are told."""
  script = tmp_path / 'fake.py'
  script.write_text(textwrap.dedent(FAKE))

  def make(deeds, *, processes=2, trained_by=None):
    config = small_study(
      rows=list(deeds), categories=('cup',), trained_by=trained_by
    )
    runs = plan.list_runs(config.to_dict())
    told = [(run.name, deeds[run.row]) for run in runs]
    (tmp_path / 'plan.json').write_text(json.dumps(told))
    command = [sys.executable, script, tmp_path / 'plan.json', tmp_path]
    return workers.Crew(
      runs,
      tmp_path,
      command=list(map(str, command)),
      places=[workers.Place({})] * processes,
    )

  return make


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(workers, '_LOOK_EVERY', 0.02)


def test_one_failure_does_not_stop_the_others(crew, tmp_path, caplog):
  caplog.set_level(logging.INFO)
  failed = crew({'a': 'do', 'b': 'fail', 'c': 'do'}).work()
  assert failed == {'b/cup/seed0': 'the disk is full'}
  states = [state.of(tmp_path / f'{row}/cup/seed0') for row in 'abc']
  assert states == [State.FINISHED, State.FAILED, State.FINISHED]
  assert state.failure(tmp_path / 'b/cup/seed0') == 'the disk is full'
  assert 'runs: 2 done, 0 running, 1 failed, 0 waiting' in caplog.text
  # The same command tries it again, and only it.
  assert crew({'a': 'fail', 'b': 'do', 'c': 'fail'}).work() == {}
  assert state.of(tmp_path / 'b/cup/seed0') is State.FINISHED
  lines = (tmp_path / 'order.txt').read_text().split()
  assert sorted(lines) == sorted(f'{row}/cup/seed0' for row in 'abbc')


def test_networks_are_trained_before_they_are_taken(crew, tmp_path):
  trained_by = {'a': 'c'}
  assert (
    crew({'a': 'do', 'b': 'do', 'c': 'do'}, trained_by=trained_by).work() == {}
  )
  order = (tmp_path / 'order.txt').read_text().split()
  assert order.index('c/cup/seed0') < order.index('a/cup/seed0')


def test_a_row_whose_networks_failed_is_not_begun(crew, tmp_path):
  failed = crew({'a': 'do', 'b': 'fail'}, trained_by={'a': 'b'}).work()
  assert list(failed) == ['b/cup/seed0']
  assert state.of(tmp_path / 'a/cup/seed0') is State.WAITING


def test_what_another_process_runs_is_waited_for(crew, tmp_path):
  folder = tmp_path / 'a/cup/seed0'
  folder.mkdir(parents=True)
  code = f"""
    import pathlib, time
    from draem_jax.workdir import lock
    folder = pathlib.Path({str(folder)!r})
    with lock.hold(folder):
      print('held', flush=True)
      time.sleep(1.5)
      (folder / 'results.json').write_text('{{}}')
      (folder / 'report.html').write_text('')
  """
  other = subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(code)], stdout=subprocess.PIPE
  )
  other.stdout.readline()
  assert crew({'a': 'fail', 'b': 'do'}).work() == {}
  assert state.of(folder) is State.FINISHED
  assert (tmp_path / 'order.txt').read_text() == 'b/cup/seed0\n'
  other.communicate()


def test_a_killed_worker_is_told_of(crew, tmp_path):
  made = crew({'a': 'sleep'})
  begun = time.monotonic()
  watcher = subprocess.Popen(
    [
      *(sys.executable, '-c'),
      textwrap.dedent(f"""
        import os, pathlib, signal, time
        path = pathlib.Path({str(tmp_path)!r}) / 'a/cup/seed0/.lock'
        while not path.exists() or not path.read_bytes():
          time.sleep(0.05)
        os.kill(int(path.read_text().split()[1]), signal.SIGKILL)
      """),
    ]
  )
  assert made.work() == {'a/cup/seed0': 'ended by SIGKILL'}
  watcher.wait()
  assert time.monotonic() - begun < 300
  assert crew({'a': 'do'}).work() == {}


def test_a_signal_ends_all_runs_in_order(crew, tmp_path):
  made = crew({'a': 'sleep', 'b': 'sleep', 'c': 'do'})
  watcher = subprocess.Popen(
    [
      *(sys.executable, '-c'),
      textwrap.dedent(f"""
        import os, pathlib, signal, time
        paths = [
          pathlib.Path({str(tmp_path)!r}) / f'{{row}}/cup/seed0/.lock'
          for row in 'ab'
        ]
        while not all(path.exists() and path.read_bytes() for path in paths):
          time.sleep(0.05)
        os.kill({os.getpid()}, signal.SIGTERM)
      """),
    ]
  )
  with pytest.raises(interrupt.Interrupted, match='same command') as stop:
    made.work()
  watcher.wait()
  assert stop.value.signal_number == signal.SIGTERM
  assert not any(lock.is_held(tmp_path / f'{row}/cup/seed0') for row in 'ab')
  assert state.of(tmp_path / 'c/cup/seed0') is State.WAITING


def test_cores_are_divided(monkeypatch):
  monkeypatch.setattr(workers, '_ask_jax', lambda: ('cpu', 1))
  monkeypatch.setattr(os, 'sched_getaffinity', lambda _: {0, 1, 2, 5})
  assert workers.find_places(None) == [workers.Place({})]
  places = workers.find_places(2)
  assert [place.cores for place in places] == [{0, 2}, {1, 5}]
  with pytest.raises(UserError, match='--processes=5: there are 4 cores'):
    workers.find_places(5)


def test_devices_are_divided(monkeypatch):
  monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
  monkeypatch.setattr(workers, '_ask_jax', lambda: ('gpu', 4))
  shown = lambda number: [
    place.environment.get('CUDA_VISIBLE_DEVICES')
    for place in workers.find_places(number)
  ]
  assert shown(None) == ['0', '1', '2', '3']
  assert shown(2) == ['0,1', '2,3']
  assert shown(1) == [None]
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,5,6,7')
  assert shown(2) == ['4,5', '6,7']
  with pytest.raises(UserError, match='--processes=3: 4 devices'):
    workers.find_places(3)
  monkeypatch.setattr(workers, '_ask_jax', lambda: ('tpu', 4))
  places = workers.find_places(None)
  assert [p.environment['TPU_VISIBLE_CHIPS'] for p in places] == list('0123')


# As a user.


def tiny_study(folder):
  config = mvtec.shared('small')
  config.data.dir = config.data.textures = 'builtin'
  config.data.tfds_dir = str(folder / 'tfds')
  config.image_size = 32
  config.batch_size = 4
  config.num_steps = 2
  config.model.reconstructive_width = 4
  return plan.make(
    config,
    name='tiny',
    tables=('table3',),
    rows={row: ablations.ROWS[row] for row in ('recon_ae', 'recon_ae_msgms')},
    trained_by=ablations.TRAINED_BY,
    categories=('demo',),
  )


def test_a_study_from_the_command_to_its_table(tmp_path, capsys):
  config = tmp_path / 'tiny.py'
  config.write_text(
    textwrap.dedent(f"""
      import pathlib, sys
      sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
      import test_study

      def get_config():
        return test_study.tiny_study(pathlib.Path({str(tmp_path)!r}))
    """)
  )
  workdir = tmp_path / 'study'
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'draem_jax.study'),
      *(f'--config={config}', f'--workdir={workdir}'),
    ],
    text=True,
    capture_output=True,
    timeout=900,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  table = (workdir / 'table.md').read_text()
  assert table in done.stdout
  assert '2 of 2 runs are finished' in table and '(83.9)' in table
  first, second = (
    workdir / row / 'demo' / 'seed0' for row in ('recon_ae', 'recon_ae_msgms')
  )
  # The same networks, not trained again, and other maps of them.
  assert (second / 'metrics.jsonl').read_bytes() == (
    first / 'metrics.jsonl'
  ).read_bytes()
  results = [
    json.loads((folder / 'results.json').read_text())
    for folder in (first, second)
  ]
  assert results[0]['steps'] == results[1]['steps'] == 2
  assert results[0]['pixel_auroc'] != results[1]['pixel_auroc']
  stored = json.loads((second / 'config.json').read_text())['config']
  assert stored['score']['map'] == 'msgms'
  # The tables come from what is there.
  (workdir / 'table.md').unlink()
  values = tiny_study(tmp_path).to_dict()
  runs = plan.list_runs(values)
  study._write_tables(values, runs, workdir)
  assert (workdir / 'table.md').read_text() == table
  assert study._listing(runs, workdir).split() == [
    *('1', 'finished', 'recon_ae/demo/seed0'),
    *('2', 'finished', 'recon_ae_msgms/demo/seed0'),
  ]
  # A run is one of its own: another recipe is refused before any begins.
  values['num_steps'] = 3
  with pytest.raises(UserError, match='config.num_steps=3 .there 2'):
    study._check(plan.list_runs(values), workdir)


def test_a_folder_without_the_categories_is_named_at_once(tmp_path):
  values = table3.get_config().to_dict()
  values['data']['dir'] = str(tmp_path / 'none')
  with pytest.raises(UserError, match='none is not a folder'):
    study._check(plan.list_runs(values), tmp_path)


def test_too_few_textures_are_named_before_any_run(tmp_path):
  values = tiny_study(tmp_path).to_dict()
  values['data']['textures'] = str(tmp_path / 'textures')
  values['data']['num_textures'] = 3
  with pytest.raises(UserError, match='textures is not a folder'):
    study._check(plan.list_runs(values), tmp_path)
  (tmp_path / 'textures').mkdir()
  for name in 'ab':
    (tmp_path / 'textures' / f'{name}.png').touch()
  with pytest.raises(UserError, match='num_textures=3, but .* only 2'):
    study._check(plan.list_runs(values), tmp_path)


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    (['--config=configs/demo.py', '--workdir=w'], 'draem_jax.main'),
    (
      ['--config=configs/table3.py', '--workdir=w', '--rows=disk'],
      "did you mean 'disc'",
    ),
  ],
)
def test_mistakes_are_one_line(arguments, words):
  done = subprocess.run(
    [sys.executable, '-m', 'draem_jax.study', *arguments],
    text=True,
    capture_output=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == 2
  lines = done.stderr.splitlines()
  assert len(lines) == 1 and lines[0].startswith('error: '), done.stderr
  assert words in lines[0]
  assert not pathlib.Path('w').exists()
