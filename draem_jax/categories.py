"""The categories of one folder: one of them, or all, side by side; their table.

Each has a run of its own, in a folder of its name. The table is made of what
lies there, by whoever comes to an end: the tasks of a job array, say.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from draem_jax import cluster, devices, experiment, names, report
from draem_jax.data import layouts
from draem_jax.errors import UserError
from draem_jax.report import results
from draem_jax.studies import state, workers
from draem_jax.studies.state import State
from draem_jax.workdir import claim, lock

_WORDS = {
  State.RUNNING: 'is running',
  State.STOPPED: 'was stopped before it was finished',
  State.WAITING: 'has not begun',
}


@dataclasses.dataclass(frozen=True)
class Run:
  """The run of one category, as `workers.Crew` wants it.

  Attributes:
    name: of its folder in that of all.
    trained_by: no other trains its networks.
  """

  name: str
  trained_by: None = None

  @property
  def trainer(self) -> str:
    """The name of the run that trains its networks: its own."""
    return self.name


def config_of(config: Mapping[str, Any], category: str) -> dict[str, Any]:
  """The config of one category of those that a config names."""
  return {**config, 'category': category}


def run_only(
  config: Mapping[str, Any], workdir: pathlib.Path, number: int
) -> list[dict[str, Any]]:
  """Runs one category of the folder, and writes the table of what is there.

  Args:
    config: of all categories, as nested plain values.
    workdir: of all categories.
    number: of the category in the order of the alphabet, from 1.

  Returns:
    The row of the run, or none in the processes of a cluster that do not
    write.

  Raises:
    UserError: as `experiment.train_and_evaluate`, and if there are fewer.
  """
  data = config['data']
  # Whether the others can be read is not for this one to say.
  with cluster.together():
    categories = layouts.list_categories(data['dir'], layout=data['layout'])
    if number > len(categories):
      raise UserError(
        f'--only={number}: {data["dir"]} has {len(categories)} categories'
      )
  category = categories[number - 1]
  folder = workdir / names.folder(category)
  try:
    with workers.failure_noted(folder):
      row = experiment.train_and_evaluate(config_of(config, category), folder)
  finally:
    if devices.is_main_process():
      write_tables(categories, workdir)
  return [row] if row else []


def run_crew(
  config: Mapping[str, Any],
  workdir: pathlib.Path,
  *,
  command: Sequence[str],
  places: Sequence[workers.Place],
) -> tuple[list[dict[str, Any]], dict[str, str]]:
  """Runs all that are not finished, one at each place; writes the table.

  Args:
    config: of all categories, as nested plain values.
    workdir: of all categories.
    command: the command that runs number K of them if `--only=K` is added.
    places: where processes run.

  Returns:
    The rows of those that are finished; and why others are not, by category.
  """
  categories = experiment.list_categories(config)
  for category in categories:
    folder = workdir / names.folder(category)
    one = config_of(config, category)
    claim.check(folder, experiment.decide(one, folder))
  crew = workers.Crew(
    [Run(names.folder(category)) for category in categories],
    workdir,
    command=command,
    places=places,
  )
  crew.work()
  return write_tables(categories, workdir)


def write_tables(
  categories: Sequence[str], workdir: pathlib.Path
) -> tuple[list[dict[str, Any]], dict[str, str]]:
  """Writes `results.md` and `report.html` of what is finished by now.

  Args:
    categories: all of them.
    workdir: of all categories.

  Returns:
    The rows of those that are finished; and why others are not, by category.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  # Of two that write at a time, the second has read what the first has.
  with lock.wait(workdir / '.tables.lock'):
    rows, missing = [], {}
    for category in categories:
      folder = workdir / names.folder(category)
      where = state.of(folder)
      if where is State.FINISHED:
        rows.append(results.read(folder))
      elif where is State.FAILED:
        missing[category] = f'failed: {state.failure(folder)}'
      else:
        missing[category] = _WORDS[where]
    results.write_table(workdir / 'results.md', rows, missing=missing)
    report.write_comparison(workdir / 'report.html', rows, missing=missing)
  return rows, missing
