"""The lock of a workdir: one process at a time writes there."""

import contextlib
import errno
import logging
import os
import pathlib
import socket
import time
from collections.abc import Iterator
from typing import BinaryIO

from draem_jax.errors import UserError

try:
  import fcntl
except ImportError:  # Not a Unix: nothing is locked there.
  fcntl = None

_log = logging.getLogger(__name__)

FILE = '.lock'

# Whoever looks whether a lock is held holds it for a moment.
_PATIENCE = 2.0  # Seconds.
_HELD = errno.EAGAIN, errno.EACCES


@contextlib.contextmanager
def hold(workdir: str | pathlib.Path) -> Iterator[None]:
  """Keeps other processes from writing in a workdir while the block runs.

  The operating system holds the lock, so that a process that died holds
  nothing. Hosts that share a file system see each other's locks where it
  offers them, as NFS does; where it offers none, a line says so.

  Args:
    workdir: a folder that is there.

  Raises:
    UserError: if another process holds it.
  """
  path = pathlib.Path(workdir) / FILE
  if fcntl is None:
    yield
    return
  # The file stays when the block ends: were it deleted, two processes could
  # hold two files of this name.
  with open(path, 'a+b') as file:
    deadline = time.monotonic() + _PATIENCE
    while not _try_to_lock(file, path):
      if time.monotonic() > deadline:
        raise UserError(
          f'{workdir} is being written by {_holder(file)}: wait until it ends,'
          ' or take another --workdir'
        )
      time.sleep(0.05)
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}'.encode())
    file.flush()
    yield


@contextlib.contextmanager
def wait(path: pathlib.Path) -> Iterator[None]:
  """As `hold`, of any file, but waits until no other process holds it."""
  if fcntl is None:
    yield
    return
  with open(path, 'a+b') as file:
    if not _try_to_lock(file, path):
      _log.info('waiting for another process, which holds %s', path)
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


def is_held(workdir: str | pathlib.Path) -> bool:
  """Whether some process holds the lock of a workdir."""
  path = pathlib.Path(workdir) / FILE
  if fcntl is None or not path.exists():
    return False
  with open(path, 'r+b') as file:
    return not _try_to_lock(file, path)


def _try_to_lock(file: BinaryIO, path: pathlib.Path) -> bool:
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno in _HELD:
      return False
    _log.warning(
      '%s cannot be locked (%s): see to it that no second process writes there',
      path,
      error.strerror,
    )
  return True


def _holder(file: BinaryIO) -> str:
  file.seek(0)
  return file.read(200).decode('utf-8', 'replace') or 'another process'
