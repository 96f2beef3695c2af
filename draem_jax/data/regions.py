"""Defects that count one by one, each wholly found from its saturation on."""

import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8, UInt16

from draem_jax.data import resizing
from draem_jax.data.layouts.contents import Saturation
from draem_jax.errors import UserError


class Region(NamedTuple):
  """A defect in a resized image.

  Attributes:
    pixels: places, in the flattened image, of the pixels it touches.
    coverage: the share of each of them that it covers, of 255.
    saturation: the share of its pixels that is enough to have found it.
  """

  pixels: Int[np.ndarray, 'k']
  coverage: UInt8[np.ndarray, 'k']
  saturation: float


def split(
  levels: UInt8[np.ndarray, 'h w'] | UInt16[np.ndarray, 'h w'],
  saturations: Mapping[int, Saturation],
  name: str,
) -> list[tuple[Bool[np.ndarray, 'h w'], float]]:
  """The defects of one mask file: one for each value but 0.

  Args:
    levels: the values of the mask's pixels.
    saturations: by value, the kinds of defects.
    name: of the file, for the error.

  Returns:
    Where each is, and the share of its pixels that is enough.

  Raises:
    UserError: if no kind of defect has such a value.
  """
  found = []
  for value in np.unique(levels[levels > 0]).tolist():
    if value not in saturations:
      raise UserError(
        f'{name} has pixels of the value {value}, which is no pixel_value in'
        ' defects_config.json: correct one of the two'
      )
    mask = levels == value
    found.append((mask, saturations[value].share(int(mask.sum()))))
  return found


def pack(masks: Sequence[Bool[np.ndarray, 'h w']]) -> bytes:
  """Masks of one size as bytes; the opposite of `unpack`."""
  return zlib.compress(np.packbits(np.stack(masks)).tobytes()) if masks else b''


def unpack(
  data: bytes, count: int, size: tuple[int, int]
) -> Bool[np.ndarray, '{count} h w']:
  """So many masks of a height and width from bytes."""
  shape = (count, *size)
  if not count:
    return np.zeros(shape, bool)
  bits = np.frombuffer(zlib.decompress(data), np.uint8)
  return np.unpackbits(bits, count=count * size[0] * size[1]).reshape(shape) > 0


def resize(
  masks: Bool[np.ndarray, 'k h w'],
  saturations: Sequence[float],
  size: tuple[int, int],
  way: resizing.Way = 'bilinear',
) -> list[Region]:
  """Defects in an image of another height and width.

  A defect that no pixel is left of is left out.

  Args:
    masks: where each is.
    saturations: the share of its pixels that is enough.
    size: height and width.
    way: to resize, of `resizing.WAYS`.
  """
  found = []
  for mask, saturation in zip(masks, saturations, strict=True):
    levels = np.where(mask, np.uint8(255), np.uint8(0))[..., None]
    coverage = resizing.resize(levels, size, way)[..., 0].reshape(-1)
    pixels = np.flatnonzero(coverage)
    if pixels.size:
      found.append(Region(pixels, coverage[pixels], saturation))
  return found
