"""The command that trains and evaluates what a config describes.

python -m draem_jax.main --config=configs/mvtec.py:bottle --workdir=runs/bottle
"""

import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from draem_jax import (
  categories,
  cluster,
  command,
  devices,
  experiment,
  interrupt,
  names,
  report,
  terminal,
)
from draem_jax.errors import UserError
from draem_jax.report import results
from draem_jax.studies import workers
from draem_jax.workdir import bucket, mirror


def define_flags() -> None:
  """Defines the flags of this command."""
  config_flags.DEFINE_config_file(
    'config', None, 'What to run: configs/mvtec.py:bottle, say.'
  )
  flags.DEFINE_string(
    'workdir',
    None,
    'Folder of the run, or gs://… or s3://…; runs/<category> by default.',
  )
  flags.DEFINE_integer(
    'processes',
    1,
    'With :all, categories at a time, each on its share of the devices; 0 for'
    ' one a device.',
    0,
  )
  flags.DEFINE_integer(
    'only', None, 'With :all, run this category of the folder, from 1.', 1
  )


def main(argv: list[str]) -> None:
  """Runs the categories of the config, one after the other or side by side."""
  command.refuse_arguments(argv)
  given = flags.FLAGS
  if given.config is None:
    raise UserError('--config is missing: try --config=configs/demo.py')
  # A single process looks for devices only once the crew has none.
  if given.processes != 1 and given.only is None:
    if cluster.is_wanted():
      raise UserError(
        f'--processes={given.processes}: the processes of a cluster run one'
        ' category together: leave it out, or take --only'
      )
    places = workers.find_places(given.processes or None)
    if len(places) > 1:
      _run_crew(places)
      return
  cluster.start()
  devices.find()
  if not devices.is_main_process():
    command.be_quiet()
  command.use_compilation_cache()
  config = command.read_config()
  workdir = _workdir(config)
  _check_flags(config, workdir)
  # The training has a watch of its own: it saves before it stops.
  with interrupt.raised(
    notice='stopping', message='stopped: the same command goes on from there'
  ):
    rows = _run(config.to_dict(), workdir)
  if devices.is_main_process():
    if config.category == 'all' and given.only is None:
      with mirror.written(workdir, wanted=_is_report, alone=False) as folder:
        results.write_table(folder / 'results.md', rows)
        report.write_comparison(folder / 'report.html', rows)
    _tell(config.category, workdir, rows)
  _end([f'{row["category"]}: {row["failure"]}' for row in _failed(rows)])


def _workdir(config: Any) -> pathlib.PurePath:
  return command.expand_place(
    flags.FLAGS.workdir or f'runs/{config.category}', '--workdir'
  )


def _is_report(name: str) -> bool:
  """Whether the report of all links to an object of this name."""
  return name.count('/') == 1 and name.endswith('/report.html')


def _check_flags(config: Any, workdir: pathlib.PurePath) -> None:
  """Refuses what is for all categories of a folder, where one is meant."""
  for name, default in (('processes', 1), ('only', None)):
    if flags.FLAGS[name].value == default:
      continue
    if config.category != 'all':
      raise UserError(
        f'--{name} is for all categories of a folder, and this is'
        f' {config.category}: leave it out, or take --config=configs/mvtec.py'
        ':all'
      )
    if bucket.is_url(workdir):
      raise UserError(
        f'--{name} is for a folder, and --workdir={workdir} is in a bucket:'
        ' leave it out, or start each category with --config=configs/mvtec.py'
        f':NAME --workdir={workdir}/NAME'
      )


def _run(config: dict[str, Any], workdir: pathlib.Path) -> list[dict[str, Any]]:
  if flags.FLAGS.only is not None:
    return categories.run_only(config, workdir, flags.FLAGS.only)
  with cluster.together():
    wanted = experiment.list_categories(config)
  if config['category'] != 'all':
    return [experiment.train_and_evaluate(config, workdir)]
  return [
    experiment.train_and_evaluate(
      categories.config_of(config, name), workdir / names.folder(name)
    )
    for name in wanted
  ]


def _run_crew(places: Sequence[workers.Place]) -> None:
  """Runs all categories, each in a process of its own on its devices."""
  config = command.read_config()
  workdir = _workdir(config)
  _check_flags(config, workdir)
  rows, missing = categories.run_crew(
    config.to_dict(),
    workdir,
    command=[sys.executable, '-m', 'draem_jax.main', *sys.argv[1:]],
    places=places,
  )
  _tell('all', workdir, rows)
  _end(
    [f'{name} {why}' for name, why in missing.items()]
    + [f'{row["category"]}: {row["failure"]}' for row in _failed(rows)]
  )


def _tell(
  category: str, workdir: pathlib.Path, rows: Sequence[Mapping[str, Any]]
) -> None:
  """Says what was found, and where it lies."""
  if rows:
    terminal.say(*results.format_table(rows).splitlines())
  terminal.say(f'results:  {workdir}')
  folder = '<category>/figures' if category == 'all' else 'figures'
  terminal.say(f'pictures: {workdir / folder}')
  terminal.say(f'report:   {workdir / "report.html"}')


def _failed(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  return [row for row in rows if row.get('failure')]


def _end(failures: Sequence[str]) -> None:
  if failures:
    raise command.Stopped('\n'.join(failures), 1)


def run() -> None:
  """The console entry point `draem-train`."""
  command.run(main, define_flags)


if __name__ == '__main__':
  run()
