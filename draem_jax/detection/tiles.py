"""Whole pictures by overlapping tiles: where they lie and how maps are blended.

Along an axis tiles begin every three quarters of a tile, and the last one ends
with the picture. Where tiles overlap, each counts by a weight that falls to
zero towards its border, along half a period of a cosine, and all weights of a
pixel add up to one: so no border of a tile shows. What is smaller than a tile
goes on mirrored, and the map is cut to the picture.

Nothing here is as large as a picture, but for its width: rows of tiles are cut
out, scored and blended one after the other.
"""

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

# Of a tile, what the next one has of it at least.
OVERLAP = 1 / 4
# Pixels of a map that is kept in memory; a larger one lies in a file.
_IN_MEMORY = 1 << 23

# Gives a picture's rows from one to before another.
Rows = Callable[[int, int], UInt8[np.ndarray, 'h w 3']]


class Axis(NamedTuple):
  """The tiles along one axis of a picture.

  Attributes:
    length: of the picture, in pixels.
    tile: the length of a tile.
    starts: the first pixel of each.
    weights: how much each of its pixels counts; those of all tiles at a pixel
      of the picture add up to 1.
  """

  length: int
  tile: int
  starts: Int[np.ndarray, 'n']
  weights: Float[np.ndarray, 'n t']


class Tiling(NamedTuple):
  """The tiles of a picture, in rows from top to bottom."""

  down: Axis
  across: Axis

  @property
  def count(self) -> int:
    """Number of the tiles."""
    return len(self.down.starts) * len(self.across.starts)


def overlap(tile: int) -> int:
  """Pixels that a tile shares with the next one, at least."""
  return int(tile * OVERLAP)


def ramp(tile: int) -> Float[np.ndarray, 't']:
  """How much the pixels of a tile count whose begin another tile overlaps."""
  shared = overlap(tile)
  place = np.minimum((np.arange(tile) + 0.5) / shared, 1)
  return np.sin(np.pi / 2 * place) ** 2


def place(length: int, tile: int) -> Axis:
  """Places tiles along an axis.

  Args:
    length: of the picture.
    tile: the length of a tile.
  """
  step = tile - overlap(tile)
  count = max(1, math.ceil((length - overlap(tile)) / step))
  starts = np.minimum(np.arange(count) * step, max(0, length - tile))
  weights = np.ones((count, tile))
  weights[1:] *= ramp(tile)
  weights[:-1] *= ramp(tile)[::-1]
  total = np.zeros(max(length, tile))
  for start, own in zip(starts, weights, strict=True):
    total[start : start + tile] += own
  for start, own in zip(starts, weights, strict=True):
    own /= total[start : start + tile]
  return Axis(length, tile, starts, weights.astype(np.float32))


def cover(shape: tuple[int, int], tile: tuple[int, int]) -> Tiling:
  """The tiles of a picture.

  Args:
    shape: the picture's height and width.
    tile: those of a tile.
  """
  return Tiling(*map(place, shape, tile))


def cut(
  rows: Rows, tiling: Tiling
) -> Iterator[UInt8[np.ndarray, 'tile_h tile_w 3']]:
  """The tiles of a picture, row by row.

  Args:
    rows: gives the picture's rows from one to before another.
    tiling: where they lie.
  """
  down, across = tiling
  places = _mirrored(across)
  for top in down.starts.tolist():
    strip = rows(top, min(top + down.tile, down.length))
    strip = strip[_mirrored(down)] if down.length < down.tile else strip
    strip = strip[:, places] if across.length < across.tile else strip
    for left in across.starts.tolist():
      yield strip[:, left : left + across.tile]


def blend(
  tiling: Tiling, tiles: Iterable[Float[np.ndarray, 'tile_h tile_w *c']]
) -> Iterator[Float[np.ndarray, '_ w *c']]:
  """What was made of each tile as one for the picture, in strips.

  A strip is given as soon as no further tile reaches into it.

  Args:
    tiling: where the tiles lie.
    tiles: in the order of `cut`.
  """
  down, across = tiling
  tiles, waiting = iter(tiles), None
  ends = [*down.starts[1:].tolist(), down.length]
  for top, end, weights in zip(
    down.starts.tolist(), ends, down.weights, strict=True
  ):
    strip = None
    for left, own in zip(across.starts.tolist(), across.weights, strict=True):
      tile = next(tiles)
      if strip is None:
        strip = np.zeros(
          (down.tile, across.length, *tile.shape[2:]), np.float32
        )
      here = strip[:, left : left + across.tile]
      width = here.shape[1]
      here += tile[:, :width] * _along(own[:width], tile.ndim, axis=1)
    strip *= _along(weights, strip.ndim, axis=0)
    if waiting is not None:
      strip[: len(waiting)] += waiting
    yield strip[: end - top]
    waiting = strip[end - top :]


