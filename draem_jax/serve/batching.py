"""Pictures of several requests, gathered into batches for the device.

One thread runs the networks. A picture waits until the device is free, and
then at most some milliseconds for others to share its batch. A picture that is
scored by tiles has batches of its own, and pictures take turns.
"""

import collections
import dataclasses
import logging
import threading
import time
from concurrent import futures

import numpy as np
from jaxtyping import Float, UInt8

from draem_jax.data import encoded
from draem_jax.detection import tiles
from draem_jax.detection.detector import Detector
from draem_jax.errors import UserError

_log = logging.getLogger(__name__)

# How fast the mean of seconds a picture follows.
_MEMORY = 0.9


@dataclasses.dataclass(frozen=True)
class Scored:
  """What the networks say of a picture, at their size."""

  score: float
  anomaly_map: Float[np.ndarray, 'h w']


@dataclasses.dataclass(frozen=True)
class _Waiting:
  """A prepared picture, since when it waits, and who waits for it."""

  prepared: UInt8[np.ndarray, 'h w c']
  since: float
  answer: futures.Future


class Batcher:
  """Scores prepared pictures in batches.

  Each is padded to `detector.batch_size`: a program for fewer pictures rounds
  maps in another way, and what is said of a picture would depend on who shares
  its batch.

  Attributes:
    num_batches: that were scored.
    num_pictures: in them.
    seconds_each: a mean of what a picture took lately.
  """

  def __init__(self, detector: Detector, *, wait: float):
    """Starts the thread.

    Args:
      detector: what scores.
      wait: seconds that a picture waits for others, at most.
    """
    self._detector, self._wait = detector, wait
    self.num_batches = self.num_pictures = 0
    self.seconds_each = 0.0
    self._waiting: collections.deque[_Waiting] = collections.deque()
    self._is_closed = False
    self._changed, self._turn = threading.Condition(), threading.Lock()
    self._thread = threading.Thread(target=self._work, name='device')
    self._thread.start()

  def warm_up(self) -> None:
    """Has the program compiled that will be run."""
    if self._detector.is_tiled:
      self._detector.compile_tiles()
      return
    size, channels = self._detector.image_size, self._detector.channels
    self._detector.score_all(np.zeros((1, *size, channels), np.uint8))

  def submit(self, prepared: UInt8[np.ndarray, 'h w c']) -> futures.Future:
    """The future of what is `Scored` of a picture.

    Args:
      prepared: the picture as `Detector.prepare` gives it.
    """
    answer = futures.Future()
    with self._changed:
      if self._is_closed:
        raise RuntimeError('closed')
      self._waiting.append(_Waiting(prepared, time.monotonic(), answer))
      self._changed.notify_all()
    return answer

  @property
  def turn(self) -> threading.Lock:
    """To be held while a picture that is scored by tiles is in memory."""
    return self._turn

  def scan(self, picture: encoded.Picture, spool: tiles.Spool) -> float:
    """The score of a picture by tiles, for who holds the `turn`.

    Args:
      picture: of any size.
      spool: for its map.
    """
    begin = time.monotonic()
    rows = self._detector.prepared_rows(picture)
    try:
      score = self._detector.scan(rows, spool.shape, spool.add)
    except Exception as error:  # The device fails, or its memory is full.
      _tell(error)
      raise
    self._count(1, time.monotonic() - begin)
    return score

  @property
  def num_waiting(self) -> int:
    """Pictures that no batch has taken yet."""
    return len(self._waiting)

  def is_alive(self) -> bool:
    """Whether the thread runs."""
    return self._thread.is_alive()

  def close(self) -> None:
    """Scores what waits, and ends the thread."""
    with self._changed:
      self._is_closed = True
      self._changed.notify_all()
    self._thread.join()

  def _work(self) -> None:
    while batch := self._gather():
      # Who has gone meanwhile takes no place.
      batch = [
        one for one in batch if one.answer.set_running_or_notify_cancel()
      ]
      if batch:
        self._score(batch)

  def _gather(self) -> list[_Waiting]:
    """The next batch; empty when there will be no other."""
    most = self._detector.batch_size
    with self._changed:
      self._changed.wait_for(lambda: self._waiting or self._is_closed)
      if self._waiting:
        left = self._waiting[0].since + self._wait - time.monotonic()
        self._changed.wait_for(
          lambda: len(self._waiting) >= most or self._is_closed,
          timeout=max(0.0, left),
        )
      count = min(most, len(self._waiting))
      return [self._waiting.popleft() for _ in range(count)]

  def _score(self, batch: list[_Waiting]) -> None:
    begin = time.monotonic()
    try:
      pictures = np.stack([one.prepared for one in batch])
      scored = self._detector.score_all(pictures)
    except Exception as error:  # The device fails, or its memory is full.
      _tell(error)
      for one in batch:
        one.answer.set_exception(error)
      return
    self._count(len(batch), time.monotonic() - begin)
    for one, score, anomaly_map in zip(
      batch, scored.score, scored.anomaly_map, strict=True
    ):
      # A map of its own, or one that is kept keeps the whole batch.
      one.answer.set_result(Scored(float(score), anomaly_map.copy()))

  def _count(self, number: int, seconds: float) -> None:
    """Counts the pictures of a batch, which took so long."""
    self.seconds_each += (1 - _MEMORY) * (seconds / number - self.seconds_each)
    self.num_batches += 1
    self.num_pictures += number


def _tell(error: Exception) -> None:
  if not isinstance(error, UserError):
    reason = ' '.join(str(error).split())
    _log.error('the device failed: %.300s', reason or type(error).__name__)
