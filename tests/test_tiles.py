import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from redness import Redness
from small import random_images
from untrained import random_variables

from draem_jax import score as score_lib
from draem_jax.detection import tiles
from draem_jax.detection.detector import Detector, resize_map
from draem_jax.errors import UserError
from draem_jax.networks import models
from draem_jax.networks.models import Output
from draem_jax.workdir.thresholds import Thresholds

TILE = 64


def redness(resolution=0, *, model=None, batch_size=4, **options):
  return Detector(
    model or Redness(),
    {},
    image_size=(32, 64),
    score_window=5,
    thresholds=Thresholds(0.5, 0.5, 'a test', 0.99, 0.9999),
    batch_size=batch_size,
    resolution=resolution,
    **options,
  )


@pytest.fixture(scope='module')
def make_draem():
  """Detectors of the same random networks, whose maps differ by image."""
  widths = {'reconstructive_width': 4, 'discriminative_width': 4}
  model = models.make(
    {'model': {'name': 'draem', **widths}, 'dtype': 'float32'}
  )
  variables = random_variables(widths, 0)
  return functools.partial(
    Detector,
    model,
    variables,
    image_size=TILE,
    score_window=21,
    thresholds=Thresholds(0.5, 0.5, 'a test', 0.99, 0.9999),
    batch_size=4,
  )


@pytest.fixture(scope='module')
def draem(make_draem):
  return make_draem(resolution=0)


def red(image):
  """What `Redness` says, clipped as it does."""
  return np.clip(np.float32(image[..., 0]) / 255, 1e-6, 1 - 1e-6)


