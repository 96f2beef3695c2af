"""One training example: an image, and the same with a simulated anomaly."""

import math
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from draem_jax.errors import UserError
from draem_jax.simulator import augment, perlin, random_augment, rotation

Interval = tuple[float, float]

_NOISE_DEGREES = (-90.0, 90.0)
_LATTICE_SHAPE = (perlin.LATTICE_SIZE, perlin.LATTICE_SIZE)


@flax.struct.dataclass
class Example:
  """What the networks are trained on, or a batch of it.

  Attributes:
    image: the anomaly-free image, in [0, 1].
    augmented: the same with the anomaly in it, in [0, 1].
    mask: 1 where the anomaly is, else 0.
  """

  image: Float[Array, '*b h w 3']
  augmented: Float[Array, '*b h w 3']
  mask: Float[Array, '*b h w']


class _Draws(NamedTuple):
  """All that chance decides about one example, or about a batch."""

  is_rotated: Bool[Array, '*b']
  image_degrees: Float[Array, '*b']
  angles: Float[Array, '*b l l']
  resolution: Int[Array, '*b 2']
  noise_degrees: Float[Array, '*b']
  threshold: Float[Array, '*b']
  operations: Int[Array, '*b n']
  numbers: Float[Array, '*b n k']
  opacity: Float[Array, '*b']
  is_anomalous: Bool[Array, '*b']


def simulate(
  key: Key[Array, ''],
  image: UInt8[Array, 'h w 3'],
  texture: UInt8[Array, 'h w 3'],
  *,
  rotation_probability: float,
  rotation_degrees: Interval,
  threshold: Interval,
  augmentations: tuple[str, ...],
  num_augmentations: int,
  opacity: Interval,
  anomaly_probability: float,
) -> Example:
  """Draws a training example (section 3.3 of the paper).

  All intervals are drawn from uniformly.

  Args:
    key: decides everything that chance does.
    image: an anomaly-free image, RGB, of any size.
    texture: where the anomaly's looks come from, RGB, of the same size.
    rotation_probability: how often the image itself is rotated.
    rotation_degrees: interval of that angle.
    threshold: interval of the level above which noise is anomaly.
    augmentations: the operations that may change the texture, of
      `augment.AUGMENTATIONS`.
    num_augmentations: how many of them do, all different, in the drawn order.
    opacity: interval of the texture's weight inside the mask.
    anomaly_probability: how often the example gets an anomaly at all. Noise
      that stays below the threshold makes an empty one.

  Returns:
    The example. Nothing but these arguments decides about it.

  Raises:
    UserError: an option has no meaning.
  """
  draws = _draw(
    key,
    rotation_probability=rotation_probability,
    rotation_degrees=rotation_degrees,
    threshold=threshold,
    augmentations=augmentations,
    num_augmentations=num_augmentations,
    opacity=opacity,
    anomaly_probability=anomaly_probability,
  )
  return _carry_out(draws, image, texture, augmentations)


def simulate_batch(
  keys: Key[Array, 'b'],
  images: UInt8[Array, 'b h w 3'],
  textures: UInt8[Array, 'b h w 3'],
  **options,
) -> Example:
  """Draws a batch of training examples, each as `simulate` does.

  Args:
    keys: one for each example.
    images: anomaly-free images, RGB.
    textures: a texture for each, RGB.
    **options: those of `simulate`.

  Returns:
    The examples.

  Raises:
    UserError: an option has no meaning.
  """
  draws = jax.vmap(lambda key: _draw(key, **options))(keys)

  def carry_out(arguments):
    return _carry_out(*arguments, options['augmentations'])

  # A CPU gains from leaving out what an example does not need, one example
  # after the other; an accelerator from doing everything for all at once.
  return jax.lax.platform_dependent(
    (draws, images, textures),
    cpu=lambda arguments: jax.lax.map(carry_out, arguments),
    default=jax.vmap(carry_out),
  )


