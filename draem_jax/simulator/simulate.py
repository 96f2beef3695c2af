"""One training example: an image, and the same with a simulated anomaly."""

from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8

from draem_jax.errors import UserError
from draem_jax.simulator import augment, perlin, random_augment, rotation

Interval = tuple[float, float]

_NOISE_DEGREES = (-90.0, 90.0)
_NUM_RESOLUTIONS = 6  # Powers of two from 1 to 32.


@flax.struct.dataclass
class Example:
  """What the networks are trained on, or a batch of it.

  Attributes:
    image: the anomaly-free image, [h w 3] in [0, 1].
    augmented: the same with the anomaly in it.
    mask: 1 where the anomaly is, else 0.
  """

  image: Float[Array, '*b h w 3']
  augmented: Float[Array, '*b h w 3']
  mask: Float[Array, '*b h w']


class Draws(NamedTuple):
  """All that chance decides about one example."""

  is_rotated: Array
  image_degrees: Array
  angles: Array
  resolution: Array
  noise_degrees: Array
  threshold: Array
  operations: Array
  arguments: Array
  opacity: Array
  is_anomalous: Array


def simulate(
  key: Key[Array, ''],
  image: UInt8[Array, 'h w 3'],
  texture: UInt8[Array, 'h w 3'],
  **options,
) -> Example:
  """Draws a training example (section 3.3 of the paper).

  Args:
    key: decides everything that chance does.
    image: an anomaly-free image, RGB.
    texture: where the anomaly's appearance comes from, RGB.
    rotation_probability: how often the image itself is rotated.
    rotation_degrees: interval of that angle.
    threshold: interval of the level above which noise is anomaly.
    augmentations: names in `random_augment.NAMES` to choose from.
    num_augmentations: how many of them the texture goes through, all
      different, in the drawn order.
    opacity: interval of the texture's weight inside the mask.
    anomaly_probability: how often the example gets an anomaly at all. The
      anomaly may still be empty.

  Returns:
    The example. It depends on nothing but these arguments.
  """
  return _simulate(_draw(key, **options), image, texture, **options)


def simulate_batch(
  keys: Key[Array, 'b'],
  images: UInt8[Array, 'b h w 3'],
  textures: UInt8[Array, 'b h w 3'],
  **options,
) -> Example:
  """Draws a batch of examples, each as `simulate` would.

  Args:
    keys: one for each example.
    images: anomaly-free images, RGB.
    textures: a texture for each, RGB.
    **options: those of `simulate`.

  Returns:
    The examples, with a leading axis.
  """
  draws = jax.vmap(lambda key: _draw(key, **options))(keys)

  def one(arguments):
    return _simulate(*arguments, **options)

  # A processor gains by leaving out what an example does not need, one after
  # the other; an accelerator by doing everything for all at once.
  return jax.lax.platform_dependent(
    (draws, images, textures),
    cpu=lambda arguments: jax.lax.map(one, arguments),
    default=jax.vmap(one),
  )


def _draw(
  key,
  *,
  rotation_probability: float,
  rotation_degrees: Interval,
  threshold: Interval,
  augmentations: tuple[str, ...],
  num_augmentations: int,
  opacity: Interval,
  anomaly_probability: float,
) -> Draws:
  _check(augmentations, num_augmentations)
  lattice = (perlin.LATTICE_SIZE, perlin.LATTICE_SIZE)
  numbers = _Numbers(
    key,
    9 + len(augmentations) + 3 * num_augmentations + lattice[0] * lattice[1],
  )
  return Draws(
    is_rotated=numbers.take() < rotation_probability,
    image_degrees=_within(rotation_degrees, numbers.take()),
    angles=2 * jnp.pi * numbers.take(lattice),
    resolution=2
    ** jnp.floor(numbers.take((2,)) * _NUM_RESOLUTIONS).astype(jnp.int32),
    noise_degrees=_within(_NOISE_DEGREES, numbers.take()),
    threshold=_within(threshold, numbers.take()),
    operations=jnp.argsort(numbers.take((len(augmentations),)))[
      :num_augmentations
    ],
    arguments=numbers.take((num_augmentations, 3)),
    opacity=_within(opacity, numbers.take()),
    is_anomalous=numbers.take() < anomaly_probability,
  )


class _Numbers:
  """Uniform numbers handed out in order: one draw is cheaper than many."""

  def __init__(self, key, count: int):
    self._numbers = jax.random.uniform(key, (count,))
    self._next = 0

  def take(self, shape: tuple[int, ...] = ()) -> Array:
    count = 1
    for size in shape:
      count *= size
    taken = self._numbers[self._next : self._next + count]
    self._next += count
    return taken.reshape(shape)


def _check(augmentations: tuple[str, ...], num_augmentations: int):
  for name in augmentations:
    if name not in random_augment.NAMES:
      raise UserError(
        f'config.simulator.augmentations: there is no {name!r}; choose from '
        f'{", ".join(random_augment.NAMES)}'
      )
  if num_augmentations > len(augmentations):
    raise UserError(
      f'config.simulator.num_augmentations: {num_augmentations} of '
      f'{len(augmentations)} augmentations cannot all differ; lower it'
    )


def _within(interval: Interval, number: Array) -> Array:
  low, high = interval
  return low + (high - low) * number


def _simulate(draws: Draws, image, texture, *, augmentations, **unused):
  del unused
  # Each step is a branch of its own because what a branch returns is computed
  # once, while the compiler would repeat it in every place that uses it.
  image = jax.lax.cond(
    draws.is_rotated,
    lambda image: augment.rotate(image, degrees=draws.image_degrees),
    lambda image: image,
    image.astype(jnp.float32) / 255,
  )
  mask = jax.lax.cond(
    draws.is_anomalous,
    lambda: _mask(draws, image.shape[:2]),
    lambda: jnp.zeros(image.shape[:2], image.dtype),
  )
  augmented = jax.lax.cond(
    jnp.any(mask > 0),
    lambda: _blend(draws, image, texture, mask, augmentations),
    lambda: image,
  )
  return Example(image=image, augmented=augmented, mask=mask)


def _mask(draws: Draws, shape: tuple[int, int]):
  noise = perlin.perlin_noise(draws.angles, draws.resolution, shape=shape)
  noise = rotation.rotate(noise, degrees=draws.noise_degrees)
  return (noise > draws.threshold).astype(noise.dtype)


def _blend(draws: Draws, image, texture, mask, augmentations):
  texture = texture.astype(image.dtype) / 255
  for operation, numbers in zip(
    draws.operations, draws.arguments, strict=True
  ):
    texture = random_augment.augment_texture(
      texture, operation, numbers, names=augmentations
    )
  opacity = mask[..., None] * draws.opacity
  return image + opacity * (texture - image)
