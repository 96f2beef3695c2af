"""The command that runs many runs as one study and makes its tables.

python -m draem_jax.study --config=configs/table3.py --workdir=studies/table3
"""

import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from draem_jax import cluster, command, devices, experiment, terminal
from draem_jax.data import layouts, textures
from draem_jax.errors import UserError
from draem_jax.report import results
from draem_jax.studies import figure9, plan, state, tables, workers
from draem_jax.studies.plan import Run
from draem_jax.studies.state import State
from draem_jax.workdir import claim


def define_flags() -> None:
  """Defines the flags of this command."""
  config_flags.DEFINE_config_file(
    'config', None, 'The study: configs/table3.py, say.'
  )
  flags.DEFINE_string('workdir', None, 'Folder of the study.')
  flags.DEFINE_list('rows', [], 'Rows to run; all by default.')
  flags.DEFINE_list('categories', [], 'Categories to run; all by default.')
  flags.DEFINE_list('seeds', [], 'Seeds to run; those of the study by default.')
  flags.DEFINE_integer(
    'processes', None, 'Runs at a time; one a device by default.', 1
  )
  flags.DEFINE_boolean('list', False, 'Print the runs and where they stand.')
  flags.DEFINE_boolean('tables', False, 'Make the tables of what is there.')
  flags.DEFINE_integer('only', None, 'Run this one of --list, from 1.', 1)


def main(argv: list[str]) -> None:
  """Runs what is not finished, then writes the tables."""
  command.refuse_arguments(argv)
  command.required('config', 'workdir')
  given = flags.FLAGS
  config = command.read_config().to_dict()
  if 'study' not in config:
    path = config_flags.get_config_filename(flags.FLAGS['config'])
    raise UserError(
      f'--config={path} is one run and no study: run it with draem_jax.main, or'
      ' take configs/table3.py'
    )
  workdir = command.expand_workdir(given.workdir)
  runs = plan.list_runs(
    config,
    rows=given.rows,
    categories=given.categories,
    seeds=given.seeds,
  )
  if given.list:
    terminal.say(*_listing(runs, workdir).splitlines())
    return
  if given.tables:
    _write_tables(config, runs, workdir)
    return
  if given.only is None and cluster.is_wanted():
    raise UserError(
      'the processes of a cluster make one run together: say which with --only'
    )
  _check(runs, workdir)
  plan.claim(workdir, config)
  if given.only is not None:
    if given.only > len(runs):
      raise UserError(f'--only={given.only}: there are {len(runs)} runs')
    cluster.start()
    devices.find()
    if not devices.is_main_process():
      command.be_quiet()
    command.use_compilation_cache()
    row = workers.run_here(runs[given.only - 1], workdir)
    if row.get('failure'):
      raise command.Stopped(row['failure'], 1)
    return
  crew = workers.Crew(
    runs,
    workdir,
    command=[sys.executable, '-m', 'draem_jax.study', *sys.argv[1:]],
    places=workers.find_places(given.processes),
  )
  failed = crew.work()
  useless = _write_tables(config, runs, workdir)
  ends = []
  if failed:
    ends.append(
      f'{len(failed)} of {len(runs)} runs failed; the same command tries them'
      f' again:{_lines(failed)}'
    )
  if useless:
    ends.append(
      f'{len(useless)} of {len(runs)} runs came to nothing, and stand in the'
      f' tables all the same:{_lines(useless)}'
    )
  if ends:
    raise command.Stopped('\n'.join(ends), 1)


def _lines(reasons: Mapping[str, str]) -> str:
  return ''.join(f'\n  {name}: {why}' for name, why in reasons.items())


def _check(runs: Sequence[Run], workdir: pathlib.Path) -> None:
  """Finds, before anything is trained, what no run could begin with."""
  categories = dict.fromkeys(
    (run.config['data']['dir'], run.category, run.config['data']['layout'])
    for run in runs
  )
  for data_dir, category, layout in categories:
    if data_dir != experiment.BUILTIN:
      place = layouts.find(data_dir, category, layout=layout)
      layouts.get(place.layout).read(place.folder)
  most: dict[str, int] = {}
  for run in runs:
    if experiment.reads_textures(run.config):
      data = run.config['data']
      number = max(most.get(data['textures'], 0), data['num_textures'])
      most[data['textures']] = number
  for source, number in most.items():
    textures.check_number(source, number)
  for run in runs:
    folder = workdir / run.name
    claim.check(folder, experiment.decide(run.config, folder))


def _listing(runs: Sequence[Run], workdir: pathlib.Path) -> str:
  lines = []
  for number, run in enumerate(runs, start=1):
    where = state.of(workdir / run.name)
    line = f'{number:4}  {where.value:8}  {run.name}'
    if where is State.FAILED:
      line += f': {state.failure(workdir / run.name)}'
    lines.append(line)
  return '\n'.join(lines)


def _write_tables(
  config: dict[str, Any], runs: Sequence[Run], workdir: pathlib.Path
) -> dict[str, str]:
  """Writes them; returns why runs came to nothing, by the name of the run."""
  study = config['study']
  rows = list(dict.fromkeys(run.row for run in runs))
  rows = [row for row in study['order'] if row in rows]
  categories = list(dict.fromkeys(run.category for run in runs))
  finished = {
    (run.row, run.category, run.seed): results.read(workdir / run.name)
    for run in runs
    if state.of(workdir / run.name) is State.FINISHED
  }
  files = ['table.md', 'table.csv', 'table.html']
  picture = None
  if 'figure9' in study['tables']:
    picture = workdir / figure9.FILE
    figure9.draw(picture, finished, rows=rows, categories=categories)
    files.append(figure9.FILE)
  written = tables.write(
    workdir,
    finished,
    tables=study['tables'],
    rows=rows,
    categories=categories,
    differences=plan.differences(config),
    count=len(runs),
    picture=picture,
  )
  terminal.say(*written.split('\n'))
  for name in files:
    terminal.say(f'{name}: {workdir / name}')
  return {
    run.name: finished[run.row, run.category, run.seed]['failure']
    for run in runs
    if finished.get((run.row, run.category, run.seed), {}).get('failure')
  }


def run() -> None:
  """The console entry point `draem-study`."""
  command.run(main, define_flags)


if __name__ == '__main__':
  run()
