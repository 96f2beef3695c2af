"""One training example: an image, and the same with a simulated anomaly."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from draem_jax import platforms
from draem_jax.simulator import augment, masks, random_augment, sample, textures
from draem_jax.simulator.options import Options

# Each part samples by a key of its own, so that replacing one leaves the
# others as they were. A new part goes to the end.
_PARTS = (
  'rotation',
  'presence',
  'mask',
  'texture',
  'augmentation',
  'opacity',
  'crop',
  'source',
  'noise',
)


@flax.struct.dataclass
class Example:
  """What the networks are trained on, or a batch of it; on the host, too.

  Attributes:
    image: the anomaly-free image, in [0, 1].
    augmented: the same with the anomaly in it, in [0, 1].
    mask: 1 where the anomaly is, else 0.
    region: 1 where the object is, so that anomalies are, else 0; None for the
      whole image.
  """

  image: Float[Array | np.ndarray, '*b h w 3']
  augmented: Float[Array | np.ndarray, '*b h w 3']
  mask: Float[Array | np.ndarray, '*b h w']
  region: Float[Array | np.ndarray, '*b h w'] | None = None


@flax.struct.dataclass
class Steps:
  """An example and all that it was made of (figure 4, whose symbols these are).

  Attributes:
    image: I, the anomaly-free image, rotated or not, in [0, 1].
    noise: P, of which the mask is where it exceeds a threshold; None for masks
      that are not made of noise.
    mask: M_a, 1 where the anomaly is, else 0.
    texture: A, RGB. Where the mask is empty no anomaly is made: `texture` and
      `anomaly` are black then and `opacity` is 0.
    anomaly: A after its augmentation, RGB.
    opacity: alpha, the weight of the anomaly inside the mask.
    augmented: I_a, the image with the anomaly in it, in [0, 1].
    region: see `Example`.
  """

  image: Float[Array | np.ndarray, '*b h w 3']
  noise: Float[Array | np.ndarray, '*b h w'] | None
  mask: Float[Array | np.ndarray, '*b h w']
  texture: UInt8[Array | np.ndarray, '*b h w 3']
  anomaly: UInt8[Array | np.ndarray, '*b h w 3']
  opacity: Float[Array | np.ndarray, '*b']
  augmented: Float[Array | np.ndarray, '*b h w 3']
  region: Float[Array | np.ndarray, '*b h w'] | None = None


def simulate(
  key: Key[Array, ''],
  image: UInt8[Array, 'h2 w2 c'],
  texture: UInt8[Array, 'h w 3'],
  options: Options,
  *,
  other: UInt8[Array, 'h2 w2 c'] | None = None,
) -> Example:
  """Samples a training example (section 3.3, figure 4).

  Args:
    key: decides everything that chance does.
    image: an anomaly-free image, RGB, of any size. It may have a margin, equal
      on opposite sides, of what a rotation shows. A fourth channel is above 127
      where the object is: it is rotated with the image, and there is no anomaly
      outside.
    texture: where the anomaly's looks come from, RGB, of the same size but for
      the margin.
    options: what the simulator is told to do.
    other: another anomaly-free image, which may be the texture; without it,
      `image` may.

  Returns:
    The example. Nothing but these arguments decides about it.
  """
  if not options.anomaly_probability:  # Then there is nothing to compile.
    keys = _split(key)
    image, region = _rotate(keys, image, texture.shape[:2], options)
    mask = jnp.zeros(image.shape[:2], image.dtype)
    return Example(image, _add_noise(keys, image, options), mask, region)
  made = simulate_steps(key, image, texture, options, other=other)
  found = Example(image=made.image, augmented=made.augmented, mask=made.mask)
  return found.replace(region=made.region)


def simulate_steps(
  key: Key[Array, ''],
  image: UInt8[Array, 'h2 w2 c'],
  texture: UInt8[Array, 'h w 3'],
  options: Options,
  *,
  other: UInt8[Array, 'h2 w2 c'] | None = None,
) -> Steps:
  """Samples a training example and keeps what it was made of.

  A compiled program that reads only a part of it, as that of `simulate` does,
  computes only what this part needs.

  Args:
    key: decides everything that chance does.
    image: an anomaly-free image, RGB, of any size, with or without a margin and
      a region.
    texture: where the anomaly's looks come from, RGB, of the same size but for
      the margin.
    options: what the simulator is told to do.
    other: see there.

  Returns:
    The steps to the example that `simulate` makes of the same arguments.
  """
  keys = _split(key)
  other = image if other is None else other
  presence = jax.random.uniform(keys['presence'])
  shape = texture.shape[:2]
  # Each step is a branch of its own: what a branch returns is computed once,
  # while the compiler would repeat it wherever it is used.
  image, region = _rotate(keys, image, shape, options)
  mask = jax.lax.cond(
    presence < options.anomaly_probability,
    lambda: masks.MASKS[options.mask](keys['mask'], shape, options),
    lambda: jnp.zeros(shape, image.dtype),
  )
  if region is not None:
    mask *= region
  noise = None
  if options.mask in masks.NOISES:
    noise, _ = masks.NOISES[options.mask](keys['mask'], shape, options)

  def paint() -> tuple[Array, Array, Array, Array]:
    source = textures.TEXTURES[options.texture].sample(keys['texture'], texture)
    source, anomaly = _make_anomaly(keys, source, other[..., :3], options)
    opacity = sample.within(
      options.opacity, jax.random.uniform(keys['opacity'])
    )
    augmented = blend(image, anomaly.astype(image.dtype) / 255, mask, opacity)
    return source, anomaly, opacity, augmented

  def leave() -> tuple[Array, Array, Array, Array]:
    black = jnp.zeros_like(texture)
    return black, black, jnp.zeros((), image.dtype), image

  source, anomaly, opacity, augmented = jax.lax.cond(
    jnp.any(mask > 0), paint, leave
  )
  return Steps(
    image=image,
    noise=noise,
    mask=mask,
    texture=source,
    anomaly=anomaly,
    opacity=opacity,
    augmented=_add_noise(keys, augmented, options),
    region=region,
  )


def _make_anomaly(
  keys: dict[str, Key[Array, '']],
  texture: UInt8[Array, 'h w 3'],
  other: UInt8[Array, 'h2 w2 3'],
  options: Options,
) -> tuple[UInt8[Array, 'h w 3'], UInt8[Array, 'h w 3']]:
  """The texture, or a good image in its place, and the same as augmented."""

  def augmented() -> UInt8[Array, 'h w 3']:
    return random_augment.augment_randomly(
      keys['augmentation'], texture, options
    )

  if options.augmentation_probability == 1 and not options.good_textures:
    return texture, augmented()
  numbers = sample.uniform(
    keys['source'], good=(), plain=(), shift=(2,), mirrored=(2,)
  )
  is_good = numbers['good'] < options.good_textures
  is_plain = numbers['plain'] >= options.augmentation_probability
  other = _without_margin(other, texture.shape[:2])
  shift = jnp.floor(numbers['shift'] * jnp.array(other.shape[:2]))
  moved = jnp.roll(other, shift.astype(jnp.int32), axis=(0, 1))
  for axis in (0, 1):
    moved = jnp.where(
      numbers['mirrored'][axis] < 0.5, jnp.flip(moved, axis), moved
    )
  source = jnp.where(is_good, moved, texture)
  return source, jax.lax.cond(is_good | is_plain, lambda: source, augmented)


def _without_margin(
  image: UInt8[Array, 'h2 w2 3'], shape: tuple[int, int]
) -> UInt8[Array, '{shape[0]} {shape[1]} 3']:
  top, left = ((n - m) // 2 for n, m in zip(image.shape, shape, strict=False))
  return image[top : top + shape[0], left : left + shape[1]]


def _add_noise(
  keys: dict[str, Key[Array, '']],
  augmented: Float[Array, 'h w 3'],
  options: Options,
) -> Float[Array, 'h w 3']:
  """Adds noise to what the networks see, and nowhere else."""
  if not options.noise:
    return augmented
  noise = jax.random.normal(keys['noise'], augmented.shape, augmented.dtype)
  return jnp.clip(augmented + options.noise * noise, 0, 1)


def _split(key: Key[Array, '']) -> dict[str, Key[Array, '']]:
  """A key of its own for each part: replacing one leaves the others' draws."""
  return {part: jax.random.fold_in(key, i) for i, part in enumerate(_PARTS)}


