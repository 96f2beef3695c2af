"""The operations of `augment` with arguments that chance decides.

An operation here takes an image and three uniform numbers in [0, 1). Which one
it is is a number, too, so that one compiled program serves every choice.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8

from draem_jax.simulator import augment, sample
from draem_jax.simulator.augment import Image, Table
from draem_jax.simulator.options import Options

NUM_ARGUMENTS = 3
Numbers = Float[Array, '3']


def _between(
  number: Float[Array, '*n'], low: float, high: float
) -> Float[Array, '*n']:
  return low + (high - low) * number


def _whole(number: Float[Array, ''], low: int, high: int) -> Float[Array, '']:
  """A whole number from `low` to `high`, both included."""
  # Just below 1, a number may round up.
  return jnp.minimum(jnp.floor(_between(number, low, high + 1)), high)


def _gamma_contrast(image: Image, numbers: Numbers) -> Image:
  return augment.gamma_contrast(image, gamma=_between(numbers, 0.5, 2.0))


def _solarize(image: Image, numbers: Numbers) -> Image:
  threshold = _between(numbers[1], 32, 128) / 255
  above_all = 2.0
  return augment.solarize(
    image, threshold=jnp.where(numbers[0] < 0.5, threshold, above_all)
  )


def _posterize(image: Image, numbers: Numbers) -> Image:
  return augment.posterize(image, bits=_whole(numbers[0], 1, 8))


def _invert(image: Image, numbers: Numbers) -> Image:
  del numbers
  return augment.invert(image)


def _autocontrast_table(image: Image, numbers: Numbers) -> Table:
  return augment.autocontrast_table(image, cutoff=_whole(numbers[0], 0, 20))


def _equalize_table(image: Image, numbers: Numbers) -> Table:
  del numbers
  return augment.equalize_table(image)


def _brightness(image: Image, numbers: Numbers) -> Image:
  return augment.brightness(
    image,
    scale=_between(numbers[0], 0.8, 1.2),
    offset=_whole(numbers[1], -30, 30) / 255,
  )


def _sharpness(image: Image, numbers: Numbers) -> Image:
  return augment.sharpness(image, factor=_between(numbers[0], 0.0, 2.0))


def _hue_saturation(image: Image, numbers: Numbers) -> Image:
  return augment.hue_saturation(
    image,
    hue_shift=_whole(numbers[0], -50, 50) / 255,
    saturation_shift=_whole(numbers[1], -50, 50) / 255,
  )


def _color(image: Image, numbers: Numbers) -> Image:
  # The interval of RandAugment, which the paper names as its model.
  return augment.color(image, factor=_between(numbers[0], 0.1, 1.9))


def _rotate(image: Image, numbers: Numbers) -> Image:
  return augment.rotate(image, degrees=_between(numbers[0], -45, 45))


def _as_table(
  operation: Callable[[Image, Numbers], Image],
) -> Callable[[Image, Numbers], Table]:
  """A table of what an operation on single values makes of each of them."""

  def table(image: Image, numbers: Numbers) -> Table:
    levels = jnp.arange(256, dtype=image.dtype)
    ramp = jnp.broadcast_to(levels[:, None, None] / 255, (256, 1, 3))
    return operation(ramp, numbers)[:, 0]

  return table


_TABLES = {
  'gamma_contrast': _as_table(_gamma_contrast),
  'solarize': _as_table(_solarize),
  'posterize': _as_table(_posterize),
  'invert': _as_table(_invert),
  'autocontrast': _autocontrast_table,
  'equalize': _equalize_table,
}
_FILTERS = {
  'brightness': _brightness,
  'sharpness': _sharpness,
  'hue_saturation': _hue_saturation,
  'color': _color,
  'rotate': _rotate,
}


def augment_randomly(
  key: Key[Array, ''], texture: UInt8[Array, 'h w 3'], options: Options
) -> UInt8[Array, 'h w 3']:
  """Applies some operations, all different, in sampled order.

  RandAugment (Cubuk et al., CVPR Workshops 2020,
  doi:10.1109/CVPRW50498.2020.00359), as section 3.3 asks for.

  Args:
    key: decides which operations, in which order, with which arguments.
    texture: RGB.
    options: the operations to choose from and how many are applied.

  Returns:
    The texture after the last of them.
  """
  operations, numbers = sample_operations(key, options)
  # Compiled as a part of what calls it, but traced only once.
  augment_once = jax.jit(
    functools.partial(augment_texture, names=options.augmentations)
  )
  for operation, arguments in zip(operations, numbers, strict=True):
    texture = augment_once(texture, operation, arguments)
  return texture


def sample_operations(
  key: Key[Array, ''], options: Options
) -> tuple[Int[Array, 'n'], Float[Array, 'n 3']]:
  """Samples places of operations, all different, and numbers for each."""
  numbers = sample.uniform(
    key,
    order=(len(options.augmentations),),
    numbers=(options.num_augmentations, NUM_ARGUMENTS),
  )
  operations = jnp.argsort(numbers['order'])[: options.num_augmentations]
  return operations, numbers['numbers']


def augment_texture(
  texture: UInt8[Array, 'h w 3'],
  operation: Int[Array, ''],
  numbers: Numbers,
  *,
  names: tuple[str, ...],
) -> UInt8[Array, 'h w 3']:
  """Applies one of several operations.

  Args:
    texture: RGB.
    operation: the place of the operation's name in `names`.
    numbers: uniform numbers in [0, 1), which decide the operation's arguments.
    names: the operations to choose from, of `augment.AUGMENTATIONS`.

  Returns:
    The texture after that operation.
  """
  # What acts on single values is a table of 256, whichever operation it is: an
  # accelerator, which runs every branch, then passes over the image once for
  # all of them.
  tables = [name for name in names if name in _TABLES]
  filters = [name for name in names if name in _FILTERS]

  def look_up(image: Image, numbers: Numbers) -> Image:
    place = jnp.array([_place(name, tables) for name in names])[operation]
    branches = [_TABLES[name] for name in tables]
    table = jax.lax.switch(place, branches, image, numbers)
    return augment.look_up(image, table)

  branches = [_FILTERS[name] for name in filters] + [look_up] * bool(tables)
  place = jnp.array([_place(name, filters) for name in names])[operation]
  return jax.lax.switch(
    place, [_on_bytes(branch) for branch in branches], texture, numbers
  )


def _on_bytes(
  operation: Callable[[Image, Numbers], Image],
) -> Callable[..., UInt8[Array, 'h w 3']]:
  """An operation on uint8: on the grid nothing is lost, and it is quicker."""

  def on_bytes(
    texture: UInt8[Array, 'h w 3'], numbers: Numbers
  ) -> UInt8[Array, 'h w 3']:
    image = operation(texture.astype(jnp.float32) / 255, numbers)
    return jnp.round(image * 255).astype(jnp.uint8)

  return on_bytes


def _place(name: str, names: list[str]) -> int:
  """Where a name is, or one past the end."""
  return names.index(name) if name in names else len(names)
