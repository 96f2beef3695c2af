"""Training examples: what they hold, what they depend on, their statistics."""

import dataclasses
import functools
import json

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import data as pictures
from skimage import measure

from draem_jax.errors import UserError
from draem_jax.simulator import (
  augment,
  masks,
  perlin,
  random_augment,
  rotation,
  sample,
  simulate,
)
from draem_jax.simulator import textures as textures_part
from draem_jax.simulator.options import Options
from fidelity import simulator as fidelity_simulator

_OPTIONS = fidelity_simulator.release_options()
_ALWAYS = dataclasses.replace(
  _OPTIONS, anomaly_probability=1.0, rotation_probability=0.5
)
_SHAPE = (40, 56)  # Neither square nor powers of two.


def _batch(count, shape=_SHAPE):
  """Pieces of real pictures, uint8 [count h w 3]."""
  step = (400 - shape[0]) // count
  images, textures = (
    np.stack(
      [
        picture[place : place + shape[0], place : place + shape[1]]
        for place in range(0, step * count, step)
      ]
    )
    for picture in (pictures.coffee(), pictures.astronaut())
  )
  return images, textures


@functools.cache
def _compiled(**changes):
  options = dataclasses.replace(_OPTIONS, **changes)
  return jax.jit(functools.partial(simulate.simulate_batch, options=options))


def _keys(seed, count):
  return jax.random.split(jax.random.key(seed), count)


@pytest.fixture(scope='module')
def always():
  """A batch in which every example is meant to be anomalous."""
  images, textures = _batch(24)
  draw = _compiled(anomaly_probability=1.0, rotation_probability=0.5)
  return images, textures, draw(_keys(0, 24), images, textures)


def test_shapes_ranges_and_dtypes(always):
  _, _, example = always
  assert example.image.shape == example.augmented.shape == (24, *_SHAPE, 3)
  assert example.mask.shape == (24, *_SHAPE)
  for array in (example.image, example.augmented, example.mask):
    assert array.dtype == jnp.float32
    assert array.min() >= 0
    assert array.max() <= 1 + 1e-6
  assert set(np.unique(example.mask)) == {0, 1}


def test_nothing_changes_outside_the_mask(always):
  _, _, example = always
  outside = np.asarray(example.mask) == 0
  np.testing.assert_array_equal(
    np.asarray(example.augmented)[outside], np.asarray(example.image)[outside]
  )
  changed = np.any(example.augmented != example.image, axis=-1)
  assert np.mean(changed[~outside]) > 0.9


def test_image_is_the_input_or_rotated(always):
  images, _, example = always
  same = [
    np.allclose(image, before / 255, atol=1e-6)
    for image, before in zip(example.image, images, strict=True)
  ]
  black = [not np.any(image[0, 0]) for image in example.image]
  assert 4 < sum(same) < 20
  assert not np.any(np.array(same) & np.array(black))
  levels = np.asarray(example.image) * 255
  np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)


def test_no_two_examples_share_a_mask(always):
  *_, example = always
  images, textures = _batch(24)
  draw = _compiled(anomaly_probability=1.0, rotation_probability=0.5)
  steps = [example.mask] + [
    draw(_keys(step, 24), images, textures).mask for step in (1, 2)
  ]
  masks = [mask.tobytes() for mask in np.concatenate(steps) if mask.any()]
  assert len(masks) > 60
  assert len(set(masks)) == len(masks)


def test_example_depends_on_its_key_and_inputs_alone(always):
  images, textures, example = always
  draw = _compiled(anomaly_probability=1.0, rotation_probability=0.5)
  order = np.array([5, 3, 17])
  part = draw(_keys(0, 24)[order], images[order], textures[order])
  for found, expected in zip(
    jax.tree.leaves(part), jax.tree.leaves(_at(example, order)), strict=True
  ):
    np.testing.assert_array_equal(found, expected)


def _at(examples, place):
  return jax.tree.map(lambda array: array[place], examples)


def _assert_near(left, right):
  """Equal but for single levels where truncation meets rounding."""
  np.testing.assert_array_equal(left.mask, right.mask)
  for name in ('image', 'augmented'):
    difference = np.abs(getattr(left, name) - getattr(right, name))
    assert difference.max() < 1.5 / 255, name
    assert np.mean(difference > 1e-5) < 1e-3, name


def test_batch_in_turn_equals_batch_at_once(always):
  images, textures, example = always
  single = functools.partial(simulate.simulate, options=_ALWAYS)
  at_once = jax.jit(jax.vmap(single))(_keys(0, 24), images, textures)
  _assert_near(at_once, example)


