"""The lease of a workdir in a bucket: one process at a time writes there.

A bucket has no locks. The object `.lock` says which process writes; that one
renews it every few seconds, and deletes it in the end. Who finds one that is
not renewed any more takes it over: no clock is compared with another's. A
process of the same machine need not wait to see that another is dead.
"""

import contextlib
import json
import logging
import os
import pathlib
import secrets
import signal
import socket
import threading
import time
from typing import Any

from draem_jax.errors import UserError
from draem_jax.workdir import lock
from draem_jax.workdir.bucket import ABSENT, Bucket

_log = logging.getLogger(__name__)

# Seconds from one renewal to the next; without one for so long whoever held
# the lease is dead, and for so long no more is written by who cannot renew.
_RENEW, _DEAD, _STALE = 10.0, 45.0, 30.0
_PROBE = lock.FILE + '.probe'
# How long two who came in the same moment may not know of each other.
_SETTLE = 1.0


class Lease:
  """The right to write to a workdir in a bucket, from now until `release`."""

  def __init__(self, bucket: Bucket):
    """Takes it, or waits to see that who holds it is dead.

    Args:
      bucket: the workdir.

    Raises:
      UserError: if another process holds it and is alive.
    """
    self._bucket = bucket
    self._owner = _this_process()
    self._count = 0
    self._lost = False
    self._stop = threading.Event()
    self._take()
    self._renewed = time.monotonic()
    self._thread = threading.Thread(target=self._keep_renewing, daemon=True)
    self._thread.start()

  def check(self) -> None:
    """Raises a `UserError` if another process may hold the lease by now."""
    if self._lost:
      raise UserError(
        f'{self._bucket.url}: another process has taken it over: this one'
        ' writes nothing there any more'
      )
    silent = time.monotonic() - self._renewed
    if silent > _STALE:
      raise UserError(
        f'{self._bucket.url}: it could not be reached for {silent:.0f} s'
      )

  def release(self) -> None:
    """Lets others take it."""
    self._stop.set()
    self._thread.join()
    if not self._lost:
      # If not, it counts as dead after a while.
      with contextlib.suppress(UserError):
        self._bucket.exchange(lock.FILE, None, self._generation)

  def _take(self) -> None:
    since, before = time.monotonic(), None
    while True:
      content, found = self._bucket.read(lock.FILE)
      alive = _is_alive(content)
      if found != ABSENT and (alive or before not in (None, found)):
        raise UserError(
          f'{self._bucket.url} is being written by {_in_words(content)}: wait'
          ' until it ends, or take another --workdir'
        )
      if found != ABSENT and alive is None:
        if before is None:
          _log.info(
            '%s was being written by %s: waiting up to %.0f s to see whether'
            ' that is alive',
            *(self._bucket.url, _in_words(content), _DEAD),
          )
        before = found
        if time.monotonic() - since < _DEAD:
          time.sleep(_RENEW / 5)
          continue
      mine = self._bucket.exchange(lock.FILE, self._content(), found)
      if mine and self._is_settled(mine):
        self._generation = mine
        return
      # Somebody else was quicker, and is alive as a rule; or there is no such
      # bucket, which a condition hides.
      if found == ABSENT:
        self._bucket.write(_PROBE, b'')
        self._bucket.delete(_PROBE)
      since, before = time.monotonic(), before or found

  def _is_settled(self, mine: bytes) -> bool:
    """Whether what was written stays, where a store takes it from two."""
    if self._bucket.has_conditions:
      return True
    time.sleep(_SETTLE)
    return self._bucket.read(lock.FILE)[1] == mine

  def _content(self) -> bytes:
    # Another one each time, or its generation might be the same.
    self._count += 1
    return json.dumps(self._owner | {'renewals': self._count}).encode()

  def _keep_renewing(self) -> None:
    while not self._stop.wait(_RENEW):
      asked = time.monotonic()
      try:
        renewed = self._bucket.exchange(
          lock.FILE, self._content(), self._generation
        )
        # An answer that was lost on its way, and not the lease.
        if not renewed:
          content, generation = self._bucket.read(lock.FILE)
          renewed = generation if self._is_mine(content) else None
      except UserError as error:
        _log.warning('the lease was not renewed: %s', error)
        continue
      if not renewed:
        self._lost = True
        _log.error(
          '%s was taken over by another process: stopping', self._bucket.url
        )
        # A training saves and stops, if one is under way.
        if callable(signal.getsignal(signal.SIGTERM)):
          os.kill(os.getpid(), signal.SIGTERM)
        return
      self._generation, self._renewed = renewed, asked

  def _is_mine(self, content: bytes) -> bool:
    return _parse(content).get('id') == self._owner['id']


def _this_process() -> dict[str, Any]:
  return {
    'id': secrets.token_hex(8),
    'host': socket.gethostname(),
    'process': os.getpid(),
    **_place(),
    'started': _start_of(os.getpid()),
  }


def _place() -> dict[str, str]:
  """In what the number of a process means one: a machine's start, a container.

  Empty where the system does not tell.
  """
  try:
    return {
      'boot': pathlib.Path('/proc/sys/kernel/random/boot_id')
      .read_text('utf-8')
      .strip(),
      'processes': os.readlink('/proc/self/ns/pid'),
    }
  except OSError:
    return {}


def _start_of(process: int) -> str | None:
  """When a process of this machine began; None if it has ended."""
  try:
    stat = pathlib.Path(f'/proc/{process}/stat').read_text('utf-8')
  except (OSError, ValueError):
    return None
  # The name, in parentheses, may hold anything.
  fields = stat.rpartition(')')[2].split()
  return None if fields[0] in 'ZX' else fields[19]


def _parse(content: bytes) -> dict[str, Any]:
  try:
    found = json.loads(content)
  except ValueError:
    found = None
  return found if isinstance(found, dict) else {}


def _is_alive(content: bytes) -> bool | None:
  """Whether the process is alive; None if it is none of this machine."""
  found, place = _parse(content), _place()
  if not place or any(found.get(name) != place[name] for name in place):
    return None
  process, started = found.get('process'), found.get('started')
  if not isinstance(process, int) or not isinstance(started, str):
    return None
  return _start_of(process) == started


def _in_words(content: bytes) -> str:
  found = _parse(content)
  if 'process' not in found:
    return 'another process'
  return f'process {found["process"]!r:.20} on {found.get("host")!s:.100}'
