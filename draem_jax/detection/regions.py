"""The regions of an anomaly mask: where to look, as boxes and outlines.

They are put together from the runs of each row, which strips of a picture give
one after the other, so that no array of a large picture's size is needed.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse
from skimage import measure

# Pixels by which a simplified outline may leave the true one. Less than half of
# one, or nothing would be left of what is a pixel wide.
_TOLERANCE = 0.4
# Pixels of a box above which its outline is that of blocks of pixels.
_MOST_TRACED = 1 << 22
# Regions of an image that get an outline of their own. A map with more of them
# is noise, and tracing each of ten thousand specks would take its time.
_MOST_OUTLINES = 500


@dataclasses.dataclass(frozen=True)
class Region:
  """Anomalous pixels that touch one another, also at corners.

  Attributes:
    box: left, top, width and height, in pixels of the image.
    area: how many pixels there are.
    peak: their highest map value, in [0, 1].
    polygon: the outer outline as (x, y) corners in pixels, (0, 0) being the
      image's left top corner. It runs through the middles of the pixels' outer
      edges; of a region whose box has more than four million pixels it is that
      of the blocks it touches, and of an image's regions behind the first 500
      it is their box.
  """

  box: tuple[int, int, int, int]
  area: int
  peak: float
  polygon: tuple[tuple[float, float], ...]

  def as_dict(self) -> dict[str, Any]:
    """The same as plain values, named as COCO names them."""
    return {
      'bbox': list(self.box),
      'area': self.area,
      'peak': self.peak,
      'segmentation': [[value for corner in self.polygon for value in corner]],
    }


class _Runs(NamedTuple):
  """Pixels in rows without a gap, by row and column; `ends` is exclusive."""

  rows: Int[np.ndarray, 'n']
  starts: Int[np.ndarray, 'n']
  ends: Int[np.ndarray, 'n']
  peaks: Float[np.ndarray, 'n']


class Finder:
  """Finds the regions of an image that comes in strips, from top to bottom."""

  def __init__(self):
    self._strips: list[_Runs] = []
    self._height = 0

  def add(
    self, anomaly_map: Float[np.ndarray, 'h w'], mask: Bool[np.ndarray, 'h w']
  ) -> None:
    """Takes the next strip.

    Args:
      anomaly_map: of its rows.
      mask: their anomalous pixels, as `Detector.find_mask` gives them.
    """
    if mask.any():
      self._strips.append(_find_runs(anomaly_map, mask, self._height))
    self._height += len(mask)

  def regions(self) -> list[Region]:
    """The regions of all strips so far, the one of the highest peak first."""
    if not self._strips:
      return []
    runs = _Runs(*map(np.concatenate, zip(*self._strips, strict=True)))
    labels = _label(runs)
    order = np.argsort(labels, kind='stable')
    bounds = np.flatnonzero(np.diff(labels[order], prepend=-1))
    runs = _Runs(*(array[order] for array in runs))
    left = np.minimum.reduceat(runs.starts, bounds)
    right = np.maximum.reduceat(runs.ends, bounds)
    top = np.minimum.reduceat(runs.rows, bounds)
    bottom = np.maximum.reduceat(runs.rows, bounds) + 1
    area = np.add.reduceat(runs.ends - runs.starts, bounds)
    peak = np.maximum.reduceat(runs.peaks, bounds)
    boxes = np.stack([left, top, right - left, bottom - top], axis=1)
    pieces = np.append(bounds, len(labels))
    found = []
    for place, index in enumerate(np.lexsort((*boxes.T[::-1], -peak))):
      box = tuple(boxes[index].tolist())
      own = slice(*pieces[index : index + 2])
      found.append(
        Region(
          box=box,
          area=int(area[index]),
          peak=float(peak[index]),
          polygon=_outline(*(array[own] for array in runs[:3]), box)
          if place < _MOST_OUTLINES
          else _corners(box),
        )
      )
    return found


def find_regions(
  anomaly_map: Float[np.ndarray, 'h w'], mask: Bool[np.ndarray, 'h w']
) -> list[Region]:
  """The regions of a mask, the one of the highest peak first.

  Args:
    anomaly_map: of one image.
    mask: its anomalous pixels, as `Detector.find_mask` gives them.
  """
  finder = Finder()
  finder.add(anomaly_map, mask)
  return finder.regions()


def _find_runs(
  anomaly_map: Float[np.ndarray, 'h w'],
  mask: Bool[np.ndarray, 'h w'],
  top: int,
) -> _Runs:
  steps = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
  rows, starts = np.nonzero(steps == 1)
  ends = np.nonzero(steps == -1)[1]
  lengths = ends - starts
  # Of these values, those of a run stand side by side.
  peaks = np.maximum.reduceat(anomaly_map[mask], np.cumsum(lengths) - lengths)
  return _Runs(rows + top, starts, ends, peaks)


def _label(runs: _Runs) -> Int[np.ndarray, 'n']:
  """For each run the number of the region it belongs to."""
  # Runs of the next row that begin no later than this one ends, and end no
  # earlier than it begins, corners included.
  stride = int(runs.ends.max()) + 1
  below = (runs.rows + 1) * stride
  places = runs.rows * stride
  first = np.searchsorted(places + runs.ends, below + runs.starts, 'left')
  last = np.searchsorted(places + runs.starts, below + runs.ends, 'right')
  counts = np.maximum(last - first, 0)
  upper = np.repeat(np.arange(len(counts)), counts)
  lower = np.arange(len(upper)) - np.repeat(np.cumsum(counts) - counts, counts)
  lower += np.repeat(first, counts)
  links = sparse.coo_array(
    (np.ones(len(upper), bool), (upper, lower)), shape=(len(counts),) * 2
  )
  return sparse.csgraph.connected_components(links, directed=False)[1]


def _outline(
  rows: Int[np.ndarray, 'n'],
  starts: Int[np.ndarray, 'n'],
  ends: Int[np.ndarray, 'n'],
  box: tuple[int, int, int, int],
) -> tuple[tuple[float, float], ...]:
  """The outer outline of a region, simplified."""
  left, top, width, height = box
  block = int(np.ceil(np.sqrt(max(1, width * height / _MOST_TRACED))))
  # With a margin, which closes the outline at the border.
  steps = np.zeros((-(-height // block) + 2, -(-width // block) + 3), np.int32)
  rows = (rows - top) // block + 1
  np.add.at(steps, (rows, (starts - left) // block + 1), 1)
  np.add.at(steps, (rows, (ends - 1 - left) // block + 2), -1)
  filled = np.cumsum(steps, axis=1)[:, :-1] > 0
  # Pixels that meet at a corner only are joined, as they are one region.
  contours = measure.find_contours(
    filled.astype(np.float32), 0.5, fully_connected='high'
  )
  # The others are those of holes, which lie inside.
  outer = max(contours, key=lambda contour: np.ptp(contour, axis=0).prod())
  corners = measure.approximate_polygon(outer, _TOLERANCE)[:-1]
  # A contour runs through the middles of pixels.
  corners = np.minimum((corners - 0.5) * block, (height, width))
  return tuple((float(x + left), float(y + top)) for y, x in corners)


def _corners(box: tuple[int, int, int, int]) -> tuple[tuple[float, float], ...]:
  left, top, width, height = map(float, box)
  right, bottom = left + width, top + height
  return (left, top), (right, top), (right, bottom), (left, bottom)
