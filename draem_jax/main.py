"""The command that trains and evaluates what a config describes.

python -m draem_jax.main --config=configs/mvtec.py:bottle --workdir=runs/bottle
"""

import pathlib
from typing import Any

from absl import flags
from ml_collections import config_flags

from draem_jax import (
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
from draem_jax.workdir import mirror


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


def main(argv: list[str]) -> None:
  """Runs the categories of the config, one after the other."""
  command.refuse_arguments(argv)
  if flags.FLAGS.config is None:
    raise UserError('--config is missing: try --config=configs/demo.py')
  devices.start_distributed()
  devices.find()
  if not devices.is_main_process():
    command.be_quiet()
  command.use_compilation_cache()
  config = command.read_config()
  category = config.category
  place = flags.FLAGS.workdir or f'runs/{category}'
  workdir = command.expand_place(place, '--workdir')
  # The training has a watch of its own: it saves before it stops.
  with interrupt.raised(
    notice='stopping', message='stopped: the same command goes on from there'
  ):
    categories = experiment.list_categories(config.to_dict())
    if category != 'all':
      rows = [experiment.train_and_evaluate(config.to_dict(), workdir)]
    else:
      rows = [
        _run_one(config, name, workdir / names.folder(name))
        for name in categories
      ]
  if devices.is_main_process():
    if category == 'all':
      with mirror.written(workdir, wanted=_is_report, alone=False) as folder:
        results.write_table(folder / 'results.md', rows)
        report.write_comparison(folder / 'report.html', rows)
    terminal.say(*results.format_table(rows).splitlines())
    terminal.say(f'results:  {workdir}')
    folder = '<category>/figures' if category == 'all' else 'figures'
    terminal.say(f'pictures: {workdir / folder}')
    terminal.say(f'report:   {workdir / "report.html"}')
  failures = [
    f'{row["category"]}: {row["failure"]}' for row in rows if row.get('failure')
  ]
  if failures:
    raise command.Stopped('\n'.join(failures), 1)


def _is_report(name: str) -> bool:
  """Whether the report of all links to an object of this name."""
  return name.count('/') == 1 and name.endswith('/report.html')


def _run_one(config: Any, category: str, workdir: pathlib.PurePath) -> Any:
  config = config.copy_and_resolve_references()
  config.category = category
  return experiment.train_and_evaluate(config.to_dict(), workdir)


def run() -> None:
  """The console entry point `draem-train`."""
  command.run(main, define_flags)


if __name__ == '__main__':
  run()
