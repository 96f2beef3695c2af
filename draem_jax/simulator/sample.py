"""Uniform numbers, many from one key."""

import math

import jax
from jaxtyping import Array, Float, Key

from draem_jax.simulator.options import Interval


def uniform(
  key: Key[Array, ''], **shapes: tuple[int, ...]
) -> dict[str, Float[Array, '...']]:
  """Samples uniform numbers in [0, 1) of many shapes at once.

  Args:
    key: decides all of them.
    **shapes: the wanted shapes by name.

  Returns:
    The numbers by name.
  """
  # Sampling costs much the same whatever the size.
  sizes = [math.prod(shape) for shape in shapes.values()]
  numbers = jax.random.uniform(key, (sum(sizes),))
  named, start = {}, 0
  for (name, shape), size in zip(shapes.items(), sizes, strict=True):
    named[name] = numbers[start : start + size].reshape(shape)
    start += size
  return named


def within(
  interval: Interval, number: Float[Array, '*n']
) -> Float[Array, '*n']:
  """The place in an interval that a number in [0, 1) stands for."""
  low, high = interval
  return low + (high - low) * number