def test_eager_single_equals_compiled_batch(always):
  images, textures, example = always
  for place in (2, 7):
    alone = simulate.simulate(
      _keys(0, 24)[place],
      jnp.asarray(images[place]),
      jnp.asarray(textures[place]),
      _ALWAYS,
    )
    _assert_near(alone, _at(example, place))


def test_options_reach_the_example():
  images, textures = _batch(24)
  draw = _compiled(
    anomaly_probability=1.0,
    rotation_probability=0.0,
    num_augmentations=0,
    opacity=(0.5, 0.5),
    threshold=(-3.0, -3.0),
  )
  example = draw(_keys(0, 24), images, textures)
  assert np.all(example.mask == 1)
  mean = (np.float32(images) + np.float32(textures)) / 2 / 255
  np.testing.assert_allclose(example.augmented, mean, atol=1e-6)
  never = _compiled(
    anomaly_probability=0.0, rotation_probability=0.0, num_augmentations=0
  )
  example = never(_keys(0, 24), images, textures)
  assert not np.any(example.mask)
  np.testing.assert_allclose(example.augmented, images / 255, atol=1e-6)
  np.testing.assert_array_equal(example.augmented, example.image)


def test_operations_differ_and_come_in_any_order():
  sampled = jax.vmap(
    lambda key: random_augment.sample_operations(key, _OPTIONS)
  )(_keys(3, 2000))
  operations, numbers = map(np.asarray, sampled)
  assert operations.shape == (2000, 3)
  assert all(len(set(row)) == 3 for row in operations)
  for slot in operations.T:
    _assert_uniform_counts(np.bincount(slot, minlength=10))
  columns = [*operations.T, *numbers.reshape(2000, -1).T]
  for values in columns[3:]:
    _assert_uniform_counts(np.histogram(values, 10, (0, 1))[0])
  # Two of the operations exclude each other, which correlates them a little.
  correlation = np.corrcoef(columns[2:]) - np.eye(len(columns) - 2)
  assert np.abs(correlation).max() < 5 / np.sqrt(2000)


def _assert_uniform_counts(counts):
  expected = counts.sum() / len(counts)
  assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))


@pytest.fixture
def seen(monkeypatch):
  """What the parts of 2,000 masks are made with."""
  recorded = {}

  def record(name):
    inner = getattr(
      {'perlin_noise': perlin, 'rotate': rotation, 'within': sample}[name], name
    )

    def recording(*arguments, **keywords):
      recorded.setdefault(name, []).append((arguments, keywords))
      return inner(*arguments, **keywords)

    return recording

  for module, name in (
    (perlin, 'perlin_noise'),
    (rotation, 'rotate'),
    (sample, 'within'),
  ):
    monkeypatch.setattr(module, name, record(name))
  options = dataclasses.replace(_OPTIONS, threshold=(0.3, 0.7))

  def parts(key):
    recorded.clear()
    masks.perlin_mask(key, (8, 8), options)
    (angles, resolution), _ = recorded['perlin_noise'][0]
    degrees = recorded['rotate'][0][1]['degrees']
    low, high = recorded['within'][1][0][0]
    threshold = low + (high - low) * recorded['within'][1][0][1]
    return angles[0, 0], resolution, degrees, threshold

  return [np.asarray(x) for x in jax.vmap(parts)(_keys(3, 2000))]


def test_parts_of_a_mask_fill_their_intervals_independently(seen):
  angle, resolution, degrees, threshold = seen
  for axis in range(2):
    values, counts = np.unique(resolution[:, axis], return_counts=True)
    assert values.tolist() == [1, 2, 4, 8, 16, 32]
    _assert_uniform_counts(counts)
  uniform = [
    angle / (2 * np.pi),
    (degrees + 90) / 180,
    (threshold - 0.3) / 0.4,
  ]
  for values in uniform:
    _assert_uniform_counts(np.histogram(values, 10, (0, 1))[0])
    assert values.min() >= 0
    assert values.max() <= 1
  columns = [*uniform, *np.log2(resolution).T]
  correlation = np.corrcoef(columns) - np.eye(len(columns))
  assert np.abs(correlation).max() < 5 / np.sqrt(2000)


