"""AUROC, AP and AUPRO of a test split, exact over all thresholds.

Everything here is numpy on the host. The higher a score the more anomalous; an
image or a pixel is called anomalous when its score is greater than the
threshold.

All figures come from one sweep of the threshold (`_sweep`). It stops only at
the scores of anomalous samples: between two of them the true positives stand
still, so that the curves have no corner there. Of the normal samples, which in
a test split are nearly all pixels, only the values need sorting then, and they
carry no payload.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
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


class Curves(NamedTuple):
  """Both curves of one set of scores, and the areas under them."""

  roc: RocCurve
  precision_recall: PrecisionRecallCurve
  auroc: float
  average_precision: float


class Rates(NamedTuple):
  """What a threshold does to a set of images.

  Without an anomalous image the true positive rate and F1 are None, without a
  good one the false positive rate.
  """

  true_positive_rate: float | None
  false_positive_rate: float | None
  f1: float | None
  true_positives: int
  false_positives: int
  true_negatives: int
  false_negatives: int


def evaluate_metrics(
  *,
  scores: Float[np.ndarray, 'n'],
  maps: Float[np.ndarray, 'n h w'],
  labels: Bool[np.ndarray, 'n'],
  masks: Bool[np.ndarray, 'n h w'] | None,
) -> dict[str, float | None | list[str]]:
  """Figures of a test split, as the paper reports them, and AUPRO.

  Args:
    scores: Image scores.
    maps: Anomaly maps.
    labels: True for anomalous images.
    masks: True for anomalous pixels; None when there is no ground truth.

  Returns:
    `image_auroc`, `image_ap`, `pixel_auroc`, `pixel_ap` (over all pixels of
    the split) and `aupro` (see `aupro`), each in [0, 1] or None where the split
    does not define it, and `notes`, one line for each reason why figures are
    missing.

  Raises:
    ValueError: if shapes disagree or a score is NaN.
  """
  image_auroc, image_ap, _ = _figures(_sweep(scores, labels))
  notes = _missing('image_auroc and image_ap are', labels, 'image')
  pixel_auroc = pixel_ap = pro = None
  if masks is None:
    notes.append(
      'pixel_auroc, pixel_ap and aupro are undefined: the test split has no '
      'ground truth masks.'
    )
  else:
    masks = np.asarray(masks, bool)
    sweep = _sweep(maps, masks, _region_weights(masks))
    pixel_auroc, pixel_ap, pro = _figures(sweep)
    notes += _missing('pixel_auroc, pixel_ap and aupro are', masks, 'pixel')
  return {
    'image_auroc': image_auroc,
    'image_ap': image_ap,
    'pixel_auroc': pixel_auroc,
    'pixel_ap': pixel_ap,
    'aupro': pro,
    'notes': notes,
  }


def auroc(
  scores: Float[np.ndarray, '*n'], labels: Bool[np.ndarray, '*n']
) -> float | None:
  """Area under the ROC curve, ties counted half; None when undefined."""
  return _figures(_sweep(scores, labels))[0]


def average_precision(
  scores: Float[np.ndarray, '*n'], labels: Bool[np.ndarray, '*n']
) -> float | None:
  """Sum of precision times gain of recall; None when undefined."""
  return _figures(_sweep(scores, labels))[1]


def aupro(
  maps: Float[np.ndarray, 'n h w'], masks: Bool[np.ndarray, 'n h w']
) -> float | None:
  """Area under the per-region overlap, up to a false positive rate of 0.3.

  Bergmann et al., 'The MVTec Anomaly Detection Dataset', IJCV 2021: the
  share of each connected ground truth region (8-connectivity) that is found,
  averaged over the regions of all images, against the false positive rate over
  all normal pixels. The curve is integrated by the trapezoidal rule over all
  thresholds, cut at `AUPRO_LIMIT` by linear interpolation, and divided by it.

  Args:
    maps: Anomaly maps.
    masks: True for anomalous pixels.

  Returns:
    AUPRO in [0, 1], or None without an anomalous or without a normal pixel.
  """
  masks = np.asarray(masks, bool)
  return _figures(_sweep(maps, masks, _region_weights(masks)))[2]


def curves(
  scores: Float[np.ndarray, '*n'],
  labels: Bool[np.ndarray, '*n'],
  *,
  max_points: int | None = None,
) -> Curves | None:
  """ROC and precision-recall curve, and the areas under them.

  Args:
    scores: Scores of images or pixels.
    labels: True for anomalous ones.
    max_points: Thin each curve, for drawing, to this many points, evenly along
      its length. The areas stay those of the full curves.

  Returns:
    The curves, or None when one of the two classes is missing. Without
    thinning they hold every corner.
  """
  sweep = _sweep(scores, labels)
  if not sweep.defined:
    return None
  recall = sweep.true_positives / sweep.num_positives
  # Recall 0 takes the precision of the highest threshold.
  steps = np.append(0.0, recall), np.append(sweep.precision[0], sweep.precision)
  area, precision, _ = _figures(sweep)
  return Curves(
    roc=RocCurve(*_thin(*_corners(sweep, recall), max_points)),
    precision_recall=PrecisionRecallCurve(*_thin(*steps, max_points)),
    auroc=area,
    average_precision=precision,
  )


def rates_at_threshold(
  scores: Float[np.ndarray, 'n'],
  labels: Bool[np.ndarray, 'n'],
  threshold: float,
) -> Rates:
  """Rates and counts when scores greater than `threshold` are anomalous."""
  scores, labels = _checked(scores, labels)
  called = scores > threshold
  tp = int(np.sum(called & labels))
  fp = int(np.sum(called & ~labels))
  fn = int(np.sum(labels)) - tp
  tn = int(np.sum(~labels)) - fp
  return Rates(
    true_positive_rate=tp / (tp + fn) if tp + fn else None,
    false_positive_rate=fp / (fp + tn) if fp + tn else None,
    f1=2 * tp / (2 * tp + fp + fn) if tp + fn else None,
    true_positives=tp,
    false_positives=fp,
    true_negatives=tn,
    false_negatives=fn,
  )


def best_f1(
  scores: Float[np.ndarray, '*n'], labels: Bool[np.ndarray, '*n']
) -> tuple[float | None, float | None]:
  """The highest F1 that any threshold reaches, and that threshold.

  Args:
    scores: Scores of images or pixels.
    labels: True for anomalous ones.

  Returns:
    F1 and the threshold, which is the highest score that it leaves as good;
    both None without an anomalous sample.
  """
  scores = np.asarray(scores)
  sweep = _sweep(scores, labels)
  if not sweep.num_positives:
    return None, None
  called = sweep.true_positives + sweep.false_positives
  f1 = 2 * sweep.true_positives / (called + sweep.num_positives)
  best = int(np.argmax(f1))
  lowest = sweep.thresholds[best]
  left = scores[scores < lowest]
  threshold = left.max() if left.size else np.nextafter(lowest, -np.inf)
  return float(f1[best]), float(threshold)


@dataclasses.dataclass(frozen=True)
class _Sweep:
  """Counts at each distinct score of an anomalous sample, from high to low.

  `true_positives` and `false_positives` have at least that score,
  `false_positives_above` more. `overlap` is the weighted counterpart of
  `true_positives`, None without weights.
  """

  thresholds: Float[np.ndarray, 't']
  true_positives: Int[np.ndarray, 't']
  false_positives_above: Int[np.ndarray, 't']
  false_positives: Int[np.ndarray, 't']
  overlap: Float[np.ndarray, 't'] | None
  num_positives: int
  num_negatives: int

  @property
  def defined(self) -> bool:
    return self.num_positives > 0 and self.num_negatives > 0

  @property
  def precision(self) -> Float[np.ndarray, 't']:
    return self.true_positives / (self.true_positives + self.false_positives)


def _sweep(
  scores: Float[np.ndarray, '*n'],
  labels: Bool[np.ndarray, '*n'],
  weights: Float[np.ndarray, 'p'] | None = None,
) -> _Sweep:
  """Sweep the threshold; `weights` belong to the anomalous samples in order."""
  scores, labels = _checked(scores, labels)
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
  return _Sweep(
    thresholds=thresholds,
    true_positives=last_of_ties + 1,
    false_positives_above=negatives.size - not_above,
    false_positives=negatives.size - below,
    overlap=overlap,
    num_positives=positives.size,
    num_negatives=negatives.size,
  )


def _checked(scores, labels) -> tuple[np.ndarray, np.ndarray]:
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


def _figures(
  sweep: _Sweep,
) -> tuple[float | None, float | None, float | None]:
  """AUROC, average precision and AUPRO (None without region weights)."""
  if not sweep.defined:
    return None, None, None
  gained = np.diff(sweep.true_positives, prepend=0)
  # Normal samples that a positive outranks, in halves so that it stays integer.
  outranked = (
    2 * sweep.num_negatives
    - sweep.false_positives_above
    - sweep.false_positives
  )
  pairs = 2 * sweep.num_positives * sweep.num_negatives
  area = float(np.sum(gained * outranked) / pairs)
  precision = float(np.sum(gained * sweep.precision) / sweep.num_positives)
  pro = None
  if sweep.overlap is not None:
    fpr, overlap = _corners(sweep, sweep.overlap)
    pro = _area_up_to(AUPRO_LIMIT, fpr, overlap) / AUPRO_LIMIT
  return area, precision, pro


def _corners(
  sweep: _Sweep, height: Float[np.ndarray, 't']
) -> tuple[Float[np.ndarray, 'k'], Float[np.ndarray, 'k']]:
  """Curve of `height` over the false positive rate, from (0, 0) to (1, end).

  Each threshold adds two corners: the one before its samples are called, up to
  which only normal samples came in, and the one after.
  """
  size = len(height)
  fpr, curve = np.zeros(2 * size + 2), np.zeros(2 * size + 2)
  fpr[1:-1:2] = sweep.false_positives_above / sweep.num_negatives
  fpr[2:-1:2] = sweep.false_positives / sweep.num_negatives
  curve[2:-1:2] = height
  curve[3::2] = height
  fpr[-1] = 1.0
  return fpr, curve


def _area_up_to(limit: float, x: np.ndarray, y: np.ndarray) -> float:
  """Trapezoidal area of the curve over [0, limit], x ascending from 0."""
  inside = int(np.searchsorted(x, limit, 'right'))
  if inside == len(x):
    return float(np.trapezoid(y, x))
  last = inside - 1  # x[last] <= limit < x[inside]
  slope = (y[inside] - y[last]) / (x[inside] - x[last])
  end = y[last] + slope * (limit - x[last])
  rest = (limit - x[last]) * (y[last] + end) / 2
  return float(np.trapezoid(y[:inside], x[:inside]) + rest)


def _region_weights(masks: Bool[np.ndarray, 'n h w']) -> np.ndarray:
  """Weight of each anomalous pixel, so that found weights sum to the overlap.

  A pixel counts 1 / (pixels of its region · number of regions).
  """
  if masks.ndim != 3:
    raise ValueError(f'Masks must be [n, h, w], not of shape {masks.shape}.')
  weights, num_regions = [], 0
  for mask in masks[np.any(masks, axis=(1, 2))]:
    regions, count = measure.label(mask, return_num=True, connectivity=2)
    sizes = np.bincount(regions.reshape(-1))
    weights.append(1 / sizes[regions[mask]])
    num_regions += count
  if not weights:
    return np.zeros(0)
  return np.concatenate(weights) / num_regions


def _missing(figures: str, labels: np.ndarray, sample: str) -> list[str]:
  """One line when a class is missing, none otherwise."""
  labels = np.asarray(labels, bool)
  if labels.size == 0:
    lack = f'no {sample}'
  elif not labels.any():
    lack = f'no anomalous {sample}'
  elif labels.all():
    lack = f'no {"good" if sample == "image" else "normal"} {sample}'
  else:
    return []
  return [f'{figures} undefined: the test split has {lack}.']


def _thin(
  x: np.ndarray, y: np.ndarray, max_points: int | None
) -> tuple[np.ndarray, np.ndarray]:
  """Points spaced evenly along the curve, the first and the last included."""
  if max_points is None or len(x) <= max_points:
    return x, y
  steps = np.abs(np.diff(x)) + np.abs(np.diff(y))
  length = np.append(0.0, np.cumsum(steps))
  wanted = np.linspace(0.0, length[-1], max_points)
  chosen = np.unique(np.searchsorted(length, wanted).clip(max=len(x) - 1))
  chosen[-1] = len(x) - 1
  return x[chosen], y[chosen]
