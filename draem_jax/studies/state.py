"""Where a run of a study stands, by what lies in its folder."""

import enum
import pathlib

from draem_jax.errors import UserError
from draem_jax.workdir import lock, storage

_FAILURE = 'failure.json'
LOG = 'log.txt'


class State(enum.Enum):
  """Where a run stands."""

  FINISHED = 'finished'
  RUNNING = 'running'
  FAILED = 'failed'
  STOPPED = 'stopped'
  WAITING = 'waiting'


def of(workdir: pathlib.Path) -> State:
  """The state of the run in a workdir, which need not be there."""
  if lock.is_held(workdir):
    return State.RUNNING
  # What is written last.
  if (workdir / 'results.json').exists() and (workdir / 'report.html').exists():
    return State.FINISHED
  if (workdir / _FAILURE).exists():
    return State.FAILED
  return State.STOPPED if (workdir / 'config.json').exists() else State.WAITING


def note_failure(workdir: pathlib.Path, message: str) -> None:
  """Keeps in one line why a run failed."""
  storage.write_json(workdir / _FAILURE, {'error': message})


def forget_failure(workdir: pathlib.Path) -> None:
  """Forgets why a run failed before, for it is tried again."""
  (workdir / _FAILURE).unlink(missing_ok=True)


def failure(workdir: pathlib.Path) -> str:
  """Why a run failed, in one line."""
  log = f'see {workdir / LOG}'
  try:
    found = storage.read_json(workdir / _FAILURE, remedy=log)
  except (FileNotFoundError, UserError):
    return log
  return ' '.join(str(found.get('error', log)).split())
