"""The numbers of a test split, each defined once, exact over all thresholds.

Everything here is numpy on the host. The higher a score the more anomalous; an
image or a pixel is called anomalous when its score is greater than the
threshold.

`METRICS` is the table of what is reported, and `EXTRA` that of what single data
sets are known by, which only they report. All of it comes from one sweep of
the threshold over the images and one over the pixels (`measure`).
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

from draem_jax import counted, curves

# That of MVTec LOCO AD and of MVTec AD 2.
STRICT_LIMIT = 0.05
# Above the mean of the maps of good images, in standard deviations.
SEG_F1_DEVIATIONS = 3


class Rates(NamedTuple):
  """What a threshold does to a set of images.

  Without an anomalous image the true positive rate and F1 are None, without a
  good one the two rates of these; accuracy is None without any.
  """

  true_positive_rate: float | None
  false_positive_rate: float | None
  true_negative_rate: float | None
  accuracy: float | None
  f1: float | None
  true_positives: int
  false_positives: int
  true_negatives: int
  false_negatives: int


class Rate(NamedTuple):
  """What a field of `Rates` is called: in a sentence, and over a column."""

  name: str
  short: str


RATES = {
  'true_positive_rate': Rate('true positive rate', 'TPR'),
  'false_positive_rate': Rate('false positive rate', 'FPR'),
  'true_negative_rate': Rate('true negative rate', 'TNR'),
  'accuracy': Rate('accuracy', 'CA'),
  'f1': Rate('F1', 'F1'),
}
# Those of table 4.
PAPER_RATES = ('true_positive_rate', 'true_negative_rate', 'accuracy')


def at_best_f1(key: str) -> str:
  """The key in `results.json` of a rate at the threshold of best F1."""
  return 'best_f1' if key == 'f1' else f'best_f1_{key}'


@dataclasses.dataclass(frozen=True)
class Split:
  """A test split with its curves: all that a metric may be computed from.

  Attributes:
    scores: the image scores.
    labels: True for anomalous images.
    maps: the anomaly maps.
    masks: True for anomalous pixels; None when there is no ground truth.
    threshold: the score above which an image is called anomalous; None when
      there is none.
    image: the curves of the images, None where the split does not define them.
    pixel: the same of all its pixels.
    missing: why there are no curves, by level, `'image'` and `'pixel'`.
    kinds: what kind of image each is; None where nothing depends on it.
    regions: the defects of each image; None if they do not count one by one.
    map_threshold: the map value above which a pixel is anomalous for SegF1;
      None if there are no images to choose it from.
    pixels: counts of all pixels where they are too many to keep, and there are
      neither `maps` nor `masks` then; None otherwise.
  """

  scores: Float[np.ndarray, 'n']
  labels: Bool[np.ndarray, 'n']
  maps: Float[np.ndarray, 'n h w'] | None
  masks: Bool[np.ndarray, 'n h w'] | None
  threshold: float | None
  image: curves.Curves | None
  pixel: curves.Curves | None
  missing: Mapping[str, str]
  kinds: Sequence[str] | None = None
  regions: Sequence[Sequence[curves.Region]] | None = None
  map_threshold: float | None = None
  pixels: counted.Pixels | None = None


@dataclasses.dataclass(frozen=True)
class Metric:
  """One number of a test split.

  Attributes:
    name: what tables call it.
    meaning: what it says, in half a sentence.
    level: `'image'` or `'pixel'`, whose curves it needs.
    compute: its value, in [0, 1], of a split that has these curves; None where
      the split does not define it all the same.
    paper: the field of `paper.Published` it compares with; None if the paper
      does not have it.
    why: what is said where the value is None all the same.
  """

  name: str
  meaning: str
  level: str
  compute: Callable[[Split], float | None]
  paper: str | None = None
  why: str = 'the test split does not define it'


# By the key in `results.json`. One more metric is one more entry: results,
# tables and reports have what stands here.
METRICS = {
  'image_auroc': Metric(
    name='image AUROC',
    meaning='chance that an anomalous image scores above a good one',
    level='image',
    compute=lambda split: split.image.auroc,
    paper='image_auroc',
  ),
  'image_ap': Metric(
    name='image AP',
    meaning='precision of the verdict on images, averaged over recall',
    level='image',
    compute=lambda split: split.image.average_precision,
  ),
  'pixel_auroc': Metric(
    name='pixel AUROC',
    meaning='chance that an anomalous pixel scores above a normal one',
    level='pixel',
    compute=lambda split: split.pixel.auroc,
    paper='pixel_auroc',
  ),
  'pixel_ap': Metric(
    name='pixel AP',
    meaning='precision of the verdict on pixels, averaged over recall',
    level='pixel',
    compute=lambda split: split.pixel.average_precision,
    paper='pixel_ap',
  ),
  'aupro': Metric(
    name='AUPRO',
    meaning='share found of each defect, at false positive rates of pixels up'
    ' to 30 %',
    level='pixel',
    compute=lambda split: split.pixel.aupro,
  ),
}
# The same of what a data set is known by: its layout names it in its
# `Contents`, and no other has it.
EXTRA = {
  'spro_05': Metric(
    name='sPRO 0.05',
    meaning='share found of each defect, of what is enough of it, at false'
    ' positive rates of pixels up to 5 %; mean over the kinds of anomalies',
    level='pixel',
    compute=lambda split: spro(split),
    why='it is not known how much of a defect is enough, or there is none',
  ),
  'aupro_05': Metric(
    name='AUPRO 0.05',
    meaning='share found of each defect, at false positive rates of pixels up'
    ' to 5 %',
    level='pixel',
    compute=lambda split: curves.mean_up_to(
      STRICT_LIMIT, *split.pixel.region_overlap
    ),
  ),
  'seg_f1': Metric(
    name='SegF1',
    meaning='F1 of the verdict on pixels, at three standard deviations above'
    ' the mean of the maps of validation images',
    level='pixel',
    compute=lambda split: seg_f1(split),
    why='there are no validation images',
  ),
}


def chosen(extra: Iterable[str]) -> dict[str, Metric]:
  """`METRICS`, and those of `EXTRA` with these keys."""
  return METRICS | {key: EXTRA[key] for key in extra}


def shown(rows: Iterable[Mapping[str, object]]) -> dict[str, Metric]:
  """`METRICS`, and those of `EXTRA` that any row of results has."""
  rows = list(rows)
  return chosen(key for key in EXTRA if any(key in row for row in rows))


def measure(
  *,
  scores: Float[np.ndarray, 'n'],
  labels: Bool[np.ndarray, 'n'],
  maps: Float[np.ndarray, 'n h w'],
  masks: Bool[np.ndarray, 'n h2 w2'] | None,
  coarse_masks: bool = False,
  threshold: float | None = None,
  kinds: Sequence[str] | None = None,
  regions: Sequence[Sequence[curves.Region]] | None = None,
  map_threshold: float | None = None,
) -> Split:
  """Sweeps the threshold over the images and the pixels of a test split.

  Args:
    scores: the image scores.
    labels: True for anomalous images.
    maps: the anomaly maps.
    masks: True for anomalous pixels; None when there is no ground truth.
    coarse_masks: whether the masks only surround the defects: no pixel is
      compared with them then.
    threshold: the score above which an image is called anomalous, if any.
    kinds: what kind of image each is, if anything depends on it.
    regions: the defects of each image, if they count one by one.
    map_threshold: the map value above which a pixel is anomalous for SegF1, if
      any.

  Raises:
    ValueError: if shapes disagree or a score is NaN.
  """
  pixel, lacks = None, {'image': _lack(labels, 'image', 'good')}
  if masks is None:
    lacks['pixel'] = 'ground truth masks'
  elif not coarse_masks:
    pixel = curves.of_maps(maps, masks)
    lacks['pixel'] = _lack(masks, 'pixel', 'normal')
  return Split(
    scores=scores,
    labels=labels,
    maps=maps,
    masks=masks,
    threshold=threshold,
    image=curves.of_scores(scores, labels),
    pixel=pixel,
    missing=_missing(lacks, is_coarse=masks is not None and coarse_masks),
    kinds=kinds,
    regions=regions,
    map_threshold=map_threshold,
  )


def measure_counted(
  *,
  scores: Float[np.ndarray, 'n'],
  labels: Bool[np.ndarray, 'n'],
  pixels: counted.Pixels | None,
  coarse_masks: bool = False,
  threshold: float | None = None,
) -> Split:
  """As `measure`, of pixels that are counted.

  Args:
    scores: the image scores.
    labels: True for anomalous images.
    pixels: of all images; None when there is no ground truth.
    coarse_masks: whether the masks only surround the defects: no pixel is
      compared with them then.
    threshold: the score above which an image is called anomalous, if any.
  """
  lacks = {'image': _lack(labels, 'image', 'good')}
  if pixels is None:
    lacks['pixel'] = 'ground truth masks'
  elif not coarse_masks:
    lacks['pixel'] = _lack(pixels.kinds_of_pixels, 'pixel', 'normal')
  is_coarse = pixels is not None and coarse_masks
  return Split(
    scores=scores,
    labels=labels,
    maps=None,
    masks=None,
    threshold=threshold,
    image=curves.of_scores(scores, labels),
    pixel=None if pixels is None or is_coarse else pixels.curves(),
    missing=_missing(lacks, is_coarse=is_coarse),
    pixels=pixels,
  )


def _missing(
  lacks: Mapping[str, str | None], *, is_coarse: bool
) -> dict[str, str]:
  """Why there are no curves, by level."""
  missing = {
    level: f'the test split has no {lack}'
    for level, lack in lacks.items()
    if lack
  }
  if is_coarse:
    missing['pixel'] = 'the ground truth is coarse and counts for images only'
  return missing


def compute(
  split: Split, extra: Iterable[str] = ()
) -> tuple[dict[str, float | None], dict[str, str]]:
  """All of `METRICS` of a test split, and some of `EXTRA`.

  Args:
    split: the test split.
    extra: keys of `EXTRA`.

  Returns:
    The values by key, None where the split does not define them; and for these
    the reason, in words.
  """
  wanted = chosen(extra)
  values, reasons = dict.fromkeys(wanted), {}
  for key, metric in wanted.items():
    if metric.level in split.missing:
      reasons[key] = split.missing[metric.level]
      continue
    values[key] = metric.compute(split)
    if values[key] is None:
      reasons[key] = metric.why
  return values, reasons


def spro(split: Split, limit: float = STRICT_LIMIT) -> float | None:
  """Area under the saturated per-region overlap, up to a false positive rate.

  As `aupro`, but a defect is an annotation of its own, which may overlap
  others, and counts as wholly found from a number of its pixels on, which
  depends on its kind. It is computed for the images of each kind of anomaly,
  together with the good ones; what is returned is the mean over the kinds.

  Args:
    split: the test split.
    limit: the false positive rate at which the integration ends.

  Returns:
    sPRO in [0, 1], or None without a defect or without a normal pixel.

  References:
    Bergmann, Batzner, Fauser, Sattlegger, Steger: Beyond Dents and Scratches,
    IJCV 130, 2022, doi:10.1007/s11263-022-01578-9.
  """
  if split.pixels is not None:
    return split.pixels.spro(limit)
  if split.regions is None or split.masks is None or split.kinds is None:
    return None
  kinds, areas = np.asarray(split.kinds), []
  for kind in sorted(set(kinds[split.labels].tolist())):
    places = np.flatnonzero(~split.labels | (kinds == kind))
    maps, masks = split.maps[places], split.masks[places]
    regions = [split.regions[place] for place in places]
    weights = curves.saturated_weights(maps, masks, regions)
    sweep = curves.sweep(maps, masks, weights)
    if weights.any() and sweep.num_negatives:
      overlap = curves.corners(sweep, sweep.overlap)
      areas.append(curves.mean_up_to(limit, *overlap))
  return float(np.mean(areas)) if areas else None


def seg_f1(split: Split) -> float | None:
  """F1 of all pixels of a split at its `map_threshold`; None without one."""
  if split.pixels is not None:
    return split.pixels.seg_f1()
  if split.map_threshold is None or split.masks is None:
    return None
  found = total = 0
  for anomaly_map, mask in zip(split.maps, split.masks, strict=True):
    # In float64, as the threshold is.
    called = anomaly_map.astype(np.float64) > split.map_threshold
    found += np.count_nonzero(called & mask)
    total += np.count_nonzero(called) + np.count_nonzero(mask)
  return 2 * found / total if total else None


def map_threshold(batches: Iterable[Float[np.ndarray, '_ h w']]) -> float:
  """The map value above which a pixel is anomalous for SegF1.

  It stands so many standard deviations above the mean of all pixels.

  Args:
    batches: the maps of good images, which are looked at one after the other.
  """
  count, total, squares = 0, 0.0, 0.0
  for maps in batches:
    maps = np.asarray(maps, np.float64)
    count += maps.size
    total += float(maps.sum())
    squares += float(np.square(maps).sum())
  mean = total / count
  return mean + SEG_F1_DEVIATIONS * max(0.0, squares / count - mean**2) ** 0.5


def auroc(
  scores: Shaped[np.ndarray, '*n'], labels: Bool[np.ndarray, '*n']
) -> float | None:
  """Area under the ROC curve, ties counted half; None when undefined."""
  found = curves.of_scores(scores, labels)
  return None if found is None else found.auroc


def average_precision(
  scores: Shaped[np.ndarray, '*n'], labels: Bool[np.ndarray, '*n']
) -> float | None:
  """Sum of precision times gain of recall; None when undefined."""
  found = curves.of_scores(scores, labels)
  return None if found is None else found.average_precision


def aupro(
  maps: Float[np.ndarray, 'n h w'], masks: Bool[np.ndarray, 'n h w']
) -> float | None:
  """Area under the per-region overlap, up to a false positive rate of 0.3.

  The share of each connected ground truth region (8-connectivity) that is
  found, averaged over the regions of all images, against the false positive
  rate over all normal pixels. The curve is integrated by the trapezoidal rule
  over all thresholds, cut at `curves.AUPRO_LIMIT` by linear interpolation, and
  divided by it.

  Args:
    maps: the anomaly maps.
    masks: True for anomalous pixels.

  Returns:
    AUPRO in [0, 1], or None without an anomalous or without a normal pixel.

  References:
    Bergmann, Batzner, Fauser, Sattlegger, Steger: The MVTec Anomaly Detection
    Dataset, IJCV 129, 2021, doi:10.1007/s11263-020-01400-4.
  """
  found = curves.of_maps(maps, masks)
  return None if found is None else found.aupro


def rates_at_threshold(
  scores: Shaped[np.ndarray, 'n'],
  labels: Bool[np.ndarray, 'n'],
  threshold: float,
) -> Rates:
  """Rates and counts when scores greater than `threshold` are anomalous."""
  scores, labels = curves.checked(scores, labels)
  # In float64, as the detector compares: the threshold of float32 scores would
  # be rounded to float32 otherwise, and a score beside it change sides.
  called = scores.astype(np.float64) > threshold
  tp = int(np.sum(called & labels))
  fp = int(np.sum(called & ~labels))
  fn = int(np.sum(labels)) - tp
  tn = int(np.sum(~labels)) - fp
  return Rates(
    true_positive_rate=tp / (tp + fn) if tp + fn else None,
    false_positive_rate=fp / (fp + tn) if fp + tn else None,
    true_negative_rate=tn / (fp + tn) if fp + tn else None,
    accuracy=(tp + tn) / labels.size if labels.size else None,
    f1=2 * tp / (2 * tp + fp + fn) if tp + fn else None,
    true_positives=tp,
    false_positives=fp,
    true_negatives=tn,
    false_negatives=fn,
  )


def best_f1(
  scores: Shaped[np.ndarray, '*n'], labels: Bool[np.ndarray, '*n']
) -> tuple[float | None, float | None]:
  """The highest F1 that any threshold reaches, and that threshold.

  Args:
    scores: the scores of images or pixels.
    labels: True for anomalous ones.

  Returns:
    F1 and the threshold, which is the highest score that it leaves as good;
    both None without an anomalous one.
  """
  scores = np.asarray(scores)
  sweep = curves.sweep(scores, labels)
  if not sweep.num_positives:
    return None, None
  called = sweep.true_positives + sweep.false_positives
  f1 = 2 * sweep.true_positives / (called + sweep.num_positives)
  best = int(np.argmax(f1))
  lowest = sweep.thresholds[best]
  left = scores[scores < lowest]
  threshold = left.max() if left.size else np.nextafter(lowest, -np.inf)
  return float(f1[best]), float(threshold)


def _lack(
  labels: Bool[np.ndarray, '*n'], thing: str, normal: str
) -> str | None:
  """What is missing for a curve, None where nothing is."""
  if labels.size == 0:
    return thing
  if not labels.any():
    return f'anomalous {thing}'
  if labels.all():
    return f'{normal} {thing}'
  return None