def test_rotation_presence_and_opacity_are_as_often_as_told():
  # A white image shows its rotation in a corner, a black texture the opacity.
  images = np.full((2000, 8, 8, 3), 255, np.uint8)
  textures = np.zeros_like(images)
  draw = _compiled(
    num_augmentations=0, threshold=(-3.0, -3.0), rotation_degrees=(-45.0, -45.0)
  )
  example = draw(_keys(3, 2000), images, textures)
  rotated = np.asarray(example.image)[:, 0, 0, 0] < 1
  assert abs(rotated.mean() - 0.3) < 0.05
  present = np.asarray(example.mask).any((1, 2))
  assert abs(present.mean() - 0.5) < 0.05
  opacity = 1 - np.asarray(example.augmented)[present, 4, 4, 0]
  _assert_uniform_counts(np.histogram((opacity - 0.2) / 0.8, 10, (0, 1))[0])
  assert opacity.min() >= 0.2
  columns = np.corrcoef(rotated[present], opacity)
  assert np.abs(columns[0, 1]) < 5 / np.sqrt(present.sum())
  assert abs(np.corrcoef(rotated, present)[0, 1]) < 5 / np.sqrt(2000)


def test_rectangles_are_rectangles_of_the_told_size():
  options = dataclasses.replace(
    _OPTIONS, rectangles=(1, 1), rectangle_sides=(0.2, 0.5)
  )
  draw = jax.jit(
    jax.vmap(lambda key: masks.rectangle_mask(key, (40, 60), options))
  )
  corners, sides = [], []
  for mask in np.asarray(draw(_keys(0, 300))) > 0:
    rows, columns = mask.any(1), mask.any(0)
    np.testing.assert_array_equal(mask, rows[:, None] & columns)
    assert 0.2 * 40 - 1 <= rows.sum() <= 0.5 * 40 + 1
    assert 0.2 * 60 - 1 <= columns.sum() <= 0.5 * 60 + 1
    assert np.abs(np.diff(rows.astype(int))).sum() <= 2  # In one piece.
    corners.append((rows.argmax(), columns.argmax()))
    sides.append((rows.mean(), columns.mean()))
  assert np.ptp(corners, axis=0).min() > 20
  assert abs(np.corrcoef(np.transpose(sides))[0, 1]) < 5 / np.sqrt(300)


def test_rectangles_are_as_many_as_told_and_about_as_large_as_perlins():
  options = Options(**{**vars(_OPTIONS), 'mask': 'rectangles'})
  draw = jax.jit(
    jax.vmap(lambda key: masks.rectangle_mask(key, (128, 128), options))
  )
  drawn = np.asarray(draw(_keys(1, 1000))) > 0
  regions = np.array([measure.label(mask).max() for mask in drawn])
  assert set(regions) == {1, 2, 3, 4}
  reference = json.loads(
    (fidelity_simulator.GOLDEN / 'simulator_reference.json').read_text()
  )
  area = reference['mask_area']['mean']
  assert 0.8 < drawn.mean() / area < 1.25


def test_colors_are_plain_and_uniform():
  images = np.zeros((500, 8, 8, 3), np.uint8)
  draw = _compiled(
    texture='color',
    anomaly_probability=1.0,
    num_augmentations=0,
    opacity=(1.0, 1.0),
    threshold=(-3.0, -3.0),
  )
  anomaly = np.asarray(draw(_keys(0, 500), images, images).augmented)
  np.testing.assert_array_equal(
    anomaly, anomaly[:, :1, :1].repeat(8, 1).repeat(8, 2)
  )
  for channel in anomaly[:, 0, 0].T:
    _assert_uniform_counts(np.histogram(channel, 8, (0, 1))[0])


def test_another_part_leaves_the_others_as_they_were(always):
  """A mask of another kind: rotation, presence and opacity stay."""
  images, textures, example = always
  other = _compiled(
    anomaly_probability=1.0, rotation_probability=0.5, mask='rectangles'
  )(_keys(0, 24), images, textures)
  np.testing.assert_array_equal(other.image, example.image)
  both = np.asarray(other.mask * example.mask) > 0
  assert both.any()
  # The same texture, changed alike and as opaque, shows through both masks.
  np.testing.assert_array_equal(
    np.asarray(other.augmented)[both], np.asarray(example.augmented)[both]
  )
  colored = _compiled(
    anomaly_probability=1.0, rotation_probability=0.5, texture='color'
  )(_keys(0, 24), images, textures)
  np.testing.assert_array_equal(colored.mask, example.mask)
  np.testing.assert_array_equal(colored.image, example.image)


def test_one_more_mask_and_texture_are_one_entry_each(monkeypatch):
  everywhere = lambda key, shape, options: jnp.ones(shape)
  white = lambda key, texture: jnp.full_like(texture, 255)
  monkeypatch.setitem(masks.MASKS, 'everywhere', everywhere)
  monkeypatch.setitem(
    textures_part.TEXTURES,
    'white',
    textures_part.Texture(white, reads_images=False),
  )
  images, textures = _batch(3)
  example = _compiled(
    mask='everywhere',
    texture='white',
    anomaly_probability=1.0,
    num_augmentations=0,
    opacity=(1.0, 1.0),
  )(_keys(0, 3), images, textures)
  assert (example.mask == 1).all()
  assert (example.augmented == 1).all()