def part_key(key: Key[Array, ''], part: str) -> Key[Array, '']:
  """The key by which a part of an example samples."""
  return _split(key)[part]


def _rotate(
  keys: dict[str, Key[Array, '']],
  image: UInt8[Array, 'h2 w2 c'],
  size: tuple[int, int],
  options: Options,
) -> tuple[
  Float[Array, '{size[0]} {size[1]} 3'],
  Float[Array, '{size[0]} {size[1]}'] | None,
]:
  """The image, rotated or not, and where the object is, if that is known."""
  rotated = rotate_image(
    keys['rotation'], image.astype(jnp.float32) / 255, options, size
  )
  if rotated.shape[-1] == 3:
    return rotated, None
  return rotated[..., :3], (rotated[..., 3] >= 0.5).astype(rotated.dtype)


def simulate_batch(
  keys: Key[Array, 'b'],
  images: UInt8[Array, 'b h2 w2 c'],
  textures: UInt8[Array, 'b h w 3'],
  options: Options,
) -> Example:
  """Samples a batch of training examples, each as `simulate` does.

  Args:
    keys: one for each example.
    images: the anomaly-free images, RGB, with or without a margin and a region;
      each may be the next one's texture.
    textures: a texture for each, RGB.
    options: what the simulator is told to do.

  Returns:
    The examples.
  """
  batch = {'key': keys, 'image': images, 'texture': textures}
  if options.good_textures:
    batch['other'] = jnp.roll(images, 1, axis=0)

  def one(example: dict[str, Array]) -> Example:
    return simulate(**example, options=options)

  # A CPU gains from leaving out what an example does not need, one example
  # after the other; an accelerator from doing everything for all at once.
  return platforms.choose(
    batch,
    cpu=lambda batch: jax.lax.map(one, batch),
    default=jax.vmap(one),
  )


