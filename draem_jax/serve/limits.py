"""What a request may take, and what all of them may take together."""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Mapping

from starlette.exceptions import HTTPException

# Bodies of the largest size that may be in memory at once.
_BODIES = 4


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a request may take.

  Attributes:
    request_bytes: of its body.
    files: pictures in one request.
    pixels: of a picture.
    waiting: pictures of all requests that are not answered yet.
    silence: seconds without a byte of a body that is not whole.
    receiving: seconds until a body is whole.
  """

  request_bytes: int = 64 * 2**20
  files: int = 16
  pixels: int = 64 * 10**6
  waiting: int = 64
  silence: float = 20
  receiving: float = 300


class Refused(HTTPException):
  """A request is not answered as it stands; `detail` is one line that says why.

  It also says what to do about it.
  """

  def __init__(
    self, status: int, detail: str, headers: Mapping[str, str] | None = None
  ):
    super().__init__(status, detail, headers)


class Room:
  """What all requests may take together of something that is counted.

  Who finds no room is refused rather than made to wait, so that nobody waits
  for somebody who waits.
  """

  def __init__(self, size: int):
    """Is empty.

    Args:
      size: how much may be taken.
    """
    self.size, self.taken = size, 0
    self._lock = threading.Lock()

  @contextlib.contextmanager
  def open(self) -> Iterator['Share']:
    """A share of it, which is given back when the block ends."""
    share = Share(self)
    try:
      yield share
    finally:
      share.give_back()

  def change(self, count: int) -> bool:
    """Takes so much, or gives it back if negative; whether there was room."""
    with self._lock:
      fits = self.taken + count <= self.size
      self.taken += count if fits else 0
    return fits


class Share:
  """What one request has taken of a `Room`."""

  def __init__(self, room: Room):
    """Has taken nothing yet."""
    self._room, self._taken = room, 0

  def take(self, count: int) -> bool:
    """Takes so much more; whether there was room."""
    fits = self._room.change(count)
    self._taken += count if fits else 0
    return fits

  def give_back(self) -> None:
    """Gives back all of it."""
    self._room.change(-self._taken)
    self._taken = 0


def room_for_bodies(limits: Limits) -> Room:
  """Room for the bytes of all requests that are being read or decoded."""
  return Room(_BODIES * limits.request_bytes)