def local_means(
  strips: Iterable[Float[np.ndarray, '_ w']], *, window: int
) -> Iterator[Float[np.ndarray, '_ w']]:
  """As `score.local_means`, of a map that comes in strips, in strips.

  Args:
    strips: of the map, from top to bottom.
    window: the side of the square averaged over, odd. Beyond the border the map
      counts as 0.
  """
  half, above = window // 2, None
  for strip in strips:
    across = _window_sums(np.pad(strip, ((0, 0), (half, half))).T, window).T
    if above is None:
      above = np.zeros((half, across.shape[1]), np.float32)
    rows = np.concatenate([above, across])
    if len(rows) >= window:
      yield _window_sums(rows, window) / np.float32(window**2)
    above = rows[max(0, len(rows) - window + 1) :]
  rows = np.pad(above, ((0, half), (0, 0)))
  if len(rows) >= window:
    yield _window_sums(rows, window) / np.float32(window**2)


class Spool:
  """The rows of a map, added from top to bottom and read again in strips.

  A large map lies in a file without a name, which is gone when it is closed.

  Attributes:
    shape: height and width of the map.
  """

  def __init__(
    self, shape: tuple[int, int], folder: str | os.PathLike[str] | None = None
  ):
    """Is empty.

    Args:
      shape: height and width of the map.
      folder: where the file is; by default where temporary files are.
    """
    self.shape = shape
    self._filled = 0
    self._array = self._file = None
    if math.prod(shape) <= _IN_MEMORY:
      self._array = np.empty(shape, np.float32)
    else:
      # Closed by `__exit__`.
      self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115

  def __enter__(self) -> 'Spool':
    return self

  def __exit__(self, *error: object) -> None:
    self._array = None
    if self._file is not None:
      self._file.close()

  def add(self, strip: Float[np.ndarray, '_ w']) -> None:
    """Takes the next rows."""
    if self._array is not None:
      self._array[self._filled : self._filled + len(strip)] = strip
    else:
      left = memoryview(np.ascontiguousarray(strip, np.float32)).cast('B')
      while left:
        left = left[self._file.write(left) :]
    self._filled += len(strip)

  def rows(self, begin: int, end: int) -> Float[np.ndarray, '_ w']:
    """The rows from one to before another, not to be changed."""
    if self._array is not None:
      return self._array[begin:end]
    width = self.shape[1]
    data, start = bytearray(), begin * width * 4
    size = (end - begin) * width * 4
    while len(data) < size:
      data += os.pread(self._file.fileno(), size - len(data), start + len(data))
    return np.frombuffer(data, np.float32).reshape(-1, width)


def _mirrored(axis: Axis) -> Int[np.ndarray, 't']:
  """The places in a picture of a tile's pixels, back and forth."""
  place = np.arange(axis.tile) % (2 * axis.length)
  return np.minimum(place, 2 * axis.length - 1 - place)


def _along(
  weights: Float[np.ndarray, 'n'], ndim: int, *, axis: int
) -> Float[np.ndarray, '...']:
  return weights.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _window_sums(
  x: Float[np.ndarray, 'h w'], window: int
) -> Float[np.ndarray, 'h2 w']:
  """The sums of so many rows from each one on.

  Of sums of 1, 2, 4, ... rows: unlike a difference of running sums, that loses
  nothing of small values beside large ones.
  """
  count, total, begin = len(x) - window + 1, None, 0
  sums, span = x, 1
  while window:
    if window & 1:
      part = sums[begin : begin + count]
      total = part if total is None else total + part
      begin += span
    window >>= 1
    if window:
      sums, span = sums[:-span] + sums[span:], 2 * span
  return total
