"""Perlin noise against the release's and its own definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from draem_jax.simulator import perlin
from fidelity import simulator as fidelity_simulator


def test_golden_noise():
  for resolution, expected, ours in fidelity_simulator.perlin_cases():
    np.testing.assert_allclose(ours, expected, atol=1e-5, err_msg=resolution)


def _noise_by_definition(angles, resolution, shape):
  """Gradients at the four corners of each pixel's cell, interpolated."""
  noise = np.zeros(shape)
  for y in range(shape[0]):
    for x in range(shape[1]):
      place = (
        np.array([y * resolution[0] / shape[0]]),
        np.array([x * resolution[1] / shape[1]]),
      )
      place = np.concatenate(place)
      cell = np.floor(place).astype(int)
      offset = place - cell
      fade = 6 * offset**5 - 15 * offset**4 + 10 * offset**3
      for corner in np.ndindex(2, 2):
        angle = angles[tuple(cell + corner)]
        gradient = np.array([np.cos(angle), np.sin(angle)])
        weight = np.prod(np.where(corner, fade, 1 - fade))
        noise[y, x] += weight * gradient @ (offset - corner)
  return np.sqrt(2) * noise


@pytest.mark.parametrize('shape', [(30, 41), (48, 20)])
def test_size_that_the_lattice_does_not_divide(shape):
  angles = np.random.default_rng(0).uniform(0, 2 * np.pi, (33, 33))
  ours = perlin.perlin_noise(
    jnp.asarray(angles, jnp.float32), (8, 4), shape=shape
  )
  expected = _noise_by_definition(angles, (8, 4), shape)
  np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_one_program_for_all_resolutions():
  noise = jax.jit(lambda a, r: perlin.perlin_noise(a, r, shape=(24, 24)))
  angles = jax.random.uniform(jax.random.key(0), (33, 33), maxval=2 * jnp.pi)
  for rows in (1, 2, 8, 32):
    for columns in (1, 4, 16):
      resolution = jnp.array([rows, columns])
      np.testing.assert_allclose(
        noise(angles, resolution),
        perlin.perlin_noise(angles, (rows, columns), shape=(24, 24)),
        atol=1e-6,
      )
  assert noise._cache_size() == 1


def test_noise_is_zero_at_the_nodes():
  angles = jax.random.uniform(jax.random.key(1), (33, 33), maxval=2 * jnp.pi)
  noise = perlin.perlin_noise(angles, (4, 8), shape=(32, 32))
  np.testing.assert_allclose(noise[::8, ::4], 0, atol=1e-6)
  assert np.abs(noise).max() > 0.3
