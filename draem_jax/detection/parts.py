"""Networks that look at batches, and on a CPU at parts of these."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import lax
from jaxtyping import Array, UInt8

from draem_jax import platforms

# A CPU keeps the activations of so many in its cache, or more of them.
_PIXELS = 2**15


def compiled(
  look: Callable[[Mapping[str, Any], UInt8[Array, '_ h w c']], Any],
) -> Callable[[Mapping[str, Any], UInt8[Array | np.ndarray, 'b h w c']], Any]:
  """A function of variables and of a batch as a program for this process.

  Args:
    look: in what it gives, the images come first.
  """
  program = jax.jit(
    lambda variables, images: look_by_parts(
      functools.partial(look, variables), images
    )
  )

  def run(
    variables: Mapping[str, Any],
    images: UInt8[Array | np.ndarray, 'b h w c'],
  ) -> Any:
    with platforms.known(jax.local_devices()[0]):
      return program(variables, images)

  return run


def look_by_parts(
  look: Callable[[UInt8[Array, '_ h w c']], Any],
  images: UInt8[Array, 'b h w c'],
) -> Any:
  """What `look` gives of a batch, of which a CPU takes few images at a time.

  Args:
    look: in what it gives, the images come first.
    images: the whole batch.
  """
  batch, height, width, _ = images.shape
  part = max(1, min(batch, _PIXELS // (height * width)))
  while batch % part:
    part -= 1
  if part == batch:
    return look(images)

  def by_parts(images: UInt8[Array, 'b h w c']) -> Any:
    parts = images.reshape(-1, part, *images.shape[1:])
    return jax.tree.map(
      lambda x: x.reshape(batch, *x.shape[2:]), lax.map(look, parts)
    )

  return platforms.choose(images, cpu=by_parts, default=look)
