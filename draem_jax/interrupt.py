"""Signals that ask a command to stop: at once, or where it can save."""

import contextlib
import logging
import signal
from collections.abc import Iterator
from typing import Any

from draem_jax import terminal

_log = logging.getLogger(__name__)

_SIGNALS = signal.SIGINT, signal.SIGTERM


class Interrupted(KeyboardInterrupt):
  """A signal ended the command in order; `command.wrap` makes it a status.

  Not an `Exception`, which libraries would swallow.

  Attributes:
    is_everywhere: whether all processes of a cluster have agreed to raise it.
  """

  def __init__(
    self, signal_number: int, message: str, *, is_everywhere: bool = False
  ):
    super().__init__(message)
    self.signal_number = signal_number
    self.is_everywhere = is_everywhere


class SignalWatch:
  """Notes SIGTERM and SIGINT instead of dying; a second one ends at once.

  Attributes:
    caught: the number of the signal that came, or 0.
  """

  def __enter__(self) -> 'SignalWatch':
    self.caught = 0
    self._before = {}
    for number in _SIGNALS:
      try:
        self._before[number] = signal.signal(number, self._note)
      except ValueError:  # Not the main thread, as in a notebook's worker.
        _log.info('signals are left alone outside the main thread')
    return self

  def _note(self, number: int, frame: Any) -> None:
    del frame
    if self.caught:
      signal.signal(number, signal.SIG_DFL)
      signal.raise_signal(number)
    self.caught = number

  def __exit__(self, *unused: Any) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)


@contextlib.contextmanager
def raised(*, notice: str, message: str) -> Iterator[None]:
  """Raises `Interrupted` where a signal comes; a second one ends at once.

  Args:
    notice: the line that is printed at once.
    message: the line that the command ends with.
  """

  def stop(number: int, frame: Any) -> None:
    del frame
    for each in _SIGNALS:
      signal.signal(each, signal.SIG_DFL)
    terminal.complain(notice)
    raise Interrupted(number, message)

  before = {number: signal.signal(number, stop) for number in _SIGNALS}
  try:
    yield
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
