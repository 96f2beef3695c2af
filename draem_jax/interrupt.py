"""Signals that ask a run to stop: noted, so that it can save and say so."""

import logging
import signal
from typing import Any

_log = logging.getLogger(__name__)


class Interrupted(Exception):
  """A signal ended the training; the state at that step was saved."""

  def __init__(self, step: int, signal_number: int):
    super().__init__(step)
    self.step = step
    self.signal_number = signal_number


class SignalWatch:
  """Notes SIGTERM and SIGINT instead of dying; a second one ends at once."""

  def __enter__(self) -> 'SignalWatch':
    self.caught = 0
    self._before = {}
    for number in (signal.SIGTERM, signal.SIGINT):
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
