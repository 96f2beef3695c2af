"""The shapes of simulated anomalies: Perlin noise, rectangles."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from draem_jax.simulator import perlin, rotation, sample
from draem_jax.simulator.options import Options

# What is folded into the key of a mask for what not every recipe samples.
_PLACE, _SECOND, _COMBINATION = range(3)
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
  mask = noise > threshold
  if options.unions or options.intersections:
    second, level = perlin_noise(
      jax.random.fold_in(key, _SECOND), shape, options
    )
    mask = _combine(
      jax.random.fold_in(key, _COMBINATION), mask, second > level, options
    )
  return mask.astype(noise.dtype)


def _combine(
  key: Key[Array, ''],
  first: Bool[Array, 'h w'],
  second: Bool[Array, 'h w'],
  options: Options,
) -> Bool[Array, 'h w']:
  """The union of two masks, their intersection, or the first alone."""
  number = jax.random.uniform(key)
  union = number < options.unions
  intersection = ~union & (number < options.unions + options.intersections)
  both = first & second
  return jnp.where(
    union,
    first | second,
    jnp.where(intersection & jnp.any(both), both, first),
  )


def perlin_noise(
  key: Key[Array, ''], shape: tuple[int, int], options: Options
) -> tuple[Float[Array, '{shape[0]} {shape[1]}'], Float[Array, '']]:
  """Samples what `perlin_mask` is made of: noise and its threshold.

  Each axis of the lattice has 1, 2, 4, ..., or 32 cells, as in the release, or
  fewer. Of an image that is no square, a square somewhere along its longer side
  gets noise: stretched to a strip it would look like none of what it stands
  for.

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
  low, high = (cells.bit_length() - 1 for cells in options.cells)
  exponent = low + jnp.floor((high + 1 - low) * numbers['resolution'])
  side = min(shape)
  noise = perlin.perlin_noise(
    2 * jnp.pi * numbers['angles'],
    2 ** exponent.astype(jnp.int32),
    shape=(side, side),
  )
  noise = rotation.rotate(
    noise, degrees=sample.within(_NOISE_DEGREES, numbers['degrees'])
  )
  if shape != (side, side):
    noise = _place(jax.random.fold_in(key, _PLACE), noise, shape)
  return noise, sample.within(options.threshold, numbers['threshold'])


def _place(
  key: Key[Array, ''], noise: Float[Array, 's s'], shape: tuple[int, int]
) -> Float[Array, '{shape[0]} {shape[1]}']:
  """A square of noise at a sampled place of a larger image, else zero."""
  room = jnp.array(shape) - len(noise)
  start = jnp.floor(jax.random.uniform(key) * (room + 1)).astype(jnp.int32)
  return jax.lax.dynamic_update_slice(
    jnp.zeros(shape, noise.dtype), noise, start
  )


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
