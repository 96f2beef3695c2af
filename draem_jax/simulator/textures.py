"""The looks of simulated anomalies: images of textures, plain colors."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, UInt8


def image_texture(
  key: Key[Array, ''], texture: UInt8[Array, 'h w 3']
) -> UInt8[Array, 'h w 3']:
  """The sampled image of a texture as it is (section 3.3)."""
  del key
  return texture


def color_texture(
  key: Key[Array, ''], texture: UInt8[Array, 'h w 3']
) -> UInt8[Array, 'h w 3']:
  """Samples one color, uniform in RGB, for the whole region (table 3).

  Args:
    key: decides the color.
    texture: an image that only says how large.
  """
  color = jax.random.randint(key, (3,), 0, 256)
  return jnp.broadcast_to(color.astype(jnp.uint8), texture.shape)


class Texture(NamedTuple):
  """A way to make textures.

  Attributes:
    sample: the function of a key and an image of a texture.
    reads_images: whether that image is looked at.
  """

  sample: Callable[..., UInt8[Array, 'h w 3']]
  reads_images: bool


TEXTURES = {
  'images': Texture(image_texture, reads_images=True),
  'color': Texture(color_texture, reads_images=False),
}
