"""The texture operations against the release's libraries."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.color
from PIL import Image, ImageEnhance, ImageOps

from draem_jax.simulator import augment, random_augment
from fidelity import simulator as fidelity_simulator

_GOLDEN = {
  name: (expected, ours)
  for name, expected, ours in fidelity_simulator.augment_cases()
}


@pytest.mark.parametrize('name', _GOLDEN)
def test_golden_operations(name):
  expected, ours = _GOLDEN[name]
  difference = np.abs(ours - expected)
  assert difference.max() < 1.01
  assert difference.mean() < 0.05
  _assert_on_grid(ours)


def _assert_on_grid(levels):
  np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)
  assert levels.min() >= 0
  assert levels.max() <= 255 + 1e-3


def _texture(shape=(40, 50, 3), seed=0):
  """A smooth uint8 picture with every kind of color."""
  rng = np.random.default_rng(seed)
  coarse = rng.uniform(0, 255, (5, 5, 3))
  levels = np.asarray(jax.image.resize(coarse, shape, 'linear'))
  return np.uint8(np.clip(levels + rng.normal(0, 8, shape), 0, 255))


def _levels(image):
  return np.asarray(image) * 255


def _as_float(levels):
  return jnp.asarray(levels, jnp.float32) / 255


@pytest.mark.parametrize('factor', [0.0, 0.4, 1.0, 1.6])
def test_sharpness_and_color_as_pil(factor):
  levels = _texture()
  pil = Image.fromarray(levels)
  for ours, theirs in (
    (augment.color, ImageEnhance.Color),
    (augment.sharpness, ImageEnhance.Sharpness),
  ):
    expected = np.float32(theirs(pil).enhance(factor))
    result = _levels(ours(_as_float(levels), factor=factor))
    _assert_on_grid(result)
    difference = np.abs(result - expected)
    assert difference.max() < 1.01
    assert difference.mean() < 0.01


def test_autocontrast_and_posterize_as_pil():
  levels = _texture() // 2 + 30
  pil = Image.fromarray(levels)
  for cutoff in (0, 3, 20):
    expected = np.float32(ImageOps.autocontrast(pil, cutoff))
    ours = augment.autocontrast(_as_float(levels), cutoff=cutoff)
    difference = np.abs(_levels(ours) - expected)
    assert difference.max() < 1.01
    assert difference.mean() < 0.02
  for bits in range(1, 9):
    expected = np.float32(ImageOps.posterize(pil, bits))
    ours = augment.posterize(_as_float(levels), bits=bits)
    np.testing.assert_allclose(_levels(ours), expected, atol=1e-3)


def test_equalize_leaves_out_white_as_pil_does():
  levels = np.random.default_rng(0).integers(0, 400, (64, 64, 3))
  levels = np.minimum(levels, 255).astype(np.uint8)
  expected = ImageOps.equalize(Image.fromarray(levels))
  equalized = _levels(augment.equalize(_as_float(levels)))
  np.testing.assert_allclose(equalized, np.asarray(expected), 0, 1e-3)


def test_equalize_makes_a_flat_histogram():
  levels = _texture((64, 64, 3)) // 3 + 20
  equalized = _levels(augment.equalize(_as_float(levels)))
  for channel in range(3):
    shares = np.quantile(equalized[..., channel], [0.25, 0.5, 0.75])
    np.testing.assert_allclose(shares, [64, 128, 191], atol=6)


@pytest.mark.parametrize('operation', ['autocontrast', 'equalize'])
def test_channel_of_one_value_stays(operation):
  levels = _texture()
  levels[..., 1] = 77
  numbers = jnp.array([0.4, 0.5, 0.6])
  result = augment_texture(operation)(levels, numbers)
  assert np.all(result[..., 1] == 77)
  assert np.ptp(result[..., 0]) > 200


def test_solarize_as_pil():
  levels = _texture()
  for threshold in (0, 1, 100, 101, 128, 254, 255):
    expected = np.float32(ImageOps.solarize(Image.fromarray(levels), threshold))
    ours = augment.solarize(_as_float(levels), threshold=threshold / 255)
    np.testing.assert_allclose(_levels(ours), expected, atol=1e-3)


def test_hue_circle_as_skimage():
  image = _as_float(_texture())
  ours = augment.hue_saturation(image, hue_shift=0.25, saturation_shift=0.0)
  hue, saturation, value = np.moveaxis(skimage.color.rgb2hsv(image), -1, 0)
  hsv = np.stack([(hue + 0.25) % 1, saturation, value], -1)
  theirs = skimage.color.hsv2rgb(hsv)
  # Hue is kept in steps of two degrees.
  assert np.abs(_levels(ours) - _levels(theirs)).max() < 6
  assert np.abs(_levels(ours) - _levels(theirs)).mean() < 1.5


def test_neutral_arguments_change_nothing():
  image = _as_float(_texture())
  for result in (
    augment.gamma_contrast(image, gamma=jnp.ones(3)),
    augment.sharpness(image, factor=1.0),
    augment.color(image, factor=1.0),
    augment.solarize(image, threshold=1.01),
    augment.posterize(image, bits=8),
    augment.rotate(image, degrees=0.0),
    augment.invert(augment.invert(image)),
  ):
    np.testing.assert_allclose(result, image, atol=1e-6)
  # The way to HSV and back rounds.
  for result in (
    augment.brightness(image, scale=1.0, offset=0.0),
    augment.hue_saturation(image, hue_shift=0.0, saturation_shift=0.0),
  ):
    assert np.abs(_levels(result) - _levels(image)).mean() < 1


def augment_texture(*names):
  """The compiled operation or choice of operations."""

  def function(texture, numbers, operation=0):
    return random_augment.augment_texture(
      texture, jnp.asarray(operation), numbers, names=names
    )

  return jax.jit(function)


@pytest.mark.parametrize('name', augment.AUGMENTATIONS)
def test_random_arguments_change_the_texture(name):
  texture = _texture((33, 50, 3))
  operation = augment_texture(name)
  results = [
    np.int32(operation(texture, jax.random.uniform(jax.random.key(seed), (3,))))
    for seed in range(6)
  ]
  assert all(result.shape == texture.shape for result in results)
  assert any(np.abs(result - texture).max() > 1 for result in results)


def test_choice_is_the_operation_of_that_name():
  names = augment.AUGMENTATIONS
  texture = _texture()
  numbers = jnp.array([0.2, 0.7, 0.9])
  choice = augment_texture(*names)
  results = []
  for place, name in enumerate(names):
    results.append(np.int32(choice(texture, numbers, jnp.array(place))))
    alone = np.int32(augment_texture(name)(texture, numbers))
    assert np.mean(results[-1] != alone) < 1e-3
  assert choice._cache_size() == 1
  different = [np.abs(a - b).max() for a in results for b in results]
  assert np.count_nonzero(different) == len(names) * (len(names) - 1)


def test_arguments_span_the_release_intervals():
  texture = _texture()
  image = _as_float(texture)
  low, high = jnp.zeros(3), jnp.full(3, 1 - 2.0**-24)
  for name, at_low, at_high in (
    (
      'gamma_contrast',
      augment.gamma_contrast(image, gamma=jnp.full(3, 0.5)),
      augment.gamma_contrast(image, gamma=jnp.full(3, 2.0)),
    ),
    (
      'brightness',
      augment.brightness(image, scale=0.8, offset=-30 / 255),
      augment.brightness(image, scale=1.2, offset=30 / 255),
    ),
    (
      'sharpness',
      augment.sharpness(image, factor=0.0),
      augment.sharpness(image, factor=2.0),
    ),
    (
      'hue_saturation',
      augment.hue_saturation(
        image, hue_shift=-50 / 255, saturation_shift=-50 / 255
      ),
      augment.hue_saturation(
        image, hue_shift=50 / 255, saturation_shift=50 / 255
      ),
    ),
    ('solarize', augment.solarize(image, threshold=32 / 255), image),
    (
      'posterize',
      augment.posterize(image, bits=1),
      augment.posterize(image, bits=8),
    ),
    (
      'autocontrast',
      augment.autocontrast(image, cutoff=0),
      augment.autocontrast(image, cutoff=20),
    ),
    (
      'rotate',
      augment.rotate(image, degrees=-45.0),
      augment.rotate(image, degrees=45.0),
    ),
  ):
    operation = augment_texture(name)
    for numbers, expected in ((low, at_low), (high, at_high)):
      difference = np.abs(operation(texture, numbers) - _levels(expected))
      assert difference.mean() < 0.05, name


def test_solarize_inverts_every_other_time():
  bright = jnp.full((2, 2, 3), 200, jnp.uint8)
  numbers = jax.random.uniform(jax.random.key(0), (400, 3))
  changed = jax.vmap(
    lambda numbers: random_augment.augment_texture(
      bright, jnp.int32(0), numbers, names=('solarize',)
    )
  )(numbers)
  share = np.mean(np.asarray(changed)[:, 0, 0, 0] != 200)
  assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(400)


def test_counting_and_looking_up_by_products_change_no_bit():
  levels = _texture((24, 40, 3))
  levels[:2] = 255
  image = _as_float(levels)
  counted = augment.histogram_by_products(image)
  expected = [
    np.bincount(levels[..., c].ravel(), minlength=256) for c in range(3)
  ]
  np.testing.assert_array_equal(counted, np.transpose(expected))

  table = jnp.asarray(np.random.default_rng(1).integers(0, 256, (256, 3))) / 255
  np.testing.assert_array_equal(
    augment.look_up_by_products(image, table), augment.look_up(image, table)
  )


@pytest.mark.parametrize(
  'operation',
  [
    lambda image: augment.look_up(image, jnp.zeros((256, 3))),
    augment.equalize_table,
  ],
)
def test_a_tpu_neither_gathers_nor_scatters_values(operation):
  traced = jax.jit(jax.vmap(operation)).trace(
    jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.float32)
  )
  words = {
    platform: re.findall(
      r'stablehlo\.\w+', traced.lower(lowering_platforms=(platform,)).as_text()
    )
    for platform in ('tpu', 'cpu')
  }
  one_by_one = {'stablehlo.gather', 'stablehlo.scatter'}
  assert not one_by_one & set(words['tpu'])
  assert one_by_one & set(words['cpu'])
