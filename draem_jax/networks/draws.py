"""The random numbers that networks begin with, by array or all together.

Flax draws each parameter by itself: a generator for each of 150 arrays, which a
CPU takes longer to compile, or to read once it is compiled, than the training
step. There they are drawn together, by one loop over blocks of numbers, which
are the same to the last bit.
"""

import contextvars
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, UInt32

_BLOCK = 1024  # Numbers that are drawn at once.
_PER_COUNT = 4  # Numbers that the generator makes of each count.


class _Wanted(NamedTuple):
  """What a parameter shall be drawn from, and what stands for it until then."""

  stand_in: Float[Array, '...']
  place: UInt32[Array, '1']
  mean: float
  bound: float


_wanted: contextvars.ContextVar[list[_Wanted] | None] = contextvars.ContextVar(
  'wanted', default=None
)
# Keys that are not drawn from: they say what Flax folds into the first one.
_PLACES = jax.extend.random.define_prng_impl(
  key_shape=(1,),
  seed=lambda seed: seed.astype(jnp.uint32)[None],
  split=None,
  random_bits=None,
  fold_in=lambda place, data: data.astype(jnp.uint32)[None],
  name='places',
)
_SCALE = 0.02  # Of normal numbers, as the release initializes.


def normal(
  key: Key[Array, ''],
  shape: tuple[int, ...],
  dtype: DTypeLike,
  *,
  mean: float | Float[Array, ''],
) -> Float[Array, '...']:
  """Draws from N(`mean`, 0.02), as the release initializes.

  Args:
    key: of this parameter.
    shape: of the result.
    dtype: of the result.
    mean: of the distribution.
  """
  if _wanted.get() is not None:
    return _want(key, shape, dtype, mean=mean)
  return mean + _SCALE * jax.random.normal(key, shape, dtype)


def uniform(
  key: Key[Array, ''],
  shape: tuple[int, ...],
  dtype: DTypeLike,
  *,
  bound: float | Float[Array, ''],
) -> Float[Array, '...']:
  """Draws uniformly between `-bound` and `bound`.

  Args:
    key: of this parameter.
    shape: of the result.
    dtype: of the result.
    bound: the largest number, positive.
  """
  if _wanted.get() is not None:
    return _want(key, shape, dtype, bound=bound)
  return jax.random.uniform(key, shape, dtype, -bound, bound)


def _want(
  key: Key[Array, ''],
  shape: tuple[int, ...],
  dtype: DTypeLike,
  *,
  mean: float = 0.0,
  bound: float = 0.0,
) -> Float[Array, '...']:
  stand_in = jnp.zeros(shape, dtype)
  place = jax.random.key_data(key)
  _wanted.get().append(_Wanted(stand_in, place, mean, bound))
  return stand_in


def together(
  initialize: Callable[[Key[Array, '']], Any], key: Key[Array, '']
) -> Any:
  """What `initialize(key)` gives, with all parameters drawn in one loop.

  Within a program for a CPU, on which it gives the same numbers.

  Args:
    initialize: draws only by the functions of this module, and only float32.
    key: of the kind 'unsafe_rbg'.
  """
  wanted = []
  token = _wanted.set(wanted)
  try:
    initialized = initialize(jax.random.key(0, impl=_PLACES))
  finally:
    _wanted.reset(token)
  drawn = {
    id(each.stand_in): numbers
    for each, numbers in zip(wanted, _draw(key, wanted), strict=True)
  }
  return jax.tree.map(lambda leaf: drawn.get(id(leaf), leaf), initialized)


def _draw(
  key: Key[Array, ''], wanted: list[_Wanted]
) -> list[Float[Array, '...']]:
  blocks = np.array([-(-each.stand_in.size // _BLOCK) for each in wanted])
  ends = np.cumsum(blocks)
  which = np.repeat(np.arange(len(wanted)), blocks)
  block = np.arange(len(which)) - (ends - blocks)[which]
  places = jnp.concatenate([each.place for each in wanted])

  def draw_block(given):
    place, block, mean, bound = given
    one = _ahead(jax.random.fold_in(key, place), block * (_BLOCK // _PER_COUNT))
    return jax.lax.cond(
      bound > 0,
      lambda: uniform(one, (_BLOCK,), jnp.float32, bound=bound),
      lambda: normal(one, (_BLOCK,), jnp.float32, mean=mean),
    )

  numbers = jax.lax.map(
    draw_block,
    (
      places[which],
      block.astype(np.uint32),
      np.array([each.mean for each in wanted], np.float32)[which],
      np.array([each.bound for each in wanted], np.float32)[which],
    ),
  ).ravel()
  starts = (_BLOCK * (ends - blocks)).tolist()
  return [
    numbers[start : start + each.stand_in.size].reshape(each.stand_in.shape)
    for start, each in zip(starts, wanted, strict=True)
  ]


def _ahead(key: Key[Array, ''], counts: UInt32[Array, '']) -> Key[Array, '']:
  """The key that goes on where so many counts of another have been drawn."""
  data = jax.random.key_data(key)
  low = data[2] + counts
  high = data[3] + (low < counts).astype(jnp.uint32)
  return jax.random.wrap_key_data(
    jnp.stack([data[0], data[1], low, high]), impl='unsafe_rbg'
  )
