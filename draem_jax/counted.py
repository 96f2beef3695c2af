"""Counts of pixels by their map values, of maps that are too many to keep.

A value falls into one of two million bins. They are narrow where trained
networks have their values, beside 0 and beside 1: each is an 8192nd part, at
most, of the distance to the nearer of the two. Values of one bin count as
equal; else the curves are those of `curves`.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from draem_jax import curves

# Bits of a float32 that are not looked at.
_SHIFT = 10
_HALF = 0x3F000000 >> _SHIFT  # The bin of 0.5.
_BINS = 2 * _HALF + 1
_AT_ONCE = 1 << 20  # Pixels.


class Counts:
  """How many pixels, or how much of their weights, fall into each bin."""

  def __init__(self, *, weighted: bool = False):
    """Has counted nothing.

    Args:
      weighted: whether weights are summed up.
    """
    self.bins = np.zeros(_BINS, np.float64 if weighted else np.int64)

  def add(
    self,
    values: Float[np.ndarray, '*n'],
    weights: Float[np.ndarray, 'p'] | None = None,
  ) -> None:
    """Counts pixels.

    Args:
      values: of the map.
      weights: of as many pixels, if weights are summed up.
    """
    values = values.reshape(-1)
    for begin in range(0, len(values), _AT_ONCE):
      some = slice(begin, begin + _AT_ONCE)
      own = None if weights is None else weights[some]
      self.bins += np.bincount(_bin(values[some]), own, minlength=_BINS)

  def quantile(self, share: float) -> float:
    """The value that at least so large a share of the pixels does not exceed.

    It is the upper end of a bin.
    """
    total = np.cumsum(self.bins)
    # The rank that numpy's quantile rounds up to.
    rank = np.ceil(share * (total[-1] - 1)) + 1
    return _upper_end(int(np.searchsorted(total, rank)))


class Pixels:
  """All pixels of a test split, counted image by image.

  Attributes:
    normal: counts of the normal pixels.
    anomalous: of the anomalous ones.
  """

  def __init__(self, *, map_threshold: float | None = None):
    """Has counted nothing.

    Args:
      map_threshold: the map value above which a pixel is anomalous for SegF1,
        if that is wanted.
    """
    self.normal, self.anomalous = Counts(), Counts()
    self._overlap, self._num_regions = Counts(weighted=True), 0
    self._map_threshold, self._found, self._called = map_threshold, 0, 0
    # By kind, of images whose defects count one by one.
    self._kinds: dict[str, Saturated] = {}
    self._good: Counts | None = None

  def add(
    self,
    anomaly_map: Float[np.ndarray, 'h w'],
    mask: Bool[np.ndarray, 'h w'],
    *,
    kind: str | None = None,
    regions: list[curves.Region] | None = None,
  ) -> None:
    """Counts the pixels of an image.

    Args:
      anomaly_map: its map.
      mask: True for anomalous pixels.
      kind: what kind of anomaly it has; None of a good image.
      regions: its defects; None if they do not count one by one.
    """
    found = anomaly_map[mask]
    normal = anomaly_map if not mask.any() else anomaly_map[~mask]
    self.normal.add(normal)
    self.anomalous.add(found)
    weights, count = curves.mask_weights(mask)
    self._overlap.add(found, weights)
    self._num_regions += count
    if self._map_threshold is not None:
      # In float64, as the threshold is.
      called = anomaly_map.astype(np.float64) > self._map_threshold
      self._called += int(np.count_nonzero(called))
      self._found += int(np.count_nonzero(called & mask))
    if regions is None:
      return
    if kind is None:
      self._good = self._good or Counts()
      self._good.add(normal)
      return
    own = self._kinds.setdefault(kind, Saturated())
    own.add(anomaly_map, mask, regions)

  @property
  def kinds_of_pixels(self) -> Bool[np.ndarray, '_']:
    """False if there is a normal pixel, then True if an anomalous one."""
    there = [self.normal.bins.any(), self.anomalous.bins.any()]
    return np.array([False, True])[np.array(there)]

  def curves(self) -> curves.Curves | None:
    """The curves of all pixels; None where one of the two kinds is missing."""
    if len(self.kinds_of_pixels) < 2:
      return None
    overlap = self._overlap.bins / self._num_regions
    return curves.of_sweep(
      sweep(self.anomalous.bins, self.normal.bins, overlap)
    )

  def spro(self, limit: float) -> float | None:
    """As `metrics.spro`; None without a defect or a normal pixel."""
    areas = []
    for kind in sorted(self._kinds):
      own = self._kinds[kind]
      normal = own.normal.bins
      if self._good is not None:
        normal = normal + self._good.bins
      if own.num_regions and normal.any():
        overlap = own.overlap.bins / own.num_regions
        found = sweep(own.anomalous.bins, normal, overlap)
        corners = curves.corners(found, found.overlap)
        areas.append(curves.mean_up_to(limit, *corners))
    return float(np.mean(areas)) if areas else None

  def seg_f1(self) -> float | None:
    """As `metrics.seg_f1`."""
    if self._map_threshold is None:
      return None
    total = self._called + int(self.anomalous.bins.sum())
    return 2 * self._found / total if total else None


class Saturated:
  """The pixels of the images of one kind of anomaly, whose defects saturate."""

  def __init__(self):
    """Has counted nothing."""
    self.normal, self.anomalous = Counts(), Counts()
    self.overlap, self.num_regions = Counts(weighted=True), 0

  def add(
    self,
    anomaly_map: Float[np.ndarray, 'h w'],
    mask: Bool[np.ndarray, 'h w'],
    regions: list[curves.Region],
  ) -> None:
    """Counts the pixels of an image."""
    self.normal.add(anomaly_map[~mask])
    self.anomalous.add(anomaly_map[mask])
    weights, count = curves.saturated_mask_weights(anomaly_map, mask, regions)
    self.overlap.add(anomaly_map[mask], weights)
    self.num_regions += count


def sweep(
  anomalous: Int[np.ndarray, 'k'],
  normal: Int[np.ndarray, 'k'],
  overlap: Float[np.ndarray, 'k'],
) -> curves.Sweep:
  """As `curves.sweep`, of what is in each bin.

  Args:
    anomalous: numbers of anomalous pixels.
    normal: of normal ones.
    overlap: sums of the weights of the anomalous ones.
  """
  stops = np.flatnonzero(anomalous)[::-1]
  at_least = lambda bins: np.cumsum(bins[::-1])[::-1]
  false_positives = at_least(normal)[stops]
  return curves.Sweep(
    thresholds=stops,
    true_positives=at_least(anomalous)[stops],
    false_positives_above=false_positives - normal[stops],
    false_positives=false_positives,
    overlap=at_least(overlap)[stops],
    num_positives=int(anomalous.sum()),
    num_negatives=int(normal.sum()),
  )


def _bin(values: Float[np.ndarray, 'n']) -> Int[np.ndarray, 'n']:
  """The bins of map values, in their order."""
  values = np.clip(values, 0, 1).astype(np.float32)
  near = np.minimum(values, 1 - values)
  # The bits of a positive float are in its order.
  bits = near.view(np.int32) >> _SHIFT
  return np.where(values > 0.5, 2 * _HALF - bits, bits)


def _upper_end(number: int) -> float:
  """The greatest value of a bin, or what is just above it."""
  bits = number + 1 if number <= _HALF else 2 * _HALF - number
  near = float(np.int32(bits << _SHIFT).view(np.float32))
  return near if number < _HALF else 1 - near if number > _HALF else 0.5
