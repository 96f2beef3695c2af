"""Standard output and error, which may be closed, cut off or know ASCII only.

What a command writes there is for a person, and its work lies in files: nobody
who reads is no reason to stop.
"""

import contextlib
import io
import logging
import os
import pathlib
import sys
from collections.abc import Iterator

from draem_jax import names

# What a person knows by another name: folders that stand for something else.
_NAMES: dict[str, str] = {}


def prepare() -> None:
  """Makes the three standard streams safe to use, whatever was passed on.

  One that is closed leads nowhere from now on. Otherwise the next file that is
  opened would get its number, and what a library complains of would end in it.
  """
  for number, name in enumerate(('stdin', 'stdout', 'stderr')):
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, os.O_RDWR)  # Gets the lowest number that is free.
    if getattr(sys, name) is None:
      nowhere = open(os.devnull, 'r+')  # noqa: SIM115
      setattr(sys, name, nowhere)
  for stream in (sys.stdout, sys.stderr):
    # What the locale has no letters for is escaped.
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='backslashreplace')


def say(*lines: str) -> None:
  """Writes what a command has found out to standard output."""
  _write('\n'.join(map(_shown, lines)), sys.stdout)


def complain(*lines: str) -> None:
  """Writes what went wrong to standard error."""
  _write('\n'.join(map(_shown, lines)), sys.stderr)


@contextlib.contextmanager
def shown_as(folder: pathlib.Path, name: str) -> Iterator[None]:
  """Shows a folder by another name while the block runs."""
  _NAMES[str(folder)] = name
  try:
    yield
  finally:
    del _NAMES[str(folder)]


def renamed(text: str) -> str:
  """A line with the names of `shown_as` in it."""
  for folder, name in list(_NAMES.items()):
    text = text.replace(folder, name)
  return text


def _shown(text: str) -> str:
  return names.shown(renamed(text))


class _OneLine(logging.Formatter):
  """The message, on one line even if it has names in it that are not."""

  def format(self, record: logging.LogRecord) -> str:
    return _shown(record.getMessage())


class Handler(logging.StreamHandler):
  """Log records as plain lines on standard error, a line each."""

  def __init__(self):
    """Writes to the standard error of this moment."""
    super().__init__()
    # By a formatter, which a progress bar takes over with the records.
    self.setFormatter(_OneLine())

  def handleError(self, record: logging.LogRecord) -> None:
    """Goes on without a reader; else as `logging` does."""
    if isinstance(sys.exc_info()[1], BrokenPipeError):
      _lead_nowhere(self.stream)
    else:
      super().handleError(record)


def _write(text: str, stream: io.TextIOBase) -> None:
  try:
    print(text, file=stream, flush=True)
  except BrokenPipeError:  # As with `| head`.
    _lead_nowhere(stream)
  except OSError as error:  # A full disk.
    _lead_nowhere(stream)
    error.filename = stream.name
    raise


def _lead_nowhere(stream: io.TextIOBase) -> None:
  """What is still in the stream's buffer goes there, too."""
  nowhere = os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, stream.fileno())
  os.close(nowhere)
