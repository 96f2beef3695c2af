"""Crops and the margins around them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from draem_jax.data import pictures
from draem_jax.simulator import crops, rotation, simulate
from fidelity import simulator as fidelity_simulator

OPTIONS = dataclasses.replace(
  fidelity_simulator.release_options(), rotation_probability=1.0
)


def noise(*shape):
  return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_the_device_cuts_as_the_host_does():
  images = noise(3, 20, 31, 3)
  cut = jax.jit(functools.partial(crops.cut, size=(9, 14)))
  corners = [(0, 0), (-4, 5), (11, 17), (15, 28), (-8, -13), (-20, 40)]
  for index, corner in enumerate(corners):
    found = cut(images, jnp.int32(index % 3), jnp.array(corner))
    expected = pictures.cut(images[index % 3], corner, (9, 14))
    np.testing.assert_array_equal(found, expected)


def test_corners_are_anywhere_inside():
  keys = jax.random.split(jax.random.key(0), 3000)
  sample = lambda key: crops.sample_corner(key, jnp.array([40, 35]), (36, 32))
  found = np.array(jax.jit(jax.vmap(sample))(keys))
  for axis, count in ((0, 5), (1, 4)):
    seen = np.bincount(found[:, axis], minlength=count)
    assert len(seen) == count
    # 5 standard deviations.
    spread = np.sqrt(3000 * (count - 1)) / count
    assert np.abs(seen - 3000 / count).max() < 5 * spread
  assert abs(np.corrcoef(found.T)[0, 1]) < 0.1


def test_there_is_one_place_for_what_is_just_as_large():
  keys = jax.random.split(jax.random.key(0), 200)
  sample = lambda key: crops.sample_corner(key, jnp.array([32, 48]), (32, 32))
  found = np.array(jax.jit(jax.vmap(sample))(keys))
  assert not found[:, 0].any()
  assert set(found[:, 1]) == set(range(17))


@pytest.mark.parametrize('size', [(32, 32), (32, 96), (17, 40)])
def test_the_margin_is_enough_for_every_angle_and_not_much_more(size):
  rows, columns = crops.margin(size, OPTIONS)
  white = np.ones((size[0] + 2 * rows, size[1] + 2 * columns), np.float32)
  rotate = jax.jit(functools.partial(rotation.rotate, size=size))
  # With the diagonal upright or level, too.
  diagonal = np.rad2deg(np.arctan2(size[1], size[0]))
  for degrees in (*range(-180, 181, 13), diagonal, -diagonal, 90 - diagonal):
    found = rotate(white, degrees=jnp.float32(degrees))
    assert found.shape == size
    np.testing.assert_allclose(found, 1, atol=1e-6)
  less = rotate(white[3:-3, 3:-3], degrees=jnp.float32(diagonal))
  assert less.min() < 0.5
  still = dataclasses.replace(OPTIONS, rotation_probability=0.0)
  assert crops.margin(size, still) == (0, 0)


def test_a_black_margin_is_none():
  """A rotation without margin is that of an image with nothing around it."""
  image = np.float32(noise(24, 40, 3) / 255)
  framed = np.pad(image, [(9, 9), (4, 4), (0, 0)])
  for degrees in (-45.0, 12.3, 90.0):
    alone = jax.jit(rotation.rotate)(image, degrees=degrees)
    found = jax.jit(functools.partial(rotation.rotate, size=(24, 40)))(
      framed, degrees=degrees
    )
    np.testing.assert_array_equal(found, alone)


def test_a_margin_shows_what_is_there():
  """The middle of a rotated image, wherever it has enough around."""
  coarse = np.float32(noise(8, 8, 3) / 255)
  image = jnp.asarray(coarse.repeat(8, axis=0).repeat(8, axis=1))
  rotate = jax.jit(rotation.rotate, static_argnames='size')
  for degrees in (-30.0, 45.0):
    whole = rotate(image, degrees=degrees)[22:42, 20:44]
    middle = rotate(image[2:-2, 4:-4], degrees=degrees, size=(20, 24))
    # Places are rounded to 1/32 of a pixel, here from another start.
    np.testing.assert_allclose(middle, whole, atol=0.05)
    assert np.mean(middle != whole) < 0.2


def test_an_example_of_a_crop():
  """What is no anomaly is the same whether the margin was cut off or not."""
  size = (32, 40)
  options = dataclasses.replace(
    OPTIONS,
    anomaly_probability=1.0,
    rotation_probability=0.5,
    augmentations=(),
    num_augmentations=0,
  )
  rows, columns = crops.margin(size, options)
  images = noise(12, 32 + 2 * rows, 40 + 2 * columns, 3)
  textures = noise(12, *size, 3)
  keys = jax.random.split(jax.random.key(1), 12)
  make = jax.jit(functools.partial(simulate.simulate_batch, options=options))
  found = make(keys, images, textures)
  assert found.image.shape == (12, *size, 3) and found.mask.shape == (12, *size)
  middles = images[:, rows:-rows, columns:-columns]
  alone = make(keys, middles, textures)
  # Chance does not know of margins.
  np.testing.assert_array_equal(found.mask, alone.mask)
  still = 0
  for one, middle, other in zip(found.image, middles, alone.image, strict=True):
    if np.allclose(other, np.float32(middle) / 255, atol=1e-6):
      np.testing.assert_array_equal(one, other)
      still += 1
    else:
      # Only what came from beyond, and was black, is another now.
      assert (one >= other).all()
      more = np.asarray((one != other).any(axis=-1))
      assert more.any() and not more[8:-8, 12:-12].any()
  assert 2 < still < 10
  inside = np.asarray(found.mask[..., None] > 0)
  np.testing.assert_array_equal(
    np.where(inside, 0, found.augmented), np.where(inside, 0, found.image)
  )
