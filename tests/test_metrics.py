"""The metrics against scikit-learn and a slow AUPRO, ties included."""

import numpy as np
import pytest
from scipy import ndimage
from sklearn import metrics as sklearn_metrics

from draem_jax import curves, metrics

KINDS = ('continuous', 'ties', 'two_values', 'negative')


def sample(kind, shape, *, seed, share=0.2):
  """Scores that tell the classes apart a little, and labels."""
  rng = np.random.default_rng(seed)
  labels = rng.random(shape) < share
  labels.flat[:2] = False, True
  scores = rng.random(shape) ** 2 + 0.3 * labels * rng.random(shape)
  if kind == 'ties':
    scores = np.round(scores * 8) / 8
  elif kind == 'two_values':
    scores = (scores > 0.5) * 1.0
  elif kind == 'negative':
    # Both zeros occur, and must tie.
    scores = np.round(20 * (scores - 0.5)) / 20
  return scores.astype(np.float32), labels


def blobs(shape, *, seed):
  """Masks with regions of many sizes, some touching at a corner only."""
  rng = np.random.default_rng(seed)
  noise = ndimage.gaussian_filter(rng.standard_normal(shape), (0, 1.5, 1.5))
  masks = noise > np.quantile(noise, 0.85)
  masks[0] = False
  masks[1, :2, :2] = [[True, False], [False, True]]
  return masks


def slow_aupro(maps, masks, limit):
  """AUPRO by its definition, one threshold at a time."""
  regions = []
  for index, mask in enumerate(masks):
    labeled, count = ndimage.label(mask, structure=np.ones((3, 3)))
    regions += [(index, labeled == region + 1) for region in range(count)]
  curve = [(0.0, 0.0)]
  for threshold in np.unique(maps)[::-1]:
    called = maps >= threshold
    fpr = np.mean(called[~masks])
    overlap = np.mean(
      [called[index][region].mean() for index, region in regions]
    )
    curve.append((fpr, overlap))
  area = 0.0
  for (x0, y0), (x1, y1) in zip(curve[:-1], curve[1:], strict=True):
    if x0 >= limit or x0 == x1:
      continue
    end = min(x1, limit)
    y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
    area += (end - x0) * (y0 + y_end) / 2
  return area / limit


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('seed', range(4))
def test_auroc_and_ap_agree_with_scikit_learn(kind, seed):
  scores, labels = sample(kind, (700,), seed=seed)
  expected_auroc = sklearn_metrics.roc_auc_score(labels, scores)
  expected_ap = sklearn_metrics.average_precision_score(labels, scores)
  assert metrics.auroc(scores, labels) == pytest.approx(
    expected_auroc, abs=1e-12
  )
  assert metrics.average_precision(scores, labels) == pytest.approx(
    expected_ap, abs=1e-12
  )


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('seed', range(3))
def test_aupro_agrees_with_its_definition(kind, seed):
  masks = blobs((5, 24, 20), seed=seed)
  maps, _ = sample(kind, masks.shape, seed=seed + 10)
  maps = maps + np.where(masks, np.float32(0.25), np.float32(0))
  expected = slow_aupro(maps, masks, curves.AUPRO_LIMIT)
  assert metrics.aupro(maps, masks) == pytest.approx(expected, abs=1e-12)


def test_aupro_joins_pixels_that_touch_at_a_corner():
  masks = np.zeros((1, 8, 8), bool)
  masks[0, 0, 0] = masks[0, 1, 1] = masks[0, 6, 6] = True
  maps = masks.astype(np.float32)
  maps[0, 1, 1] = -1.0  # Half of one region of two is missed.
  assert metrics.aupro(maps, masks) == pytest.approx(0.75)


def test_perfect_maps_reach_one_and_constant_maps_chance():
  masks = blobs((3, 16, 16), seed=0)
  assert metrics.aupro(masks.astype(np.float32), masks) == 1.0
  # A constant map runs along the diagonal: half of the limit.
  constant = np.zeros(masks.shape, np.float32)
  assert metrics.aupro(constant, masks) == pytest.approx(curves.AUPRO_LIMIT / 2)
  assert metrics.auroc(constant, masks) == 0.5


