"""The lease of a workdir in a bucket: one process at a time writes there.

A bucket has no locks. The object `.lock` says which process writes; that one
renews it every few seconds, and deletes it in the end. Who finds one that is
not renewed any more takes it over: no clock is compared with another's.
"""

import contextlib
import logging
import os
import secrets
import signal
import socket
import threading
import time

from draem_jax.errors import PassingError, UserError
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
    self._owner = (
      f'process {os.getpid()} on {socket.gethostname()}\n{secrets.token_hex(8)}'
    )
    self._count = 0
    self._lost = False
    self._stop = threading.Event()
    self._take()
    self._renewed = time.monotonic()
    self._thread = threading.Thread(target=self._keep_renewing, daemon=True)
    self._thread.start()

  def check(self) -> None:
    """Raises a `UserError` if another process may hold the lease by now.

    A `PassingError` if that is because the bucket could not be reached.
    """
    if self._lost:
      raise UserError(
        f'{self._bucket.url}: another process has taken it over: this one'
        ' writes nothing there any more'
      )
    silent = time.monotonic() - self._renewed
    if silent > _STALE:
      raise PassingError(
        f'{self._bucket.url}: it could not be reached for {silent:.0f} s: see'
        ' to the network'
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
    content, seen = self._bucket.read(lock.FILE)
    if seen != ABSENT:
      _log.info(
        '%s was being written by %s: waiting up to %.0f s to see whether that'
        ' is alive',
        *(self._bucket.url, _in_words(content), _DEAD),
      )
    since = time.monotonic()
    while seen != ABSENT and time.monotonic() - since < _DEAD:
      time.sleep(_RENEW / 5)
      content, now = self._bucket.read(lock.FILE)
      if now not in (seen, ABSENT):
        raise self._refusal(content)
      seen = now
    mine = self._write(seen)
    if mine and self._is_settled(mine):
      self._generation = mine
      return
    # Somebody else was quicker, or there is no such bucket, which a condition
    # hides and a write tells.
    content, now = self._bucket.read(lock.FILE)
    if now == ABSENT:
      self._bucket.write(_PROBE, b'')
      self._bucket.delete(_PROBE)
    raise self._refusal(content)

  def _refusal(self, content: bytes) -> UserError:
    return UserError(
      f'{self._bucket.url} is being written by {_in_words(content)}: wait until'
      ' it ends, or take another --workdir'
    )

  def _is_settled(self, mine: bytes) -> bool:
    """Whether what was written stays, where a store takes it from two."""
    if self._bucket.has_conditions:
      return True
    time.sleep(_SETTLE)
    return self._bucket.read(lock.FILE)[1] == mine

  def _write(self, generation: bytes) -> bytes | None:
    """Its generation once it is written; None if another process has it."""
    # Another one each time, or its generation might be the same.
    self._count += 1
    content = f'{self._owner}\n{self._count}\n'.encode()
    if written := self._bucket.exchange(lock.FILE, content, generation):
      return written
    # An answer that was lost on its way, and not the lease.
    found, now = self._bucket.read(lock.FILE)
    return now if found.startswith(self._owner.encode()) else None

  def _keep_renewing(self) -> None:
    while not self._stop.wait(_RENEW):
      asked = time.monotonic()
      try:
        renewed = self._write(self._generation)
      except UserError:
        continue  # `check` tells, once it matters.
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


def _in_words(content: bytes) -> str:
  line = content.decode('utf-8', 'replace').partition('\n')[0]
  return line[:200] or 'another process'
