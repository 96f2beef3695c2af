"""Files written whole or not at all: the one atomic write of the package."""

import contextlib
import json
import os
import pathlib
import secrets
from collections.abc import Iterator
from typing import Any, BinaryIO

from draem_jax import names


@contextlib.contextmanager
def atomic_file(path: str | pathlib.Path) -> Iterator[BinaryIO]:
  """A binary file to write to, which gets its name when the block ends.

  If the block raises, what was there before stays, and nothing else is left.

  Args:
    path: the file's name; its folder is made if it is not there.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  # Made by `open`, so that the user's umask says who may read it.
  temporary = names.partial(path, f'-{secrets.token_hex(4)}')
  try:
    with open(temporary, 'xb') as file:
      yield file
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
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