def test_metrics_of_a_split():
  masks = blobs((6, 24, 24), seed=3)
  maps, _ = sample('ties', masks.shape, seed=4)
  scores, labels = sample('ties', (6,), seed=5, share=0.5)
  split = metrics.measure(scores=scores, maps=maps, labels=labels, masks=masks)
  values, reasons = metrics.compute(split)
  flat = masks.ravel(), maps.ravel()
  expected = {
    'image_auroc': sklearn_metrics.roc_auc_score(labels, scores),
    'image_ap': sklearn_metrics.average_precision_score(labels, scores),
    'pixel_auroc': sklearn_metrics.roc_auc_score(*flat),
    'pixel_ap': sklearn_metrics.average_precision_score(*flat),
    'aupro': slow_aupro(maps, masks, curves.AUPRO_LIMIT),
  }
  assert not reasons
  assert values == pytest.approx(expected, abs=1e-12)
  assert all(type(value) is float for value in values.values())


@pytest.mark.parametrize(
  ('label', 'pixel', 'has_masks', 'present', 'lacks'),
  [
    (None, None, False, {'image_auroc', 'image_ap'}, ['ground truth masks']),
    (False, False, True, set(), ['anomalous image', 'anomalous pixel']),
    (
      True,
      None,
      True,
      {'pixel_auroc', 'pixel_ap', 'aupro'},
      ['good image'],
    ),
    (None, True, True, {'image_auroc', 'image_ap'}, ['normal pixel']),
  ],
)
def test_undefined_metrics_are_none_and_explained(
  label, pixel, has_masks, present, lacks
):
  masks = blobs((4, 16, 16), seed=0)
  maps, _ = sample('continuous', masks.shape, seed=0)
  scores, labels = sample('continuous', (4,), seed=0)
  if label is not None:
    labels[:] = label
  if pixel is not None:
    masks[:] = pixel
  split = metrics.measure(
    scores=scores,
    maps=maps,
    labels=labels,
    masks=masks if has_masks else None,
  )
  values, reasons = metrics.compute(split)
  assert set(values) == set(metrics.METRICS)
  assert {name for name, value in values.items() if value is not None} == (
    present
  )
  assert set(reasons) == set(metrics.METRICS) - present
  assert sorted(set(reasons.values())) == [
    f'the test split has no {lack}' for lack in sorted(lacks)
  ]
  for key, reason in reasons.items():
    assert ('image' in reason) == metrics.METRICS[key].name.startswith('image')


def test_a_metric_may_be_undefined_where_its_curves_are_not(monkeypatch):
  metric = metrics.Metric('none', 'never', 'image', lambda split: None)
  monkeypatch.setitem(metrics.METRICS, 'none', metric)
  scores, labels = sample('ties', (6,), seed=5, share=0.5)
  maps = np.zeros((6, 4, 4), np.float32)
  values, reasons = metrics.compute(
    metrics.measure(scores=scores, maps=maps, labels=labels, masks=None)
  )
  assert values['none'] is None and values['image_ap'] is not None
  assert reasons['none'] == 'the test split does not define it'


def test_disagreeing_shapes_and_nan_are_errors():
  masks = np.zeros((2, 4, 4), bool)
  good = dict(scores=np.zeros(2), labels=np.zeros(2, bool), masks=masks)
  with pytest.raises(ValueError, match='shape'):
    metrics.measure(maps=np.zeros((2, 8, 8)), **good)
  with pytest.raises(ValueError, match='NaN'):
    metrics.measure(maps=np.full((2, 4, 4), np.nan), **good)


@pytest.mark.parametrize('kind', KINDS)
def test_curves_hold_the_points_of_scikit_learn(kind):
  scores, labels = sample(kind, (400,), seed=1)
  found = curves.of_scores(scores, labels)
  fpr, tpr, _ = sklearn_metrics.roc_curve(labels, scores)
  ours = set(zip(*(np.round(axis, 12) for axis in found.roc), strict=True))
  assert ours >= set(zip(np.round(fpr, 12), np.round(tpr, 12), strict=True))
  assert sklearn_metrics.auc(*found.roc) == pytest.approx(found.auroc)
  assert found.auroc == metrics.auroc(scores, labels)

  recall, precision = found.precision_recall
  area = np.sum(np.diff(recall) * precision[1:])
  assert area == pytest.approx(found.average_precision)
  assert found.average_precision == metrics.average_precision(scores, labels)
  assert recall[0] == 0 and recall[-1] == 1


