"""The folder of a run: its config, and whether a run there may go on."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from draem_jax import config as config_lib
from draem_jax.errors import UserError
from draem_jax.workdir import storage

# What configs of earlier versions had, and nothing read.
_GONE = ('profile',)
# What decides besides where a run of `stop_when_flat` ends.
_MEASURING = ('eval.every', 'score.map', 'score_window')
# What every config of a run has had.
_OLDEST = (
  'category',
  'image_size',
  'score_window',
  'dtype',
  'model.reconstructive_width',
  'model.discriminative_width',
  'eval.batch_size',
)


def read_config(
  workdir: str | pathlib.Path, *, check: bool = True
) -> dict[str, Any]:
  """The config of the run in `workdir`, as nested plain values.

  Args:
    workdir: the folder of the run.
    check: whether something shall work with it: then no value may be one that
      cannot.

  Raises:
    UserError: if the folder holds no run, or a damaged `config.json`.
  """
  return _read(workdir, check=check)[0]


def failure(workdir: str | pathlib.Path) -> str | None:
  """Why the training in `workdir` came to nothing, if its results say so."""
  path = pathlib.Path(workdir) / 'results.json'
  try:
    found = storage.read_json(path, remedy='')
  except (FileNotFoundError, UserError):
    # Detectors need no results: whoever wants to read them is told.
    return None
  said = found.get('failure')
  return said if isinstance(said, str) and said else None


def claim(
  workdir: str | pathlib.Path,
  config: Mapping[str, Any],
  fingerprint: Mapping[str, str],
) -> None:
  """Writes `config.json`, or checks the one there against this run.

  Args:
    workdir: the folder of the run; made if it is not there.
    config: the run's config as nested plain values.
    fingerprint: a checksum for each array that training reads, by name.

  Raises:
    UserError: if a training there has begun with another config or other
      data; the message names the fields. If its `config.json` is missing.
  """
  path = pathlib.Path(workdir) / 'config.json'
  config = json.loads(json.dumps(config))
  if not _has_begun(path.parent):
    _write(path, config, fingerprint)
    return
  found, data = _read(workdir)
  changed = _changes(found, config)
  changed += [
    f'other {name}'
    for name, checksum in fingerprint.items()
    if data.get(name, checksum) != checksum
  ]
  _refuse(workdir, changed)
  # Fields that are free may have changed: the file says what was used last.
  _write(path, config, fingerprint)


def check(workdir: str | pathlib.Path, config: Mapping[str, Any]) -> None:
  """Checks, without writing, whether a run with this config may go on there.

  Raises:
    UserError: as `claim`, but for other data.
  """
  if _has_begun(pathlib.Path(workdir)):
    config = json.loads(json.dumps(config))
    _refuse(workdir, _changes(_read(workdir)[0], config))


def _has_begun(workdir: pathlib.Path) -> bool:
  """Whether a training there has begun.

  Imported weights lie there as step 0: any recipe may go on from them.

  Raises:
    UserError: if it has, and its `config.json` is missing.
  """
  begun = any(
    folder.name.isdecimal() and folder.name != '0'
    for folder in (workdir / 'checkpoints').glob('*')
  )
  path = workdir / 'config.json'
  if begun and not path.exists():
    raise UserError(
      f'{path} is missing, though a training there has begun: put it back, or'
      ' take another --workdir'
    )
  return begun


def _changes(found: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
  """The fields that make another training, with both values, in words."""
  old, new = (
    config_lib.flatten(config_lib.complete(each)) for each in (found, config)
  )
  decisive = _MEASURING if old.get('stop_when_flat') else ()
  return [
    f'config.{name}={new.get(name)!r} (there {old.get(name)!r})'
    for name in sorted(old.keys() | new.keys())
    if (_shapes_weights(name) or name in decisive)
    and old.get(name) != new.get(name)
  ]


def _refuse(workdir: str | pathlib.Path, changed: list[str]) -> None:
  if changed:
    raise UserError(
      f'{workdir} holds a run with another config: {", ".join(changed)};'
      ' set these as they were to go on, or take another --workdir'
    )


def _write(
  path: pathlib.Path, config: Mapping[str, Any], fingerprint: Mapping[str, str]
) -> None:
  content = {
    'config': config,
    # That none is lost: what an older config lacks has its default.
    'fields': len(config_lib.flatten(config)),
    'data': dict(fingerprint),
  }
  storage.write_json(path, content)


def _read(
  workdir: str | pathlib.Path, *, check: bool = True
) -> tuple[dict[str, Any], dict[str, str]]:
  """The config of a run, complete, and its fingerprint."""
  path = pathlib.Path(workdir) / 'config.json'
  remedy = 'restore it, or take another --workdir'
  try:
    found = storage.read_json(path, remedy=remedy)
  except FileNotFoundError as error:
    raise UserError(
      f'{path} does not exist: --workdir must be the folder of a trained run'
    ) from error
  for name in ('config', 'data'):
    if not isinstance(found.setdefault(name, {}), dict):
      raise UserError(f'{path} is damaged ({name!r} is no object): {remedy}')
  if not found['config']:
    raise UserError(f'{path} is not the config of a run: {remedy}')
  for name in _GONE:
    found['config'].pop(name, None)
  try:
    config = config_lib.complete(found['config'])
    if not check:
      return config, found['data']
    config_lib.check(config)
    given = config_lib.flatten(found['config'])
    needed = _OLDEST
    count = found.get('fields')
    if isinstance(count, int) and len(given) < count:
      needed = config_lib.FIELDS
    for name in needed:
      if name not in given:
        raise UserError(f'config.{name} is missing')
  except UserError as error:
    raise UserError(f'{path}: {error}; {remedy}') from error
  return config, found['data']


def _shapes_weights(name: str) -> bool:
  """Whether a field matters; one that is unknown may."""
  field = config_lib.FIELDS.get(name)
  return field is None or field.shapes_weights
