"""Files in, predictions out: reads ahead of the device, writes behind it.

Both in threads. At every stage only some batches of images are under way, so
memory does not grow with their number.
"""

import collections
import contextlib
import dataclasses
import itertools
import logging
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import TypeVar

import numpy as np
import tqdm
from jaxtyping import Bool, Float, UInt8
from tqdm.contrib.logging import logging_redirect_tqdm

from draem_jax import devices
from draem_jax.data import files, images
from draem_jax.detection.detector import Detector, resize_map
from draem_jax.detection.predictions import Predictions
from draem_jax.errors import UserError
from draem_jax.pictures import panels

_log = logging.getLogger(__name__)

_LINE_EVERY = 10.0  # Seconds between lines where there is no terminal.
# Pixels drawn at a time: in between, each takes ten times what it is.
_STRIP = 1 << 20

_In, _Out = TypeVar('_In'), TypeVar('_Out')


@dataclasses.dataclass
class _Picture:
  """An image on its way: read, then scored."""

  name: str
  image: UInt8[np.ndarray, 'h w 3']
  prepared: UInt8[np.ndarray, 'image_size image_size 3']
  anomaly_map: Float[np.ndarray, 'image_size image_size'] | None = None
  score: float | None = None


@dataclasses.dataclass
class _Row:
  """What the table says of an image."""

  name: str
  score: float
  is_anomalous: bool
  area: float


def score_files(
  detector: Detector, found: files.Found, predictions: Predictions
) -> int:
  """Scores the images that have no row; returns how many are unreadable."""
  names = [name for name in found.names if name not in predictions.verdicts]
  _log.info(
    'scoring %d of %d images in %s on %s; anomalous above %s (%s)',
    len(names),
    len(found.names),
    found.root,
    devices.device_name(),
    panels.number(detector.thresholds.image),
    detector.thresholds.source,
  )
  # The networks need not look at a whole batch for a few images.
  detector = detector.with_batch_size(min(detector.batch_size, len(names)))
  progress = _Progress(len(found.names), len(found.names) - len(names))
  with (
    logging_redirect_tqdm([logging.getLogger('draem_jax')]),
    contextlib.closing(progress),
    contextlib.closing(
      _score(detector, found.root, names, predictions, progress)
    ) as rows,
  ):
    for row in rows:
      predictions.add(**dataclasses.asdict(row))
      progress.add(row.is_anomalous)
  return progress.broken


def _score(
  detector: Detector,
  root: pathlib.Path,
  names: Iterable[str],
  predictions: Predictions,
  progress: '_Progress',
) -> Iterator[_Row]:
  """Reads, scores and writes the pictures; the rows come in order."""

  def read(name: str) -> _Picture | UserError:
    try:
      image = images.read_image(root / name)
    except UserError as error:
      return error
    return _Picture(name, image, detector.prepare(image))

  def readable(pictures: Iterable[_Picture | UserError]) -> Iterator[_Picture]:
    for picture in pictures:
      if isinstance(picture, UserError):
        _log.warning('%s', picture)
        progress.add_broken()
      else:
        yield picture

  def score(batch: list[_Picture]) -> list[_Picture]:
    scored = detector.score_all(np.stack([p.prepared for p in batch]))
    return [
      dataclasses.replace(picture, anomaly_map=anomaly_map, score=float(score))
      for picture, anomaly_map, score in zip(
        batch, scored.anomaly_map, scored.score, strict=True
      )
    ]

  def write(picture: _Picture) -> _Row:
    anomaly_map = resize_map(picture.anomaly_map, picture.image.shape[:2])
    mask = detector.find_mask(anomaly_map, picture.score)
    predictions.write_pictures(
      picture.name,
      overlay=_draw(picture.image, anomaly_map, mask),
      levels=(np.clip(anomaly_map, 0, 1) * 65535 + 0.5).astype(np.uint16),
    )
    verdict, area = bool(mask.any()), float(mask.mean())
    return _Row(picture.name, picture.score, verdict, area)

  size = detector.batch_size
  with _pool(os.cpu_count() or 1) as pool, _pool(1) as device:
    pictures = readable(_ahead(pool, read, names, size))
    batches = _ahead(device, score, _batches(pictures, size), 1)
    scored = itertools.chain.from_iterable(batches)
    yield from _ahead(pool, write, scored, size)


def _draw(
  image: UInt8[np.ndarray, 'h w 3'],
  anomaly_map: Float[np.ndarray, 'h w'],
  mask: Bool[np.ndarray, 'h w'],
) -> UInt8[np.ndarray, 'h w 3']:
  """The image with its heat map, and the anomalous pixels outlined."""
  rows = max(1, _STRIP // image.shape[1])
  overlay = np.concatenate(
    [
      panels.heat_map_overlay(
        image[top : top + rows], anomaly_map[top : top + rows]
      )
      for top in range(0, len(image), rows)
    ]
  )
  return panels.draw_outline(overlay, mask) if mask.any() else overlay


@contextlib.contextmanager
def _pool(size: int) -> Iterator[futures.Executor]:
  """Threads that begin nothing new once the block is left."""
  pool = futures.ThreadPoolExecutor(min(32, size))
  try:
    yield pool
  finally:
    pool.shutdown(cancel_futures=True)


def _ahead(
  pool: futures.Executor,
  function: Callable[[_In], _Out],
  items: Iterable[_In],
  count: int,
) -> Iterator[_Out]:
  """As `pool.map`, with at most `count` items begun but the one waited for."""
  pending = collections.deque()
  for item in items:
    pending.append(pool.submit(function, item))
    while pending and (len(pending) > count or pending[0].done()):
      yield pending.popleft().result()
  while pending:
    yield pending.popleft().result()


def _batches(items: Iterable[_In], size: int) -> Iterator[list[_In]]:
  items = iter(items)
  while batch := list(itertools.islice(items, size)):
    yield batch


class _Progress:
  """A bar on a terminal, elsewhere a line now and then."""

  def __init__(self, total: int, done: int):
    self.broken = 0
    self._total, self._first, self._count = total, done, done
    self._anomalous = 0
    self._begin = self._last = time.monotonic()
    self._bar = tqdm.tqdm(
      total=total,
      initial=done,
      unit=' images',
      dynamic_ncols=True,
      disable=not sys.stderr.isatty(),
    )

  def add(self, is_anomalous: bool) -> None:
    self._anomalous += is_anomalous
    self._advance()

  def add_broken(self) -> None:
    self.broken += 1
    self._advance()

  def close(self) -> None:
    self._bar.close()

  def _advance(self) -> None:
    self._count += 1
    self._bar.set_postfix_str(f'{self._anomalous} anomalous', refresh=False)
    self._bar.update()
    now = time.monotonic()
    if self._bar.disable and now >= self._last + _LINE_EVERY:
      self._last = now
      rate = (self._count - self._first) / (now - self._begin)
      _log.info(
        '%d of %d images, %.3g images/s, %s left, %d anomalous, %d unreadable',
        self._count,
        self._total,
        rate,
        tqdm.tqdm.format_interval((self._total - self._count) / rate),
        self._anomalous,
        self.broken,
      )