def test_the_area_under_the_overlap_curve_is_aupro():
  masks = blobs((4, 24, 20), seed=2)
  maps, _ = sample('ties', masks.shape, seed=3)
  pixel = metrics.measure(
    scores=maps.max((1, 2)), labels=masks.any((1, 2)), maps=maps, masks=masks
  ).pixel
  fpr, overlap = pixel.region_overlap
  assert (fpr[0], overlap[0], fpr[-1]) == (0, 0, 1)
  assert overlap[-1] == pytest.approx(1)
  inside = np.linspace(0, curves.AUPRO_LIMIT, 100_001)
  area = np.trapezoid(np.interp(inside, fpr, overlap), inside)
  assert area / curves.AUPRO_LIMIT == pytest.approx(pixel.aupro, abs=1e-3)
  thinned = curves.thin(pixel, 10)
  assert len(thinned.region_overlap.overlap) <= 10 < len(overlap)
  assert thinned.aupro == pixel.aupro


def test_curves_without_both_classes_are_none():
  assert curves.of_scores(np.ones(3), np.zeros(3, bool)) is None
  assert curves.of_scores(np.ones(3), np.ones(3, bool)) is None


def test_thinned_curves_stay_close():
  scores, labels = sample('continuous', (40_000,), seed=2)
  full = curves.of_scores(scores, labels)
  thinned = curves.thin(full, 200)
  assert thinned.auroc == full.auroc
  fpr, tpr = thinned.roc
  assert len(fpr) <= 200 < len(full.roc.false_positive_rate)
  assert fpr[-1] == tpr[-1] == 1
  slanted = full.roc.false_positive_rate > 0  # The curve starts vertically.
  np.testing.assert_allclose(
    np.interp(full.roc.false_positive_rate[slanted], fpr, tpr),
    full.roc.true_positive_rate[slanted],
    atol=2 / 199,
  )
  recall, precision = thinned.precision_recall
  assert len(recall) <= 200 and recall[0] == 0 and recall[-1] == 1
  assert np.sum(np.diff(recall) * precision[1:]) == pytest.approx(
    full.average_precision, abs=0.01
  )


def test_rates_at_threshold_agree_with_scikit_learn():
  scores, labels = sample('ties', (300,), seed=6)
  for threshold in (0.0, 0.25, 0.5, 2.0):
    rates = metrics.rates_at_threshold(scores, labels, threshold)
    called = scores > threshold
    confusion = sklearn_metrics.confusion_matrix(labels, called)
    assert confusion.ravel().tolist() == [
      rates.true_negatives,
      rates.false_positives,
      rates.false_negatives,
      rates.true_positives,
    ]
    assert rates.f1 == pytest.approx(sklearn_metrics.f1_score(labels, called))
    assert rates.true_positive_rate == pytest.approx(
      sklearn_metrics.recall_score(labels, called)
    )
    assert rates.false_positive_rate == pytest.approx(np.mean(called[~labels]))
    assert rates.true_negative_rate == pytest.approx(
      sklearn_metrics.recall_score(labels, called, pos_label=0)
    )
    assert rates.accuracy == pytest.approx(
      sklearn_metrics.accuracy_score(labels, called)
    )


def test_rates_compare_in_float64():
  scores = np.array([0.1], np.float32)  # Above 0.1, as float32 has it.
  rates = metrics.rates_at_threshold(scores, np.ones(1, bool), 0.1)
  assert rates.true_positives == 1


