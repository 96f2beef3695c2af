"""Files of a workdir: written whole or not at all, and read with suspicion."""

import contextlib
import json
import os
import pathlib
import re
import secrets
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

from draem_jax import names
from draem_jax.errors import UserError

try:
  import fcntl
except ImportError:  # Not a Unix: nothing is locked there.
  fcntl = None

# No file of a workdir that is read as text is near this.
_MOST_BYTES = 1 << 28
# Nor is any value in one nested like this.
_MOST_NESTED = 32

# Under these names files are written. Short, for a name may be long already.
_PARTIAL = re.compile(r'\.[0-9a-f]{8}\.part')


@contextlib.contextmanager
def atomic_file(path: str | pathlib.Path) -> Iterator[BinaryIO]:
  """A binary file to write to, which gets its name when the block ends.

  If the block raises, what was there before stays, and nothing else is left.

  Args:
    path: the file's name; its folder is made if it is not there.
  """
  path = pathlib.Path(path)
  # Made by `open`, so that the user's umask says who may read it.
  temporary = path.with_name(f'.{secrets.token_hex(4)}.part')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(temporary, 'xb') as file:
      # So that others see that its writer is alive.
      _try_to_lock(file)
      yield file
    os.replace(temporary, path)
  except BaseException as error:
    # What is written to a file that is open names none.
    if isinstance(error, OSError) and error.errno and not error.filename:
      error.filename = str(path)
    with contextlib.suppress(OSError):
      temporary.unlink()
    raise


def write_bytes(path: str | pathlib.Path, content: bytes) -> None:
  """Writes a file whole or not at all, its folder included."""
  with atomic_file(path) as file:
    file.write(content)


def write_text(path: str | pathlib.Path, text: str) -> None:
  """Writes `text` as UTF-8, whole or not at all; names keep their bytes."""
  write_bytes(path, names.to_bytes(text))


def write_json(path: str | pathlib.Path, value: Any) -> None:
  """Writes `value` as indented JSON, whole or not at all."""
  write_text(path, json.dumps(value, indent=2) + '\n')


def append(file: BinaryIO, content: bytes) -> None:
  """Adds to an open file, at once.

  Args:
    file: opened by its path.
    content: the bytes to add.

  Raises:
    OSError: which names the file, if they cannot be written.
  """
  try:
    file.write(content)
    file.flush()
  except OSError as error:
    error.filename = error.filename or str(file.name)
    raise


def is_partial(name: str) -> bool:
  """Whether a file of this name is one that is being written."""
  return bool(_PARTIAL.fullmatch(name))


def clear_partial(folder: str | pathlib.Path, *, deep: bool = False) -> None:
  """Deletes what processes that were killed had begun to write in a folder.

  Args:
    folder: it need not be there.
    deep: whether folders in it are looked into, too.
  """
  for place, folders, found in os.walk(folder):
    if not deep:
      folders.clear()
    for name in filter(is_partial, found):
      path = os.path.join(place, name)
      with contextlib.suppress(OSError), open(path, 'r+b') as file:
        if _try_to_lock(file):
          os.unlink(path)


def _try_to_lock(file: BinaryIO) -> bool:
  """Whether a file is locked now, which it is until it is closed."""
  if fcntl is None:
    return False
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError:  # Another process has it, or the file system has no locks.
    return False
  return True


def read_bytes(path: str | pathlib.Path, *, remedy: str) -> bytes:
  """Reads a regular file that is no larger than ours are.

  Args:
    path: its name.
    remedy: what to do if it cannot be read.

  Raises:
    FileNotFoundError: if it is not there.
    UserError: if it cannot be read, or is something else.
  """
  try:
    # What is no file may wait for whoever writes to it.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0))
    with open(descriptor, 'rb') as file:
      found = os.fstat(descriptor)
      if not stat.S_ISREG(found.st_mode):
        raise UserError(f'{path} is not a file: {remedy}')
      if found.st_size > _MOST_BYTES:
        raise UserError(
          f'{path} is damaged (it has {found.st_size:,} bytes): {remedy}'
        )
      return file.read()
  except FileNotFoundError:
    raise
  except IsADirectoryError as error:
    raise UserError(f'{path} is not a file: {remedy}') from error
  except OSError as error:
    raise UserError(
      f'{path} cannot be read ({error.strerror}): {remedy}'
    ) from error


def read_json(path: str | pathlib.Path, *, remedy: str) -> dict[str, Any]:
  """Reads an object of JSON, whatever has become of the file.

  Args:
    path: the file's name.
    remedy: what to do if it is damaged.

  Raises:
    FileNotFoundError: if it is not there.
    UserError: if it cannot be read, is no JSON, is nested without end, names
      something twice, or holds something other than an object.
  """
  data = read_bytes(path, remedy=remedy)
  try:
    return parse_json(data)
  except ValueError as error:
    raise UserError(f'{path} is damaged ({error}): {remedy}') from error


def parse_json(data: bytes) -> dict[str, Any]:
  """The object that some JSON holds.

  Raises:
    ValueError: if it holds none, in one line that says why.
  """
  try:
    # Some editors begin a file with a mark of its encoding.
    text = data.decode('utf-8-sig')
    value = json.loads(text, object_pairs_hook=_no_name_twice)
  except UnicodeDecodeError as error:
    raise ValueError(f'byte {error.start} is no UTF-8') from error
  except RecursionError as error:
    raise ValueError('it is nested without end') from error
  if not isinstance(value, dict):
    raise ValueError('it holds no object')
  level = [value]
  for _ in range(_MOST_NESTED):
    level = [
      inner
      for outer in level
      for inner in (outer.values() if isinstance(outer, dict) else outer)
      if isinstance(inner, dict | list)
    ]
  if level:
    raise ValueError('it is nested without end')
  return value


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    keys = [name for name, _ in pairs]
    twice = next(name for name in keys if keys.count(name) > 1)
    raise ValueError(f'it names {twice[:80]!r} twice')
  return found
