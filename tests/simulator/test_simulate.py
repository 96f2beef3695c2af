"""Training examples: what they hold, what they depend on, their statistics."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import data as pictures

from benchmarks import fidelity_simulator
from draem_jax.errors import UserError
from draem_jax.simulator import augment, random_augment, simulate

_OPTIONS = fidelity_simulator.release_options()
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
def _compiled(function=simulate.simulate_batch, **options):
  return jax.jit(functools.partial(function, **{**_OPTIONS, **options}))


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
  jax.tree.map(
    np.testing.assert_array_equal,
    part,
    _at(example, order),
  )


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
  options = {'anomaly_probability': 1.0, 'rotation_probability': 0.5}
  single = functools.partial(simulate.simulate, **{**_OPTIONS, **options})
  at_once = jax.jit(jax.vmap(single))(_keys(0, 24), images, textures)
  _assert_near(at_once, example)


def test_eager_single_equals_compiled_batch(always):
  images, textures, example = always
  options = {'anomaly_probability': 1.0, 'rotation_probability': 0.5}
  for place in (2, 7):
    alone = simulate.simulate(
      _keys(0, 24)[place],
      images[place],
      textures[place],
      **{**_OPTIONS, **options},
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


@pytest.fixture(scope='module')
def draws():
  """What chance decides about 2,000 examples."""
  options = {**_OPTIONS, 'threshold': (0.3, 0.7)}
  draw = jax.jit(jax.vmap(functools.partial(simulate._draw, **options)))
  return jax.tree.map(np.asarray, draw(_keys(3, 2000)))


def test_operations_differ_and_come_in_any_order(draws):
  assert draws.operations.shape == (2000, 3)
  assert all(len(set(row)) == 3 for row in draws.operations)
  for slot in draws.operations.T:
    _assert_uniform_counts(np.bincount(slot, minlength=10))


def _assert_uniform_counts(counts):
  expected = counts.sum() / len(counts)
  assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))


def test_lattices_are_the_powers_of_two_to_32(draws):
  for axis in range(2):
    values, counts = np.unique(draws.resolution[:, axis], return_counts=True)
    assert values.tolist() == [1, 2, 4, 8, 16, 32]
    _assert_uniform_counts(counts)


def test_numbers_fill_their_intervals_independently(draws):
  columns = {
    'image_degrees': (-90, 90),
    'noise_degrees': (-90, 90),
    'threshold': (0.3, 0.7),
    'opacity': (0.2, 1.0),
  }
  uniform = [draws.angles[:, 0, 0] / (2 * np.pi), draws.numbers[:, 2, 0]]
  for name, (low, high) in columns.items():
    uniform.append((getattr(draws, name) - low) / (high - low))
  for values in uniform:
    _assert_uniform_counts(np.histogram(values, 10, (0, 1))[0])
    assert values.min() >= 0
    assert values.max() <= 1
  uniform += [draws.is_rotated, draws.is_anomalous, draws.operations[:, 0]]
  correlation = np.corrcoef(uniform) - np.eye(len(uniform))
  assert np.abs(correlation).max() < 5 / np.sqrt(2000)
  assert abs(draws.is_rotated.mean() - 0.3) < 0.05
  assert abs(draws.is_anomalous.mean() - 0.5) < 0.05


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
  images, textures = _batch(1)
  with pytest.raises(UserError, match=named):
    simulate.simulate_batch(
      _keys(0, 1), images, textures, **{**_OPTIONS, **option}
    )


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
  options = {**_OPTIONS, 'anomaly_probability': 1.0, 'num_augmentations': 0}
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
