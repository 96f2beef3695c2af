import numpy as np
import pytest

from draem_jax import counted, curves, metrics


def make_maps(seed=0, count=6):
  """Maps as sharp as those of trained networks, of several sizes, and masks."""
  rng = np.random.default_rng(seed)
  maps, masks = [], []
  for number in range(count):
    shape = 40 + 7 * number, 60 - 5 * number
    mask = np.zeros(shape, bool)
    if number % 3:
      mask[5 : 9 + number, 6:20] = True
      mask[30:33, 2 + number : 8] = True
    logits = rng.normal(-9, 4, shape) + 12 * mask * rng.uniform(size=shape)
    maps.append((1 / (1 + np.exp(-logits))).astype(np.float32))
    masks.append(mask)
  return maps, masks


def joined(maps, masks):
  """The same as one image, whose defects do not meet."""
  width = max(mask.shape[1] for mask in masks)
  # What is beyond counts as normal, and is below all others.
  pad = lambda x: np.pad(x, ((1, 1), (0, width - x.shape[1])))
  return (
    np.concatenate([pad(each) for each in maps])[None],
    np.concatenate([pad(each) for each in masks])[None],
  )


def test_bins_are_in_order_and_narrow():
  values = np.concatenate(
    [
      np.float32([0, 1e-30, 0.5, 1]),
      np.float32(10.0) ** -np.arange(1, 12),
      1 - np.float32(2.0) ** -np.arange(1, 24),
      np.linspace(0, 1, 1000, dtype=np.float32),
    ]
  ).astype(np.float32)
  values.sort()
  bins = counted._bin(values)
  assert (np.diff(bins) >= 0).all()
  ends = np.array([counted._upper_end(int(number)) for number in bins])
  assert (ends >= values).all()
  near = np.minimum(values, 1 - values)
  assert (ends - values <= near * 2.0**-12 + 1e-38).all()
  assert len(np.unique(counted._bin(np.float32([0.5, 0.50001, 0.49999])))) == 3


def test_counts_are_curves_of_all_pixels():
  maps, masks = make_maps()
  pixels = counted.Pixels()
  for anomaly_map, mask in zip(maps, masks, strict=True):
    pixels.add(anomaly_map, mask)
  found = pixels.curves()
  flat = np.concatenate([each.ravel() for each in maps])
  labels = np.concatenate([each.ravel() for each in masks])
  weights, count = zip(*map(curves.mask_weights, masks), strict=True)
  expected = curves.of_sweep(
    curves.sweep(flat, labels, np.concatenate(weights) / sum(count))
  )
  for name in ('auroc', 'average_precision', 'aupro'):
    assert getattr(found, name) == pytest.approx(
      getattr(expected, name), abs=1e-4
    )
    assert 0.2 < getattr(found, name) < 0.9
  assert pixels.normal.bins.sum() == (~labels).sum()


def test_one_map_is_as_by_itself():
  maps, masks = joined(*make_maps())
  pixels = counted.Pixels()
  pixels.add(maps[0], masks[0])
  expected, found = curves.of_maps(maps, masks), pixels.curves()
  assert found.aupro == pytest.approx(expected.aupro, abs=1e-4)
  np.testing.assert_allclose(
    found.average_precision, expected.average_precision, 0, 1e-4
  )


def test_the_quantile_is_rounded_up():
  values = make_maps()[0][0]
  counts = counted.Counts()
  counts.add(values[:11])
  counts.add(values[11:])
  for share in (0, 0.3, 0.5, 0.99, 0.9999, 1):
    exact = np.quantile(values, share, method='higher')
    assert exact <= counts.quantile(share) <= exact * (1 + 2**-11)


def split_of(maps, masks, kinds, regions, threshold):
  labels = np.array([mask.any() for mask in masks])
  pixels = counted.Pixels(map_threshold=threshold)
  for index, (anomaly_map, mask) in enumerate(zip(maps, masks, strict=True)):
    pixels.add(
      anomaly_map,
      mask,
      kind=kinds[index] if labels[index] else None,
      regions=regions[index],
    )
  scores = np.array([each.max() for each in maps])
  counted_split = metrics.measure_counted(
    scores=scores, labels=labels, pixels=pixels, threshold=0.5
  )
  exact = metrics.measure(
    scores=scores,
    labels=labels,
    maps=np.stack(maps),
    masks=np.stack(masks),
    threshold=0.5,
    kinds=kinds,
    regions=regions,
    map_threshold=threshold,
  )
  return counted_split, exact


def test_every_metric_is_as_of_arrays():
  maps, masks = make_maps(count=9)
  maps = [each[:40, :20] for each in maps]
  masks = [each[:40, :20] for each in masks]
  kinds = ['good' if not m.any() else 'ab'[n % 2] for n, m in enumerate(masks)]
  regions = [
    [curves.Region(np.flatnonzero(mask), 0.4)] if mask.any() else []
    for mask in masks
  ]
  found, exact = split_of(maps, masks, kinds, regions, 0.1)
  keys = tuple(metrics.EXTRA)
  values, reasons = metrics.compute(found, keys)
  expected, _ = metrics.compute(exact, keys)
  assert not reasons and values.keys() == expected.keys()
  for key in values:
    assert values[key] == pytest.approx(expected[key], abs=1e-4), key
  assert 0 < values['spro_05'] < 1


@pytest.mark.parametrize('which', ['normal', 'anomalous', 'truth', 'coarse'])
def test_what_is_missing_is_said_as_of_arrays(which):
  maps = np.random.default_rng(0).uniform(size=(2, 5, 6)).astype(np.float32)
  masks = np.zeros((2, 5, 6), bool)
  masks[0, 2] = True
  if which in ('normal', 'anomalous'):
    masks[:] = which == 'normal'
  pixels = counted.Pixels()
  for each in zip(maps, masks, strict=True):
    pixels.add(*each)
  options = {
    'scores': np.float32([1, 0]),
    'labels': np.array([True, False]),
    'coarse_masks': which == 'coarse',
  }
  found = metrics.measure_counted(
    pixels=None if which == 'truth' else pixels, **options
  )
  expected = metrics.measure(
    maps=maps, masks=None if which == 'truth' else masks, **options
  )
  assert found.missing == expected.missing and 'pixel' in found.missing
  assert found.pixel is None
