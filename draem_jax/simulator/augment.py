"""The operations that turn a texture into a stranger one.

Images are float [h w 3], RGB, in [0, 1] and on the grid k / 255. Each operation
follows the uint8 arithmetic of the library that the release calls (imgaug,
OpenCV or PIL), its rounding or truncation included, and returns to the grid.
"""

import dm_pix
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from draem_jax.simulator import rotation

Image = Float[Array, 'h w 3']
Scalar = Float[Array, ''] | float


def gamma_contrast(image: Image, *, gamma: Float[Array, '3']) -> Image:
  """Raises each channel to a power of its own.

  Args:
    image: the texture.
    gamma: exponents of the channels; above 1 darkens.

  Returns:
    The texture with another contrast.
  """
  levels = jnp.arange(256, dtype=image.dtype) / 255
  table = _truncate(levels ** jnp.asarray(gamma)[:, None] * 255)
  return _look_up(image, table)


def brightness(image: Image, *, scale: Scalar, offset: Scalar) -> Image:
  """Scales and shifts V of HSV.

  Args:
    image: the texture.
    scale: factor of V, applied first.
    offset: what is added to V, in units of its range.

  Returns:
    The brighter or darker texture.
  """
  hue, saturation, value = _to_hsv(image)
  value = _truncate(value * scale) + jnp.round(offset * 255)
  return _from_hsv(hue, saturation, jnp.clip(value, 0, 255))


def sharpness(image: Image, *, factor: Scalar) -> Image:
  """Moves away from a smoothed copy, as PIL's `ImageEnhance.Sharpness`.

  Args:
    image: the texture.
    factor: 0 gives the smoothed copy, 1 the image, more sharpens.

  Returns:
    The smoother or sharper texture.
  """
  levels = _levels(image)
  # The filter is one in every place but five in the middle. Sums of shifted
  # copies are as quick as a convolution on any device and quicker on a CPU.
  sums = levels[:-2] + levels[1:-1] + levels[2:]
  sums = sums[:, :-2] + sums[:, 1:-1] + sums[:, 2:]
  inner = jnp.floor((sums + 4 * levels[1:-1, 1:-1]) / 13 + 0.5)
  smooth = levels.at[1:-1, 1:-1].set(inner)
  return _blend(smooth, levels, factor)


def hue_saturation(
  image: Image, *, hue_shift: Scalar, saturation_shift: Scalar
) -> Image:
  """Turns the hue and shifts the saturation.

  Args:
    image: the texture.
    hue_shift: in units of the circle.
    saturation_shift: in units of the range of S.

  Returns:
    The texture in other colours.
  """
  hue, saturation, value = _to_hsv(image)
  hue = jnp.mod(hue + jnp.trunc(hue_shift * 180), 180)
  saturation = jnp.clip(saturation + jnp.round(saturation_shift * 255), 0, 255)
  return _from_hsv(hue, saturation, value)


def color(image: Image, *, factor: Scalar) -> Image:
  """Moves away from a gray copy, as PIL's `ImageEnhance.Color`.

  Args:
    image: the texture.
    factor: 0 gives the gray copy, 1 the image, more saturates.

  Returns:
    The paler or more colourful texture.
  """
  levels = _levels(image)
  weights = jnp.array([19595, 38470, 7471], jnp.int32)
  gray = (jnp.sum(levels.astype(jnp.int32) * weights, -1) + 0x8000) >> 16
  return _blend(gray[..., None].astype(levels.dtype), levels, factor)


def solarize(image: Image, *, threshold: Scalar) -> Image:
  """Inverts the values from a threshold on.

  Args:
    image: the texture.
    threshold: in [0, 1].

  Returns:
    The solarized texture.
  """
  return _grid(_levels(dm_pix.solarize(image, threshold)))


def posterize(image: Image, *, bits: Int[Array, ''] | int) -> Image:
  """Keeps the leading bits of each value.

  Args:
    image: the texture.
    bits: how many of the eight to keep.

  Returns:
    The texture in fewer levels.
  """
  step = jnp.exp2(8.0 - bits).astype(image.dtype)
  return _grid(jnp.floor(_levels(image) / step) * step)


def invert(image: Image) -> Image:
  """Inverts every value.

  Args:
    image: the texture.

  Returns:
    Its negative.
  """
  return _grid(255 - _levels(image))


def autocontrast(image: Image, *, cutoff: Scalar) -> Image:
  """Stretches each channel to the full range, as PIL's `ImageOps.autocontrast`.

  Args:
    image: the texture.
    cutoff: per cent of the pixels to leave out at either end, below 50.

  Returns:
    The stretched texture; a channel of one value stays as it is.
  """
  histogram = _histogram(image)
  num_pixels = image.shape[0] * image.shape[1]
  left_out = jnp.floor(num_pixels * cutoff / 100)
  up_to = jnp.cumsum(histogram, axis=1)
  lowest = jnp.argmax(up_to > left_out, axis=1)
  from_here = num_pixels - up_to + histogram
  highest = 255 - jnp.argmax(from_here[:, ::-1] > left_out, axis=1)
  span = (highest - lowest)[:, None]
  values = jnp.arange(256)
  stretched = (values - lowest[:, None]) * 255 // jnp.maximum(span, 1)
  table = jnp.where(span > 0, jnp.clip(stretched, 0, 255), values)
  return _look_up(image, table)


