"""Rotation against OpenCV's values and exact turns."""

import jax
import jax.numpy as jnp
import numpy as np

from draem_jax.simulator import rotation
from fidelity import simulator as fidelity_simulator


def test_golden_rotations():
  for degrees, expected, ours in fidelity_simulator.rotate_cases():
    difference = np.abs(ours - expected)
    # Half of 1/1024 of a pixel rounds by chance: float32 here, float64 there.
    assert np.mean(difference > 1e-6) < 1e-3, degrees
    assert difference.max() < 5e-3, degrees


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
