"""Rotation against OpenCV's values and exact turns, in either way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from draem_jax import platforms
from draem_jax.simulator import augment, rotation
from fidelity import simulator as fidelity_simulator


def as_a_tpu(*arguments, tpu=None, default, cpu=None):
  """Stands for `platforms.choose` on a TPU."""
  del cpu
  return (tpu or default)(*arguments)


@pytest.fixture(params=['by gathers', 'by products'])
def way(request, monkeypatch):
  if request.param == 'by products':
    monkeypatch.setattr(platforms, 'choose', as_a_tpu)


@pytest.mark.usefixtures('way')
def test_golden_rotations():
  for degrees, expected, ours in fidelity_simulator.rotate_cases():
    difference = np.abs(ours - expected)
    # Half of 1/1024 of a pixel rounds by chance: float32 here, float64 there.
    assert np.mean(difference > 1e-6) < 1e-3, degrees
    assert difference.max() < 5e-3, degrees


@pytest.mark.usefixtures('way')
def test_quarter_turns_of_any_channels():
  image = np.random.default_rng(0).uniform(size=(17, 17, 3)).astype(np.float32)
  for image_or_map in (image, image[..., 0]):
    # `numpy` turns counterclockwise.
    for degrees, turns in ((90.0, -1), (-90.0, 1), (180.0, 2), (0.0, 0)):
      np.testing.assert_allclose(
        rotation.rotate(jnp.asarray(image_or_map), degrees=degrees),
        np.rot90(image_or_map, turns),
        atol=1e-6,
      )


@pytest.mark.usefixtures('way')
def test_outside_is_zero_and_the_angle_is_data():
  rotate = jax.jit(
    lambda image, degrees: rotation.rotate(image, degrees=degrees)
  )
  white = np.ones((30, 31), np.float32)
  for degrees in (-60.0, 30.0, 45.0):
    turned = np.asarray(rotate(white, degrees))
    assert turned[0, 0] == turned[-1, -1] == 0
    assert turned[15, 15] == 1
    np.testing.assert_allclose(turned, turned[::-1, ::-1], atol=0.1)
  assert rotate._cache_size() == 1


ANGLES = [0, 45, -45, 44.99, -45.01, 90, -90, 135, 180, 0.01, 89.9, 360, 26.6]


@pytest.mark.parametrize(
  ('shape', 'size'),
  [
    ((37, 37, 3), None),
    ((40, 23, 3), None),
    ((21, 48), None),
    ((60, 61, 2), (44, 31)),
    ((2, 3, 1), None),
    ((130, 130, 1), None),
  ],
)
def test_products_give_what_gathers_give(shape, size):
  rng = np.random.default_rng(0)
  # Of all magnitudes, so that no digit may be lost.
  image = rng.normal(size=shape) * 10.0 ** rng.integers(-5, 6, shape)
  levels = jnp.float32(rng.integers(0, 256, shape))
  image = jnp.float32(image)
  by_products = jax.jit(rotation.rotate_by_products, static_argnums=4)
  by_gathers = jax.jit(rotation._rotate_by_gathers)
  for degrees in [*ANGLES, *rng.uniform(-180, 180, 20)]:
    row, column = rotation._source_places(*(size or shape[:2]), degrees)
    if size:
      row += (shape[0] - size[0]) // 2 * 32
      column += (shape[1] - size[1]) // 2 * 32
    place = jnp.float32(degrees), row, column
    difference = by_products(image, *place, False) - by_gathers(image, *place)
    # What pixels weigh together is what rounding may be a share of.
    most = by_gathers(jnp.abs(image), *place)
    assert (jnp.abs(difference) <= 3e-7 * most).all(), degrees
    np.testing.assert_array_equal(
      by_products(levels, *place, True), by_gathers(levels, *place)
    )


def test_a_line_needs_no_pixel_beyond_its_window():
  # At the largest size, where the slope has the fewest bits.
  side = rotation._LARGEST
  rng = np.random.default_rng(0)
  place = np.arange(side)
  for degrees in np.float32([*ANGLES, *rng.uniform(-180, 180, 9)]):
    both = rotation._source_places(side, side, float(degrees))
    sin, cos = np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees))
    steep = abs(sin) > abs(cos)
    row, column = both[::-1] if steep else both
    slope = -cos / sin if steep else -sin / cos
    lines = np.r_[0 : side : side // 7, side - 1]
    row, column = np.asarray(row)[lines], np.asarray(column)[lines]
    bases = rotation._bases(
      *(jnp.asarray(line[:, :1]) for line in (row, column)),
      *(jnp.float32(slope), side, jnp.asarray(place[None])),
    )
    for step in (0, 1):
      pixel = (column >> 5) + step
      inside = (pixel >= 0) & (pixel < side) & (row >= 0) & (row < 32 * side)
      base = np.take_along_axis(
        np.asarray(bases), np.clip(pixel, 0, side - 1), axis=1
      )
      above, below = (row >> 5) - base, (row + 31 >> 5) - base
      assert (above[inside] >= 0).all()
      assert (np.minimum(below, side - 1 - base)[inside] < 5).all()


def test_larger_images_are_gathered(monkeypatch):
  monkeypatch.setattr(platforms, 'choose', as_a_tpu)
  monkeypatch.setattr(rotation, '_LARGEST', 32)
  monkeypatch.setattr(rotation, 'rotate_by_products', None)
  turned = rotation.rotate(jnp.eye(33), degrees=90.0)
  np.testing.assert_allclose(turned, np.eye(33)[::-1], atol=1e-6)


def test_textures_are_levels(monkeypatch):
  levels = np.random.default_rng(0).integers(0, 256, (24, 24, 3))
  image = jnp.float32(levels) / 255
  expected = augment.rotate(image, degrees=30.0)
  monkeypatch.setattr(platforms, 'choose', as_a_tpu)
  program = jax.make_jaxpr(lambda x: augment.rotate(x, degrees=30.0))(image)
  assert 'preferred_element_type=int32' in str(program)
  np.testing.assert_array_equal(augment.rotate(image, degrees=30.0), expected)