def test_accelerators_get_no_loops():
  images, textures = _batch(2)
  program = jax.export.export(_compiled(), platforms=['cuda'])(
    _keys(0, 2), images, textures
  )
  assert 'stablehlo.while' not in program.mlir_module()


@pytest.mark.parametrize(
  ('option', 'named'),
  [
    ({'augmentations': ('equalize', 'swirl')}, 'swirl'),
    ({'augmentations': ('equalize',)}, 'num_augmentations'),
    ({'num_augmentations': -1}, 'num_augmentations'),
  ],
)
def test_options_without_a_meaning(option, named):
  with pytest.raises(UserError, match=named):
    dataclasses.replace(_OPTIONS, **option)


def test_every_operation_has_arguments():
  drawn = {*random_augment._TABLES, *random_augment._FILTERS}
  assert drawn == set(augment.AUGMENTATIONS)


def _assert_statistics(rows, names):
  for row in rows:
    if row['figure'].startswith(names):
      difference = abs(row['ours'] - row['release'])
      # Within 15 %, or what two samples of the same thing differ by.
      allowed = max(0.15 * row['release'], 3 * row['error'])
      assert difference <= allowed, row


def test_masks_have_the_statistics_of_the_release():
  images, textures = _batch(20, (256, 256))
  # Masks do not depend on textures, and every example may as well have one.
  options = dataclasses.replace(
    _OPTIONS, anomaly_probability=1.0, num_augmentations=0
  )
  measured = fidelity_simulator.draw_statistics(
    images, textures, num_draws=1500, options=options
  )
  measured['is_nonempty'] = measured['is_nonempty'] * 0.5
  rows = fidelity_simulator.compare_statistics(measured)
  _assert_statistics(rows, ('share', 'mask area', 'connected regions'))
  figures = {row['figure']: row for row in rows}
  share = figures['share of masks not empty']
  assert abs(share['ours'] - share['release']) < 0.03
  area = figures['mask area, mean']
  assert abs(area['ours'] / area['release'] - 1) < 0.1


def test_changes_have_the_statistics_of_the_release(example_data):
  images, textures = fidelity_simulator.load_images(
    example_data / 'bottle' / 'train' / 'good', example_data / 'dtd' / 'images'
  )
  measured = fidelity_simulator.draw_statistics(
    images, textures, num_draws=2000
  )
  rows = fidelity_simulator.compare_statistics(measured)
  _assert_statistics(rows, ('share', 'mask area', 'change', 'connected'))


def test_the_lattice_has_as_many_cells_as_told():
  key, options = jax.random.key(3), dataclasses.replace(_OPTIONS, cells=(4, 4))
  noise, _ = masks.perlin_noise(key, _SHAPE, options)
  numbers = sample.uniform(
    key,
    angles=(perlin.LATTICE_SIZE,) * 2,
    resolution=(2,),
    degrees=(),
    threshold=(),
  )
  square = perlin.perlin_noise(
    2 * jnp.pi * numbers['angles'], (4, 4), shape=(40, 40)
  )
  expected = rotation.rotate(square, degrees=180 * numbers['degrees'] - 90)
  placed = np.asarray(noise)
  columns = np.flatnonzero(placed.any(axis=0))
  start = min(columns[0], _SHAPE[1] - 40)
  np.testing.assert_allclose(
    placed[:, start : start + 40], expected, rtol=0, atol=1e-5
  )


@pytest.fixture(scope='module')
def draw_masks():
  @functools.cache
  def draw(**changes):
    options = dataclasses.replace(_OPTIONS, **changes)
    one = jax.vmap(lambda key: masks.perlin_mask(key, (48, 48), options))
    return np.asarray(jax.jit(one)(_keys(5, 400))) > 0

  return draw


def test_unions_and_intersections_are_of_a_mask_and_another(draw_masks):
  alone, unions = draw_masks(), draw_masks(unions=1.0)
  both = draw_masks(intersections=1.0)
  assert not (alone & ~unions).any()
  assert not (both & ~alone).any()
  # It is the second that comes to the first.
  second = unions & ~alone
  assert second.any(axis=(1, 2)).mean() > 0.4
  smaller = both.sum() / alone.sum()
  assert smaller < 0.9
  np.testing.assert_array_equal(both.any(axis=(1, 2)), alone.any(axis=(1, 2)))
  some = draw_masks(unions=0.25, intersections=0.25)
  as_union = (some == unions).all(axis=(1, 2))
  as_both = (some == both).all(axis=(1, 2))
  as_one = (some == alone).all(axis=(1, 2))
  assert (as_union | as_both | as_one).all()
  changed = (unions != alone).any(axis=(1, 2))
  assert 0.15 < (some[changed] != alone[changed]).any(axis=(1, 2)).mean() < 0.5