def rotate_image(
  key: Key[Array, ''],
  image: Float[Array, 'h2 w2 c'],
  options: Options,
  size: tuple[int, int] | None = None,
) -> Float[Array, 'h w c']:
  """Rotates an anomaly-free image, or leaves it as it is (section 4.1).

  Args:
    key: decides whether, and by how much.
    image: with a margin around its middle, or without.
    options: what the simulator is told to do.
    size: height and width of the middle, which is the result; by default those
      of the image.
  """
  size = size or image.shape[:2]
  top, left = (image.shape[0] - size[0]) // 2, (image.shape[1] - size[1]) // 2
  middle = image
  if size != image.shape[:2]:
    middle = image[top : top + size[0], left : left + size[1]]
  numbers = sample.uniform(key, is_rotated=(), degrees=())
  return jax.lax.cond(
    numbers['is_rotated'] < options.rotation_probability,
    lambda: augment.rotate(
      image,
      degrees=sample.within(options.rotation_degrees, numbers['degrees']),
      size=size,
    ),
    lambda: middle,
  )


def blend(
  image: Float[Array, 'h w 3'],
  anomaly: Float[Array, 'h w 3'],
  mask: Float[Array, 'h w'],
  opacity: Float[Array, ''] | float,
) -> Float[Array, 'h w 3']:
  """Puts an anomaly into an image (eq. (4)).

  Args:
    image: the anomaly-free image.
    anomaly: the texture, in [0, 1].
    mask: 1 where the anomaly shall be, else 0.
    opacity: the weight of the texture inside the mask, in [0, 1].
  """
  return image + opacity * mask[..., None] * (anomaly - image)