@pytest.mark.parametrize('tile', [32, 64, 96, 256])
@pytest.mark.parametrize('share', [0.1, 0.99, 1, 1.01, 1.7, 1.8, 2, 3.3, 12.4])
def test_every_pixel_counts_once_and_no_border_shows(tile, share):
  length = max(1, int(tile * share))
  axis = tiles.place(length, tile)
  starts, ends = axis.starts, axis.starts + tile
  assert starts[0] == 0 and ends[-1] == max(length, tile)
  # As few as there can be with so much in common.
  shared = starts[:-1] + tile - starts[1:]
  assert (shared >= tile // 4).all()
  assert tile + (len(starts) - 2) * (tile - tile // 4) < length or (
    len(starts) == 1
  )
  total = np.zeros(max(length, tile))
  for start, weights in zip(starts, axis.weights, strict=True):
    total[start : start + tile] += weights
  np.testing.assert_allclose(total, 1, rtol=0, atol=1e-6)
  if len(starts) == 1:
    np.testing.assert_array_equal(axis.weights, 1)
  # A pixel of 32 in the ramp counts a thousandth, of longer ones less.
  inner = np.sin(np.pi / 4 / (tile // 4)) ** 2
  assert (axis.weights[1:, 0] <= 1.01 * inner).all()
  assert (axis.weights[:-1, -1] <= 1.01 * inner).all()
  assert (np.abs(np.diff(axis.weights, axis=1)) < 2.2 / (tile // 4)).all()


SHAPES = [(32, 64), (33, 65), (90, 200), (7, 11), (1, 300), (150, 20), (64, 64)]


@pytest.mark.parametrize('shape', SHAPES)
def test_what_is_seen_in_place_comes_back_in_place(shape):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
  whole = redness().score_whole(image, with_reconstruction=True)
  np.testing.assert_allclose(whole.anomaly_map, red(image), 0, 1e-5)
  np.testing.assert_array_equal(whole.reconstruction, image)
  expected = score_lib.image_score(jnp.asarray(red(image)), window=5)
  np.testing.assert_allclose(whole.score, expected, 0, 1e-6)
  found = redness()(image)
  np.testing.assert_array_equal(found.anomaly_map[0], whole.anomaly_map)
  assert found.score[0] == np.float32(whole.score)
  np.testing.assert_array_equal(
    found.mask[0], (found.anomaly_map[0] > 0.5) & found.is_anomalous[0]
  )


def test_tiles_are_those_of_the_picture_mirrored_beyond_it():
  image = random_images(1, 96)[0][:70, :21]
  tiling = tiles.cover(image.shape[:2], (32, 64))
  found = list(tiles.cut(lambda a, b: image[a:b], tiling))
  mirrored = np.concatenate([image, image[:, ::-1], image, image[:, ::-1]], 1)
  expected = [mirrored[top : top + 32, :64] for top in (0, 24, 38)]
  np.testing.assert_array_equal(found, expected)
  assert tiling.count == 3


def test_an_image_of_one_tile_is_as_without_tiles(make_draem):
  image = random_images(1, TILE)[0]
  plain, tiled = make_draem(resolution=''), make_draem(resolution=0)
  assert tiled.is_tiled and not plain.is_tiled
  assert not make_draem(resolution=TILE).is_tiled
  expected = plain.with_batch_size(1).score_all(image[None])
  whole = tiled.score_whole(image, with_reconstruction=True)
  np.testing.assert_array_equal(whole.anomaly_map, expected.anomaly_map[0])
  assert whole.score == expected.score[0]
  np.testing.assert_allclose(
    whole.reconstruction / 255, expected.reconstruction[0].clip(0, 1), 0, 0.002
  )
  one, other = plain(image), tiled(image)
  np.testing.assert_array_equal(one.anomaly_map, other.anomaly_map)
  np.testing.assert_array_equal(one.score, other.score)
  # Looked at as a tile of a larger picture it is the same but for rounding.
  strips = []
  score = tiled._scanner.scan(
    lambda top, bottom: image[top:bottom],
    (TILE, TILE),
    strips.append,
    see=None,
    batch_size=1,
  )
  strips = np.concatenate(strips)
  np.testing.assert_allclose(strips, whole.anomaly_map, 0, 1e-6)
  np.testing.assert_allclose(score, whole.score, 0, 1e-6)


def test_no_seam_shows_where_a_picture_repeats(draem):
  """Every tile sees the same, so that where two meet is a seam or is none."""
  period = TILE - tiles.overlap(TILE)
  cell = random_images(1, period)[0]
  image = np.tile(cell, (4, 4, 1))[: 2 * period + TILE, : 2 * period + TILE]
  found = draem.score_whole(image).anomaly_map
  alone = draem.score_whole(image[:TILE, :TILE]).anomaly_map
  # So different are two tiles where they overlap: without a blend, that steep
  # would the map be at a seam.
  step = np.abs(alone[period:] - alone[: TILE - period]).max()
  assert step > 0.05
  for axis in (0, 1):
    lines = np.moveaxis(found, axis, 0)
    tile = np.moveaxis(alone, axis, 0)
    for number in (1, 2):
      begin, end = number * period, (number - 1) * period + TILE
      # Where a tile begins, the map still is that of the one before; where one
      # ends, that of the one behind.
      inside = slice(tiles.overlap(TILE), period)
      np.testing.assert_allclose(
        lines[begin, inside], tile[period, inside], 0, 1e-3
      )
      np.testing.assert_allclose(
        lines[end - 1, inside], tile[TILE - period - 1, inside], 0, 1e-3
      )
  # And inside of a tile, where no other reaches, it is that tile's map.
  inside = slice(period + tiles.overlap(TILE), 2 * period)
  np.testing.assert_allclose(
    found[inside, inside],
    alone[tiles.overlap(TILE) : period, tiles.overlap(TILE) : period],
    rtol=0,
    atol=1e-6,
  )


@pytest.mark.parametrize('batch_size', [1, 3])
def test_batches_do_not_matter(draem, batch_size):
  image = random_images(1, 200)[0][:150]
  expected = draem.score_whole(image)
  found = draem.with_batch_size(batch_size).score_whole(image)
  np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, 0, 1e-6)
  np.testing.assert_allclose(found.score, expected.score, 0, 1e-6)


@pytest.mark.parametrize('way', ['bilinear', 'area'])
def test_a_resolution_is_what_pictures_are_resized_to(way):
  detector = redness((64, 160), resize=way)
  image = random_images(1, 320)[0][:200]
  prepared = detector.prepare(image)
  assert prepared.shape == (64, 160, 3)
  whole = detector.score_whole(prepared)
  np.testing.assert_allclose(whole.anomaly_map, red(prepared), 0, 1e-5)
  found = detector(image)
  np.testing.assert_array_equal(
    found.anomaly_map[0], resize_map(whole.anomaly_map, (200, 320))
  )
  fingerprints = {
    redness(size, resize=way).fingerprint()
    for size in (0, '', (64, 160), (64, 192), [64, 160], (32, 64))
  }
  assert len(fingerprints) == 4


@pytest.mark.parametrize('window', [1, 5, 21, 41])
def test_local_means_come_in_strips(window):
  rng = np.random.default_rng(0)
  # Beside large values small ones keep their digits.
  maps = rng.uniform(size=(67, 50)).astype(np.float32) ** 40
  expected = np.asarray(score_lib.local_means(maps, window=window))
  cuts = [0, 1, 2, 20, 24, 60, 67]
  strips = [maps[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
  found = np.concatenate(list(tiles.local_means(iter(strips), window=window)))
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-12)


class Deciding(Redness):
  """They decide on an image by its greenest pixel."""

  def apply(self, variables, images, *, train):
    output = super().apply(variables, images, train=train)
    green = images[..., 1].max(axis=(1, 2))
    return output.replace(decision=jnp.log(green) - jnp.log1p(-green))


def test_networks_that_decide_decide_by_their_worst_tile():
  image = np.full((100, 200, 3), 20, np.uint8)
  image[70, 150, 1] = 200
  detector = redness(model=Deciding(), score_image='decision')
  whole = detector.score_whole(image)
  np.testing.assert_allclose(whole.score, 200 / 255, 1e-5)
  np.testing.assert_allclose(whole.anomaly_map, 20 / 255, 1e-5)


class Restoring(models.Networks):
  """They restore an image with its red half gone."""

  outputs = ('restorations',)

  def setup(self):
    pass

  def run(self, image, *, train):
    restored = image * jnp.array([0.5, 1, 1])
    return Output(None, None, restorations=restored[None])


def test_maps_are_smoothed_once_they_are_blended():
  image = random_images(1, 200)[0][:100]
  detector = redness(model=Restoring(), score_map='riad')
  whole = detector.score_whole(image)
  tiling = tiles.cover(image.shape[:2], (32, 64))
  pictures = jnp.asarray(list(tiles.cut(lambda a, b: image[a:b], tiling))) / 255
  raw = score_lib.riad_map(
    Restoring().apply({}, pictures, train=False), pictures
  )
  blended = np.concatenate(list(tiles.blend(tiling, np.asarray(raw))))
  expected = score_lib.local_means(blended, window=5)
  np.testing.assert_allclose(whole.anomaly_map, expected, 0, 1e-5)
  assert whole.score == whole.anomaly_map.max() > 0.01


class Broken(Redness):
  def apply(self, variables, images, *, train):
    output = super().apply(variables, images, train=train)
    broken = jnp.where(images[..., :1] == 1, jnp.nan, output.logits)
    return output.replace(logits=broken)


def test_what_is_no_number_is_no_score():
  image = np.zeros((100, 200, 3), np.uint8)
  detector = redness(model=Broken())
  assert detector.score_whole(image).score < 0.1
  image[80, 190] = 255
  with pytest.raises(UserError, match='no numbers'):
    detector.score_whole(image)


def test_thresholds_are_quantiles_over_pictures_of_any_size():
  images = [random_images(1, 96, seed=n)[0][: 40 + n] for n in range(5)]
  detector = redness()
  chosen = detector.choose_thresholds(
    images, source='five', quantile=0.9, pixel_quantile=0.97
  )
  whole = [detector.score_whole(image) for image in images]
  values = np.concatenate([one.anomaly_map.ravel() for one in whole])
  pixel = np.quantile(values, 0.97, method='higher')
  image = np.quantile([one.score for one in whole], 0.9)
  np.testing.assert_allclose(chosen.image, image, 1e-6)
  assert chosen.pixel == pytest.approx(min(pixel, image), rel=2**-12)


@pytest.mark.parametrize('in_memory', [0, 1 << 20])
def test_a_spool_gives_back_its_rows(tmp_path, monkeypatch, in_memory):
  monkeypatch.setattr(tiles, '_IN_MEMORY', in_memory)
  rows = np.random.default_rng(0).uniform(size=(20, 7)).astype(np.float32)
  with tiles.Spool((20, 7), tmp_path) as spool:
    for begin, end in ((0, 3), (3, 4), (4, 20)):
      spool.add(rows[begin:end])
    for begin, end in ((0, 20), (5, 9), (19, 20), (4, 4)):
      np.testing.assert_array_equal(spool.rows(begin, end), rows[begin:end])
  assert not list(tmp_path.iterdir())


def test_only_so_many_rows_are_looked_at_a_time(draem):
  """What is read, kept and given is strips, whatever the height."""
  height, width, given, asked = 1000, 96, [], []
  picture = random_images(1, 96)[0]

  def rows(top, bottom):
    asked.append(bottom - top)
    return picture[np.arange(top, bottom) % 96]

  draem.scan(rows, (height, width), given.append)
  assert max(asked) == TILE and max(map(len, given)) == TILE
  assert sum(map(len, given)) == height
  assert sum(asked) < 1.4 * height
  assert jax.tree.leaves(draem.folded)
