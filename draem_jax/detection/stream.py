"""Files in, predictions out: reads ahead of the device, writes behind it.

Both in threads. At every stage only some batches of images are under way, and
of these only so many pixels are kept, so that memory grows neither with their
number nor, but for the one picture that is being decoded, with their size.

A detector that looks at pictures by tiles takes some pictures at a time, each
from its file to what is written of it, in strips; a map that is large waits in
a file.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from typing import Any, TypeVar

import numpy as np
import tqdm
from jaxtyping import Bool, Float, UInt8, UInt16
from tqdm.contrib.logging import logging_redirect_tqdm

from draem_jax import devices
from draem_jax.data import encoded, files, images
from draem_jax.detection import tiles
from draem_jax.detection.detector import Detector
from draem_jax.detection.predictions import Predictions
from draem_jax.detection.regions import Finder, Region
from draem_jax.errors import UserError
from draem_jax.pictures import panels, shrink

_log = logging.getLogger(__name__)

_LINE_EVERY = 10.0  # Seconds between lines where there is no terminal.
# Pixels drawn at a time: in between, each takes ten times what it is.
_STRIP = 1 << 20
# Pixels of all images that are kept from reading to drawing. What finds no room
# is decoded a second time.
_KEPT = 1 << 26
# Pictures that are scored by tiles at a time.
_TILED = 4
# Boxes in an overlay: of hundreds none could be told from another.
_BOXES = 50

_In, _Out = TypeVar('_In'), TypeVar('_Out')


@dataclasses.dataclass
class _Picture:
  """An image on its way: read, then scored; None where it is not kept."""

  name: str
  image: UInt8[np.ndarray, 'h w 3'] | None
  prepared: UInt8[np.ndarray, 'h2 w2 c']
  anomaly_map: Float[np.ndarray, 'h2 w2'] | None = None
  score: float | None = None


@dataclasses.dataclass
class _Row:
  """What is written of an image beside its pictures."""

  name: str
  score: float
  size: tuple[int, int]
  regions: list[Region]


def score_files(
  detector: Detector,
  found: files.Found,
  predictions: Predictions,
  *,
  with_boxes: bool = False,
  overlay_side: int = 0,
) -> int:
  """Scores the images that have no row; returns how many are unreadable.

  Args:
    detector: of all of them.
    found: the images.
    predictions: where to write.
    with_boxes: whether overlays have the boxes of the regions in them.
    overlay_side: pixels of the longer side of overlays, at most; 0 for those of
      the images.
  """
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
  if not detector.is_tiled:
    detector = detector.with_batch_size(min(detector.batch_size, len(names)))
  progress = _Progress(len(found.names), len(found.names) - len(names))
  bits_in_use = {}

  def pass_over(error: UserError) -> None:
    _log.warning('%s', error)
    progress.add_broken()

  overlay = {'with_boxes': with_boxes, 'side': overlay_side}
  given = (detector, found.root, names, predictions, bits_in_use, overlay)
  rows = (
    _score_by_tiles(*given)
    if detector.is_tiled
    else _score(*given, pass_over=pass_over)
  )
  with (
    logging_redirect_tqdm([logging.getLogger('draem_jax')]),
    contextlib.closing(progress),
    contextlib.closing(rows),
  ):
    try:
      for row in rows:
        if isinstance(row, UserError):
          pass_over(row)
          continue
        _note(row, predictions)
        progress.add(predictions.verdicts[row.name])
    finally:
      line = images.describe_depth(dict(sorted(bits_in_use.items())))
      if line:
        _log.warning('%s', line)
  return progress.broken


def _note(row: _Row, predictions: Predictions) -> None:
  predictions.notes.add(
    row.name, size=row.size, score=row.score, regions=row.regions
  )
  area = sum(region.area for region in row.regions)
  predictions.add(
    row.name,
    score=row.score,
    is_anomalous=area > 0,
    area=area / (row.size[0] * row.size[1]),
  )


def _score(
  detector: Detector,
  root: pathlib.Path,
  names: Iterable[str],
  predictions: Predictions,
  bits_in_use: dict[str, int],
  overlay: Mapping[str, Any],
  *,
  pass_over: Callable[[UserError], None],
) -> Iterator[_Row | UserError]:
  """Reads, scores and writes the pictures; the rows come in order.

  Of images of 16 bits, `bits_in_use` is told by name. Files that cannot be read
  are passed over before they get into a batch.
  """
  kept = _Kept(_KEPT)
  prepare = detector.prepare_picture

  def read(name: str) -> _Picture | UserError:
    try:
      with encoded.open_picture(root / name) as picture:
        if picture.bits_in_use is not None:
          bits_in_use[name] = picture.bits_in_use
        image = picture.rgb() if kept.take(picture.shape) else None
        prepared = prepare(picture, name)
        return _Picture(name, image, prepared)
    except UserError as error:
      return error

  def readable(pictures: Iterable[_Picture | UserError]) -> Iterator[_Picture]:
    for picture in pictures:
      if isinstance(picture, UserError):
        pass_over(picture)
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

  def write(picture: _Picture) -> _Row | UserError:
    if picture.image is not None:
      rows = lambda top, bottom: picture.image[top:bottom]
      row = draw(picture, picture.image.shape[:2], rows)
      kept.give_back(picture.image.shape)
      return row
    path = root / picture.name
    with contextlib.ExitStack() as stack:
      try:
        again = stack.enter_context(encoded.open_picture(path))
        if not np.array_equal(prepare(again, picture.name), picture.prepared):
          raise UserError(f'{path} has changed meanwhile: score it again')
      except UserError as error:
        return error
      return draw(picture, again.shape, again.rows)

  def draw(
    picture: _Picture, shape: tuple[int, int], rows: Callable[..., np.ndarray]
  ) -> _Row:
    drawing = Drawing(detector, picture.anomaly_map, picture.score, shape)
    return _draw(picture.name, drawing, rows, predictions, overlay)

  size = detector.batch_size
  with _pool(os.cpu_count() or 1) as pool, _pool(1) as device:
    pictures = readable(_ahead(pool, read, names, size))
    batches = _ahead(device, score, _batches(pictures, size), 1)
    scored = itertools.chain.from_iterable(batches)
    yield from _ahead(pool, write, scored, size)


def _score_by_tiles(
  detector: Detector,
  root: pathlib.Path,
  names: Iterable[str],
  predictions: Predictions,
  bits_in_use: dict[str, int],
  overlay: Mapping[str, Any],
) -> Iterator[_Row | UserError]:
  """The same of pictures of which each is scored by tiles."""

  def work(name: str) -> _Row | UserError:
    with contextlib.ExitStack() as stack:
      try:
        picture = stack.enter_context(encoded.open_picture(root / name))
      except UserError as error:
        return error
      if picture.bits_in_use is not None:
        bits_in_use[name] = picture.bits_in_use
      size = detector.size_of(picture.shape)
      # Where the map will be written, too, there is room.
      spool = stack.enter_context(tiles.Spool(size, predictions.folder))
      rows = detector.prepared_rows(picture)
      score = detector.scan(rows, size, spool.add)
      drawing = Drawing(detector, spool, score, picture.shape)
      return _draw(name, drawing, picture.rows, predictions, overlay)

  count = min(_TILED, os.cpu_count() or 1)
  with _pool(count) as pool:
    yield from _ahead(pool, work, names, count)


def _draw(
  name: str,
  drawing: 'Drawing',
  rows: Callable[..., np.ndarray],
  predictions: Predictions,
  overlay: Mapping[str, Any],
) -> _Row:
  """Writes the pictures of an image; what is left to write is its row."""
  predictions.write_pictures(
    name, overlay=drawing.overlay(rows, **overlay), levels=drawing.levels()
  )
  return _Row(name, drawing.score, drawing.shape, drawing.regions)


class Drawing:
  """What there is to see of an image, made strip by strip.

  All is in its own pixels, and no array as large as it is made.

  Attributes:
    score: of the image.
    shape: its height and width.
  """

  def __init__(
    self,
    detector: Detector,
    anomaly_map: Float[np.ndarray, 'h w'] | tiles.Spool,
    score: float,
    shape: tuple[int, int],
  ):
    """Takes what the detector says of it.

    Args:
      detector: with thresholds.
      anomaly_map: of the image, at the size at which it was looked at.
      score: of the image.
      shape: the image's height and width.
    """
    self._detector, self.score, self.shape = detector, score, shape
    if isinstance(anomaly_map, tiles.Spool) and anomaly_map.shape != shape:
      anomaly_map = anomaly_map.rows(0, anomaly_map.shape[0])
    self._looked_at = anomaly_map
    # Most images are a single strip, of which the map is made once.
    self._map = functools.lru_cache(1)(self._make_map)

  @functools.cached_property
  def regions(self) -> list[Region]:
    """The regions of its mask, the one of the highest peak first."""
    finder = Finder()
    if self._is_anomalous:
      for begin, end, inner in self._strips():
        anomaly_map = self._map(begin, end)[inner]
        finder.add(anomaly_map, self._find_mask(anomaly_map))
    return finder.regions()

  def overlay(
    self,
    rows: Callable[..., np.ndarray],
    *,
    with_boxes: bool = False,
    side: int = 0,
  ) -> Iterator[UInt8[np.ndarray, 'h w 3']]:
    """The image with its heat map, and the anomalous pixels outlined.

    Args:
      rows: gives the image's rows from one to before another.
      with_boxes: whether the boxes of the regions are drawn, too, of the 50
        with the highest peaks.
      side: pixels of the longer side, at most; 0 for those of the image.
    """
    block = shrink.factor(self.shape, side)
    regions = self.regions[:_BOXES] if with_boxes else []
    boxes = [_shrink_box(region.box, block) for region in regions]
    shape = tuple(-(-length // block) for length in self.shape)
    for begin, end, inner in self._strips(block):
      anomaly_map = shrink.peaks(self._map(begin, end), block)
      picture = shrink.means(rows(begin, end), block)
      overlay = panels.heat_map_overlay(picture, anomaly_map)
      if self._is_anomalous:
        overlay = panels.draw_outline(overlay, self._find_mask(anomaly_map))
      if boxes:
        panels.draw_boxes(overlay, boxes, top=begin // block, shape=shape)
      yield overlay[inner]

  def levels(self, *, side: int = 0) -> Iterator[UInt16[np.ndarray, 'h w']]:
    """The anomaly map, 65535 for 1.

    Args:
      side: pixels of the longer side, at most; 0 for those of the image.
    """
    block = shrink.factor(self.shape, side)
    for begin, end, inner in self._strips(block):
      anomaly_map = shrink.peaks(self._map(begin, end), block)[inner]
      yield (np.clip(anomaly_map, 0, 1) * 65535 + 0.5).astype(np.uint16)

  @functools.cached_property
  def _is_anomalous(self) -> bool:
    return bool(self._detector.is_anomalous(np.array([self.score])).all())

  @functools.cached_property
  def _peak(self) -> float:
    return max(
      float(self._map(begin, end).max()) for begin, end, _ in self._strips()
    )

  def _find_mask(
    self, anomaly_map: Float[np.ndarray, 'h w']
  ) -> Bool[np.ndarray, 'h w']:
    """The anomalous pixels of a strip of the map."""
    return self._detector.find_mask(anomaly_map, self.score, peak=self._peak)

  def _strips(self, block: int = 1) -> Iterator[tuple[int, int, slice]]:
    """Rows to look at, with one on each side to outline, and those meant.

    Args:
      block: rows that become one, of which those meant are told.
    """
    height, width = self.shape
    step = max(1, _STRIP // (width * block)) * block
    for top in range(0, height, step):
      bottom = min(top + step, height)
      begin, end = max(0, top - block), min(height, bottom + block)
      first = (top - begin) // block
      yield begin, end, slice(first, first + -(-(bottom - top) // block))

  def _make_map(self, begin: int, end: int) -> Float[np.ndarray, 'h w']:
    if isinstance(self._looked_at, tiles.Spool):
      return self._looked_at.rows(begin, end)
    return images.resize_bilinear(
      self._looked_at[..., None],
      self.shape,
      rows=slice(begin, end),
    )[..., 0]


def _shrink_box(
  box: tuple[int, int, int, int], block: int
) -> tuple[int, int, int, int]:
  """The box of the blocks that a box touches."""
  left, top, width, height = box
  right, bottom = -(-(left + width) // block), -(-(top + height) // block)
  left, top = left // block, top // block
  return left, top, right - left, bottom - top


class _Kept:
  """Room for the pixels of images that wait."""

  def __init__(self, size: int):
    self._left, self._lock = size, threading.Lock()

  def take(self, shape: tuple[int, ...]) -> bool:
    """Whether there is room, which is then taken."""
    with self._lock:
      fits = shape[0] * shape[1] <= self._left
      self._left -= shape[0] * shape[1] if fits else 0
    return fits

  def give_back(self, shape: tuple[int, ...]) -> None:
    with self._lock:
      self._left += shape[0] * shape[1]


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
