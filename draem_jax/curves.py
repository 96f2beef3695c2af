"""The curves of scores, exact, by one sweep of the threshold.

A sweep stops only at the scores of anomalous images or pixels: between two of
them the true positives stand still, so that the curves have no corner there. Of
the normal ones, which in a test split are nearly all pixels, only the values
need sorting then, and they carry no payload.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from skimage import measure

# Integration limit of AUPRO, the false positive rate that MVTec AD uses.
AUPRO_LIMIT = 0.3


class RocCurve(NamedTuple):
  """Corners of a receiver operating characteristic, from (0, 0) to (1, 1)."""

  false_positive_rate: Float[np.ndarray, 'k']
  true_positive_rate: Float[np.ndarray, 'k']


class PrecisionRecallCurve(NamedTuple):
  """Points of a precision-recall curve, recall ascending to 1.

  A step function: from one recall to the next the precision of the latter
  holds, as average precision sums it.
  """

  recall: Float[np.ndarray, 'k']
  precision: Float[np.ndarray, 'k']


class OverlapCurve(NamedTuple):
  """Corners of the mean overlap with each defect, from (0, 0) to (1, 1)."""

  false_positive_rate: Float[np.ndarray, 'k']
  overlap: Float[np.ndarray, 'k']


class Curves(NamedTuple):
  """All curves of one set of scores, and the areas under them.

  `region_overlap` and the AUPRO under it are those of pixels, None of images.
  """

  roc: RocCurve
  precision_recall: PrecisionRecallCurve
  region_overlap: OverlapCurve | None
  auroc: float
  average_precision: float
  aupro: float | None


class Region(NamedTuple):
  """A defect that counts on its own.

  Attributes:
    pixels: its places in the flattened image.
    saturation: the share of them, in (0, 1], that is enough to have found it.
  """

  pixels: Int[np.ndarray, 'k']
  saturation: float


def of_scores(
  scores: Shaped[np.ndarray, '*n'], labels: Bool[np.ndarray, '*n']
) -> Curves | None:
  """ROC and precision-recall curve, and the areas under them.

  Args:
    scores: the scores of images or pixels.
    labels: True for anomalous ones.

  Returns:
    The curves with every corner, or None when one of the two classes is
    missing.
  """
  return of_sweep(sweep(scores, labels))


def of_maps(
  maps: Float[np.ndarray, 'n h w'], masks: Bool[np.ndarray, 'n h2 w2']
) -> Curves | None:
  """The curves of all pixels, and the per-region overlap besides.

  Args:
    maps: the anomaly maps.
    masks: True for anomalous pixels.

  Returns:
    The curves with every corner, or None when one of the two classes is
    missing.

  Raises:
    ValueError: if shapes disagree or a map holds NaN.
  """
  return of_sweep(sweep(maps, masks, region_weights(masks)))


def thin(found: Curves, max_points: int) -> Curves:
  """The same curves with fewer points, for drawing; the areas stay.

  Args:
    found: the curves.
    max_points: number of points to leave of each, evenly along its length.
  """
  overlap = found.region_overlap
  return found._replace(
    roc=RocCurve(*_thin(*found.roc, max_points)),
    precision_recall=PrecisionRecallCurve(
      *_thin(*found.precision_recall, max_points)
    ),
    region_overlap=overlap and OverlapCurve(*_thin(*overlap, max_points)),
  )


@dataclasses.dataclass(frozen=True)
class Sweep:
  """Counts at each distinct score of an anomalous one, from high to low.

  `true_positives` and `false_positives` have at least that score,
  `false_positives_above` more. `overlap` is the weighted counterpart of
  `true_positives`, None without weights.
  """

  thresholds: Shaped[np.ndarray, 't']
  true_positives: Int[np.ndarray, 't']
  false_positives_above: Int[np.ndarray, 't']
  false_positives: Int[np.ndarray, 't']
  overlap: Float[np.ndarray, 't'] | None
  num_positives: int
  num_negatives: int


def sweep(
  scores: Shaped[np.ndarray, '*n'],
  labels: Bool[np.ndarray, '*m'],
  weights: Float[np.ndarray, 'p'] | None = None,
) -> Sweep:
  """Sweep the threshold; `weights` belong to the anomalous ones in order."""
  scores, labels = checked(scores, labels)
  positives = scores[labels]
  negatives = np.sort(scores[~labels])
  order = np.argsort(positives)[::-1]
  positives = positives[order]
  last_of_ties = np.flatnonzero(
    np.append(positives[1:] != positives[:-1], positives.size > 0)
  )
  thresholds = positives[last_of_ties]
  below = np.searchsorted(negatives, thresholds, 'left')
  not_above = np.searchsorted(negatives, thresholds, 'right')
  overlap = None
  if weights is not None:
    overlap = np.cumsum(weights[order])[last_of_ties]
  return Sweep(
    thresholds=thresholds,
    true_positives=last_of_ties + 1,
    false_positives_above=negatives.size - not_above,
    false_positives=negatives.size - below,
    overlap=overlap,
    num_positives=positives.size,
    num_negatives=negatives.size,
  )


def checked(
  scores: Shaped[np.ndarray, '*n'], labels: Bool[np.ndarray, '*m']
) -> tuple[Shaped[np.ndarray, 'k'], Bool[np.ndarray, 'k']]:
  """Flat scores and labels, after the errors that would go unnoticed."""
  scores, labels = np.asarray(scores), np.asarray(labels, bool)
  if scores.shape != labels.shape:
    raise ValueError(
      f'Scores of shape {scores.shape} do not fit ground truth of shape '
      f'{labels.shape}.'
    )
  if np.isnan(np.sum(scores)) and np.any(np.isnan(scores)):
    raise ValueError('Scores contain NaN.')
  return scores.reshape(-1), labels.reshape(-1)


def of_sweep(sweep: Sweep) -> Curves | None:
  """All curves; without region weights there is none of the overlap."""
  if not (sweep.num_positives and sweep.num_negatives):
    return None
  precision = sweep.true_positives / (
    sweep.true_positives + sweep.false_positives
  )
  recall = sweep.true_positives / sweep.num_positives
  gained = np.diff(sweep.true_positives, prepend=0)
  # Normal ones that a positive outranks, in halves so that it stays integer.
  outranked = (
    2 * sweep.num_negatives
    - sweep.false_positives_above
    - sweep.false_positives
  )
  pairs = 2 * sweep.num_positives * sweep.num_negatives
  overlap = area = None
  if sweep.overlap is not None:
    overlap = OverlapCurve(*corners(sweep, sweep.overlap))
    area = mean_up_to(AUPRO_LIMIT, *overlap)
  return Curves(
    roc=RocCurve(*corners(sweep, recall)),
    precision_recall=PrecisionRecallCurve(
      # Recall 0 takes the precision of the highest threshold.
      recall=np.append(0.0, recall),
      precision=np.append(precision[0], precision),
    ),
    region_overlap=overlap,
    auroc=float(np.sum(gained * outranked) / pairs),
    average_precision=float(np.sum(gained * precision) / sweep.num_positives),
    aupro=area,
  )


def corners(
  sweep: Sweep, height: Float[np.ndarray, 't']
) -> tuple[Float[np.ndarray, 'k'], Float[np.ndarray, 'k']]:
  """Curve of `height` over the false positive rate, from (0, 0) to (1, end).

  Each threshold adds two corners: the one before its scores are called, up to
  which only normal ones came in, and the one after.
  """
  size = len(height)
  fpr, curve = np.zeros(2 * size + 2), np.zeros(2 * size + 2)
  fpr[1:-1:2] = sweep.false_positives_above / sweep.num_negatives
  fpr[2:-1:2] = sweep.false_positives / sweep.num_negatives
  curve[2:-1:2] = height
  curve[3::2] = height
  fpr[-1] = 1.0
  return fpr, curve


def mean_up_to(
  limit: float, x: Float[np.ndarray, 'k'], y: Float[np.ndarray, 'k']
) -> float:
  """Mean height of the curve over [0, limit], x ascending from 0."""
  return _area_up_to(limit, x, y) / limit


def _area_up_to(
  limit: float, x: Float[np.ndarray, 'k'], y: Float[np.ndarray, 'k']
) -> float:
  """Trapezoidal area of the curve over [0, limit], x ascending from 0."""
  inside = int(np.searchsorted(x, limit, 'right'))
  if inside == len(x):
    return float(np.trapezoid(y, x))
  last = inside - 1  # x[last] <= limit < x[inside]
  slope = (y[inside] - y[last]) / (x[inside] - x[last])
  end = y[last] + slope * (limit - x[last])
  rest = (limit - x[last]) * (y[last] + end) / 2
  return float(np.trapezoid(y[:inside], x[:inside]) + rest)


def region_weights(masks: Bool[np.ndarray, 'n h w']) -> Float[np.ndarray, 'p']:
  """Weight of each anomalous pixel, so that found weights sum to the overlap.

  A pixel counts 1 / (pixels of its region · number of regions).
  """
  if masks.ndim != 3:
    raise ValueError(f'Masks must be [n, h, w], not of shape {masks.shape}.')
  found = [mask_weights(mask) for mask in masks]
  return _joined(found, int(np.count_nonzero(masks)))


def mask_weights(
  mask: Bool[np.ndarray, 'h w'],
) -> tuple[Float[np.ndarray, 'p'], int]:
  """Weight of each anomalous pixel of a mask, and the number of its regions.

  The weights of a region add up to 1.
  """
  if not mask.any():
    return np.zeros(0), 0
  rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
  # Of a large picture little is looked at.
  part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
  regions, count = measure.label(part, return_num=True, connectivity=2)
  sizes = np.bincount(regions.reshape(-1))
  return 1 / sizes[regions[part]], count


def saturated_weights(
  maps: Float[np.ndarray, 'n h w'],
  masks: Bool[np.ndarray, 'n h w'],
  regions: Sequence[Sequence[Region]],
) -> Float[np.ndarray, 'p']:
  """As `region_weights`, for regions that saturate.

  Of a region only the pixels that are found first count: as many as are enough,
  the last of them in part. Then what is found of it, of what is enough, is a
  sum over pixels again.
  """
  found = [
    saturated_mask_weights(*each)
    for each in zip(maps, masks, regions, strict=True)
  ]
  return _joined(found, int(np.count_nonzero(masks)))


def saturated_mask_weights(
  anomaly_map: Float[np.ndarray, 'h w'],
  mask: Bool[np.ndarray, 'h w'],
  regions: Sequence[Region],
) -> tuple[Float[np.ndarray, 'p'], int]:
  """As `mask_weights`, for regions that saturate."""
  count, of_image = 0, np.zeros(mask.size)
  for pixels, saturation in regions:
    pixels = pixels[mask.reshape(-1)[pixels]]
    if not pixels.size:
      continue
    count += 1
    enough = saturation * pixels.size
    order = np.argsort(-anomaly_map.reshape(-1)[pixels], kind='stable')
    counted = np.clip(enough - np.arange(pixels.size), 0, 1) / enough
    of_image[pixels[order]] += counted
  return of_image[mask.reshape(-1)], count


def _joined(
  found: Sequence[tuple[Float[np.ndarray, '_'], int]], size: int
) -> Float[np.ndarray, 'p']:
  """The weights of all images, which add up to 1; zeros without a region."""
  num_regions = sum(count for _, count in found)
  if not num_regions:
    return np.zeros(size)
  return np.concatenate([weights for weights, _ in found]) / num_regions


def _thin(
  x: Float[np.ndarray, 'k'], y: Float[np.ndarray, 'k'], max_points: int
) -> tuple[Float[np.ndarray, 'm'], Float[np.ndarray, 'm']]:
  """Points spaced evenly along the curve, the first and the last included."""
  if len(x) <= max_points:
    return x, y
  steps = np.abs(np.diff(x)) + np.abs(np.diff(y))
  length = np.append(0.0, np.cumsum(steps))
  wanted = np.linspace(0.0, length[-1], max_points)
  chosen = np.unique(np.searchsorted(length, wanted).clip(max=len(x) - 1))
  chosen[-1] = len(x) - 1
  return x[chosen], y[chosen]
