"""RIAD: each part of an image is restored from the rest of it.

Zavrtanik, Kristan, Skočaj: Reconstruction by inpainting for visual anomaly
detection, Pattern Recognition 112, 2021, doi:10.1016/j.patcog.2020.107706.

An image is cut into square cells, and these are split into three sets at
random. A network sees the image three times, each time with one set hidden, and
what it puts there is joined into a reconstruction that no pixel has taken part
in at its own place. What the method leaves open is in docs/fidelity.md.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from draem_jax.networks.blocks import (
  Conv,
  ConvNormRelu,
  DoublingConv,
  HalvingConvNormRelu,
  computation_dtype,
)

CELLS = (2, 4, 8, 16)  # Pixels a side.
_PARTS = 3
_SCORING_SEED = 0

Split = Int[Array | np.ndarray, 'h w']


class InpaintingSubNetwork(nn.Module):
  """A U-Net that halves four times, for images in [-1, 1]."""

  width: int = 64
  dtype: DTypeLike | None = None
  param_dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, image: Float[Array, 'b h w 3'], *, train: bool
  ) -> Float[Array, 'b h w 3']:
    """Returns the whole image in (-1, 1), float32 or float64."""
    types = {'dtype': self.dtype, 'param_dtype': self.param_dtype}
    w = self.width
    x = image.astype(computation_dtype(image, self))
    skips = []
    for i, features in enumerate((w, 2 * w, 4 * w, 8 * w, 8 * w), start=1):
      first = HalvingConvNormRelu if i > 1 else ConvNormRelu
      for j, layer in enumerate((first, ConvNormRelu), start=1):
        name = f'encoder_block{i}_conv{j}'
        x = layer(features, name=name, **types)(x, train=train)
      skips.append(x)
    skips.pop()
    for i, features in enumerate((8 * w, 4 * w, 2 * w, w), start=1):
      skip = skips.pop()
      x = DoublingConv(features, name=f'decoder_block{i}_up', **types)(x)
      x = jnp.concatenate([x.astype(skip.dtype), skip], axis=-1)
      for j in (1, 2):
        name = f'decoder_block{i}_conv{j}'
        x = ConvNormRelu(features, name=name, **types)(x, train=train)
    return jnp.tanh(Conv(3, name='last_conv', **types)(x))


def split_cells(
  key: Key[Array, ''], size: tuple[int, int], *, cell: int
) -> Int[Array, '{size[0]} {size[1]}']:
  """Splits the pixels into three sets of whole cells at random.

  Args:
    key: decides which cell goes where.
    size: height and width, multiples of `cell`.
    cell: pixels a side of a cell.

  Returns:
    The set of each pixel: 0, 1 or 2. Numbers of cells differ by one at most.
  """
  parts = jnp.arange(_num_cells(size, cell), dtype=jnp.int32) % _PARTS
  return _enlarge(jax.random.permutation(key, parts), size, cell)


def sample_split(
  key: Key[Array, ''], size: tuple[int, int]
) -> Int[Array, '{size[0]} {size[1]}']:
  """Samples a size of cells and splits by it.

  Args:
    key: decides both.
    size: height and width, multiples of the largest of `CELLS`.
  """
  cell_key, split_key = jax.random.split(key)
  return jax.lax.switch(
    jax.random.randint(cell_key, (), 0, len(CELLS)),
    [
      lambda cell=cell: split_cells(split_key, size, cell=cell)
      for cell in CELLS
    ],
  )


def scoring_splits(
  size: tuple[int, int],
) -> Int[np.ndarray, '4 {size[0]} {size[1]}']:
  """The splits that images are scored by, one for each of `CELLS`.

  Always the same, so that an image has one score, and constants of a compiled
  program rather than a part of it.
  """
  # NumPy has promised never to change what this one gives.
  rng = np.random.RandomState(_SCORING_SEED)
  return np.stack(
    [
      _enlarge(rng.permutation(_num_cells(size, cell)) % _PARTS, size, cell)
      for cell in CELLS
    ]
  ).astype(np.int32)


def _num_cells(size: tuple[int, int], cell: int) -> int:
  return (size[0] // cell) * (size[1] // cell)


def _enlarge(
  parts: Int[Array | np.ndarray, 'n'], size: tuple[int, int], cell: int
) -> Int[Array | np.ndarray, '{size[0]} {size[1]}']:
  """The set of each pixel by that of its cell."""
  cells = parts.reshape(size[0] // cell, size[1] // cell)
  return cells.repeat(cell, axis=0).repeat(cell, axis=1)


def restore(
  network: Callable[[Float[Array, '3 b h w 3']], Float[Array, '3 b h w 3']],
  image: Float[Array, 'b h w 3'],
  split: Split,
) -> Float[Array, 'b h w 3']:
  """Restores each set of a split from the other two.

  Args:
    network: what looks at the images with one set hidden in all of them, then
      the next, in [-1, 1], and says what the whole images are.
    image: the images, in [0, 1].
    split: the set of each pixel, the same in all images.

  Returns:
    What the network says of pixels where it does not see them, in [0, 1].
  """
  hidden = split == np.arange(_PARTS)[:, None, None]
  hidden = hidden[:, None, :, :, None]
  # In the middle between black and white.
  seen = jnp.where(hidden, 0, 2 * image - 1)
  restored = jnp.where(hidden, network(seen), 0).sum(axis=0)
  return (restored + 1) / 2
