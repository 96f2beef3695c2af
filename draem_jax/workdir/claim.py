"""The folder of a run: its config, and whether a run there may go on."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from draem_jax import config as config_lib
from draem_jax.errors import UserError
from draem_jax.workdir import storage


def read_config(workdir: str | pathlib.Path) -> dict[str, Any]:
  """The config of the run in `workdir`, as nested plain values.

  Raises:
    UserError: if the folder holds no run, or a damaged `config.json`.
  """
  return config_lib.complete(_read(workdir)['config'])


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
    storage.write_json(path, {'config': config, 'data': dict(fingerprint)})
    return
  found = _read(workdir)
  changed = _changes(found['config'], config)
  changed += [
    f'other {name}'
    for name, checksum in fingerprint.items()
    if found.get('data', {}).get(name, checksum) != checksum
  ]
  _refuse(workdir, changed)
  # Fields that are free may have changed: the file says what was used last.
  storage.write_json(path, {'config': config, 'data': dict(fingerprint)})


def check(workdir: str | pathlib.Path, config: Mapping[str, Any]) -> None:
  """Checks, without writing, whether a run with this config may go on there.

  Raises:
    UserError: as `claim`, but for other data.
  """
  if _has_begun(pathlib.Path(workdir)):
    config = json.loads(json.dumps(config))
    _refuse(workdir, _changes(_read(workdir)['config'], config))


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
  return [
    f'config.{name}={new.get(name)!r} (there {old.get(name)!r})'
    for name in sorted(old.keys() | new.keys())
    if _shapes_weights(name) and old.get(name) != new.get(name)
  ]


def _refuse(workdir: str | pathlib.Path, changed: list[str]) -> None:
  if changed:
    raise UserError(
      f'{workdir} holds a run with another config: {", ".join(changed)};'
      ' set these as they were to go on, or take another --workdir'
    )


def _read(workdir: str | pathlib.Path) -> dict[str, Any]:
  path = pathlib.Path(workdir) / 'config.json'
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
    found['config'].items()
    return found
  except FileNotFoundError as error:
    raise UserError(
      f'{path} does not exist: --workdir must be the folder of a trained run'
    ) from error
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise UserError(
      f'{path} is not the config of a run ({error}): restore it, or take'
      ' another --workdir'
    ) from error


def _shapes_weights(name: str) -> bool:
  """Whether a field matters; one that is unknown may."""
  field = config_lib.FIELDS.get(name)
  return field is None or field.shapes_weights
