"""What a study consists of: its config, and the list of its runs.

A config of a study is one of a run, which says what all runs share, with a part
`study` besides:

- `name`: a study goes on in a workdir of this name only.
- `tables`: names in `tables.TABLES`, what is made of the runs.
- `rows`: by name, nested assignments over the shared config; `order` is that in
  which they stand in the tables.
- `trained_by`: the row whose networks a row takes, where it has none of its
  own.
- `categories` and `seeds`: of each row.
"""

import copy
import dataclasses
import difflib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import config_dict

from draem_jax import config as config_lib
from draem_jax.errors import UserError
from draem_jax.studies.tables import TABLES
from draem_jax.workdir import storage

FILE = 'study.json'


@dataclasses.dataclass(frozen=True)
class Run:
  """One run of a study: an ordinary run with a workdir of its own.

  Attributes:
    row: the name of its row.
    category: its category.
    seed: its seed.
    config: its config, as nested plain values.
    trained_by: the row whose networks it takes, of the same category and seed;
      None where it trains its own.
  """

  row: str
  category: str
  seed: int
  config: Mapping[str, Any]
  trained_by: str | None = None

  @property
  def name(self) -> str:
    """The folder of the run in that of the study, with slashes."""
    return _name(self.row, self.category, self.seed)

  @property
  def trainer(self) -> str:
    """The name of the run that trains its networks, this one or another."""
    return _name(self.trained_by or self.row, self.category, self.seed)


def make(
  shared: config_dict.ConfigDict,
  *,
  name: str,
  tables: Sequence[str],
  rows: Mapping[str, Mapping[str, Any]],
  categories: Sequence[str],
  trained_by: Mapping[str, str] | None = None,
) -> config_dict.ConfigDict:
  """The config of a study.

  Args:
    shared: what all runs have in common.
    name: the study's.
    tables: names in `tables.TABLES`.
    rows: nested assignments over `shared`, by the row's name.
    categories: names in the folder of categories.
    trained_by: the row whose networks a row takes, by the row's name.
  """
  config = shared.copy_and_resolve_references()
  config.study = config_dict.ConfigDict(
    {
      'name': name,
      'tables': tuple(tables),
      'rows': {row: dict(values) for row, values in rows.items()},
      # A ConfigDict sorts its names.
      'order': tuple(rows),
      'trained_by': dict(trained_by or {}),
      'categories': tuple(categories),
      'seeds': (0,),
    }
  )
  return config


def list_runs(
  config: Mapping[str, Any],
  *,
  rows: Sequence[str] = (),
  categories: Sequence[str] = (),
  seeds: Sequence[str] = (),
) -> list[Run]:
  """The runs of a study, seed by seed, so that whole tables come early.

  A row that takes the networks of another stands behind it.

  Args:
    config: of the study, as nested plain values.
    rows: those to take; all if none is named.
    categories: names in the folder of categories, which the config need not
      have.
    seeds: whole numbers, which the config need not have.

  Raises:
    UserError: if a name is unknown, a config cannot work, or the runs cannot
      stand in one table.
  """
  study = config['study']
  shared = {name: part for name, part in config.items() if name != 'study'}
  chosen = _choose(rows, study['order'])
  trained_by = study['trained_by']
  for row in chosen:
    for name in config_lib.flatten(study['rows'][row]):
      if name not in config_lib.FIELDS:
        raise UserError(f'row {row!r}: {name} is no field of the config')
  runs = [
    Run(
      row=row,
      category=category,
      seed=seed,
      config=_assign(
        shared, study['rows'][row], {'category': category, 'seed': seed}
      ),
      trained_by=trained_by.get(row),
    )
    for seed in _seeds(seeds) or study['seeds']
    for category in dict.fromkeys(categories or study['categories'])
    for row in sorted(chosen, key=lambda row: row in trained_by)
  ]
  for row in chosen:
    if row in trained_by and trained_by[row] not in chosen:
      raise UserError(
        f'the row {row!r} takes the networks of {trained_by[row]!r}: name both'
      )
  for run in runs:
    try:
      config_lib.check(config_lib.complete(run.config))
    except UserError as error:
      raise UserError(f'row {run.row!r}: {error}') from error
  _check_tables(study['tables'], runs)
  return runs


def claim(workdir: str | pathlib.Path, config: Mapping[str, Any]) -> None:
  """Writes `study.json`, or checks the one there against this study.

  Raises:
    UserError: if the folder is another study's.
  """
  path = pathlib.Path(workdir) / FILE
  name = config['study']['name']
  remedy = f'delete it if this is the study {name!r}'
  try:
    found = storage.read_json(path, remedy=remedy).get('study')
  except FileNotFoundError:
    storage.write_json(path, {'study': name})
    return
  if not isinstance(found, str):
    raise UserError(f'{path} is damaged (it names no study): {remedy}')
  if found != name:
    raise UserError(
      f'{workdir} holds the study {found!r}, not {name!r}: take another'
      ' --workdir'
    )


def differences(config: Mapping[str, Any]) -> list[str]:
  """What all runs have that is not as in the paper's recipe, in words."""
  free = {'category', 'seed', 'data.dir', 'data.textures', 'data.tfds_dir'}
  values = config_lib.flatten(config)
  return [
    f'{name}={values[name]!r}'
    for name, field in config_lib.FIELDS.items()
    if name not in free
    and (field.shapes_weights or name.startswith('score'))
    and values.get(name, field.default) != field.default
  ]


def _name(row: str, category: str, seed: int) -> str:
  return f'{row}/{category}/seed{seed}'


def _choose(wanted: Sequence[str], known: Sequence[str]) -> list[str]:
  for name in wanted:
    if name not in known:
      near = difflib.get_close_matches(name, known, n=1)
      hint = f'did you mean {near[0]!r}? T' if near else 't'
      raise UserError(
        f'unknown row {name!r}: {hint}here are {", ".join(known)}'
      )
  return [name for name in known if not wanted or name in wanted]


def _seeds(wanted: Sequence[str]) -> list[int]:
  try:
    seeds = [int(seed) for seed in wanted]
  except ValueError:
    seeds = [-1]
  if min(seeds, default=0) < 0:
    raise UserError(
      f'--seeds={",".join(wanted)}: take whole numbers, 0 or more'
    )
  return list(dict.fromkeys(seeds))


def _assign(
  config: Mapping[str, Any], *assignments: Mapping[str, Any]
) -> dict[str, Any]:
  """A copy of a nested config with nested assignments made, one by one."""
  config = copy.deepcopy(dict(config))
  for values in assignments:
    for name, value in values.items():
      if isinstance(value, Mapping):
        value = _assign(config[name], value)
      config[name] = value
  return config


def _check_tables(names: Sequence[str], runs: Sequence[Run]) -> None:
  for name in names:
    if name not in TABLES:
      raise UserError(
        f'config.study.tables has {name!r}: take some of {", ".join(TABLES)}'
      )
  layouts = {run.config['data']['layout']: run.row for run in runs}
  if len(layouts) > 1:
    (one, row), (other, another) = list(layouts.items())[:2]
    raise UserError(
      f'the rows {row!r} ({one}) and {another!r} ({other}) differ in'
      ' data.layout, so that no table has columns for both: make them two'
      ' studies'
    )