# Of such an image all is anomaly, and nothing else is done to it.
_ALL_ANOMALY = {
  'anomaly_probability': 1.0,
  'rotation_probability': 0.0,
  'opacity': (1.0, 1.0),
  'threshold': (-3.0, -3.0),
}


def test_good_textures_are_the_image_before():
  colors = np.arange(1, 9, dtype=np.uint8)[:, None, None, None] * 20
  images = np.broadcast_to(colors, (8, 16, 16, 3))
  textures = np.zeros_like(images)
  draw = _compiled(
    **_ALL_ANOMALY,
    good_textures=1.0,
  )
  found = np.asarray(draw(_keys(0, 8), images, textures).augmented) * 255
  np.testing.assert_allclose(found, np.roll(images, 1, axis=0), atol=1e-3)
  half = _compiled(
    **_ALL_ANOMALY,
    num_augmentations=0,
    good_textures=0.5,
  )
  images = np.broadcast_to(colors[:1], (400, 16, 16, 3))
  found = half(_keys(1, 400), images, np.zeros_like(images)).augmented
  share = (np.asarray(found)[:, 8, 8, 0] > 0).mean()
  assert abs(share - 0.5) < 4 * np.sqrt(0.25 / 400)


def test_good_textures_are_shifted_and_mirrored():
  image = np.zeros((12, 20, 3), np.uint8)
  image[2, 3] = 255
  images = np.broadcast_to(image, (300, 12, 20, 3))
  draw = _compiled(
    **_ALL_ANOMALY,
    good_textures=1.0,
  )
  found = np.asarray(draw(_keys(2, 300), images, images).augmented)[..., 0]
  places = np.array([np.argwhere(one > 0.5) for one in found])
  assert places.shape == (300, 1, 2)  # The point, and no other.
  assert len(np.unique(places[:, 0, 0])) == 12
  assert len(np.unique(places[:, 0, 1])) == 20


def test_so_many_textures_stay_as_they_are():
  _, textures = _batch(1)
  textures = np.repeat(textures, 200, axis=0)
  draw = _compiled(
    anomaly_probability=1.0,
    opacity=(1.0, 1.0),
    threshold=(-3.0, -3.0),
    augmentations=('invert',),
    num_augmentations=1,
    augmentation_probability=0.7,
  )
  found = np.asarray(draw(_keys(0, 200), textures, textures).augmented) * 255
  whole = np.abs(found - textures).max(axis=(1, 2, 3)) < 1e-3
  inverted = np.abs(found - (255.0 - textures)).max(axis=(1, 2, 3)) < 1e-3
  assert (whole ^ inverted).all()
  assert abs(whole.mean() - 0.3) < 4 * np.sqrt(0.21 / 200)


@pytest.mark.parametrize('anomaly_probability', [0.0, 1.0])
def test_noise_is_on_what_the_networks_see(anomaly_probability):
  images, textures = _batch(24)
  images = images // 2 + 64  # Nothing is clipped.
  changes = {'anomaly_probability': anomaly_probability}
  clean = _compiled(**changes)(_keys(0, 24), images, textures)
  noisy = _compiled(**changes, noise=0.02)(_keys(0, 24), images, textures)
  np.testing.assert_array_equal(noisy.image, clean.image)
  np.testing.assert_array_equal(noisy.mask, clean.mask)
  inside = (clean.augmented > 0.15) & (clean.augmented < 0.85)
  noise = np.asarray(noisy.augmented - clean.augmented)[np.asarray(inside)]
  assert abs(noise.mean()) < 1e-3
  assert 0.019 < noise.std() < 0.021
  assert noisy.augmented.min() >= 0 and noisy.augmented.max() <= 1


@pytest.mark.parametrize(
  ('changes', 'field'),
  [
    ({'cells': (1, 12)}, 'cells'),
    ({'unions': 0.6, 'intersections': 0.5}, 'unions'),
  ],
)
def test_masks_that_cannot_be_are_refused(changes, field):
  with pytest.raises(UserError, match=f'config.simulator.{field}'):
    dataclasses.replace(_OPTIONS, **changes)