def test_rates_are_none_where_undefined():
  scores = np.array([0.1, 0.9])
  good_only = metrics.rates_at_threshold(scores, np.zeros(2, bool), 0.5)
  assert good_only.true_positive_rate is None and good_only.f1 is None
  assert good_only.false_positive_rate == 0.5
  assert good_only.true_negative_rate == good_only.accuracy == 0.5
  anomalous_only = metrics.rates_at_threshold(scores, np.ones(2, bool), 0.5)
  assert anomalous_only.false_positive_rate is None
  assert anomalous_only.true_negative_rate is None
  assert anomalous_only.true_positive_rate == anomalous_only.accuracy == 0.5
  none = metrics.rates_at_threshold(scores[:0], np.zeros(0, bool), 0.5)
  assert none.accuracy is None


@pytest.mark.parametrize('kind', KINDS)
def test_best_f1_is_the_best_of_all_thresholds(kind):
  scores, labels = sample(kind, (200,), seed=7)
  best, threshold = metrics.best_f1(scores, labels)
  reached = {
    float(score): sklearn_metrics.f1_score(labels, scores > score)
    for score in (-9.0, *np.unique(scores)[:-1])
  }
  assert best == pytest.approx(max(reached.values()))
  assert metrics.rates_at_threshold(scores, labels, threshold).f1 == best


def test_best_f1_may_call_everything_anomalous():
  scores = np.array([0.5, 0.9], np.float32)
  best, threshold = metrics.best_f1(scores, np.ones(2, bool))
  assert best == 1.0 and threshold < 0.5
  assert metrics.rates_at_threshold(scores, np.ones(2, bool), threshold).f1 == 1


def test_best_f1_without_an_anomalous_sample_is_none():
  assert metrics.best_f1(np.ones(3), np.zeros(3, bool)) == (None, None)


def test_aupro_counts_up_to_three_tenths():
  # The one defect is found where a quarter of the normal pixels are, too.
  maps = np.full((1, 1, 101), 0.1, np.float32)
  maps[..., :25], maps[..., 100] = 0.9, 0.5
  masks = np.zeros((1, 1, 101), bool)
  masks[..., 100] = True
  assert metrics.aupro(maps, masks) == pytest.approx((0.3 - 0.25) / 0.3)


def split_of(maps, masks, kinds, regions=None, map_threshold=None):
  """A split whose images are anomalous where their kind is not `'good'`."""
  labels = np.array([kind != 'good' for kind in kinds])
  return metrics.measure(
    scores=maps.max(axis=(1, 2)),
    labels=labels,
    maps=maps,
    masks=masks,
    kinds=kinds,
    regions=regions,
    map_threshold=map_threshold,
  )


def test_spro_of_a_case_worked_by_hand():
  # A good image, and one with a defect of four pixels of which two are enough.
  maps = np.zeros((2, 1, 10), np.float32)
  maps[1, 0, :4] = 0.9, 0.7, 0.5, 0.1
  # One normal pixel each of twenty that score above, between and below.
  maps[0, 0, :3] = 0.8, 0.6, 0.4
  masks = np.zeros((2, 1, 10), bool)
  masks[1, 0, :4] = True
  one = curves.Region(np.arange(4), 0.5)
  split = split_of(maps, masks, ['good', 'dent'], [[], [one]])
  # Half of what is enough from the start, then straight up to all of it where
  # the second pixel is found, at a rate of 1/16, and all of it from there on.
  assert metrics.spro(split, 1 / 16) == pytest.approx(0.5)
  assert metrics.spro(split, 1 / 8) == pytest.approx((0.5 + 1) / 2)
  assert metrics.spro(split, 1.0) == pytest.approx((0.5 + 15) / 16)
  # The same defect, of which all is wanted: AUPRO.
  whole = [[], [curves.Region(np.arange(4), 1.0)]]
  split = split_of(maps, masks, ['good', 'dent'], whole)
  assert metrics.spro(split, 0.3) == pytest.approx(metrics.aupro(maps, masks))


