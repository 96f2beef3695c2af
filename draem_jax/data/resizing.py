"""How pictures are brought to the size of the networks: two ways."""

import os
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import scipy.sparse
from jaxtyping import UInt8

from draem_jax.data import encoded, images

Way = Literal['bilinear', 'area']
# As the release does it, without antialiasing; or by the mean of what each new
# pixel covers.
WAYS = ('bilinear', 'area')
_STRIP = 1 << 20  # Pixels.


def resize(
  image: UInt8[np.ndarray, 'h w c'], size: tuple[int, int], way: Way
) -> UInt8[np.ndarray, 'h2 w2 c']:
  """Resizes an image.

  Args:
    image: of any size.
    size: height and width of the result.
    way: `'bilinear'`, see `images.resize_bilinear`, or `'area'`: the mean of
      the area that each new pixel covers, rounded, half a level up. An axis
      that becomes longer is then interpolated, which has no such area.
  """
  if way == 'area':
    smaller = _smaller(image.shape, size)
    if smaller != image.shape[:2]:
      image = _means(_strips(image), image.shape[:2], smaller)
  return images.resize_bilinear(image, size)


def resize_picture(
  picture: encoded.Picture, size: tuple[int, int], way: Way
) -> UInt8[np.ndarray, 'h2 w2 3']:
  """As `resize` of all of the picture, which is never whole in memory.

  Args:
    picture: of any size.
    size: height and width of the result.
    way: one of `WAYS`.
  """
  smaller = _smaller(picture.shape, size)
  if way == 'bilinear' or smaller == picture.shape:
    return images.resize_picture(picture, size)
  means = _means(picture.strips(), picture.shape, smaller)
  return images.resize_bilinear(means, size)


def read_image(
  path: str | os.PathLike[str], size: tuple[int, int], way: Way
) -> UInt8[np.ndarray, 'h w 3']:
  """Reads an image file as RGB of a height and width.

  Raises:
    UserError: if this is no image, or a broken one.
  """
  with encoded.open_picture(path) as picture:
    return resize_picture(picture, size, way)


def _smaller(shape: tuple[int, ...], size: tuple[int, int]) -> tuple[int, int]:
  """The size with the axes left as they are that would become longer."""
  return min(shape[0], size[0]), min(shape[1], size[1])


def _strips(
  image: UInt8[np.ndarray, 'h w c'],
) -> Iterator[UInt8[np.ndarray, 'h2 w c']]:
  """An image from top to bottom: little of it is converted at a time."""
  step = max(1, _STRIP // image.shape[1])
  for top in range(0, len(image), step):
    yield image[top : top + step]


def _means(
  strips: Iterable[UInt8[np.ndarray, 'h w c']],
  old: tuple[int, int],
  new: tuple[int, int],
) -> UInt8[np.ndarray, '{new[0]} {new[1]} c']:
  """The mean of the area that each pixel of a smaller image covers.

  In whole numbers, so that no partition into strips makes a difference.

  Args:
    strips: of the image, from top to bottom.
    old: height and width of the image.
    new: height and width of the result, neither greater.
  """
  down, across = (_overlaps(*lengths) for lengths in zip(old, new, strict=True))
  down, total, top = down.tocsc(), 0, 0
  for strip in strips:
    rows, width, channels = strip.shape
    columns = strip.transpose(1, 0, 2).reshape(width, rows * channels)
    # 255 times the width fits, for no image is as wide as 2**23.
    sums = across @ columns.astype(np.int32)
    sums = sums.reshape(new[1], rows, channels).transpose(1, 0, 2)
    sums = sums.reshape(rows, new[1] * channels).astype(np.int64)
    total = total + down[:, top : top + rows] @ sums
    top += rows
  area = old[0] * old[1]
  means = (2 * total + area) // (2 * area)
  return means.reshape(*new, channels).astype(np.uint8)


def _overlaps(old: int, new: int) -> scipy.sparse.csr_array:
  """How much of each old pixel of a line lies in each new one.

  In units in which a new pixel has the length `old`, and an old one `new`.
  """
  ends = np.union1d(np.arange(1, new + 1) * old, np.arange(1, old + 1) * new)
  starts = np.concatenate([[0], ends[:-1]])
  return scipy.sparse.csr_array(
    ((ends - starts).astype(np.int32), (starts // old, starts // new)),
    shape=(new, old),
  )