def equalize(image: Image) -> Image:
  """Flattens each channel's histogram, as PIL's `ImageOps.equalize`.

  Args:
    image: the texture.

  Returns:
    The equalized texture; a channel of one value stays as it is.
  """
  histogram = _histogram(image)
  below = jnp.cumsum(histogram, axis=1) - histogram
  num_pixels = image.shape[0] * image.shape[1]
  # What is white already does not count for the steps.
  step = (num_pixels - histogram[:, -1:]) // 255
  equalized = (below + step // 2) // jnp.maximum(step, 1)
  is_flat = jnp.max(histogram, axis=1, keepdims=True) == num_pixels
  table = jnp.where(
    is_flat | (step == 0), jnp.arange(256), jnp.minimum(equalized, 255)
  )
  return _look_up(image, table)


def rotate(image: Image, *, degrees: Scalar) -> Image:
  """Rotates clockwise about the centre, bilinear, black outside.

  Args:
    image: the texture.
    degrees: the angle.

  Returns:
    The rotated texture, of the same size.
  """
  levels = rotation.rotate(_levels(image), degrees=degrees)
  return _grid(jnp.floor(levels + 0.5))


def _levels(image):
  return jnp.round(image * 255)


def _grid(levels):
  return levels / 255


def _truncate(levels):
  return jnp.clip(jnp.trunc(levels), 0, 255)


def _blend(start, levels, factor):
  """PIL's `Image.blend`, which truncates."""
  return _grid(_truncate(start + factor * (levels - start)))


def _look_up(image: Image, table: Float[Array, '3 256']) -> Image:
  indices = _levels(image).astype(jnp.int32) + 256 * jnp.arange(3)
  table = _grid(table.reshape(-1).astype(image.dtype))
  return table.at[indices].get(mode='promise_in_bounds')


def _histogram(image: Image) -> Float[Array, '3 256']:
  indices = _levels(image).astype(jnp.int32) + 256 * jnp.arange(3)
  counts = jnp.zeros(3 * 256, jnp.int32)
  return counts.at[indices].add(1, mode='promise_in_bounds').reshape(3, 256)


def _to_hsv(image: Image):
  """Hue in [0, 180), saturation and value in [0, 255], whole as in OpenCV."""
  hsv = dm_pix.rgb_to_hsv(image)
  hue = jnp.mod(jnp.round(hsv[..., 0] * 180), 180)
  return hue, jnp.round(hsv[..., 1] * 255), jnp.round(hsv[..., 2] * 255)


def _from_hsv(hue, saturation, value) -> Image:
  hsv = jnp.stack([hue / 180, saturation / 255, value / 255], axis=-1)
  # OpenCV truncates here. The margin is above the error of float32 and below
  # the distance of what is not whole.
  return _grid(jnp.floor(dm_pix.hsv_to_rgb(hsv) * 255 + 1e-3))


def _between(number, low, high):
  return low + (high - low) * number


def _whole(number, low, high):
  """A whole number from `low` to `high`, both included."""
  return jnp.floor(_between(number, low, high + 1))


# Each operation with its arguments made of three uniform numbers in [0, 1).
AUGMENTATIONS = {
  'gamma_contrast': lambda image, u: gamma_contrast(
    image, gamma=_between(u, 0.5, 2.0)
  ),
  'brightness': lambda image, u: brightness(
    image, scale=_between(u[0], 0.8, 1.2), offset=_whole(u[1], -30, 30) / 255
  ),
  'sharpness': lambda image, u: sharpness(
    image, factor=_between(u[0], 0.0, 2.0)
  ),
  'hue_saturation': lambda image, u: hue_saturation(
    image,
    hue_shift=_whole(u[0], -50, 50) / 255,
    saturation_shift=_whole(u[1], -50, 50) / 255,
  ),
  'color': lambda image, u: color(image, factor=_between(u[0], 0.1, 1.9)),
  'solarize': lambda image, u: solarize(
    image,
    threshold=jnp.where(u[0] < 0.5, _between(u[1], 32, 128) / 255, 2.0),
  ),
  'posterize': lambda image, u: posterize(image, bits=_whole(u[0], 1, 8)),
  'invert': lambda image, u: invert(image),
  'autocontrast': lambda image, u: autocontrast(
    image, cutoff=_whole(u[0], 0, 20)
  ),
  'equalize': lambda image, u: equalize(image),
  'rotate': lambda image, u: rotate(image, degrees=_between(u[0], -45, 45)),
}