def _draw(
  key: Key[Array, ''],
  *,
  rotation_probability: float,
  rotation_degrees: Interval,
  threshold: Interval,
  augmentations: tuple[str, ...],
  num_augmentations: int,
  opacity: Interval,
  anomaly_probability: float,
) -> _Draws:
  _check_augmentations(augmentations, num_augmentations)
  shapes = {
    'is_rotated': (),
    'image_degrees': (),
    'angles': _LATTICE_SHAPE,
    'resolution': (2,),
    'noise_degrees': (),
    'threshold': (),
    'operations': (len(augmentations),),
    'numbers': (num_augmentations, random_augment.NUM_ARGUMENTS),
    'opacity': (),
    'is_anomalous': (),
  }
  uniform = _uniform(key, shapes)
  num_resolutions = perlin.MAX_RESOLUTION.bit_length()
  exponent = jnp.floor(num_resolutions * uniform['resolution'])
  return _Draws(
    is_rotated=uniform['is_rotated'] < rotation_probability,
    image_degrees=_within(rotation_degrees, uniform['image_degrees']),
    angles=2 * jnp.pi * uniform['angles'],
    resolution=2 ** exponent.astype(jnp.int32),
    noise_degrees=_within(_NOISE_DEGREES, uniform['noise_degrees']),
    threshold=_within(threshold, uniform['threshold']),
    operations=jnp.argsort(uniform['operations'])[:num_augmentations],
    numbers=uniform['numbers'],
    opacity=_within(opacity, uniform['opacity']),
    is_anomalous=uniform['is_anomalous'] < anomaly_probability,
  )


def _uniform(
  key: Key[Array, ''], shapes: dict[str, tuple[int, ...]]
) -> dict[str, Float[Array, '...']]:
  """Uniform numbers in [0, 1) of many shapes from a single draw."""
  # A draw costs much the same whatever its size.
  sizes = [math.prod(shape) for shape in shapes.values()]
  numbers = jax.random.uniform(key, (sum(sizes),))
  named, start = {}, 0
  for (name, shape), size in zip(shapes.items(), sizes, strict=True):
    named[name] = numbers[start : start + size].reshape(shape)
    start += size
  return named


def _within(interval: Interval, number: Float[Array, '']) -> Float[Array, '']:
  low, high = interval
  return low + (high - low) * number


def _check_augmentations(names: tuple[str, ...], num_augmentations: int):
  for name in names:
    if name not in augment.AUGMENTATIONS:
      raise UserError(
        f'simulator.augmentations: there is no {name!r}, choose from '
        f'{", ".join(augment.AUGMENTATIONS)}'
      )
  if not 0 <= num_augmentations <= len(names):
    raise UserError(
      f'simulator.num_augmentations: {num_augmentations} different ones of '
      f'{len(names)} cannot be, choose 0 to {len(names)}'
    )


def _carry_out(
  draws: _Draws,
  image: UInt8[Array, 'h w 3'],
  texture: UInt8[Array, 'h w 3'],
  augmentations: tuple[str, ...],
) -> Example:
  # Each step is a branch of its own: what a branch returns is computed once,
  # while the compiler would repeat it wherever it is used.
  image = jax.lax.cond(
    draws.is_rotated,
    lambda image: augment.rotate(image, degrees=draws.image_degrees),
    lambda image: image,
    image.astype(jnp.float32) / 255,
  )
  mask = jax.lax.cond(
    draws.is_anomalous,
    lambda: _anomaly_mask(draws, image.shape[:2]),
    lambda: jnp.zeros(image.shape[:2], image.dtype),
  )
  augmented = jax.lax.cond(
    jnp.any(mask > 0),
    lambda: _blend(draws, image, texture, mask, augmentations),
    lambda: image,
  )
  return Example(image=image, augmented=augmented, mask=mask)


def _anomaly_mask(draws: _Draws, shape: tuple[int, int]) -> Float[Array, 'h w']:
  noise = perlin.perlin_noise(draws.angles, draws.resolution, shape=shape)
  noise = rotation.rotate(noise, degrees=draws.noise_degrees)
  return (noise > draws.threshold).astype(noise.dtype)


def _blend(
  draws: _Draws,
  image: Float[Array, 'h w 3'],
  texture: UInt8[Array, 'h w 3'],
  mask: Float[Array, 'h w'],
  augmentations: tuple[str, ...],
) -> Float[Array, 'h w 3']:
  """Equation 4 of the paper, on a changed texture."""
  for operation, numbers in zip(draws.operations, draws.numbers, strict=True):
    texture = random_augment.augment_texture(
      texture, operation, numbers, names=augmentations
    )
  texture = texture.astype(image.dtype) / 255
  return image + draws.opacity * mask[..., None] * (texture - image)
