"""The shapes of simulated anomalies: Perlin noise, rectangles."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from draem_jax.simulator import perlin, rotation, sample
from draem_jax.simulator.options import Options

_NOISE_DEGREES = (-90.0, 90.0)
_LATTICE_SHAPE = (perlin.LATTICE_SIZE, perlin.LATTICE_SIZE)


def perlin_mask(
  key: Key[Array, ''], shape: tuple[int, int], options: Options
) -> Float[Array, '{shape[0]} {shape[1]}']:
  """Samples where rotated Perlin noise exceeds a threshold (section 3.3).

  Args:
    key: decides everything.
    shape: the height and width of the mask.
    options: the interval of the threshold.

  Returns:
    1 where the anomaly is, else 0; possibly 0 everywhere.
  """
  noise, threshold = perlin_noise(key, shape, options)
  return (noise > threshold).astype(noise.dtype)


def perlin_noise(
  key: Key[Array, ''], shape: tuple[int, int], options: Options
) -> tuple[Float[Array, '{shape[0]} {shape[1]}'], Float[Array, '']]:
  """Samples what `perlin_mask` is made of: noise and its threshold.

  Each axis of the lattice has 1, 2, 4, ..., or 32 cells, as in the release.

  Args:
    key: decides everything.
    shape: the height and width of the noise.
    options: the interval of the threshold.

  Returns:
    The rotated noise, within (-1.5, 1.5), and the threshold.
  """
  numbers = sample.uniform(
    key, angles=_LATTICE_SHAPE, resolution=(2,), degrees=(), threshold=()
  )
  num_resolutions = perlin.MAX_RESOLUTION.bit_length()
  exponent = jnp.floor(num_resolutions * numbers['resolution'])
  noise = perlin.perlin_noise(
    2 * jnp.pi * numbers['angles'],
    2 ** exponent.astype(jnp.int32),
    shape=shape,
  )
  noise = rotation.rotate(
    noise, degrees=sample.within(_NOISE_DEGREES, numbers['degrees'])
  )
  return noise, sample.within(options.threshold, numbers['threshold'])


def rectangle_mask(
  key: Key[Array, ''], shape: tuple[int, int], options: Options
) -> Float[Array, '{shape[0]} {shape[1]}']:
  """Samples some upright rectangles, which may overlap (table 3).

  Args:
    key: decides everything.
    shape: the height and width of the mask.
    options: the intervals of the number and of the sides.

  Returns:
    1 inside a rectangle, else 0.
  """
  low, high = options.rectangles
  numbers = sample.uniform(key, count=(), sides=(high, 2), places=(high, 2))
  count = jnp.floor(sample.within((low, high + 1), numbers['count']))
  inside = (jnp.arange(high) < count)[:, None, None]
  for axis, size in enumerate(shape):
    side = sample.within(options.rectangle_sides, numbers['sides'][:, axis])
    start = numbers['places'][:, axis] * (1 - side)
    place = (jnp.arange(size) + 0.5) / size
    along = (place >= start[:, None]) & (place < (start + side)[:, None])
    inside = inside & jnp.expand_dims(along, 2 - axis)
  return jnp.any(inside, axis=0).astype(numbers['sides'].dtype)


MASKS: dict[str, Callable[..., Float[Array, 'h w']]] = {
  'perlin': perlin_mask,
  'rectangles': rectangle_mask,
}

# Of the masks that are made of noise: what samples it and its threshold.
NOISES: dict[str, Callable[..., tuple[Float[Array, 'h w'], Float[Array, '']]]]
NOISES = {'perlin': perlin_noise}