def slow_spro(maps, masks, kinds, regions, limit):
  """sPRO by its definition, one threshold at a time."""
  areas = []
  for kind in set(kinds) - {'good'}:
    places = [place for place, own in enumerate(kinds) if own in ('good', kind)]
    curve = [(0.0, 0.0)]
    for threshold in np.unique(maps)[::-1]:
      called = maps >= threshold
      fpr = np.mean(called[places][~masks[places]])
      found = []
      for place in places:
        for pixels, saturation in regions[place]:
          share = called[place].reshape(-1)[pixels].mean() / saturation
          found.append(min(share, 1.0))
      curve.append((fpr, np.mean(found)))
    x, y = np.array(curve).T
    inside = x <= limit
    last = int(np.flatnonzero(inside)[-1])
    area = np.trapezoid(y[: last + 1], x[: last + 1])
    if last + 1 < len(x):
      slope = (y[last + 1] - y[last]) / (x[last + 1] - x[last])
      rest = limit - x[last]
      area += rest * (y[last] + slope * rest / 2)
    areas.append(area / limit)
  return np.mean(areas)


@pytest.mark.parametrize('seed', range(4))
def test_spro_against_its_definition(seed):
  rng = np.random.default_rng(seed)
  kinds = ['good', 'logical', 'structural', 'logical', 'good']
  maps = rng.random((5, 12, 9)).astype(np.float32)
  masks, regions = np.zeros((5, 12, 9), bool), []
  for place, kind in enumerate(kinds):
    own = []
    for _ in range(rng.integers(1, 4) if kind != 'good' else 0):
      mask = np.zeros((12, 9), bool)
      top, left = rng.integers(0, 6, 2)
      mask[top : top + 5, left : left + 3] = True  # They overlap.
      masks[place] |= mask
      own.append(curves.Region(np.flatnonzero(mask), rng.uniform(0.1, 1)))
    regions.append(own)
  maps += 0.4 * masks
  split = split_of(maps, masks, kinds, regions)
  for limit in (0.05, 0.3, 1.0):
    expected = slow_spro(maps, masks, kinds, regions, limit)
    assert metrics.spro(split, limit) == pytest.approx(expected, abs=1e-6)


def test_ties_are_found_at_once_in_spro():
  maps = np.ones((2, 1, 4), np.float32)
  masks = np.zeros((2, 1, 4), bool)
  masks[1, 0, :2] = True
  regions = [[], [curves.Region(np.arange(2), 0.5)]]
  split = split_of(maps, masks, ['good', 'dent'], regions)
  assert metrics.spro(split, 1.0) == pytest.approx(0.5)


def test_aupro_up_to_five_percent():
  masks = blobs((4, 20, 20), seed=0)
  maps, _ = sample('continuous', masks.shape, seed=1)
  maps = maps + 0.3 * masks
  kinds = ['good', 'dent', 'dent', 'dent']
  split = split_of(maps, masks, kinds)
  values, reasons = metrics.compute(split, ['aupro_05', 'seg_f1', 'spro_05'])
  assert values['aupro_05'] == pytest.approx(slow_aupro(maps, masks, 0.05))
  assert reasons == {
    'seg_f1': 'there are no validation images',
    'spro_05': metrics.EXTRA['spro_05'].why,
  }
  # Nobody else has them.
  assert set(metrics.compute(split)[0]) == set(metrics.METRICS)
  assert set(metrics.shown([{}, {'seg_f1': None}])) == {
    *metrics.METRICS,
    'seg_f1',
  }


def test_seg_f1_at_three_deviations_above_the_mean():
  rng = np.random.default_rng(0)
  good = rng.random((6, 8, 8)).astype(np.float32)
  threshold = metrics.map_threshold([good[:4], good[4:]])
  expected = np.float64(good).mean() + 3 * np.float64(good).std()
  assert threshold == pytest.approx(expected)
  maps = rng.normal(threshold, 1, (5, 8, 8)).astype(np.float32)
  masks = rng.random((5, 8, 8)) < 0.3
  kinds = ['good', *4 * ['bad']]
  masks[0] = False
  split = split_of(maps, masks, kinds, map_threshold=threshold)
  assert metrics.compute(split, ['seg_f1'])[0]['seg_f1'] == pytest.approx(
    sklearn_metrics.f1_score(masks.ravel(), (maps > threshold).ravel())
  )
  # Maps that are all the same have no deviation.
  assert metrics.map_threshold([np.full((2, 3, 3), 0.1)]) == pytest.approx(0.1)
