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
      data; the message names the fields.
  """
  path = pathlib.Path(workdir) / 'config.json'
  config = json.loads(json.dumps(config))
  # Imported weights lie there as step 0: any recipe may go on from them.
  begun = any(
    folder.name.isdecimal() and folder.name != '0'
    for folder in (path.parent / 'checkpoints').glob('*')
  )
  if not path.exists() or not begun:
    storage.write_json(path, {'config': config, 'data': dict(fingerprint)})
    return
  found = _read(workdir)
  old, new = (
    config_lib.flatten(config_lib.complete(each))
    for each in (found['config'], config)
  )
  changed = [
    f'config.{name}={new.get(name)!r} (there {old.get(name)!r})'
    for name in sorted(old.keys() | new.keys())
    if _shapes_weights(name) and old.get(name) != new.get(name)
  ]
  changed += [
    f'other {name}'
    for name, checksum in fingerprint.items()
    if found.get('data', {}).get(name, checksum) != checksum
  ]
  if changed:
    raise UserError(
      f'{workdir} holds a run with another config: {", ".join(changed)};'
      ' set these as they were to go on, or take another --workdir'
    )
  # Fields that are free may have changed: the file says what was used last.
  storage.write_json(path, {'config': config, 'data': dict(fingerprint)})


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
